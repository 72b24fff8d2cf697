"""Bits for an NPU: train at 3 to 8 bits, choose the number of bits, and export the level of 8 bits as integers.

python examples/quantized_for_npu.py     # two minutes on one core

The ONNX file has the QDQ form that compilers of NPUs read; here onnxruntime runs it.
"""

import argparse
from pathlib import Path

import lightning as L
import numpy as np
import onnxruntime
import torch
from classifier import Classifier

from lightning_lcs import LCSCallback
from lightning_lcs.data import DigitsDataModule
from lightning_lcs.export.int8_onnx import export_int8


def fewest_bits(curve, loss: float):
    """The point with the fewest bits whose accuracy is at most ``loss`` below the best one."""
    best = max(point.metrics["val_acc"] for point in curve)
    return min((p for p in curve if p.metrics["val_acc"] >= best - loss), key=lambda point: point.bit_width)


def accuracy_of_file(path: Path, loader) -> float:
    """The accuracy of the file in onnxruntime on the validation images."""
    session = onnxruntime.InferenceSession(path)
    name = session.get_inputs()[0].name
    answers = [(session.run(None, {name: images.numpy()})[0].argmax(1), labels.numpy()) for images, labels in loader]
    return float(np.mean(np.concatenate([answer == labels for answer, labels in answers])))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--loss", type=float, default=0.01, help="the accuracy that fewer bits may cost")
    parser.add_argument(
        "--agreement", type=float, default=0.95, help="the minimum agreement of the file with the simulation"
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/npu"))
    arguments = parser.parse_args()
    L.seed_everything(0, verbose=False)
    data = DigitsDataModule()
    lcs = LCSCallback(mode="quantized")
    trainer = L.Trainer(max_epochs=arguments.epochs, callbacks=[lcs], default_root_dir=arguments.folder)
    trainer.fit(Classifier("resnet10t", in_chans=1), datamodule=data)

    chosen = fewest_bits(lcs.curve, arguments.loss)
    print(f"Within {arguments.loss:.1%} of the best: {chosen.bit_width} bits (alpha {chosen.alpha:.3f}).")

    # Real images give the ranges of the values that are rounded in addition: outputs of convolutions, and shortcuts.
    images = torch.cat([batch for batch, _ in data.train_dataloader()])[:128]
    file = export_int8(
        lcs.subspace_model.eval(), arguments.folder / "int8.onnx", images, min_agreement=arguments.agreement
    )
    accuracy = accuracy_of_file(file.path, data.val_dataloader())
    print(
        f"{file.path}: 8 bits as integers, {file.size_bytes / 1e6:.2f} MB, the simulation's answer for "
        f"{file.agreement:.1%} of {len(images)} images; {accuracy:.4f} of the validation images right in onnxruntime."
    )


if __name__ == "__main__":
    main()
