"""Distillation: gradients are those of the loss written by hand, and a step stays what it is otherwise."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_lcs import Distillation, LCSCallback, Loss, SubspaceModel
from lightning_lcs.training.step.distillation import soft_cross_entropy
from tests.integration.support import Module, Net, digits, group_norm, lcs, loader, trainer

pytestmark = pytest.mark.filterwarnings("ignore:no validation data")
# In float64, the same operations in another order.
SAME = 1e-9
IMAGES, LABELS = digits(0, 16).tensors
WEIGHT, TEMPERATURE = 0.3, 2.0
RUN_ON: list[tuple[Tensor, Tensor]] = []  # The batch of every run of a step, which a module's own list would forget.
HALF_LINE = {"sampler": [0.0, 0.5, 1.0]}


class Doubles(Module):
    """One step of gradient descent in float64, with noise on the images as an augmentation."""

    def __init__(self, net: nn.Module | None = None) -> None:
        super().__init__(Net(group_norm) if net is None else net, lr=1.0)
        self.double()

    def training_step(self, batch, batch_idx):
        images, labels = batch
        images = (images + torch.randn_like(images)).double()
        RUN_ON.append((images, labels))
        loss = self.loss(self.net(images), labels)
        self.log("train_loss", loss, on_step=True)
        return loss


def soft(student: Tensor, teacher: Tensor) -> Tensor:
    """The Kullback-Leibler divergence of torch and the entropy of the teacher."""
    p, q = (teacher / TEMPERATURE).softmax(1), (student / TEMPERATURE).log_softmax(1)
    entropy = -(p * p.log()).sum(1).mean()
    return (functional.kl_div(q, p, reduction="batchmean") + entropy) * TEMPERATURE**2


def step(tmp_path, module, **options):
    callback = lcs(**options)
    run = trainer(tmp_path, callback, max_steps=1, limit_val_batches=0)
    RUN_ON.clear()
    run.fit(module, loader(digits(0, 16)))
    return run


def by_hand(module, mode, levels, batches, teacher=None):
    """Half of the loss at full width and a quarter at each of two others; each on its own batch, in plain torch."""
    model = SubspaceModel(module.net, IMAGES[:2].double(), mode=mode, subspace="point").train()
    for alpha, (images, labels) in zip(levels, batches, strict=True):
        full = alpha == 1.0
        with torch.no_grad(), model.runner.training_level(1.0, direct=True):
            lesson = model(images) if teacher is None else teacher(images)
        with model.runner.training_level(alpha):
            logits = model(images)
            loss = functional.cross_entropy(logits, labels)
            if not full or teacher is not None:
                loss = (1 - WEIGHT) * loss + WEIGHT * soft(logits, lesson)
            (loss * (1.0 if len(levels) == 1 else 0.5 if full else 0.25)).backward()
    return {name: parameter.grad for name, parameter in module.net.named_parameters()}


@pytest.mark.parametrize("mode", ["structured", "unstructured", "quantized"])
@pytest.mark.parametrize("external", [False, True])
def test_gradients_are_those_of_the_loss_written_by_hand(tmp_path, mode, external):
    torch.manual_seed(0)
    module = Doubles()
    teacher = Net(group_norm).double() if external else None
    twin = copy.deepcopy(module)
    distillation = Distillation(weight=WEIGHT, temperature=TEMPERATURE, teacher=teacher)
    sampling = {**HALF_LINE, "warmup": 0.0} if mode != "structured" else HALF_LINE
    run = step(tmp_path, module, mode=mode, subspace="point", sampling=sampling, loss={"distillation": distillation})
    batches = RUN_ON[-3:]
    if not external:
        assert len(RUN_ON) == 4
        assert all(torch.equal(images, RUN_ON[0][0]) for images, _ in RUN_ON), "augmented alike"
    gradients = by_hand(twin, mode, [0.0, 0.5, 1.0], batches, teacher)
    for name, value in module.net.named_parameters():
        expected = twin.net.get_parameter(name) - gradients[name]
        assert (value - expected).abs().max() <= SAME * expected.abs().max(), name
    if mode == "structured":  # what is logged is the loss of labels at full width
        expected = functional.cross_entropy(twin.net(RUN_ON[-1][0]), LABELS)
        assert run.callback_metrics["train_loss"] == pytest.approx(expected.item())


def test_on_a_split_batch_each_level_has_a_teacher_for_its_own_samples(tmp_path):
    torch.manual_seed(0)
    module = Doubles()
    twin = copy.deepcopy(module)
    options = {"distillation": {"weight": WEIGHT, "temperature": TEMPERATURE}}
    sampling = {**HALF_LINE, "split": [0.25, 0.25, 0.5]}
    step(tmp_path, module, mode="structured", subspace="point", sampling=sampling, loss=options)
    teacher_runs, runs = RUN_ON[:2], RUN_ON[2:]
    assert [len(labels) for _, labels in runs] == [4, 4, 8]
    assert all(torch.equal(ours[0], theirs[0]) for ours, theirs in zip(runs, teacher_runs, strict=False))
    gradients = by_hand(twin, "structured", [0.0, 0.5, 1.0], runs)
    for name, value in module.net.named_parameters():
        expected = twin.net.get_parameter(name) - gradients[name]
        assert (value - expected).abs().max() <= SAME * expected.abs().max(), name


class Keeps(nn.Module):
    """Returns its input beside its logits, in the way of networks with several outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Net(group_norm)

    def forward(self, x):
        return {"logits": self.inner(x), "seen": x}


