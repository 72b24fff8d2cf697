"""Both endpoints are trained alike, however the user builds the optimizer."""

import copy

import pytest
import timm.optim
import torch

from lightning_lcs import SubspaceModel
from lightning_lcs.functional.sampling import SAMPLERS, step_generator
from tests.integration.support import Data, Module, Net, digits, group_norm, lcs, loader, trainer


def all_parameters(module):
    return torch.optim.SGD(module.parameters(), 0.1)


def of_the_network(module):
    return torch.optim.SGD(module.net.parameters(), 0.1)


def trainable_only(module):
    return torch.optim.SGD((p for p in module.parameters() if p.requires_grad), 0.1)


def by_submodule(module):
    net = module.net
    groups = [{"params": child.parameters(), "lr": 0.1 * (i + 1)} for i, child in enumerate(net.children())]
    return torch.optim.SGD(groups, 0.1)


def by_name(module):
    norm = [p for name, p in module.named_parameters() if "norm" in name]
    rest = [p for name, p in module.named_parameters() if "norm" not in name]
    return torch.optim.SGD([{"params": norm, "weight_decay": 0.0}, {"params": rest, "weight_decay": 0.1}], 0.1)


def by_bias_in_the_name(module):
    bias = [p for name, p in module.named_parameters() if name.endswith("bias")]
    rest = [p for name, p in module.named_parameters() if not name.endswith("bias")]
    return torch.optim.SGD([{"params": bias, "lr": 0.2}, {"params": rest}], 0.1)


def by_dimensions(module):
    flat = [p for p in module.net.parameters() if p.ndim < 2]
    rest = [p for p in module.net.parameters() if p.ndim >= 2]
    return torch.optim.AdamW([{"params": flat, "weight_decay": 0.0}, {"params": rest, "weight_decay": 0.1}], 0.01)


def by_timm(module):
    return timm.optim.create_optimizer_v2(module.net, "sgd", lr=0.1, weight_decay=0.1, filter_bias_and_bn=True)


def by_timm_with_layer_decay(module):
    return timm.optim.create_optimizer_v2(module.net, "adamw", lr=0.1, weight_decay=0.1, layer_decay=0.7)


FORMS = [
    all_parameters,
    of_the_network,
    trainable_only,
    by_submodule,
    by_name,
    by_bias_in_the_name,
    by_dimensions,
    by_timm,
    by_timm_with_layer_decay,
]


class Optimized(Module):
    def __init__(self, form, net=None):
        super().__init__(net)
        self.form = form

    def configure_optimizers(self):
        return self.form(self)


@pytest.mark.filterwarnings("ignore:no validation data. the accuracy-efficiency curve:UserWarning")
@pytest.mark.parametrize("line_parameters", ["norm", "all"])
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_both_endpoints_move(tmp_path, form, line_parameters):
    # A batch norm would take out what a bias before it adds. Layer decay needs a network that groups its own layers.
    net = (
        timm.create_model("test_resnet", in_chans=1, num_classes=10)
        if form is by_timm_with_layer_decay
        else Net(group_norm)
    )
    module, callback = Optimized(form, net), lcs(line={"parameters": line_parameters})
    run = trainer(tmp_path, callback, limit_val_batches=0, limit_train_batches=2)
    start = {name: p.detach().clone() for name, p in net.named_parameters()}
    run.fit(module, datamodule=Data())
    model = callback.subspace_model
    groups = [{id(p) for p in group["params"]} for group in run.optimizers[0].param_groups]
    for name, endpoint in model.parts[0].endpoints.items():
        partner = net.get_parameter(name)
        assert not torch.equal(endpoint, start[name]), name
        assert not torch.equal(partner, start[name]), name
        assert not torch.equal(endpoint, partner), name
        assert any(id(endpoint) in group and id(partner) in group for group in groups), name


def test_parameters_collected_beforehand_are_an_error(tmp_path):
    class Early(Module):
        def __init__(self):
            super().__init__()
            self.collected = list(self.net.parameters())

        def configure_optimizers(self):
            return torch.optim.SGD(self.collected, 0.1)

    with pytest.raises(RuntimeError, match=r"4 second endpoints are not in the optimizer's parameter group"):
        trainer(tmp_path, lcs()).fit(Early(), datamodule=Data())
    # A point has no second endpoints.
    callback = lcs(subspace="point")
    trainer(tmp_path, callback).fit(Early(), datamodule=Data())
    assert len(callback.curve) == 3


def test_parameters_listed_by_name_are_an_error(tmp_path):
    def listed(module):
        own = dict(module.net.named_parameters())
        return torch.optim.SGD([own[name] for name in dict(Net().named_parameters())], 0.1)

    with pytest.raises(RuntimeError, match=r"build the optimizer in configure_optimizers from parameters\(\)"):
        trainer(tmp_path, lcs()).fit(Optimized(listed), datamodule=Data())


def test_endpoints_in_another_group_are_an_error(tmp_path):
    def parted(module):
        theirs = [p for name, p in module.net.named_parameters() if "lcs_endpoint" in name]
        own = [p for name, p in module.net.named_parameters() if "lcs_endpoint" not in name]
        return torch.optim.SGD([{"params": own}, {"params": theirs, "weight_decay": 0.1}], 0.1)

    with pytest.raises(RuntimeError, match="parameter group of their partners"):
        trainer(tmp_path, lcs()).fit(Optimized(parted), datamodule=Data())


