"""Second endpoints while a trainer runs: hidden from the user's code, and trained as their partners are."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from lightning.pytorch import LightningModule
from torch import nn
from torch.optim import Optimizer

from lightning_lcs.subspace.weights import endpoints
from lightning_lcs.training.user_code.patches import Patches, StandIn, is_overridden

# Hooks that check, clip, drop and clear gradients: what they do has to reach both endpoints.
GRADIENT_HOOKS = (
    "on_after_backward",
    "on_before_optimizer_step",
    "configure_gradient_clipping",
    "optimizer_zero_grad",
)
# The module's hook that clears the gradients of all parameters, before a validation in fit.
CLEARING_HOOK = "on_validation_model_zero_grad"
# Lightning's finetuning callbacks name every parameter of an optimizer in these.
FINETUNING_HOOKS = ("on_fit_start", "on_train_epoch_start")

Pairs = Sequence[tuple[nn.Parameter, nn.Parameter]]
"""``(w0, w1)`` of every parameter on the line."""


class HiddenEndpoints:
    """Hides all second endpoints inside a module, except from code that has to treat them as their partners.

    User code that goes through ``parameters()`` sees its own network, so that networks and averages that are paired by
    position stay pairs. Endpoints in copies of the network are hidden, too.

    Args:
        module: The user's LightningModule.
    """

    def __init__(self, module: LightningModule) -> None:
        self.module = module
        self._holders: list[nn.Module] | None = None  # while they are hidden

    @property
    def are_hidden(self) -> bool:
        """Whether they are hidden now."""
        return self._holders is not None

    def hide(self) -> None:
        """Hide them until :meth:`show`."""
        self._holders = endpoints.hide(self.module.modules())

    def hide_again(self) -> None:
        """Where they are hidden, hide those of copies that were made meanwhile, too."""
        if self._holders is not None:
            self.hide()

    def show(self) -> None:
        """Show them."""
        endpoints.show(self.module.modules())
        self._holders = None

    def show_in(self, patches: Patches, callbacks: Iterable[Any], pairs: Callable[[], Pairs]) -> None:
        """Show them while hooks run that build optimizers or handle gradients.

        Args:
            patches: Replaces the hooks.
            callbacks: The trainer's callbacks.
            pairs: Gives ``(w0, w1)`` of every parameter on the line.
        """
        self._show_in(patches, self.module, "configure_optimizers")
        clearing = StandIn(getattr(self.module, CLEARING_HOOK), functools.partial(_clear_alike, pairs))
        patches.set(self.module, CLEARING_HOOK, clearing)
        for owner in (self.module, *callbacks):
            for name in GRADIENT_HOOKS:
                if is_overridden(owner, name):
                    self._show_in(patches, owner, name)
            if any(kind.__name__ == "BaseFinetuning" for kind in type(owner).__mro__):
                for name in FINETUNING_HOOKS:
                    self._show_in(patches, owner, name)

    def _show_in(self, patches: Patches, owner: Any, name: str) -> None:
        def instead(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            with self.shown():
                return original(*args, **kwargs)

        patches.set(owner, name, StandIn(getattr(owner, name), instead))

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Inside the block they are shown; afterwards they are hidden, if they were before."""
        holders = self._holders
        if holders is None:
            yield
            return
        endpoints.show(holders)
        self._holders = None
        try:
            yield
        finally:
            self._holders = endpoints.hide(holders)


def _clear_alike(pairs: Callable[[], Pairs], original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Run a hook that clears gradients, and clear each endpoint 0, which it does not see, where it cleared the partner.

    A partner without gradients has been cleared: where one endpoint has gradients after a step, both have.
    """
    held = [(w0, w1, _has_gradients(w1)) for w0, w1 in pairs()]
    output = original(*args, **kwargs)
    for w0, w1, had in held:
        if w1.grad is None:
            w0.grad = None
        elif had and w0.grad is not None and not _has_gradients(w1):
            w0.grad.zero_()
    return output


def _has_gradients(parameter: nn.Parameter) -> bool:
    """Whether a parameter has gradients other than zero."""
    return parameter.grad is not None and bool(parameter.grad.any())


def all_parameters(module: nn.Module, pairs: Pairs, optimizers: Iterable[Optimizer]) -> list[nn.Parameter]:
    """The parameters of a module, the second endpoints, which may be hidden, and what else optimizers train."""
    trained = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    return list({id(p): p for p in (*module.parameters(), *(w0 for w0, _ in pairs), *trained)}.values())


def check_groups(pairs: Pairs, optimizers: Sequence[Optimizer]) -> None:
    """Check that each endpoint 0 is in the parameter group of its partner.

    Raises:
        RuntimeError: An optimizer was built without the second endpoints of the parameters that it trains.
    """
    places = _places(optimizers)
    missing = sum(id(w1) in places and places.get(id(w0)) != places[id(w1)] for w0, w1 in pairs)
    if missing:
        raise RuntimeError(
            f"{missing} second endpoints are not in the optimizer's parameter group of their partners, so that they "
            "would not be trained alike; build the optimizer in configure_optimizers from parameters() or "
            "named_parameters() of the module or its network, or use subspace='point'"
        )


def train_alike(pairs: Pairs, optimizers: Sequence[Optimizer]) -> None:
    """Train each endpoint 0 exactly where its partner is trained: in the same group, and frozen with it.

    An endpoint joins the group to which its partner was added since training began. An endpoint whose partner no
    optimizer trains is frozen, even where an optimizer holds it: finetuning callbacks leave frozen batch norms out of
    their groups, and do not know that the endpoints inside belong to them.
    """
    endpoints.follow(pairs)
    places = _places(optimizers)
    for w0, w1 in pairs:
        if id(w1) not in places:
            w0.requires_grad_(w0.requires_grad and id(w0) not in places)
        elif id(w0) not in places:
            number, index = places[id(w1)]
            optimizers[number].param_groups[index]["params"].append(w0)


def _places(optimizers: Sequence[Optimizer]) -> dict[int, tuple[int, int]]:
    """The number of the optimizer and of its group that each parameter is in."""
    return {
        id(parameter): (number, index)
        for number, optimizer in enumerate(optimizers)
        for index, group in enumerate(optimizer.param_groups)
        for parameter in group["params"]
    }
