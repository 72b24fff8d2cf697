"""``lightning-lcs export``: every registered format, networks of the user's, and formats from a plug-in."""

import numpy as np
import pytest
import torch

from lightning_lcs import SubspaceModel
from lightning_lcs.cli.main import main
from lightning_lcs.export import formats as _formats  # noqa: F401
from lightning_lcs.export import load_bits, load_sparse, register_format
from lightning_lcs.export.images import read_images
from lightning_lcs.export.registry import FORMATS
from tests.helpers import Mlp, scramble


@pytest.fixture
def quantized(tmp_path):
    model = SubspaceModel(scramble(Mlp()), torch.randn(2, 6), mode="quantized", subspace="point").eval()
    model.recalibrate([torch.randn(16, 6)], [model.mode.alpha(bits) for bits in range(3, 9)])
    model.save(tmp_path / "model.lcs")
    return model


def test_bits_of_the_users_own_network(quantized, tmp_path, capsys):
    given = ["--module", "tests.helpers:Mlp", "--alphas", "0", "1", "--output", str(tmp_path / "out")]
    main(["export", str(tmp_path / "model.lcs"), "--format=bits", *given])
    said = capsys.readouterr().out
    assert "of the dense size" in said
    for alpha, level in ((0, quantized.nearest_level(0.0)), (1, 1.0)):
        path = tmp_path / "out" / f"alpha_{alpha}_bits.safetensors"
        assert str(path) in said
        x = torch.randn(3, 6)
        with torch.no_grad():
            assert torch.equal(load_bits(path, Mlp())(x), quantized.materialize(level)(x))


def test_sparse_levels_with_an_option_of_the_format(tmp_path):
    model = SubspaceModel(scramble(Mlp()), torch.randn(2, 6), mode="unstructured", subspace="point").eval()
    model.save(tmp_path / "model.lcs")
    given = ["--module", "tests.helpers:Mlp", "--values", "float16", "--output", str(tmp_path)]
    main(["export", str(tmp_path / "model.lcs"), "--format", "sparse", *given])
    levels = load_sparse(tmp_path / "levels_sparse.safetensors", Mlp())
    assert levels.alphas == (0.0, 0.5, 1.0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_program_of_the_users_own_network(tmp_path):
    model = SubspaceModel(scramble(Mlp()), torch.randn(2, 6), mode="unstructured", subspace="point").eval()
    model.save(tmp_path / "model.lcs")
    given = ["--module", "tests.helpers:Mlp", "--input-shape", "6", "--alphas", "1", "--output", str(tmp_path / "out")]
    main(["export", str(tmp_path / "model.lcs"), "--format", "torch", *given])
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["alpha_1.pt2"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--format", "tflite"], "--format tflite is not known; there are: onnx, torch, int8, bits, sparse"),
        (["--format", "int8"], "--format int8 needs --images"),
        (["--format", "bits", "--module", "tests.helpers"], "should have the form package.module:name"),
        (["--format", "bits", "--module", "tests.helpers:Nothing"], "the module tests.helpers has no 'Nothing'"),
    ],
)
def test_what_is_missing_is_said(quantized, tmp_path, capsys, given, said):
    with pytest.raises(SystemExit) as left:
        main(["export", str(tmp_path / "model.lcs"), "--module", "tests.helpers:Mlp", *given])
    assert left.value.code == 1
    assert said in capsys.readouterr().err


def test_the_help_names_the_formats_and_the_options_of_the_chosen_one(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["export", "--format", "int8", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert f"Formats: {', '.join(FORMATS)}." in said
    assert f"int8: {FORMATS['int8'].summary}." in said
    assert "--min_agreement" in said
    assert "--values" not in said


PLUGIN = """
from lightning_lcs.export import ExportedFile, register_format


@register_format("counts", "the number of parameters of each level")
def write(model, folder, alphas, separator: str = ","):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "counts.txt"
    size = path.write_text(separator.join(str(model.efficiency(alpha).params) for alpha in alphas or [0.0, 1.0]))
    return [ExportedFile(path=path, alphas=(0.0, 1.0), size_bytes=size)]
"""


def test_a_format_of_a_plug_in_in_the_current_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_counting_plugin.py").write_text(PLUGIN)
    model = SubspaceModel(Mlp(), torch.randn(2, 6), subspace="point").eval()
    model.save("model.lcs")
    try:
        given = ["--format", "counts", "--plugin", "my_counting_plugin", "--separator", ";"]
        main(["export", "model.lcs", *given, "--output", "out"])
    finally:
        FORMATS.pop("counts", None)
    counts = [str(model.efficiency(alpha).params) for alpha in (0.0, 1.0)]
    assert (tmp_path / "out" / "counts.txt").read_text() == ";".join(counts)
    assert "counts.txt" in capsys.readouterr().out


def test_a_second_format_of_a_name_is_refused():
    with pytest.raises(
        ValueError, match=r"there is a format 'onnx' already: lightning_lcs\.export\.formats\.write_onnx"
    ):
        register_format("onnx", "mine")(print)


def test_images_from_an_array_and_from_a_folder(tmp_path):
    image = pytest.importorskip("PIL.Image")
    layers = (torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(4, 4, 3), torch.nn.Flatten(), torch.nn.Linear(64, 2))
    model = SubspaceModel(torch.nn.Sequential(*layers), mode="quantized", subspace="point")
    np.save(tmp_path / "images.npy", np.ones((2, 3, 8, 8)))
    torch.save(torch.ones(2, 3, 8, 8), tmp_path / "images.pt")
    for name in ("images.npy", "images.pt"):
        assert torch.equal(read_images(tmp_path / name, model), torch.ones(2, 3, 8, 8))
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(ValueError, match="holds no image file"):
        read_images(folder, model)
    image.new("RGB", (20, 10), (255, 0, 0)).save(folder / "red.png")
    with pytest.raises(ValueError, match="give --input_shape"):
        read_images(folder, model)
    model.set_example_inputs(torch.zeros(2, 3, 8, 8))
    found = read_images(folder, model)
    assert found.shape == (1, 3, 8, 8)
    expected = (torch.tensor([1.0, 0.0, 0.0]) - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor(
        [0.229, 0.224, 0.225]
    )
    torch.testing.assert_close(found[0, :, 4, 4], expected)
    np.save(tmp_path / "flat.npy", np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"shape \(N, C, H, W\), and it holds an array of shape \(2, 3\)"):
        read_images(tmp_path / "flat.npy", model)
