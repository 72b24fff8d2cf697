"""A training step at several levels: the update, and what the user sees of it."""

import copy
import warnings

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.utils.data import DataLoader

from lightning_lcs import LCSCallback, SubspaceModel
from lightning_lcs.functional.sampling import SAMPLERS, step_generator
from lightning_lcs.subspace.running.level_runner import LevelRunner
from lightning_lcs.training.step.split_batch import spread
from tests.integration.support import Module, Net, digits, group_norm, lcs, loader, trainer

# Three steps in float32 against the same sums in another order, relative to the largest entry of each tensor.
UPDATE_TOLERANCE = 1e-5
# One update in bfloat16 or float16 against float32: few bits, but far from a level left out or counted twice.
HALF_TOLERANCE = 0.15
# Where only the training steps matter.
no_curve = pytest.mark.filterwarnings("ignore:no validation data. the accuracy-efficiency curve:UserWarning")


def squared_cosine(model):
    """Of the weights on the line, or of scales and shifts where these alone are (arXiv 2110.04252)."""
    pairs = model.endpoint_pairs()
    pairs = [pair for pair in pairs if pair[0].ndim > 1] or pairs
    w0 = torch.cat([a.flatten() for a, _ in pairs])
    w1 = torch.cat([b.flatten() for _, b in pairs])
    return (w0 @ w1 / (w0.norm() * w1.norm())) ** 2


# The weights of the losses of three levels, in ascending order.
WEIGHTS = {
    "full_half": (0.25, 0.25, 0.5),
    "mean": (1 / 3, 1 / 3, 1 / 3),
    "sum": (1, 1, 1),
    "full_plus_mean": (0.5, 0.5, 1),
}


def by_hand(net, batches, lr, accumulate, sampler, beta, seed, options, weights=WEIGHTS["full_half"]):
    """The weights after training on a weighted sum of the levels' losses, by autograd through every slice."""
    model = SubspaceModel(copy.deepcopy(net), **options, seed=seed).train()
    optimizer = torch.optim.SGD(model.parameters(), lr)
    for index, (images, labels) in enumerate(batches):
        total = torch.zeros(())
        for alpha, weight in zip(SAMPLERS[sampler](step_generator(seed, index), 3), weights, strict=True):
            with model.at_alpha(alpha):
                total = total + weight * nn.functional.cross_entropy(model(images), labels)
        if options["subspace"] == "line":
            total = total + beta * squared_cosine(model)
        (total / accumulate).backward()
        if (index + 1) % accumulate == 0 or index + 1 == len(batches):
            optimizer.step()
            optimizer.zero_grad()
    return dict(model.module.named_parameters())


@no_curve
@pytest.mark.parametrize(
    ("options", "accumulate", "sampler", "beta", "norm"),
    [
        ({"subspace": "point"}, 1, "sandwich", 1.0, nn.BatchNorm2d),
        ({"subspace": "line"}, 1, "sandwich", 1.0, nn.BatchNorm2d),
        ({"subspace": "line", "line": {"parameters": "all"}}, 1, "sandwich", 1.0, nn.BatchNorm2d),
        (
            {"subspace": "line", "line": {"parameters": "all", "start": "independent"}},
            2,
            "sandwich",
            3.0,
            group_norm,
        ),
        ({"subspace": "point"}, 2, "sandwich", 1.0, nn.BatchNorm2d),
        ({"subspace": "line"}, 2, "uniform", 0.0, nn.BatchNorm2d),
    ],
    ids=["point", "line-norm", "line-all", "line-all-accumulate", "point-accumulate", "line-uniform-accumulate"],
)
@pytest.mark.parametrize("reduction", list(WEIGHTS))
def test_update_is_that_of_the_weighted_losses(tmp_path, train, options, accumulate, sampler, beta, norm, reduction):
    net = Net(norm)
    expected = by_hand(net, list(train), 0.1, accumulate, sampler, beta, 5, options, WEIGHTS[reduction])
    module = Module(net)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    line = {**options.get("line", {}), "diversity_weight": beta}
    how = {"sampling": {"sampler": sampler}, "loss": {} if reduction == "full_half" else {"reduction": reduction}}
    callback = lcs(**{**options, **how, "line": line}, seed=5)
    trainer(tmp_path, callback, accumulate_grad_batches=accumulate, limit_val_batches=0).fit(module, train, train)
    after = dict(net.named_parameters())
    assert after.keys() == expected.keys()
    for name, value in after.items():
        scale = expected[name].abs().max()
        assert (value - expected[name]).abs().max() <= UPDATE_TOLERANCE * scale, name
    assert any(not torch.equal(after[name], value) for name, value in before.items())


