"""A mode from outside of the package: trained, measured, saved, loaded, printed and reported with no other change."""

import importlib.util
import io
import sys
from pathlib import Path

import pytest
import torch
from jsonargparse import ArgumentError, ArgumentParser
from lightning.pytorch.loggers import CSVLogger
from rich.console import Console

from lightning_lcs import LCSCallback, SubspaceModel
from lightning_lcs.reporting.html import page
from lightning_lcs.reporting.runs import read_runs
from lightning_lcs.reporting.terminal import print_curves
from lightning_lcs.subspace.mode import Mode
from lightning_lcs.subspace.modes.registry import MODES, axes, register_mode
from tests.helpers import relative
from tests.integration.support import Module, Net, digits, group_norm, lcs, loader, trainer

EXAMPLE = Path(__file__).parents[2] / "examples" / "low_rank.py"
# A projection computed here and there.
SAME_OPS = 1e-4


@pytest.fixture
def low_rank(monkeypatch):
    """The module that registers the mode, for one test."""
    monkeypatch.delitem(MODES, "low_rank", raising=False)
    spec = importlib.util.spec_from_file_location("low_rank", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "low_rank", module)
    spec.loader.exec_module(module)
    yield module
    MODES.pop("low_rank")


def cut(weight, share):
    """A weight with its first singular directions, as torch computes it in one go."""
    flat = weight.detach().double().flatten(1)
    u, s, v = torch.linalg.svd(flat, full_matrices=False)
    r = max(1, round(min(flat.shape) * share))
    return (u[:, :r] @ torch.diag(s[:r]) @ v[:r]).reshape(weight.shape).float()


@pytest.mark.parametrize("subspace", ["point", "line"])
def test_a_mode_of_the_users_own_does_all_that_a_mode_does(tmp_path, low_rank, subspace):
    module, logger = Module(Net(group_norm)), CSVLogger(tmp_path, "run", "")
    line = {"parameters": "all"} if subspace == "line" else {}
    callback = lcs(mode="low_rank", subspace=subspace, line=line)
    fit = trainer(tmp_path, callback, logger=logger, max_steps=2)
    fit.fit(module, loader(digits(0, 32)), loader(digits(48, 40)))
    fit.save_checkpoint(tmp_path / "last.ckpt")
    curve, model = callback.curve, callback.subspace_model.eval()

    # The curve lies on the axis of the mode, and its costs follow.
    assert [point.settings["rank"] for point in curve] == pytest.approx([0.1, 0.55, 1.0])
    assert curve[0].params < curve[1].params < curve[2].params == sum(p.numel() for p in Net(group_norm).parameters())
    assert curve[0].macs < curve[2].macs
    assert all("val_acc" in point.metrics for point in curve)

    # A level is the network with these weights.
    images = digits(48, 8)[:][0]
    with torch.no_grad(), model.at_alpha(0.5):
        logits = model(images)
        small = model.materialize(0.5)
        assert relative(small(images), logits) < SAME_OPS
        if subspace == "point":
            assert relative(small.conv2.weight, cut(module.net.conv2.weight, 0.55)) < SAME_OPS

    # A checkpoint and a file bring it back.
    opened = SubspaceModel.from_checkpoint(tmp_path / "last.ckpt", Module(Net(group_norm)))
    model.save(tmp_path / "model.lcs", levels=curve)
    loaded = SubspaceModel.load(tmp_path / "model.lcs", module=Net(group_norm))
    for again in (opened, loaded):
        assert again.mode == low_rank.LowRank()
        with torch.no_grad(), again.at_alpha(0.5):
            network = again.module.net if again is opened and hasattr(again.module, "net") else again.module
            assert relative(again.runner.run(again.parts[0], network, (images,), {}), logits) < SAME_OPS
    assert loaded.set_level("small").settings == {"rank": pytest.approx(0.1)}

    # The table in the terminal, and the page.
    console = Console(file=io.StringIO(), width=200)
    print_curves({"": curve}, console)
    table = console.file.getvalue()
    assert "rank" in table
    assert "0.550" in table
    text = page(read_runs([tmp_path / "run"]), "/* plotly */")
    assert "Share of singular directions" in text
    assert "low_rank" in text


def test_it_trains_the_directions_that_are_kept(low_rank):
    """One step at one level, against autograd through the projection."""
    net = Net(group_norm)
    model = SubspaceModel(net, mode=low_rank.LowRank(min_rank=0.3), subspace="point").train()
    images = digits(0, 8)[:][0]
    with model.runner.training_level(0.0):
        model(images).square().sum().backward()
    found = {name: parameter.grad.clone() for name, parameter in net.named_parameters()}
    net.zero_grad()
    with model.runner.training_level(0.0, direct=True):
        loss = model(images).square().sum()
    loss.backward()
    for name, parameter in net.named_parameters():
        assert relative(found[name], parameter.grad) < SAME_OPS
    assert torch.linalg.matrix_rank(found["conv2.weight"].flatten(1)) <= round(8 * 0.3)


def test_names_and_axes_are_refused_twice(low_rank):
    with pytest.raises(ValueError, match="mode 'low_rank' is LowRank already"):
        register_mode("low_rank")(low_rank.LowRank)
    with pytest.raises(ValueError, match="axis 'rank' of mode 'other' belongs to another mode already"):
        register_mode("other")(low_rank.LowRank)
    assert set(axes()) == {"width", "sparsity", "bit_width", "rank"}
    with pytest.raises(TypeError, match=r"min_rank is an option of a mode: give mode=LowRank\(min_rank=...\)"):
        LCSCallback(mode="low_rank", min_rank=0.5)


def test_options_of_a_mode_of_ones_own_are_validated_in_yaml(tmp_path, monkeypatch):
    """Although its module imports none of the names in the annotations of Mode."""
    (tmp_path / "own_mode.py").write_text(
        "from __future__ import annotations\n"
        "import dataclasses\n"
        "from lightning_lcs.subspace.mode import Mode\n"
        "@dataclasses.dataclass(frozen=True, repr=False)\n"
        "class Own(Mode):\n"
        "    width: float = 0.25\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--mode", type=Mode)

    def parsed(width):
        return parser.parse_object({"mode": {"class_path": "own_mode.Own", "init_args": {"width": width}}})

    assert parsed(0.5).mode.init_args.width == 0.5
    with pytest.raises(ArgumentError, match="wide"):
        parsed("wide")
