"""A separate network for one level, with its own tensors."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from lightning_lcs.graph.program import build_materialized_model
from lightning_lcs.subspace.forward import Execution, Inputs, Traced, hook_inputs, layers_at
from lightning_lcs.subspace.mode import Level
from lightning_lcs.subspace.part import Part
from lightning_lcs.subspace.running.level_weights import LevelWeights, level_tensors
from lightning_lcs.subspace.weights import endpoints
from lightning_lcs.subspace.weights.computed import make_plain


def materialized_part(
    part: Part, execution: Execution, level: Level, statistics: Mapping[str, Tensor], train: bool
) -> nn.Module:
    """A separate network for one level; see :meth:`SubspaceModel.materialize`."""
    with torch.inference_mode(False), torch.no_grad():
        tensors = level_tensors(LevelWeights(part, level), execution, statistics, complete=True)
        return materialized_network(part, execution, tensors, train, level.mode.evaluation_inputs(part, level))


def _copied(module: nn.Module) -> nn.Module:
    """A copy of a network; tensors that a forward has kept with their graph, which can't be copied, lose it."""
    held = [leaf for child in module.modules() for leaf in pytree.tree_leaves(list(vars(child).values()))]
    return copy.deepcopy(
        module, {id(leaf): leaf.detach() for leaf in held if isinstance(leaf, Tensor) and not leaf.is_leaf}
    )


def materialized_network(
    part: Part, execution: Execution, tensors: Sequence[Tensor | None], train: bool, inputs: Inputs | None
) -> nn.Module:
    """A network with these tensors as its parameters and buffers; ``inputs`` changes the inputs of its layers."""
    values = {name: value.detach().clone() for name, value in zip(execution.names, tensors, strict=True)}  # type: ignore[union-attr]
    module = part.network.module
    if isinstance(execution, Traced):
        trainable = {name: p.requires_grad for name, p in module.named_parameters(remove_duplicate=False)}
        program, saved = execution.program, module.state_dict().keys()
        fixed = part.network.fixed_sizes(program, train)
        return build_materialized_model(program, execution.at, values, trainable, saved, train, fixed)
    with part.own_forward():
        copied = _copied(module)
    endpoints.detach(copied)
    make_plain(copied, part.compressed)
    for name, tensor in (*copied.named_parameters(), *copied.named_buffers()):
        tensor.grad = None
        if name in values:
            tensor.data = values[name]
    if inputs is not None:
        hook_inputs(layers_at(copied, part.layers), inputs)
    return copied.train(train)
