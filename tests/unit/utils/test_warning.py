"""Warnings point to the user's line, through whatever stands between."""

import inspect

import pytest

from lightning_lcs.utils.warning import warn

# A module of the package's whose forward torch calls, and a function that calls the module.
SOURCE = """
from torch import nn

class Net(nn.Module):
    def forward(self):
        warn("the network is narrow", FutureWarning)

def run():
    Net()()
"""


def test_a_warning_names_the_nearest_line_outside_of_the_package_and_torch():
    namespace = {"__name__": "lightning_lcs.made_up", "warn": warn}
    exec(SOURCE, namespace)
    with pytest.warns(FutureWarning, match="narrow") as found:
        namespace["run"]()
    assert (found[0].filename, found[0].lineno) == (__file__, inspect.currentframe().f_lineno - 1)
    with pytest.warns(UserWarning, match="small") as found:
        warn("small")
    assert (found[0].filename, found[0].lineno) == (__file__, inspect.currentframe().f_lineno - 1)
