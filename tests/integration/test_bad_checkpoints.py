"""Checkpoints that do not fit: a clear error, and nothing changed."""

import pytest
import torch

from lightning_lcs import Structured, SubspaceModel
from tests.integration.support import Data, Module, Net, lcs, trainer
from tests.integration.test_checkpoints import Mine, fitted


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return fitted(tmp_path_factory.mktemp("checkpoint"))[2]


def changed(path, folder, **entries):
    """The checkpoint with entries of the subspace replaced."""
    content = torch.load(path, weights_only=True)
    content["lightning_lcs"].update(entries)
    torch.save(content, folder / "changed.ckpt")
    return folder / "changed.ckpt"


def assert_untouched(module, before):
    after = module.state_dict()
    assert set(after) == set(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not [name for name, _ in module.named_parameters() if "lcs" in name]


@pytest.mark.parametrize("kind", [Net, Mine])
def test_another_architecture(path, kind):
    other = kind(first=12)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(ValueError, match=r"another architecture: .*conv1.weight has shape \[12, 1, 3, 3\] here and"):
        SubspaceModel.from_checkpoint(path, other)
    assert_untouched(other, before)


def test_a_network_with_other_layers(path):
    other = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(ValueError, match="another architecture"):
        SubspaceModel.from_checkpoint(path, other)
    assert_untouched(other, before)


def test_another_version(path, tmp_path):
    net = Net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(ValueError, match="written in format 99, and this lightning-lcs reads 1; install the version"):
        SubspaceModel.from_checkpoint(changed(path, tmp_path, version=99), net)
    assert_untouched(net, before)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (
            {"mode": Structured(min_width=0.5)},
            r"holds mode=\{'name': 'structured', 'min_width': 0.25, .*, and this",
        ),
        ({"subspace": "point"}, "holds subspace='line', and this model was built with subspace='point'"),
        (
            {"line": {"parameters": "all"}},
            "holds line.parameters='norm', and this model was built with line.parameters=",
        ),
    ],
)
def test_resuming_with_other_options(path, tmp_path, options, match):
    with pytest.raises(ValueError, match=match):
        trainer(tmp_path, lcs(**options)).fit(Mine(), datamodule=Data(), ckpt_path=path)
    with pytest.raises(ValueError, match=match):
        trainer(tmp_path, lcs(**options)).validate(Mine(), datamodule=Data(), ckpt_path=path)


def test_a_checkpoint_without_a_subspace(tmp_path, plain):
    with pytest.raises(ValueError, match=r"plain.ckpt holds no compressible subspace: it was not trained"):
        SubspaceModel.from_checkpoint(plain, Mine())


@pytest.fixture
def plain(tmp_path):
    """A checkpoint from before lightning-lcs came into the project."""
    run = trainer(tmp_path)
    run.fit(Mine(), datamodule=Data())
    run.save_checkpoint(tmp_path / "plain.ckpt")
    return tmp_path / "plain.ckpt"


def test_a_point_trains_on_from_a_plain_checkpoint(tmp_path, plain):
    callback = lcs(subspace="point")
    trainer(tmp_path, callback, max_epochs=2).fit(Mine(), datamodule=Data(), ckpt_path=plain)
    assert len(callback.curve) == 3


def test_a_line_starts_at_the_weights_of_a_plain_checkpoint(tmp_path, plain):
    callback, module = lcs(), Mine.load_from_checkpoint(plain, lr=0.0)
    weights = {name: p.detach().clone() for name, p in module.net.named_parameters()}
    trainer(tmp_path, callback).fit(module, datamodule=Data())
    for name, endpoint in callback.subspace_model.parts[0].endpoints.items():
        assert torch.equal(endpoint, weights[name])


def test_resuming_a_line_from_a_plain_checkpoint_says_what_to_do(tmp_path, plain):
    with pytest.raises(ValueError, match=r"LCSCallback|lightning.lcs|endpoint"):
        trainer(tmp_path, lcs(), max_epochs=2).fit(Mine(), datamodule=Data(), ckpt_path=plain)


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_a_truncated_file(path, tmp_path, kept):
    damaged = tmp_path / "damaged.ckpt"
    content = path.read_bytes()
    damaged.write_bytes(content[: int(kept * len(content))])
    net = Net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises((ValueError, RuntimeError, EOFError), match=r"damaged\.ckpt"):
        SubspaceModel.from_checkpoint(damaged, net)
    assert_untouched(net, before)


def test_an_endpoint_is_missing(path, tmp_path):
    endpoints = torch.load(path, weights_only=True)["lightning_lcs"]["endpoint_0"]
    endpoints.pop("norm2.bias")
    net = Net()
    with pytest.raises(ValueError, match=r"norm2\.bias"):
        SubspaceModel.from_checkpoint(changed(path, tmp_path, endpoint_0=endpoints), net)


def test_a_file_with_code_in_it_is_refused(tmp_path):
    torch.save({"state_dict": {}, "lightning_lcs": Module}, tmp_path / "code.ckpt")
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        SubspaceModel.from_checkpoint(tmp_path / "code.ckpt", Net())
