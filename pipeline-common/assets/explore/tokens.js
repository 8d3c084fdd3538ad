// Sentences whose tokens are shaded by an activation, with the exact values where one points.

import { exact, h, hint, quoted, roving, share, short, visible } from "./dom.js";
import { to } from "./links.js";

/// Tokens shown on each side of the strongest.
const AROUND = 22;

/// How strong a shade is; the square root keeps weak ones visible.
export const strength = part => Math.sqrt(Math.max(0, Math.min(1, part)));

/// A token with its value.
export function shaded(text, part, words, props = {}) {
  const token = h("span", { class: "on", tabindex: -1, vars: { "--a": strength(part).toFixed(3) }, ...props }, visible(text));
  return hint(token, words);
}

/// The pieces of a sentence's tokens between `from` and `end`, the active ones shaded.
function pieces(sentence, { at, value }, max, [from, end]) {
  const active = new Map(at.map((place, i) => [place, value[i]]));
  const strongest = Math.max(...value);
  const parts = [];
  for (let i = from; i < end; i++) {
    const token = sentence.tokens[i], v = active.get(i);
    if (v === undefined) {
      parts.push(visible(token));
      continue;
    }
    const words = () => [h("b", {}, quoted(token)), ` ${exact(v)}`,
      h("small", {}, `token ${i + 1} of ${sentence.tokens.length}, ${share(v / max, 1)} of the largest`)];
    parts.push(shaded(token, v / max, words, { "data-strongest": v === strongest }));
  }
  return parts;
}

/// Which tokens to show.
function span(sentence, activations, whole) {
  const all = sentence.tokens.length;
  if (whole || all <= 2 * AROUND + 6) return [0, all];
  const best = activations.value.indexOf(Math.max(...activations.value));
  const middle = best < 0 ? 0 : activations.at[best];
  const from = Math.max(0, Math.min(middle - AROUND, all - 2 * AROUND));
  return [from, Math.min(all, from + 2 * AROUND)];
}

const NONE = { at: [], value: [] };

/// A sentence's text.
export function text(sentence, activations, { max, whole }) {
  const shown = activations ?? NONE;
  const [from, end] = span(sentence, shown, whole);
  const line = h("span", { class: "sentence" },
    from > 0 && h("span", { class: "quiet", title: `${from} tokens before` }, "… "),
    pieces(sentence, shown, max, [from, end]),
    end < sentence.tokens.length && h("span", { class: "quiet", title: `${sentence.tokens.length - end} tokens after` }, " …"));
  roving(line, ".on");
  return line;
}

/// A list of sentences; `{sentence, value, note}` of each.
export function list(detail, items, whole) {
  const { record, sentences, sae, latent } = detail;
  if (items.length === 0) return h("p", { class: "quiet" }, "None.");
  return h("ol", { class: "sentences" }, items.map(({ sentence, value, note }) => {
    const found = sentences[sentence];
    if (!found) return null;
    return h("li", {},
      h("a", { class: "number", href: to.sentence(sae, sentence, latent), title: `Sentence ${sentence} of document ${found.document}` },
        value === undefined ? `${sentence}` : short(value)),
      h("div", {}, note, text(found, record.activations[sentence], { max: record.max, whole })));
  }));
}
