"""What the CUDA tests share; they fail without a CUDA device, they are not skipped."""

from collections.abc import Iterator

import pytest
import torch

from tests.integration.conftest import ADVICE

# Runs on the processor stand beside those on the device; torch.compile imports what torch itself deprecates.
HERE = (
    "ignore:GPU available but not used:UserWarning",
    "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "cuda" in item.keywords:
            for advice in (*ADVICE, *HERE):
                item.add_marker(pytest.mark.filterwarnings(advice))


@pytest.fixture(autouse=True)
def _exact() -> Iterator[None]:
    """Convolutions in float32, not in TF32: results are compared with the processor's."""
    if not torch.cuda.is_available():
        pytest.fail("make cuda needs a CUDA device, and torch sees none")
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before
