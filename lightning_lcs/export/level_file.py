"""Writes one level of a subspace to a file."""

from __future__ import annotations

import dataclasses
import math
import os
from typing import Any

from lightning_lcs.io import lcs_file
from lightning_lcs.io.graph_json import level_to_data, network_from_data
from lightning_lcs.io.loaded_network import runs_at_any_size
from lightning_lcs.model import SubspaceModel
from lightning_lcs.subspace.curves.curve import CurvePoint
from lightning_lcs.subspace.curves.level_table import NamedLevel, make_table
from lightning_lcs.subspace.modes import Structured


def save_level(model: SubspaceModel, alpha: float, path: str | os.PathLike[str]) -> NamedLevel:
    """Write a file that holds one level only, which is alpha = 1 of this file.

    The name and the measurements of the level come from the model's level table, if the table has the level.

    Args:
        model: A structured subspace with a single network.
        alpha: The level in [0, 1]; with stored batch-norm statistics, the nearest stored level.
        path: The path of the file, which is written whole or not at all.

    Returns:
        The level, as it stands in the table of the new file.

    Raises:
        ValueError: The model is not structured, ``alpha`` is outside [0, 1], or the batch-norm statistics or the
            metrics of the level are of other weights.

    Example:
        >>> import torch
        >>> from lightning_lcs import SubspaceModel
        >>> from lightning_lcs.export import save_level
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
        >>> model = SubspaceModel(net, torch.randn(2, 8), subspace="point").eval()
        >>> save_level(model, 0.0, "small.lcs").params
        51
    """
    if not isinstance(model.mode, Structured) or len(model.parts) > 1:
        raise ValueError("save_level() needs a structured subspace with a single network")
    level, part, mode = model.nearest_level(alpha), model.parts[0], Structured(min_width=1.0)
    known = next((entry for entry in model.levels if entry.alpha == level), None)
    model.check_weights_of([] if known is None else [known])
    sliced = model.mode.selection(part, level)
    program = part.network.in_mode(False)
    data = level_to_data(program, sliced)
    small = model.materialize(level)
    parameters = dict(small.named_parameters(remove_duplicate=False))
    values = {**parameters, **dict(small.named_buffers(remove_duplicate=False))}
    own = {f"{'parameter' if n in parameters else 'buffer'}.{n}": values[n] for n in program.names}
    constants = list(program.trace.constants.values())
    own |= {f"constant.{number}": value for number, value in enumerate(constants)}
    lcs_file.check_network(*network_from_data(data, constants), mode, {n: values[n].dtype for n in program.names})
    cost: dict[str, Any] = {**vars(model.efficiency(level)), "alpha": 1.0, "width": 1.0}
    latency, metrics = (math.nan, {}) if known is None else (known.latency_ms, known.metrics)
    point = CurvePoint(**cost, latency_ms=latency, metrics=metrics)
    table = make_table({"full" if known is None else known.name: point}, mode, lambda _: point)
    state = dataclasses.replace(model.state(), mode=mode, subspace="point", endpoint_0={}, statistics={}, ranges={})
    unsaved = [name for name in program.names if name not in small.state_dict()]
    header = lcs_file.common_header(state, table, model.class_names)
    header |= lcs_file.network_header(data, runs_at_any_size(part.network), [], unsaved)
    lcs_file.write(path, header, own)
    return table[0]
