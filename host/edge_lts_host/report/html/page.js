"use strict";
// What the reader can do: toggle devices, choose the axis, look at a point, sort a table, go from a row to its point.
const data = JSON.parse(document.getElementById("data").textContent);

function tag(name, className, words) {
  const element = document.createElement(name);
  if (className) element.className = className;
  if (words !== undefined) element.textContent = words;
  return element;
}

const tip = tag("div", "tip");
tip.hidden = true;
document.body.append(tip);

function showTip(words, x, y) {
  tip.textContent = words;
  tip.hidden = false;
  tip.style.left = `${Math.max(4, Math.min(x + 14, innerWidth - tip.offsetWidth - 8))}px`;
  tip.style.top = `${Math.max(4, Math.min(y + 14, innerHeight - tip.offsetHeight - 8))}px`;
}

// The panel: who a point is, how it is built, and what stands behind its numbers.
function showPoint(panel, point, run) {
  panel.replaceChildren(tag("h4", "", point.name || point.id));
  panel.append(tag("div", "", [point.words, ...(point.marks || [])].filter(Boolean).join("; ")));
  panel.append(tag("div", "legend", run.label));
  if (point.layers) panel.append(layers(point));
  const list = tag("dl");
  const rows = point.facts || Object.entries(point.at).map(([name, value]) => [name, String(Number(value[0].toPrecision(3)))]);
  for (const [key, value] of rows) list.append(tag("dt", "", key), tag("dd", "", value));
  panel.append(list);
}

// One row for each layer, as wide as its feed-forward part.
function layers(point) {
  const widest = Math.max(point.d_model, ...point.layers.map((layer) => layer[1])), height = 13;
  const svg = make("svg", { viewBox: `0 0 300 ${point.layers.length * height + 2}`, width: "100%", role: "img", "aria-label": "layers" });
  point.layers.forEach(([heads, inner], row) => {
    const y = row * height + 2;
    svg.append(make("rect", { x: 0, y, width: 190 * inner / widest, height: height - 4, fill: "var(--c0)", opacity: 0.55 }));
    svg.append(make("rect", { x: 0, y, width: 190 * point.d_model / widest, height: height - 4, fill: "var(--c0)" }));
    svg.append(label(196, y + 8, `ffn ${inner}, heads ${heads}`, { class: "tick" }));
  });
  return svg;
}

function choose(id, run) {
  for (const one of document.querySelectorAll(".chosen")) one.classList.remove("chosen");
  for (const one of document.querySelectorAll(".point, tr.known"))
    if (one.dataset.id === id && (!run || !one.dataset.run || one.dataset.run === run)) one.classList.add("chosen");
}

function chip(words, isOn, onChange, icon) {
  const box = tag("label", "chip"), input = tag("input");
  input.type = "checkbox";
  input.checked = isOn;
  input.addEventListener("change", () => onChange(input.checked));
  box.append(input);
  if (icon) box.append(icon);
  box.append(document.createTextNode(words));
  return box;
}

