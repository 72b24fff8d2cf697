"""A network from a file, which holds its graph instead of its code."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from lightning_lcs.graph.channels.plan import ChannelPlan
from lightning_lcs.graph.program import Program
from lightning_lcs.graph.traced_network import ENDPOINT_NAME, TracedNetwork
from lightning_lcs.graph.tracing.trace import InputSpec
from lightning_lcs.io.graph_json import network_from_data
from lightning_lcs.subspace.weights import endpoints


class StoredModule(nn.Module):
    """The parameters and buffers of a network from a file under their original names, and its full forward.

    Attributes:
        generation: A number that grows when tensors are moved, converted or loaded, so that everything that was
            prepared from them is out of date.
    """

    def __init__(self) -> None:
        super().__init__()
        self.generation = 0
        self._network: list[StoredNetwork] = []  # in a list, so that it is not a child: it refers back to this module

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self.generation += 1
        return super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.generation += 1
        super()._load_from_state_dict(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the full network in evaluation mode."""
        network = self._network[0]
        program = network.program(args, kwargs)
        tensors = [network.tensor(name) for name in program.names]
        return program.run(tensors, [network.plan.structure.size(dim) for dim in program.sizes], args, kwargs)


class StoredNetwork(TracedNetwork):
    """A :class:`TracedNetwork` with a trace from a file: there is only the trace for evaluation.

    Args:
        module: Holds the parameters and buffers.
        data: The graph and the plan, already checked; see :func:`network_from_data`.
        constants: The constant tensors of the graph.
        any_size: Whether images, sounds or videos of another size than the traced one may be run; see
            :func:`runs_at_any_size`.
        program: The program in ``data``.
        plan: The plan in ``data``.
    """

    def __init__(
        self,
        module: StoredModule,
        data: Any,
        constants: Sequence[Tensor],
        any_size: bool,
        program: Program,
        plan: ChannelPlan,
    ) -> None:
        self.any_size = any_size
        self._data = data
        self._constants = list(constants)
        super().__init__(module, plan)
        self._specs, self._in_spec = program.trace.specs, program.trace.in_spec
        self._takes_one = program.trace.arguments() == ((0,), {})
        self._programs[torch.device("cpu")] = program
        self.remember(*program.example_inputs(2, torch.device("cpu")))
        module._network.append(self)

    def program(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Program:
        """The program for this call.

        Raises:
            ValueError: The arguments are not those that the network was saved with.
        """
        device = self._checked(args, kwargs)
        program = self._programs.get(device)
        if program is None:
            program, _ = network_from_data(self._data, self._constants, device)
            self._programs[device] = program
        return program

    def in_mode(self, training: bool) -> Program:
        """The program for the shapes with which the network was saved.

        Raises:
            RuntimeError: ``training`` is true, and a file holds the network for evaluation only.
        """
        if training:
            raise RuntimeError("a file holds the network for evaluation only: train the model that wrote the file")
        return self.program(*self.example_inputs())

    def forget(self) -> None:
        """Do nothing, because the network can't be traced again."""

    def _checked(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.device:
        """Check the number, names, types and shapes of the arguments, and return their device."""
        specs = self._specs
        if self._takes_one and len(args) == 1 and not kwargs:
            leaves = list(args)
        else:
            try:
                leaves = self._in_spec.flatten_up_to((args, kwargs))
            except ValueError as error:
                saved = _as_call(*pytree.tree_unflatten(specs, self._in_spec))
                raise ValueError(f"the network was saved for calls as {saved}, not {_as_call(args, kwargs)}") from error
        for number, (leaf, spec) in enumerate(zip(leaves, specs, strict=True)):
            if not isinstance(spec, InputSpec):
                if type(leaf) is not type(spec) or leaf != spec:
                    raise ValueError(f"argument {number} is {leaf!r}, and the network was saved with {spec!r}")
                continue
            if not isinstance(leaf, Tensor):
                raise ValueError(f"argument {number} is {type(leaf).__name__}, and the network takes a tensor")
            if not self._fits(leaf.shape, spec.shape):
                raise ValueError(
                    f"argument {number} has shape {list(leaf.shape)}, and the network was saved for "
                    f"{['batch' if size is None else size for size in spec.shape]}; save it with inputs of the size "
                    "that it is to run with"
                )
        return next(leaf.device for leaf in leaves if isinstance(leaf, Tensor))

    def _fits(self, shape: Sequence[int], expected: Sequence[int | None]) -> bool:
        fixed = 2 if self.any_size else len(expected)
        known = zip(shape[:fixed], expected[:fixed], strict=False)
        return len(shape) == len(expected) and all(size in (mine, None) for mine, size in known)


def _as_call(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    args, kwargs = pytree.tree_map(
        lambda leaf: "tensor" if isinstance(leaf, (Tensor, InputSpec)) else leaf, (tuple(args), dict(kwargs))
    )
    return f"({', '.join([*map(repr, args), *[f'{name}={value!r}' for name, value in kwargs.items()]])})"


def runs_at_any_size(network: TracedNetwork) -> bool:
    """Whether the graph of a network seems to work for images of other sizes; see :func:`fixed_sizes`.

    The network's code may have computed numbers from the size of the image, which are constants in the graph.
    """
    if isinstance(network, StoredNetwork):
        return network.any_size
    program = network.in_mode(False)
    specs = program.trace.specs
    if len(specs) != 1 or not isinstance(specs[0], InputSpec) or len(specs[0].shape) < 3:
        return False
    return all(fixed.axis < 2 for fixed in network.fixed_sizes(program, training=False))


def stored_module(
    parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor], line: Mapping[str, Tensor], unsaved: Iterable[str]
) -> StoredModule:
    """A module that holds tensors under their names; shared tensors stay shared."""
    root = StoredModule()
    shared: dict[int, nn.Parameter] = {}
    for name, value in parameters.items():
        holder, leaf = _holder(root, name)
        holder.register_parameter(leaf, shared.setdefault(id(value), nn.Parameter(value, requires_grad=False)))
    for name, value in buffers.items():
        holder, leaf = _holder(root, name)
        holder.register_buffer(leaf, value, persistent=name not in unsaved)
    for name, value in line.items():
        holder, leaf = _holder(root, name)
        if ENDPOINT_NAME not in holder._modules:
            holder.add_module(ENDPOINT_NAME, endpoints.Endpoint())
        end = shared.setdefault(id(value), nn.Parameter(value, requires_grad=False))
        holder.get_submodule(ENDPOINT_NAME).register_parameter(leaf, end)
    endpoints.mark_trained(root)
    return root


def stored_endpoints(module: nn.Module, names: Iterable[str]) -> dict[str, nn.Parameter]:
    """The second endpoints in a module from :func:`stored_module`, by the names of their parameters."""
    found = {}
    for name in names:
        path, _, leaf = name.rpartition(".")
        found[name] = module.get_submodule(path).get_submodule(ENDPOINT_NAME).get_parameter(leaf)
    return found


def _holder(root: nn.Module, name: str) -> tuple[nn.Module, str]:
    *path, leaf = name.split(".")
    holder = root
    for part in path:
        if part not in holder._modules:
            holder.add_module(part, nn.Module())
        holder = holder.get_submodule(part)
    return holder, leaf
