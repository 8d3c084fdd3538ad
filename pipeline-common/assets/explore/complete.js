// A text's tokens and the latents that are active at each; and how the model goes on.

import * as api from "./api.js";
import { bar, button, count, counted, debounce, exact, fill, h, notice, quoted, say, short, stepped, table, unnamed, visible } from "./dom.js";
import * as links from "./links.js";
import { strength } from "./tokens.js";
import * as write from "./write.js";

const EXAMPLE = "Once upon a time there was a little dog named Max who loved to play in the park.";
/// Rows of the list of latents.
const LISTED = 40;

/// What was read last, for when one comes back.
let last = null;

export async function show(view, { sae, list, params, signal }) {
  const known = params.getAll("sae").filter(name => list.saes.some(one => one.sae === name));
  const state = {
    text: params.get("text") ?? EXAMPLE, saes: new Set(known.length ? known : [sae]),
    top: Math.min(200, Math.max(1, Math.round(Number(params.get("top"))) || 10)), ...write.settings(params),
  };
  const page = new Complete(state, list, signal);
  view.append(h("h1", {}, "Complete"), page.form(), page.goOn(), page.result);
  if (last?.key === page.key) page.draw(last.answer);
  else if (params.has("text")) page.read();
  return "Complete";
}

class Complete {
  constructor(state, list, signal) {
    Object.assign(this, { state, list, signal });
    this.result = h("div", { class: "result" });
    this.status = h("span", { class: "quiet", role: "status" });
    this.later = debounce(300, () => this.link());
  }

  get key() {
    return JSON.stringify([this.state.text, [...this.state.saes], this.state.top]);
  }

  link() {
    const { text, saes, top } = this.state;
    links.show(links.to.complete({ text, sae: [...saes], top: top === 10 ? "" : top, ...write.unusual(this.state) }));
  }

