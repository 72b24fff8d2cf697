"""Where options are given that users may look for elsewhere."""

from __future__ import annotations

import dataclasses

from lightning_lcs.subspace.modes.registry import MODES


def model_places() -> dict[str, str]:
    """By the name of an option of a line or a mode, the end of a sentence that says where the option is given."""
    of_modes = {
        field.name: f"is an option of a mode: give mode={kind.__name__}({field.name}=...)"
        for kind in MODES.values()
        for field in dataclasses.fields(kind)  # type: ignore[arg-type]
    }
    return {
        **of_modes,
        "line_parameters": "is now line=Line(parameters=...)",
        "endpoint_start": "is now line=Line(start=...)",
        "diversity_weight": "is now line=Line(diversity_weight=...)",
    }
