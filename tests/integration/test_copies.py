"""Copies and pickles: of the module and of the callback after fit, and of either in the middle of it."""

import copy
import io
import pickle

import pytest
import torch
from lightning.pytorch import Callback

from tests.integration.support import lcs
from tests.integration.test_cleanliness import IMAGES, Mine, assert_same_weights, once

# Their networks have one.
pytestmark = pytest.mark.filterwarnings("ignore:the forward hooks of conv1 only watch:UserWarning")


def pickled(thing):
    return pickle.loads(pickle.dumps(thing))


def saved(thing):
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = [copy.deepcopy, pickled, saved]


def run_at(model, alpha):
    model.eval()
    with torch.no_grad(), model.at_alpha(alpha):
        return model(IMAGES)


@pytest.mark.parametrize("duplicate", COPIES)
def test_copies_of_the_module_after_fit(tmp_path, duplicate):
    module, callback = Mine(), lcs()
    once(module, callback, folder=tmp_path)
    twin = duplicate(module)
    with torch.no_grad():
        assert torch.equal(twin.eval()(IMAGES), module.eval()(IMAGES))
    # Both endpoints go on, in the copy alone.
    before = [w.detach().clone() for pair in callback.subspace_model.endpoint_pairs() for w in pair]
    again = lcs()
    once(twin.train(), again, folder=tmp_path)
    after = [w for pair in callback.subspace_model.endpoint_pairs() for w in pair]
    moved = [w for pair in again.subspace_model.endpoint_pairs() for w in pair]
    for w, v, u in zip(before, after, moved, strict=True):
        assert torch.equal(w, v)
        assert not torch.equal(w, u)


@pytest.mark.parametrize("duplicate", COPIES)
def test_copies_of_the_callback_after_fit(tmp_path, duplicate):
    callback = lcs()
    once(Mine(), callback, folder=tmp_path)
    twin = duplicate(callback)
    assert [point.metrics for point in twin.curve] == [point.metrics for point in callback.curve]
    for alpha in (0.0, 0.5, 1.0):
        # The same operations on equal tensors.
        assert torch.equal(run_at(twin.subspace_model, alpha), run_at(callback.subspace_model, alpha))
    assert not {id(p) for p in twin.subspace_model.parameters()} & {id(p) for p in callback.subspace_model.parameters()}


class Copies(Callback):
    """Copies in the middle of training, as averages of weights are made."""

    def __init__(self, duplicate, of):
        self.duplicate = duplicate
        self.of = of
        self.made = []

    def on_train_batch_end(self, trainer, pl_module, *args):
        original = pl_module.net if self.of == "net" else pl_module
        twin = self.duplicate(original)
        assert not {id(p) for p in twin.parameters()} & {id(p) for p in original.parameters()}
        weights = {name: value.clone() for name, value in pl_module.net.state_dict().items()}
        self.made.append((twin, weights))


@pytest.mark.parametrize("of", ["net", "module"])
@pytest.mark.parametrize("duplicate", COPIES)
def test_copies_during_fit(tmp_path, duplicate, of):
    """Each is the network of that step, and trains on in a plain trainer as a new one with its weights would."""
    module, untouched = Mine(), Mine()
    untouched.load_state_dict(module.state_dict())
    copies = Copies(duplicate, of)
    once(module, lcs(subspace="point"), copies, folder=tmp_path)
    once(untouched, lcs(subspace="point"), folder=tmp_path)
    assert_same_weights(module, untouched)
    assert len(copies.made) == 3
    for twin, weights in copies.made:
        expected, owner = Mine(), Mine()
        expected.net.load_state_dict(weights)
        if of == "net":
            owner.net = twin
        else:
            owner = twin
            owner._metric_attributes = None  # ids of the original's metrics, which Lightning copies as they are
        with torch.no_grad():
            assert torch.equal(owner.eval()(IMAGES), expected.eval()(IMAGES))
        for trained in (owner.train(), expected.train()):
            once(trained, folder=tmp_path)
        assert_same_weights(owner, expected)
