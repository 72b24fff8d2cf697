"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const DASHES = ["solid", "dash", "dot", "dashdot"];
  const COSTS = Object.keys(data.axes).filter((name) => !data.axes[name].level);
  const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "cross", "star"];
  const state = { metric: data.metric, cost: Object.keys(data.axes)[0], share: 0.5, run: 0, chart: null };

  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const colour = (index) => css(`--s${index % 8}`);
  const number = (value) => String(Number(value.toPrecision(4)));

  /* A cost as text: 12.5 M, 4.95 MB, 3.10 ms. */
  function text(cost, value) {
    const axis = data.axes[cost];
    if (axis.form !== "SI") return `${value.toPrecision(3)}${axis.unit ? " " + axis.unit : ""}`;
    const [prefix, size] = [["G", 1e9], ["M", 1e6], ["k", 1e3], ["", 1]].find(([, s]) => value >= s) || ["", 1];
    return `${(value / size).toPrecision(3)} ${prefix}${axis.unit}`.trim();
  }
  /* The same in a sentence. */
  const said = (cost, value) => text(cost, value) + (cost === "macs" ? " MACs" : "");

  /* Around two colours over a middle one, by alpha. */
  function ramp(alpha) {
    const parts = ["--ramp-low", "--ramp-middle", "--ramp-high"].map(css).map((hex) =>
      [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)));
    const [from, to, share] = alpha < 0.5 ? [parts[0], parts[1], 2 * alpha] : [parts[1], parts[2], 2 * alpha - 1];
    return `rgb(${from.map((value, i) => Math.round(value + (to[i] - value) * share)).join(",")})`;
  }

  function layout(x, y) {
    const narrow = window.innerWidth < 640;
    const axis = { gridcolor: css("--grid"), linecolor: css("--line"), zeroline: false, automargin: true, ticks: "" };
    return {
      font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: css("--ink") },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      margin: { l: 8, r: 8, t: 8, b: 8 }, dragmode: false, hovermode: "closest", showlegend: true,
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", font: { size: narrow ? 12 : 13 } },
      hoverlabel: { bgcolor: css("--ground"), bordercolor: css("--quiet"), font: { color: css("--ink"), size: 13 }, align: "left" },
      xaxis: { ...axis, title: { text: x, standoff: 8 } }, yaxis: { ...axis, title: { text: y, standoff: 8 } },
    };
  }
  const config = { displayModeBar: false, responsive: false };

  const isCost = () => state.cost in (data.fronts[state.metric] || {});
  const points = () => data.series.flatMap((series, number) => series.points.map((point) => ({ series, number, point })));
  const measured = (point) => point[state.cost] != null && point.metrics[state.metric] != null;

  function hover(series, point) {
    const axis = Object.keys(data.axes).find((name) => data.axes[name].level && point[name] != null);
    const lines = [`<b>${escaped(series.name)}</b>`, `alpha ${point.alpha.toFixed(3)}`,
      `${escaped(state.metric)} ${number(point.metrics[state.metric])}`];
    if (!isCost()) lines.push(`${data.axes[state.cost].label} ${number(point[state.cost])}`);
    else if (axis) lines.push(`${escaped(data.axes[axis].label)} ${number(point[axis])}`);
    for (const cost of COSTS)
      if (point[cost] != null) lines.push(`${data.axes[cost].label} ${text(cost, point[cost])}`);
    return lines.join("<br>");
  }
  const escaped = (value) => String(value).replace(/[&<>]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;" })[c]);

  function drawCurves() {
    const front = isCost() ? data.fronts[state.metric][state.cost] : null;
    const best = new Set((front || []).map(([number, index]) => `${number},${index}`));
    const traces = [];
    const beaten = front ? points().filter(({ point }) => measured(point)).length - best.size : 0;
    if (front && beaten) {
      const line = front.map(([number, index]) => data.series[number].points[index]);
      line.push({ ...line.at(-1), [state.cost]: range()[1] });
      traces.push({
        type: "scatter", mode: "lines", name: "Pareto front", hoverinfo: "skip",
        x: line.map((p) => p[state.cost]), y: line.map((p) => p.metrics[state.metric]),
        line: { shape: "hv", width: 7, color: css("--front") },
      });
    }
    data.series.forEach((series, number) => {
      const shown = series.points.map((point, index) => ({ point, index })).filter(({ point }) => measured(point));
      traces.push({
        type: "scatter", mode: "lines+markers", name: series.name,
        x: shown.map(({ point }) => point[state.cost]), y: shown.map(({ point }) => point.metrics[state.metric]),
        text: shown.map(({ point }) => hover(series, point)), hovertemplate: "%{text}<extra></extra>",
        line: { color: colour(number), width: 2, dash: DASHES[number % DASHES.length] },
        marker: {
          symbol: SYMBOLS[number % SYMBOLS.length], size: 9, line: { color: colour(number), width: 2 },
          color: shown.map(({ index }) => (!front || best.has(`${number},${index}`) ? colour(number) : css("--ground"))),
        },
      });
    });
    const axis = data.axes[state.cost];
    const spec = layout(`${axis.label}${axis.form === "plain" && axis.unit ? ` (${axis.unit})` : ""}`, state.metric);
    if (axis.form === "SI") Object.assign(spec.xaxis, { tickformat: "~s", ticksuffix: axis.unit });
    spec.showlegend = traces.length > 1;
    if (isCost()) spec.shapes = [{ type: "line", yref: "paper", y0: 0, y1: 1, x0: budget(), x1: budget(), line: { color: css("--quiet"), width: 1, dash: "dot" } }];
    Plotly.react("curve-chart", traces, spec, config);
    $("front-note").textContent = !front || !beaten ? "" :
      "Filled marks lie on the Pareto front: no other level is at least as good for no more cost.";
    const lower = data.metrics[state.metric].lower ? " Lower is better." : "";
    $("front-note").textContent += lower;
    drawBest();
  }

  function range() {
    const costs = points().filter(({ point }) => measured(point)).map(({ point }) => point[state.cost]);
    return [Math.min(...costs), Math.max(...costs)];
  }
  function budget() {
    const [low, high] = range();
    return low + (high - low) * state.share;
  }

  /* As best_under() in pareto.py. */
  function drawBest() {
    $("budget-box").hidden = !isCost();
    if (!isCost()) return;
    const sign = data.metrics[state.metric].lower ? -1 : 1;
    const fitting = points().filter(({ point }) => measured(point) && point[state.cost] <= budget());
    fitting.sort((a, b) => sign * (b.point.metrics[state.metric] - a.point.metrics[state.metric]) || a.point[state.cost] - b.point[state.cost]);
    $("budget-value").textContent = said(state.cost, budget());
    const found = fitting[0];
    const best = $("best");
    best.textContent = "";
    if (!found) { best.textContent = "No level is that small."; return; }
    const { series, point } = found;
    const strong = document.createElement("strong");
    strong.textContent = `alpha ${point.alpha.toFixed(3)}`;
    const costs = COSTS.filter((c) => point[c] != null)
      .map((c) => said(c, point[c]));
    best.append(strong, `${data.series.length > 1 ? ` of ${series.name}` : ""}: ${state.metric} ${number(point.metrics[state.metric])}, ${costs.join(", ")}`);
  }

  function drawLearning() {
    const entry = data.learning[state.run];
    $("learning").hidden = !entry;
    if (!entry) return;
    const lines = entry.charts[state.chart];
    const traces = lines.map((line, index) => {
      const own = line.alpha == null ? colour(index) : ramp(line.alpha);
      return {
        type: "scatter", mode: line.values.length > 30 ? "lines" : "lines+markers", name: line.name,
        x: line.values.map(([step]) => step), y: line.values.map(([, value]) => value),
        hovertemplate: `<b>${escaped(line.name)}</b><br>step %{x}<br>%{y:.4g}<extra></extra>`,
        line: { color: own, width: line.alpha === 0 || line.alpha === 1 || line.alpha == null ? 2.5 : 1.5,
          dash: line.alpha == null ? DASHES[index % DASHES.length] : line.alpha === 1 ? "solid" : line.alpha === 0 ? "dash" : "solid" },
        marker: { color: own, size: 6, symbol: line.alpha === 0 ? "square" : "circle" },
      };
    });
    Plotly.react("learning-chart", traces, layout("Optimizer steps", state.chart), config);
    const followed = Object.keys(entry.charts).some((name) => name in data.metrics);
    $("learning-note").textContent = (data.series.length > 1 && data.learning.length === 1 ? `Of ${entry.run}. ` : "") +
      (followed ? "" : "LCSCallback(every_n_epochs=1) measures every level over training, too.");
  }

  function fill(select, names, chosen, changed) {
    select.replaceChildren(...names.map(([value, label]) => new Option(label, value, false, value === chosen)));
    select.parentElement.hidden = names.length < 2;
    select.onchange = () => changed(select.value);
  }
  function fillCharts() {
    const entry = data.learning[state.run];
    if (!entry) return;
    const names = Object.keys(entry.charts);
    state.chart = names.includes(state.chart) ? state.chart : names.includes(state.metric) ? state.metric : names[0];
    fill($("learning-metric"), names.map((name) => [name, name]), state.chart, (name) => { state.chart = name; drawLearning(); });
  }

  fill($("metric"), Object.keys(data.metrics).map((name) => [name, name]), state.metric, (name) => { state.metric = name; drawCurves(); });
  fill($("learning-run"), data.learning.map((entry, i) => [String(i), entry.run]), "0", (value) => { state.run = Number(value); fillCharts(); drawLearning(); });
  fillCharts();
  for (const name of Object.keys(data.axes)) {
    const label = document.createElement("label");
    const radio = Object.assign(document.createElement("input"), { type: "radio", name: "cost", value: name, checked: name === state.cost });
    radio.onchange = () => { state.cost = name; drawCurves(); };
    label.append(radio, data.axes[name].short);
    $("cost").append(label);
  }
  $("budget").oninput = (event) => { state.share = event.target.value / 1000; drawCurves(); };
  document.querySelectorAll("[data-series]").forEach((key) => { key.style.background = `var(--s${key.dataset.series % 8})`; });

  const draw = () => { drawCurves(); drawLearning(); };
  draw();
  /* Turned phones, other windows and paper: plotly itself only watches the window. */
  for (const id of ["curve-chart", "learning-chart"])
    new ResizeObserver(() => { if ($(id).clientWidth && $(id).data) Plotly.Plots.resize(id); }).observe($(id));
  /* Colours of the charts follow the scheme, and are light on paper. */
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  window.matchMedia("print").addEventListener("change", draw);
  document.documentElement.dataset.drawn = String(document.querySelectorAll(".chart .trace").length);
})();
