"""Save every width in one file, load it without Lightning or timm, and let a controller choose the width.

    python examples/deploy_and_control.py     # a minute on two cores

The controller keeps the network within a latency target, which is chosen so that the full network misses it even
without other load. lightning-lcs serve-demo shows the same under changing load.
"""

import argparse
import logging
import warnings
from pathlib import Path

import lightning as L
import torch
from classifier import Classifier

from lightning_lcs import LCSCallback, Recalibration, RuntimeController, SubspaceModel
from lightning_lcs.control.controller import measure_profile
from lightning_lcs.control.latency_target import LatencyTarget
from lightning_lcs.control.policies import BatterySaver, CpuPressure
from lightning_lcs.control.recording import replay
from lightning_lcs.data import DigitsDataModule


def train_and_save(path: Path, model: str, epochs: int, batches: float) -> None:
    warnings.filterwarnings("ignore", module="lightning")  # this advice does not apply to 1,797 small images
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    L.seed_everything(0, verbose=False)
    lcs = LCSCallback(mode="structured", alphas=3, recalibration=Recalibration(images=512, levels=7))
    options = {"accelerator": "cpu", "default_root_dir": path.parent}
    options |= {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    L.Trainer(max_epochs=epochs, limit_train_batches=batches, callbacks=[lcs], **options).fit(
        Classifier(model, in_chans=1), DigitsDataModule()
    )
    lcs.subspace_model.eval().save(path)


@torch.inference_mode()
def serve(net: SubspaceModel, recording: Path, rounds: int) -> None:
    data = DigitsDataModule(batch_size=16)
    data.setup("validate")
    batches = list(data.val_dataloader())
    profile = measure_profile(net, batches[0][0])
    target_ms = (profile[min(profile)] + profile[max(profile)]) / 2
    print("\nmedian latency: " + ", ".join(f"{ms:.1f} ms at alpha {alpha:.2f}" for alpha, ms in profile.items()))
    policies = [
        LatencyTarget(latency_ms=target_ms, profile=profile),
        BatterySaver(below=0.3),  # abstains if there is no battery
        CpuPressure(high=0.8, low=0.5),  # abstains if the kernel has no PSI
    ]
    with RuntimeController(net, policies, levels=sorted(profile), dwell_s=0.2, recording=recording) as controller:
        right, images = 0, 0
        for _ in range(rounds):
            for x, labels in batches:
                right += (controller(x).argmax(1) == labels).sum().item()
                images += len(labels)
                controller.step()
    print(f"target {target_ms:.1f} ms: now at alpha {controller.alpha:.2f}. {controller.reason}")
    print(f"accuracy over {images} images at the levels chosen: {right / images:.1%}")
    again = [decision.alpha for decision in replay(recording)]
    print(f"{len(again)} decisions in {recording}; a replay makes the same decisions: ", end="")
    print(again == [decision.alpha for decision in controller.log][-len(again) :])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet10t")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batches", type=float, default=1.0, help="of an epoch, as Lightning's limit_train_batches")
    parser.add_argument("--rounds", type=int, default=20, help="through the validation images")
    parser.add_argument("--folder", type=Path, default=Path("runs/control"))
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    path = arguments.folder / "model.lcs"
    train_and_save(path, arguments.model, arguments.epochs, arguments.batches)
    serve(SubspaceModel.load(path), arguments.folder / "recording.jsonl", arguments.rounds)


if __name__ == "__main__":
    main()
