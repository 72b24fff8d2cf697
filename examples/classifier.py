"""A plain LightningModule, as in many projects, without any reference to lightning-lcs."""

import lightning as L
import timm
import torch
from torchmetrics.classification import MulticlassAccuracy


class Classifier(L.LightningModule):
    def __init__(self, name: str, in_chans: int = 3, num_classes: int = 10, learning_rate: float = 0.05) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = timm.create_model(name, in_chans=in_chans, num_classes=num_classes)
        self.loss = torch.nn.CrossEntropyLoss()
        self.val_acc = MulticlassAccuracy(num_classes, average="micro")

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.net(images)

    def training_step(self, batch, batch_idx):
        images, labels = batch
        loss = self.loss(self.net(images), labels)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        images, labels = batch
        self.val_acc(self.net(images), labels)
        self.log("val_acc", self.val_acc, prog_bar=True)

    def predict_step(self, batch, batch_idx):
        return self.net(batch[0])

    def configure_optimizers(self):
        rate, steps = self.hparams.learning_rate, int(self.trainer.estimated_stepping_batches)
        optimizer = torch.optim.SGD(self.parameters(), lr=rate, momentum=0.9, weight_decay=5e-4, nesterov=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rate, total_steps=steps, pct_start=0.1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
