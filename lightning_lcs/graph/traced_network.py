"""All traced forms of a network, and the channel plan that they share."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from lightning_lcs.graph.channels.plan import ChannelPlan
from lightning_lcs.graph.channels.propagate import propagate
from lightning_lcs.graph.merge_traces import open_sizes
from lightning_lcs.graph.program import FixedSize, Program
from lightning_lcs.graph.tracing.errors import ALTERNATIVES, TraceError
from lightning_lcs.graph.tracing.example_inputs import resized, sample
from lightning_lcs.graph.tracing.hooks import Hook, hooks_disabled, hooks_of
from lightning_lcs.graph.tracing.kept import Kept, holders_of_hook, holders_of_network, restored
from lightning_lcs.graph.tracing.trace import InputSpec, trace
from lightning_lcs.graph.verify import check_faithful, fixed_sizes, is_faithful_at, untraced_hooks

ENDPOINT_NAME = "lcs_endpoint_0"
# Number of forms whose programs are kept. The first ones are never dropped: the plan was made from them.
MAX_FORMS, KEPT_FORMS = 64, 4
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
# Number of programs that are tried when a call comes with new sizes.
MAX_TRIED = 3
_MADE_AGAIN = ("_programs", "_fixed", "_untraced", "_children", "_owners", "_kept")
HOOKS_NOT_RUN = (
    "the forward hooks of {} only watch, so they run at alpha = 1 only: at lower levels the network runs as its trace. "
    "What they log or collect comes from the full network"
)
CHECKPOINTING_NOT_USED = (
    "gradient checkpointing (of {}) saves memory at alpha = 1 only: at lower levels the network runs as its trace, "
    "which keeps all that its backward needs"
)

OTHER_TENSORS = (
    "{} can't be traced while other tensors stand in the place of its parameters (torch.func.functional_call): run it "
    "once with its own parameters before, or use unstructured or quantized mode, which need no trace"
)


@contextlib.contextmanager
def training_flags(module: nn.Module, mode: bool) -> Iterator[None]:
    """Inside the block, a network is in training or evaluation mode; afterwards every submodule has its flag back."""
    flags = [(child, child.training) for child in module.modules()]
    try:
        for child, _ in flags:
            child.training = mode
        yield
    finally:
        for child, flag in flags:
            child.training = flag


def _not_compiled(method: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Decorate a method that ``torch.compile`` calls and does not look into.

    ``torch.compiler.disable`` does the same, and imports the compiler at once, which takes a second.
    """

    @functools.wraps(method)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        if not disabled:
            disabled.append(torch.compiler.disable(method))  # type: ignore[no-untyped-call]
        return disabled[0](*args, **kwargs)

    disabled: list[Callable[Arguments, Result]] = []
    return call


