"""``lightning-lcs`` from YAML files: twice in a row, then validation of the checkpoint."""

import csv
import json
import re
import sys
from pathlib import Path

import pytest
import yaml

from lightning_lcs import LCSCallback, Line, Loss, Sampling
from lightning_lcs.cli import main as command_line
from lightning_lcs.cli.main import run as main
from lightning_lcs.cli.recipe import read_recipe

EXAMPLE = Path(__file__).parents[2] / "examples" / "configs" / "structured.yaml"
# What LightningCLI and jsonargparse say about themselves.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:LightningCLI's args parameter is intended:UserWarning"),
    pytest.mark.filterwarnings("ignore:Experiment logs directory .* exists and is not empty:UserWarning"),
]
# The mean over a validation set, by Lightning in float32 at the end of fit and by the curve in float64.
LOSS_TOLERANCE = 1e-5
# Few steps and small images: the command is tested, not the training.
SHORT = [
    "--trainer.max_epochs=1",
    "--trainer.limit_train_batches=2",
    "--trainer.limit_val_batches=1",
    "--trainer.log_every_n_steps=1",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--data.init_args.image_size=16",
    "--data.init_args.batch_size=8",
    "--model.model=test_resnet",
    # Without this the wrapper brings a callback that recalibrates on the whole data set.
    "--trainer.callbacks+=lightning_lcs.LCSCallback",
    "--trainer.callbacks.recalibration.images=16",
    "--trainer.callbacks.recalibration.levels=3",
]

# Everything is made and set up, and no step is taken.
NO_TRAINING = "--trainer.limit_train_batches=0"
QUICK = {"alphas": 3, "recalibration": {"levels": 3, "images": 16}}


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_example_twice_and_then_validated_and_predicting(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["--config", str(EXAMPLE), *SHORT]
    main(["fit", *arguments])
    folder = tmp_path / "runs" / "structured"
    first = rows(folder / "version_0" / "curve.csv")
    assert [round(float(row["width"]), 3) for row in first] == [0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0]
    main(["fit", *arguments])
    second = rows(folder / "version_1" / "curve.csv")
    assert [row["val_acc"] for row in second] == [row["val_acc"] for row in first]
    assert (folder / "version_1" / "config.yaml").exists()
    losses = (folder / "version_1" / "metrics.csv").read_text()
    main(["validate", *arguments, "--ckpt_path", str(folder / "last.ckpt")])
    # A validation takes nothing away from what the training has written.
    assert (folder / "version_1" / "metrics.csv").read_text() == losses
    again = rows(folder / "version_2" / "curve.csv")
    for row, other in zip(again, second, strict=True):
        assert float(row["val_loss"]) == pytest.approx(float(other["val_loss"]), rel=LOSS_TOLERANCE)
    main(["predict", *arguments, "--ckpt_path", str(folder / "last.ckpt"), "--trainer.limit_predict_batches=1"])


@pytest.mark.parametrize(
    ("mode", "axis", "levels"),
    [("unstructured", "sparsity", [0.975, 0.4875, 0.0]), ("quantized", "bit_width", [3, 5, 8])],
)
def test_the_other_modes(tmp_path, monkeypatch, mode, axis, levels):
    monkeypatch.chdir(tmp_path)
    example = EXAMPLE.with_name(f"{mode}.yaml")
    main(["fit", "--config", str(example), *SHORT, f"--trainer.callbacks.mode={mode}", "--trainer.callbacks.alphas=3"])
    found = rows(tmp_path / "runs" / mode / "version_0" / "curve.csv")
    assert [float(row[axis]) for row in found] == pytest.approx(levels)


def config(folder, **model):
    """A user's own file."""
    content = {
        "model": {"model": "test_resnet", "in_chans": 1, "scheduler": "constant", **model},
        "data": {"class_path": "DigitsDataModule", "init_args": {"batch_size": 8, "image_size": 16}},
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": 1,
            "limit_train_batches": 1,
            "limit_val_batches": 1,
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": [{"class_path": "lightning_lcs.LCSCallback", "init_args": QUICK}],
        },
    }
    (folder / "mine.yaml").write_text(yaml.safe_dump(content))
    return str(folder / "mine.yaml")


