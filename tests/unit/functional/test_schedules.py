"""The warm-up of sparsity at every step."""

import pytest

from lightning_lcs.functional.schedules import delayed, linear_warmup

STEPS = 50


@pytest.mark.parametrize("step", range(STEPS))
def test_every_step(step):
    progress = step / STEPS
    # arXiv 2110.04252: over the first 80 % of all steps the share kept decays linearly from 1 to its target.
    kept, target = 1.0 - 0.9 * linear_warmup(progress, 0.8), 0.1
    expected = 1.0 + (target - 1.0) * step / 40 if step < 40 else target
    assert kept == pytest.approx(expected, abs=1e-12)
    assert delayed(progress, 0.8) == (1.0 if step >= 40 else 0.0)


@pytest.mark.parametrize("schedule", [linear_warmup, delayed])
def test_the_ends(schedule):
    assert schedule(0.0, 0.0) == 1.0
    assert schedule(0.0, 0.8) == 0.0
    assert schedule(1.0, 1.0) == 1.0
