// Search across names and sentences of one SAE or all.

import * as api from "./api.js";
import { count, h, pause, say, visible } from "./dom.js";
import * as links from "./links.js";

/// Characters shown before and after what was found.
const AROUND = 140;
const LIMIT = 50;

export async function show(view, { params, list, signal }) {
  const q = params.get("q")?.trim() ?? "", only = params.get("sae") ?? "";
  const field = document.getElementById("query");
  if (document.activeElement !== field) field.value = q;
  const place = h("div", {}), state = h("p", { class: "quiet", role: "status" });
  view.append(h("h1", {}, q ? `Search: ${q}` : "Search"), scope(q, only, list), state, place);
  if (!q) {
    state.textContent = "Type into the field above: names, descriptions and sentences are searched.";
    return "Search";
  }
  const found = await api.search({ q, sae: only, limit: LIMIT }, signal);
  draw(found, state, place);
  if (found.indexing.length) goOn({ q, only, state, place, signal });
  return `Search: ${q}`;
}

function scope(q, only, list) {
  const change = event => links.open(links.to.search({ q, sae: event.target.value }));
  return h("p", {}, h("label", {}, "In ", h("select", { change }, h("option", { value: "" }, "all SAEs"),
    list.saes.map(({ sae }) => h("option", { value: sae, selected: sae === only }, sae)))));
}

/// Sentences of SAEs whose index is still being built come later.
async function goOn({ q, only, state, place, signal }) {
  try {
    for (;;) {
      await pause(1500, signal);
      const found = await api.search({ q, sae: only, limit: LIMIT }, signal);
      draw(found, state, place);
      if (!found.indexing.length) return;
    }
  } catch (error) {
    if (!signal.aborted) state.textContent = error.message;
  }
}

function draw({ names, sentences, indexing, unsearched }, state, place) {
  const many = (n, what) => `${n === LIMIT ? "the first " : ""}${count(n)} ${what}${n === 1 ? "" : "s"}`;
  const found = `${many(names.length, "name")}, ${many(sentences.length, "sentence")}`;
  state.textContent = [found,
    indexing.length && `the sentences of ${indexing.join(", ")} are still being indexed …`,
    unsearched.length && `not searched: the sentences of ${unsearched.join(", ")}; choose one of them to search it`,
  ].filter(part => part).join("; ");
  say(state.textContent);
  const section = (title, items, none) => h("section", {}, h("h2", {}, title),
    items.length ? h("ul", { class: "results" }, items) : h("p", { class: "quiet" }, none));
  place.replaceChildren(section("Names", names.map(named), "None."),
    section("Sentences", sentences.map(said), indexing.length ? "None yet." : "None."));
}

const named = ({ sae, latent, label, description, score }) => h("li", {},
  h("a", { href: links.to.latent(sae, latent) }, label), " ",
  h("span", { class: "quiet" }, `${sae}, latent ${latent}${score === null ? "" : `, score ${score.toFixed(2)}`}`),
  description && h("p", {}, description));

function said({ sae, sentence, text, at, length, latents }) {
  const from = Math.max(0, at - AROUND), end = at + length + AROUND;
  return h("li", {},
    h("p", {}, from > 0 && "… ", visible(text.slice(from, at)), h("mark", {}, visible(text.slice(at, at + length))), visible(text.slice(at + length, end)),
      end < text.length && " …"),
    h("span", { class: "quiet" }, h("a", { href: links.to.sentence(sae, sentence) }, `${sae}, sentence ${sentence}`),
      latents.length > 0 && ["; latents ", latents.map((latent, i) => [i > 0 && ", ", h("a", { href: links.to.latent(sae, latent) }, String(latent))])]));
}
