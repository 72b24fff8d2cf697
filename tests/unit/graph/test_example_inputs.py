"""The sample that is kept of a call's arguments."""

from typing import Any

import pytest
import torch

from lightning_lcs.graph.channels.plan import ChannelPlan
from lightning_lcs.graph.traced_network import TracedNetwork
from lightning_lcs.graph.tracing.example_inputs import sample, samples_in


def test_a_list_of_batches_is_cut_to_samples_and_a_list_of_images_to_images():
    tokens, images = [torch.randn(5, 7, 4), torch.randn(5, 9, 4)], [torch.randn(3, 6, 7), torch.randn(3, 8, 5)]
    for samples in (1, 2):
        (cut,), _ = sample((tokens,), {}, samples)
        assert [part.shape for part in cut] == [(samples, 7, 4), (samples, 9, 4)]
        (cut, labels), _ = sample((images, [{"n": 1}, {"n": 2}]), {}, samples)
        assert [image.shape for image in cut] == [(3, 6, 7), (3, 8, 5)][:samples]
        assert len(labels) == samples
    assert (samples_in((tokens,), {}), samples_in((images,), {})) == (5, 2)


IMAGES = torch.randn(4, 3, 8, 8)
BOXES = [{"boxes": torch.arange(4.0) + n, "labels": torch.zeros(n, dtype=torch.long)} for n in (4, 2, 0, 3)]
PER_SAMPLE = {
    "targets": BOXES,
    "a tuple of targets": tuple(BOXES),
    "labels of several lengths": [torch.zeros(n) for n in (3, 4, 1, 2)],
    "texts": ["a", "b", "c", "d"],
    "sizes": [(8, 9), (7, 8), (6, 5), (4, 4)],
}
OF_ALL = {
    "maps of several sizes": [torch.randn(4, 2, n, n) for n in (8, 4, 2, 1)],
    "an argument made of several": [IMAGES, None, BOXES, 3],
    "a size": (8, 8, 8, 8),
    "a padding": [1, 1, 1, 1],
    "three of a batch of four": ["a", "b", "c"],
    "a text": "abcd",
    "a number": 4,
}


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b)


@pytest.mark.parametrize("samples", [1, 2, 6])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("value", PER_SAMPLE.values(), ids=PER_SAMPLE)
def test_a_list_with_an_entry_for_each_sample_is_cut_and_its_entries_are_whole(value, nested, samples):
    expected = type(value)(value[row % 4] for row in range(samples))
    given = {"of": value, "x": IMAGES}
    args, kwargs = sample((given,), {}, samples) if nested else sample((), given, samples)
    assert equal((args[0] if nested else kwargs)["of"], expected)


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("value", [value for name, value in OF_ALL.items() if name not in list(OF_ALL)[:2]])
def test_other_lists_stay(value, samples):
    (_, found), _ = sample((IMAGES, value), {}, samples)
    assert equal(found, value)


@pytest.mark.parametrize("samples", [1, 2])
def test_batches_inside_of_lists_are_cut(samples):
    (maps, several), _ = sample((OF_ALL["maps of several sizes"], OF_ALL["an argument made of several"]), {}, samples)
    assert [value.shape[0] for value in maps] == [samples] * 4
    assert several[0].shape[0] == len(several[2]) == samples
    assert several[1::2] == [None, 3]


def test_numbers_for_each_sample():
    _, found = sample((torch.randn(6, 5),), {"lengths": [5, 4, 3, 3, 2, 1]}, 2)
    assert found["lengths"] == [5, 4]


def test_the_batch_is_that_of_the_arguments_before_what_is_inside_of_them():
    targets = [{"boxes": torch.zeros(7, 4)} for _ in range(4)]
    assert samples_in((targets, IMAGES), {}) == 4
    assert samples_in((), {"labels": targets, "pixel_values": IMAGES}) == 4
    assert samples_in((), {"targets": targets, "images": [torch.zeros(3, 8, 8)] * 4}) == 4
    assert samples_in(({"labels": targets, "pixel_values": IMAGES},), {}) == 4
    assert samples_in(({"targets": targets, "images": [torch.zeros(3, 8, 8)] * 4},), {}) == 4
    assert samples_in((3, "text"), {"none": None}) is None


def test_the_sample_of_one_is_made_from_the_call_and_not_from_the_sample_of_two():
    network = TracedNetwork(torch.nn.Linear(5, 5), ChannelPlan())
    network.remember((torch.randn(4, 5), torch.tensor([8, 8])), {"names": ["height", "width"]})
    for samples in (None, 1):
        (x, size), kwargs = network.example_inputs(samples)
        assert x.shape == (samples or 2, 5)
        assert size.tolist() == [8, 8]
        assert kwargs == {"names": ["height", "width"]}
