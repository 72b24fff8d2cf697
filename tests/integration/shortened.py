"""Lightning's trainer and our callback as docs and examples use them, but for two batches and few levels."""

import lightning as L

import lightning_lcs


class ShortTrainer(L.Trainer):
    """On the CPU, without bars."""

    def __init__(self, **options):
        short = {"max_epochs": 1, "limit_train_batches": 2, "limit_val_batches": 1, "limit_predict_batches": 1}
        quiet = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
        super().__init__(**{"logger": False, **options, **short, **quiet, "log_every_n_steps": 1})


class QuickCallback(lightning_lcs.LCSCallback):
    """Three levels, and statistics of two from 32 images."""

    def __init__(self, *args, **options):
        quick = {"alphas": 3, "recalibration": {"levels": [0.0, 0.5], "images": 32}}
        super().__init__(*args, **{**quick, **options})


class QuickMonitor(lightning_lcs.TradeoffMonitor):
    """Three levels."""

    def __init__(self, alphas=3, **options):
        super().__init__(alphas, **options)
