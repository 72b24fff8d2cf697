"""Peak memory of one training step over four widths, against a plain step at full width.

Both in Lightning's order, where the gradients of the step before are alive until this step's forward has ended.
"""

import gc
from collections.abc import Callable

import lightning as L
import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.data import DataLoader, TensorDataset

from lightning_lcs import LCSCallback, SubspaceModel
from tests.benchmarks.timing import ALPHAS, images, resnet10t

pytestmark = pytest.mark.benchmark
LIMIT = 1.15

Step = Callable[[torch.optim.Optimizer], None]


def _peak_bytes(build: Callable[[], tuple[nn.Module, Step]]) -> int:
    """Highest running sum of the profiler's memory events during the second step.

    Network and optimizer are made under the profiler, too: it does not see the release of what was there before.
    """
    gc.collect()  # what another test left behind must not be released, and counted, in here
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        network, losses = build()
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
        for step in ("first", "second"):
            with record_function(f"the {step} step"):
                losses(optimizer)
                optimizer.step()
    return _peak(profiler, network)


def _peak(profiler: profile, network: nn.Module) -> int:
    events = profiler.profiler.kineto_results.events()
    start = next(event.start_ns() for event in events if event.name() == "the second step")
    memory = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    total = peak = 0
    for when, size in memory:
        total += size
        if when >= start:
            peak = max(peak, total)
    resident = 3 * sum(parameter.numel() * parameter.element_size() for parameter in network.parameters())
    assert total >= resident, "the profiler missed events: weights, gradients and momentum are still there"
    return peak


def _plain() -> tuple[nn.Module, Step]:
    x, y = images(128, 1, 32), torch.arange(128) % 10
    network = resnet10t().train()

    def losses(optimizer: torch.optim.Optimizer) -> None:
        loss = nn.functional.cross_entropy(network(x), y)
        optimizer.zero_grad()
        loss.backward()

    return network, losses


def _swept(subspace: str, line_parameters: str = "norm") -> tuple[SubspaceModel, Step]:
    x, y = images(128, 1, 32), torch.arange(128) % 10
    model = SubspaceModel(resnet10t(), x, subspace=subspace, line={"parameters": line_parameters}).train()

    def losses(optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        for alpha in ALPHAS:
            with model.runner.training_level(alpha):
                nn.functional.cross_entropy(model(x), y).backward()

    return model, losses


@pytest.mark.parametrize("subspace", ["point", "line"])
def test_peak_memory_is_near_a_plain_step(subspace):
    plain, swept = _peak_bytes(_plain), _peak_bytes(lambda: _swept(subspace))
    print(f"\n{subspace}: peak {swept / 1e6:.1f} MB / plain {plain / 1e6:.1f} MB = {swept / plain:.3f}")
    assert swept / plain <= LIMIT


def test_a_line_over_all_parameters_adds_its_second_endpoint():
    plain, swept = _peak_bytes(_plain), _peak_bytes(lambda: _swept("line", "all"))
    endpoint = sum(parameter.numel() * parameter.element_size() for parameter in resnet10t().parameters())
    # Parameters, gradients and momentum of endpoint 0, and two interpolated copies.
    allowed = LIMIT * plain + 5 * endpoint
    print(f"\nline over all: peak {swept / 1e6:.1f} MB, allowed {allowed / 1e6:.1f} MB, plain {plain / 1e6:.1f} MB")
    assert swept <= allowed


class Trained(L.LightningModule):
    """A plain step with a batch of 128, for two steps, of which the second is marked for the profiler."""

    def __init__(self) -> None:
        super().__init__()
        self.net = resnet10t()

    def train_dataloader(self):
        return DataLoader(TensorDataset(images(256, 1, 32), torch.arange(256) % 10), 128)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)

    def on_train_batch_start(self, batch, batch_idx):
        if batch_idx == 1:
            with record_function("the second step"):
                pass


def _peak_under_a_trainer(*callbacks: L.Callback) -> int:
    gc.collect()
    trainer = L.Trainer(
        accelerator="cpu", callbacks=list(callbacks), logger=False, enable_checkpointing=False, max_epochs=1,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        module = Trained()
        trainer.fit(module)
    return _peak(profiler, module)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("recipe", "limit"), [("fast", 1.05), ("best", LIMIT)])
def test_peak_memory_of_a_recipe(recipe, limit):
    options = {"mode": "structured", "recipe": recipe, "recalibration": {"images": 0}}
    plain, trained = _peak_under_a_trainer(), _peak_under_a_trainer(LCSCallback(**options))
    print(f"\n{recipe}: peak {trained / 1e6:.1f} MB / plain {plain / 1e6:.1f} MB = {trained / plain:.3f}")
    assert trained / plain <= limit


def test_the_measure_sees_a_step_that_keeps_every_level():
    """Negative control: summing the losses keeps all activations alive, and must show."""

    def build() -> tuple[nn.Module, Step]:
        model, _ = _swept("point")
        x, y = images(128, 1, 32), torch.arange(128) % 10

        def losses(optimizer: torch.optim.Optimizer) -> None:
            optimizer.zero_grad()
            total = torch.zeros(())
            for alpha in ALPHAS:
                with model.at_alpha(alpha):
                    total = total + nn.functional.cross_entropy(model(x), y)
            total.backward()

        return model, losses

    assert _peak_bytes(build) > LIMIT * _peak_bytes(_plain)
