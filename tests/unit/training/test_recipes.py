"""Recipes fill in the options that were not given."""

import pytest

from lightning_lcs import LCSCallback, Loss, Sampling
from lightning_lcs.subspace.modes.registry import MODES
from lightning_lcs.training.recipes import RECIPES, filled, recipe_for


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("mode", ["structured", "unstructured", "quantized"])
@pytest.mark.parametrize("subspace", ["point", "line"])
def test_every_recipe_is_a_callback(recipe, mode, subspace):
    callback = LCSCallback(mode, subspace, recipe=recipe)
    for group, options in recipe_for(recipe, mode).items():
        for name, value in options.items():
            assert getattr(getattr(callback, group), name) == value
    default = LCSCallback(mode, subspace).options
    assert (callback.options == default) == (not recipe_for(recipe, mode))


def test_options_that_are_given_hold():
    callback = LCSCallback("unstructured", recipe="best", sampling={"warmup": 0.2}, loss=Loss(reduction="sum"))
    assert (callback.sampling.warmup, callback.sampling.warmup_schedule) == (0.2, "cubic")
    assert callback.sampling.sampler == "weighted_sandwich"
    assert callback.loss.reduction == "sum"
    assert filled(Sampling(alphas_per_step=2), {"alphas_per_step": 3, "levels": 9}) == Sampling(
        alphas_per_step=2, levels=9
    )


def test_a_mode_of_another_package_has_them_too():
    assert "of another package" not in MODES
    assert recipe_for("fast", "of another package") == {"sampling": {"split": True}}


def test_options_that_do_not_go_with_a_recipe_are_refused_with_what_it_sets():
    with pytest.raises(ValueError, match=r"do not go with the recipe, which sets \{'split': True\}: .*leave split out"):
        LCSCallback(recipe="fast", sampling={"sampler": "uniform_draws"})


def test_a_recipe_that_is_not_known_is_refused():
    with pytest.raises(ValueError, match=r"recipe='bset' is not known \(did you mean 'best'\?\); choose one of 'fast'"):
        LCSCallback(recipe="bset")
