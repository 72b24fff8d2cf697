"""Every file that ModelCheckpoint writes, however it is set, opens as a subspace."""

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_lcs import SubspaceModel
from tests.integration.support import digits
from tests.integration.test_resume import Mine, Run, assert_same

# Means and variances of a convolution's outputs in float32.
STATISTICS_TOLERANCE = 1e-5


class Steps(Callback):
    """Both endpoints after every step."""

    def __init__(self):
        self.seen = {}

    def on_train_batch_end(self, trainer, *args):
        pairs = trainer.callbacks[0].subspace_model.endpoint_pairs()
        self.seen[trainer.global_step] = [w.detach().clone() for pair in pairs for w in pair]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"save_weights_only": True}, [6]),
        ({"save_last": True}, [6, 6]),
        ({"save_last": "link", "save_top_k": -1}, [3, 6, 6]),
        ({"save_top_k": -1, "save_weights_only": True}, [3, 6]),
        ({"save_top_k": 1, "monitor": "lcs/val_loss/mean", "mode": "max"}, [3]),
        ({"every_n_train_steps": 2, "save_top_k": -1}, [2, 4, 6]),
        ({"every_n_train_steps": 2, "save_top_k": -1, "save_last": True, "save_weights_only": True}, [2, 4, 6, 6]),
        ({"every_n_train_steps": 4}, [4]),
        ({"every_n_epochs": 2}, [6]),
    ],
    ids=lambda given: "-".join(given) if isinstance(given, dict) else "",
)
def test_every_file_holds_both_endpoints_and_their_statistics(tmp_path, options, expected):
    steps = Steps()
    Run(tmp_path, "line", steps, ModelCheckpoint(tmp_path, "{step}", **options))
    found = []
    for path in tmp_path.glob("*.ckpt"):
        found.append(torch.load(path, weights_only=True)["global_step"])
        model = SubspaceModel.from_checkpoint(path, Mine())
        assert_same([w for pair in model.endpoint_pairs() for w in pair], steps.seen[found[-1]])
        statistics = model.statistics
        model.recalibrate(digits(0, 48).tensors[0].split(16), list(statistics))
        assert statistics.keys() == {0.0, 0.5}
        # Collected by training_step there, by the network alone here.
        torch.testing.assert_close(model.statistics, statistics, rtol=0.0, atol=STATISTICS_TOLERANCE)
    assert sorted(found) == expected
