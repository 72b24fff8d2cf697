"""Checkpoints open whatever lies beside the tensors, and as strictly as the module itself loads."""

import collections
import dataclasses
import datetime
import enum
import functools
import os
import pathlib

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from lightning_lcs import SubspaceModel
from tests.integration.support import Data, Module, Net, digits, lcs, trainer


class Config(dict):
    """As configuration packages have them."""

    __getattr__ = dict.__getitem__


class Names(list):
    pass


class Colour(enum.Enum):
    RED = 1


@dataclasses.dataclass
class Options:
    width: int = 3


class Slots:
    __slots__ = ("width",)

    def __init__(self):
        self.width = 3


class Touches:
    """An object that would run code where it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return touch, (self.path,)


def touch(path):
    path.touch()


def with_extra(extra):
    class WithExtra(Module):
        def __init__(self):
            super().__init__()
            self.save_hyperparameters({"extra": extra, "rate": 0.1})

    return WithExtra()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A trained subspace and its checkpoint, without hyperparameters."""
    path, callback = tmp_path_factory.mktemp("saved") / "last.ckpt", lcs()
    run = trainer(path.parent, callback)
    run.fit(Module(), datamodule=Data())
    run.save_checkpoint(path)
    return callback.subspace_model.eval(), path


def holding(path, folder, **entries):
    """The checkpoint with further entries beside its own."""
    torch.save({**torch.load(path, weights_only=True), **entries}, folder / "holding.ckpt")
    return folder / "holding.ckpt"


def assert_same_network(model, expected):
    images = digits(0, 8).tensors[0]
    for alpha in (0.0, 0.5, 1.0):
        with torch.no_grad(), model.at_alpha(alpha), expected.at_alpha(alpha):
            assert torch.equal(model(images), expected(images))


EXTRAS = [
    pathlib.Path("data"),
    functools.partial(torch.optim.SGD, lr=0.1),
    Config(width=3),
    collections.defaultdict(list, a=[1]),
    Names("ab"),
    Colour.RED,
    Options(),
    Slots(),
    np.arange(3),
    np.float64(0.1),
    datetime.timedelta(1),
    range(3),
    slice(3),
    frozenset("ab"),
    nn.Linear(2, 2),
    torch.nn.functional.relu,
    torch.optim.SGD,
]


@pytest.mark.parametrize("extra", EXTRAS, ids=lambda extra: type(extra).__name__)
def test_objects_of_other_types_are_left_out(tmp_path, saved, extra):
    model, path = saved
    path = holding(path, tmp_path, hyper_parameters={"extra": extra, "rate": 0.1}, callbacks={"mine": [extra]})
    assert_same_network(SubspaceModel.from_checkpoint(path, Module()), model)
    assert_same_network(SubspaceModel.from_checkpoint(path, Net(), weights_only=False), model)


def test_several_types_at_once_or_an_error_with_a_way_through(tmp_path, saved):
    model, path = saved
    path = holding(path, tmp_path, hyper_parameters={"config": Config(a=1), "array": np.arange(3)})
    with pytest.raises(ValueError, match=r"Config.*hyperparameters.*weights_only=False"):
        SubspaceModel.from_checkpoint(path, Module())
    assert_same_network(SubspaceModel.from_checkpoint(path, Module(), weights_only=False), model)


def test_types_that_no_reader_takes_are_named(tmp_path, saved):
    model, path = saved
    path = holding(path, tmp_path, hyper_parameters={"extra": os.stat(tmp_path)})
    with pytest.raises(ValueError, match=r"sound, but.*stat_result.*weights_only=False"):
        SubspaceModel.from_checkpoint(path, Module())
    assert_same_network(SubspaceModel.from_checkpoint(path, Module(), weights_only=False), model)


def test_what_is_left_out_does_not_run(tmp_path, saved):
    model, path = saved
    path = holding(path, tmp_path, hyper_parameters={"extra": Touches(tmp_path / "touched")})
    assert_same_network(SubspaceModel.from_checkpoint(path, Module()), model)
    assert not (tmp_path / "touched").exists()
    SubspaceModel.from_checkpoint(path, Module(), weights_only=False)
    assert (tmp_path / "touched").exists()


