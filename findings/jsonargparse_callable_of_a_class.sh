#!/usr/bin/env bash
# jsonargparse 4.53.0: options that a dataclass refuses become a function that makes something else.
#
# Guess: where an option is a dataclass or a function (`Options | Callable[[int], Amount]`), and the dataclass refuses a
# mapping in its constructor, reading it fails with the reason of the dataclass. Seen: the mapping then counts as keyword
# arguments of the class that the function returns, without a word. Where that class takes any keyword, the value is
# accepted, as a partial call of it; the mistake shows when somebody calls it. If the function returns anything (`Any`),
# reading it fails with the reason of the dataclass.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jsonargparse==4.53.0
cd "$folder"
cat > shapes.py <<'PYTHON'
import dataclasses


class Amount:
    def __init__(self, *args, **kwargs):
        self.given = kwargs


@dataclasses.dataclass
class Options:
    weight: float = 1.0

    def __post_init__(self):
        if self.weight > 1.0:
            raise ValueError(f"weight={self.weight} is above 1")
PYTHON
venv/bin/python - <<'PYTHON'
from collections.abc import Callable
from typing import Any

import jsonargparse
from shapes import Amount, Options


def read(returned):
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--options", type=Options | Callable[[int], returned])
    return parser.instantiate(parser.parse_object({"options": {"weight": 2.0}})).options


made = read(Amount)
print("jsonargparse", jsonargparse.__version__, "read a function:", callable(made), "which makes", type(made(1)).__name__)
assert callable(made) and made(1).given == {"weight": 2.0}
try:
    read(Any)
except (jsonargparse.ArgumentError, ValueError) as error:
    print("with Any it is refused, and says why:", "weight=2.0 is above 1" in str(error))
    assert "weight=2.0 is above 1" in str(error)
else:
    raise AssertionError("with Any it is accepted, too")
PYTHON
