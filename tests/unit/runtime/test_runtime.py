"""What a loaded file runs with: the levels of the trained model, and switches that no running forward notices."""

import copy
import pickle
import sys
import threading

import pytest
import timm
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_lcs import SubspaceModel
from tests.helpers import BATCH_NORM_WARNING, Chain, Joined, Lambda, relative
from tests.unit.runtime.from_file import ALPHAS, TOLERANCE, Grouped, through_a_file, trained


@pytest.fixture
def pair(tmp_path):
    model = trained(Chain(32, 48), 8)
    return model, through_a_file(model, tmp_path)


@pytest.mark.parametrize(("subspace", "lines"), [("point", "norm"), ("line", "norm"), ("line", "all")])
@pytest.mark.parametrize("network", [lambda: Chain(32, 48), Grouped, lambda: Joined(16, 12)])
def test_prepared_levels_equal_those_of_the_trained_model(tmp_path, network, lines, subspace):
    model = trained(network(), 8, subspace, line={"parameters": lines})
    loaded, x = through_a_file(model, tmp_path), torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        for alpha in (*ALPHAS, 0.5, 0.0):
            loaded.set_alpha(alpha)
            with model.at_alpha(alpha):
                assert relative(loaded(x), model(x)) < TOLERANCE


@pytest.mark.parametrize(("name", "size"), [("resnet18", 64), ("mobilenetv3_small_100", 64)])
def test_prepared_levels_of_known_networks(tmp_path, name, size):
    model = trained(timm.create_model(name, num_classes=7), size)
    loaded, x = through_a_file(model, tmp_path), torch.randn(2, 3, size, size)
    program, folds = loaded.runtime._program(torch.device("cpu"))
    assert len(folds) == sum(isinstance(child, nn.BatchNorm2d) for child in model.module.modules())
    assert not program.statistics
    with torch.no_grad():
        for alpha in ALPHAS:
            with model.at_alpha(alpha), loaded.at_alpha(alpha):
                assert relative(loaded(x), model(x)) < TOLERANCE


def test_the_check_sees_a_norm_folded_wrongly(pair):
    model, loaded = pair
    x = torch.randn(2, 3, 8, 8)
    loaded.set_alpha(0.5)
    recipe = loaded.runtime._recipes[0.5]
    recipe.norms._eps = recipe.norms._eps * 3
    loaded.set_alpha(0.0)
    loaded.set_alpha(0.5)
    with torch.no_grad(), model.at_alpha(0.5):
        assert relative(loaded(x), model(x)) > TOLERANCE