@pytest.mark.parametrize("key", ["lightning_lcs", "state_dict"])
@pytest.mark.parametrize("kind", [Options, Config])
def test_the_subspace_itself_is_plain(tmp_path, saved, key, kind):
    content = torch.load(saved[1], weights_only=True)
    content[key]["extra"] = kind()
    torch.save(content, tmp_path / "odd.ckpt")
    with pytest.raises(ValueError, match=f"{key!r} in .*holds objects that are no tensors.*weights_only=False"):
        SubspaceModel.from_checkpoint(tmp_path / "odd.ckpt", Module())


def test_what_the_user_allows_is_still_allowed(tmp_path, saved):
    path = holding(saved[1], tmp_path, hyper_parameters={"extra": Options()})
    with torch.serialization.safe_globals([Options]):
        SubspaceModel.from_checkpoint(path, Module())
        assert torch.load(path, weights_only=True)["hyper_parameters"] == {"extra": Options()}
    with pytest.raises(Exception, match="Options"):  # nothing stays allowed
        torch.load(path, weights_only=True)


def test_hyperparameters_of_a_fit(tmp_path):
    callback, saving = lcs(), ModelCheckpoint(tmp_path, save_last=True)
    module = with_extra(pathlib.Path("data"))
    trainer(tmp_path, callback, saving, enable_checkpointing=True).fit(module, datamodule=Data())
    opened = SubspaceModel.from_checkpoint(tmp_path / "last.ckpt", with_extra(pathlib.Path("data")))
    assert_same_network(opened, callback.subspace_model.eval())


class Lean(Module):
    """Leaves a large pretrained part out of its checkpoints, as modules with a frozen language model do."""

    strict_loading = False

    def __init__(self, size=3):
        super().__init__()
        self.pretrained = nn.Linear(4, size).requires_grad_(False)

    def on_save_checkpoint(self, checkpoint):
        weights = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: value for name, value in weights.items() if "pretrained" not in name}


@pytest.fixture(scope="module")
def lean(tmp_path_factory):
    path, callback = tmp_path_factory.mktemp("lean") / "last.ckpt", lcs(target="net")
    run = trainer(path.parent, callback)
    run.fit(Lean(), datamodule=Data())
    run.save_checkpoint(path)
    return callback.subspace_model.eval(), path


@pytest.mark.parametrize("kind", [Lean, Net])
def test_a_module_that_leaves_weights_out(lean, kind):
    model, path = lean
    module = kind()
    before = {name: value.clone() for name, value in module.state_dict().items() if "pretrained" in name}
    assert_same_network(SubspaceModel.from_checkpoint(path, module), model)
    assert all(torch.equal(module.state_dict()[name], value) for name, value in before.items())


def test_a_strict_module_is_told_what_is_missing(lean):
    class Strict(Lean):
        strict_loading = True

    with pytest.raises(ValueError, match=r"another architecture: pretrained.weight has shape \[3, 4\] here and None"):
        SubspaceModel.from_checkpoint(lean[1], Strict())


def test_a_module_that_is_not_strict_still_has_the_shapes_of_the_file(lean):
    class Wider(Lean):
        def __init__(self):
            super().__init__()
            self.net = Net(first=12)

    other = Wider()
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(ValueError, match=r"another architecture: .*conv1.weight has shape \[12, 1, 3, 3\] here and"):
        SubspaceModel.from_checkpoint(lean[1], other)
    assert all(torch.equal(other.state_dict()[name], value) for name, value in before.items())


def test_extra_state_that_is_no_tensor(tmp_path):
    class Counting(Net):
        count = 0

        def get_extra_state(self):
            return {"count": self.count}

        def set_extra_state(self, state):
            self.count = state["count"]

    class Counted(Module):
        def __init__(self, count=0):
            super().__init__(Counting())
            self.net.count = count

    callback = lcs()
    run = trainer(tmp_path, callback)
    run.fit(Counted(7), datamodule=Data())
    run.save_checkpoint(tmp_path / "last.ckpt")
    opened = SubspaceModel.from_checkpoint(tmp_path / "last.ckpt", Counted())
    assert opened.module.count == 7
    assert_same_network(opened, callback.subspace_model.eval())
