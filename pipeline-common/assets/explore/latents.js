// The table of latents: of any number of rows only those in sight exist, and pages are fetched as they
// come into sight.

import * as api from "./api.js";
import { bar, count, debounce, facts, h, notice, quoted, say, share, unnamed } from "./dom.js";
import * as links from "./links.js";

const ROW = 30, PAGE = 200, BEYOND = 8;
/// Browsers draw no higher elements; a longer table scrolls faster than it moves.
const HIGHEST = 12_000_000;
/// Pages kept at most.
const KEPT = 120;

const COLUMNS = [
  { key: "latent", text: "Latent", number: true },
  { key: "label", text: "Name" },
  { key: null, text: "Strongest token" },
  { key: "density", text: "Density", number: true, title: "Share of rows in which it is active; the bar is logarithmic" },
  { key: "max", text: "Max", number: true, title: "Largest activation" },
  { key: "weighted", text: "Mean", number: true, title: "Mean activation over all rows" },
  { key: "score", text: "Score", number: true, title: "Balanced accuracy of detection with its name, 0.5 is chance" },
];
const DEFAULTS = { sort: "density", descending: "true", name: "", strongest: "", text: "", dead: "any", named: "any" };

/// What was shown last: coming back to it needs no request.
let last = null;

export async function show(view, { sae: name, list, params, signal }) {
  const sae = list.saes.find(one => one.sae === name);
  if (!sae) throw new api.Problem(404, `There is no SAE ${name} in this store.`, "Choose one in the bar above.");
  const query = { ...DEFAULTS };
  for (const key of Object.keys(DEFAULTS)) if (params.has(key)) query[key] = params.get(key);
  view.append(h("h1", {}, "Latents of ", h("a", { href: links.to.sae(name) }, name)), about(sae));
  if (!sae.top_sentences) {
    const { missing } = await api.sae(name, signal);
    view.append(notice(new api.Problem(404, missing?.error ?? "03_top_sentences has not run yet.", missing?.hint)),
      h("p", {}, "Without it latents cannot be browsed, but ", h("a", { href: links.to.sae(name) }, "curves and metadata"),
        ", ", h("a", { href: links.to.complete({ sae: name }) }, "Complete"), " and ", h("a", { href: links.to.steer() }, "Steer"), " work."));
    return "Latents";
  }
  view.classList.add("fill");
  view.keepsScroll = true;
  const grid = new Grid(sae, query, signal);
  view.append(filters(sae, query, grid), grid.element);
  await grid.begin();
  view.addEventListener("attached", () => grid.attached());
  return `Latents of ${name}`;
}

const about = sae => facts([
  ["model", sae.model], ["hook", sae.hook], ["latents", count(sae.d_sae)], ["named", sae.names ? count(sae.names) : "none yet (04_name_latents)"],
]);

function filters(sae, query, grid) {
  const later = debounce(300, () => grid.filter());
  const field = (key, label, props = {}) => h("label", {}, label, h("input", {
    type: "search", value: query[key], maxlength: 256, spellcheck: "false", name: key, ...props,
    input: event => {
      query[key] = event.target.value;
      later();
    },
  }));
  const choice = (key, label, options, props = {}) => h("label", {}, label, h("select", {
    name: key, ...props, change: event => {
      query[key] = event.target.value;
      grid.filter();
    },
  }, options.map(([value, text]) => h("option", { value, selected: query[key] === value }, text))));
  const off = sae.names === 0 ? { disabled: true, title: "04_name_latents has not named any latent yet" } : {};
  return h("form", { class: "filters", submit: event => event.preventDefault(), autocomplete: "off" },
    field("name", "Name", off),
    field("strongest", "Strongest token"),
    field("text", "Text in its sentences"),
    choice("dead", "Dead", [["any", "shown"], ["no", "hidden"], ["only", "only"]]),
    choice("named", "Named", [["any", "any"], ["only", "with a name"], ["no", "without"]], off),
    grid.found);
}

class Grid {
  constructor(sae, query, signal) {
    Object.assign(this, { sae, query, signal, total: 0, pages: new Map(), pending: new Map(), rows: new Map(), active: 0 });
    this.found = h("p", { class: "found quiet", "aria-live": "polite" });
    this.space = h("div", { class: "space", role: "rowgroup" });
    this.head = h("div", { class: "row head", role: "row", "aria-rowindex": 1 }, COLUMNS.map(column => this.heading(column)));
    this.element = h("div", {
      class: "grid", role: "grid", tabindex: 0, "aria-label": `Latents of ${sae.sae}`, "aria-colcount": COLUMNS.length,
      scroll: () => this.scrolled(), keydown: event => this.key(event), click: event => this.click(event),
    }, h("div", { role: "rowgroup", class: "heads" }, this.head), this.space);
    this.later = debounce(70, () => this.fetchMissing());
    const resized = new ResizeObserver(() => this.draw());
    resized.observe(this.element);
    signal.addEventListener("abort", () => {
      resized.disconnect();
      last = { address: this.address, kept: { total: this.total, pages: this.pages, active: this.active, top: this.top } };
    });
  }