@no_curve
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("reduction", list(WEIGHTS))
def test_update_on_a_split_batch(tmp_path, train, reduction, accumulate):
    net, seed = Net(), 5
    model = SubspaceModel(copy.deepcopy(net), subspace="point").train()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for index, (images, labels) in enumerate(train):
        alphas = SAMPLERS["sandwich"](step_generator(seed, index), 3)
        rows = spread(len(labels), (0.2, 0.2, 0.6))
        # The mean is that of the samples.
        weights = [len(own) / len(labels) for own in rows] if reduction == "mean" else WEIGHTS[reduction]
        for alpha, weight, own in zip(alphas, weights, rows, strict=True):
            with model.at_alpha(alpha):
                loss = nn.functional.cross_entropy(model(images[own]), labels[own])
            (weight * loss / accumulate).backward()
        if (index + 1) % accumulate == 0 or index + 1 == len(train):
            optimizer.step()
            optimizer.zero_grad()
    sampling = {"sampler": "sandwich", "split": True}
    callback = lcs(subspace="point", seed=seed, sampling=sampling, loss={"reduction": reduction})
    module = Module(copy.deepcopy(net))
    trainer(tmp_path, callback, accumulate_grad_batches=accumulate, limit_val_batches=0).fit(module, train)
    for (name, value), expected in zip(module.net.named_parameters(), model.module.parameters(), strict=True):
        assert (value - expected).abs().max() <= UPDATE_TOLERANCE * expected.abs().max(), name


@no_curve
@pytest.mark.parametrize("kind", [list, dict])
def test_a_split_batch_of_two_loaders_divides_each_of_theirs(tmp_path, kind):
    """Two loaders of different batch sizes, of which the second has no labels."""
    seen = []

    class TwoLoaders(Module):
        def training_step(self, batch, batch_idx):
            (images, labels), (more, _) = batch.values() if isinstance(batch, dict) else batch
            seen.append((len(images), len(labels), len(more)))
            return self.loss(self.net(images), labels) + self.net(more).square().mean()

    loaders = [loader(digits(0, 20), 10), loader(digits(20, 80), 40)]
    given = loaders if kind is list else dict(zip(("labeled", "more"), loaders, strict=True))
    sampling = {"split": [0.4, 0.6], "sampler": "weighted"}
    run = trainer(tmp_path, lcs(subspace="point", sampling=sampling), limit_val_batches=0)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*levels")
        run.fit(TwoLoaders(), given)
    assert seen[:4] == [(4, 4, 16), (6, 6, 24)] * 2


@no_curve
def test_a_batch_that_is_too_small_to_split_runs_whole_at_each_level(tmp_path, train):
    few = [[images[:5], labels[:5]] for images, labels in train]
    modules = []
    for sampling in ({"sampler": "sandwich", "split": True}, {"alphas_per_step": 3}):
        torch.manual_seed(0)
        modules.append(Module())
        run = trainer(tmp_path, lcs(subspace="point", sampling=sampling), limit_val_batches=0, limit_train_batches=3)
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            run.fit(modules[-1], DataLoader(few, batch_size=None))
        told = [
            each for each in found if "not divided over 3 levels: its first tensor gives 5 samples" in str(each.message)
        ]
        assert len(told) == bool(sampling.get("split"))
    for one, other in zip(modules[0].parameters(), modules[1].parameters(), strict=True):
        assert torch.equal(one, other)


@no_curve
def test_once_it_is_not_known_what_samples_are_no_batch_is_divided(tmp_path):
    """One batch holds as many boxes as images by chance."""
    seen = []

    class Boxes(Module):
        def training_step(self, batch, batch_idx):
            seen.append((len(batch["image"]), len(batch["box"])))
            return self.net(batch["image"]).square().mean()

    batches = [{"image": torch.randn(8, 1, 8, 8), "box": torch.zeros(count, 4)} for count in (11, 8)]
    sampling = {"split": [0.5, 0.5], "sampler": "weighted"}
    run = trainer(tmp_path, lcs(subspace="point", sampling=sampling), limit_val_batches=0)
    with pytest.warns(UserWarning, match="it is not known which of them are samples"):
        run.fit(Boxes(), DataLoader(batches, batch_size=None))
    assert seen[:4] == [(8, 11)] * 2 + [(8, 8)] * 2


@no_curve
def test_what_is_shown_of_the_loss_is_that_of_alpha_1(tmp_path, train):
    """With either reduction, and with a term on the endpoints: the value at the first step is the plain one's."""

    class Shown(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.loss = outputs["loss"].item()

    net, shown = Net(group_norm), Shown()
    images, labels = next(iter(train))
    expected = nn.functional.cross_entropy(net(images), labels).item()
    options = {"line": {"parameters": "all", "diversity_weight": 1.0}}
    for callback in (lcs(**options), lcs(**options, loss={"reduction": "sum"}), lcs(subspace="point")):
        run = trainer(tmp_path, callback, shown, limit_train_batches=1, limit_val_batches=0)
        run.fit(Module(copy.deepcopy(net)), train, train)
        assert shown.loss == pytest.approx(expected, rel=UPDATE_TOLERANCE)


@no_curve
def test_an_infinite_loss_is_shown_as_such(tmp_path, train):
    class Overflowing(Module):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) * torch.inf

    class Shown(Callback):
        def on_train_batch_end(self, trainer, module, outputs, *_):
            assert outputs["loss"] == torch.inf
            assert not module.net.head.weight.grad.isfinite().any()

    trainer(tmp_path, lcs(), Shown(), max_steps=1).fit(Overflowing(Net()), train)


