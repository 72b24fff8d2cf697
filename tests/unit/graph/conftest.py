"""Tracing itself is tested here: each network is traced anew."""

from collections.abc import Iterator

import pytest

from lightning_lcs.graph import network
from lightning_lcs.graph.tracing.trace import trace


@pytest.fixture(autouse=True, scope="package")
def _traces_anew() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network, "trace", trace)
        yield