  heading({ key, text, number, title }) {
    const sorted = key && key === this.query.sort, down = this.query.descending === "true";
    const arrow = sorted ? h("span", { "aria-hidden": "true" }, down ? " ▼" : " ▲") : null;
    return h("div", {
      role: "columnheader", class: number ? "number" : null, title, "aria-sort": sorted ? (down ? "descending" : "ascending") : null,
    }, key ? h("button", { type: "button", click: () => this.sort(key) }, text, arrow) : text);
  }

  sort(key) {
    const { query } = this;
    const first = key === "latent" || key === "label" ? "false" : "true";
    query.descending = query.sort === key ? String(query.descending !== "true") : first;
    query.sort = key;
    this.head.replaceChildren(...COLUMNS.map(column => this.heading(column)));
    this.head.querySelector("[aria-sort] button").focus();
    this.filter();
  }

  get address() {
    const changed = Object.entries(this.query).filter(([key, value]) => value !== DEFAULTS[key]);
    return links.to.latents(this.sae.sae, Object.fromEntries(changed));
  }

  /// The first page, or what was there when one left.
  async begin() {
    if (last?.address !== this.address) return this.start();
    Object.assign(this, last.kept);
    this.counted();
  }

  /// The first page, which says how many rows there are: nothing else is asked for before.
  async start() {
    this.starting = Symbol();
    const { starting } = this;
    try {
      await this.load(0);
    } finally {
      if (this.starting === starting) this.starting = null;
    }
  }

  attached() {
    this.draw();
    if (this.top) this.element.scrollTop = this.top;
    this.draw();
  }

  /// From the start with other filters.
  async filter() {
    this.pending.forEach(control => control.abort());
    this.pending.clear();
    this.pages = new Map();
    this.active = 0;
    links.show(this.address);
    this.element.setAttribute("aria-busy", "true");
    try {
      await this.start();
      this.element.scrollTop = 0;
      this.draw(true);
    } catch (error) {
      this.failed(error);
    }
  }

  async load(page) {
    const control = new AbortController();
    const signal = AbortSignal.any([control.signal, this.signal]);
    this.pending.set(page, control);
    const params = { ...this.query, offset: page * PAGE, limit: PAGE };
    for (const key of ["dead", "named"]) if (params[key] === "any") delete params[key];
    try {
      const answer = await api.patiently(signal, problem => this.waiting(problem), () => api.latents(this.sae.sae, params, signal));
      signal.throwIfAborted();
      this.total = answer.total;
      this.pages.set(page, answer.rows);
      if (this.pages.size > KEPT) this.pages.delete(this.pages.keys().next().value);
      this.counted();
    } finally {
      if (this.pending.get(page) === control) this.pending.delete(page);
    }
  }

  waiting(problem) {
    this.found.textContent = api.again(problem);
  }

  failed(error) {
    if (this.signal.aborted || error.name === "AbortError") return;
    this.element.removeAttribute("aria-busy");
    this.found.replaceChildren(h("span", { class: "bad" }, error.message), error.hint ? ` ${error.hint}` : "");
  }

  counted() {
    const all = this.total === this.sae.d_sae;
    this.found.textContent = all ? `${count(this.total)} latents` : `${count(this.total)} of ${count(this.sae.d_sae)} latents`;
    this.element.setAttribute("aria-rowcount", this.total + 1);
    this.element.removeAttribute("aria-busy");
    this.space.style.height = `${Math.min(HIGHEST, this.total * ROW)}px`;
  }

