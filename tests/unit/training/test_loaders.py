"""Which batches are drawn from samplers of any kind."""

import itertools
import math

import pytest
from torch.utils.data import BatchSampler, RandomSampler

from lightning_lcs.training.data.loaders import _Draw, _drawn_keys


def drawn(sampler, size, images=8, **given):
    options = {"seed": 0, "batches": math.inf, "rank": 0, "ranks": 1, "split": False, "training": True} | given
    return _drawn_keys(sampler, size, _Draw(images, **options))


def in_order(count=42):
    return BatchSampler(range(count), 4, drop_last=False)


def test_whole_batches_are_drawn_in_their_order():
    batches = list(in_order(40))
    assert drawn(in_order(40), 4, images=10_000) == batches
    for seed in range(10):
        found = drawn(in_order(40), 4, images=19, seed=seed)
        assert len(found) == 4, "not more than 19 images"
        assert [batch for batch in batches if batch in found] == found


def test_the_incomplete_batch_is_left_out_where_there_are_others():
    assert len(drawn(in_order(42), 4, images=10_000)) == 10
    assert drawn(in_order(3), 4, images=10_000) == [[0, 1, 2]]
    assert [40, 41] in drawn(in_order(42), None, images=10_000), "batches of any size"


def test_limits_on_training_batches_hold():
    assert drawn(in_order(40), 4, images=10_000, batches=2) == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_ranks_without_a_share_split_an_epoch():
    shares = [drawn(in_order(40), 4, images=24, rank=rank, ranks=2, split=True) for rank in (0, 1)]
    keys = list(itertools.chain(*shares[0], *shares[1]))
    assert [len(share) for share in shares] == [3, 3]
    assert len(set(keys)) == 24


@pytest.mark.parametrize("split", [False, True])
def test_samplers_without_an_end(split):
    class Endless:
        def __iter__(self):
            return ([number] * 4 for number in itertools.count())

    assert len(drawn(Endless(), 4, images=24, ranks=2, split=split)) == 3
    assert len(drawn(Endless(), None, images=24, ranks=2, split=split)) == 3


def test_the_seed_chooses():
    def random(seed):
        return drawn(BatchSampler(RandomSampler(range(40)), 4, drop_last=True), 4, seed=seed)

    assert random(0) == random(0)
    assert random(0) != random(1)
    assert random(0) != drawn(BatchSampler(RandomSampler(range(40)), 4, drop_last=True), 4, seed=0, rank=1, ranks=2)
