"""Loggers that draw curves: the user's own, subclasses, and unknown ones."""

import sys

import pytest

from lightning_lcs.loggers import Measurement, register_logger
from lightning_lcs.loggers.registry import DRAWS, draw_curves
from tests.unit.reporting.test_curve import CURVE


class Figures:
    """An experiment that takes figures, as TensorBoard's does."""

    def __init__(self):
        self.names = []

    def add_figure(self, name, figure, global_step):
        self.names.append((name, global_step))


class FigureLogger:
    def __init__(self):
        self.experiment = Figures()


class OwnLogger(FigureLogger):
    pass


class Derived(OwnLogger):
    pass


@pytest.fixture
def measurement(tmp_path):
    return Measurement(curves={"latest": CURVE}, description={}, step=7, folder=tmp_path)


def test_a_logger_of_the_users_draws_for_its_subclasses_too(measurement, monkeypatch):
    drawn = []
    monkeypatch.setitem(DRAWS, "OwnLogger", "")  # so that it is gone afterwards
    del DRAWS["OwnLogger"]
    register_logger("OwnLogger")(lambda logger, shown: drawn.append((type(logger).__name__, shown.step)))
    for logger in (OwnLogger(), Derived()):
        draw_curves(logger, measurement)
        assert logger.experiment.names == []
    assert drawn == [("OwnLogger", 7), ("Derived", 7)]


def test_an_unknown_logger_gets_figures_if_it_takes_them(measurement):
    logger = FigureLogger()
    draw_curves(logger, measurement)
    assert logger.experiment.names == [("lcs/val_acc", 7), ("lcs/val_loss", 7)]
    draw_curves(object(), measurement)


def test_without_matplotlib_a_warning_says_that_there_are_no_pictures(measurement, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    logger = FigureLogger()
    with pytest.warns(UserWarning, match=r"no pictures of the curve: .*pip install 'lightning-lcs\[plots\]'"):
        draw_curves(logger, measurement)
    assert logger.experiment.names == []


def test_a_second_function_for_a_class_of_loggers_is_refused():
    with pytest.raises(ValueError, match=r"'WandbLogger' has a function .* already, in lightning_lcs\.loggers\.wandb"):
        register_logger("WandbLogger")(print)