@pytest.mark.parametrize(
    "mode",
    [
        "structured",
        {"name": "structured", "min_width": 0.25},
        {"min_width": 0.25},
        {"class_path": "lightning_lcs.Structured", "init_args": {"min_width": 0.25}},
        {"class_path": "Structured"},
    ],
    ids=["string", "dict", "bare-dict", "class_path", "short-class_path"],
)
def test_mode_in_yaml(tmp_path, monkeypatch, mode):
    """The callback has the default mode: it refuses a wrapper whose mode was read as anything else."""
    monkeypatch.chdir(tmp_path)
    main(["fit", "--config", config(tmp_path, mode=mode), NO_TRAINING])
    if not isinstance(mode, str):
        other = {**mode, "init_args": {"min_width": 0.5}} if "class_path" in mode else {**mode, "min_width": 0.5}
        with pytest.raises(ValueError, match=r"SubspaceModel mode=Structured\(min_width=0.5\)"):
            main(["fit", "--config", config(tmp_path, mode=other), NO_TRAINING])


def test_a_mode_for_both_wrapper_and_callback(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = config(tmp_path, mode={"class_path": "lightning_lcs.Structured", "init_args": {"min_width": 0.5}})
    content = yaml.safe_load(Path(path).read_text())
    options = content["trainer"]["callbacks"][0]["init_args"]
    options["mode"] = {"class_path": "lightning_lcs.Structured", "init_args": {"min_width": 0.5}}
    Path(path).write_text(yaml.safe_dump(content))
    main(["fit", "--config", path])
    options["mode"] = "structured"
    Path(path).write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match="LCSCallback has mode="):
        main(["fit", "--config", path, NO_TRAINING])


@pytest.mark.parametrize("form", ["options", "json", "yaml"])
def test_groups_of_options(tmp_path, monkeypatch, form):
    monkeypatch.chdir(tmp_path)
    groups = {
        "sampling": {"alphas_per_step": 3, "sampler": "uniform"},
        "loss": {"reduction": "sum"},
        "recalibration": {"images": 16, "levels": [0.0, 0.5]},
    }
    line = {"parameters": "all", "start": "independent"}
    if form == "yaml":
        path = config(tmp_path, line=line, subspace="line")
        content = yaml.safe_load(Path(path).read_text())
        content["trainer"]["callbacks"][0]["init_args"] = {"alphas": 3, **groups}
        Path(path).write_text(yaml.safe_dump(content))
        given = []
    else:
        path = config(tmp_path, subspace="line")
        flat = [("--model.line", line), *((f"--trainer.callbacks.{name}", group) for name, group in groups.items())]
        given = [f"{prefix}={json.dumps(group)}" for prefix, group in flat]
        if form == "options":
            given = [f"{prefix}.{name}={value}" for prefix, group in flat for name, value in group.items()]
    cli = read_recipe(["--config", path, "--seed_everything=0", *given], run=False, save_config_callback=None)
    (callback,) = (found for found in cli.trainer.callbacks if isinstance(found, LCSCallback))
    assert callback.sampling == Sampling(alphas_per_step=3, sampler="uniform")
    assert (callback.loss, callback.recalibration.images) == (Loss(reduction="sum"), 16)
    assert list(callback.recalibration.levels) == [0.0, 0.5]
    assert cli.model.subspace_model.line == Line(parameters="all", start="independent")


