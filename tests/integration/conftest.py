import logging
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from lightning_lcs.graph import traced_network
from tests.integration import support
from tests.integration.traces import remembering

# Lightning's own advice and deprecations, none of it about this package; everything else stays an error.
ADVICE = (
    "ignore:.*does not have many workers which may be a bottleneck:UserWarning",
    r"ignore:The number of training batches \(\d+\) is smaller than the logging interval:UserWarning",
    "ignore:You defined a `validation_step` but have no `val_dataloader`:UserWarning",
    "ignore:You passed in a `val_dataloader` but have no `validation_step`:UserWarning",
    "ignore:`isinstance\\(treespec, LeafSpec\\)` is deprecated:FutureWarning",
    "ignore:Be aware that when using `ckpt_path`, callbacks used to create the checkpoint need to be:UserWarning",
    "ignore:.*Checkpoint directory .* exists and is not empty:UserWarning",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            for advice in ADVICE:
                item.add_marker(pytest.mark.filterwarnings(advice))


@pytest.fixture(autouse=True)
def _quiet_lightning() -> Iterator[None]:
    """No banners; and Ctrl+C as it was (Lightning ignores SIGINT for good once it has seen one)."""
    logger = logging.getLogger("lightning.pytorch")
    level, handler = logger.level, signal.getsignal(signal.SIGINT)
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(level)
    signal.signal(signal.SIGINT, handler)


@pytest.fixture
def train() -> DataLoader[tuple[torch.Tensor, ...]]:
    """Three full batches, never shuffled."""
    return support.loader(support.digits(0, 48))


@pytest.fixture
def val() -> DataLoader[tuple[torch.Tensor, ...]]:
    """Three batches, the last of them smaller."""
    return support.loader(support.digits(48, 40))


@pytest.fixture(autouse=True, scope="package")
def _traces_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(traced_network, "trace", remembering(traced_network.trace))
        yield
