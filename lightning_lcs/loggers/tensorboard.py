"""The curve in TensorBoard, and in any other logger whose experiment takes figures."""

from __future__ import annotations

from typing import Any

from lightning_lcs.loggers.registry import Measurement
from lightning_lcs.reporting.plots import curve_figure
from lightning_lcs.subspace.curves.curve import metric_names
from lightning_lcs.utils.extras import MissingPackageError
from lightning_lcs.utils.warning import warn


def draw(logger: Any, measurement: Measurement) -> None:
    """Add one figure per metric, if the logger takes figures; without matplotlib a warning says that there are none."""
    add_figure = getattr(getattr(logger, "experiment", None), "add_figure", None)
    if add_figure is None:
        return
    for metric in metric_names(measurement.curves["latest"]):
        having = {name: c for name, c in measurement.curves.items() if any(metric in point.metrics for point in c)}
        try:
            figure = curve_figure(having, metric)
        except MissingPackageError as error:
            warn(f"the logger gets no pictures of the curve: {error}")
            return
        add_figure(f"lcs/{metric}", figure, global_step=measurement.step)
