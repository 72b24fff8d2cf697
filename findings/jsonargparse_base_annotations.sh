#!/usr/bin/env bash
# jsonargparse 4.53.0: one annotation of a base class decides whether the options of a subclass are validated.
#
# Guess: annotations as text are evaluated with the names of the module in which each class is written. Seen: those of a
# base class are evaluated with the names of the subclass's module. Where one is missing there, no option of the subclass
# has a type any more: a word is accepted for a float, without an error. Importing the name, unused, brings the types
# back.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jsonargparse==4.53.0
cd "$folder"
cat > base.py <<'PYTHON'
from __future__ import annotations

from typing import ClassVar


class Shape:
    corners: ClassVar[int] = 0
PYTHON
cat > without.py <<'PYTHON'
from __future__ import annotations

import dataclasses

from base import Shape


@dataclasses.dataclass
class Square(Shape):
    width: float = 1.0
PYTHON
sed 's/^import dataclasses$/import dataclasses\nfrom typing import ClassVar/' without.py > with_name.py
venv/bin/python - <<'PYTHON'
import jsonargparse
from base import Shape

parser = jsonargparse.ArgumentParser(exit_on_error=False)
parser.add_argument("--shape", type=Shape)
found = {}
for module in ("without", "with_name"):
    try:
        given = {"shape": {"class_path": f"{module}.Square", "init_args": {"width": "wide"}}}
        found[module] = repr(parser.parse_object(given).shape.init_args.width)
    except jsonargparse.ArgumentError:
        found[module] = "refused"
print("jsonargparse", jsonargparse.__version__)
print("a word for a float:", found)
assert jsonargparse.__version__ == "4.53.0"
assert found == {"without": "'wide'", "with_name": "refused"}
PYTHON
