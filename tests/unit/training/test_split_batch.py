"""A batch divided over the levels of a step: which samples go where, and what stays whole."""

import collections
import dataclasses
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._pytree import tree_structure

from lightning_lcs import LCSCallback
from lightning_lcs.training.step.split_batch import UndividedError, divide, spread

COUNT = 8
SHARES = (0.25, 0.25, 0.5)
ROWS = [[1, 5], [2, 6], [0, 3, 4, 7]]


@given(count=st.integers(0, 200), parts=st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_every_sample_goes_to_one_part_and_each_part_gets_its_share(count, parts):
    shares = [part / sum(parts) for part in parts]
    rows = spread(count, shares)
    assert sorted(row for own in rows for row in own) == list(range(count))
    for own, share in zip(rows, shares, strict=True):
        assert own == sorted(own)
        for seen in range(count + 1):  # spread evenly: in any beginning of the batch
            assert abs(sum(row < seen for row in own) - share * seen) <= len(shares)


class Pair(NamedTuple):
    image: torch.Tensor
    label: torch.Tensor


@dataclasses.dataclass(frozen=True)
class Sample:
    image: torch.Tensor
    size: int


IMAGES, LABELS = torch.arange(8.0).view(8, 1, 1, 1).expand(8, 3, 2, 2), torch.arange(8)
MATRIX = torch.eye(3)


def parts(batch):
    found = divide(batch, SHARES).parts
    assert len(found) == len(SHARES)
    return list(zip(found, ROWS, strict=True))


@pytest.mark.parametrize("kind", [list, tuple, Pair._make])
def test_tensors_in_lists_tuples_and_named_tuples(kind):
    batch = kind([IMAGES, LABELS])
    for part, rows in parts(batch):
        assert type(part) is type(batch)
        assert torch.equal(part[0], IMAGES[rows])
        assert part[1].tolist() == rows


def test_mappings_keep_their_kind_and_what_has_no_samples():
    batch = collections.UserDict(
        image=IMAGES,
        names=list("abcdefgh"),
        nested={"label": LABELS.numpy(), "scale": 0.5, "matrix": MATRIX},
        pyramid=[IMAGES, IMAGES[:, :, :1]],
        sizes=(2, 2),
    )
    for part, rows in parts(batch):
        assert type(part) is collections.UserDict
        assert part["names"] == [batch["names"][row] for row in rows]
        assert part["nested"]["label"].tolist() == rows
        assert part["nested"]["matrix"] is MATRIX
        assert (part["nested"]["scale"], part["sizes"]) == (0.5, (2, 2))
        assert [len(level) for level in part["pyramid"]] == [len(rows)] * 2
    assert len(batch["image"]) == COUNT


def test_a_dataclass():
    for part, rows in parts(Sample(IMAGES, 2)):
        assert (type(part), part.size) == (Sample, 2)
        assert torch.equal(part.image, IMAGES[rows])


def test_lists_of_images_with_targets():
    images = [torch.full((3, 4 + row, 4), float(row)) for row in range(COUNT)]
    targets = [{"boxes": torch.zeros(row % 3, 4), "id": row} for row in range(COUNT)]
    for part, rows in parts((images, targets)):
        assert [image[0, 0, 0].item() for image in part[0]] == rows
        assert [target["id"] for target in part[1]] == rows
    for part, rows in parts(images):
        assert len(part) == len(rows)


def test_samples_as_pairs_or_mappings():
    for batch in (
        [(image, row) for row, image in enumerate(IMAGES)],
        [{"name": str(row), "image": image} for row, image in enumerate(IMAGES)],
    ):
        for part, rows in parts(batch):
            assert part == [batch[row] for row in rows]


def test_a_batch_of_two_tensors_with_two_samples_is_no_list_of_samples():
    found = divide([torch.zeros(4, 1), torch.arange(4)], [0.5, 0.5]).parts
    assert [part[1].tolist() for part in found] == [[0, 2], [1, 3]]
    with pytest.raises(UndividedError, match="2 samples, which leave a level fewer than 2"):
        divide([torch.zeros(2, 1), torch.arange(2)], [0.5, 0.5])


@pytest.mark.parametrize("batch", [torch.zeros(5, 2), [torch.zeros(3, 2), torch.zeros(3)], {"scale": 0.5}, np.zeros(2)])
def test_too_few_samples(batch):
    with pytest.raises(UndividedError, match="samples, which leave a level fewer than 2"):
        divide(batch, SHARES)


def test_tensors_with_rows_of_their_own_are_named():
    found = divide({"image": IMAGES, "label": LABELS, "prior": torch.ones(10), "scale": torch.ones(1, 3)}, SHARES)
    assert found.whole == ["batch['prior']"]
    assert [len(part["prior"]) for part in found.parts] == [10, 10, 10]


@pytest.mark.parametrize(
    "batch",
    [
        (torch.zeros(20, 8, 3), LABELS),  # the time first
        {"image": IMAGES, "box": torch.zeros(30, 4), "of": torch.zeros(30)},  # all boxes of a batch in one tensor
    ],
)
def test_a_batch_whose_samples_are_not_known_is_refused(batch):
    with pytest.raises(UndividedError, match="rows, so that it is not known which of them are samples"):
        divide(batch, SHARES)


def test_several_loaders_have_batches_of_their_own_sizes():
    batch = {"labeled": (IMAGES, LABELS), "more": [torch.arange(16)], "ended": None}
    found = divide(batch, SHARES, tree_structure({"labeled": 0, "more": 0, "ended": 0}))
    for part, rows in zip(found.parts, ROWS, strict=True):
        assert part["labeled"][1].tolist() == rows
        assert len(part["more"][0]) == 2 * len(rows)
        assert part["ended"] is None


def test_a_batch_that_is_no_longer_that_of_its_loaders_is_one_batch():
    found = divide((IMAGES, LABELS), SHARES, tree_structure({"a": 0, "b": 0}))
    assert [part[1].tolist() for part in found.parts] == ROWS


@pytest.mark.parametrize(
    ("sampling", "sampler", "count"),
    [
        ({"split": True}, "weighted", 2),
        ({"split": [0.4, 0.6]}, "weighted", 2),
        ({"split": True, "alphas_per_step": 3}, "weighted_sandwich", 3),
        ({"split": [0.25, 0.25, 0.5]}, "weighted_sandwich", 3),
        ({"split": [0.25, 0.25, 0.5], "sampler": "uniform"}, "uniform", 3),
    ],
)
@pytest.mark.parametrize("mode", ["structured", "unstructured", "quantized"])
def test_the_default_sampler(mode, sampling, sampler, count):
    options = LCSCallback(mode, sampling=sampling).options
    assert (options.sampler, options.alphas_per_step) == (sampler, count)


def test_labels_as_numbers_in_lists_and_tuples():
    for count in (4, 8):
        images, numbers = torch.arange(float(count)), list(range(count))
        for labels in (numbers, tuple(numbers)):
            for part in divide({"image": images, "label": labels}, [0.5, 0.5]).parts:
                whole = count == 4 and isinstance(labels, tuple)  # it may be a size
                assert list(part["label"]) == (numbers if whole else part["image"].tolist())
