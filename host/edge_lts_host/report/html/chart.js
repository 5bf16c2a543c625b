"use strict";
// Scatter and lines as SVG. Nothing here makes markup of text: elements are made one by one, words are text nodes.
const SVG = "http://www.w3.org/2000/svg";
const MARKERS = ["circle", "square", "triangle", "diamond", "down", "plus", "cross"];
const DASHES = ["", "7 4", "7 3 2 3", "2 3", "10 3", "4 4", "1 3"];

function make(name, attributes, ...children) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes || {})) element.setAttribute(key, value);
  for (const child of children) element.append(child);
  return element;
}

function label(x, y, words, attributes) {
  return make("text", { x, y, ...attributes }, document.createTextNode(words));
}

// The outline of the marker of run number `index`, around (0, 0).
function marker(index, size) {
  const s = size, kind = MARKERS[index % MARKERS.length];
  const path = {
    circle: `M${-s},0a${s},${s} 0 1,0 ${2 * s},0a${s},${s} 0 1,0 ${-2 * s},0`,
    square: `M${-s},${-s}h${2 * s}v${2 * s}h${-2 * s}z`,
    triangle: `M0,${-1.2 * s}L${1.15 * s},${s}H${-1.15 * s}z`,
    down: `M0,${1.2 * s}L${1.15 * s},${-s}H${-1.15 * s}z`,
    diamond: `M0,${-1.35 * s}L${1.35 * s},0L0,${1.35 * s}L${-1.35 * s},0z`,
    plus: `M${-s},0H${s}M0,${-s}V${s}`,
    cross: `M${-s},${-s}L${s},${s}M${-s},${s}L${s},${-s}`,
  };
  return path[kind];
}

function colour(index) { return `var(--c${index % 7})`; }

// A scale from values to pixels, with ticks: logarithmic where everything is positive and it is wanted.
function scaleOf(values, from, to, isLog) {
  let low = Math.min(...values), high = Math.max(...values);
  const log = isLog && low > 0;
  if (log) { low /= 1.07; high *= 1.07; } else { const pad = (high - low || Math.abs(high) || 1) * 0.05; low -= pad; high += pad; }
  const f = log ? Math.log : (x) => x;
  const place = (x) => from + (to - from) * (f(x) - f(low)) / (f(high) - f(low) || 1);
  return { place, ticks: log ? logTicks(low, high) : linearTicks(low, high) };
}

function logTicks(low, high) {
  for (const steps of [[1], [1, 2, 5], [1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9]]) {
    const found = [];
    for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++)
      for (const s of steps) { const t = s * 10 ** e; if (t >= low && t <= high) found.push(Number(t.toPrecision(3))); }
    if (found.length >= 4) return found;
  }
  return linearTicks(low, high);
}

function linearTicks(low, high) {
  const rough = (high - low) / 6 || 1, unit = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((s) => s * unit).find((s) => s >= rough);
  const found = [];
  for (let t = Math.ceil(low / step) * step; t <= high; t += step) found.push(Number(t.toPrecision(6)));
  return found;
}

// An empty plot with axes. Returns {svg, x, y}; `box` is its size in units of the view box.
function frame(box, xs, ys, words, options) {
  const [left, right, top, bottom] = [64, 14, 12, 46];
  const svg = make("svg", { class: "plot", viewBox: `0 0 ${box.width} ${box.height}`, role: "group", "aria-label": words.name });
  const x = scaleOf(xs, left, box.width - right, options.xLog), y = scaleOf(ys, box.height - bottom, top, options.yLog);
  let last = -Infinity;
  for (const t of x.ticks) {
    const at = x.place(t);
    svg.append(make("line", { class: "grid", x1: at, x2: at, y1: top, y2: box.height - bottom }));
    if (at - last < 34) continue;
    last = at;
    svg.append(label(at, box.height - bottom + 16, options.xWords ? options.xWords(t) : String(t), { class: "tick", "text-anchor": "middle" }));
  }
  for (const t of y.ticks) {
    const at = y.place(t);
    svg.append(make("line", { class: "grid", x1: left, x2: box.width - right, y1: at, y2: at }));
    svg.append(label(left - 6, at + 4, options.yWords ? options.yWords(t) : String(t), { class: "tick", "text-anchor": "end" }));
  }
  svg.append(make("line", { class: "axis", x1: left, x2: box.width - right, y1: box.height - bottom, y2: box.height - bottom }));
  svg.append(make("line", { class: "axis", x1: left, x2: left, y1: top, y2: box.height - bottom }));
  svg.append(label((left + box.width - right) / 2, box.height - 8, words.x, { "text-anchor": "middle" }));
  const middle = (top + box.height - bottom) / 2;
  svg.append(label(0, 0, words.y, { "text-anchor": "middle", transform: `translate(14 ${middle}) rotate(-90)` }));
  return { svg, x, y };
}

