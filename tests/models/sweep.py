"""``make coverage``: networks of timm and torchvision, each in a process of its own with a time limit; tables.

python -m tests.models.sweep [timm:NAME@PIXELS | torchvision:NAME@PIXELS ...] [--limit SECONDS] [--markdown PAGE]

What a network came to is kept in a folder, and only networks without a result are run: an interrupted call goes on.
Remove the file of one to run it again.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.models.checks import Examination, build, examine
from tests.models.families import FAMILIES, SIBLINGS, TORCHVISION
from tests.models.mistakes import MISTAKES

# Heading of a table -> its networks, with the family of each.
TABLES: dict[str, dict[str, str]] = {
    "families": {f"timm:{name}@{size}": family for family, (name, size) in sorted(FAMILIES.items())},
    "siblings": {f"timm:{name}@{size}": "timm" for name, size in SIBLINGS.items()},
    "torchvision": {f"torchvision:{name}@{size}": "torchvision" for name, size in sorted(TORCHVISION.items())},
}
ALL = [spec for table in TABLES.values() for spec in table]
HEADINGS = (
    *("family", "network", "pixels", "parameters", "MACs", "trace, s", "plan, s", "memory", "width 1", "masked"),
    *("mistakes", "kept whole"),
)
FEWER_MISTAKES = 3  # of each kind, in networks that are not the smallest of their family
RIGHT = ("pixels", "parameters", "MACs", "trace, s", "plan, s", "memory", "mistakes")


def one(spec: str) -> None:
    """Examine one network, and print what came out as JSON."""
    mistakes = MISTAKES if spec in TABLES["families"] else FEWER_MISTAKES
    print(json.dumps(dataclasses.asdict(examine(*build(spec), mistakes=mistakes))))


def run(spec: str, limit: int) -> dict[str, Any]:
    """What a network comes to, or why it does not, and of what it is."""
    command = [sys.executable, "-m", "tests.models.sweep", spec, "--inside"]
    about = {"commit": _commit(), "day": time.strftime("%Y-%m-%d")}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return {**about, "error": f"more than {limit} seconds"}
    if done.returncode:
        return {**about, "error": (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]}
    return {**about, "found": json.loads(done.stdout.splitlines()[-1])}


def _commit() -> str:
    asked = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()


def row(spec: str, family: str, result: dict[str, Any]) -> str:
    """A line of a table."""
    name, _, size = spec.partition(":")[2].partition("@")
    start = (family, f"`{name}`", size)
    if "error" in result:
        return _line((*start, *[""] * (len(HEADINGS) - 4), result["error"].replace("|", "/")))
    found = Examination(**result["found"])
    mistakes = [*found.slices, *found.rules]
    whole = [f"{why} ({count})" for why, count in found.whole.items()]
    if found.ungraded:
        whole.append(f"{len(found.ungraded)} without gradient")
    return _line(
        (
            *start,
            f"{found.params:.3f}",
            f"{found.macs:.3f}",
            f"{found.tracing:.1f}",
            f"{found.planning:.2f}",
            f"{found.memory:.1f}",
            "bitwise" if found.identity == 0 else f"{found.identity:.0e}",
            found.trouble or ("" if found.masked is None else f"{found.masked:.0e}"),
            f"{sum(mistakes)} of {len(mistakes)}" if mistakes else "",
            ", ".join(whole),
        )
    )


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def header() -> list[str]:
    """The first two lines of a table."""
    return [_line(HEADINGS), _line("---:" if heading in RIGHT else "---" for heading in HEADINGS)]


def total(results: Iterable[dict[str, Any]]) -> list[str]:
    """What the results come to, a sentence each."""
    every = list(results)
    good = [Examination(**result["found"]) for result in every if "found" in result]
    small = sum(max(found.params, found.macs) <= 0.4 for found in good)
    lines = [
        f"{len(good)} of {len(every)} ran; {small} keep at most 40 % of the parameters and of the MACs at width .5."
    ]
    for what, planted in (("wrong slices", [f.slices for f in good]), ("broken rules", [f.rules for f in good])):
        flat = [noticed for each in planted for noticed in each]
        if flat:
            lines.append(f"{sum(flat)} of {len(flat)} {what}, planted one at a time, were noticed ({_share(flat)}).")
    if good:
        lines.append(
            f"Slowest trace {max(f.tracing for f in good):.1f} s, slowest plan {max(f.planning for f in good):.2f} s."
        )
    return lines


def _share(flat: list[bool]) -> str:
    return f"{sum(flat) / len(flat):.1%}"


def rewrite(page: Path, results: dict[str, dict[str, Any]]) -> None:
    """Put rows of networks that have a result into the tables of a page; all others stay as they are there."""
    text = page.read_text(encoding="utf-8")
    for name, specs in TABLES.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        before, found, rest = text.partition(begin)
        old, closed, after = rest.partition(end)
        if not found or not closed:
            raise ValueError(f"{page} has no place for the table {name}: {begin.strip()} ... {end}")
        kept = {line.split("|")[2].strip(): line for line in old.splitlines() if line.startswith("|")}
        rows = [
            row(spec, family, results[spec])
            if spec in results
            else kept.get(f"`{spec[spec.index(':') + 1 : spec.index('@')]}`")
            for spec, family in specs.items()
        ]
        own = [results[spec] for spec in specs if spec in results]
        lines = [*header(), *filter(None, rows)]
        if own:
            commits = ", ".join(dict.fromkeys(f"{result['commit']} of {result['day']}" for result in own))
            lines = [f"{len(own)} of these {len(specs)} networks were run at {commits}.", *total(own), "", *lines]
        text = f"{before}{begin}" + "\n".join(lines) + f"\n{end}{after}"
    page.write_text(text, encoding="utf-8")


def main() -> None:
    """Run what has no result yet, print the tables, and fail if a network does."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=ALL, help="or names of tables: " + ", ".join(TABLES))
    parser.add_argument("--limit", type=int, default=900, help="seconds for a network")
    parser.add_argument("--folder", type=Path, default=Path("runs/coverage"), help="where results are kept")
    parser.add_argument(
        "--markdown", type=Path, help="a page whose tables are written from the results; nothing is run"
    )
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.inside:
        one(given.networks[0])
        return
    families = {spec: family for table in TABLES.values() for spec, family in table.items()}
    asked = [spec for name in given.networks for spec in TABLES.get(name, {name: ""})]
    results: dict[str, dict[str, Any]] = {}
    given.folder.mkdir(parents=True, exist_ok=True)
    print(*header(), sep="\n", flush=True)
    for spec in asked:
        path = given.folder / f"{spec.replace(':', '-')}.json"
        if not path.exists() and given.markdown is None:
            path.write_text(json.dumps(run(spec, given.limit)), encoding="utf-8")
        if path.exists():
            results[spec] = json.loads(path.read_text(encoding="utf-8"))
            print(row(spec, families.get(spec, spec.partition(":")[0]), results[spec]), flush=True)
    print("", *total(results.values()), sep="\n")
    if given.markdown is not None:
        rewrite(given.markdown, results)
    sys.exit(any("error" in result for result in results.values()))


if __name__ == "__main__":
    main()
