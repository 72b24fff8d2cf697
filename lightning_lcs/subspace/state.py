"""The state of a subspace that checkpoints and files hold, and how a network takes it over."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_lcs.graph.tracing.example_inputs import Arguments
from lightning_lcs.subspace.mode import Mode
from lightning_lcs.subspace.modes.registry import mode_to_dict
from lightning_lcs.subspace.part import Part
from lightning_lcs.subspace.weights import endpoints
from lightning_lcs.subspace.weights.norms import state_without_statistics

LevelTensors = Mapping[float, Mapping[str, Tensor]]
"""Tensors by level and qualified name."""


@dataclasses.dataclass(frozen=True)
class SubspaceState:
    """The state of a subspace without the weights of its networks, which are endpoint 1.

    Attributes:
        mode: The mode.
        subspace: "line" or "point".
        line_parameters: The parameters that lie on the line: "norm", "backbone" or "all".
        norm: The treatment of batch norms: "keep", "instance" or "group".
        targets: The names of the networks.
        shapes: The shape of each parameter of the networks, by qualified name.
        endpoint_0: Endpoint 0 of each parameter on the line, by qualified name.
        statistics: The batch-norm statistics of the levels.
        ranges: The ranges of quantized inputs, by level.
        inputs: An example call of each network; ``None`` where it is not known.
        statistics_weights: The fingerprint of the weights that the statistics were collected at. The default is empty:
            it is not known.
        rows: The samples that each network gets for one sample of the module. The default, empty, is one for each.
        frozen: The parameters that nothing has trained, which levels leave whole, by qualified name. The default is
            none.
    """

    mode: Mode
    subspace: str
    line_parameters: str
    norm: str
    targets: list[str]
    shapes: dict[str, list[int]]
    endpoint_0: dict[str, Tensor]
    statistics: LevelTensors
    ranges: LevelTensors
    inputs: list[Arguments | None]
    statistics_weights: str = ""
    rows: list[float] = dataclasses.field(default_factory=list)
    frozen: list[str] = dataclasses.field(default_factory=list)

    def settings(self) -> dict[str, Any]:
        """The mode, the subspace, its line and the norms as plain data, for checkpoints and files."""
        return {
            "mode": mode_to_dict(self.mode),
            "subspace": self.subspace,
            "line_parameters": self.line_parameters,
            "norm": self.norm,
        }

    def check(self, model: SubspaceState) -> None:
        """Check that a model can take this state over.

        Args:
            model: The state of the model as it was built.

        Raises:
            ValueError: The model has another mode, subspace, line, norm or architecture.
        """
        settings = model.settings()
        for key, saved in self.settings().items():
            present = settings[key]
            if present != saved and not (key == "line_parameters" and self.subspace == "point"):
                option = key.replace("_", ".")
                raise ValueError(
                    f"the checkpoint holds {option}={saved!r}, and this model was built with {option}={present!r}; "
                    "build it as it was trained"
                )
        if model.shapes != self.shapes:
            raise ValueError(
                f"the checkpoint is of another architecture: {shape_difference(model.shapes, self.shapes)}"
            )
        present_line, saved_line = (
            {name: list(v.shape) for name, v in state.endpoint_0.items()} for state in (model, self)
        )
        if present_line != saved_line:
            raise ValueError(f"the checkpoint lies on another line: {shape_difference(present_line, saved_line)}")

    def apply(self, parts: Sequence[Part]) -> None:
        """Copy the second endpoint and the example calls into networks that have the shapes of this state."""
        with torch.no_grad():
            for part in parts:
                for name, endpoint in part.endpoints.items():
                    endpoint.copy_(self.endpoint_0[part.prefix + name])
                endpoints.mark_trained(part.network.module)
        for part, arguments in zip(parts, self.inputs, strict=False):
            if arguments is not None:
                part.network.remember(*arguments)
        for part, rows in zip(parts, self.rows, strict=False):
            part.rows = rows
        frozen = dict.fromkeys(self.frozen)
        for part in parts:
            # As it was trained, whatever the parameters of these networks require.
            part.untrained = frozenset(part.own(frozen))

    def state_names(self, module: nn.Module) -> set[str]:
        """The names in the ``state_dict`` of a module once its norms are replaced as in this state."""
        return set(module.state_dict()) if self.norm == "keep" else state_without_statistics(module)

    def networks_in(
        self, module: nn.Module, weights: Mapping[str, Tensor], strict: bool = True
    ) -> tuple[nn.Module | dict[str, nn.Module], dict[str, Tensor]]:
        """Find the networks of a module, and name the weights as the module does.

        Args:
            module: The LightningModule that was trained, or its only network.
            weights: The ``state_dict`` of the LightningModule.
            strict: Whether module and weights must have the same names; else those that both have are compared. The
                default is true.

        Returns:
            The networks for :class:`SubspaceModel`, and the weights by the names of ``module``.

        Raises:
            ValueError: The module has another architecture.
        """
        weights, targets, names = dict(weights), self.targets, self.state_names(module)
        prefix = f"{targets[0]}." if targets[0] else ""
        of_target = {name[len(prefix) :]: value for name, value in weights.items() if name.startswith(prefix)}
        is_network = len(targets) == 1 and len(names & weights.keys()) <= len(names & of_target.keys())
        if is_network:  # of the LightningModule, whose names of its weights begin with that of the network
            weights = of_target
        names = names if strict else names & weights.keys()
        shapes = {name: _shape(value) for name, value in module.state_dict().items() if name in names}
        theirs = {name: _shape(value) for name, value in weights.items() if strict or name in names}
        if shapes != theirs:
            raise ValueError(f"the checkpoint is of another architecture: {shape_difference(shapes, theirs)}")
        if is_network:
            return module, weights
        networks = {name: module.get_submodule(name) for name in targets}
        return networks if len(targets) > 1 else networks[targets[0]], weights


def _shape(value: Any) -> list[int]:
    # A module's own extra state need not be a tensor.
    return list(value.shape) if isinstance(value, Tensor) else []


def parameter_shapes(parts: Sequence[Part]) -> dict[str, list[int]]:
    """The shapes of the parameters of networks by qualified name, without second endpoints."""
    return {part.prefix + name: list(value.shape) for part in parts for name, value in part.user_parameters()}


def shape_difference(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """A sentence about the first difference between the shapes of the model and those in a checkpoint."""
    name = next(name for name in (*mine, *theirs) if mine.get(name) != theirs.get(name))
    return f"{name} has shape {mine.get(name)} here and {theirs.get(name)} in the checkpoint"
