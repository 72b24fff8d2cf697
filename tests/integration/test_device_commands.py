"""inspect, levels, materialize and bench, as they are typed."""

import subprocess
import sys

import pytest
import torch

from lightning_lcs import SubspaceModel
from lightning_lcs.cli.main import main
from tests.helpers import Mlp


@pytest.fixture
def file(tmp_path):
    model = SubspaceModel(Mlp(), torch.randn(2, 6), subspace="line")
    model.save(tmp_path / "model.lcs", levels={"little": 0.1, "[bold]large": 1.0}, class_names=list("abcd"))
    return tmp_path / "model.lcs"


def test_inspect_names_what_is_in_it(file, capsys):
    main(["inspect", str(file)])
    printed = capsys.readouterr().out
    assert "checksums  right" in printed
    assert "little, [bold]large" in printed
    assert "4: a, b, c, d" in printed


def test_levels_prints_a_row_for_each(file, capsys):
    main(["levels", str(file)])
    printed = capsys.readouterr().out
    assert "little" in printed
    assert "[bold]large" in printed
    assert "0.325" in printed


@pytest.mark.parametrize("which", [["--alpha", "0.1"], ["--level", "little"]])
def test_materialize_writes_a_file_of_one_level(file, tmp_path, capsys, which):
    main(["materialize", str(file), *which, "--output", str(tmp_path / "one.lcs")])
    assert "level 'little', alpha=0.1," in capsys.readouterr().out
    net, one, x = SubspaceModel.load(file), SubspaceModel.load(tmp_path / "one.lcs"), torch.randn(3, 6)
    net.set_level("little")
    assert torch.allclose(net(x), one(x), rtol=1e-5, atol=1e-6)


def test_bench_names_the_machine(file, capsys):
    main(["bench", str(file), "--repeats", "2"])
    printed = capsys.readouterr().out
    assert "little" in printed
    assert "torch" in printed


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["inspect", "none.lcs"], "does not exist"),
        (["levels", __file__], "not a lightning-lcs file"),
        (["materialize", "FILE"], "either --alpha or --level"),
        (["materialize", "FILE", "--level", "huge"], "the levels are 'little'"),
        (["materialize", "FILE", "--alpha", "7"], "alpha=7"),
        (["bench", "FILE", "--repeats", "0"], "at least 1"),
    ],
)
def test_errors_are_one_sentence(file, tmp_path, monkeypatch, capsys, args, message):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(SystemExit) as ended:
        main([str(file) if arg == "FILE" else arg for arg in args])
    assert ended.value.code == 1
    assert message in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


def test_the_commands_import_neither_lightning_nor_timm(file):
    code = (
        "import sys; from lightning_lcs.cli.main import main\n"
        f"main(['inspect', {str(file)!r}]); main(['levels', {str(file)!r}])\n"
        "heavy = {'lightning', 'pytorch_lightning', 'timm', 'wandb', 'torchmetrics'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
