// The list of latents that are changed: found by number or name, each with suggested strengths.

import * as api from "./api.js";
import { button, debounce, exact, fresh, h, hint, say, short } from "./dom.js";
import * as links from "./links.js";

const OPS = [["add", "add"], ["clamp", "clamp to"], ["scale", "scale by"], ["ablate", "ablate"]];
const MOST = 32, FOUND = 8;

export class Changes {
  constructor(changes, list, { changed, signal }) {
    Object.assign(this, { changes, list, changed, signal, syncs: new WeakMap() });
    this.rows = h("ol", { class: "changes", "aria-label": "Changes" });
    this.element = h("section", {}, h("h2", {}, "Changes"), this.rows, this.adder());
    this.draw();
  }

  /// Adds a latent with a strength that fits it.
  async add(sae, latent) {
    if (this.changes.length >= MOST) return say(`At most ${MOST} changes.`);
    const change = { sae, latent, op: "clamp", value: 0 };
    this.changes.push(change);
    this.draw();
    this.changed();
    const found = await api.strength(sae, latent, this.signal).catch(() => null);
    const positive = found?.suggestions.filter(one => one.value > 0) ?? [];
    // As strong as it ever was; suggestions are rounded.
    const fits = positive.find(one => one.value >= 0.99 * found.max) ?? positive.at(-1);
    if (!fits || !this.changes.includes(change) || change.touched) return;
    Object.assign(change, { op: fits.op, value: fits.value });
    this.syncs.get(change)();
    this.changed();
  }

  draw() {
    this.rows.replaceChildren(...this.changes.map((change, i) => this.row(change, i)));
    if (this.changes.length === 0) {
      this.rows.append(h("li", { class: "quiet" }, "None yet: find a latent by its number or name below. Without changes only the baseline is written."));
    }
  }

  /// A change; `sync` brings what is shown to what was chosen, and leaves the focus where it is.
  row(change, i) {
    const sync = () => {
      op.value = change.op;
      // Not where one types: `1.` is 1.
      if (value.valueAsNumber !== change.value) value.value = change.value;
      value.disabled = change.op === "ablate";
      for (const chip of chips.children) chip.sync?.();
    };
    this.syncs.set(change, sync);
    const touch = () => {
      change.touched = true;
      sync();
      this.changed();
    };
    const value = h("input", {
      type: "number", step: "any", value: change.value, required: true, disabled: change.op === "ablate", "aria-label": "Value",
      input: event => {
        if (!event.target.checkValidity()) return;
        change.value = event.target.valueAsNumber;
        touch();
      },
    });
    const op = h("select", {
      "aria-label": "What is done",
      change: event => {
        change.op = event.target.value;
        touch();
      },
    }, OPS.map(([key, text]) => h("option", { value: key, selected: key === change.op }, text)));
    const remove = button("Remove", () => {
      this.changes.splice(i, 1);
      this.draw();
      this.changed();
      const left = [...this.rows.querySelectorAll(".remove")];
      (left[i] ?? left.at(-1) ?? this.field).focus();
    }, { class: "remove", "aria-label": `Remove latent ${change.latent}` });
    const label = h("span", { class: "label" }), chips = h("span", { class: "chips" });
    this.describe(change, { label, chips, touch });
    return h("li", {},
      h("span", { class: "who" }, h("a", { href: links.to.latent(change.sae, change.latent) }, `Latent ${change.latent}`), " ", label,
        h("small", { class: "quiet" }, change.sae)),
      op, value, chips, remove);
  }

  /// Its name, and strengths to choose from.
  async describe(change, { label, chips, touch }) {
    const sae = this.list.saes.find(one => one.sae === change.sae);
    if (!sae) {
      label.replaceChildren(h("span", { class: "bad" }, "not in this store"));
      return;
    }
    try {
      const { suggestions } = await api.strength(change.sae, change.latent, this.signal);
      chips.replaceChildren(...suggestions.map(one => this.chip(change, one, touch)));
      if (sae.names > 0 && sae.top_sentences) change.label ??= (await api.latent(change.sae, change.latent, this.signal)).name?.label ?? null;
      label.textContent = change.label ?? "";
    } catch (error) {
      if (!this.signal.aborted) chips.replaceChildren(h("span", { class: "bad" }, error.message));
    }
  }

