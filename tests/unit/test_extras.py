"""Optional packages: each one absent, and an error that names it, what needs it, and the command that installs it."""

import importlib
import sys

import pytest
import torch

from lightning_lcs import SubspaceModel
from lightning_lcs.cli.main import main
from lightning_lcs.utils.extras import PACKAGES, MissingPackageError, needed_for
from tests.helpers import Mlp


def plots():
    importlib.import_module("lightning_lcs.reporting.plots").require_matplotlib()


def report():
    importlib.import_module("lightning_lcs.reporting.html").plotly_code()


def workspace():
    importlib.import_module("lightning_lcs.loggers.wandb_workspace").workspace("me", "lcs", "val_acc", [0.0, 1.0])


def wandb_panels():
    importlib.import_module("lightning_lcs.loggers.wandb").log_curve(None, {"latest": []})


def onnx():
    importlib.import_module("lightning_lcs.export.onnx").require_onnx()


def integers():
    model = SubspaceModel(Mlp(), mode="quantized", subspace="point")
    importlib.import_module("lightning_lcs.export.int8_torch").int8_network(model, torch.randn(2, 6))


def readings():
    importlib.import_module("lightning_lcs.control.sensors").require_psutil()


def digits():
    importlib.import_module("lightning_lcs.data.digits").require_sklearn_datasets()


def vision():
    importlib.import_module("lightning_lcs.data").VisionDataModule("CIFAR10").setup("fit")


def command(*args):
    return lambda: main(["--debug", *args])


@pytest.mark.parametrize(
    ("module", "use", "needs", "install"),
    [
        ("matplotlib", plots, "plots", "pip install 'lightning-lcs[plots]'"),
        ("plotly", report, "a report", "pip install 'lightning-lcs[report]'"),
        ("wandb", wandb_panels, "WandbLogger", "pip install 'lightning-lcs[wandb]'"),
        ("wandb_workspaces", workspace, "a dashboard", "pip install 'lightning-lcs[dashboard]'"),
        ("onnx", onnx, "an export to ONNX", "pip install 'lightning-lcs[onnx]'"),
        ("onnxscript", onnx, "an export to ONNX", "pip install 'lightning-lcs[onnx]'"),
        ("onnxruntime", onnx, "an export to ONNX", "pip install 'lightning-lcs[onnx]'"),
        ("torchao", integers, "int8_network()", "pip install 'lightning-lcs[torchao]'"),
        ("psutil", readings, "readings of memory", "pip install 'lightning-lcs[control]'"),
        ("sklearn", digits, "the images of the demos", "pip install 'lightning-lcs[demo]'"),
        ("torchvision", vision, "VisionDataModule", "pip install 'lightning-lcs[demo]'"),
        ("jsonargparse", command("levels", "model.lcs"), "lightning-lcs levels", "pip install 'lightning-lcs[cli]'"),
        ("rich", command("levels", "model.lcs"), "lightning-lcs levels", "pip install rich"),
        ("timm", command("fit", "--help"), "lightning-lcs fit", "pip install timm"),
    ],
)
def test_a_package_that_is_absent_is_named_with_its_command(monkeypatch, module, use, needs, install):
    ours = ("lightning_lcs.cli", "lightning_lcs.reporting.terminal", "lightning_lcs.wrapper")
    for name in list(sys.modules):
        if name.partition(".")[0] == module:
            monkeypatch.setitem(sys.modules, name, None)
        elif name.startswith(ours) and name != "lightning_lcs.cli.main":
            monkeypatch.delitem(sys.modules, name)  # imported anew, and put back afterwards
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingPackageError) as raised:
        use()
    assert str(raised.value).startswith(f"{PACKAGES[module].name}, which is needed for {needs}")
    assert str(raised.value).endswith(f"is not installed: {install}")


def test_a_module_of_the_users_own_that_is_missing_keeps_its_own_error():
    with pytest.raises(ModuleNotFoundError, match="No module named 'my_missing_module'"), needed_for("plots"):
        importlib.import_module("my_missing_module")
