"""The curve in an offline W&B run, read back from its records."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from lightning.pytorch.loggers import WandbLogger

from lightning_lcs import Structured, SubspaceModel, TradeoffMonitor
from lightning_lcs.loggers.wandb import series_of
from lightning_lcs.subspace.curves.curve_file import write_csv
from lightning_lcs.subspace.modes.registry import mode_to_dict
from tests.integration.support import Data, Module, lcs, trainer
from tests.unit.reporting.test_curve import CURVE

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
    """The callback, the records and the folder of an offline run."""
    folder = tmp_path_factory.mktemp("wandb")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        for name in ("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
            patch.setenv(name, str(folder))
        baseline = write_csv({"": CURVE}, folder / "plain.csv")
        monitor = TradeoffMonitor(alphas=3, every_n_epochs=1, baseline=baseline, artifact=True)
        callback = lcs(every_n_epochs=1)
        logger = WandbLogger(save_dir=folder, project="lightning-lcs", offline=True)
        trainer(folder, callback, monitor, logger=logger, max_epochs=2).fit(Module(), datamodule=Data())
        wandb.finish()
        yield monitor, records(folder), folder


def test_the_files_are_in_a_folder_of_the_run(run):
    """And not in the working directory, where the next run would overwrite them."""
    *_, folder = run
    (curve,) = folder.glob("lightning-lcs/*/curve.csv")
    assert curve.with_name("summary.json").exists()
    assert not (folder / "curve.csv").exists()


def logged(records):
    return {k: v for record in records if record["type"] == "history" for k, v in record["history"]["item"].items()}


def settings(records):
    return {k: v for r in records if r["type"] == "config" for k, v in r["config"]["update"].items()}


def tables(folder, key):
    """Every version of a table that was logged, the latest last."""
    paths = sorted(
        folder.glob(f"wandb/offline-run-*/files/media/table/{key}_*.table.json"),
        key=lambda path: int(path.name.removeprefix(key.rpartition("/")[2]).split("_")[1]),
    )
    return [json.loads(path.read_text()) for path in paths]


@pytest.mark.parametrize("metric", ["val_acc", "val_loss"])
@pytest.mark.parametrize("cost", ["width", "macs", "size_bytes", "latency_ms"])
def test_a_panel_per_metric_against_each_cost_with_the_curve_before_and_the_baseline(run, metric, cost):
    monitor, records, folder = run
    panel = settings(records)[f"_wandb.visualize.lcs/{metric}/against_{cost}"]
    assert panel["panel_config"]["panelDefId"] == "wandb/lineseries/v0"
    assert panel["panel_config"]["stringSettings"] == {"title": f"{metric} against {cost}", "xname": cost}
    first, last = tables(folder, f"lcs/{metric}/against_{cost}_table")
    assert last["columns"] == ["step", "lineKey", "lineVal"]
    before, latest = (evaluation.curve for evaluation in monitor.evaluations)
    assert latest == monitor.curve
    for content, curves in (
        (first, {"latest": before, "baseline": CURVE}),
        (last, {"latest": latest, "previous": before, "baseline": CURVE}),
    ):
        expected = [
            [x, name, y]
            for name, (xs, ys) in series_of(curves, cost, metric).items()
            for x, y in zip(xs, ys, strict=True)
        ]
        assert sorted(content["data"]) == sorted(expected)
        assert expected[:3] == [[getattr(p, cost), "latest", p.metrics[metric]] for p in curves["latest"]]


def test_levels_that_were_not_measured_are_on_no_panel():
    assert series_of({"a": CURVE, "b": []}, "latency_ms", "val_acc") == {"a": ([1.5, 1.5], [0.5, 0.9])}
    assert series_of({"a": CURVE}, "macs", "val_loss") == {"a": ([1000000, 2000000], [2.0, 1.0])}


def test_the_whole_curve_as_a_table_that_replaces_the_one_before(run):
    monitor, records, folder = run
    first, last = tables(folder, "lcs/curve")
    values = logged(records)
    assert values.get("lcs/curve.log_mode", values.get("lcs/curve", {}).get("log_mode")) == "MUTABLE"
    for content, evaluation in zip((first, last), monitor.evaluations, strict=True):
        assert len(content["data"]) == len(evaluation.curve) == 3
        for row, point in zip(content["data"], evaluation.curve, strict=True):
            for name, value in zip(content["columns"], row, strict=True):
                assert value == (point.metrics[name] if name in point.metrics else getattr(point, name))


def test_every_level_and_the_mean_as_numbers(run):
    monitor, records, _ = run
    values = logged(records)
    for point in monitor.curve:
        assert values[f"lcs/val_acc/alpha_{round(100 * point.alpha):03d}"] == point.metrics["val_acc"]
    assert values["lcs/val_loss/mean"] == sum(point.metrics["val_loss"] for point in monitor.curve) / 3


def test_endpoints_drift_and_sampled_alphas_as_numbers(run):
    _, records, folder = run
    values = logged(records)
    summary = json.loads(next(folder.rglob("summary.json")).read_text())
    assert values["lcs/endpoints/cosine"] == summary["endpoints"]["cosine"]
    assert values["lcs/endpoints/distance"] == summary["endpoints"]["distance"] > 0.0
    drift = dict(map(tuple, summary["drift"]))
    assert values["lcs/norm_drift/alpha_000"] == drift[0.0] > 0.0
    assert values["lcs/norm_drift/alpha_050"] == drift[0.5] > 0.0
    steps = [r["history"]["item"] for r in records if r["type"] == "history"]
    drawn = [step["lcs/sampled_alpha/1"] for step in steps if "lcs/sampled_alpha/1" in step]
    assert len(set(drawn)) == len(drawn) == 6
    assert all(0.0 < alpha < 1.0 for alpha in drawn)


def test_the_configuration_says_what_was_trained(run):
    _, records, _ = run
    config = settings(records)["lcs"]
    assert config["mode"] == mode_to_dict(Structured(min_width=0.25))
    assert (config["subspace"], config["norm"], config["network"]) == ("line", "keep", "Net")
    assert config["plan"]["kept_whole"] == 0
    assert config["plan"]["kept_numbers"] < config["plan"]["numbers"]


def test_the_deployment_file_is_an_artifact_with_its_levels(run):
    monitor, records, folder = run
    uploads = [r["artifact"] for r in records if r["type"] == "artifact"]
    last = uploads[-1]
    assert (last["type"], [entry["path"] for entry in last["manifest"]["contents"]]) == ("model", ["model.lcs"])
    levels = json.loads(last["metadata"])["levels"]
    assert [(level["name"], level["alpha"]) for level in levels] == [("small", 0.0), ("medium", 0.5), ("full", 1.0)]
    assert [level["val_acc"] for level in levels] == [p.metrics["val_acc"] for p in monitor.curve]
    assert levels[0]["macs"] == monitor.curve[0].macs
    (file,) = folder.rglob("model.lcs")
    stored = SubspaceModel.load(file).levels
    assert [level.metrics for level in stored] == [p.metrics for p in monitor.curve]
    assert [level.name for level in stored] == [level["name"] for level in levels]