class Several(Doubles):
    def training_step(self, batch, batch_idx):
        images, labels = batch
        return self.loss(self.net((images + torch.randn_like(images)).double())["logits"], labels)


def test_student_and_teacher_see_the_same_augmentation_and_a_function_gets_what_the_network_returns(tmp_path):
    seen = []

    def distance(student, teacher):
        seen.append(torch.equal(student["seen"], teacher["seen"]))
        assert student["logits"].requires_grad
        assert not teacher["logits"].requires_grad
        return (student["logits"] - teacher["logits"]).square().mean()

    step(tmp_path, Several(Keeps()), subspace="point", sampling=HALF_LINE, loss={"distillation": {"loss": distance}})
    assert seen == [True, True]


def test_it_starts_after_its_share_of_the_steps(tmp_path):
    counts = []

    def distance(student, teacher):
        counts.append(run.global_step)
        return (student - teacher).square().mean()

    options = {"distillation": Distillation(loss=distance, start=0.5)}
    run = trainer(tmp_path, lcs(subspace="point", sampling=HALF_LINE, loss=options), max_steps=4, limit_val_batches=0)
    run.fit(Doubles(), loader(digits(0, 64)))
    # The first step tries it, and is trained without it: see the next test.
    assert counts == [0, 0, 2, 2, 3, 3]


@pytest.mark.parametrize("mode", ["structured", "quantized"])
def test_the_first_step_tries_it_without_a_trace(tmp_path, mode):
    trained = []
    for distillation in (None, Distillation(start=0.9), Distillation(loss="features", modules=["conv2"], start=0.9)):
        torch.manual_seed(0)
        module = Doubles()  # its step draws noise
        step(tmp_path, module, mode=mode, subspace="point", sampling=HALF_LINE, loss={"distillation": distillation})
        trained.append(list(module.parameters()))
    for tried in trained[1:]:
        for one, other in zip(trained[0], tried, strict=True):
            assert torch.equal(one, other)


def test_one_random_level_per_step_learns_from_the_full_network(tmp_path):
    torch.manual_seed(0)
    module = Doubles()
    twin = copy.deepcopy(module)
    options = {"distillation": Distillation(weight=WEIGHT, temperature=TEMPERATURE)}
    sampling = {"sampler": [0.25], "warmup": 0.0}
    step(tmp_path, module, mode="unstructured", subspace="point", sampling=sampling, loss=options)
    gradients = by_hand(twin, "unstructured", [0.25], RUN_ON[-1:])
    for name, value in module.net.named_parameters():
        expected = twin.net.get_parameter(name) - gradients[name]
        assert (value - expected).abs().max() <= SAME * expected.abs().max(), name


def test_all_else_is_as_in_a_run_without_it(tmp_path):
    """With a distance whose gradients are zero: batch norms, metrics, and random numbers of later steps."""
    found, metrics = [], []
    for distillation in (None, {"loss": lambda student, teacher: 0.0 * student.sum(), "weight": 1e-12}):
        torch.manual_seed(0)
        module = Module()
        run = trainer(tmp_path, lcs(subspace="point", loss={"distillation": distillation}), limit_val_batches=0)
        run.fit(module, loader(digits(0, 48), shuffle=True))
        found.append(module.state_dict())
        metrics.append({name: value for name, value in run.callback_metrics.items() if name.startswith("train")})
    assert metrics[0].keys() == metrics[1].keys()
    for values in (found, metrics):
        for name, value in values[0].items():
            torch.testing.assert_close(values[1][name], value, rtol=0.0, atol=1e-6)


class Adversarial(Doubles):
    """Moves the images along the gradient of the loss first."""

    def training_step(self, batch, batch_idx):
        images, labels = batch
        images = images.double().requires_grad_()
        (direction,) = torch.autograd.grad(self.loss(self.net(images), labels), images)
        return self.loss(self.net((images + direction.sign()).detach()), labels)


