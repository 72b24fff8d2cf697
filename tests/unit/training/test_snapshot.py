"""A snapshot sets back what code may write to, however deep it lies."""

import array
import collections
import copy
import dataclasses
import itertools
import random
import types

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torchmetrics import MeanMetric

from lightning_lcs.training.user_code import snapshot as snapshots
from lightning_lcs.training.user_code.snapshot import MOST_ENTRIES, Snapshot


class Meter:
    """A user's own meter."""

    def __init__(self):
        self.sum, self.values = 0.0, []


class Slotted:
    """An object without a dictionary."""

    __slots__ = ("value", "values")

    def __init__(self):
        self.value, self.values = 0, []


@dataclasses.dataclass
class Record:
    """A user's own record."""

    best: float = 0.0
    history: dict = dataclasses.field(default_factory=dict)


class Owner(nn.Module):
    """A module that holds one of each kind."""

    def __init__(self):
        super().__init__()
        self.teacher = nn.Linear(2, 2).requires_grad_(False)
        self.student = nn.Linear(2, 2)
        self.norm = nn.BatchNorm1d(2)
        self.metric = MeanMetric()
        self.register_buffer("queue", torch.zeros(4))
        self.center = torch.zeros(2)
        self.count, self.best = 0, None
        self.array = np.zeros(3)
        self.meter, self.record, self.slotted = Meter(), Record(), Slotted()
        self.nested = {"outputs": [[torch.zeros(1)], {"seen": set()}], "ordered": collections.OrderedDict(a=1, b=2)}
        self.recent = collections.deque([1, 2, 3], maxlen=3)
        self.numbers = itertools.count()
        self.generators = [torch.Generator(), random.Random(0), np.random.default_rng(0), np.random.RandomState(0)]


def plain(value):
    """What a value holds, as something that can be compared."""
    if isinstance(value, nn.Module):
        return {name: plain(v) for name, v in vars(value).items()}
    if isinstance(value, torch.Tensor):
        return value.tolist(), tuple(value.shape), str(value.dtype)
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    if isinstance(value, dict):
        return [(key, plain(v)) for key, v in value.items()]
    if isinstance(value, (list, tuple, collections.deque)):
        return [plain(v) for v in value]
    if isinstance(value, Slotted):
        return [plain(value.value), plain(value.values)]
    if isinstance(value, torch.Generator):
        return value.get_state().tolist()
    if isinstance(value, random.Random):
        return value.getstate()
    if isinstance(value, np.random.Generator):
        return str(value.bit_generator.state)
    if isinstance(value, np.random.RandomState):
        return str(value.get_state())
    if isinstance(value, itertools.count):
        return repr(value)
    return plain(vars(value)) if isinstance(value, (Meter, Record)) else value


def through_data(owner):
    owner.teacher.weight.data.mul_(0.5).add_(1.0)


def other_data(owner):
    owner.teacher.weight.data = torch.ones(2, 2)


def student_data(owner):
    owner.teacher.weight.data = owner.student.weight.data


def a_buffer(owner):
    owner.queue.data[1:3] = 5.0


def a_longer_buffer(owner):
    owner.queue.data = torch.ones(9)


def statistics(owner):
    owner.norm(torch.randn(4, 2))


def a_metric(owner):
    owner.metric.update(3.0)


def an_attribute(owner):
    owner.count, owner.best, owner.new = owner.count + 1, 0.5, "new"


def a_tensor(owner):
    owner.center.add_(1.0)


def a_tensor_attribute(owner):
    owner.center = owner.center + 1.0


def an_array(owner):
    owner.array += 1.0


def objects(owner):
    owner.meter.sum += 1.0
    owner.meter.values.append(1)
    owner.record.best = 1.0
    owner.record.history["epoch"] = [1]
    owner.slotted.value += 1
    owner.slotted.values.append(2)


def collections_inside(owner):
    owner.nested["outputs"][0].append(torch.ones(1))
    owner.nested["outputs"][0][0].add_(1.0)
    owner.nested["outputs"][1]["seen"].add(7)
    owner.nested["ordered"].move_to_end("a")
    owner.recent.append(4)


def generators(owner):
    torch.rand(1, generator=owner.generators[0])
    for generator in owner.generators[1:]:
        generator.random() if hasattr(generator, "random") else generator.rand()


def a_counter(owner):
    next(owner.numbers)


def a_flag(owner):
    owner.eval()


WRITES = [
    through_data, other_data, student_data, a_buffer, a_longer_buffer, statistics, a_metric, an_attribute, a_tensor,
    a_tensor_attribute, an_array, objects, collections_inside, generators, a_counter, a_flag,
]  # fmt: skip


@pytest.mark.parametrize("write", WRITES)
def test_every_write_is_set_back(write):
    owner = Owner()
    before = copy.deepcopy(plain(owner))
    snapshot = Snapshot([owner])
    for _ in range(2):
        write(owner)
        assert plain(owner) != before, "the write changes nothing: the test would pass without a snapshot"
        snapshot.restore()
        assert plain(owner) == before


@given(st.lists(st.sampled_from(WRITES), min_size=1, max_size=8), st.lists(st.sampled_from(WRITES), max_size=8))
def test_any_writes_are_set_back_also_after_an_earlier_snapshot(first, second):
    owner = Owner()
    earlier = Snapshot([owner])
    for write in first:
        write(owner)
    before = copy.deepcopy(plain(owner))
    snapshot = Snapshot([owner], earlier=earlier)
    for write in second:
        write(owner)
    snapshot.restore()
    assert plain(owner) == before


