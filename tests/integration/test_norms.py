"""Networks whose norms were converted, in a user's project."""

import pytest
import torch

from lightning_lcs import SubspaceModel
from tests.integration.support import Data, Module, Net, lcs, trainer


def test_checkpoints(tmp_path):
    module, callback = Module(), lcs(norm="instance")
    run = trainer(tmp_path, callback)
    run.fit(module, datamodule=Data())
    run.save_checkpoint(tmp_path / "last.ckpt")
    # The user's own class has running statistics: it must not take the file for its own.
    with pytest.raises(RuntimeError, match="running_mean"):
        Module.load_from_checkpoint(tmp_path / "last.ckpt")
    for opened in (Module(), Net()):
        model = SubspaceModel.from_checkpoint(tmp_path / "last.ckpt", opened)
        x = torch.randn(2, 1, 8, 8)
        callback.subspace_model.eval()
        for alpha in (0.0, 0.5, 1.0):
            with torch.no_grad(), model.at_alpha(alpha), callback.subspace_model.at_alpha(alpha):
                assert torch.equal(model(x), callback.subspace_model(x))
    again = lcs(norm="instance")
    trainer(tmp_path, again).validate(Module(), datamodule=Data(), ckpt_path=tmp_path / "last.ckpt", verbose=False)
    for old, new in zip(callback.curve, again.curve, strict=True):
        assert old.metrics["val_acc"] == pytest.approx(new.metrics["val_acc"], abs=1e-6)
