"""Readings: parsed rightly where there is a source, unknown where there is none."""

import importlib
import json
from types import SimpleNamespace

import pytest

from lightning_lcs.control.policies import BatterySaver
from lightning_lcs.control.sensors import SYSTEM_READINGS, Readings, SystemReader, hottest, parse_pressure, usable_cpus

TEXT = "some avg10=12.50 avg60=1.28 avg300=1.56 total=14255129\nfull avg10=3.00 avg60=0.00 avg300=0.00 total=0\n"


def fake_psutil(**sensors):
    def none(*_):
        return None

    memory = SimpleNamespace(available=3, total=4)
    found = {"virtual_memory": lambda: memory, "sensors_battery": none, "sensors_temperatures": dict, **sensors}
    return SimpleNamespace(**found)


@pytest.fixture
def psutil_is(monkeypatch):
    def put(module):
        original = importlib.import_module
        monkeypatch.setattr(
            importlib, "import_module", lambda name, *rest: module if name == "psutil" else original(name, *rest)
        )

    return put


def test_pressure():
    assert parse_pressure(TEXT) == 0.125
    assert parse_pressure("some avg10=250.0") == 1.0
    for text in ("", "full avg10=3.00", "some total=1"):
        with pytest.raises(ValueError, match="PSI"):
            parse_pressure(text)


def test_a_container_without_anything_is_unknown_and_not_zero(psutil_is, tmp_path, monkeypatch):
    psutil_is(fake_psutil())
    monkeypatch.delattr("os.getloadavg", raising=False)
    found = SystemReader(pressure_file=tmp_path / "none")()
    assert found == {**dict.fromkeys(SYSTEM_READINGS), "memory_available": 0.75}


def test_a_laptop(psutil_is, tmp_path):
    def sensor(value):
        return SimpleNamespace(current=value)

    psutil_is(
        fake_psutil(
            sensors_battery=lambda: SimpleNamespace(percent=42.0, power_plugged=False),
            sensors_temperatures=lambda: {"nvme": [sensor(90.0)], "coretemp": [sensor(55.0), sensor(61.0)]},
        )
    )
    (tmp_path / "cpu").write_text(TEXT)
    found = SystemReader(pressure_file=tmp_path / "cpu")()
    load = found.pop("cpu_load")
    assert load is None or load >= 0.0
    assert found == {
        "cpu_pressure": 0.125,
        "memory_available": 0.75,
        "battery": 0.42,
        "plugged_in": False,
        "temperature_c": 61.0,
    }


def test_a_driver_that_raises_is_unknown_and_says_why(psutil_is):
    def broken():
        raise FileNotFoundError("/sys/class/power_supply")

    psutil_is(fake_psutil(sensors_battery=broken))
    reader = SystemReader(["battery", "memory_available"])
    assert reader() == {"battery": None, "memory_available": 0.75}
    assert reader.problems == {"battery": "FileNotFoundError: /sys/class/power_supply"}


def test_a_battery_that_does_not_know_its_supply(psutil_is):
    psutil_is(fake_psutil(sensors_battery=lambda: SimpleNamespace(percent=10, power_plugged=None)))
    assert SystemReader(BatterySaver.needs)() == {"battery": 0.1, "plugged_in": None}


def test_temperatures_that_are_not_plausible_are_left_out():
    def sensors(*values):
        return [SimpleNamespace(current=value) for value in values]

    assert hottest({"acpitz": sensors(0.0, 40.0, 255.0, None, float("nan")), "nvme": sensors(45.0)}) == 45.0
    assert hottest({"coretemp": sensors(-5.0)}) is None
    assert hottest({}) is None


def test_psutil_is_asked_for_only_where_it_is_needed(monkeypatch):
    def missing(name, *rest):
        raise ModuleNotFoundError(name, name=name)

    monkeypatch.setattr(importlib, "import_module", missing)
    assert set(SystemReader(["cpu_pressure", "cpu_load"])()) == {"cpu_pressure", "cpu_load"}
    with pytest.raises(ImportError, match=r"pip install 'lightning-lcs\[control\]'"):
        SystemReader(["battery"])
    with pytest.raises(ValueError, match="'batery'"):
        SystemReader(["batery"])


def test_this_machine_gives_what_a_recording_can_hold():
    found = SystemReader()()
    readings = Readings(time_s=0.0, **json.loads(json.dumps(found)))
    assert readings.memory_available is None or 0.0 < readings.memory_available <= 1.0
    assert readings.cpu_pressure is None or 0.0 <= readings.cpu_pressure <= 1.0
    assert usable_cpus() >= 1
