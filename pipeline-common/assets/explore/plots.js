// Plots: bars on a logarithmic or linear axis, curves with a reading line.

import { count, exact, h, hint, roving, short, stepped, svg } from "./dom.js";

/// Of a drawing, in units that are about a pixel each.
const WIDTH = 520, WIDE = 1040, LEFT = 44, RIGHT = 14, TOP = 8, BOTTOM = 24, WIDEST = 36;

const frame = (height, role, label, width = WIDTH) => svg("svg", { viewBox: `0 0 ${width} ${height}`, role, "aria-label": label });
const tick = (x, y, text, anchor) => svg("text", { x, y, "text-anchor": anchor }, text);
const rule = (x1, y1, x2, y2, name = "scale") => svg("line", { x1, y1, x2, y2, class: name });
const raised = n => (n < 0 ? "⁻" : "") + String(Math.abs(n)).replace(/\d/g, digit => "⁰¹²³⁴⁵⁶⁷⁸⁹"[digit]);

/// Powers of ten up to the largest count.
function decades(most) {
  const steps = [];
  for (let n = 0; 10 ** n <= most; n++) steps.push(10 ** n);
  const every = Math.ceil(steps.length / 4);
  return steps.filter((_, i) => i % every === 0);
}

/// Bars of these heights; each is told by its title where one points.
function bars(drawing, heights, titles, { wide, bottom, width = WIDTH }) {
  heights.forEach((height, i) => {
    const column = svg("g", { class: "column", tabindex: -1, role: "img", "aria-label": titles[i] },
      svg("rect", { x: LEFT + i * wide, y: TOP, width: wide, height: bottom - TOP, class: "reach" }),
      svg("rect", { x: LEFT + i * wide + 0.5, y: bottom - height, width: Math.max(0.5, wide - 1), height, class: "ink" }));
    drawing.append(hint(column, () => titles[i]));
  });
  drawing.append(rule(LEFT, bottom, width - RIGHT, bottom, "axis"));
  roving(drawing, ".column");
}

/// Counts on a logarithmic axis; `ticks` are `[place between 0 and counts.length, text]`.
function histogram(label, { counts, titles, ticks }, height = 170) {
  const most = Math.max(1, ...counts), bottom = height - BOTTOM;
  const wide = Math.min(WIDEST, (WIDTH - LEFT - RIGHT) / Math.max(1, counts.length));
  // One row is seen, too.
  const up = n => n === 0 ? 0 : (bottom - TOP) * (0.06 + 0.94 * Math.log(n) / Math.max(Math.log(2), Math.log(most)));
  const drawing = frame(height, "group", label);
  for (const n of decades(most)) {
    const y = bottom - up(n);
    drawing.append(rule(LEFT, y, WIDTH - RIGHT, y), tick(LEFT - 5, y + 4, n < 1e4 ? count(n) : `10${raised(Math.round(Math.log10(n)))}`, "end"));
  }
  bars(drawing, counts.map(up), titles, { wide, bottom });
  ticks.forEach(([place, text]) => drawing.append(tick(LEFT + place * wide, height - 8, text, "middle")));
  return drawing;
}

/// A latent's activations: steps of a quarter of an octave.
export function activations({ first, counts }) {
  const edge = i => 2 ** ((first + i) / 4);
  const titles = counts.map((n, i) => `${short(edge(i))} to ${short(edge(i + 1))}: ${count(n)} ${n === 1 ? "row" : "rows"}`);
  const every = Math.max(1, Math.ceil(counts.length / 4 / 9));
  const ticks = [];
  for (let i = 0; i <= counts.length; i++) {
    const octave = (first + i) / 4;
    if (Number.isInteger(octave) && octave % every === 0) ticks.push([i, short(2 ** octave)]);
  }
  const total = counts.reduce((sum, n) => sum + n, 0);
  return histogram(`Activations of ${count(total)} rows, on a logarithmic scale`, { counts, titles, ticks });
}

/// How many latents have which density.
export function densities({ from, step, counts }) {
  const titles = counts.map((n, i) =>
    `density ${short(10 ** (from + i * step))} to ${short(10 ** (from + (i + 1) * step))}: ${count(n)} latents`);
  const ticks = [];
  for (let i = 0; i <= counts.length; i++) {
    const power = from + i * step;
    if (Math.abs(power - Math.round(power)) < 1e-9) ticks.push([i, `10${raised(Math.round(power))}`]);
  }
  return histogram("Latents by density, both on logarithmic scales", { counts, titles, ticks });
}

