"""``lightning-lcs coverage``: how much of networks of timm and torchvision shrinks with structured compression."""

from __future__ import annotations

import dataclasses
import inspect
import time
import warnings
from collections import Counter
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lightning_lcs.model import SubspaceModel
from lightning_lcs.subspace.modes import Structured
from lightning_lcs.utils.extras import needed_for

SHOWN = 2  # The number of reasons that are shown; --whole lists the dimensions.
TORCHVISION = "torchvision:"


@dataclasses.dataclass
class Coverage:
    """How much of a network shrinks at a level.

    Attributes:
        params: The share of parameters that are left.
        macs: The share of multiply-accumulates that are left.
        seconds: The seconds that it took to trace, plan and check both forms, for training and for evaluation.
        identity: The relative difference of the traced network at width 1 from the network; 0 means bitwise equal.
        whole: By the operation that keeps them whole, the number of such dimensions that are neither input nor output.
    """

    params: float
    macs: float
    seconds: float
    identity: float
    whole: dict[str, int]


def coverage(networks: list[str], width: float = 0.5, image_size: int | None = None, whole: bool = False) -> None:
    """Say whether structured compression works for networks, and how much of each network shrinks.

    Each network is built with random weights, traced for training and evaluation, and run at full width and at the
    given width. The columns are the shares of parameters and multiply-accumulates that are left, the seconds that
    tracing and planning took, the difference of the traced network at width 1 from the network, and the dimensions that
    are kept whole, by the operation that keeps them. The exit code is 1 if a network fails.

    Args:
        networks: Names in timm, or torchvision:NAME.
        width: The share of channels that are kept, in (0, 1).
        image_size: The side of the images in pixels. The default is the size that the network is made for, or 224.
        whole: List every dimension that is kept whole.
    """
    if not 0.0 < width < 1.0:
        raise ValueError(f"--width is {width:g}, and has to be between 0 and 1")
    if image_size is not None and image_size < 1:
        raise ValueError(f"--image-size is {image_size}, and has to be at least 1")
    table = Table(
        title=f"at width {width:g}", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
    )
    for heading in ("network", "pixels", "params", "MACs", "seconds", "width 1", "kept whole"):
        named = heading in ("network", "kept whole")
        table.add_column(heading, justify="left" if named else "right", no_wrap=heading == "network")
    below, failed = [], []
    for name in networks:
        try:
            net, x = build(name, image_size)
            model, seconds = prepared(net, x, Structured(min_width=width))
            found = measured(model, x, 0.0, seconds)
        except Exception as error:  # A network may raise any error.
            failed.append(f"{name} failed: {error} ({type(error).__name__})")
            continue
        below.append(f"{name}: {model.report(0.0)}")
        same = "bitwise" if found.identity == 0 else f"{found.identity:.0e}"
        shares = f"{found.params:.3f}", f"{found.macs:.3f}"
        table.add_row(name, str(x.shape[-1]), *shares, f"{seconds:.1f}", same, _shortened(found.whole))
    console = Console(highlight=False, soft_wrap=True)
    if table.row_count:
        console.print(table)
    for line in (below if whole else []) + failed:
        console.print(line, markup=False)
    if failed:
        raise SystemExit(1)


def build(name: str, size: int | None = None, **options: Any) -> tuple[nn.Module, Tensor]:
    """A network with random weights, and three random images for it.

    Args:
        name: The name in timm, or "torchvision:NAME".
        size: The side of the images in pixels. The default is what the network is made for.
        options: The options of its constructor.

    Raises:
        ValueError: There is no such network.
    """
    torch.manual_seed(0)
    channels, made_for = 3, 224
    if name.startswith(TORCHVISION):
        with needed_for("a network of torchvision"):
            import torchvision

        plain = name.removeprefix(TORCHVISION)
        if plain not in torchvision.models.list_models():
            raise ValueError(f"torchvision has no network {plain!r}")
        net: nn.Module = torchvision.models.get_model(plain, weights=None, **_offline(plain), **options)
    else:
        with needed_for("a network of timm"):
            import timm

        if not timm.is_model(name.partition(".")[0]):
            raise ValueError(
                f"timm has no network {name!r}; timm.list_models() names them, torchvision:NAME is torchvision's"
            )
        net = timm.create_model(name, **options)
        settings: dict[str, Any] = net.pretrained_cfg  # type: ignore[assignment]
        channels, made_for, _ = settings["input_size"]
    side = size or made_for
    return net.eval(), torch.randn(3, channels, side, side, generator=torch.Generator().manual_seed(0))


def _offline(name: str) -> dict[str, Any]:
    """Options that keep a network of torchvision from downloading weights, and from drawing them for minutes."""
    import torchvision

    taken = inspect.signature(torchvision.models.get_model_builder(name)).parameters
    options = {"weights_backbone": None} if "weights_backbone" in taken else {}
    return {**options, **({"init_weights": False} if name in ("googlenet", "inception_v3") else {})}


def prepared(net: nn.Module, x: Tensor, mode: Structured | None = None) -> tuple[SubspaceModel, float]:
    """A traced point subspace in evaluation, and the seconds that tracing took.

    Args:
        net: The network.
        x: Its input, with two samples or more.
        mode: The mode. The default is ``Structured()``.

    Raises:
        TraceError: The network can't be traced.
    """
    started = time.monotonic()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*stay whole at every level")  # The table shows this already.
        model = SubspaceModel(net, x[:2], mode=mode or Structured(), subspace="point").eval()
    model.runner.evaluation.warns = False
    return model, time.monotonic() - started


def measured(model: SubspaceModel, x: Tensor, alpha: float, seconds: float) -> Coverage:
    """How much of a network shrinks at a level.

    Args:
        model: The traced subspace.
        x: The input of the network.
        alpha: The level.
        seconds: The seconds that tracing took.

    Raises:
        ValueError: The result at this level is not finite.
    """
    with torch.no_grad(), model.at_alpha(alpha):
        if not all(torch.isfinite(leaf).all() for leaf in _tensors(model(x))):
            raise ValueError(f"the result at alpha={alpha:g} is not finite")
    full, small = model.efficiency(1.0), model.efficiency(alpha)
    shares = small.params / full.params, small.macs / max(1, full.macs)
    whole = Counter(why.split(" in ")[0] for items in model.plan.dimensions_kept_whole().values() for _, why in items)
    return Coverage(*shares, seconds, identity(model, x), dict(whole))


def identity(model: SubspaceModel, x: Tensor) -> float:
    """The largest difference of the traced graph at full width from the network, relative to the largest output."""
    part = model.parts[0]
    with torch.no_grad():
        program = part.network.in_mode(False)
        at = part.network.plan.selection(1.0)
        tensors = [part.network.tensor(name) for name in program.names]
        ours = _tensors(program.run(tensors, [at.size(dim) for dim in program.sizes], (x,), {}))
        theirs = _tensors(part.network.module(x))
    tiny = torch.finfo(x.dtype).tiny
    pairs = zip(ours, theirs, strict=True)
    return max(
        0.0 if torch.equal(a, b) else float((a - b).abs().max() / b.abs().max().clamp_min(tiny)) for a, b in pairs
    )


def _shortened(whole: dict[str, int]) -> str:
    listed = [f"{why} ({count})" for why, count in sorted(whole.items(), key=lambda item: -item[1])]
    return ", ".join(listed[:SHOWN]) + (f", {len(listed) - SHOWN} more" if len(listed) > SHOWN else "")


def _tensors(output: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
