"""LCSCallback.paper: the settings of arXiv 2110.04252, and its CIFAR network in the examples."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from lightning_lcs import LCSCallback
from tests.integration.support import Module, Net, trainer

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(path).stem, EXAMPLES / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def preresnet(blocks: int) -> nn.Module:
    return example("preresnet.py").PreResNet(blocks)


# Rows of the paper's table of settings: sampler, levels per step, warm-up, its schedule, norm, what lies on the line.
@pytest.mark.parametrize(
    ("mode", "subspace", "expected"),
    [
        ("structured", "line", ("sandwich", 4, 0.0, "instance", "norm")),
        ("structured", "point", ("sandwich", 4, 0.0, "instance", "norm")),
        ("unstructured", "line", ("biased_endpoints", 1, 0.8, "group", "backbone")),
        ("unstructured", "point", ("uniform_draws", 1, 0.8, "group", "backbone")),
        ("quantized", "line", ("uniform_draws", 1, 0.8, "group", "backbone")),
        ("quantized", "point", ("uniform_draws_per_layer", 1, 0.8, "group", "backbone")),
    ],
)
def test_settings(mode, subspace, expected):
    callback = LCSCallback.paper(mode, subspace)
    options = callback.options
    found = (options.sampler, options.alphas_per_step, options.warmup, callback.norm, callback.line.parameters)
    assert found == expected
    assert (options.diversity_weight, callback.line.start) == (1.0, "independent")
    if mode == "unstructured":
        assert options.warmup_schedule == ("linear" if subspace == "line" else "delayed")
        kept = [1 - callback.mode.sparsity(alpha) for alpha in callback._upkeep.measurement.alphas]
        assert kept == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.125, 0.15, 0.175, 0.2, 0.25, 0.5, 0.75, 0.9, 0.95, 1])
    if mode == "structured":
        widths = [callback.mode.width(alpha) for alpha in callback._upkeep.measurement.alphas]
        assert widths == pytest.approx([0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0])
    if mode == "quantized":
        assert callback.mode.edge_bits == 32


def test_single_settings_can_be_replaced():
    callback = LCSCallback.paper("unstructured", norm="keep", alphas=3)
    assert (callback.norm, len(callback._upkeep.measurement.alphas)) == ("keep", 3)
    with pytest.raises(ValueError, match="mode='dense'"):
        LCSCallback.paper("dense")


@pytest.mark.parametrize("mode", ["structured", "unstructured", "quantized"])
@pytest.mark.parametrize("subspace", ["line", "point"])
def test_each_trains_and_gives_a_curve(tmp_path, train, val, mode, subspace):
    module = Module(Net(first=16, second=16))
    callback = LCSCallback.paper(mode, subspace, alphas=3)
    trainer(tmp_path, callback, max_epochs=2).fit(module, train, val)
    sizes = [point.size_bytes for point in callback.curve]
    assert sizes == sorted(set(sizes))
    assert all(0.0 <= point.metrics["val_acc"] <= 1.0 for point in callback.curve)
    assert not any(isinstance(child, nn.BatchNorm2d) for child in module.modules())


@pytest.mark.parametrize(("blocks", "depth"), [(1, 11), (2, 20)])
def test_the_network_has_the_depth_that_its_name_says(blocks, depth):
    net = preresnet(blocks)
    weights = [child for child in net.modules() if isinstance(child, (nn.Conv2d, nn.Linear))]
    shortcuts = sum(isinstance(child, nn.Conv2d) for block in net.blocks for child in [block.shortcut])
    assert len(weights) - shortcuts == depth
    assert net(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_the_tables_of_the_results_page_are_those_of_its_runs(tmp_path):
    """A figure written by hand, or a run that was added without the page, would differ."""
    docs = EXAMPLES.parent / "docs"
    text = (docs / "results.md").read_text()
    page = tmp_path / "results.md"
    first = re.compile(r"(\(`structured-point`\) \| \d+ \| )\d")
    for changed in (text, first.sub(r"\g<1>11", text, count=1)):
        page.write_text(changed)
        example("paper/tables.py").rewrite(page, docs / "results")
        assert page.read_text() == text
    assert changed != text