@pytest.mark.filterwarnings("ignore:.*stay whole at every level.*was never trained:UserWarning")
def test_frozen_parameters_stay(tmp_path):
    net = Net(group_norm)
    net.conv1.requires_grad_(False)
    net.norm1.requires_grad_(False)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    module, callback = Optimized(trainable_only, net), lcs(line={"parameters": "all"})
    trainer(tmp_path, callback).fit(module, datamodule=Data())
    for name, endpoint in callback.subspace_model.parts[0].endpoints.items():
        frozen = name.startswith(("conv1", "norm1"))
        assert torch.equal(net.get_parameter(name), before[name]) == frozen
        assert torch.equal(endpoint, before[name]) == frozen


class Sharpness(torch.optim.SGD):
    """Sharpness-aware minimization: it steps uphill, takes the gradient there, and goes back and downhill with it."""

    @torch.no_grad()
    def step(self, closure):
        with torch.enable_grad():
            loss = closure()
        weights = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.stack([p.grad.norm() for p in weights]).norm()
        up = [0.05 * p.grad / norm for p in weights]
        for p, away in zip(weights, up, strict=True):
            p.add_(away)
        with torch.enable_grad():
            closure()
        for p, away in zip(weights, up, strict=True):
            p.sub_(away)
        super().step()
        return loss


CLOSURES = {
    "LBFGS": lambda parameters: torch.optim.LBFGS(parameters, 0.1, max_iter=3),
    "LBFGS with a line search": lambda parameters: torch.optim.LBFGS(
        parameters, 1.0, max_iter=4, line_search_fn="strong_wolfe"
    ),
    "sharpness-aware": lambda parameters: Sharpness(parameters, 0.1),
}


class InDoubles(Optimized):
    def training_step(self, batch, batch_idx):
        return super().training_step((batch[0].double(), batch[1]), batch_idx)


@pytest.mark.filterwarnings("ignore:no validation data. the accuracy-efficiency curve:UserWarning")
@pytest.mark.parametrize("subspace", ["point", "line"])
@pytest.mark.parametrize("name", CLOSURES)
def test_optimizers_that_run_the_step_several_times(tmp_path, name, subspace):
    """Every run is at the same levels; the value and the gradients are those of the weighted sum of their losses."""
    torch.manual_seed(0)
    net = Net(group_norm).double()
    batches = loader(digits(0, 48))
    options = {"subspace": subspace, "line": {"parameters": "all"}}
    model = SubspaceModel(copy.deepcopy(net), **options, seed=5).train()
    optimizer = CLOSURES[name](model.parameters())
    for index, (images, labels) in enumerate(batches):

        def closure(images=images, labels=labels, index=index):
            optimizer.zero_grad()
            total = torch.zeros((), dtype=torch.float64)
            for alpha, weight in zip(SAMPLERS["sandwich"](step_generator(5, index), 3), (0.25, 0.25, 0.5), strict=True):
                with model.at_alpha(alpha):
                    total = total + weight * torch.nn.functional.cross_entropy(model(images.double()), labels)
            total.backward()
            return total

        optimizer.step(closure)
    module = InDoubles(lambda module: CLOSURES[name](module.parameters()), copy.deepcopy(net))
    callback = lcs(**options, sampling={"sampler": "sandwich"}, seed=5)
    trainer(tmp_path, callback, max_epochs=1, limit_val_batches=0).fit(module, batches)
    for (path, value), expected in zip(module.net.named_parameters(), model.module.parameters(), strict=True):
        # In float64, the same operations in another order.
        assert (value - expected).abs().max() <= 1e-9 * expected.abs().max(), path


@pytest.mark.filterwarnings("ignore")  # of the optimizers
def test_every_optimizer_of_timm_that_trains_without_the_callback_trains_with_it(tmp_path):
    """At full width, to the same weights."""
    trained, of_its_own = [], {}
    for name in timm.optim.list_optimizers():
        weights = []
        for callbacks in ([], [lcs(subspace="point", sampling={"sampler": [1.0]})]):
            torch.manual_seed(0)

            def made(module, name=name):
                return timm.optim.create_optimizer_v2(module.net, name, lr=0.01)

            module = Optimized(made, Net(group_norm))
            run = trainer(tmp_path, *callbacks, max_steps=2, limit_val_batches=0)
            try:
                run.fit(module, loader(digits(0, 32)))
            except (RuntimeError, AssertionError) as error:  # a package for GPUs, or gradients of gradients
                assert not callbacks, name
                of_its_own[name] = str(error)
                break
            weights.append(list(module.net.parameters()))
        if len(weights) == 2:
            trained.append(name)
            assert all(torch.equal(one, other) for one, other in zip(*weights, strict=True)), name
    print(f"\n{len(trained)} of {len(timm.optim.list_optimizers())} optimizers of timm")
    assert len(trained) >= 50
    assert all("CUDA" in why or "grad" in why for why in of_its_own.values())
