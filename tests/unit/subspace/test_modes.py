import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_lcs.subspace.axis import check_alpha
from lightning_lcs.subspace.modes import Structured
from lightning_lcs.subspace.modes.registry import MODES, check_subspace, mode_to_dict, parse_mode, saved_mode

# One addition and one product in float64.
ROUNDING = 1e-15

min_widths = st.floats(0.01, 1.0)
alphas = st.floats(0.0, 1.0)


@given(lo=min_widths, alpha=alphas)
def test_width_is_linear_in_alpha(lo: float, alpha: float) -> None:
    width = Structured(min_width=lo).width(alpha)
    assert width == pytest.approx(lo + (1.0 - lo) * alpha, abs=ROUNDING)
    assert lo <= width <= 1.0 + ROUNDING


@given(lo=min_widths)
def test_width_at_the_ends(lo: float) -> None:
    assert Structured(min_width=lo).width(0) == lo
    assert Structured(min_width=lo).width(1) == pytest.approx(1.0, abs=ROUNDING)


def test_default_range_is_the_papers() -> None:
    assert [Structured().width(alpha) for alpha in (0.0, 0.5, 1.0)] == [0.25, 0.625, 1.0]


@pytest.mark.parametrize("alpha", [math.nan, -0.1, 1.1, math.inf, -math.inf, "1.5"])
def test_alpha_outside_its_range_is_an_error_with_name_value_and_range(alpha: float) -> None:
    for check in (check_alpha, Structured().width):
        with pytest.raises(ValueError, match=r"alpha=.* is not in \[0, 1\]") as error:
            check(alpha)
        assert repr(alpha) in str(error.value)


@pytest.mark.parametrize("alpha", ["x", None, [0.5]])
def test_alpha_that_is_no_number_is_an_error_with_name_value_and_range(alpha: object) -> None:
    with pytest.raises((ValueError, TypeError), match=r"alpha=.*\[0, 1\]"):
        check_alpha(alpha)  # type: ignore[arg-type]


@pytest.mark.parametrize("alpha", [0, 1, True, "0.5"])
def test_alpha_becomes_a_float(alpha: float) -> None:
    value = check_alpha(alpha)
    assert type(value) is float
    assert value == float(alpha)


@pytest.mark.parametrize("width", [0, 0.0, -0.5, 1.0001, 25, math.nan, math.inf])
def test_min_width_outside_its_range_is_an_error_with_name_value_and_range(width: float) -> None:
    with pytest.raises(ValueError, match=r"min_width=.* is not in \(0, 1\]") as error:
        Structured(min_width=width)
    assert repr(width) in str(error.value)


def test_mode_is_frozen_and_takes_keywords_only() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Structured().min_width = 0.5  # type: ignore[misc]
    with pytest.raises(TypeError):
        Structured(0.5)  # type: ignore[misc]


@pytest.mark.parametrize("name", ["strucured", "Structured", "", 3])
def test_unknown_mode_names_itself_and_the_choices(name: str) -> None:
    with pytest.raises(ValueError, match=f"mode={name!r} is not known; choose one of 'quantized'"):
        parse_mode(name)
    with pytest.raises(ValueError, match=f"mode={name!r}"):
        parse_mode({"name": name})


@pytest.mark.parametrize("name", ["plane", "Line", "", None])
def test_unknown_subspace_names_itself_and_the_choices(name: str) -> None:
    with pytest.raises(ValueError, match=f"subspace={name!r} is not known; choose one of 'line', 'point'"):
        check_subspace(name)


def test_known_subspaces_pass() -> None:
    assert [check_subspace(name) for name in ("line", "point")] == ["line", "point"]


def test_mode_is_parsed_from_name_object_and_mapping() -> None:
    mode = Structured(min_width=0.5)
    assert parse_mode(mode) is mode
    assert parse_mode("structured") == Structured()
    assert parse_mode({"min_width": 0.5}) == mode
    assert parse_mode({"name": "structured", "min_width": 0.5}) == mode


def test_parsing_leaves_the_mapping_alone() -> None:
    given = {"name": "structured", "min_width": 0.5}
    parse_mode(given)
    assert given == {"name": "structured", "min_width": 0.5}


@given(lo=min_widths)
def test_mode_survives_plain_data(lo: float) -> None:
    mode = Structured(min_width=lo)
    assert parse_mode(json.loads(json.dumps(mode_to_dict(mode)))) == mode


@pytest.mark.parametrize("name", MODES)
def test_plain_data_holds_every_option_and_files_from_before_one_existed_run_as_they_did(name: str) -> None:
    written = mode_to_dict(MODES[name]())
    assert set(written) == {"name", *(field.name for field in dataclasses.fields(MODES[name]))}
    assert saved_mode(written) == MODES[name]()
    former = saved_mode({"name": name})
    for option, value in MODES[name].former_defaults.items():
        assert getattr(former, option) == value != getattr(MODES[name](), option)
        assert getattr(saved_mode({"name": name, option: written[option]}), option) == written[option]


def test_every_mode_has_a_name() -> None:
    for name, kind in MODES.items():
        assert mode_to_dict(kind())["name"] == name
