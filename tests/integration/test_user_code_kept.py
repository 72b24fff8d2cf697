"""Values that a forward or a hook keeps: below alpha = 1 nobody computes with those of another forward."""

import copy
import functools
import types
from collections import deque

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import weight_norm

from lightning_lcs import SubspaceModel
from lightning_lcs.training.target import guarded
from tests.integration.support import Data, lcs, trainer

X = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
pytestmark = [
    pytest.mark.filterwarnings("ignore:the forward hooks of .* only watch:UserWarning"),
    pytest.mark.filterwarnings("ignore:The tensor attributes? .* assigned during export:UserWarning"),
    pytest.mark.filterwarnings("ignore:no validation data. the accuracy-efficiency curve:UserWarning"),
]
KEPT_GLOBALLY: dict[str, Tensor] = {}


class Net(nn.Module):
    """Two layers; what ``keep`` does with the features of the first one is all that the tests differ in."""

    def __init__(self, keep=lambda net, features: None):
        super().__init__()
        self.first, self.norm, self.head = nn.Linear(64, 16), nn.LayerNorm(16), nn.Linear(16, 10)
        self.keep = keep
        self.aux = None
        self.found, self.named, self.latest = [], {}, deque(maxlen=2)
        self.store = types.SimpleNamespace(features=None)

    @property
    def auxiliary_loss(self):
        return self.aux

    def forward(self, x):
        features = self.norm(self.first(x.flatten(1))).relu()
        self.keep(self, features)
        return self.head(features)


def kept_attribute(net, features):
    net.aux = features.square().mean()


FORWARDS = {
    "attribute": (kept_attribute, lambda net: 0.1 * net.aux, "Net.aux"),
    "property": (kept_attribute, lambda net: net.auxiliary_loss + 1.0, "Net.aux"),
    "attribute of a layer": (
        lambda net, f: setattr(net.norm, "seen", f),
        lambda net: net.norm.seen.mean(),
        "norm.seen",
    ),
    "list": (lambda net, f: net.found.append(f.mean()), lambda net: sum(net.found), "Net.found"),
    "emptied list": (lambda net, f: net.found.append(f), lambda net: torch.stack(net.found), "Net.found"),
    "deque": (lambda net, f: net.latest.append(f), lambda net: net.latest[-1].mean(), "Net.latest"),
    "dictionary": (lambda net, f: net.named.update(f=f), lambda net: net.named["f"].mean(), r"Net.named\['f'\]"),
    "object": (lambda net, f: setattr(net.store, "features", f), lambda net: net.store.features[0], "store.features"),
    "several": (lambda net, f: setattr(net, "aux", (f, {"b": f})), lambda net: net.aux[0], "Net.aux"),
    "array": (
        lambda net, f: net.found.append(f.detach().numpy() if not torch.compiler.is_exporting() else f),
        lambda net: net.found[-1].sum(),
        "Net.found",
    ),
}
USES = {
    "comparison": lambda value: value > 0,
    "truth": bool,
    "number": float,
    "type": lambda value: value.detach() if isinstance(value, Tensor) else None,
    "shape": lambda value: value.shape,
    "array": lambda value: value.numpy(),
}


def at_level(net, x=X):
    """A model whose network runs as its trace, as in a step at alpha = 0."""
    return SubspaceModel(net, x, subspace="point")


@pytest.mark.parametrize("kind", FORWARDS)
def test_what_a_forward_keeps_is_named_where_it_is_used(kind):
    keep, use, name = FORWARDS[kind]
    net = Net(keep)
    model = at_level(net)
    net(X)
    before = copy.copy(net.found), copy.copy(net.named), net.aux
    with guarded(model, 0.0, "training_step"), model.at_alpha(0.0):
        if kind == "emptied list":
            net.found.clear()
        model(X)
        with pytest.raises(RuntimeError, match=rf"{name} is not set below alpha = 1.*Return the value"):
            use(net)
    assert net.aux is before[2]
    assert net.named == before[1]
    if kind != "emptied list":
        assert list(map(id, net.found)) == list(map(id, before[0]))
        use(net)


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_any_use_is_refused_and_to_look_is_none(use):
    net = Net(kept_attribute)
    model = at_level(net)
    with guarded(model, 0.0, "training_step"), model.at_alpha(0.0):
        model(X)
        assert net.aux is not None
        assert copy.deepcopy(net).aux is not None
        assert "Withheld" in repr(net.aux)
        with pytest.raises(RuntimeError, match=r"Net\.aux is not set below alpha = 1"):
            use(net.aux)


class Collects:
    """A hook that is an object."""

    def __init__(self):
        self.features = None

    def __call__(self, module, args, result):
        self.features = result


def into(store, key, module, args, result):
    store[key] = result


def globally(module, args, result):
    KEPT_GLOBALLY["features"] = result


