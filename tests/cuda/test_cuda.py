"""On a CUDA device: the same as on the processor, with nothing left behind on either, and no waiting in a step."""

import copy
import warnings

import numpy as np
import pytest
import timm
import torch
from torch import nn

from lightning_lcs import LCSCallback, SubspaceModel
from lightning_lcs.functional.sparsity import largest_mask, largest_masks, zero_count
from tests.helpers import BATCH_NORM_WARNING, relative, scramble
from tests.integration.support import Module, Net, digits, lcs, loader, trainer

pytestmark = [pytest.mark.cuda, pytest.mark.filterwarnings(BATCH_NORM_WARNING)]

# The same sums in another order, layer after layer.
SAME = 1e-4
MODES = ["structured", "unstructured", "quantized"]
KINDS = [(mode, subspace) for mode in MODES for subspace in ("point", "line")]
NETWORKS = {
    "resnet10t": lambda: timm.create_model("resnet10t", num_classes=10),
    "vit": lambda: timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, num_classes=10, embed_dim=48, num_heads=3
    ),
    "mobilenetv3": lambda: timm.create_model("mobilenetv3_small_050", num_classes=10),
}


def images(count=4, pixels=32):
    return torch.randn(count, 3, pixels, pixels, generator=torch.Generator().manual_seed(1))


def subspace_of(name, mode, subspace, norm="keep"):
    torch.manual_seed(0)
    pixels = 32 if norm == "keep" else 64  # an instance needs more than one value
    return SubspaceModel(scramble(NETWORKS[name]()), images(2, pixels), mode=mode, subspace=subspace, norm=norm)


def pair(name, mode, subspace, norm="keep"):
    """The same subspace on both devices, with an endpoint 0 of its own."""
    here, there = subspace_of(name, mode, subspace, norm), subspace_of(name, mode, subspace, norm).cuda()
    for model in (here, there):
        with torch.no_grad():
            for first, second in model.endpoint_pairs():
                first.copy_(second * 1.1)
    return here, there


@pytest.mark.parametrize(("mode", "subspace"), KINDS)
@pytest.mark.parametrize("name", list(NETWORKS))
def test_levels_are_those_of_the_processor(name, mode, subspace):
    here, there = pair(name, mode, subspace)
    if mode == "quantized":
        ranges_of(here, images())
        there.load_subspace_state(here.subspace_state())
    here.eval(), there.eval()
    with torch.no_grad():
        for alpha in (0.0, 0.4, 1.0):
            here.set_alpha(alpha), there.set_alpha(alpha)
            found, expected = there(images().cuda()), here(images())
            assert found.device.type == "cuda"
            # Rounding to a grid turns the last digit into a step of it: few inputs, but whole steps.
            assert relative(found.cpu(), expected) < (0.05 if mode == "quantized" else SAME)
            alone = there.materialize(alpha).cuda()
            assert relative(alone(images().cuda()).cpu(), found.cpu()) < (0.05 if mode == "quantized" else SAME)


def ranges_of(model, x):
    model.train()
    for alpha in sorted({model.mode.snap(alpha) for alpha in (0.0, 0.4, 1.0)}):
        with model.runner.training_level(alpha), torch.no_grad():
            model(x)


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize(("mode", "subspace"), KINDS)
def test_gradients_are_those_of_the_processor(mode, subspace, direct):
    here, there = pair("resnet10t", mode, subspace)
    x, y = images(8), torch.arange(8)
    for model, device in ((here.double(), "cpu"), (there.double(), "cuda")):
        model.train()
        for alpha in (0.0, 0.4, 1.0):
            with model.runner.training_level(alpha, direct=direct):
                loss = nn.functional.cross_entropy(model(x.to(device).double()), y.to(device))
                if not direct:
                    loss.backward()
            if direct:
                loss.backward()
    found, expected = [], []
    for (name, ours), (_, theirs) in zip(there.named_parameters(), here.named_parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), name
        if ours.grad is not None:
            assert ours.grad.device.type == "cuda"
            found.append(ours.grad.cpu().flatten())
            expected.append(theirs.grad.flatten())
            if mode != "quantized":
                assert (found[-1] - expected[-1]).abs().max() < 1e-6 * expected[-1].abs().max().clamp_min(1e-6), name
    # A tie rounded to the other side changes all that comes after it: with the formula of either device on the
    # processor, of all gradients together by 0.02 of their length, and once by 0.18. A level left out changes 0.34.
    difference = torch.cat(found) - torch.cat(expected)
    assert difference.norm() < 0.3 * torch.cat(expected).norm()


