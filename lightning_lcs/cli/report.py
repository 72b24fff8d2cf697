"""``lightning-lcs report``: runs as one HTML page."""

from __future__ import annotations

from pathlib import Path

from lightning_lcs.reporting.html import write_report
from lightning_lcs.reporting.runs import read_runs


def report(runs: list[str], output: Path = Path("report.html"), metric: str | None = None) -> None:
    """Write one HTML file about runs.

    It shows trade-off curves, the Pareto front, levels over training, tables, what was compressed and where it ran. The
    file works offline.

    Args:
        runs: Log folders with a curve.csv, folders of such folders (such as that of lightning-lcs compare), or curve
            files.
        output: The file.
        metric: The metric to show first. The default is the first metric that is not a loss.
    """
    print(write_report(read_runs(runs), output, metric))
