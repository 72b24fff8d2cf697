"""The W&B workspace as the JSON that would be sent; built without a network."""

import json
import socket

import pytest

from lightning_lcs.cli.main import main

pytest.importorskip("wandb_workspaces", reason="wandb-workspaces is not installed: no dashboard")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def sections(monkeypatch, capsys):
    def no_network(*_):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", no_network)

    def made(*options):
        main(["dashboard", "--entity", "someone", "--project", "lcs", "--dry-run", *options])
        view = json.loads(capsys.readouterr().out)
        assert (view["entity"], view["project"]) == ("someone", "lcs")
        found = view["spec"]["section"]["panelBankConfig"]["sections"]
        return {section["name"]: [panel["config"] for panel in section["panels"]] for section in found}

    return made


def test_curves_of_all_runs_come_from_their_tables(sections):
    panels = sections()["Trade-off curves"]
    assert [p["fieldSettings"] for p in panels] == [
        {"x": cost, "y": "val_acc"} for cost in ("macs", "size_bytes", "latency_ms")
    ]
    for panel in panels:
        assert panel["panelDefId"] == "wandb/line/v0"
        (query,) = panel["userQuery"]["queryFields"]
        assert {"name": "tableKey", "value": "lcs/curve"} in query["fields"][0]["args"]


def test_the_front_over_runs_is_drawn_by_summary_keys_that_are_logged(sections):
    panels = sections("--alphas", "0", "0.3", "1")["Pareto front over runs"]
    assert [p["xAxis"] for p in panels][:3] == [f"summary:lcs/macs/alpha_{a}" for a in ("000", "030", "100")]
    assert [p["yAxis"] for p in panels][:3] == [f"summary:lcs/val_acc/alpha_{a}" for a in ("000", "030", "100")]
    assert all(p["showMaxYAxisLine"] for p in panels)


def test_a_loss_has_its_front_below(sections):
    panels = sections("--metric", "val_loss")["Pareto front over runs"]
    assert all(p["showMinYAxisLine"] and "showMaxYAxisLine" not in p for p in panels)


def test_every_level_over_training(sections):
    levels, *_ = sections("--alphas", "5")["Levels over training"]
    assert levels["metrics"] == [f"lcs/val_acc/alpha_{a:03d}" for a in (0, 25, 50, 75, 100)]


def test_levels_out_of_range_are_refused(capsys):
    with pytest.raises(SystemExit):
        main(["dashboard", "--entity", "a", "--project", "b", "--alphas", "0", "1.5", "--dry-run"])
    assert "1.5" in capsys.readouterr().err
