from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

from lightning_lcs.graph import network
from tests.traces import remembering

# Two threads on two busy cores cost a hundred times one: small convolutions wait for each other at every barrier.
torch.set_num_threads(1)

# The first call of a torch function takes long; the same examples each time make a failure one that can be repeated.
settings.register_profile("tests", deadline=None, derandomize=True)
settings.load_profile("tests")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _traces_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network, "trace", remembering(network.trace))
        yield
