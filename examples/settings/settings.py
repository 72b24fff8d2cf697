"""The settings of the training step that compare.py compares, by mode and name; `None` is plain training.

`learning_rate` is in multiples of the task's; all else are options of the callback.
"""

from typing import Any

from lightning_lcs import Quantized, Unstructured

# The widths 0.25, 0.5, 0.75 and 1; the shares 0.025, 0.05, 0.1, 0.25 and 1; and 3 to 8 bits.
ALPHAS = {
    "structured": [0.0, 1 / 3, 2 / 3, 1.0],
    "unstructured": [(share - 0.025) / 0.975 for share in (0.025, 0.05, 0.1, 0.25, 1.0)],
    "quantized": [bits / 6 for bits in range(1, 7)],
}
HALF = {"reduction": "full_half"}
TAUGHT = {**HALF, "distillation": "logits"}
LATE = {**HALF, "distillation": {"start": 0.3}}
SPLIT = {"split": [0.25, 0.25, 0.5], "sampler": "weighted_sandwich"}
SANDWICH = {"sampler": "weighted_sandwich", "alphas_per_step": 3}


def widths() -> dict[str, Any]:
    three = {"alphas_per_step": 3}
    return {
        "plain": None,
        "default": {},
        "recipe fast": {"recipe": "fast"},
        "recipe best": {"recipe": "best"},
        "4 levels, mean": {"sampling": {"alphas_per_step": 4}, "loss": {"reduction": "mean"}},
        "3 levels, full half": {"sampling": three, "loss": HALF},
        "3 levels, full half, distillation": {"sampling": three, "loss": TAUGHT},
        "3 levels, full half, distillation from 0.3": {"sampling": three, "loss": LATE},
        "3 levels, full half, distillation alone from 0.3": {
            "sampling": three,
            "loss": {**HALF, "distillation": {"start": 0.3, "weight": 1.0}},
        },
        **{
            f"3 levels, full half, distillation of features, {distance}": {
                "sampling": three,
                "loss": {
                    **HALF,
                    "distillation": {
                        "loss": "features",
                        "modules": ["features.1", "features.3", "features.5"],
                        "distance": distance,
                    },
                },
            }
            for distance in ("mse", "cosine")
        },
        "3 levels, full plus mean": {"sampling": three, "loss": {"reduction": "full_plus_mean"}},
        **{f"trained on {count} widths": {"sampling": {"levels": count}, "alphas": 13} for count in (4, 7, 13, 25)},
        "3 levels, sum": {"sampling": three, "loss": {"reduction": "sum"}},
        **{f"3 levels, full half, average of {decay}": {"ema_decay": decay} for decay in (0.9, 0.99)},
        "3 levels, weighted draws, full half": {"sampling": {"sampler": "weighted", **three}, "loss": HALF},
        "3 levels, uniform draws, full half": {"sampling": {"sampler": "uniform", **three}, "loss": HALF},
        "4 levels, full half": {"sampling": {"alphas_per_step": 4}, "loss": HALF},
        "2 levels, full half": {"sampling": {"sampler": "weighted"}, "loss": HALF},
        "2 levels, full half, distillation": {"sampling": {"sampler": "weighted"}, "loss": TAUGHT},
        "split batch": {"sampling": SPLIT},
        "split batch, 0.6 full": {"sampling": {**SPLIT, "split": [0.2, 0.2, 0.6]}},
        "split batch, 2 levels": {"sampling": {"split": [0.5, 0.5], "sampler": "weighted"}},
        "split batch, 2 levels, 0.6 full": {"sampling": {"split": [0.4, 0.6], "sampler": "weighted"}},
        "split batch, distillation": {"sampling": SPLIT, "loss": {"distillation": "logits"}},
        **{f"width {width} alone": {"sampling": {"sampler": [(width - 0.25) / 0.75]}} for width in (0.25, 0.5, 0.75)},
    }