  scrolled() {
    this.top = this.element.scrollTop;
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      this.draw();
    });
  }

  /// How much faster rows pass than the bar moves.
  get factor() {
    const seen = this.element.clientHeight;
    const most = Math.min(HIGHEST, this.total * ROW) - seen;
    return most > 0 ? Math.max(1, (this.total * ROW - seen) / most) : 1;
  }

  get inSight() {
    const from = Math.floor(this.element.scrollTop * this.factor / ROW);
    return [from, Math.min(this.total, from + Math.ceil(this.element.clientHeight / ROW) + 1)];
  }

  draw(anew = false) {
    const [from, end] = this.inSight;
    const first = Math.max(0, from - BEYOND), behind = Math.min(this.total, end + BEYOND);
    for (const [index, row] of this.rows) {
      if (!anew && index >= first && index < behind) continue;
      row.remove();
      this.rows.delete(index);
    }
    const above = this.element.scrollTop * (this.factor - 1);
    // From the last, so that each goes before the next: readers of the screen follow the order.
    for (let index = behind - 1; index >= first; index--) {
      this.row(index).style.transform = `translateY(${Math.round(index * ROW - above)}px)`;
    }
    this.mark();
    this.later();
  }

  row(index) {
    const data = this.pages.get(Math.floor(index / PAGE))?.[index % PAGE];
    const known = this.rows.get(index);
    if (known && known.data === data) return known;
    const row = data ? this.filled(data) : h("div", { class: "row waiting" }, h("span", { role: "gridcell" }, "…"));
    row.data = data;
    row.id = `row-${index}`;
    row.setAttribute("role", "row");
    row.setAttribute("aria-rowindex", index + 2);
    if (known) known.replaceWith(row);
    else this.space.insertBefore(row, this.rows.get(index + 1) ?? null);
    this.rows.set(index, row);
    return row;
  }

  filled(data) {
    const dead = data.density === 0;
    const cell = (number, ...children) => h("div", { role: "gridcell", class: number ? "number" : null }, ...children);
    const none = () => h("span", { class: "quiet" }, "–");
    return h("div", { class: dead ? "row dead" : "row" },
      cell(true, h("a", { href: links.to.latent(this.sae.sae, data.latent), tabindex: -1 }, String(data.latent))),
      cell(false, data.label && h("span", { title: data.label }, data.label), data.label && dead && " ",
        dead ? h("span", { class: "tag" }, "dead") : !data.label && none()),
      cell(false, data.token === null ? none() : h("code", {}, quoted(data.token.trim() || data.token))),
      cell(true, dead ? none() : [share(data.density, 4), bar(1 + Math.log10(data.density) / 6)]),
      cell(true, dead ? none() : data.max.toFixed(2)),
      cell(true, dead ? none() : data.weighted.toFixed(4)),
      cell(true, data.score === null ? none() : data.score.toFixed(2)));
  }

  /// Pages in sight and the next ones; requests for others are given up.
  fetchMissing() {
    if (this.signal.aborted || this.starting) return;
    const [from, end] = this.inSight;
    const pages = new Set();
    for (let page = Math.floor(from / PAGE); page * PAGE < end; page++) pages.add(page);
    const next = Math.floor((end + PAGE / 2) / PAGE);
    if (next * PAGE < this.total) pages.add(next);
    for (const [page, control] of this.pending) {
      if (pages.has(page)) continue;
      control.abort();
      this.pending.delete(page);
    }
    for (const page of pages) {
      if (this.pages.has(page) || this.pending.has(page)) continue;
      this.load(page).then(() => this.draw(), error => this.failed(error));
    }
  }

  mark() {
    this.rows.forEach((row, index) => row.setAttribute("aria-selected", String(index === this.active)));
    this.element.setAttribute("aria-activedescendant", `row-${this.active}`);
  }

  key(event) {
    if (event.target !== this.element) return;
    if (event.key === "Enter") return this.openRow(this.active);
    const seen = Math.max(1, Math.floor(this.element.clientHeight / ROW) - 2);
    const step = { ArrowDown: 1, ArrowUp: -1, PageDown: seen, PageUp: -seen, Home: -Infinity, End: Infinity }[event.key];
    if (step === undefined || this.total === 0) return;
    event.preventDefault();
    this.active = Math.max(0, Math.min(this.total - 1, this.active + step));
    this.reveal();
  }

  reveal() {
    const { element, factor } = this;
    const high = element.clientHeight - ROW, y = this.active * ROW, top = element.scrollTop * factor;
    if (y < top) element.scrollTop = y / factor;
    else if (y + ROW > top + high) element.scrollTop = (y + ROW - high) / factor;
    this.draw();
    const data = this.rows.get(this.active)?.data;
    if (data) say(`Latent ${data.latent}, ${data.label ?? unnamed().textContent}`);
  }

  openRow(index) {
    const data = this.rows.get(index)?.data;
    if (data) links.open(links.to.latent(this.sae.sae, data.latent));
  }

  click(event) {
    const row = event.target.closest(".space .row");
    if (!row?.data) return;
    this.active = Number(row.id.slice(4));
    if (!event.target.closest("a") && !getSelection().toString()) this.openRow(this.active);
  }
}
