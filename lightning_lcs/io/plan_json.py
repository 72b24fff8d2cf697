"""Converts a channel plan to JSON and back, with the checks that all parts of a file share."""

from __future__ import annotations

import re
from typing import Any

from lightning_lcs.graph.channels.dims import Dim, Structure
from lightning_lcs.graph.channels.plan import ChannelPlan

MOST_SIZE = 2**40
# The parts of the name of a parameter or buffer, which become attributes of modules and keys of a state_dict.
_PART = re.compile(r"(?!__)[A-Za-z0-9_]{1,100}")


def checked_name(name: Any) -> str:
    """Return the qualified name of a parameter or buffer, or raise an error.

    Raises:
        ValueError: The value is not made of words, so that it could be more than a name.
    """
    if not isinstance(name, str) or len(name) > 1000 or not all(map(_PART.fullmatch, name.split("."))):
        raise ValueError(f"the file holds the name {str(name)[:100]!r}, which is not allowed")
    return name


def listed(value: Any, what: str) -> list[Any]:
    """Return a list; raise a ``ValueError`` that names the value if it is not a list."""
    if not isinstance(value, list):
        raise ValueError(f"the network in the file is malformed: {what} are not a list")
    return value


def natural(value: Any, limit: int) -> int:
    """Return a whole number from 0 to below the limit; raise a ``ValueError`` for any other value."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < limit:
        raise ValueError(f"the network in the file is malformed: {str(value)[:100]} is not in 0..{limit - 1}")
    return value


class DimTable:
    """Numbers dimensions and atoms, each of which is written once."""

    def __init__(self, structure: Structure) -> None:
        self._structure = structure
        self._known: dict[Dim, int] = {}
        self._numbers: dict[int, int] = {}
        self.dims: list[list[list[int]]] = []
        self.atoms: list[list[Any]] = []

    def number(self, dim: Dim) -> int:
        """The number of a dimension."""
        dim = self._structure.resolve(dim)
        if dim not in self._known:
            self._known[dim] = len(self.dims)
            self.dims.append([[self._atom(atom) for atom in term] for term in dim])
        return self._known[dim]

    def _atom(self, atom: int) -> int:
        if atom not in self._numbers:
            self._numbers[atom] = len(self.atoms)
            s = self._structure
            self.atoms.append([s.sizes[atom], s.steps.get(atom, 1), s.kept_whole.get(atom)])
        return self._numbers[atom]


def plan_from_data(data: Any) -> tuple[ChannelPlan, list[Dim]]:
    """A plan from a file, and its dimensions by number.

    Raises:
        ValueError: The data are not a valid plan.
    """
    structure = Structure(min_channels=natural(data["least"], MOST_SIZE))
    for number, (size, step, why) in enumerate(listed(data["atoms"], "atoms")):
        if natural(size, MOST_SIZE) < 2 or natural(step, MOST_SIZE) < 1 or not isinstance(why, (str, type(None))):
            raise ValueError(f"the plan in the file is malformed at atom {number}")
        structure.sizes.append(size)
        structure.steps[number] = step
        if why is not None:
            structure.kept_whole[number] = why
    atoms = len(structure.sizes)
    dims: list[Dim] = [
        tuple([tuple([natural(atom, atoms) for atom in listed(term, "a term")]) for term in listed(dim, "a dim")])
        for dim in listed(data["dims"], "dims")
    ]
    for dim in dims:
        if any(len(term) > 64 for term in dim) or structure.size(dim) >= MOST_SIZE:
            raise ValueError("the plan in the file is malformed: a dimension is too large")
    tensors = {
        checked_name(name): [dims[natural(number, len(dims))] for number in listed(numbers, "dimensions")]
        for name, numbers in data["tensors"].items()
    }
    keep = tuple(listed(data["keep"], "keep"))
    if not all(isinstance(pattern, str) for pattern in keep):
        raise ValueError("the plan in the file is malformed: keep is not a list of text")
    return ChannelPlan(structure, tensors, keep, 1 + natural(data["round_to"] - 1, MOST_SIZE)), dims
