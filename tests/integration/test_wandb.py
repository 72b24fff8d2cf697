"""The curve in an offline W&B run, read back from its records."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from lightning.pytorch.loggers import WandbLogger

from tests.integration.support import Data, Module, lcs, trainer

wandb = pytest.importorskip("wandb", reason="wandb is not installed: nothing of the W&B panels is tested")
# What wandb says about itself.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


def records(folder):
    """Every record of the run that was written under a folder."""
    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    command = Path(sys.executable).with_name("wandb")
    done = subprocess.run([command, "leet", "inspect", "--json", path], capture_output=True, text=True, timeout=120)
    if done.returncode == 0:
        return [json.loads(line) for line in done.stdout.splitlines()]
    return from_datastore(path)  # an older wandb without the command


def from_datastore(path):
    from google.protobuf.json_format import MessageToDict
    from wandb.proto import wandb_internal_pb2
    from wandb.sdk.internal.datastore import DataStore

    store, found = DataStore(), []
    store.open_for_scan(str(path))
    while (data := store.scan_data()) is not None:
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        content = MessageToDict(record, preserving_proto_field_name=True)
        for kind in ("config", "history", "summary"):
            if kind in content:
                items = content[kind].get("update", content[kind].get("item", []))
                name = "item" if kind == "history" else "update"
                values = {i.get("key") or ".".join(i["nested_key"]): json.loads(i["value_json"]) for i in items}
                found.append({"type": kind, kind: {name: values}})
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The curve, the records and the folder of an offline run."""
    folder = tmp_path_factory.mktemp("wandb")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        for name in ("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
            patch.setenv(name, str(folder))
        callback = lcs()
        logger = WandbLogger(save_dir=folder, project="lightning-lcs", offline=True)
        trainer(folder, callback, logger=logger, max_epochs=2).fit(Module(), datamodule=Data())
        wandb.finish()
        yield callback.curve, records(folder), folder


def logged(records):
    return {k: v for record in records if record["type"] == "history" for k, v in record["history"]["item"].items()}


def table(folder, key):
    (path,) = folder.glob(f"wandb/offline-run-*/files/media/table/{key}_*.table.json")
    return json.loads(path.read_text())


@pytest.mark.parametrize("metric", ["val_acc", "val_loss"])
@pytest.mark.parametrize("cost", ["width", "macs"])
def test_a_panel_per_metric_against_width_and_macs(run, metric, cost):
    curve, records, folder = run
    settings = {k: v for r in records if r["type"] == "config" for k, v in r["config"]["update"].items()}
    panel = settings[f"_wandb.visualize.lcs/{metric}/against_{cost}"]
    assert panel["panel_config"]["panelDefId"] == "wandb/lineseries/v0"
    assert panel["panel_config"]["stringSettings"] == {"title": f"{metric} against {cost}", "xname": cost}
    content = table(folder, f"lcs/{metric}/against_{cost}_table")
    assert content["columns"] == ["step", "lineKey", "lineVal"]
    expected = [[getattr(point, cost), "alpha 0 to 1", point.metrics[metric]] for point in curve]
    assert content["data"] == expected


def test_the_whole_curve_as_a_table(run):
    curve, records, folder = run
    content = table(folder, "lcs/curve")
    assert len(content["data"]) == len(curve) == 3
    for row, point in zip(content["data"], curve, strict=True):
        values = dict(zip(content["columns"], row, strict=True))
        for name, value in values.items():
            assert value == (point.metrics[name] if name in point.metrics else getattr(point, name))
    keys = {key.split(".")[0] for key in logged(records)}
    assert "lcs/curve" in keys


def test_every_level_and_the_mean_as_numbers(run):
    curve, records, _ = run
    values = logged(records)
    for point in curve:
        assert values[f"lcs/val_acc/alpha_{round(100 * point.alpha):03d}"] == point.metrics["val_acc"]
    assert values["lcs/val_loss/mean"] == sum(point.metrics["val_loss"] for point in curve) / 3
