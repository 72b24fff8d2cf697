"""``make coverage``: networks of timm and torchvision, each in a process of its own with a time limit; a table.

python -m tests.models.sweep [timm:NAME@PIXELS | torchvision:NAME@PIXELS ...] [--limit SECONDS]
"""

import argparse
import dataclasses
import json
import subprocess
import sys

from tests.models.checks import Examination, build, examine
from tests.models.families import FAMILIES, SIBLINGS, TORCHVISION

ALL = [
    *(f"timm:{name}@{size}" for _, (name, size) in sorted(FAMILIES.items())),
    *(f"timm:{name}@{size}" for name, size in SIBLINGS.items()),
    *(f"torchvision:{name}@{size}" for name, size in TORCHVISION.items()),
]
FAMILY = {f"timm:{name}@{size}": family for family, (name, size) in FAMILIES.items()}


def one(spec: str) -> None:
    """Examine one network, and print what came out as JSON."""
    print(json.dumps(dataclasses.asdict(examine(*build(spec)))))


def row(spec: str, limit: int) -> tuple[str, Examination | None]:
    """A line of the table, and what it is made of."""
    library, _, rest = spec.partition(":")
    name, _, size = rest.partition("@")
    family = FAMILY.get(spec, library)
    command = [sys.executable, "-m", "tests.models.sweep", spec, "--inside"]
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
    mistakes = f"{sum(found.mistakes)} of {len(found.mistakes)}" if found.mistakes else ""
    return f"{start} {shares} | {identity} | {masked} | {whole}{missing} | {mistakes} |", found


def main() -> None:
    """Print the table, and fail if a network does."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=ALL)
    parser.add_argument("--limit", type=int, default=600, help="seconds for a network")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.inside:
        one(given.networks[0])
        return
    print(
        "| family or library | network | pixels | parameters | MACs | tracing, s | width 1 | masked | kept whole | "
        "mistakes noticed |"
    )
    print("|---|---|---:|---:|---:|---:|---|---|---|---|")
    found = []
    for spec in given.networks:
        line, examination = row(spec, given.limit)
        print(line, flush=True)
        found.append(examination)
    good = [each for each in found if each is not None]
    sliced = sum(max(each.params, each.macs) <= 0.4 for each in good)
    print(
        f"\n{len(good)} of {len(found)} ran; {sliced} keep at most 40 % of the parameters and of the MACs at width 0.5"
    )
    mistakes = [noticed for each in good for noticed in each.mistakes]
    if mistakes:
        share = sum(mistakes) / len(mistakes)
        print(f"{sum(mistakes)} of {len(mistakes)} wrong slices, planted one at a time, were noticed ({share:.1%})")
    sys.exit(len(good) < len(found))


if __name__ == "__main__":
    main()