class TracedNetwork:
    """A network and its traced programs, one for each state of its training flags and each kind of input.

    An input of another size is run by a program that was traced before, if that computes the same as the network for
    this size. Otherwise the network is traced again.

    Args:
        module: The network, which is not changed.
        plan: An empty plan with its options.

    Attributes:
        example: Arguments and keyword arguments of the first call, with two samples.
        pending_warnings: Warnings about what the traces leave out, not yet issued.
    """

    def __init__(self, module: nn.Module, plan: ChannelPlan) -> None:
        self.module = module
        self.plan = plan
        self.example: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        self.pending_warnings: list[str] = []
        self._single: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        self._warned: set[str] = set()
        self._traced_both_forms = False
        self._programs: dict[Any, Program] = {}
        self._fixed: dict[Program, list[FixedSize]] = {}
        self._untraced: list[Hook] = []
        self._kept: dict[Any, list[Kept]] = {}  # by program what the network keeps, by key what its hooks keep
        self._withheld: list[tuple[Kept, Callable[[], None]]] | None = None  # inside a block
        self._children: list[nn.Module] = []
        self._owners: dict[str, tuple[nn.Module, str]] = {}

    @_not_compiled
    def program(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Program:
        """The program for a call and the present training flags, traced when it is first needed.

        Args:
            args: Arguments of the call.
            kwargs: Keyword arguments of the call.

        Raises:
            TraceError: The network can't be traced, or its forms disagree about which channels shrink together.
        """
        key, program = self._found(args, kwargs)
        if self._withheld is not None:
            kept = (*self._kept.get(program, ()), *self._kept.get(key, ()))
            self._withheld += [(each, each.withhold()) for each in kept]
        return program

    def _found(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Program]:
        """The program for a call, and the key under which it is kept."""
        if not self._children:
            self._children = [m for name, m in self.module.named_modules() if ENDPOINT_NAME not in name]
        hooked = [child for child in self._children if child._forward_hooks or child._forward_pre_hooks]
        hooks = [key for child in hooked for key in (*child._forward_pre_hooks, *child._forward_hooks)]
        key = (tuple([child.training for child in self._children]), *_call_key(args, kwargs), tuple(hooks))
        program = self._programs.get(key)
        if program is None:
            if not self._traced_both_forms:
                self._traced_both_forms = True
                self.remember(args, kwargs)
                # The forms for training and evaluation determine the plan together, before either is used.
                self.in_mode(False)
                self.in_mode(True)
            with self._nothing_withheld():
                program = self._programs.get(key) or self._trace(key, args, kwargs)
        return key, program

    @contextlib.contextmanager
    def withholding(self) -> Iterator[None]:
        """Inside the block, each run of a program withholds what a run of the network would have kept.

        This is what the network's forward and the hooks that only watch keep in attributes and collections. Reading it
        is no error, and using it is one that names it. Afterwards all is as before the block.
        """
        before, self._withheld = self._withheld, []
        try:
            yield
        finally:
            self._give_back()
            self._withheld = before

    def _give_back(self) -> list[Kept]:
        given = []
        while self._withheld:
            kept, undo = self._withheld.pop()
            undo()
            given.append(kept)
        return given[::-1]

    @contextlib.contextmanager
    def _nothing_withheld(self) -> Iterator[None]:
        """Inside the block, nothing is withheld from the network's own code; afterwards collections are as before."""
        given = self._give_back()
        hooks = [hook.holder[hook.key] for hook in itertools.chain(*hooks_of(self.module))]
        places = [holder for hook in hooks for holder in holders_of_hook(hook, self.module)]
        try:
            with restored([*holders_of_network(self.module), *places]):
                yield
        finally:
            if self._withheld is not None:
                self._withheld += [(kept, kept.withhold()) for kept in given]

    def in_mode(self, training: bool) -> Program:
        """The program for the shapes seen first, with all submodules in training or all in evaluation mode.

        Raises:
            RuntimeError: The network was never called, so its input is not known.
        """
        with training_flags(self.module, training):
            return self._found(*self.example_inputs())[1]

    def fixed_sizes(self, program: Program, training: bool) -> list[FixedSize]:
        """The sizes of inputs that must not change for a program of :meth:`in_mode`.

        Args:
            program: The program.
            training: Whether it is the one for training.
        """
        if program not in self._fixed:
            full = [self.plan.structure.size(dim) for dim in program.sizes]
            hooks = [hook for hook in self._untraced if hook.key in hook.holder]
            with self._nothing_withheld(), training_flags(self.module, training), hooks_disabled(hooks):
                self._fixed[program] = fixed_sizes(self.module, program, full, *self.example_inputs())
        return self._fixed[program]

    def remember(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep the arguments of the first call, reduced to two samples and to one."""
        if self.example is None:
            self.example, self._single = sample(args, kwargs), sample(args, kwargs, 1)

    def example_inputs(self, samples: int | None = None) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of the first call, on the network's present device and in its present dtype.

        Args:
            samples: Number of samples. The default is the two that are kept.

        Raises:
            RuntimeError: The network was never called, so its input is not known.
        """
        if self.example is None:
            raise RuntimeError(
                "the network's input is not known yet: pass SubspaceModel(..., example_inputs=...), or call it once"
            )
        # Among the arguments of a call, what belongs to each sample is known; among two samples it can't be told from
        # two of something else.
        kept = self._single if samples == 1 else self.example
        args, kwargs = pytree.tree_map(self._as_parameters, kept)
        return (args, kwargs) if samples in (None, 1) else sample(args, kwargs, samples)

    def _as_parameters(self, leaf: Any) -> Any:
        """An example input on the device of the network's first parameter, and in its dtype."""
        parameter = next(self.module.parameters(), None)
        if parameter is None or not isinstance(leaf, Tensor):
            return leaf
        return leaf.to(parameter.device, parameter.dtype if leaf.is_floating_point() else leaf.dtype)

    def forget(self) -> None:
        """Drop every trace, because the network itself has changed."""
        self._programs.clear()
        self._fixed.clear()
        self._kept.clear()
        self._children.clear()
        self._owners.clear()

    def holder(self, name: str) -> tuple[dict[str, Any], str]:
        """The dictionary that holds the parameter or buffer of a qualified name, and its key there."""
        owner, leaf = self._owners.get(name) or self._owner(name)
        return (owner._parameters if leaf in owner._parameters else owner._buffers), leaf

    def _owner(self, name: str) -> tuple[nn.Module, str]:
        path, _, leaf = name.rpartition(".")
        self._owners[name] = (self.module.get_submodule(path), leaf)
        return self._owners[name]

    def is_parameter(self, name: str) -> bool:
        """Whether a qualified name is that of a parameter, whatever tensor stands in its place now."""
        owner, leaf = self._owners.get(name) or self._owner(name)
        return leaf in owner._parameters

    def tensor(self, name: str) -> Tensor:
        """The parameter or buffer that a qualified name has now; ``.to()`` may have replaced it since the trace."""
        # Each forward asks for all of them.
        owner, leaf = self._owners.get(name) or self._owner(name)
        value: Tensor | None = owner._parameters.get(leaf)
        if value is None:
            value = owner._buffers.get(leaf)
        if value is None:
            raise RuntimeError(
                f"{name} was removed from the network after it was traced: make a SubspaceModel of the changed network"
            )
        return value

    def __getstate__(self) -> dict[str, Any]:
        # Traces hold code and tensors without data, which can't be pickled. They are made again when needed.
        return {**self.__dict__, **{name: type(self.__dict__[name])() for name in _MADE_AGAIN}, "_withheld": None}

    def _trace(self, key: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Program:
        """Trace the network for a call without the hooks that only observe, unless another program can run the call."""
        observing, kept, around = untraced_hooks(self.module, *sample(args, kwargs))
        if observing:
            paths = [hook.path or "the network itself" for hook in observing]
            self._add_warning("hooks", HOOKS_NOT_RUN.format(_abbreviated(paths)))
        self._untraced = [*observing, *around]
        untraced = {hook.key for hook in self._untraced}
        traced_key = (*key[:-1], tuple([hook for hook in key[-1] if hook not in untraced]))
        if traced_key not in self._programs:
            with hooks_disabled(self._untraced):
                program = self._program_of_other_sizes(traced_key, args, kwargs) or self._new_program(args, kwargs)
                self._programs[traced_key] = program
        self._programs[key] = self._programs[traced_key]
        self._kept[key] = kept
        while len(self._programs) > MAX_FORMS:
            del self._programs[next(itertools.islice(self._programs, KEPT_FORMS, None))]
            self._kept = {k: v for k, v in self._kept.items() if k in (*self._programs, *self._programs.values())}
        return self._programs[key]

    def _program_of_other_sizes(self, key: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Program | None:
        """A program for these sizes, if the network was traced for other sizes before.

        It is one of the programs at hand if that computes the same as the network for these sizes; else a program with
        open sizes, made from two traces; else a program for these sizes alone.
        """
        flags, kinds, _, hooks = key
        others = [p for k, p in self._programs.items() if (k[0], k[1], k[3]) == (flags, kinds, hooks)]
        exact = next((program for program in others if _traced_for(program, args, kwargs)), None)
        if exact is not None or not others:
            return exact
        latest = list(dict.fromkeys(reversed(others)))[:MAX_TRIED]
        few = sample(args, kwargs)
        program = next((program for program in latest if self._is_faithful_at(program, few)), None)
        if program is not None:
            return program
        try:
            program = self._new_program(args, kwargs)
        except TraceError as error:
            raise TraceError(f"{error} (It was traced for {_shapes(latest[-1])} before.)") from error
        for other in latest:
            opened = open_sizes(other.trace, program.trace, program.size_arguments, self.plan)
            if opened is None:
                continue
            if not self._is_faithful_at(opened, few):
                return self._new_program(args, kwargs)
            self._kept[opened] = self._kept[program]
            specs = {place: spec.shape for place, spec in enumerate(other.trace.specs) if isinstance(spec, InputSpec)}
            if self._is_faithful_at(opened, resized(few, specs)):
                self._programs = {key: opened if p is other else p for key, p in self._programs.items()}
            return opened
        return program

    def _is_faithful_at(self, program: Program, few: tuple[tuple[Any, ...], dict[str, Any]]) -> bool:
        return is_faithful_at(self.module, program, [self.plan.structure.size(dim) for dim in program.sizes], *few)

    def _add_warning(self, topic: str, message: str) -> None:
        if topic not in self._warned:
            self._warned.add(topic)
            self.pending_warnings.append(message)

    def _new_program(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Program:
        """Trace the network, add the trace to the plan, and check the program against the network."""
        if not all(isinstance(value, nn.Parameter) for value in self.module.parameters()):
            raise TraceError(OTHER_TENSORS.format(type(self.module).__name__))
        with restored(holders_of_network(self.module)):
            traced = trace(self.module, args, kwargs)
        plan = dataclasses.replace(
            self.plan, structure=copy.deepcopy(self.plan.structure), tensors=dict(self.plan.tensors)
        )
        sizes = propagate(traced, plan)
        if len(set(self._programs.values())) >= 2:
            changed = [name for name in self.plan.tensors if _shape(plan, name) != _shape(self.plan, name)]
            if changed:
                raise TraceError(
                    f"another form of {type(self.module).__name__} (with other training flags or another input shape) "
                    f"would slice {changed[0]} differently from the form that was traced first: {ALTERNATIVES}"
                )
        program = Program(traced, sizes)
        full = [plan.structure.size(dim) for dim in program.sizes]
        recomputed, self._kept[program] = check_faithful(self.module, program, full, *sample(args, kwargs))
        if recomputed is not None:
            self._add_warning("checkpointing", CHECKPOINTING_NOT_USED.format(recomputed))
        self.plan = plan
        return program


def _traced_for(program: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call has exactly the sizes of a trace.

    The key of a call does not tell: a tensor without a batch dimension may by chance be as long as the batch.
    """
    leaves = zip(pytree.tree_leaves((args, kwargs)), program.trace.specs, strict=True)
    shapes = [(leaf.shape, spec.shape) for leaf, spec in leaves if isinstance(spec, InputSpec)]
    return all(traced in (None, size) for shape, spec in shapes for size, traced in zip(shape, spec, strict=True))


def _shapes(program: Program) -> str:
    shapes = [spec.shape for spec in program.trace.specs if isinstance(spec, InputSpec)]
    return " and ".join("(" + ", ".join("batch" if n is None else str(n) for n in shape) + ")" for shape in shapes)


def _abbreviated(paths: list[str]) -> str:
    return ", ".join(paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")


def _shape(plan: ChannelPlan, name: str) -> list[int]:
    return plan.selection(0.4).shape(name)


def _call_key(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """The kinds of a call's arguments, and the sizes of its tensors without the batch."""
    # Tensors that the code makes have the dtype and the device of the traced call, so other ones need another trace.
    if len(args) == 1 and not kwargs and isinstance(args[0], Tensor):
        return (args[0].ndim, args[0].dtype, args[0].device), args[0].shape[1:]
    leaves, spec = pytree.tree_flatten((args, kwargs))
    tensors = [v for v in leaves if isinstance(v, Tensor)]
    kinds = [(v.ndim, v.dtype, v.device) if isinstance(v, Tensor) else v for v in leaves]
    # Dimension 0 of a tensor is open if it is as long as the batch.
    batch = next((v.shape[0] for v in tensors if v.ndim), None)
    return (spec, tuple(kinds)), tuple([v.shape[1:] if v.ndim and v.shape[0] == batch else v.shape for v in tensors])
