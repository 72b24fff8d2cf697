"""An adapter for data modules that don't derive from ``lightning.pytorch``, such as those of lightning-bolts."""

from __future__ import annotations

from typing import Any, Protocol

import lightning.pytorch as pl

# All hooks that a trainer calls, except for setup, which also passes the trainer on.
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
    """What an adapted data module needs; ``setup`` and all other hooks of a data module are optional."""

    def train_dataloader(self) -> Any:
        """One or more loaders of training batches."""


class AdaptedDataModule(pl.LightningDataModule):
    """Makes a data module of ``lightning.pytorch`` out of any object with the methods of one.

    ``lightning.pytorch`` and its command line accept only data modules of their own class, whereas those of
    lightning-bolts 0.7 derive from ``pytorch_lightning``. Attributes of the adapted data module, such as
    ``num_classes`` and ``batch_size``, can be read from the adapter.

    Args:
        datamodule: The data module to adapt. In YAML it is a ``class_path`` with ``init_args``.

    Raises:
        TypeError: ``datamodule`` has no method ``train_dataloader``.

    Example:
        >>> import torch
        >>> from lightning_lcs.data import AdaptedDataModule
        >>> class Noise:
        ...     num_classes = 10
        ...     def train_dataloader(self):
        ...         return [(torch.randn(8, 3, 32, 32), torch.zeros(8, dtype=torch.long))]
        >>> data = AdaptedDataModule(Noise())
        >>> data.num_classes, len(data.train_dataloader())
        (10, 1)
    """

    def __init__(self, datamodule: DataModuleLike) -> None:
        super().__init__()
        if not callable(getattr(datamodule, "train_dataloader", None)):
            raise TypeError(
                f"datamodule={datamodule!r} has no method train_dataloader(): pass a data module, or any object with "
                "the methods of one"
            )
        self.datamodule = datamodule
        self.prepare_data_per_node = getattr(datamodule, "prepare_data_per_node", True)
        for hook in _HOOKS:
            # A trainer checks whether a hook is overridden, and bound methods of the other module pass that check.
            if _is_own(datamodule, hook):
                setattr(self, hook, getattr(datamodule, hook))

    def setup(self, stage: str) -> None:
        """Pass the trainer on to the adapted data module, and set it up."""
        if hasattr(self.datamodule, "trainer"):
            self.datamodule.trainer = self.trainer
        if _is_own(self.datamodule, "setup"):
            self.datamodule.setup(stage)  # type: ignore[attr-defined]

    def __getattr__(self, name: str) -> Any:
        # Python calls this only for attributes that are missing. "datamodule" itself is missing in an incomplete copy,
        # where looking it up would never end.
        if name == "datamodule":
            raise AttributeError(name)
        return getattr(self.datamodule, name)


def _is_own(datamodule: object, hook: str) -> bool:
    """Whether a data module defines this hook itself, rather than inheriting an empty one from Lightning."""
    if hook in getattr(datamodule, "__dict__", {}):
        return True
    home = next((kind for kind in type(datamodule).__mro__ if hook in vars(kind)), None)
    return home is not None and home.__module__.partition(".")[0] not in ("pytorch_lightning", "lightning")
