"""What a level costs once deployed: several levels in one ONNX file, integers, sparse weights; one thread, one image.

All as ratios of medians, with the contenders interleaved. docs/export.md has what these print.
"""

import copy

import numpy as np
import onnx
import pytest
import timm
import torch

from lightning_lcs import Quantized, SubspaceModel, Unstructured
from lightning_lcs.export.int8_onnx import export_int8
from lightning_lcs.export.int8_torch import int8_network
from lightning_lcs.export.onnx import export_onnx, onnx_of, session
from lightning_lcs.export.sparse import save_sparse
from lightning_lcs.export.sparse_layers import use_sparse_layers
from tests.benchmarks.timing import images, medians

pytestmark = [pytest.mark.benchmark, pytest.mark.filterwarnings("ignore")]
SIZE = 224
RESNET, VIT, MOBILENET = "resnet18", "vit_tiny_patch16_224", "mobilenetv3_large_100"


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def runner(opened, x, **feed):
    feed[opened.get_inputs()[0].name] = x.numpy()
    return lambda: opened.run(None, feed)


@pytest.mark.parametrize("name", [RESNET, VIT])
def test_one_file_of_several_levels(name, tmp_path):
    x = images(1, 3, SIZE)
    model = SubspaceModel(timm.create_model(name), images(2, 3, SIZE), subspace="point").eval()
    model.recalibrate([images(4, 3, SIZE)], [0.0])
    *singles, several = export_onnx(model, tmp_path, [0.0, 1.0])
    size = several.size_bytes / singles[-1].size_bytes
    opened = session(several.path)
    worst = 0.0
    for number, single in enumerate(singles):
        level = {"level": np.array(number, np.int64)}
        contenders = {"several": runner(opened, x, **level), "alone": runner(session(single.path), x)}
        times = medians(contenders, 60)
        ratio = times["several"] / times["alone"]
        worst = max(worst, ratio)
        print(f"\n{name}, alpha {single.alphas[0]:g}: in the file of two levels / alone {ratio:.3f}, size {size:.4f}")
    assert size <= 1.01
    assert worst <= 1.05  # 1.02 is wished for, and 1.00 to 1.04 is reached


# 0.33 is wished for resnet18, and 0.33 to 0.34 is reached.
@pytest.mark.parametrize(("name", "limit"), [(RESNET, 0.4), (VIT, 0.66), (MOBILENET, None)])
def test_integers(name, limit, tmp_path):
    x = images(1, 3, SIZE)
    network = timm.create_model(name).eval()
    model = SubspaceModel(network, mode=Quantized(), subspace="point").eval()
    model.recalibrate([images(4, 3, SIZE)], [1.0])
    file = export_int8(model, tmp_path / "int8.onnx", images(4, 3, SIZE), min_agreement=0.0)
    onnx.save(onnx_of(model, network), tmp_path / "float.onnx")
    contenders = {"int8": runner(session(file.path), x), "float": runner(session(tmp_path / "float.onnx"), x)}
    times = medians(contenders, 40)
    ratio = times["int8"] / times["float"]
    size = file.size_bytes / (tmp_path / "float.onnx").stat().st_size
    print(f"\n{name}: int8 / fp32 in onnxruntime {ratio:.3f}, size {size:.3f}")
    assert limit is None or ratio <= limit


@pytest.mark.parametrize(("name", "limit"), [(RESNET, 0.33), (VIT, 0.66), (MOBILENET, None)])
def test_integers_in_torch(name, limit):
    x = images(1, 3, SIZE)
    network = timm.create_model(name).eval()
    model = SubspaceModel(network, mode=Quantized(), subspace="point").eval()
    model.recalibrate([images(4, 3, SIZE)], [1.0])
    integers = int8_network(model, images(4, 3, SIZE), min_agreement=0.0).module
    compiled = {"int8": torch.compile(integers), "float": torch.compile(network)}
    with torch.no_grad(), torch._inductor.config.patch(freezing=True):
        times = medians({kind: lambda run=run: run(x) for kind, run in compiled.items()}, 40)
    ratio = times["int8"] / times["float"]
    print(f"\n{name}: int8 / fp32, both compiled by torch {ratio:.3f}")
    assert limit is None or ratio <= limit


@pytest.mark.parametrize("sparsity", [0.8, 0.9, 0.95, 0.975])
@pytest.mark.parametrize("name", [RESNET, "resnet50", VIT, MOBILENET])
def test_sparse_weights(name, sparsity, tmp_path):
    x = images(1, 3, SIZE)
    model = SubspaceModel(timm.create_model(name), mode=Unstructured(max_sparsity=sparsity), subspace="point").eval()
    dense = model.materialize(0.0).eval()
    sparse = copy.deepcopy(dense)
    with torch.inference_mode():
        choices = use_sparse_layers(sparse, x)
        times = medians({"sparse": lambda: sparse(x), "dense": lambda: dense(x)}, 30)
    ratio = times["sparse"] / times["dense"]
    shares = []
    for values in ("float32", "int8"):
        file = save_sparse(model, tmp_path / values, values=values)
        shares.append(file.size_bytes / file.dense_bytes)
    chosen = sum(choice.sparse for choice in choices)
    print(
        f"\n{name}, sparsity {sparsity}: {chosen} of {len(choices)} layers sparse, time {ratio:.3f} of dense, file "
        f"{shares[0]:.3f} of dense fp32, {shares[1]:.3f} with int8 values"
    )
    assert ratio <= 1.1
