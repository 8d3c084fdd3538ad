// Steering: changes of latents, and continuations without and with them side by side.

import * as api from "./api.js";
import { button, debounce, exact, fill, h, notice, quoted, say } from "./dom.js";
import { Changes } from "./changes.js";
import { copyLink } from "./latent.js";
import * as links from "./links.js";
import { columns } from "./plots.js";
import * as write from "./write.js";

const EXAMPLE = "Once upon a time";
const KIND = "05_explore experiment";

/// The experiment that one comes back to.
let last = null;

function wanted(params) {
  const add = /^(\d+):(.+)$/s.exec(params.get("add") ?? "");
  const plain = params.size === 0 || add;
  const state = plain && last ? last : {
    text: params.get("text") ?? EXAMPLE, ...write.settings(params),
    changes: params.getAll("do").map(links.parsed).filter(change => change), result: null,
  };
  return [state, add && { latent: Number(add[1]), sae: add[2] }];
}

export async function show(view, { list, params, signal }) {
  const [state, add] = wanted(params);
  last = state;
  const page = new Steer(state, list, signal);
  view.append(h("h1", {}, "Steer"), page.form(), page.changes.element, page.runs(), page.result);
  page.link();
  if (add) page.changes.add(add.sae, add.latent);
  if (state.result) page.restore();
  return "Steer";
}

class Steer {
  constructor(state, list, signal) {
    Object.assign(this, { state, list, signal });
    this.changed = debounce(250, () => this.link());
    this.changes = new Changes(state.changes, list, { changed: this.changed, signal });
    this.base = new write.Continuation("Baseline", false);
    this.steered = new write.Continuation("Steered", true);
    this.sides = h("div", { class: "split" }, this.base.element, this.steered.element);
    this.divergence = h("section", {});
    this.result = h("div", { hidden: true }, this.sides, this.divergence);
  }

  link() {
    if (this.signal.aborted) return;
    const { state } = this;
    links.show(links.to.steer({ text: state.text, do: state.changes.map(links.written), ...write.unusual(state) }));
  }

