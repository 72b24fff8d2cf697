"""The settings of the training step that compare.py compares, by mode and name; `None` is plain training."""

from lightning_lcs import Quantized

# The widths 0.25, 0.5, 0.75 and 1; the shares 0.025, 0.05, 0.1, 0.25 and 1; and 3 to 8 bits.
ALPHAS = {
    "structured": [0.0, 1 / 3, 2 / 3, 1.0],
    "unstructured": [(share - 0.025) / 0.975 for share in (0.025, 0.05, 0.1, 0.25, 1.0)],
    "quantized": [bits / 6 for bits in range(1, 7)],
}
CUBIC = {"warmup": 0.5, "warmup_schedule": "cubic"}
HALF = {"reduction": "full_half"}
TAUGHT = {**HALF, "distillation": "logits"}
PER_CHANNEL = Quantized(per_channel=True)
SETTINGS = {
    "structured": {
        "plain": None,
        "default": {},
        "3 levels, full half": {"sampling": {"alphas_per_step": 3}, "loss": HALF},
        "3 levels, full half, distillation": {"sampling": {"alphas_per_step": 3}, "loss": TAUGHT},
        "3 levels, full half, distillation from 0.3": {
            "sampling": {"alphas_per_step": 3},
            "loss": {**HALF, "distillation": {"start": 0.3}},
        },
        "2 levels, full half": {"sampling": {"sampler": "weighted"}, "loss": HALF},
        "2 levels, full half, distillation": {"sampling": {"sampler": "weighted"}, "loss": TAUGHT},
        "split batch": {"sampling": {"split": True}},
        "split batch, distillation": {"sampling": {"split": True}, "loss": {"distillation": "logits"}},
    },
    "unstructured": {
        "the paper's line": {"subspace": "line", "sampling": {"sampler": "biased_endpoints"}},
        "default": {},
        "line, warm-up 0.5": {"subspace": "line", "sampling": {"warmup": 0.5}},
        "line, cubic 0.5": {"subspace": "line", "sampling": CUBIC},
        "point, cubic 0.5": {"subspace": "point", "sampling": {"sampler": "weighted_draws", **CUBIC}},
        "line, split batch, cubic 0.5": {"subspace": "line", "sampling": {"split": True, **CUBIC}},
        "point, split batch, cubic 0.5": {"subspace": "point", "sampling": {"split": True, **CUBIC}},
        "point, 2 levels, full half, cubic 0.5": {
            "subspace": "point",
            "sampling": {"sampler": "weighted", **CUBIC},
            "loss": HALF,
        },
        "point, 2 levels, full half, cubic 0.5, distillation": {
            "subspace": "point",
            "sampling": {"sampler": "weighted", **CUBIC},
            "loss": TAUGHT,
        },
        "point, 3 levels, full half, cubic 0.5": {
            "subspace": "point",
            "sampling": {"sampler": "weighted_sandwich", "alphas_per_step": 3, **CUBIC},
            "loss": HALF,
        },
        "the share 0.05 alone": {
            "subspace": "point",
            "sampling": {"sampler": [ALPHAS["unstructured"][1]], **CUBIC},
        },
    },
    "quantized": {
        "default": {},
        "weighted draws, warm-up 0.3": {"sampling": {"sampler": "weighted_draws", "warmup": 0.3}},
        "per channel": {"mode": PER_CHANNEL},
        "per channel, weighted draws, warm-up 0.3": {
            "mode": PER_CHANNEL,
            "sampling": {"sampler": "weighted_draws", "warmup": 0.3},
        },
        "per channel, 3 levels, warm-up 0.3": {
            "mode": PER_CHANNEL,
            "sampling": {"sampler": "weighted_sandwich", "alphas_per_step": 3, "warmup": 0.3},
        },
        "3 bits alone, per channel": {"mode": PER_CHANNEL, "sampling": {"sampler": [1 / 6], "warmup": 0.3}},
    },
}
