"""A W&B workspace over many runs, from what :mod:`lightning_lcs.loggers.wandb` logs (extra ``dashboard``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning_lcs.reporting.log_keys import alpha_key, log_key
from lightning_lcs.reporting.pareto import lower_is_better
from lightning_lcs.utils.extras import needed_for

COSTS = {"macs": "MACs", "size_bytes": "size in bytes", "latency_ms": "latency in ms"}


def workspace(entity: str, project: str, metric: str, alphas: Sequence[float], name: str = "Trade-off curves") -> Any:
    """A workspace that is not saved yet, which is made offline.

    Its sections are the curves of all runs with one panel per cost; the runs by cost and metric at three levels, with
    the Pareto front over them; the metric at every level over training; and diagnostics.

    Args:
        entity: The user or the team.
        project: The project that the runs were logged to.
        metric: The metric of the curves, such as "val_acc".
        alphas: The levels of the curves, ascending, each in [0, 1].
        name: The name of the workspace. The default is "Trade-off curves".

    Returns:
        A ``wandb_workspaces.workspaces.Workspace``.

    Raises:
        ModuleNotFoundError: wandb-workspaces is not installed.

    Example:
        >>> from lightning_lcs.loggers import workspace
        >>> made = workspace("my-team", "my-project", "val_acc", [0.0, 0.5, 1.0])
        >>> [section.name for section in made.sections]
        ['Trade-off curves', 'Pareto front over runs', 'Levels over training', 'Diagnostics']
    """
    with needed_for("a dashboard"):
        import wandb_workspaces.workspaces as ws
        from wandb_workspaces.reports import v2
    wr: Any = v2  # its names are not declared as exported
    keys = [alpha_key(alpha) for alpha in alphas]
    front: dict[str, Any] = {"running_ymin": True} if lower_is_better(metric) else {"running_ymax": True}
    lines = {
        f"{metric} at each level": [log_key(metric, key) for key in keys],
        f"{metric}, mean over levels": [log_key(metric, "mean")],
        "training losses": ["train_loss", "lcs/train_loss/alpha_000", "lcs/train_loss/sampled"],
    }
    diagnostics = {
        "endpoints of the line": ["lcs/endpoints/cosine", "lcs/endpoints/distance"],
        "drift of batch-norm statistics": [f"lcs/norm_drift/{key}" for key in keys[:-1]],
        "sampled alphas": ["lcs/sampled_alpha/1", "lcs/sampled_alpha/2"],
    }
    panels = {
        "Trade-off curves": [
            wr.CustomChart(
                query={"summaryTable": {"tableKey": "lcs/curve"}},
                chart_name="wandb/line/v0",
                chart_fields={"x": cost, "y": metric},
                chart_strings={"title": f"{metric} against {label}"},
            )
            for cost, label in COSTS.items()
        ],
        "Pareto front over runs": [
            wr.ScatterPlot(
                title=f"alpha {alpha:.2f}: {metric} against {COSTS[cost]}",
                x=wr.SummaryMetric(f"lcs/{cost}/{alpha_key(alpha)}"),
                y=wr.SummaryMetric(log_key(metric, alpha_key(alpha))),
                **front,
            )
            for cost in ("macs", "size_bytes")
            for alpha in _ends_and_middle(alphas)
        ],
        "Levels over training": [wr.LinePlot(title=title, x="Step", y=y) for title, y in lines.items()],
        "Diagnostics": [wr.LinePlot(title=title, x="Step", y=y) for title, y in diagnostics.items() if y],
    }
    layout = ws.SectionLayoutSettings(columns=3, rows=2)
    sections = [
        ws.Section(name=title, panels=list(content), is_open=title != "Diagnostics", layout_settings=layout)
        for title, content in panels.items()
    ]
    return ws.Workspace(entity=entity, project=project, name=name, sections=sections)


def save(made: Any) -> str:
    """Save a workspace, and return its address.

    Args:
        made: A workspace, as :func:`workspace` makes it.

    Raises:
        RuntimeError: W&B refuses it: there is no key, no such project, or no connection.
    """
    try:
        return str(made.save().url)
    except Exception as error:  # of wandb, which nothing here imports
        if not type(error).__module__.startswith("wandb"):
            raise
        raise RuntimeError(f"W&B refuses the workspace: {error}") from error


def specification(workspace: Any) -> dict[str, Any]:
    """The JSON of a workspace that saving would send."""
    spec: dict[str, Any] = workspace._to_model().model_dump(mode="json", by_alias=True, exclude_none=True)
    return spec


def _ends_and_middle(alphas: Sequence[float]) -> list[float]:
    return list(dict.fromkeys((alphas[0], alphas[len(alphas) // 2], alphas[-1])))