  form() {
    const { state } = this;
    const enter = event => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.run();
    };
    const input = event => {
      state.text = event.target.value;
      this.changed();
    };
    return h("div", {},
      h("label", { class: "block" }, "Text to continue", h("textarea", { rows: 3, value: state.text, input, keydown: enter })),
      write.form(state, this.changed));
  }

  request() {
    const { state } = this;
    const interventions = state.changes.map(({ sae, latent, op, value }) => ({ sae, latent, op, value }));
    const own = this.list.saes.length ? sessionStorage.getItem("sae") : null;
    return { text: state.text, ...write.request(state), interventions, baseline: true, sae: interventions.length ? null : own };
  }

  runs() {
    const make = () => {
      if (!this.state.text) return null;
      this.link();
      this.started = null;
      this.pending = this.request();
      return this.pending;
    };
    const runner = write.runner({ label: "Generate both", make, use: event => this.use(event), signal: this.signal });
    this.run = runner.run;
    const file = h("input", { type: "file", accept: "application/json,.json", class: "unseen", tabindex: -1, "aria-hidden": "true", change: event => this.load(event) });
    this.trouble = h("div", {});
    runner.element.append(h("span", { class: "apart" }, copyLink(), " ", button("Save as JSON", () => this.save()), " ",
      button("Load JSON", () => file.click()), file));
    return h("div", {}, runner.element, this.trouble);
  }

  use(event) {
    const side = event.side === "steered" ? this.steered : this.base;
    if (event.event === "start") this.begin(event);
    if (event.event === "token") side.add(event);
    if (event.event === "token" && side === this.steered) this.later();
    if (event.event === "end") side.close(event);
    if (event.event === "done" || event.event === "stopped") this.finish(event);
  }

  begin(event) {
    this.started = event;
    this.asked = this.pending;
    this.base.clear(this.asked.text);
    this.steered.clear(this.asked.text);
    this.base.element.hidden = !event.sides.includes("baseline");
    this.steered.element.hidden = !event.sides.includes("steered");
    this.divergence.replaceChildren();
    this.result.hidden = false;
    this.later = debounce(120, () => this.plot());
  }

  finish(event) {
    if (!this.started) return;
    this.plot();
    const side = ({ tokens, ended }) => tokens.length ? { tokens, end: ended && { reason: ended.reason, text: ended.text, mean_kl: ended.mean_kl } } : null;
    this.state.result = {
      model: this.started.model, request: this.asked, complete: event.event === "done", seconds: event.seconds ?? null,
      baseline: side(this.base), steered: side(this.steered),
    };
  }

  /// Draws a result that was there before.
  restore() {
    const { result } = this.state;
    this.pending = result.request;
    const sides = ["baseline", "steered"].filter(name => result[name]);
    this.begin({ sides, model: result.model });
    for (const name of sides) {
      const side = name === "steered" ? this.steered : this.base;
      result[name].tokens.forEach(token => side.add(token));
      if (result[name].end) side.close({ ...result[name].end, tokens: side.tokens.length });
    }
    this.plot();
  }

  plot() {
    const { tokens } = this.steered;
    if (tokens.length === 0) return;
    const titles = tokens.map((token, i) => `${i + 1}. ${quoted(token.text)}: ${exact(token.kl)} nats`);
    const same = tokens.findIndex((token, i) => token.text !== this.base.tokens[i]?.text);
    const words = same < 0 ? "Both texts are the same so far." : same === 0 ? "The texts differ from the first token on." : `The texts are the same for the first ${same} tokens.`;
    fill(this.divergence,
      h("h2", {}, "Divergence of each token"),
      h("p", { class: "quiet" }, "Kullback-Leibler divergence of the steered from the unsteered model's distribution, both after the steered text. ",
        !this.base.element.hidden && words),
      h("div", { class: "plot" }, columns("Divergence of each token", "token", tokens.map(token => token.kl ?? 0), titles)));
  }

  save() {
    const { state } = this;
    const experiment = {
      kind: KIND, schema: 1, saved: new Date().toISOString(), link: location.hash,
      request: this.request(),
      names: Object.fromEntries(state.changes.filter(change => change.label).map(change => [`${change.latent}:${change.sae}`, change.label])),
      result: state.result,
    };
    const url = URL.createObjectURL(new Blob([JSON.stringify(experiment, null, 1)], { type: "application/json" }));
    h("a", { href: url, download: `steer-${state.seed}.json` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
    say("Saved.");
  }

  async load(event) {
    const [file] = event.target.files;
    event.target.value = "";
    if (!file) return;
    this.trouble.replaceChildren();
    try {
      last = opened(JSON.parse(await file.text()));
      links.show(links.to.steer());
      dispatchEvent(new HashChangeEvent("hashchange"));
    } catch (error) {
      this.trouble.replaceChildren(notice(new api.Problem(0, `${file.name} is no experiment that was saved here.`, error.message)));
    }
  }
}

const isObject = value => typeof value === "object" && value !== null;
const isNumber = value => value === null || typeof value === "number";
const isToken = token => isObject(token) && typeof token.text === "string" && isNumber(token.kl) && isNumber(token.logprob);
const isEnd = end => end === null || isObject(end) && typeof end.text === "string" && isNumber(end.mean_kl);
const isSide = side => side === null || isObject(side) && Array.isArray(side.tokens) && side.tokens.every(isToken) && isEnd(side.end);
const isResult = result => result === null
  || isObject(result) && typeof result.request?.text === "string" && isSide(result.baseline) && isSide(result.steered);

/// A saved experiment as the state of this view. Nothing of a damaged one is taken over.
function opened(experiment) {
  const must = (is, what) => {
    if (!is) throw new Error(what);
  };
  must(isObject(experiment), "It holds no object.");
  const { kind, schema, link, names, result } = experiment;
  must(kind === KIND, `Its kind is ${JSON.stringify(kind)}, not ${JSON.stringify(KIND)}.`);
  must(schema === 1, `Its schema is ${JSON.stringify(schema)}, not 1.`);
  const address = typeof link === "string" ? links.read(link) : null;
  must(address?.parts[0] === "steer", "Its link is none of this view.");
  must(isResult(result), "Its result is damaged.");
  const { params } = address;
  const changes = params.getAll("do").map(links.parsed);
  must(changes.every(change => change), "A change in its link is damaged.");
  for (const change of changes) {
    const label = names?.[`${change.latent}:${change.sae}`];
    if (typeof label === "string") change.label = label;
  }
  return { text: params.get("text") ?? "", ...write.settings(params), changes, result };
}
