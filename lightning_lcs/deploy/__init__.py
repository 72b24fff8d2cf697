"""What runs on the device, or prepares a network for it; imports neither Lightning nor timm nor wandb."""
