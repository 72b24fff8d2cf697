"""What the callbacks do to a Trainer and a LightningModule."""