def shares() -> dict[str, Any]:
    warmups = {
        "linear 0.8": {"warmup": 0.8, "warmup_schedule": "linear"},
        "linear 0.5": {"warmup": 0.5, "warmup_schedule": "linear"},
        "cubic 0.5": {"warmup": 0.5, "warmup_schedule": "cubic"},
    }
    modes = {
        "uniform": Unstructured(layer_density="uniform"),
        "ERK": Unstructured(layer_density="erk"),
        "global": Unstructured(scope="global", layer_density="uniform"),
    }
    # Name -> the options of a step, without the warm-up.
    steps: dict[str, dict[str, Any]] = {
        "1 level": {"sampling": {"sampler": "weighted_draws"}},
        "1 level, as in the paper": {"sampling": {"sampler": "biased_endpoints"}},
        "split batch": {"sampling": {"split": [0.25, 0.25, 0.5]}},
        "2 levels, full half": {"sampling": {"sampler": "weighted"}, "loss": HALF},
        "2 levels, full half, distillation": {"sampling": {"sampler": "weighted"}, "loss": TAUGHT},
        "3 levels, full half": {"sampling": SANDWICH, "loss": HALF},
        "3 levels, full half, distillation": {"sampling": SANDWICH, "loss": TAUGHT},
        **{
            f"share {share} alone": {"sampling": {"sampler": [(share - 0.025) / 0.975]}}
            for share in (0.025, 0.05, 0.1, 0.25)
        },
    }
    return {
        "default": {},
        "recipe fast": {"recipe": "fast"},
        "recipe best": {"recipe": "best"},
        **{
            f"{step}, {subspace}, {warmup}, {density}": {
                "mode": mode,
                "subspace": subspace,
                **options,
                "sampling": {**options["sampling"], **given},
            }
            for step, options in steps.items()
            for subspace in ("line", "point")
            for warmup, given in warmups.items()
            for density, mode in modes.items()
        },
    }


def bits() -> dict[str, Any]:
    modes = {
        "min to max": Quantized(per_channel=False, weight_range="minmax", input_range="minmax"),
        "min to max, per channel": Quantized(weight_range="minmax", input_range="minmax"),
        "weights of least error": Quantized(per_channel=False, input_range="minmax"),
        "least error": Quantized(per_channel=False),
        "least error, per channel": Quantized(),
    }
    # Name -> the options of a step.
    steps: dict[str, dict[str, Any]] = {
        "1 level": {"sampling": {"sampler": "uniform_draws", "warmup": 0.8}},
        **{
            f"1 level, inputs from {start}": {"sampling": {"sampler": "uniform_draws", "warmup": start}}
            for start in (0.3, 0.5)
        },
        "1 level, weighted, inputs from 0.3": {"sampling": {"sampler": "weighted_draws", "warmup": 0.3}},
        "1 level, weighted, inputs from 0.3, full learning rate": {
            "sampling": {"sampler": "weighted_draws", "warmup": 0.3},
            "learning_rate": 1.0,
        },
        "2 levels, full half, inputs from 0.3": {"sampling": {"sampler": "weighted", "warmup": 0.3}, "loss": HALF},
        "3 levels, inputs from 0.3": {"sampling": {**SANDWICH, "warmup": 0.3}},
        **{
            f"{count} bits alone, inputs from {start}": {"sampling": {"sampler": [(count - 2) / 6], "warmup": start}}
            for count in (3, 4, 6, 8)
            for start in (0.3, 0.8)
        },
        "3 bits alone, inputs from 0.3, full learning rate": {
            "sampling": {"sampler": [1 / 6], "warmup": 0.3},
            "learning_rate": 1.0,
        },
    }
    return {
        "default": {},
        "recipe fast": {"recipe": "fast"},
        "recipe best": {"recipe": "best"},
        **{
            f"{step}, {ranges}": {"mode": mode, "subspace": "point", **options}
            for step, options in steps.items()
            for ranges, mode in modes.items()
        },
    }


SETTINGS = {"structured": widths(), "unstructured": shares(), "quantized": bits()}
