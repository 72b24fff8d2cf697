"""RuntimeController: glue around the pure decision, with a fake clock."""

import json
import subprocess
import sys
import threading
import warnings

import pytest
import torch

import lightning_lcs
from lightning_lcs import RuntimeController, SubspaceModel
from lightning_lcs.control.controller import default_levels, measure_profile
from lightning_lcs.control.latency_target import LatencyTarget
from lightning_lcs.control.policies import BatterySaver, CpuPressure
from lightning_lcs.control.recording import Decision, read_recording, replay
from lightning_lcs.control.sensors import Readings
from tests.helpers import BATCH_NORM_WARNING, Chain, Mlp
from tests.unit.control.simulated import LEVELS, Clock, Network, serve


def controller_of(policies, network=None, **options):
    network = network or Network(Clock(), noise=0.0)
    options = {"levels": LEVELS, "interval_s": 0.0, "read": dict, **options}
    return RuntimeController(network, policies, clock=network.clock, **options), network


@pytest.mark.filterwarnings(BATCH_NORM_WARNING)
def test_a_real_network_follows():
    net = SubspaceModel(Chain(), torch.randn(2, 3, 8, 8)).eval()
    pressure = iter([0.9, 0.3, 0.0])
    clock = Clock()
    controller = RuntimeController(
        net, [CpuPressure()], clock=clock, interval_s=0.0, read=lambda: {"cpu_pressure": next(pressure)}
    )
    x, seen = torch.randn(2, 3, 8, 8), []
    with torch.no_grad():
        for _ in range(3):
            controller.step()
            clock.now += 5.0
            with controller.forward():
                logits = net(x)
            seen.append(controller.alpha)
            with net.at_alpha(controller.alpha):
                assert torch.equal(controller(x), logits)
    assert seen == pytest.approx([5 / 6, 5 / 6, 1.0])
    assert net.alpha == controller.alpha


def test_levels_are_those_that_the_network_has():
    quantized = SubspaceModel(Mlp(), mode="quantized")
    assert len(default_levels(quantized)) == 6
    assert default_levels(Network(Clock())) == pytest.approx(LEVELS)
    network = Network(Clock(), alpha=0.9)
    assert RuntimeController(network, [lambda v: None], levels=[0.25, 0.5], read=dict).alpha == network.alpha == 0.5


def test_step_does_nothing_before_its_interval():
    controller, network = controller_of([lambda view: 0.5], interval_s=1.0)
    assert isinstance(controller.step(), Decision)
    network.clock.now += 0.9
    assert controller.step() is None
    network.clock.now += 0.2
    assert controller.step() is not None
    assert len(controller.log) == 2


def test_forwards_are_measured_and_those_that_fail_or_see_a_switch_are_not():
    seen = []
    controller, network = controller_of([lambda view: seen.append(view.readings.forwards)], dwell_s=0.0)
    controller()
    with pytest.raises(RuntimeError), controller.forward():
        raise RuntimeError("no memory")
    with controller.forward():
        controller._state = type(controller._state)(0.5)
        network.clock.now += 1.0
    controller.step()
    assert [(f.alpha, pytest.approx(f.latency_ms)) for f in seen[0]] == [(1.0, 28.0)]
    controller.step()
    assert seen[1] == ()


def test_a_policy_that_raises_is_reported_once_and_inference_goes_on():
    def broken(view):
        raise OSError("no such sensor")

    controller, _ = controller_of([broken])
    with pytest.warns(UserWarning, match=r"broken raised OSError: no such sensor; its last level, 1, stays"):
        controller.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        controller.step()
    assert controller() == "ran at 1"
    assert all("no such sensor" in decision.reason for decision in controller.log)


def test_a_read_that_raises_leaves_all_unknown():
    def read():
        raise PermissionError("/proc")

    controller, _ = controller_of([CpuPressure()], read=read)
    with pytest.warns(UserWarning, match="PermissionError"):
        assert controller.step().alpha == 1.0
    assert controller.reason == "CpuPressure: unknown, abstains"


def test_what_is_read_is_plain_and_finite():
    controller, _ = controller_of([CpuPressure()], read=lambda: {"cpu_pressure": torch.tensor(0.5).numpy()})
    assert controller.step().readings == Readings(time_s=100.0, cpu_pressure=0.5)
    controller, _ = controller_of([CpuPressure()], read=lambda: {"cpu_pressure": float("nan")})
    assert controller.step().readings.cpu_pressure is None


