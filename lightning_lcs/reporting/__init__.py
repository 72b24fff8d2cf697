"""What users see of the accuracy-efficiency curve: data, tables, files, plots, the HTML report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_lcs.utils.lazy import lazy_names

if TYPE_CHECKING:
    from lightning_lcs.reporting.comparison import plot_comparisons as plot_comparisons
    from lightning_lcs.reporting.comparison import print_comparisons as print_comparisons
    from lightning_lcs.reporting.html import write_report as write_report
    from lightning_lcs.reporting.pareto import best_under as best_under
    from lightning_lcs.reporting.pareto import pareto_front as pareto_front
    from lightning_lcs.reporting.plots import curve_figure as curve_figure
    from lightning_lcs.reporting.plots import plot_curves as plot_curves
    from lightning_lcs.reporting.runs import read_runs as read_runs
    from lightning_lcs.reporting.terminal import print_curves as print_curves
    from lightning_lcs.reporting.terminal import print_levels as print_levels
    from lightning_lcs.subspace.curves.curve import CurvePoint as CurvePoint
    from lightning_lcs.subspace.curves.curve_file import read_csv as read_csv
    from lightning_lcs.subspace.curves.curve_file import read_curves as read_curves
    from lightning_lcs.subspace.curves.curve_file import write_csv as write_csv

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "CurvePoint": "lightning_lcs.subspace.curves.curve",
        "best_under": "lightning_lcs.reporting.pareto",
        "curve_figure": "lightning_lcs.reporting.plots",
        "pareto_front": "lightning_lcs.reporting.pareto",
        "plot_comparisons": "lightning_lcs.reporting.comparison",
        "plot_curves": "lightning_lcs.reporting.plots",
        "print_comparisons": "lightning_lcs.reporting.comparison",
        "print_curves": "lightning_lcs.reporting.terminal",
        "print_levels": "lightning_lcs.reporting.terminal",
        "read_csv": "lightning_lcs.subspace.curves.curve_file",
        "read_curves": "lightning_lcs.subspace.curves.curve_file",
        "read_runs": "lightning_lcs.reporting.runs",
        "write_csv": "lightning_lcs.subspace.curves.curve_file",
        "write_report": "lightning_lcs.reporting.html",
    },
)
