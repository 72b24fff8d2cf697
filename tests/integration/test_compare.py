"""``lightning-lcs compare``, and the paper's recipes: each is parsed and trained for two steps on fake images."""

import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from torchvision import datasets, transforms

from lightning_lcs import LCSCallback
from lightning_lcs.cli.main import run as main
from lightning_lcs.reporting.comparison import by_axis, mean_curve
from lightning_lcs.subspace.curves.curve_file import read_csv

EXAMPLES = Path(__file__).parents[2] / "examples"
RECIPES = sorted((EXAMPLES / "paper").glob("*.yaml"))
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
SHORT = [
    "--trainer.max_epochs=1",
    "--trainer.check_val_every_n_epoch=1",
    "--trainer.limit_train_batches=2",
    "--trainer.limit_val_batches=1",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]
SMALL = [*SHORT, "--data.init_args.image_size=16", "--data.init_args.batch_size=8", "--model.model=test_resnet"]
STRUCTURED = ["--config", str(EXAMPLES / "configs" / "structured.yaml"), *SMALL]
ENDS = [*STRUCTURED, "--alphas", "0", "1"]  # two levels instead of seven


def compare(folder, *methods, seeds=(0,), arguments=ENDS):
    main(["compare", *arguments, "--folder", str(folder), "--methods", *methods, "--seeds", *map(str, seeds)])


def test_methods_of_all_modes_in_one_call(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    compare(tmp_path, "us", "unstructured-line", "bits-4", seeds=(0, 1))
    assert len(list(tmp_path.glob("*-[01].csv"))) == 6
    assert sorted(path.name for path in tmp_path.glob("*.png")) == [
        "comparison_bit_width.png",
        "comparison_sparsity.png",
        "comparison_width.png",
    ]
    printed = capsys.readouterr().out
    for title in ("val_acc by width", "val_acc by sparsity", "val_acc by bit_width"):
        assert title in printed
    runs = {name: [read_csv(tmp_path / f"{name}-{seed}.csv") for seed in (0, 1)] for name in ("us",)}
    assert list(by_axis(runs)) == ["width"]
    for name, curves in runs.items():
        for point, first, second in zip(mean_curve(curves), *curves, strict=True):
            mean = (first.metrics["val_acc"] + second.metrics["val_acc"]) / 2
            assert point.metrics["val_acc"] == pytest.approx(mean, abs=1e-12), name
    # Two seeds, two networks; the configuration's own checkpoints are not written.
    assert runs["us"][0][0].metrics != runs["us"][1][0].metrics
    assert not list(tmp_path.glob("**/*.ckpt"))


def test_the_command_finds_data_modules_by_their_short_names(tmp_path):
    # In a process of its own: here other tests have imported them.
    command = [sys.executable, str(EXAMPLES / "train_cli.py"), "compare", *ENDS, "--methods", "us"]
    subprocess.run([*command, "--folder", str(tmp_path)], cwd=tmp_path, check=True)
    assert (tmp_path / "us-0.csv").exists()


def test_a_call_goes_on_where_it_was_stopped(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    compare(tmp_path, "us")
    before = (tmp_path / "us-0.csv").read_text()
    capsys.readouterr()
    compare(tmp_path, "us", "plain")
    printed = capsys.readouterr().out
    assert "plain, seed 0" in printed
    assert "us, seed 0" not in printed
    assert "us-0.csv: kept from an earlier call" in printed.replace("\n", "")
    assert (tmp_path / "us-0.csv").read_text() == before
    # The same command again gives the same numbers.
    (tmp_path / "us-0.csv").unlink()
    compare(tmp_path, "us")
    first, second = before.splitlines(), (tmp_path / "us-0.csv").read_text().splitlines()
    latency = first[0].split(",").index("latency_ms")
    for a, b in zip(first[1:], second[1:], strict=True):
        pairs = enumerate(zip(a.split(","), b.split(","), strict=True))
        assert all(x == y for column, (x, y) in pairs if column != latency)


def test_all_methods_at_the_same_levels(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    at = [*STRUCTURED, "--alphas", "0.5", "0"]
    compare(tmp_path, "plain", "bits-4", arguments=at)
    for method in ("plain", "bits-4"):
        # Half of the way from 3 to 8 bits is a level of its own.
        assert [point.alpha for point in read_csv(tmp_path / f"{method}-0.csv")] == pytest.approx(
            [0.0, 0.5] if method == "plain" else [1 / 6, 0.5]
        )
    with pytest.raises(ValueError, match=r"alpha=1.5 is not in \[0, 1\]"):
        compare(tmp_path, "us", arguments=[*STRUCTURED, "--alphas", "1.5"])
    assert not (tmp_path / "us-0.csv").exists()


def test_an_unknown_method_is_refused_before_any_run(tmp_path):
    with pytest.raises(ValueError, match="method 'best' is not known"):
        compare(tmp_path, "plain", "best")
    assert not list(tmp_path.iterdir())


def test_a_file_of_something_else_is_refused(tmp_path):
    (tmp_path / "us-0.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"us-0.csv holds no curve"):
        compare(tmp_path, "us")


def methods_of(recipe):
    """The methods that a recipe names."""
    named = re.findall(r"^#\s+(paper-.*|us.*)$", recipe.read_text(), re.MULTILINE)
    return {word for line in named for word in line.split() if not word.startswith(("--", "\\"))}


# One method is enough for a recipe, and one recipe for a method.
METHODS = ("paper-structured-point", "paper-unstructured-line", "paper-quantized-point")


@pytest.mark.parametrize(
    ("recipe", "method"),
    [pytest.param(r, m, id=f"{r.stem}-{m}") for r, m in zip(RECIPES, itertools.cycle(METHODS))],
)
def test_the_papers_recipes(tmp_path, monkeypatch, recipe, method):
    """The curve at its two ends only."""
    made = LCSCallback.method
    ends = {"alphas": 2, "recalibration": {"levels": 2, "images": 4}}
    monkeypatch.setattr(LCSCallback, "method", lambda name, **options: made(name, **options, **ends))
    large = "imagenet" in recipe.stem
    pixels = 64 if large else 32
    create = timm.create_model
    # A hundred million weights of linear layers say no more about a recipe than one million.
    smaller = {"mlp_ratio": 1 / 64} if recipe.stem == "imagenet_vgg19" else {}
    monkeypatch.setattr(timm, "create_model", lambda name, **options: create(name, **options, **smaller))
    fake = datasets.FakeData(4, (3, pixels, pixels), 1000 if large else 10, transforms.ToTensor())
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lightning_lcs.data.VisionDataModule._make", lambda self, train, download: fake)
    tensors = torch.utils.data.TensorDataset(torch.stack([x for x, _ in fake]), torch.tensor([y for _, y in fake]))
    monkeypatch.setattr(
        "lightning_lcs.data.FashionMNISTDataModule.setup",
        lambda self, stage: self._sets.update(train=tensors, test=tensors),
    )
    workers = [] if "fashion" in recipe.stem else ["--data.init_args.num_workers=0"]
    arguments = ["--config", str(recipe), *SHORT, *workers, "--data.init_args.batch_size=2"]
    compare(tmp_path, method, arguments=arguments)
    curve = read_csv(tmp_path / f"{method}-0.csv")
    assert [point.alpha for point in curve] == pytest.approx([1 / 6 if "quantized" in method else 0.0, 1.0])
    assert "fashion" in recipe.stem or set(METHODS) <= methods_of(recipe)
    assert sys.path[0] == str(EXAMPLES)