def test_a_recorded_run_replays_bit_by_bit(tmp_path):
    path = tmp_path / "runs" / "recording.jsonl"
    clock = Clock()
    network = Network(clock, load=lambda time_s: 1.0 + (time_s // 7.3) % 3)
    profile = {level: 4.0 + 10.0 * level for level in LEVELS}
    policies = [LatencyTarget(latency_ms=20, profile=profile), BatterySaver(below=0.3), CpuPressure()]
    read = lambda: {"battery": 0.35 - (clock.now - 100.0) / 300.0, "plugged_in": False, "cpu_pressure": None}  # noqa: E731
    with RuntimeController(network, policies, levels=LEVELS, clock=clock, read=read, recording=path) as controller:
        serve(controller, network, 60.0)
    recorded = read_recording(path)
    assert len({decision.alpha for decision in recorded.decisions}) > 3
    assert list(recorded.decisions) == list(controller.log)
    assert replay(path) == list(recorded.decisions)
    assert replay(path, policies) == list(recorded.decisions)
    # The check can fail: other policies, other levels.
    other = replay(path, [LatencyTarget(latency_ms=40), BatterySaver(), CpuPressure()])
    assert [d.alpha for d in other] != [d.alpha for d in recorded.decisions]
    lines = path.read_text().splitlines()
    assert set(json.loads(lines[1])) == {"time_s", "readings", "alpha", "reason"}
    assert "cpu_pressure" not in json.loads(lines[1])["readings"]
    # A process that was killed while it wrote.
    path.write_text("\n".join([*lines[:5], lines[5][:20]]))
    assert replay(path) == list(recorded.decisions)[:4]
    path.write_text("\n".join([*lines[:5], lines[5][:20], *lines[6:9]]))
    with pytest.raises(ValueError, match="line 6"):
        replay(path)


def test_a_recording_of_own_policies_wants_them_back(tmp_path):
    controller, _ = controller_of([lambda view: 0.5], recording=tmp_path / "recording.jsonl")
    controller.step()
    controller.stop()
    with pytest.raises(ValueError, match="<lambda>"):
        replay(tmp_path / "recording.jsonl")
    assert [decision.alpha for decision in replay(tmp_path / "recording.jsonl", [lambda view: 0.3])] == [1 / 6]
    for text, match in [
        ("", "not a recording"),
        ("{}", "not a recording"),
        ('{"lightning_lcs_recording": 9}', "version 9"),
    ]:
        (tmp_path / "recording.jsonl").write_text(text)
        with pytest.raises(ValueError, match=match):
            replay(tmp_path / "recording.jsonl")


def test_a_recording_that_cannot_be_written_does_not_stop_inference(tmp_path):
    controller, _ = controller_of([lambda view: 0.5], recording=tmp_path / "recording.jsonl")

    def full(text):
        raise OSError(28, "No space left on device")

    controller._recording_file.write = full
    with pytest.warns(UserWarning, match="No space left"):
        assert controller.step().alpha == 0.5
    controller.step()
    controller.stop()


def test_a_thread_decides_and_survives_a_level_that_can_not_be_set(monkeypatch):
    decided = threading.Event()
    network = Network(Clock(), noise=0.0)
    broken = {"yes": True}

    def set_alpha(alpha):
        if broken.pop("yes", False):
            raise RuntimeError("busy")
        network.alpha = alpha
        decided.set()

    network.set_alpha = set_alpha
    said = []
    monkeypatch.setattr(warnings, "warn", lambda text, *_, **__: said.append(text))
    controller = RuntimeController(network, [lambda view: 0.0], levels=LEVELS, interval_s=0.0, read=dict)
    controller.start()
    with pytest.raises(RuntimeError, match="already running"):
        controller.start()
    assert decided.wait(30.0)
    controller.stop()
    controller.stop()
    assert network.alpha == 0.0
    assert said == ["the controller could not set a level: RuntimeError: busy"]


def test_a_profile_is_measured_and_the_level_comes_back():
    network = Network(Clock(), noise=0.0, alpha=0.5)
    profile = measure_profile(network, torch.zeros(1), LEVELS, repeats=3, clock=network.clock)
    assert profile == pytest.approx({level: 4.0 + 10.0 * level for level in LEVELS})
    assert network.alpha == 0.5


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"policies": []}, ValueError, "policies is empty"),
        ({"levels": [2.0]}, ValueError, "levels"),
        ({"dwell_s": -1.0}, ValueError, "dwell_s=-1.0"),
        ({"interval_s": -1.0}, ValueError, "interval_s=-1.0"),
        ({"net": torch.nn.Linear(1, 1)}, TypeError, "Linear, which has no alpha"),
    ],
)
def test_wrong_arguments_are_named(options, error, match):
    options = {"net": Network(Clock()), "policies": [CpuPressure()], **options}
    with pytest.raises(error, match=match):
        RuntimeController(**options)


def test_it_is_public_and_lean():
    assert "RuntimeController" in lightning_lcs.__all__
    heavy = ("lightning", "timm", "wandb", "torchmetrics", "matplotlib", "psutil")
    code = f"import sys, lightning_lcs\nlightning_lcs.RuntimeController\nassert not set({heavy!r}) & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
