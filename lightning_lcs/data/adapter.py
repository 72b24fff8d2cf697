"""Data modules of other class trees than ``lightning.pytorch``: lightning-bolts', ``pytorch_lightning``'s, your own."""

from __future__ import annotations

from typing import Any, Protocol

import lightning.pytorch as pl

# Whatever a trainer asks a data module for, but for ``setup``, which passes the trainer on.
_HOOKS = (
    "prepare_data",
    "train_dataloader",
    "val_dataloader",
    "test_dataloader",
    "predict_dataloader",
    "on_before_batch_transfer",
    "transfer_batch_to_device",
    "on_after_batch_transfer",
    "teardown",
    "state_dict",
    "load_state_dict",
    "on_exception",
)


class DataModuleLike(Protocol):
    """What an adapted data module has at least; ``setup`` and all other hooks of a data module are optional."""

    def train_dataloader(self) -> Any:
        """Loader or loaders of training batches."""


class AdaptedDataModule(pl.LightningDataModule):
    """Any object with the methods of a data module, as one of ``lightning.pytorch`` and of its command line.

    ``lightning.pytorch`` runs only data modules of its own class; those of lightning-bolts 0.7 belong to
    ``pytorch_lightning``. Attributes of the adapted data module (``num_classes``, ``batch_size``) are read through it.

    Args:
        datamodule: the data module; in YAML a ``class_path`` with ``init_args``.

    Raises:
        TypeError: it has no ``train_dataloader`` method.
    """

    def __init__(self, datamodule: DataModuleLike) -> None:
        super().__init__()
        if not callable(getattr(datamodule, "train_dataloader", None)):
            raise TypeError(
                f"datamodule={datamodule!r} has no train_dataloader() method: give a data module, or any object with "
                "its methods"
            )
        self.datamodule = datamodule
        self.prepare_data_per_node = getattr(datamodule, "prepare_data_per_node", True)
        for hook in _HOOKS:
            # A trainer asks whether a hook is overridden; bound methods of the other module answer that rightly.
            if _is_own(datamodule, hook):
                setattr(self, hook, getattr(datamodule, hook))

    def setup(self, stage: str) -> None:
        """Let the adapted data module see the trainer, and set it up."""
        if hasattr(self.datamodule, "trainer"):
            self.datamodule.trainer = self.trainer
        if _is_own(self.datamodule, "setup"):
            self.datamodule.setup(stage)  # type: ignore[attr-defined]

    def __getattr__(self, name: str) -> Any:
        # Only for what this class has not; without the check a half-made copy would look for itself for ever.
        if name == "datamodule":
            raise AttributeError(name)
        return getattr(self.datamodule, name)


def _is_own(datamodule: object, hook: str) -> bool:
    """Whether a data module brings this hook itself, rather than inheriting what does nothing from its Lightning."""
    if hook in getattr(datamodule, "__dict__", {}):
        return True
    home = next((kind for kind in type(datamodule).__mro__ if hook in vars(kind)), None)
    return home is not None and home.__module__.partition(".")[0] not in ("pytorch_lightning", "lightning")