@pytest.mark.parametrize("mode", ["structured", "unstructured"])
@pytest.mark.parametrize("norm", ["instance", "group"])
def test_norms_without_statistics(norm, mode):
    here, there = (model.double().train() for model in pair("resnet10t", mode, "line", norm))
    x, y = images(8, 64).double(), torch.arange(8)
    for alpha in (0.0, 0.4, 1.0):
        losses = []
        for model in (here, there):
            device = next(model.parameters()).device
            with model.runner.training_level(alpha):
                loss = nn.functional.cross_entropy(model(x.to(device)), y.to(device))
                loss.backward()
            losses.append(loss.item())
        assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    for (name, ours), (_, theirs) in zip(there.named_parameters(), here.named_parameters(), strict=True):
        if theirs.grad is not None:
            difference = (ours.grad.cpu() - theirs.grad).abs().max()
            assert difference < 1e-6 * theirs.grad.abs().max().clamp_min(1e-6), name


@pytest.fixture
def no_waiting():
    """Sets that torch refuses to wait for the device, and takes it back."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")
        yield lambda: torch.cuda.set_sync_debug_mode("error")
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["resnet10t", "vit"])
def test_a_step_never_waits_for_the_device(name, mode, no_waiting):
    """Nothing is read back to Python: torch refuses it here."""
    model = subspace_of(name, mode, "line").cuda().train()
    x, y = images(8).cuda(), torch.arange(8).cuda()

    def step():
        for alpha in (0.0, 0.3, 0.6):
            with model.runner.training_level(alpha):
                nn.functional.cross_entropy(model(x), y).backward()
        with model.runner.training_level(1.0, direct=True):
            loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()

    step()
    torch.cuda.synchronize()
    no_waiting()
    step()


@pytest.mark.parametrize("mode", MODES)
def test_recalibration_and_evaluation_wait_for_the_first_batch_alone(mode, no_waiting):
    model, x = subspace_of("resnet10t", mode, "line").cuda(), images(8).cuda()
    with torch.no_grad(), model.collecting() as collector:
        for batch in range(2):
            for alpha in (0.0, 0.3, 0.6):
                collector.alpha = alpha
                model(x)
            if batch == 0:
                no_waiting()
        model.statistics = {model.mode.snap(alpha): tensors for alpha, tensors in collector.averages().items()}
    torch.cuda.set_sync_debug_mode("default")
    model.eval().set_alpha(0.3)
    with torch.no_grad():
        model(x)
        no_waiting()
        model(x)


def test_the_refusal_of_waiting_works(no_waiting):
    no_waiting()
    with pytest.raises(RuntimeError, match="synchronizing"):
        torch.ones(3, device="cuda").sum().item()


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize(("mode", "subspace"), KINDS)
def test_the_trainer(tmp_path, mode, subspace, precision):
    """A fit, its curve, its checkpoint, opened again without a device."""
    module, callback = Module(), lcs(mode=mode, subspace=subspace)
    run = trainer(tmp_path, callback, accelerator="gpu", devices=1, precision=precision, max_epochs=2)
    run.fit(module, loader(digits(0, 64)), loader(digits(100, 40)))
    run.save_checkpoint(tmp_path / "model.ckpt")
    assert len(callback.curve) == 3 if mode != "quantized" else callback.curve
    assert all(np.isfinite(list(point.metrics.values())).all() for point in callback.curve)
    assert all(point.latency_ms > 0 for point in callback.curve)
    opened = SubspaceModel.from_checkpoint(tmp_path / "model.ckpt", Module()).eval()
    assert {p.device.type for p in opened.parameters()} == {"cpu"}
    held = [*opened.statistics.values(), *opened.ranges.values()]
    assert {value.device.type for level in held for value in level.values()} <= {"cpu"}
    x = torch.stack([image for image, _ in digits(100, 40)])
    labels = torch.tensor([int(label) for _, label in digits(100, 40)])
    for point in callback.curve:
        opened.set_alpha(point.alpha)
        with torch.no_grad():
            accuracy = (opened(x).argmax(1) == labels).float().mean().item()
        # Of 40 images; lower precision, and steps of a grid, may turn one or two.
        assert point.metrics["val_acc"] == pytest.approx(accuracy, abs=0.0501)
    # Trained further from there, on the device.
    again = lcs(mode=mode, subspace=subspace)
    longer = trainer(tmp_path, again, accelerator="gpu", devices=1, precision=precision, max_epochs=3)
    longer.fit(Module(), loader(digits(0, 64)), loader(digits(100, 40)), ckpt_path=tmp_path / "model.ckpt")
    assert longer.global_step == 12


@pytest.mark.parametrize("sampler", ["sandwich", "uniform"])
def test_two_trainings_give_the_same_weights(tmp_path, sampler):
    def trained(accelerator):
        torch.manual_seed(0)
        module = Module(lr=0.01)
        options = {"accelerator": accelerator, "devices": 1}
        trainer(tmp_path, lcs(sampling={"sampler": sampler}, seed=3), **options).fit(
            module, loader(digits(0, 64)), loader(digits(100, 40))
        )
        return module.state_dict()

    ours, theirs = trained("gpu"), trained("cpu")
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name].cpu(), value, rtol=1e-3, atol=1e-4, msg=name)


def test_a_network_for_one_width(tmp_path):
    """Trained there, it validates as well as trained here: the network of the steps is that of the statistics."""

    def accuracy(accelerator):
        torch.manual_seed(0)
        callback = LCSCallback.method("width-0.5", seed=0)
        module = Module(Net(first=16, second=32))
        run = trainer(tmp_path, callback, accelerator=accelerator, devices=1, max_epochs=12)
        run.fit(module, loader(digits(0, 1024), 32, drop_last=True), loader(digits(1024, 512)))
        return callback.curve[0].metrics["val_acc"]

    # Of 512 images.
    assert accuracy("gpu") == pytest.approx(accuracy("cpu"), abs=0.03)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("count", [5, 1000, 40_000, 300_000])
def test_masks_are_those_of_the_processor(dtype, count):
    generator = torch.Generator().manual_seed(count)
    continuous = torch.randn(count, generator=generator).to(dtype)
    for weight in (continuous, continuous.round(), torch.zeros(count, dtype=dtype), -continuous.abs()):
        for sparsity in (0.0, 0.3, 0.5, 0.975):
            mask = largest_mask(weight.cuda(), sparsity)
            assert mask.device.type == "cuda"
            assert int((mask == 0).sum()) == zero_count(count, sparsity)
            assert torch.equal(mask.cpu(), largest_mask(weight, sparsity))
    halves = dict(enumerate(continuous.chunk(2)))
    together = largest_masks({str(k): v.cuda() for k, v in halves.items()}, 0.6)
    for name, expected in largest_masks({str(k): v for k, v in halves.items()}, 0.6).items():
        assert torch.equal(together[name].cpu(), expected)


def test_nan_is_refused_where_a_level_is_set():
    """Not in a step of training, which would wait for it: there the loss tells."""
    model = subspace_of("resnet10t", "unstructured", "point").cuda().eval()
    with torch.no_grad():
        next(p for p in model.module.layer1.parameters() if p.ndim == 4).view(-1)[3] = torch.nan
    model.set_alpha(0.3)
    with pytest.raises(ValueError, match="NaN"), torch.no_grad():
        model(images().cuda())


@pytest.mark.parametrize("mode", MODES)
def test_files_of_a_model_on_the_device(tmp_path, mode):
    """Saved from there, loaded here and moved there: the same results, and levels can be set anywhere."""
    model = subspace_of("resnet10t", mode, "line").cuda()
    if mode == "quantized":
        ranges_of(model, images().cuda())
        for alpha in model.runner.ranges:
            model.statistics.setdefault(alpha, {})
    model.eval()
    model.save(tmp_path / "model.lcs", levels=[0.0, 0.4, 1.0] if mode != "quantized" else None)
    network = None if mode == "structured" else NETWORKS["resnet10t"]()
    loaded = SubspaceModel.load(tmp_path / "model.lcs", network)
    assert {p.device.type for p in loaded.parameters()} == {"cpu"}
    moved = copy.deepcopy(loaded).cuda()
    with torch.no_grad():
        for alpha in (0.0, 0.4, 1.0):
            for each in (model, loaded, moved):
                each.set_alpha(alpha)
            expected = model(images().cuda()).cpu()
            assert relative(loaded(images()), expected) < (0.05 if mode == "quantized" else SAME)
            assert relative(moved(images().cuda()).cpu(), expected) < (0.05 if mode == "quantized" else SAME)
        # And back.
        moved.cpu()
        moved.set_alpha(0.0)
        loaded.set_alpha(0.0)
        assert relative(moved(images()), loaded(images())) < SAME


def test_exports_of_a_model_on_the_device(tmp_path):
    pytest.importorskip("onnxruntime")
    from lightning_lcs.export.onnx import export_onnx

    model = subspace_of("resnet10t", "structured", "line").cuda().eval()
    with torch.no_grad():
        model(images(1).cuda())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        export_onnx(model, tmp_path, [0.0, 1.0])  # compares each file with the level
    assert (tmp_path / "levels.onnx").exists()
    assert {p.device.type for p in model.parameters()} == {"cuda"}


def test_a_compiled_network(tmp_path):
    module, callback = Module(), lcs()
    module.net.compile()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer(tmp_path, callback, accelerator="gpu", devices=1).fit(
            module, loader(digits(0, 64)), loader(digits(100, 40))
        )
    assert len(callback.curve) == 3