// Members with intervals, baselines, everything else as dots. `look` says which runs and axes; `on` is told of a point.
function scatter(group, look, on) {
  const q = group.quality.name, c = look.axis.name, drawn = [];
  group.runs.forEach((run, index) => {
    if (!look.shown[index]) return;
    for (const point of run.points)
      if (point.at[q] && point.at[c] && (look.all || point.kind !== "measured")) drawn.push({ point, run, index });
  });
  if (!drawn.length) return null;
  const clean = (list) => list.filter((v) => typeof v === "number");
  const solid = drawn.filter((d) => d.point.kind !== "measured" || look.all);
  const xs = clean(solid.flatMap((d) => d.point.at[c])).filter((v) => v > 0 || !look.log), ys = clean(solid.map((d) => d.point.at[q][0]));
  const words = { x: look.axis.label, y: group.quality.label, name: `${group.quality.label} against ${look.axis.label}` };
  const { svg, x, y } = frame(look.box, xs, ys, words, { xLog: look.log, yLog: look.log });
  const order = { measured: 0, probable: 1, member: 2, baseline: 3 };
  drawn.sort((a, b) => order[a.point.kind] - order[b.point.kind]);
  for (const { point, run, index } of drawn) {
    const [value, low, high, how] = point.at[c], px = x.place(value), py = y.place(point.at[q][0]);
    if (point.kind === "measured") {
      svg.append(make("circle", { class: "background", cx: px, cy: py, r: 2 }));
      continue;
    }
    const tone = point.kind === "baseline" ? "var(--ink)" : colour(index);
    if (low !== null && (low > 0 || !look.log)) {
      const [from, to] = [low, high].map((v) => Math.min(look.box.width - 14, Math.max(64, x.place(v))));
      svg.append(make("line", { class: `bar ${how}`, stroke: tone, x1: from, x2: to, y1: py, y2: py }));
    }
    const isOpen = point.kind === "probable" || point.kind === "baseline";
    const shape = make("path", { class: "shape", d: marker(point.kind === "baseline" ? 3 : index, 4.2), stroke: tone, fill: isOpen ? "var(--paper)" : tone });
    const spot = make("g", { class: "point", transform: `translate(${px} ${py})`, tabindex: 0, role: "button", "data-id": point.id, "data-run": run.run_id,
      "aria-label": `${point.name || point.id}, ${point.words || ""}` }, make("circle", { class: "halo", r: 11 }), shape);
    if ((point.knees || []).includes(c)) spot.append(make("circle", { class: "knee", r: 8 }));
    on(spot, point, run);
    svg.append(spot);
    if (point.name) svg.append(label(px + 8, py + 12, point.name, { class: "tick" }));
  }
  return svg;
}

// Share of the hypervolume over time, a step at each new record.
function volumes(group, shown, box) {
  const curves = group.volumes.map((curve) => ({ ...curve, index: group.runs.findIndex((run) => run.run_id === curve.run_id) }))
    .filter((curve) => shown[curve.index]);
  if (!curves.length) return null;
  const longest = Math.max(...curves.map((curve) => curve.at[curve.at.length - 1][0]));
  const [unit, name] = longest < 300 ? [1, "s"] : longest < 10800 ? [60, "minutes"] : [3600, "hours"];
  const words = { x: `budget spent, ${name}`, y: "hypervolume", name: "hypervolume over time" };
  const { svg, x, y } = frame(box, [0, longest / unit], [0, 1], words, { yWords: (t) => `${Math.round(t * 100)}%` });
  for (const { at, index } of curves) {
    let d = `M${x.place(0)},${y.place(0)}`;
    for (const [t, share] of at) d += `H${x.place(t / unit)}V${y.place(share)}`;
    svg.append(make("path", { class: "curve", d, stroke: colour(index), "stroke-dasharray": DASHES[index % DASHES.length] }));
  }
  return svg;
}
