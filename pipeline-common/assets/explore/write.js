// Continuations: how tokens are drawn, the stream of events, and the text as it grows.

import * as api from "./api.js";
import { button, counted, exact, fresh, h, hint, quoted, roving, say, short } from "./dom.js";

/// Settings by their names in an address.
const SETTINGS = [
  { key: "n", label: "Tokens", value: 64, min: 1, max: 1024, step: 1 },
  { key: "t", label: "Temperature", value: 0.8, min: 0, max: 10, step: "any", title: "0 takes the likeliest token" },
  { key: "p", label: "Top-p", value: 0.95, min: 0, max: 1, step: "any", title: "Likeliest tokens that together have this probability" },
  { key: "seed", label: "Seed", value: 0, min: 0, max: Number.MAX_SAFE_INTEGER, step: 1, title: "Decides every draw" },
];

/// Settings from an address.
export function settings(params) {
  const values = { stop: params.get("stop") ?? "" };
  for (const { key, value, min, max } of SETTINGS) {
    const given = params.get(key);
    const number = Number(given);
    values[key] = given !== null && given !== "" && number >= min && number <= max ? number : value;
  }
  return values;
}

/// Only those that differ from what is usual.
export function unusual(values) {
  const pairs = SETTINGS.filter(({ key, value }) => values[key] !== value).map(({ key }) => [key, values[key]]);
  return { ...Object.fromEntries(pairs), stop: values.stop };
}

/// As the API takes them. A line of `stop` is a string; `\n` in it is a line break.
export const request = values => ({
  max_tokens: values.n, temperature: values.t, top_p: values.p, seed: values.seed,
  stop: values.stop.split("\n").filter(line => line).map(line => line.replace(/\\(n|t|\\)/g, (_, c) => ({ n: "\n", t: "\t" })[c] ?? c)),
});

export function form(values, changed) {
  const fields = SETTINGS.map(({ key, label, title, value, ...limits }) => h("label", { title }, label, h("input", {
    type: "number", value: values[key], required: true, name: key, ...limits,
    input: event => {
      if (!event.target.checkValidity()) return;
      values[key] = event.target.valueAsNumber;
      changed();
    },
  })));
  const stop = h("label", { title: "One string a line; \\n stands for a line break" }, "Stop at", h("textarea", {
    rows: 1, value: values.stop, name: "stop", placeholder: "one a line", spellcheck: "false",
    input: event => {
      values.stop = event.target.value;
      changed();
    },
  }));
  const another = button("New seed", event => {
    const input = event.target.closest(".drawing").querySelector("[name=seed]");
    values.seed = input.value = crypto.getRandomValues(new Uint16Array(1))[0];
    changed();
  });
  return h("div", { class: "drawing filters" }, fields, another, stop);
}

const WHY = { length: "as many as asked for", stop: "ended by a stop string", end_of_text: "the model ended the text", context: "the model's context is full", time: "ended by the time limit" };

