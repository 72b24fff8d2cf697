"""Writes what `make results` has left in docs/results into the tables of docs/results.md.

    python examples/paper/tables.py [--page docs/results.md] [--results docs/results]

A table stands between ``<!-- structured 4 -->`` and ``<!-- end -->``: a mode, and the folder of its runs. Each row is a
method over all of its seeds: their mean, and the least and the largest where there are several; what was not run is
named below. What the authors' code reached in four epochs is in authors.csv, what the methods are in methods.csv.
"""

import argparse
import csv
import re
import statistics
from pathlib import Path

from lightning_lcs.subspace.curves.curve_file import read_csv

# Mode -> heading, levels, and what a level is in a curve.
LEVELS = {
    "structured": ("width", (0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0), lambda point: point.width),
    "unstructured": ("share kept", (0.025, 0.05, 0.1, 0.25, 0.5, 0.9, 1.0), lambda point: 1.0 - point.sparsity),
    "quantized": ("bits", (3, 4, 5, 6, 7, 8), lambda point: point.bit_width),
}


def accuracies(folder: Path, mode: str, method: str) -> list[list[float | None]]:
    """Percent at each level of the mode, a list per seed."""
    _, levels, level_of = LEVELS[mode]
    seeds = []
    for path in sorted(folder.glob(f"{method}-[0-9].csv")):
        points = read_csv(path)
        at = {level: p for level in levels for p in points if abs(level_of(p) - level) < 1e-6}
        seeds.append([100 * at[level].metrics["val_acc"] if level in at else None for level in levels])
    return seeds


def theirs(results: Path, mode: str, method: str) -> list[list[float | None]]:
    """The same of the authors' code."""
    by_seed: dict[str, dict[float, float]] = {}
    for found in rows_of(results / "authors.csv"):
        if found["method"] == method:
            by_seed.setdefault(found["seed"], {})[float(found["level"])] = float(found["accuracy"])
    return [[seed.get(level) for level in LEVELS[mode][1]] for seed in by_seed.values()]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def row(name: str, seeds: list[list[float | None]]) -> str:
    """A line of a table."""
    cells = [str(len(seeds))]
    for values in zip(*seeds, strict=True):
        found = [value for value in values if value is not None]
        spread = f" ({min(found):.0f}-{max(found):.0f})" if len(found) > 1 else ""
        cells.append(f"{statistics.mean(found):.1f}{spread}" if found else "")
    return f"| {' | '.join([name, *cells])} |"


def table(results: Path, mode: str, runs: str) -> list[str]:
    """All methods of a mode that were run, each followed by the authors' row; and the names of the others."""
    heading, levels, _ = LEVELS[mode]
    missing = []
    lines = [
        f"| {mode}, {heading} | seeds | {' | '.join(f'{level:g}' for level in levels)} |",
        "|---|---:|" + "---:|" * len(levels),
    ]
    for method, what in [(r["method"], r["what"]) for r in rows_of(results / "methods.csv") if r["mode"] == mode]:
        ours = accuracies(results / runs, mode, method)
        if not ours:
            missing.append(f"`{method}`")
            continue
        lines.append(row(f"{what} (`{method}`)", ours))
        published = theirs(results, mode, method) if runs.endswith("4") else []
        lines += [row("*authors' code*", published)] if published else []
    return [*lines, "", f"Not run: {', '.join(missing)}."] if missing else lines


def rewrite(page: Path, results: Path) -> None:
    """Put all tables into the page."""

    def filled(match: re.Match[str]) -> str:
        return "\n".join([match.group(1), *table(results, match.group(2), match.group(3)), "<!-- end -->"])

    text = page.read_text(encoding="utf-8")
    page.write_text(re.sub(r"(<!-- (\w+) ([\w-]+) -->)\n.*?<!-- end -->", filled, text, flags=re.S), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", type=Path, default=Path("docs/results.md"))
    parser.add_argument("--results", type=Path, default=Path("docs/results"))
    given = parser.parse_args()
    rewrite(given.page, given.results)