@no_curve
def test_the_diversity_term_is_in_the_update(tmp_path, train):
    def trained(weight):
        torch.manual_seed(1)
        module = Module(Net())
        options = {"line": {"parameters": "all", "start": "independent", "diversity_weight": weight}}
        callback = lcs(**options)
        trainer(tmp_path, callback, limit_train_batches=1, limit_val_batches=0).fit(module, train, train)
        return module.net.conv2.weight.detach()

    assert not torch.equal(trained(0.0), trained(1.0))


def recorded_alphas(monkeypatch):
    seen = []
    original = LevelRunner.training_level

    def spy(self, alpha, *gradients, **options):
        seen.append(alpha)
        return original(self, alpha, *gradients, **options)

    monkeypatch.setattr(LevelRunner, "training_level", spy)
    return seen


@no_curve
def test_training_visits_few_levels(tmp_path, train, monkeypatch):
    """On a GPU each new width costs a choice of kernels: by default the levels are those of the statistics."""
    default = LCSCallback()
    drawn = {alpha for step in range(200) for alpha in default.options.alphas(0, step)}
    assert drawn == {number / 24 for number in range(25)} == set(default._upkeep.recalibrator.alphas)
    seen = recorded_alphas(monkeypatch)
    # Few are asked for, or the training is too short to draw each of more levels often enough.
    for sampling, epochs in (({"levels": 4}, 1), ({"levels": None}, 30)):
        seen.clear()
        run = trainer(tmp_path, lcs(sampling=sampling), max_epochs=epochs, limit_val_batches=0)
        run.fit(Module(), train)
        assert len(seen) == 9 * epochs
        assert set(seen) <= {0.0, 1 / 3, 2 / 3, 1.0}
    bits = LCSCallback("quantized", "point").options
    assert [bits.alphas(0, step) for step in range(50)] == [
        [bits.mode.snap(alpha) for alpha in SAMPLERS["uniform_draws"](step_generator(0, step), 1)] for step in range(50)
    ]
    with pytest.raises(
        ValueError, match=r"Sampling\(levels=2\) is neither 0 \(any alpha is drawn\) nor at least 3; use"
    ):
        LCSCallback(sampling={"levels": 2})


@no_curve
def test_alphas_are_the_same_after_a_resume(tmp_path, train, val, monkeypatch):
    seen = recorded_alphas(monkeypatch)
    trainer(tmp_path, lcs(), max_epochs=2, limit_val_batches=0).fit(Module(), train, val)
    uninterrupted = list(seen)
    seen.clear()
    options = {"limit_val_batches": 0, "enable_checkpointing": True}
    first = trainer(tmp_path, lcs(), max_epochs=1, **options)
    first.fit(Module(), train, val)
    trainer(tmp_path, lcs(), max_epochs=2, limit_val_batches=0).fit(
        Module(), train, val, ckpt_path=first.checkpoint_callback.best_model_path
    )
    assert len(uninterrupted) == 2 * 3 * 3
    assert seen == uninterrupted
    assert seen[:3] == SAMPLERS["sandwich"](step_generator(0, 0), 3)
    assert seen[:3] != seen[3:6]


PRECISIONS = {
    "bf16-mixed": lambda: {"precision": "bf16-mixed"},
    "16-mixed": lambda: {
        "plugins": MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=1024.0))
    },
    "64-true": lambda: {"precision": "64-true"},
}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_other_precisions_train_on_all_losses(tmp_path, train, val, precision):
    net = Net(group_norm)
    start = {name: p.detach().clone() for name, p in net.named_parameters()}
    expected = by_hand(net, list(train)[:1], 0.1, 1, "sandwich", 1.0, 0, {"subspace": "point"})
    callback = lcs(subspace="point")
    trainer(tmp_path, callback, limit_train_batches=1, **PRECISIONS[precision]()).fit(Module(net), train, val)
    for name, value in net.named_parameters():
        update, exact = value.detach().double() - start[name], expected[name].detach().double() - start[name]
        assert (update - exact).abs().max() <= HALF_TOLERANCE * exact.abs().max(), name
    assert len(callback.curve) == 3


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true", "bf16-true"])
def test_batch_norm_in_other_precisions(tmp_path, train, val, precision):
    callback = lcs()
    trainer(tmp_path, callback, precision=precision).fit(Module(), train, val)
    assert len(callback.curve) == 3
