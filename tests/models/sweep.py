"""``make coverage``: all families of timm, each in a process of its own with a time limit; a table for the docs.

python -m tests.models.sweep [FAMILY ...] [--limit SECONDS]
"""

import argparse
import dataclasses
import json
import subprocess
import sys

from tests.models.checks import Examination, examine
from tests.models.families import FAMILIES


def one(family: str) -> None:
    """Examine one family, and print what came out as JSON."""
    print(json.dumps(dataclasses.asdict(examine(*FAMILIES[family]))))


def row(family: str, limit: int) -> tuple[str, Examination | None]:
    """A line of the table, and what it is made of."""
    name, size = FAMILIES[family]
    command = [sys.executable, "-m", "tests.models.sweep", family, "--inside"]
    start = f"| {family} | `{name}` | {size} |"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return f"{start} more than {limit} seconds |", None
    if done.returncode:
        return f"{start} {done.stderr.strip().splitlines()[-1]} |", None
    found = Examination(**json.loads(done.stdout.splitlines()[-1]))
    identity = "bitwise" if found.identity == 0 else f"{found.identity:.0e}"
    masked = found.trouble or ("" if found.masked is None else f"{found.masked:.0e}")
    whole = ", ".join(f"{why} ({count})" for why, count in found.whole.items())
    missing = f" {len(found.ungraded)} without gradient" if found.ungraded else ""
    shares = f"{found.params:.3f} | {found.macs:.3f} | {found.seconds:.1f}"
    return f"{start} {shares} | {identity} | {masked} | {whole}{missing} |", found


def main() -> None:
    """Print the table, and fail if a family does."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*", default=sorted(FAMILIES))
    parser.add_argument("--limit", type=int, default=600, help="seconds for a family")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.inside:
        one(given.families[0])
        return
    print("| family | smallest model | pixels | parameters | MACs | tracing, s | width 1 | masked | kept whole |")
    print("|---|---|---:|---:|---:|---:|---|---|---|")
    found = []
    for family in given.families:
        line, examination = row(family, given.limit)
        print(line, flush=True)
        found.append(examination)
    good = [each for each in found if each is not None]
    sliced = sum(max(each.params, each.macs) <= 0.4 for each in good)
    print(
        f"\n{len(good)} of {len(found)} ran; {sliced} keep at most 40 % of the parameters and of the MACs at width 0.5"
    )
    sys.exit(len(good) < len(found))


if __name__ == "__main__":
    main()
