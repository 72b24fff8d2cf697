"""The sample that is kept of a call's arguments."""

import torch

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
