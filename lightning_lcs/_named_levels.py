"""Levels chosen by name or by budget, for whatever has a level table and can be set to an alpha."""

from __future__ import annotations

from lightning_lcs.level_table import Level, level_for_budget, named_level


class NamedLevels:
    """What a level table adds to a subspace.

    Attributes:
        levels: the level table, by ascending alpha; empty unless the model came out of a file.
        class_names: names of the classes, by their number; empty if the file has none.
    """

    levels: tuple[Level, ...] = ()
    class_names: tuple[str, ...] = ()

    def set_alpha(self, alpha: float) -> None:
        """Choose the level at which the network runs from now on."""
        raise NotImplementedError

    def set_level(self, name: str) -> Level:
        """Choose a level of the level table.

        Args:
            name: as in ``levels``, such as "small".

        Returns:
            The level, with its costs and what was measured there.

        Raises:
            ValueError: there is no such level; the one set stays.
        """
        level = named_level(self.levels, name)
        self.set_alpha(level.alpha)
        return level

    def fit_budget(
        self,
        *,
        macs: float | None = None,
        latency_ms: float | None = None,
        size_bytes: float | None = None,
        accuracy: float | None = None,
        metric: str | None = None,
    ) -> Level:
        """Choose the level of the level table that fits a budget.

        Of the levels within all limits it is the largest; with ``accuracy`` alone the smallest that reaches it.

        Args:
            macs: most multiply-accumulates of one sample.
            latency_ms: longest time of one sample, as it was measured for the table: on another machine, or with other
                threads, measure it again (``lightning-lcs bench``).
            size_bytes: most bytes of parameters and buffers.
            accuracy: least value of the metric.
            metric: which metric of the table; by default the only one that has "acc" in its name.

        Returns:
            The level that was set.

        Raises:
            ValueError: no level fits (the nearest is named), or a limit is not known or not finite; the level set
                stays.
        """
        level = level_for_budget(
            self.levels, macs=macs, latency_ms=latency_ms, size_bytes=size_bytes, accuracy=accuracy, metric=metric
        )
        self.set_alpha(level.alpha)
        return level
