"""Warnings point to the user's line, through whatever stands between."""

import inspect
import warnings

import pytest
from torch import nn

from lightning_lcs.utils import warning
from lightning_lcs.utils.warning import warn


class Net(nn.Module):
    """A module of the package's, called by torch, called by the user."""

    def forward(self) -> None:
        exec("warn('narrow', FutureWarning)", {"__name__": "lightning_lcs.made_up", "warn": warn})


def test_a_warning_names_the_line_outside_of_the_package(monkeypatch):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        exec("warn('small')", {"__name__": "lightning_lcs.made_up", "warn": warn})
        line = inspect.currentframe().f_lineno - 1
    assert (found[0].filename, found[0].lineno) == (__file__, line)
    monkeypatch.setattr(warning, "_BETWEEN", {*warning._BETWEEN, "tests"})
    with pytest.warns(FutureWarning, match="narrow") as found:
        Net()()
    assert found[0].filename != __file__