/// A small bar for each value, one beside the other; `unit` is what they are of, counted from 1.
export function columns(label, unit, values, titles, height = 110) {
  const most = Math.max(...values, 1e-9), bottom = height - BOTTOM;
  const wide = Math.min(WIDEST, (WIDE - LEFT - RIGHT) / Math.max(1, values.length));
  const drawing = frame(height, "group", label, WIDE);
  for (const part of [0.5, 1]) {
    const y = bottom - (bottom - TOP) * part;
    drawing.append(rule(LEFT, y, WIDE - RIGHT, y), tick(LEFT - 5, y + 4, short(part * most), "end"));
  }
  bars(drawing, values.map(value => (bottom - TOP) * value / most), titles, { wide, bottom, width: WIDE });
  const every = [1, 5, 10, 50, 100].find(step => values.length / step <= 12) ?? 100;
  for (let n = every; n <= values.length; n += every) drawing.append(tick(LEFT + (n - 0.5) * wide, height - 8, count(n), "middle"));
  drawing.append(tick(LEFT - 5, height - 8, unit, "end"));
  return drawing;
}

function spread(values) {
  const low = Math.min(...values), high = Math.max(...values);
  if (low !== high) return [low, high];
  return low === 0 ? [0, 1] : [low - Math.abs(low) / 2, low + Math.abs(low) / 2];
}

/// A curve; where the values are null it has a gap. Arrow keys and the pointer read it.
export function curve(title, steps, values, height = 150) {
  const known = values.filter(v => v !== null);
  if (known.length === 0) return null;
  const [low, high] = spread(known), bottom = height - BOTTOM;
  const last = steps.at(-1), first = steps[0];
  const x = i => LEFT + (WIDTH - LEFT - RIGHT) * (last === first ? 0.5 : (steps[i] - first) / (last - first));
  const y = v => bottom - (bottom - TOP) * (v - low) / (high - low);
  const label = `${title}: ${short(known[0])} at first, ${short(known.at(-1))} at last, between ${short(low)} and ${short(high)}`;
  const drawing = frame(height, "img", label);
  for (const value of [low, (low + high) / 2, high]) {
    drawing.append(rule(LEFT, y(value), WIDTH - RIGHT, y(value)), tick(LEFT - 5, y(value) + 4, short(value), "end"));
  }
  drawing.append(rule(LEFT, bottom, WIDTH - RIGHT, bottom, "axis"));
  drawing.append(tick(LEFT, height - 8, count(first), "start"), tick(WIDTH - RIGHT, height - 8, `step ${count(last)}`, "end"));
  for (const run of unbroken(values)) {
    drawing.append(svg("polyline", { points: run.map(i => `${x(i).toFixed(1)},${y(values[i]).toFixed(1)}`).join(" "), class: "line" }));
  }
  const shown = h("span", { class: "quiet" }, `last ${short(known.at(-1))}`);
  reading(drawing, { steps, values, x, bottom, shown });
  return h("figure", {}, h("figcaption", {}, h("b", {}, title), " ", shown), drawing);
}

/// Stretches without a null.
function unbroken(values) {
  const runs = [[]];
  values.forEach((v, i) => v === null ? runs.push([]) : runs.at(-1).push(i));
  return runs.filter(run => run.length);
}

function reading(drawing, { steps, values, x, bottom, shown }) {
  const line = rule(0, TOP, 0, bottom, "cursor");
  const resting = shown.textContent;
  let now = steps.length - 1;
  function show(i) {
    now = i;
    line.setAttribute("x1", x(i));
    line.setAttribute("x2", x(i));
    if (!line.isConnected) drawing.append(line);
    shown.textContent = `step ${count(steps[i])}: ${exact(values[i])}`;
  }
  function rest() {
    line.remove();
    shown.textContent = resting;
  }
  drawing.setAttribute("tabindex", 0);
  drawing.addEventListener("pointermove", event => {
    const box = drawing.getBoundingClientRect();
    const place = (event.clientX - box.left) / box.width * WIDTH;
    let best = 0;
    steps.forEach((_, i) => Math.abs(x(i) - place) < Math.abs(x(best) - place) && (best = i));
    show(best);
  });
  drawing.addEventListener("pointerleave", rest);
  drawing.addEventListener("blur", rest);
  drawing.addEventListener("keydown", event => {
    const to = stepped(event.key, now, steps.length);
    if (to === null) return;
    event.preventDefault();
    show(to);
  });
}
