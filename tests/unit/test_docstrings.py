"""Docstrings of the public names: they describe every parameter, and their examples run."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import lightning_lcs

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"


def resolve(path: str) -> Any:
    """The module, class or function of a dotted path."""
    names = path.split(".")
    for length in range(len(names), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(names[:length]))
        except ModuleNotFoundError as error:
            if not path.startswith(str(error.name)):
                raise
            continue
        for name in names[length:]:
            found = getattr(found, name)
        return found
    raise ModuleNotFoundError(path)


def members_of(module: Any, only: list[str] | None) -> list[Any]:
    """The public classes and functions that a module defines."""
    return [
        value
        for name, value in vars(module).items()
        if (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == module.__name__
        and not name.startswith("_")
        and (only is None or name in only)
    ]


def reference_objects() -> list[Any]:
    """Every class and function on a reference page, those of the modules on it included."""
    found: list[Any] = []
    for page in sorted(REFERENCE.glob("*.md")):
        for directive in re.finditer(r"^::: (\S+)\n((?:    .*\n)*)", page.read_text() + "\n", re.MULTILINE):
            value = resolve(directive[1])
            if inspect.ismodule(value):
                only = re.search(r"^      members: \[(.*)\]", directive[2], re.MULTILINE)
                found += members_of(value, re.split(r",\s*", only[1]) if only else None)
            else:
                found.append(value)
    return found


PUBLIC = {
    value.__qualname__: value
    for value in (*(getattr(lightning_lcs, name) for name in lightning_lcs.__all__), *reference_objects())
}


def example_methods(value: Any) -> dict[str, Any]:
    """The public methods of a class whose docstrings have an example."""
    names = [name for name in vars(value) if not name.startswith("_")] if inspect.isclass(value) else []
    methods = {name: getattr(value, name) for name in names}
    return {
        method.__qualname__: method
        for method in methods.values()
        if inspect.isroutine(method) and section_of(inspect.getdoc(method) or "", "Example")
    }


def section_of(docstring: str, *titles: str) -> str:
    """The lines of a docstring's first section of one of these titles, indented by four; empty without one."""
    found = re.search(rf"^(?:{'|'.join(titles)}):\n((?:    .*\n|\n)*)", docstring + "\n", re.MULTILINE)
    return found[1] if found else ""


def entries_of(docstring: str) -> dict[str, str]:
    """Parameters or attributes by name, with the first line of their descriptions."""
    section = section_of(docstring, "Args", "Attributes")
    return dict(re.findall(r"^    \*{0,2}(\w+): (.*)", section, re.MULTILINE))


def parameters_of(value: Any) -> list[str]:
    return [name for name in inspect.signature(value).parameters if name != "self" and not name.startswith("_")]


PUBLIC |= {name: method for value in list(PUBLIC.values()) for name, method in example_methods(value).items()}


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_docstring_describes_every_parameter(name: str) -> None:
    entries = entries_of(inspect.getdoc(PUBLIC[name]) or "")
    parameters = parameters_of(PUBLIC[name])
    assert set(entries) >= set(parameters), f"not described: {sorted(set(parameters) - set(entries))}"
    known = {*parameters, *dir(PUBLIC[name]), *getattr(PUBLIC[name], "__annotations__", {})}
    assert known >= set(entries), f"no such parameter or attribute: {sorted(set(entries) - known)}"
    small = [entry for entry, text in entries.items() if text[:1].islower()]
    assert not small, f"descriptions start with a capital letter: {small}"


@pytest.mark.parametrize("name", sorted(PUBLIC))
@pytest.mark.filterwarnings("ignore:Pydantic V1 style:DeprecationWarning")  # wandb-workspaces, as it is imported
def test_example_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = section_of(inspect.getdoc(PUBLIC[name]) or "", "Example")
    if "int8_network" in text and find_spec("torchao") is None:  # the oldest versions have none
        pytest.skip("torchao is not installed")
    example = doctest.DocTestParser().get_doctest(text, {}, name, None, None)
    assert example.examples, "the docstring has no example: add a section 'Example:' with lines that start with >>>"
    report: list[str] = []
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    failed, _ = doctest.DocTestRunner(optionflags=flags).run(example, out=report.append)
    assert not failed, "".join(report)


def broken() -> None:
    """Misses its result.

    Example:
        >>> 1 + 1
        3
    """


def test_a_wrong_example_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PUBLIC, "broken", broken)
    with pytest.raises(AssertionError, match="Expected"):
        test_example_runs("broken", tmp_path, monkeypatch)


def test_a_parameter_without_description_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PUBLIC, "scaled", lambda value, factor: value * factor)
    with pytest.raises(AssertionError, match="factor"):
        test_docstring_describes_every_parameter("scaled")
