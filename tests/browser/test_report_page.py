"""The HTML report in headless Chromium: it renders, nothing is written to the console, the controls work."""

import dataclasses
import json
import math
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from lightning_lcs.reporting.history import Evaluation
from lightning_lcs.reporting.html import page, plotly_code
from lightning_lcs.reporting.pareto import best_under
from lightning_lcs.reporting.runs import Run
from tests.unit.reporting.test_curve import point

pytestmark = pytest.mark.browser
pytest.importorskip("plotly", reason="plotly is not installed: the page has no charts")

GROUND = {"light": (255, 255, 255), "dark": (0x14, 0x17, 0x1A)}
BLUE = {"light": (0x00, 0x72, 0xB2), "dark": (0x56, 0xB4, 0xE9)}
PHONE = 390


def curve(shift, latency=1.5):
    """Seven levels, of which the third is worse than the second."""
    accuracies = (0.5, 0.7, 0.65, 0.8, 0.85, 0.87, 0.9)
    return [
        point(step / 6, latency + step, val_acc=value + shift, val_loss=1.0 - value)
        for step, value in enumerate(accuracies)
    ]


def run(name, shift=0.0, evaluations=3):
    history = [
        Evaluation(
            curve=[dataclasses.replace(p, metrics={"val_acc": p.metrics["val_acc"] * n / 3}) for p in curve(shift)],
            stage="fit",
            epoch=n,
            step=10 * n,
        )
        for n in range(1, evaluations + 1)
    ]
    summary = {
        "version": 1,
        "settings": {"network": "Net", "mode": {"name": "structured", "min_width": 0.25}, "subspace": "line"},
        "plan": {
            "compressed": [["conv.weight", "8 x 3", "2 x 3"]],
            "whole": [["odd.weight, dimension 1", "an op without a rule"]],
            "replaced": [],
            "numbers": 24,
            "kept_numbers": 6,
        },
        "endpoints": {"cosine": 0.5, "distance": 0.1},
        "statistics": {"levels": 7, "size_bytes": 1000},
        "drift": [[0.0, 0.8]],
        "environment": {"python": "3"},
    }
    losses = {"train_loss": [(1, 2.0), (5, 1.0)]}
    return Run(
        name=name,
        path=Path(name),
        curves={"": curve(shift)},
        evaluations=history,
        losses=losses,
        summary=summary,
    )