function section(group, number) {
  const root = tag("section", "group");
  if (data.groups.length > 1) root.append(tag("h2", "", `Charts ${number + 1}: ${group.title}`));
  const look = { axis: group.axes[0], log: true, all: false, shown: group.runs.map(() => true), box: size() };
  const controls = tag("div", "controls"), chart = tag("div", "chart"), plot = tag("div"), panel = tag("aside");
  panel.append(tag("div", "legend", "Click or tap a point, or a row of a table: its architecture and its evidence appear here."));
  const volume = tag("div", "volume");
  const on = (spot, point, run) => {
    const words = () => [point.name || point.id, point.words, ...(point.marks || []), run.label].filter(Boolean).join("\n");
    spot.addEventListener("pointermove", (event) => showTip(words(), event.clientX, event.clientY));
    spot.addEventListener("pointerleave", () => { tip.hidden = true; });
    const pick = () => { tip.hidden = true; showPoint(panel, point, run); choose(point.id, run.run_id); };
    spot.addEventListener("click", pick);
    spot.addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); pick(); } });
  };
  const draw = () => {
    look.box = size();
    plot.replaceChildren(scatter(group, look, on) || tag("p", "", "No device is chosen."));
    const curves = volumes(group, look.shown, { width: look.box.width, height: 240 });
    volume.replaceChildren();
    if (curves) volume.append(tag("h4", "", "Hypervolume over time, as a share of what these runs reach together"), curves);
  };
  const select = tag("select");
  select.setAttribute("aria-label", "cost");
  group.axes.forEach((axis, index) => { const option = tag("option", "", axis.label); option.value = index; select.append(option); });
  select.addEventListener("change", () => { look.axis = group.axes[Number(select.value)]; draw(); });
  controls.append(select);
  group.runs.forEach((run, index) => {
    const icon = make("svg", { width: 14, height: 14, viewBox: "-7 -7 14 14" }, make("path", { d: marker(index, 4.2), fill: colour(index), stroke: colour(index) }));
    if (group.runs.length > 1) controls.append(chip(run.label, true, (isOn) => { look.shown[index] = isOn; draw(); }, icon));
  });
  controls.append(chip("logarithmic", true, (isOn) => { look.log = isOn; draw(); }));
  if (group.runs.some((run) => run.points.some((point) => point.kind === "measured")))
    controls.append(chip("all measured", false, (isOn) => { look.all = isOn; draw(); }));
  plot.className = "plot-box";
  chart.append(plot, panel);
  const hints = "Bars: 95 %, where a fresh process would land; dotted: this occasion alone. Open: probably dominated, or a baseline. Ring: a knee.";
  root.append(controls, chart, tag("div", "legend", hints), volume);
  draw();
  addEventListener("resize", () => { if (size().width !== look.box.width) draw(); });
  return { root, group, pick: (id) => {
    for (const run of group.runs) for (const point of run.points)
      if (point.id === id && point.kind !== "measured") { showPoint(panel, point, run); choose(id); return true; }
    return false;
  } };
}

function size() { return innerWidth < 800 ? { width: 420, height: 380 } : { width: 820, height: 470 }; }

const sections = data.groups.map(section);
for (const one of sections) document.getElementById("charts").append(one.root);

// A cell's leading number, where there is one: "12.3 [12.0, 12.9]", "36%", "~", "-".
function sortKey(cell) {
  const found = /^[~±]?\s*(-?[0-9][0-9,]*(?:\.[0-9]+)?)/.exec(cell.textContent.trim());
  return found ? Number(found[1].replaceAll(",", "")) : null;
}

function sortable(table) {
  const head = table.tHead && table.tHead.rows[0], body = table.tBodies[0];
  if (!head || body.rows.length < 2) return;
  [...head.cells].forEach((cell, column) => {
    const button = tag("button", "", cell.textContent);
    button.type = "button";
    cell.replaceChildren(button);
    button.addEventListener("click", () => {
      const isUp = cell.getAttribute("aria-sort") !== "ascending";
      for (const other of head.cells) other.removeAttribute("aria-sort");
      cell.setAttribute("aria-sort", isUp ? "ascending" : "descending");
      const rows = [...body.rows], keys = rows.map((row) => sortKey(row.cells[column]));
      const words = rows.map((row) => row.cells[column].textContent.trim());
      const isNumbers = column > 0 && keys.some((key) => key !== null) && words.every((word, at) => keys[at] !== null || word === "-" || word === "");
      const order = rows.map((_, at) => at).sort((a, b) => {
        if (isNumbers && (keys[a] === null || keys[b] === null)) return (keys[a] === null) - (keys[b] === null);
        const way = isNumbers ? keys[a] - keys[b] : words[a].localeCompare(words[b]);
        return (isUp ? way : -way) || a - b;
      });
      body.append(...order.map((at) => rows[at]));
    });
  });
}

const ids = new Set(data.groups.flatMap((group) => group.runs.flatMap((run) => run.points.filter((p) => p.kind !== "measured").map((p) => p.id))));
for (const table of document.querySelectorAll("main table")) {
  sortable(table);
  for (const row of table.tBodies[0].rows) {
    const id = row.cells[0].textContent.trim().replace(/^~/, "");
    if (!ids.has(id)) continue;
    row.dataset.id = id;
    row.classList.add("known");
    row.addEventListener("click", () => { sections.some((one) => one.pick(id)); });
  }
}
// A link to one member: PAGE.html#ARCH_ID.
function fromLink() {
  const id = decodeURIComponent(location.hash.slice(1));
  if (ids.has(id)) sections.some((one) => one.pick(id));
}
addEventListener("hashchange", fromLink);
fromLink();
document.documentElement.dataset.ready = "yes";