def test_objects_stay_the_same_objects():
    owner = Owner()
    parts = [owner.teacher.weight, owner.nested["outputs"], owner.array, owner.center]
    storage = owner.student.weight.data_ptr()
    snapshot = Snapshot([owner])
    for write in WRITES:
        write(owner)
    snapshot.restore()
    now = [owner.teacher.weight, owner.nested["outputs"], owner.array, owner.center]
    assert all(a is b for a, b in zip(parts, now, strict=True))
    assert owner.student.weight.data_ptr() == storage != owner.teacher.weight.data_ptr()


def test_what_only_the_optimizer_changes_is_left_out():
    owner = Owner()
    snapshot = Snapshot([owner], trained=[owner.student.weight])
    with torch.no_grad():
        owner.student.weight.add_(1.0)
        changed = owner.student.weight.clone()
    snapshot.restore()
    assert torch.equal(owner.student.weight, changed)


def test_a_large_tensor_is_copied_again_only_after_a_write(monkeypatch):
    monkeypatch.setattr(snapshots, "MOST_COPIED", 0)
    copies = []
    clone = torch.Tensor.clone
    monkeypatch.setattr(torch.Tensor, "clone", lambda self, **options: copies.append(1) or clone(self, **options))
    outputs = [torch.zeros(1) for _ in range(50)]
    snapshot = Snapshot([outputs])
    assert len(copies) == 50
    outputs.append(torch.zeros(1))
    outputs[3].add_(1.0)
    Snapshot([outputs], earlier=snapshot)
    assert len(copies) == 52


def test_writes_that_no_version_shows():
    values = {"data": torch.zeros(2), "view": torch.zeros(2), "bits": np.random.PCG64(0), "array": array.array("f")}
    sobol = torch.quasirandom.SobolEngine(1)
    first = [values["bits"].state, sobol.draw(1)]

    def write():
        values["data"].data.add_(1.0)
        np.add(values["view"].numpy(), 1.0, out=values["view"].numpy())
        values["array"].append(1.0)
        return values["bits"].random_raw(), float(sobol.draw(1))

    snapshot, seen = Snapshot([values, sobol]), []
    for _ in range(3):
        seen.append(write())
        snapshot.restore()
    later = Snapshot([values, sobol], earlier=snapshot)
    seen.append(write())
    later.restore()
    assert len(set(seen)) == 1
    assert [float(values[name].sum()) for name in ("data", "view")] == [0.0, 0.0]
    assert len(values["array"]) == 0
    assert values["bits"].state == first[0]


def test_sparse_tensors():
    held = torch.nn.Module()
    held.register_buffer("graph", torch.eye(3).to_sparse())
    loose = torch.eye(2).to_sparse()
    snapshot = Snapshot([held, [loose]])
    for _ in range(2):
        held.graph.mul_(2.0)
        loose.mul_(2.0)
        snapshot.restore()
        assert torch.equal(held.graph.to_dense(), torch.eye(3))
        assert torch.equal(loose.to_dense(), torch.eye(2))


def test_optimizers_and_schedulers_of_a_users_own():
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.Adam([weight], lr=0.1)
    lr_scheduler = torch.optim.lr_scheduler
    schedulers = [lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step) for _ in range(2)]
    schedule = lr_scheduler.SequentialLR(optimizer, schedulers, milestones=[3])

    def step():
        weight.square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()

    step()
    before = copy.deepcopy((weight.data, optimizer.state_dict(), schedule.state_dict()))
    snapshot = Snapshot([weight, optimizer, schedule])
    for _ in range(2):
        for _ in range(4):
            step()
        snapshot.restore()
        after = (weight.data, optimizer.state_dict(), schedule.state_dict())
        assert torch.equal(before[0], after[0])
        assert str(before[1:]) == str(after[1:])


def test_entries_of_long_collections_are_kept_and_not_looked_into():
    many = [[] for _ in range(MOST_ENTRIES + 1)]
    snapshot = Snapshot([many])
    many[0].append(1)
    many.append([])
    snapshot.restore()
    assert len(many) == MOST_ENTRIES + 1
    assert many[0] == [1]


class Short(collections.deque):
    """A deque that makes itself."""

    def __init__(self):
        super().__init__(maxlen=2)


class Odd(dict):
    """A dictionary that shows something else than it holds."""

    def items(self):
        return [(key, 10 * value) for key, value in super().items()]


class Private:
    """An object with a slot of its own name only."""

    __slots__ = ("__count",)

    def __init__(self):
        self.__count = 0

    def step(self):
        self.__count += 1
        return self.__count


def test_unusual_objects_are_set_back():
    short, odd, private, space = Short(), Odd(a=1), Private(), types.SimpleNamespace(count=0)
    array, expanded, own = np.zeros(2), torch.arange(4).expand(3, 4), torch.ones(2, requires_grad=True)
    own.sum().backward()
    owner = nn.Module()
    owner.register_buffer("positions", expanded)
    snapshot = Snapshot([owner, short, odd, private, space, array, own, random.SystemRandom()])
    short.append(1)
    odd["a"] = 5
    private.step()
    space.count += 1
    array.resize(4, refcheck=False)
    expanded[0].add_(1)
    own.sum().backward()
    snapshot.restore()
    assert (list(short), dict.items(odd), private.step(), space.count) == ([], {"a": 1}.items(), 1, 0)
    assert (array.tolist(), expanded[0].tolist(), own.grad.tolist()) == ([0.0, 0.0], [0, 1, 2, 3], [1.0, 1.0])


def test_inference_tensors_are_set_back():
    with torch.inference_mode():
        outputs = [torch.zeros(2)]
        snapshot = Snapshot([outputs])
        outputs[0].add_(1.0)
        snapshot.restore()
    assert outputs[0].tolist() == [0.0, 0.0]