def hooked(kind, net):
    """Register a hook, and give a function that takes what it has kept."""
    layer, found, store, collects = net.norm, [], {}, Collects()
    if kind == "closure":
        layer.register_forward_hook(lambda module, args, result: found.append(result))
        return lambda: found[-1]
    if kind == "partial":
        layer.register_forward_hook(functools.partial(into, store, "features"))
        return lambda: store["features"]
    if kind == "object":
        layer.register_forward_hook(collects)
        return lambda: collects.features
    if kind == "method":
        layer.register_forward_hook(collects.__call__)
        return lambda: collects.features
    if kind == "global":
        layer.register_forward_hook(globally)
        return lambda: KEPT_GLOBALLY["features"]
    if kind == "attribute":
        layer.register_forward_hook(lambda module, args, result: setattr(module, "seen", result))
        return lambda: layer.seen
    if kind == "before":
        layer.register_forward_pre_hook(lambda module, args: found.append(args[0].detach()))
        return lambda: found[-1]
    last = None

    def remember(module, args, result):
        nonlocal last
        last = result

    layer.register_forward_hook(remember)
    return lambda: last


@pytest.mark.parametrize(
    "kind", ["closure", "partial", "object", "method", "global", "attribute", "before", "variable"]
)
def test_what_a_hook_keeps_is_named_where_it_is_used(kind):
    net = Net()
    take = hooked(kind, net)
    model = at_level(net)
    net(X)
    before = take()
    with guarded(model, 0.0, "training_step"), model.at_alpha(0.0):
        model(X)
        with pytest.raises(RuntimeError, match=r"what the forward hook of norm stores is not set below alpha = 1"):
            take().square().mean()
    assert take() is before


def test_finding_out_leaves_nothing_in_collections():
    net, calls = Net(lambda net, features: net.found.append(features)), []
    found = net.found
    net.norm.register_forward_hook(lambda module, args, result: calls.append(result))
    model = at_level(net)
    assert net.found is found
    assert net.found == calls == []
    net(X)
    assert len(net.found) == len(calls) == 1
    with guarded(model, 0.0, "training_step"), model.at_alpha(0.0):
        model(X)
        model(torch.cat([X, X]))
        model.eval()
        model(X)  # traced by the network's own code, from which nothing is withheld
    assert len(net.found) == len(calls) == 1


def test_a_weight_that_torch_computes_in_each_forward_is_there():
    net = Net()
    with pytest.warns(FutureWarning, match="deprecated"):
        weight_norm(net.first)
    model = at_level(net)
    with guarded(model, 0.0, "training_step"), model.at_alpha(0.0):
        model(X)
        assert net.first.weight.square().mean() > 0


class Mine(L.LightningModule):
    def __init__(self, keep=lambda net, features: None, weight=0.0):
        super().__init__()
        self.net = Net(keep)
        self.weight = weight

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        return loss + self.weight * self.net.aux.mean() if self.weight else loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Watched(Mine):
    """Features that a hook hands to the module, as for distillation."""

    def __init__(self):
        super().__init__()
        self.net.norm.register_forward_hook(self.take)

    def take(self, module, args, result):
        self.features = result

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) + self.features.mean()


class Logged(Mine):
    """The validation reads what training does not."""

    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        self.log("val_aux", self.net.aux)


def point(**options):
    return lcs(subspace="point", **options)


@pytest.mark.parametrize(
    ("make", "sanity", "name"),
    [
        (lambda: Mine(kept_attribute, 0.1), 0, r"Net\.aux"),
        (Watched, 0, "what the forward hook of norm stores"),
        (lambda: Logged(kept_attribute), 1, r"Net\.aux"),
    ],
    ids=["loss", "hook", "validation"],
)
def test_it_is_refused_before_the_first_update(tmp_path, make, sanity, name):
    module = make()
    before = copy.deepcopy(module.state_dict())
    trainer(tmp_path).fit(make(), datamodule=Data())
    with pytest.raises(RuntimeError, match=f"{name} is not set below alpha = 1"):
        trainer(tmp_path, point(), num_sanity_val_steps=sanity).fit(module, datamodule=Data())
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


def test_modes_that_run_the_network_s_own_code_keep_it(tmp_path):
    callback = point(mode="unstructured", sampling={"warmup": 0.0})
    trainer(tmp_path, callback).fit(Mine(kept_attribute, 0.1), datamodule=Data())
    assert len(callback.curve) == 3


def test_what_nobody_uses_does_no_harm(tmp_path):
    """The same training, bit for bit, and the values of alpha = 1 in their places."""

    def keep(net, features):
        kept_attribute(net, features)
        net.found.append(features.detach())
        net.named["f"] = features

    torch.manual_seed(3)
    plain, keeping, alone = Mine(), Mine(keep), Mine(keep)
    for module in (keeping, alone):
        module.load_state_dict(plain.state_dict())
    for module in (plain, keeping):
        trainer(tmp_path, point(), limit_val_batches=0).fit(module, datamodule=Data())
    trainer(tmp_path, limit_val_batches=0).fit(alone, datamodule=Data())
    assert all(torch.equal(value, plain.state_dict()[key]) for key, value in keeping.state_dict().items())
    assert len(keeping.net.found) == len(alone.net.found) == 3
    assert torch.equal(keeping.net.found[0], alone.net.found[0])
    assert all(type(value) is Tensor for value in (*keeping.net.found, *keeping.net.named.values(), keeping.net.aux))
