"""Recipes: options of the training step by name, for the price or for the quality."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from lightning_lcs.utils.options import did_you_mean

Group = TypeVar("Group")
Recipe = Mapping[str, Mapping[str, Any]]
"""The options of a recipe by group, such as "sampling"."""

# Recipe -> mode -> options; "" stands for modes of other packages. examples/settings/compare.py compares them.
RECIPES: Mapping[str, Mapping[str, Recipe]] = {
    "fast": {
        "structured": {"sampling": {"split": True}},
        "unstructured": {},
        "quantized": {},
        "": {"sampling": {"split": True}},
    },
    "best": {
        "structured": {},
        "unstructured": {"sampling": {"sampler": "weighted_sandwich", "warmup_schedule": "cubic"}},
        "quantized": {},
        "": {"sampling": {"sampler": "sandwich"}},
    },
}


def recipe_for(name: str, mode: str) -> Recipe:
    """The options of a recipe in a mode.

    Args:
        name: "fast" or "best".
        mode: The name of the mode.

    Raises:
        ValueError: The recipe is not known.

    Example:
        >>> from lightning_lcs.training.recipes import recipe_for
        >>> recipe_for("fast", "structured")
        {'sampling': {'split': True}}
    """
    if name not in RECIPES:
        raise ValueError(
            f"recipe={name!r} is not known{did_you_mean(name, RECIPES)}; choose one of "
            f"{', '.join(map(repr, RECIPES))}, or leave it out for the defaults of the mode"
        )
    return RECIPES[name].get(mode, RECIPES[name][""])


def filled(group: Group, options: Mapping[str, Any]) -> Group:
    """A group of options in which those at their default have the values of a recipe.

    Args:
        group: The options as they were given.
        options: The values of the recipe.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(group)}  # type: ignore[arg-type]
    missing = {name: value for name, value in options.items() if getattr(group, name) == defaults[name]}
    try:
        return dataclasses.replace(group, **missing)  # type: ignore[type-var]
    except ValueError as error:
        raise ValueError(f"the options given do not go with the recipe, which sets {missing}: {error}") from error
