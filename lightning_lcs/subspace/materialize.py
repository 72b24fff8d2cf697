"""What a level costs, and a network of its own at a level: both ways of running a network."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from lightning_lcs.graph.cost import (
    count_macs,
    count_module_macs,
    count_params,
    count_quantized_params,
    count_sparse_params,
)
from lightning_lcs.graph.network import training_flags
from lightning_lcs.graph.program import materialize
from lightning_lcs.subspace import endpoints
from lightning_lcs.subspace.curve import Efficiency
from lightning_lcs.subspace.forward import Execution, Traced, hook_inputs, layers_at
from lightning_lcs.subspace.modes.observers import Inputs
from lightning_lcs.subspace.modes.registry import Mode, Quantized
from lightning_lcs.subspace.network import Part, layer_of
from lightning_lcs.subspace.weights import Compression, level_tensors, setting_of


def cost_of(part: Part, mode: Mode, alpha: float) -> tuple[int, int, int]:
    """Parameters, multiply-accumulates and bytes of one network at a level; see :class:`Efficiency`."""
    execution = part.example_execution(mode, alpha, False)
    module = part.network.module
    parameters: dict[str, Tensor] = dict(endpoints.user_parameters(module))
    if isinstance(execution, Traced):
        at, program = execution.at, execution.program
        count, parameter_bytes = count_params(at, parameters)
        buffers = {name: part.network.tensor(name) for name in program.names if name not in parameters}
        _, buffer_bytes = count_params(at, {k: v for k, v in buffers.items() if not isinstance(v, nn.Parameter)})
        return count, count_macs(program, at, part.network.tensor), parameter_bytes + buffer_bytes
    if isinstance(mode, Quantized):
        bits = {name: part.fixed_bits.get(name, mode.bit_width(alpha)) for name in part.compressed}
        count, parameter_bytes = count_quantized_params(parameters, bits, mode.per_channel)
        density: dict[str, float] = {}
    else:
        level = Compression(part, setting_of(mode, alpha))
        kept = {name: level.kept_entries(name) for name in part.compressed}
        count, parameter_bytes = count_sparse_params(parameters, kept)
        density = {name: entries / parameters[name].numel() for name, entries in kept.items()}
    buffer_bytes = sum(value.numel() * value.element_size() for value in module.buffers() if value.is_floating_point())
    with training_flags(module, False), _own_forward(module):
        macs = count_module_macs(module, *part.network.example_inputs(), density)
    return count, macs, parameter_bytes + buffer_bytes


def efficiency_of(parts: Sequence[Part], mode: Mode, alpha: float) -> Efficiency:
    """What a level of all networks together costs."""
    costs = [cost_of(part, mode, alpha) for part in parts]
    params, macs, size_bytes = (sum(numbers) for numbers in zip(*costs, strict=True))
    return Efficiency(
        alpha=alpha,
        width=mode.width(alpha),
        sparsity=mode.sparsity(alpha),
        bit_width=mode.bit_width(alpha),
        params=params,
        macs=macs,
        size_bytes=size_bytes,
    )


def own_part(
    part: Part,
    execution: Execution,
    mode: Mode,
    alpha: float,
    statistics: Mapping[str, Tensor],
    train: bool,
    inputs: Inputs | None,
) -> nn.Module:
    """A network of one level, with tensors of its own; see :meth:`SubspaceModel.materialize`."""
    with torch.inference_mode(False), torch.no_grad():
        level = Compression(part, setting_of(mode, alpha))
        tensors = level_tensors(level, execution, statistics, complete=True)
        return own_network(part, execution, tensors, train, inputs)


def own_network(
    part: Part, execution: Execution, tensors: Sequence[Tensor | None], train: bool, inputs: Inputs | None
) -> nn.Module:
    """A network with these tensors as its own parameters and buffers, and with inputs of layers changed."""
    values = {name: value.detach().clone() for name, value in zip(execution.names, tensors, strict=True)}  # type: ignore[union-attr]
    module = part.network.module
    if isinstance(execution, Traced):
        trainable = {name: p.requires_grad for name, p in module.named_parameters(remove_duplicate=False)}
        program, saved = execution.program, module.state_dict().keys()
        fixed = part.network.fixed_sizes(program, train)
        return materialize(program, execution.at, values, trainable, saved, train, fixed)
    with _own_forward(module):
        twin = copy.deepcopy(module)
    endpoints.detach(twin)
    for name, tensor in (*twin.named_parameters(), *twin.named_buffers()):
        tensor.grad = None
        if name in values:
            tensor.data = values[name]
    if inputs is not None:
        hook_inputs(layers_at(twin, [layer_of(name) for name in part.compressed]), inputs)
    return twin.train(train)


@contextlib.contextmanager
def _own_forward(module: nn.Module) -> Iterator[None]:
    """Inside the block the network's own forward stands, not one that a callback has put in front of it."""
    patched = module.__dict__.pop("forward", None)
    try:
        yield
    finally:
        if patched is not None:
            module.__dict__["forward"] = patched
