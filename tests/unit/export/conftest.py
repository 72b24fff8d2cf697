import pytest
import torch

from tests.unit.export.integers import NETWORKS, digits, trained


@pytest.fixture(scope="session", params=NETWORKS)
def network(request):
    data = digits()
    network = trained(request.param, data)
    train = [x for _, (x, _) in zip(range(3), data.train_dataloader(), strict=False)]
    return network, train, torch.cat([x for x, _ in data.val_dataloader()])