  form() {
    const { state } = this;
    const enter = event => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.read();
    };
    this.field = h("textarea", {
      rows: 4, value: state.text, keydown: enter, "aria-describedby": "keys",
      input: event => {
        state.text = event.target.value;
        this.later();
      },
    });
    const box = ({ sae, hook }) => h("label", {}, h("input", {
      type: "checkbox", checked: state.saes.has(sae),
      change: event => {
        state.saes[event.target.checked ? "add" : "delete"](sae);
        this.later();
      },
    }), ` ${sae} `, h("span", { class: "quiet" }, hook));
    const most = h("input", {
      type: "number", min: 1, max: 200, value: state.top, required: true,
      input: event => {
        if (event.target.checkValidity()) state.top = event.target.valueAsNumber;
        this.later();
      },
    });
    return h("div", {},
      h("label", { class: "block" }, "Text", this.field),
      h("fieldset", { class: "boxes" }, h("legend", {}, "SAEs that read it"), this.list.saes.map(box)),
      h("p", { class: "actions" }, button("Show latents", () => this.read(), { class: "button" }), " ",
        h("label", {}, "Strongest of each token ", most), " ",
        h("span", { class: "quiet", id: "keys" }, "Ctrl+Enter does it, too."), " ", this.status));
  }

  async read() {
    const { state } = this;
    if (!state.text || state.saes.size === 0) {
      this.status.textContent = state.text ? "Choose at least one SAE." : "Type a text first.";
      return;
    }
    this.link();
    this.control?.abort();
    this.control = new AbortController();
    const signal = AbortSignal.any([this.control.signal, this.signal]), { key } = this;
    const body = { text: state.text, saes: [...state.saes], top: state.top };
    this.status.textContent = "Reading …";
    const wait = problem => (this.status.textContent = api.again(problem));
    try {
      const answer = await api.patiently(signal, wait, () => api.complete(body, signal));
      last = { key, answer };
      this.draw(answer);
      this.status.textContent = counted(answer.tokens.length, "token");
    } catch (error) {
      if (signal.aborted) return;
      this.status.textContent = "";
      this.result.replaceChildren(notice(error));
    }
  }

  draw({ tokens }) {
    this.tokens = tokens;
    this.shade = null;
    this.chosen = Math.max(0, tokens.findLastIndex(token => !token.special));
    this.strip = h("div", {
      class: "strip", role: "listbox", "aria-label": "Tokens; arrow keys go from one to the next", "aria-orientation": "horizontal",
      keydown: event => this.step(event), click: event => this.pick(event.target.closest(".token")),
    }, tokens.map((token, i) => this.token(token, i)));
    this.panel = h("div", { class: "card panel", "aria-live": "polite" });
    this.all = h("section", {});
    this.result.replaceChildren(h("div", { class: "reading" }, this.strip, this.panel), this.all);
    this.choose(this.chosen);
    this.listAll();
  }

  token(token, i) {
    const text = token.text || token.piece;
    const made = h("span", {
      class: token.special ? "token special" : "token", role: "option", id: `token-${i}`, tabindex: -1, "aria-selected": "false",
    }, visible(text));
    made.dataset.place = i;
    return token.text.includes("\n") ? [made, h("br")] : made;
  }

  step(event) {
    const to = stepped(event.key, this.chosen, this.tokens.length);
    if (to === null) return;
    event.preventDefault();
    this.choose(to);
    this.at(to).focus();
  }

  at = i => this.strip.querySelector(`[data-place="${i}"]`);

  pick(element) {
    if (element) this.choose(Number(element.dataset.place));
  }

  choose(i) {
    const before = this.at(this.chosen), now = this.at(i);
    before.tabIndex = -1;
    before.setAttribute("aria-selected", "false");
    now.tabIndex = 0;
    now.setAttribute("aria-selected", "true");
    this.chosen = i;
    const token = this.tokens[i];
    fill(this.panel,
      h("h2", {}, "Token ", h("code", {}, quoted(token.text || token.piece)), h("span", { class: "quiet" }, ` ${i + 1} of ${this.tokens.length}, id ${token.id}`)),
      token.special && h("p", { class: "quiet" }, "A special token; SAEs are usually not trained on these."),
      Object.entries(token.latents).map(([sae, active]) => this.ofToken(sae, active)));
  }

  ofToken(sae, active) {
    if (active.length === 0) return h("p", { class: "quiet" }, `${sae}: no active latent.`);
    const most = active[0].value;
    const rows = active.map(({ latent, value, label }) => [
      h("a", { href: links.to.latent(sae, latent) }, String(latent)), label ?? unnamed(),
      [h("span", { title: exact(value) }, short(value)), bar(value / most)],
    ]);
    return [h("h3", {}, sae), table(`Active latents of ${sae}`, [{ text: "Latent", number: true }, { text: "Name" }, { text: "Value", number: true }], rows, { class: "near" })];
  }

  /// Latents by their strongest value in the text.
  listAll() {
    const found = new Map();
    this.tokens.forEach((token, i) => Object.entries(token.latents).forEach(([sae, active]) => active.forEach(({ latent, value, label }) => {
      const key = `${latent}:${sae}`;
      const entry = found.get(key) ?? { sae, latent, label, most: 0, at: [] };
      entry.most = Math.max(entry.most, value);
      entry.at.push([i, value]);
      found.set(key, entry);
    })));
    const sorted = [...found.values()].sort((a, b) => b.most - a.most).slice(0, LISTED);
    const rows = sorted.map(entry => {
      const shade = button("Shade", () => this.shadeBy(entry, shade), { "aria-pressed": "false", "aria-label": `Shade the text by latent ${entry.latent}` });
      return [shade, h("a", { href: links.to.latent(entry.sae, entry.latent) }, String(entry.latent)), entry.label ?? unnamed(),
        entry.sae, [short(entry.most), bar(entry.most / sorted[0].most)], String(entry.at.length),
        h("a", { href: links.to.steer({ add: `${entry.latent}:${entry.sae}` }) }, "Steer")];
    });
    const heads = [{ text: "" }, { text: "Latent", number: true }, { text: "Name" }, { text: "SAE" }, { text: "Strongest", number: true }, { text: "Tokens", number: true }, { text: "" }];
    this.all.replaceChildren(h("h2", {}, "Latents in this text"),
      h("p", { class: "quiet" }, `Of ${count(found.size)} that are among the strongest of a token, the ${count(sorted.length)} with the largest value.`),
      table("Latents in this text", heads, rows, { class: "wide near" }));
  }

  shadeBy(entry, pressed) {
    this.shade = this.shade === entry ? null : entry;
    this.all.querySelectorAll("[aria-pressed]").forEach(other => other.setAttribute("aria-pressed", String(other === pressed && this.shade !== null)));
    const values = new Map(this.shade?.at);
    this.tokens.forEach((_, i) => {
      const element = this.at(i), value = values.get(i);
      element.classList.toggle("on", value !== undefined);
      element.style.setProperty("--a", value === undefined ? 0 : strength(value / entry.most).toFixed(3));
      element.title = value === undefined ? "" : exact(value);
    });
    if (this.shade) say(`Shaded by latent ${entry.latent}, ${counted(entry.at.length, "token")}`);
  }

  goOn() {
    const { state } = this;
    const side = new write.Continuation("Continuation", false);
    side.element.hidden = true;
    const keep = button("Add to the text and show its latents", () => {
      state.text += side.written;
      this.field.value = state.text;
      side.clear("");
      side.element.hidden = keep.hidden = true;
      this.field.focus();
      this.read();
    }, { hidden: true });
    const use = event => {
      if (event.event === "start") {
        side.clear(state.text);
        side.element.hidden = false;
        keep.hidden = true;
      }
      if (event.event === "token") side.add(event);
      if (event.event === "end") side.close(event);
      if (["end", "stopped"].includes(event.event)) keep.hidden = side.written === "";
    };
    const make = () => state.text ? { text: state.text, ...write.request(state), sae: [...state.saes][0] ?? null } : null;
    const { element } = write.runner({ label: "Continue the text", make, use, signal: this.signal });
    return h("section", {}, h("h2", {}, "Continue"), write.form(state, this.later), element, side.element, keep);
  }
}
