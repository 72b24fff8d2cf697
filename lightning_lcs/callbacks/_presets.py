"""Named settings of the callback: those of arXiv 2110.04252."""

from __future__ import annotations

from typing import Any

from lightning_lcs.modes import Mode, Quantized, Unstructured

# At which arXiv 2110.04252 evaluates its unstructured subspaces.
PAPER_SHARES_KEPT = (0.025, 0.05, 0.075, 0.1, 0.125, 0.15, 0.175, 0.2, 0.25, 0.5, 0.75, 0.9, 0.95, 1.0)


def paper_settings(mode: str, subspace: str) -> dict[str, Any]:
    """Options of :class:`LCSCallback` as the paper has them; see :meth:`LCSCallback.paper`."""
    modes: dict[str, Mode] = {"unstructured": Unstructured(), "quantized": Quantized(edge_bits=32)}
    structured = mode == "structured"
    settings: dict[str, Any] = {
        "mode": modes.get(mode, mode),
        "subspace": subspace,
        "norm": "instance" if structured else "group",
        "line_parameters": "norm" if structured else "backbone",
        "endpoint_start": "independent",
        "diversity_weight": 1.0,
    }
    if mode == "unstructured":
        settings["alphas"] = [(kept - 0.025) / 0.975 for kept in PAPER_SHARES_KEPT]
    return settings