def test_a_norm_is_not_folded_where_it_may_not_be(tmp_path):
    """A weight that two convolutions share, a result that is read twice, half precision."""
    conv, norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
    shared = Lambda(
        lambda m, x: m.head(m.norm(m.conv(m.conv(m.stem(x)).relu())).mean((2, 3))),
        stem=nn.Conv2d(3, 8, 1), conv=conv, norm=norm, head=nn.Linear(8, 2),
    )  # fmt: skip
    loaded = through_a_file(trained(shared, 8), tmp_path)
    assert loaded.runtime._program(torch.device("cpu"))[1] == {}
    chain = through_a_file(trained(Chain(8, 8), 8), tmp_path).to(torch.bfloat16)
    chain.set_alpha(0.5)
    assert chain.runtime._program(torch.device("cpu"))[1] == {}
    assert chain(torch.randn(1, 3, 8, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_there_are_two_arenas_of_the_largest_level_and_they_are_used_again(pair):
    _, loaded = pair
    loaded.set_alpha(1.0)
    loaded.set_alpha(0.5)
    loaded.set_alpha(1.0)
    loaded.set_alpha(0.75)
    held = loaded.runtime.statistics().arena_bytes
    buffers = {id(b) for arena in loaded.runtime._arenas for b in arena._buffers.values()}
    for step in range(50):
        loaded.set_alpha(step / 49)
    assert loaded.runtime.statistics().arena_bytes <= 2 * max(held, loaded.runtime._recipes[1.0].size_bytes)
    assert len({id(b) for arena in loaded.runtime._arenas for b in arena._buffers.values()}) == len(buffers) == 2
    prepared = loaded.runtime._current.tensors
    assert all(tensor.is_contiguous() for tensor in prepared)


def test_a_set_level_is_kept_on_an_error_and_a_second_set_does_nothing(pair):
    _, loaded = pair
    loaded.set_alpha(0.5)
    before = loaded.runtime._current
    with pytest.raises(ValueError, match="alpha=2"):
        loaded.set_alpha(2.0)
    assert loaded.alpha == 0.5
    loaded.set_alpha(0.5)
    assert loaded.runtime._current is before


class InTheMiddle(TorchDispatchMode):
    """Does something before the n-th op of a forward."""

    def __init__(self, number, action):
        super().__init__()
        self.left, self.action = number, action

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.left -= 1
        if self.left == 0:
            worker = threading.Thread(target=self.action)
            worker.start()
            worker.join(60)
            assert not worker.is_alive()
        return function(*args, **(kwargs or {}))


def interrupted(loaded, x, levels):
    def switch():
        for alpha in levels:
            loaded.set_alpha(alpha)

    with torch.no_grad(), InTheMiddle(2, switch):
        return loaded(x)


def test_a_switch_in_the_middle_of_a_forward_is_not_seen_by_it(pair):
    _, loaded = pair
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        loaded.set_alpha(1.0)
        loaded.set_alpha(0.0)
        expected = loaded(x)
        assert relative(interrupted(loaded, x, [1.0]), expected) < TOLERANCE
        assert relative(loaded(x), expected) > TOLERANCE


def test_the_check_sees_an_arena_that_is_used_too_early(pair):
    _, loaded = pair
    x = torch.randn(2, 3, 8, 8)
    loaded.runtime._arenas = (loaded.runtime._arenas[0],) * 2
    with torch.no_grad():
        loaded.set_alpha(1.0)
        loaded.set_alpha(0.0)
        expected = loaded(x)
        assert relative(interrupted(loaded, x, [1.0]), expected) > TOLERANCE


def test_the_arena_before_is_written_only_after_its_last_reader_has_left(pair):
    _, loaded = pair
    x = torch.randn(2, 3, 8, 8)
    inside, waiting = threading.Event(), threading.Event()
    results = []

    def wait():
        inside.set()
        assert waiting.wait(60)

    class Spied:
        """A condition that tells when somebody waits for it."""

        def __init__(self, condition):
            self.condition = condition

        def wait_for(self, predicate):
            if not predicate():
                waiting.set()
            return self.condition.wait_for(predicate)

        def __getattr__(self, name):
            return getattr(self.condition, name)

        def __enter__(self):
            return self.condition.__enter__()

        def __exit__(self, *args):
            return self.condition.__exit__(*args)

    with torch.no_grad():
        loaded.set_alpha(0.0)
        expected = loaded(x)
    loaded.runtime._left = Spied(loaded.runtime._left)

    def read():
        with torch.no_grad(), InTheMiddle(4, wait):
            results.append(loaded(x))

    reader = threading.Thread(target=read)
    reader.start()
    assert inside.wait(60)
    loaded.set_alpha(0.5)  # the other arena is free
    assert not waiting.is_set()
    loaded.set_alpha(1.0)  # the reader's arena: waits for it
    assert waiting.is_set()
    reader.join(60)
    assert relative(results[0], expected) < TOLERANCE


@pytest.fixture
def quick_turns():
    """Threads take turns in the interpreter more often, so that more forwards meet a switch."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("quick_turns")
def test_eight_threads_run_while_a_ninth_switches_hundreds_of_times(pair):
    _, loaded = pair
    levels = (0.0, 0.25, 0.5, 1.0)
    images = [torch.randn(1 + number % 2, 3, 8, 8) for number in range(8)]
    expected = []
    with torch.no_grad():
        for x in images:
            at = []
            for alpha in levels:
                loaded.set_alpha(alpha)
                at.append(loaded(x))
            expected.append(at)
    finished = threading.Event()
    wrong, seen, errors = [], [set() for _ in images], []

    def read(number):
        try:
            with torch.inference_mode():
                while not finished.is_set():
                    given = loaded(images[number])
                    matches = [i for i, level in enumerate(expected[number]) if relative(given, level) < TOLERANCE]
                    seen[number].update(matches)
                    if len(matches) != 1:
                        wrong.append((number, matches))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=read, args=(number,)) for number in range(8)]
    before = loaded.runtime.statistics()
    for thread in threads:
        thread.start()
    for step in range(300):
        loaded.set_alpha(levels[step % 4])
    finished.set()
    for thread in threads:
        thread.join(60)
    after = loaded.runtime.statistics()
    assert errors == []
    assert wrong == []
    assert len(set().union(*seen)) > 1
    assert after.switches - before.switches == 300
    assert after.forwards - before.forwards >= 8
    assert 0.0 <= after.mean_reader_wait_ms <= after.longest_reader_wait_ms
    assert loaded.runtime._current.readers == 0


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_runs_and_lives_on_its_own(pair, copied):
    _, loaded = pair
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        loaded.set_alpha(0.5)
        expected = loaded(x)
        twin = copied(loaded)
        assert relative(twin(x), expected) < TOLERANCE
        twin.module.head.bias.add_(1.0)
        with pytest.warns(UserWarning, match="statistics of other weights"):
            twin.set_alpha(0.5)
        assert torch.allclose(twin(x), expected + 1.0)
        assert torch.equal(loaded(x), expected)


def test_moved_converted_and_loaded_weights_are_prepared_anew(pair):
    _, loaded = pair
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        loaded.set_alpha(0.5)
        expected = loaded(x)
        wide = loaded.double()(x.double())
        assert wide.dtype == torch.float64
        assert relative(wide.float(), expected) < TOLERANCE
        loaded.float()
        assert relative(loaded(x), expected) < TOLERANCE
        state = {name: torch.zeros_like(value) for name, value in loaded.state_dict().items()}
        loaded.load_state_dict(state)
        with pytest.warns(UserWarning, match="statistics of other weights"):
            assert loaded(x).abs().max() == 0.0


def test_statistics_collected_anew_are_used(pair):
    _, loaded = pair
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        loaded.set_alpha(0.5)
        before = loaded(x)
        loaded.statistics = {
            alpha: {name: value * 2.0 for name, value in values.items()} for alpha, values in loaded.statistics.items()
        }
        assert relative(loaded(x), before) > 1e-3


def test_gradients_reach_inputs_and_trainable_weights(pair):
    _, loaded = pair
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    loaded.set_alpha(0.5)
    loaded(x).sum().backward()
    assert x.grad.abs().sum() > 0
    loaded.requires_grad_(True)
    loaded(x).sum().backward()
    assert loaded.module.conv1.weight.grad.abs().sum() > 0


@pytest.mark.filterwarnings(BATCH_NORM_WARNING)
def test_without_statistics_a_level_warns_once(tmp_path):
    model = SubspaceModel(Chain(8, 8), torch.randn(2, 3, 8, 8), subspace="point").eval()
    loaded = through_a_file(model, tmp_path)
    with pytest.warns(UserWarning, match="batch-norm statistics"):
        loaded.set_alpha(0.5)
    loaded.set_alpha(0.3)


def test_materialize_and_efficiency_of_a_loaded_model(pair):
    model, loaded = pair
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        for alpha in (0.25, 1.0):
            assert relative(loaded.materialize(alpha)(x), model.materialize(alpha)(x)) < TOLERANCE
            assert loaded.efficiency(alpha) == model.efficiency(alpha)
    assert loaded.materialize(0.25).state_dict().keys() == model.materialize(0.25).state_dict().keys()
    with pytest.raises(RuntimeError, match="for evaluation"):
        loaded.materialize(0.5, train=True)


def test_a_network_without_a_batch_is_told_apart(pair):
    _, loaded = pair
    with pytest.raises(ValueError, match=r"shape \[3, 8, 8\]"):
        loaded(torch.randn(3, 8, 8))
    with pytest.raises(ValueError, match="takes a tensor"):
        loaded("image")
