"""What a subspace has for a device: the file, and levels chosen by name or by budget."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from lightning_lcs.graph.network import training_flags
from lightning_lcs.graph.tracing.example_inputs import sample
from lightning_lcs.io import lcs_file
from lightning_lcs.subspace.curve import CurvePoint
from lightning_lcs.subspace.level_table import NamedLevel, level_for_budget, make_table, named_level
from lightning_lcs.subspace.modes.registry import Structured

if TYPE_CHECKING:
    from lightning_lcs.model import SubspaceModel


class Deployable:
    """The part of :class:`SubspaceModel` that a device needs, apart from what training needs.

    Attributes:
        levels: the level table, by ascending alpha; empty unless the model came out of a file.
        class_names: names of the classes, by their number; empty if the file has none.
    """

    levels: tuple[NamedLevel, ...] = ()
    class_names: tuple[str, ...] = ()

    def set_alpha(self, alpha: float) -> None:
        """Choose the level at which the network runs from now on."""
        raise NotImplementedError

    def set_level(self, name: str) -> NamedLevel:
        """Choose a level of the level table.

        Args:
            name: as in ``levels``, such as "small".

        Returns:
            The level, with its costs and what was measured there.

        Raises:
            ValueError: there is no such level; the one set stays.
        """
        level = named_level(self.levels, name)
        self.set_alpha(level.alpha)
        return level

    def fit_budget(
        self,
        *,
        macs: float | None = None,
        latency_ms: float | None = None,
        size_bytes: float | None = None,
        accuracy: float | None = None,
        metric: str | None = None,
    ) -> NamedLevel:
        """Choose the level of the level table that fits a budget.

        Of the levels within all limits it is the largest; with ``accuracy`` alone the smallest that reaches it.

        Args:
            macs: most multiply-accumulates of one sample.
            latency_ms: longest time of one sample, as it was measured for the table: on another machine, or with other
                threads, measure it again (``lightning-lcs bench``).
            size_bytes: most bytes of parameters and buffers.
            accuracy: least value of the metric.
            metric: which metric of the table; by default the only one that has "acc" in its name.

        Returns:
            The level that was set.

        Raises:
            ValueError: no level fits (the nearest is named), or a limit is not known or not finite; the level set
                stays.
        """
        level = level_for_budget(
            self.levels, macs=macs, latency_ms=latency_ms, size_bytes=size_bytes, accuracy=accuracy, metric=metric
        )
        self.set_alpha(level.alpha)
        return level

    def set_example_inputs(self, *args: Any, **kwargs: Any) -> None:
        """Choose the call that ``save``, ``materialize`` and the exports are for; else it is the first one there was.

        A network that computes its loss itself, when it is given labels, is trained with them and deployed without.

        Args:
            args: of the call; their values don't matter, but those of numbers and flags.
            kwargs: the same by name.

        Raises:
            RuntimeError: the subspace has several networks.
            TraceError: in structured mode, the network can't be traced for this call.
            ValueError: the model came out of a file, which is for other calls.
        """
        model = cast("SubspaceModel", self)
        network = model._only_part("set_example_inputs").network
        if isinstance(model.mode, Structured):
            with training_flags(network.module, False):
                network.program(*sample(args, kwargs))
        network.example = sample(args, kwargs)

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        levels: Mapping[str, float | CurvePoint] | Sequence[float | CurvePoint] | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        """Write one file that holds every level, and a table of levels by name.

        A structured file holds the network itself, as a graph; the others hold tensors, and are loaded into the user's
        own network. The file holds tensors and JSON, no code and no pickle. It is written whole or not at all.

        Args:
            path: of the file, such as "model.lcs".
            levels: of the table: a measured curve (``LCSCallback.curve``), which brings its metrics and latencies, or
                alphas; or either of them by name. By default the model's own table, else the alphas 0, 0.25, 0.5, 0.75
                and 1 (every bit width in quantized mode). Names by default:
                :func:`lightning_lcs.subspace.level_table.default_names`.
            class_names: names of the classes, by their number; by default the model's own.

        Raises:
            RuntimeError: the network was never called, and had no ``example_inputs``.
            ValueError: the network holds an op that a file may not hold, or the curve is of another model.
            OSError: the file could not be written; the old one is as it was.
        """
        model = cast("SubspaceModel", self)
        given = (self.levels or None) if levels is None else levels
        table = make_table(given, model.mode, model.efficiency)
        lcs_file.save(model, path, table, self.class_names if class_names is None else class_names)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], module: nn.Module | None = None, *, layout: str = "auto"
    ) -> SubspaceModel:
        """Open a file written by :meth:`save`, for inference.

        Args:
            path: of the file; mapped into memory, and checked whole against its checksums.
            module: the network that it was trained from, for unstructured and quantized subspaces; its weights are
                replaced. A structured file holds its network.
            layout: order in memory of the weights of a structured file's 2-D convolutions: "contiguous",
                "channels_last", or "auto": the faster one on this machine, as measured with a few forwards of the full
                network (contiguous below ten million MACs). Results differ by rounding.

        Raises:
            ValueError: not such a file, a damaged one, one of another version or architecture, one with an op that is
                not allowed, ``module`` is missing, or ``layout`` is not known.
        """
        return lcs_file.load(cast("type[SubspaceModel]", cls), path, module, layout)