@pytest.mark.parametrize(
    ("argument", "match"),
    [
        ("--model.mode=pruned", "pruned"),
        ("--model.line_parameters=all", "line_parameters is now line=Line(parameters=...)"),
        ("--trainer.callbacks.alphas_per_step=3", "alphas_per_step is now sampling=Sampling(alphas_per_step=...)"),
        ("--model.line.parametrs=all", "line has no option 'parametrs' (did you mean 'parameters'?)"),
        ("--model.subspace=curve", "curve"),
        ("--model.scheduler=step", "step"),
        ("--model.momentun=0.9", "--model.momentun=0.9; did you mean model.momentum?"),
        ("--trainer.max_ebochs=9", "--trainer.max_ebochs=9; did you mean trainer.max_epochs?"),
        ("--data=DigitDataModule", "DigitDataModule"),
        ('--model.mode={"name": "structured", "min_widht": 0.5}', "no option 'min_widht'; its options are 'min_width'"),
    ],
)
def test_a_wrong_value_is_named(tmp_path, monkeypatch, capsys, argument, match):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as error:
        command_line.main(["fit", "--config", config(tmp_path), argument])
    said = capsys.readouterr().err.splitlines()[-1]
    assert match in said
    # An option that there is not is a wrong call, a wrong value is not.
    assert error.value.code == (2 if match.startswith(("--", "Digit")) or " is now " in match else 1)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"weight": 2}, "Distillation(weight=2.0) is not in (0, 1]"),
        ({"loss": "features", "modules": ["layer1"], "distance": "l1"}, "Distillation(distance='l1') is not known"),
        ({"loss": "features", "modules": "layer1"}, "Distillation(modules='layer1') is one path; give a list"),
    ],
)
def test_options_of_distillation_are_checked_when_a_file_is_read(tmp_path, monkeypatch, capsys, options, match):
    """A mapping that is no Distillation is not one of the arguments of a tensor that a function might return."""
    monkeypatch.chdir(tmp_path)
    callback = {"class_path": "lightning_lcs.LCSCallback", "init_args": {**QUICK, "loss": {"distillation": options}}}
    path = config(tmp_path)
    content = yaml.safe_load((tmp_path / "mine.yaml").read_text())
    content["trainer"]["callbacks"] = [callback]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(SystemExit) as error:
        command_line.main(["fit", "--config", path, NO_TRAINING])
    assert error.value.code == 1
    # One sentence, without the other types that the option might have had.
    assert f"lightning-lcs: {match}" in capsys.readouterr().err


def test_modules_in_the_current_folder_are_found(tmp_path, monkeypatch):
    """As they are for ``python -m``: the console script itself stands elsewhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    (tmp_path / "its_data.py").write_text("from lightning_lcs.data import DigitsDataModule as Digits\n")
    main(["fit", "--config", config(tmp_path), "--data=its_data.Digits", NO_TRAINING])


def test_help_has_the_options_that_the_docs_name(capsys):
    with pytest.raises(SystemExit) as error:
        main(["fit", "--help"])
    assert error.value.code == 0
    shown = capsys.readouterr().out
    page = (EXAMPLE.parents[2] / "docs" / "command-line.md").read_text()
    named = re.findall(r"^\| `(--[a-z_.]+)` \|", page, re.M)
    assert len(named) == 20
    assert [option for option in named if f" {option} " not in shown and f"[{option} " not in shown] == []


def test_an_error_is_one_sentence_and_debug_shows_where(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    wrong = ["compare", "--methods", "pruned"]
    with pytest.raises(SystemExit) as error:
        command_line.main(wrong)
    assert error.value.code == 1
    said = capsys.readouterr().err
    assert "pruned" in said
    assert "Traceback" not in said
    assert len(said.splitlines()) == 1
    with pytest.raises(ValueError, match="pruned"):
        command_line.main([*wrong, "--debug"])
    # Lightning's own kind of error, too.
    with pytest.raises(SystemExit) as error:
        command_line.main(["fit", "--config", config(tmp_path), "--trainer.devices=-2"])
    assert error.value.code == 1
    said = capsys.readouterr().err
    assert said.splitlines()[-1].startswith("lightning-lcs: `devices`")
    assert "Traceback" not in said


def test_what_there_is(capsys):
    command_line.main([])
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in command_line.COMMANDS)
    assert len(shown.splitlines()) < 40
    with pytest.raises(SystemExit) as error:
        command_line.main(["fitt"])
    assert error.value.code == 2
    assert "'fitt'" in capsys.readouterr().err


def test_the_help_of_own_commands_fits_a_screen(capsys):
    for name, command in command_line.COMMANDS.items():
        if command.home.startswith("fit."):
            continue  # LightningCLI's own help is as long as the trainer has options
        with pytest.raises(SystemExit) as error:
            command_line.main([name, "--help"])
        assert error.value.code == 0
        assert len(capsys.readouterr().out.splitlines()) <= 40, name