def test_a_step_that_makes_gradients_of_its_own_has_a_teacher_too(tmp_path):
    counts = []

    def distance(student, teacher):
        counts.append(teacher.requires_grad)
        return (student - teacher).square().mean()

    options = {"distillation": Distillation(loss=distance)}
    step(tmp_path, Adversarial(), subspace="point", sampling=HALF_LINE, loss=options)
    assert counts == [False] * 2, "the last of two calls at each of two levels"


class Twice(Doubles):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        if self.net(batch[0].double()).square().mean() > 0 and torch.is_grad_enabled():
            self.net(batch[0].double())
        return loss


class OneOutput(Doubles):
    def __init__(self):
        super().__init__(nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 1)))

    def training_step(self, batch, batch_idx):
        return self.net(batch[0].double()).square().mean()


@pytest.mark.parametrize(
    ("module", "distillation", "message"),
    [
        (Twice, "logits", "called the network 3 times at a compressed level and 2 times at alpha = 1"),
        (OneOutput, "logits", r"outputs of shape \(16, 1\) hold no classes.*Distillation\(loss="),
        (
            Doubles,
            Distillation(teacher=nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).double()),
            r"have shapes \(16, 10\) and \(16, 3\)",
        ),
    ],
)
def test_outputs_that_can_not_be_compared_are_refused_in_the_first_step(tmp_path, module, distillation, message):
    with pytest.raises(ValueError, match=message):
        step(tmp_path, module(), subspace="point", sampling=HALF_LINE, loss={"distillation": distillation})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": 0.0}, r"Distillation\(weight=0\.0\) is not in \(0, 1\]"),
        ({"temperature": 0.0}, r"temperature=0\.0\) is not above 0"),
        ({"start": 1.0}, r"start=1\.0\) is not in \[0, 1\)"),
        ({"loss": "feature"}, r"loss='feature'\) is not known"),
        ({"wait": 1}, r"distillation has no option 'wait'"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        Loss(distillation=options)
    with pytest.raises(TypeError, match=r"distillation is now loss=Loss\(distillation=\.\.\.\)"):
        LCSCallback(distillation=options)


def test_training_data_without_a_length_have_no_shares_of_steps(tmp_path):
    class Endless(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(digits(0, 64))

    options = {"distillation": Distillation(start=0.5)}
    run = trainer(tmp_path, lcs(subspace="point", loss=options), limit_val_batches=0)
    with pytest.raises(ValueError, match=r"start=0\.5 is a share of all training steps.*Distillation\(start=0\)"):
        run.fit(Doubles(), loader(Endless()))


@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 5), (2, 3, 4, 4)])
def test_classes_lie_where_losses_of_torch_have_them(shape):
    student, teacher = torch.randn(2, *shape, dtype=torch.float64)
    expected = functional.cross_entropy(student, teacher.softmax(1)).item()
    assert soft_cross_entropy((student,), [teacher]).item() == pytest.approx(expected, rel=1e-6)
    # A score per sample before the logits is none of them.
    assert soft_cross_entropy((student[:, 0, ...].flatten(), student), teacher).item() == pytest.approx(expected)


def test_classes_of_tokens_lie_last():
    student, teacher = torch.randn(2, 2, 5, 3, dtype=torch.float64)
    expected = functional.cross_entropy(student.transpose(1, 2), teacher.transpose(1, 2).softmax(1)).item()
    assert soft_cross_entropy({"logits": student}, {"logits": teacher}).item() == pytest.approx(expected)


def test_outputs_without_floats_are_refused():
    with pytest.raises(ValueError, match="an output of type dict holds no tensor of floats"):
        soft_cross_entropy({"boxes": torch.ones(2, 3, dtype=torch.int64)}, torch.ones(2, 3))
    with pytest.raises(ValueError, match="an output of type Tensor holds no tensor of floats in two or more"):
        soft_cross_entropy(torch.ones(4), torch.ones(4))


def test_the_network_itself_is_no_teacher(tmp_path):
    module = Doubles()
    with pytest.raises(ValueError, match=r"Distillation\(teacher=\.\.\.\) is the network that is trained"):
        step(tmp_path, module, subspace="point", loss={"distillation": {"teacher": module.net}})
    step(tmp_path, module, subspace="point", loss={"distillation": {"teacher": copy.deepcopy(module.net)}})


def test_a_teacher_follows_the_inputs_to_their_type(tmp_path):
    torch.manual_seed(0)
    teacher = Net(group_norm)
    step(tmp_path, Doubles(), subspace="point", loss={"distillation": {"teacher": teacher}})
    assert {parameter.dtype for parameter in teacher.parameters()} == {torch.float64}


def test_a_function_alone_is_the_distance_and_has_to_return_a_tensor(tmp_path):
    assert Loss(distillation=soft).distillation.loss is soft
    with pytest.raises(ValueError, match=r"the function <lambda> returned 0\.5; return a tensor with one entry"):
        step(tmp_path, Doubles(), subspace="point", loss={"distillation": lambda student, teacher: 0.5})