  chip(change, { op, value, why }, touch) {
    const text = op === "ablate" ? "ablate" : `${op} ${short(value)}`;
    const take = () => {
      Object.assign(change, { op, value });
      touch();
    };
    const made = button(text, take, { class: "chip", "aria-label": `${text}: ${why}` });
    made.sync = () => made.setAttribute("aria-pressed", String(change.op === op && (op === "ablate" || change.value === value)));
    made.sync();
    return hint(made, () => `${exact(value)}: ${why}`);
  }

  /// A field that finds latents by number or name.
  adder() {
    const options = h("ul", { role: "listbox", id: fresh("found"), class: "found", hidden: true, "aria-label": "Latents found" });
    const input = this.field = h("input", {
      type: "text", role: "combobox", "aria-expanded": "false", "aria-controls": options.id, "aria-autocomplete": "list", autocomplete: "off",
      placeholder: "number or part of a name", spellcheck: "false",
    });
    const sae = h("select", { "aria-label": "SAE to find it in" }, this.list.saes.map(one => h("option", { value: one.sae }, one.sae)));
    sae.value = sessionStorage.getItem("sae") ?? this.list.newest ?? "";
    if (sae.selectedIndex < 0) sae.selectedIndex = 0;
    const picker = new Picker(input, options, entry => this.add(entry.sae, entry.latent));
    input.addEventListener("input", debounce(200, () => picker.offer(sae.value, this.list, this.signal)));
    sae.addEventListener("change", () => input.value && picker.offer(sae.value, this.list, this.signal));
    return h("div", { class: "filters adder" }, h("label", {}, "SAE", sae), h("div", { class: "combo" }, h("label", {}, "Add a latent", input), options));
  }
}

/// A field with a list of what it finds.
class Picker {
  constructor(input, options, take) {
    Object.assign(this, { input, options, take, entries: [], active: 0 });
    input.addEventListener("keydown", event => this.key(event));
    input.addEventListener("blur", () => setTimeout(() => this.close(), 150));
  }

  async offer(name, list, left) {
    const text = this.input.value.trim();
    this.control?.abort();
    this.control = new AbortController();
    if (!text) return this.close();
    const sae = list.saes.find(one => one.sae === name);
    const entries = /^\d+$/.test(text) && sae && Number(text) < sae.d_sae ? [{ sae: name, latent: Number(text), label: "" }] : [];
    this.draw(entries);
    if (!sae?.names) return;
    const signal = AbortSignal.any([this.control.signal, left]);
    try {
      const { names } = await api.search({ q: text, sae: name, limit: FOUND }, signal);
      this.draw([...entries, ...names]);
    } catch (error) {
      if (!signal.aborted) this.draw(entries, error.message);
    }
  }

  draw(entries, trouble = "no such latent") {
    this.entries = entries;
    this.active = 0;
    const option = ({ sae, latent, label }, i) => h("li", {
      role: "option", id: `${this.options.id}-${i}`, "aria-selected": String(i === 0), pointerdown: event => {
        event.preventDefault();
        this.choose(i);
      },
    }, h("b", {}, String(latent)), " ", label, " ", h("small", { class: "quiet" }, sae));
    this.options.replaceChildren(...entries.map(option));
    if (entries.length === 0) this.options.append(h("li", { class: "quiet" }, trouble));
    this.options.hidden = false;
    this.input.setAttribute("aria-expanded", "true");
    this.mark();
  }

  mark() {
    [...this.options.children].forEach((option, i) => option.setAttribute("aria-selected", String(i === this.active)));
    if (this.entries.length) this.input.setAttribute("aria-activedescendant", `${this.options.id}-${this.active}`);
    else this.input.removeAttribute("aria-activedescendant");
  }

  key(event) {
    if (event.key === "Escape") return this.close();
    if (event.key === "Enter") {
      event.preventDefault();
      return this.choose(this.active);
    }
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step || !this.entries.length) return;
    event.preventDefault();
    this.active = (this.active + step + this.entries.length) % this.entries.length;
    this.mark();
  }

  choose(i) {
    const entry = this.entries[i];
    if (!entry) return;
    this.input.value = "";
    this.close();
    this.take(entry);
  }

  close() {
    this.control?.abort();
    this.options.hidden = true;
    this.input.setAttribute("aria-expanded", "false");
    this.input.removeAttribute("aria-activedescendant");
  }
}