/// Buttons that start and cancel, and how far it is. `make` gives the request, or null where it is not
/// complete; `use` takes each event.
export function runner({ label, make, use, signal: left }) {
  const state = h("span", { class: "quiet", role: "status" });
  const start = button(label, run, { class: "button" });
  const cancel = button("Cancel", () => control?.abort(), { disabled: true });
  let control = null;
  async function run() {
    const body = control ? null : make();
    if (!body) return;
    control = new AbortController();
    const signal = AbortSignal.any([control.signal, left]);
    busy(true);
    try {
      await stream(body, signal);
    } catch (error) {
      if (!left.aborted) stopped(error);
    } finally {
      control = null;
      busy(false);
    }
  }
  function busy(is) {
    // What is disabled loses the focus.
    if (!is && document.activeElement === cancel) start.focus();
    start.setAttribute("aria-disabled", String(is));
    cancel.disabled = !is;
  }
  function stopped(error) {
    const cancelled = error.name === "AbortError";
    state.classList.toggle("bad", !cancelled);
    state.textContent = cancelled ? "Cancelled." : [error.message, error.hint].filter(part => part).join(" ");
    use({ event: "stopped", cancelled });
  }
  async function stream(body, signal) {
    state.classList.remove("bad");
    state.textContent = "Waiting for the model …";
    let tokens = 0, begun = performance.now(), whole = false;
    const take = event => {
      if (event.event === "error") throw new api.Problem(0, event.error, event.hint);
      if (event.event === "start") begun = performance.now();
      if (event.event === "token") tokens++;
      const seconds = (performance.now() - begun) / 1000;
      if (event.event === "token" && seconds > 0.3) state.textContent = `${counted(tokens, "token")}, ${short(tokens / seconds)} a second`;
      if (event.event === "done") {
        whole = true;
        state.textContent = `${counted(tokens, "token")} in ${short(event.seconds)} s`;
        say("Done.");
      }
      use(event);
    };
    const refused = problem => (state.textContent = api.again(problem));
    await api.patiently(signal, refused, () => api.generate(body, signal, take));
    if (!whole) throw new api.Problem(0, "The connection ended before the text did.", "Is 05_explore still running?");
  }
  return { element: h("p", { class: "actions" }, start, " ", cancel, " ", state), run };
}

/// A continuation while it grows. Shades follow the divergence, the largest so far being the darkest.
export class Continuation {
  constructor(title, steered) {
    this.steered = steered;
    this.text = h("div", { class: "text", tabindex: 0, role: "group" });
    this.end = h("p", { class: "quiet" });
    const id = fresh("side");
    this.text.setAttribute("aria-labelledby", id);
    this.element = h("section", { class: "card continuation" }, h("h3", { id }, title), this.text, this.end);
    roving(this.text, ".token");
    this.clear("");
  }

  clear(prompt) {
    this.tokens = [];
    this.most = 0.1;
    this.ended = null;
    this.end.textContent = "";
    this.text.style.setProperty("--most", Math.sqrt(this.most));
    this.text.replaceChildren(h("span", { class: "prompt" }, prompt));
  }

  add(event) {
    const { text, kl, logprob } = event;
    this.tokens.push({ text, kl, logprob });
    const shade = this.steered && kl !== null;
    const token = h("span", { class: shade ? "token kl" : "token", tabindex: this.tokens.length === 1 ? 0 : -1 }, text);
    if (shade) {
      token.style.setProperty("--v", Math.sqrt(Math.max(0, kl)).toFixed(4));
      if (kl > this.most) this.text.style.setProperty("--most", Math.sqrt(this.most = kl));
    }
    const place = this.tokens.length;
    this.text.append(hint(token, () => [h("b", {}, quoted(text)), shade && h("div", {}, `KL ${exact(kl)} nats`),
      h("div", {}, `log probability ${exact(logprob)}`), h("small", {}, `token ${place}`)]));
  }

  close(event) {
    this.ended = event;
    this.settle(event.text);
    const parts = [`${counted(event.tokens, "token")}; ${WHY[event.reason] ?? event.reason}`];
    if (event.mean_kl !== null) parts.push(`mean KL ${exact(event.mean_kl)} nats`);
    this.end.textContent = parts.join("; ");
  }

  /// Makes what is shown the whole text: tokens go on behind a stop string, which is cut off, and a
  /// character that stays incomplete is in none of them.
  settle(text) {
    const all = [...this.text.querySelectorAll(".token")];
    let rest = text;
    for (const token of all) {
      const length = token === all.at(-1) ? Infinity : token.textContent.length;
      const own = rest.slice(0, length), cut = own === "" && token.textContent !== "";
      rest = rest.slice(length);
      if (cut) token.remove();
      else if (own !== token.textContent) token.textContent = own;
    }
  }

  /// What is written so far.
  get written() {
    return this.ended?.text ?? this.tokens.map(token => token.text).join("");
  }
}
