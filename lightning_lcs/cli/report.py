"""``lightning-lcs report``: runs as one HTML page."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from lightning_lcs.reporting.html import write_report
from lightning_lcs.reporting.runs import read_runs


def report(args: Sequence[str]) -> None:
    """Read the runs, write the page, and print where it is.

    Args:
        args: the command's name, and what follows it.

    Raises:
        ValueError: there is no curve, or none with the metric.
    """
    parser = argparse.ArgumentParser(
        prog="lightning-lcs report",
        description="Write one HTML file about runs: trade-off curves, Pareto front, levels over training, "
        "tables, what was compressed and where it ran. The file needs no network.",
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="a log folder with a curve.csv, a folder of such folders, or a curve file",
    )
    parser.add_argument("--output", type=Path, default=Path("report.html"), help="the file (default: %(default)s)")
    parser.add_argument("--metric", help="what is shown first (default: the first metric that is no loss)")
    given = parser.parse_args(args[1:])
    print(write_report(read_runs(given.runs), given.output, given.metric))
