"""Distillation: compressed levels learn what the full network, or a teacher, gives for the same samples."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, mse_loss
from torch.utils._pytree import tree_map_only

from lightning_lcs.graph.channels.plan import select
from lightning_lcs.subspace.features import Features
from lightning_lcs.subspace.running.level_runner import Call
from lightning_lcs.training.options import Distillation

_OWN = "give Loss(distillation=Distillation(loss=...)) a function of the outputs of student and teacher"


def detached(call: Call) -> Call:
    """A call without gradients."""
    features = {path: dataclasses.replace(each, value=each.value.detach()) for path, each in call.features.items()}
    output = tree_map_only(Tensor, Tensor.detach, call.output)
    return dataclasses.replace(call, output=output, features=features)


@torch.no_grad()
def taught_by(options: Distillation, calls: Sequence[Call]) -> list[Call]:
    """The calls of the teacher of the options as those of networks; it follows their inputs to device and dtype."""
    teacher = options.teacher
    assert teacher is not None
    given = list(_tensors([(call.args, call.kwargs) for call in calls]))
    dtype = next((value.dtype for value in given if value.is_floating_point()), None)
    teacher.to(device=given[0].device if given else None, dtype=dtype).eval()
    lessons = []
    for call in calls:
        features = Features(list(options.module_pairs.values()))
        output = features.watch(teacher, teacher)(*call.args, **call.kwargs)
        lessons.append(Call(call.args, call.kwargs, output, features.found))
    return lessons


def distillation_loss(options: Distillation, calls: Sequence[Call], lesson: Sequence[Call]) -> Tensor:
    """The distance between the outputs of a level and those of its teacher, in the last call of a network.

    Earlier calls may have served gradients of the step's own, after which nothing can be taught through them.

    Args:
        options: The distance.
        calls: The calls of the network in the step at a compressed level.
        lesson: The same calls of the teacher.

    Raises:
        ValueError: The outputs can't be compared.
    """
    if len(calls) != len(lesson):
        raise ValueError(
            f"distillation: training_step called the network {len(calls)} times at a compressed level and "
            f"{len(lesson)} times at alpha = 1; leave distillation out"
        )
    student, teacher = calls[-1], lesson[-1]
    if options.loss == "features":
        distances = [_feature_distance(options, student, teacher, *paths) for paths in options.module_pairs.items()]
        return torch.stack(distances).mean()
    if isinstance(options.loss, str):
        return soft_cross_entropy(student.output, teacher.output, options.temperature)
    distance = options.loss(student.output, teacher.output)
    if not isinstance(distance, Tensor) or distance.numel() != 1:
        name = getattr(options.loss, "__name__", options.loss)
        raise ValueError(f"distillation: the function {name} returned {distance!r}; return a tensor with one entry")
    return distance.reshape(())


def _feature_distance(options: Distillation, student: Call, teacher: Call, path: str, teachers_path: str) -> Tensor:
    """The distance between what a module returns in a level, and the same channels of its teacher."""
    if path not in student.features or teachers_path not in teacher.features:
        raise ValueError(
            f"distillation: the module {path!r} did not run in the last call of a network in training_step; take it "
            "out of Distillation(modules=...)"
        )
    ours, theirs = student.features[path], teacher.features[teachers_path].value
    cut = theirs
    if ours.value.ndim == theirs.ndim and all(map(operator.le, ours.value.shape, theirs.shape)):
        cut = select(theirs, ours.selection)
    if ours.value.shape != cut.shape:
        raise ValueError(
            f"distillation: the features of {path!r} have shape {tuple(ours.value.shape)}, and those of the teacher "
            f"{tuple(theirs.shape)}; name modules whose features have the same shape at full width"
        )
    if options.distance == "mse":
        return mse_loss(ours.value, cut)
    return 1.0 - cosine_similarity(ours.value.flatten(1), cut.flatten(1)).mean()


def soft_cross_entropy(student: Any, teacher: Any, temperature: float = 1.0) -> Tensor:
    """The cross-entropy of a student's classes under the probabilities of its teacher (arXiv 1503.02531, section 2).

    Args:
        student: The output of the student. Its logits are the output itself, the entry "logits" of a mapping, or the
            first tensor in it of floats in two or more dimensions. Classes lie along dimension 1, as for torch's
            cross-entropy; or along the last of three, if the logits are the entry of a mapping (tokens).
        teacher: The same of the teacher.
        temperature: Divides the logits of both, above 0. The result is multiplied by its square, which keeps the size
            of the gradients. The default is 1.

    Returns:
        The mean over all but the classes.

    Raises:
        ValueError: An output holds no logits, the shapes differ, or there is one class.

    Example:
        >>> import torch
        >>> from lightning_lcs.training.step.distillation import soft_cross_entropy
        >>> even = torch.zeros(2, 4)
        >>> round(float(soft_cross_entropy(even, {"logits": even})), 4)
        1.3863
    """
    ours, theirs = _logits(student), _logits(teacher)
    if ours.shape != theirs.shape:
        raise ValueError(
            f"distillation: the outputs of student and teacher have shapes {tuple(ours.shape)} and "
            f"{tuple(theirs.shape)}; {_OWN}"
        )
    dim = -1 if ours.ndim == 3 and isinstance(student, Mapping) else 1
    if ours.shape[dim] < 2:
        raise ValueError(f"distillation: outputs of shape {tuple(ours.shape)} hold no classes; {_OWN}")
    probabilities = (theirs / temperature).softmax(dim)
    return -(probabilities * (ours / temperature).log_softmax(dim)).sum(dim).mean() * temperature**2


def _logits(output: Any) -> Tensor:
    if isinstance(output, Mapping) and isinstance(output.get("logits"), Tensor):
        output = output["logits"]
    found = next((value for value in _tensors(output) if value.is_floating_point() and value.ndim > 1), None)
    if found is None:
        raise ValueError(
            f"distillation: an output of type {type(output).__name__} holds no tensor of floats in two or more "
            f"dimensions; {_OWN}"
        )
    return found.to(torch.promote_types(found.dtype, torch.float32))  # half precision is too coarse for a softmax


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for entry in value:
            yield from _tensors(entry)