def chromium(tmp_path, html, *options, width=1100, height=900):
    """Chromium's output and what was written to its console; the page is a file without a network."""
    file = tmp_path / "page.html"
    file.write_text(html)
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert program, "no Chromium: apt-get install chromium"
    command = [program, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},{height}"]
    command += ["--virtual-time-budget=4000", "--host-resolver-rules=MAP * ~NOTFOUND", *options, file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def dom(tmp_path, html, script="", **size):
    """The page's DOM after a script; what it returns is read from the attribute ``data-said``."""
    asking = (
        f"<script>document.documentElement.dataset.said = JSON.stringify((() => {{ {script} }})() ?? null)</script>"
    )
    text, console = chromium(tmp_path, html.replace("</body>", asking + "</body>"), "--dump-dom", **size)
    assert console == []
    said = re.search(r'data-said="([^"]*)"', text)
    return text, json.loads(said.group(1).replace("&quot;", '"').replace("&amp;", "&"))


def in_phone(html, tmp_path):
    """A page in a frame as wide as a phone: Chromium's own window is never that narrow."""
    (tmp_path / "inner.html").write_text(html)
    style = f"border:0;width:{PHONE}px;height:3000px"
    return f'<body style="margin:0"><iframe id="f" src="inner.html" style="{style}"></iframe>'


def picture(tmp_path, html, scheme, **size):
    from matplotlib.image import imread

    file = tmp_path / "shot.png"
    dark = (
        ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else ["--blink-settings=preferredColorScheme=1"]
    )
    _, console = chromium(tmp_path, html, f"--screenshot={file}", *dark, **size)
    assert console == []
    return (imread(file)[:, :, :3] * 255).round().astype(int)


@pytest.fixture(scope="module")
def plotly():
    return plotly_code()


def count(image, colour):
    return int((abs(image - colour).max(axis=2) <= 2).sum())


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_charts_are_drawn_in_the_colours_of_the_scheme(tmp_path, plotly, scheme):
    image = picture(tmp_path, page([run("one")], plotly), scheme)
    assert tuple(image[2, 2]) == GROUND[scheme]
    assert count(image, BLUE[scheme]) > 500
    other = "dark" if scheme == "light" else "light"
    assert count(image, BLUE[other]) < 50


def test_every_mark_is_there(tmp_path, plotly):
    text, said = dom(
        tmp_path,
        page([run("one"), run("two", -0.1)], plotly),
        """
        const data = (id) => document.getElementById(id).data.map((t) => [t.name, t.x.length]);
        return [data("curve-chart"), data("learning-chart"), document.querySelectorAll("#curve-chart .point").length];
        """,
    )
    curves, learning, marks = said
    assert curves == [["Pareto front", 7], ["one", 7], ["two", 7]]
    assert [n for _, n in learning] == [3] * 7
    assert learning[0][0] == "alpha 0.00"
    assert marks == 14
    for expected in ("an op without a rule", "conv.weight", "At a glance", "Norm drift"):
        assert expected in text


@pytest.mark.parametrize("share", [0, 250, 620, 1000])
def test_the_best_level_under_a_budget_is_that_of_python(tmp_path, plotly, share):
    runs = [run("one"), run("two", 0.05)]
    points = [p for r in runs for p in r.curves[""]]
    low, high = min(p.macs for p in points), max(p.macs for p in points)
    expected = best_under(points, "macs", low + (high - low) * share / 1000, "val_acc")
    _, said = dom(
        tmp_path,
        page(runs, plotly),
        f"""
        const slider = document.getElementById("budget");
        slider.value = {share};
        slider.dispatchEvent(new Event("input"));
        return document.getElementById("best").textContent;
        """,
    )
    assert said.startswith(f"alpha {expected.alpha:.3f} of two: val_acc {expected.metrics['val_acc']:.4g}")


def test_metric_cost_run_and_chart_can_be_chosen(tmp_path, plotly):
    _, said = dom(
        tmp_path,
        page([run("one"), run("two", -0.1)], plotly),
        """
        const choose = (id, value) => {
          const select = document.getElementById(id);
          select.value = value;
          select.dispatchEvent(new Event("change"));
        };
        choose("metric", "val_loss");
        document.querySelector("[value=latency_ms]").click();
        choose("learning-run", "1");
        choose("learning-metric", "training losses");
        const chart = document.getElementById("curve-chart");
        return [chart.layout.xaxis.title.text, chart.layout.yaxis.title.text, chart.data.at(-1).x,
          document.getElementById("front-note").textContent,
          document.getElementById("learning-chart").data.map((t) => t.y)];
        """,
    )
    x, y, latencies, note, losses = said
    assert (x, y) == ("Latency (ms)", "val_loss")
    assert latencies == [p.latency_ms for p in curve(0.0)]
    assert "Lower is better" in note
    assert losses == [[2.0, 1.0]]


def test_latencies_that_were_not_measured_have_no_button(tmp_path, plotly):
    bare = Run(
        name="bare", path=Path("bare"), curves={"": [dataclasses.replace(p, latency_ms=math.nan) for p in curve(0.0)]}
    )
    _, said = dom(
        tmp_path,
        page([bare], plotly),
        """return [[...document.querySelectorAll("#cost input")].map((r) => r.value),
             document.getElementById("learning").hidden];""",
    )
    assert said == [["macs", "size_bytes", "width"], True]


def test_a_phone_needs_no_sideways_scrolling_but_inside_tables(tmp_path, plotly):
    html = in_phone(page([run("a run with a long name of its own"), run("two")], plotly), tmp_path)
    asking = """<script>onload = () => {
      const inner = document.getElementById("f").contentDocument;
      const wide = [...inner.querySelectorAll("body *")].filter((e) => !e.closest(".scroll, .visually-hidden"))
        .filter((e) => e.getBoundingClientRect().right > 391).map((e) => e.outerHTML.slice(0, 80));
      document.documentElement.dataset.said = JSON.stringify([inner.documentElement.scrollWidth, wide]);
    }</script>"""
    text, console = chromium(
        tmp_path, html + asking, "--dump-dom", "--allow-file-access-from-files", width=700, height=3000
    )
    assert console == []
    said = json.loads(re.search(r'data-said="([^"]*)"', text).group(1).replace("&quot;", '"').replace("&amp;", "&"))
    assert said == [PHONE, []]


def test_an_error_in_the_page_would_be_seen(tmp_path):
    _, console = chromium(tmp_path, page([run("one")], "/* no plotly */"), "--dump-dom")
    assert any("Plotly is not defined" in line for line in console)
