// A latent's page, and a sentence's.

import * as api from "./api.js";
import { bar, button, count, counted, exact, facts, h, hint, notice, pause, quoted, roving, say, share, short, table, tabs, unnamed, visible } from "./dom.js";
import * as links from "./links.js";
import { activations } from "./plots.js";
import * as tokens from "./tokens.js";

/// Whether sentences are shown whole; it stays as one goes from latent to latent.
let whole = false;

export async function show(view, { sae, number, list, signal }) {
  if (!Number.isSafeInteger(number)) throw new api.Problem(404, "A latent has a number, from 0.");
  const detail = await api.latent(sae, number, signal);
  const { record, name } = detail;
  const parts = [
    heading(detail, list.saes.find(one => one.sae === sae)?.d_sae ?? Infinity),
    name && naming(name),
    h("div", { class: "split" },
      h("section", {}, h("h2", {}, "Activations"), numbers(record), record.fired > 0 && activations(record.histogram)),
      h("section", {}, h("h2", {}, "Logit lens"), lens(record))),
    h("div", { class: "split" },
      h("section", {}, h("h2", {}, "Decoder neighbours"), near(detail, record.neighbours, "Cosine of decoder rows")),
      h("section", {}, h("h2", {}, "Active in the same rows"), near(detail, record.coactive, "Cosine of the sets of rows, estimated"))),
    h("section", {}, h("h2", {}, "Sentences"), sentences(detail)),
  ];
  view.append(...parts.filter(part => part));
  return `Latent ${number}${name ? `: ${name.label}` : ""}`;
}

function heading({ sae, latent, name, record }, d_sae) {
  const { to } = links;
  const beside = (there, text, rel) => there < 0 || there >= d_sae ? h("a", { role: "link", "aria-disabled": "true" }, text)
    : h("a", { href: to.latent(sae, there), rel }, text);
  return h("div", { class: "heading" },
    h("h1", {}, `Latent ${latent}`, name && [" ", h("span", { class: "name" }, name.label)],
      record.fired === 0 && [" ", h("span", { class: "tag" }, "dead")]),
    h("p", { class: "actions" },
      h("a", { href: to.latents(sae) }, sae),
      beside(latent - 1, "Previous", "prev"),
      beside(latent + 1, "Next", "next"),
      h("a", { href: to.compare({ left: sae, latent }) }, "Compare"),
      copyLink(),
      h("a", { href: to.steer({ add: `${latent}:${sae}` }), class: "button" }, "Steer with it")));
}

export function copyLink() {
  const text = "Copy link";
  const copy = async ({ target }) => {
    try {
      await navigator.clipboard.writeText(location.href);
      target.textContent = "Copied";
      say("The link is copied.");
      setTimeout(() => (target.textContent = text), 1500);
    } catch {
      const field = h("input", { class: "link", readonly: true, value: location.href, "aria-label": "Link", focus: event => event.target.select() });
      target.replaceWith(field);
      field.focus();
    }
  };
  return button(text, copy);
}

function scored(title, score) {
  if (!score) return [title, null];
  const { value, interval, judgements } = score;
  return [title, [value.toFixed(3), interval && ` (${interval.map(x => x.toFixed(3)).join(" to ")})`,
    h("span", { class: "quiet" }, ` ${counted(judgements, "judgement")}`)]];
}

function naming(name) {
  const entries = ["detection", "fuzzing", "intruder"].map(key => scored(key, name.scores[key]));
  return h("div", { class: "card" },
    name.description && h("p", {}, name.description),
    facts([["named by", name.model], ["certainty", String(name.certainty)], ...entries]));
}

const numbers = record => facts([
  ["density", [share(record.density, 4), bar(record.density > 0 ? 1 + Math.log10(record.density) / 6 : 0)]],
  ["active rows", count(record.fired)],
  ["largest", exact(record.max)],
  ["mean where active", record.density > 0 ? short(record.weighted / record.density) : null],
  ["mean of all rows", short(record.weighted)],
]);

function lens({ logits }) {
  if (!logits) return h("p", { class: "quiet" }, "Not computed: 03_top_sentences had no unembedding of the model.");
  const most = Math.max(...[...logits.promoted, ...logits.suppressed].map(token => Math.abs(token.logit)), 1e-9);
  const side = (title, list) => table(title, [{ text: title }, { text: "logit", number: true }],
    list.map(({ token, logit, id }) => [h("code", { title: `token ${id}` }, quoted(token)), [short(logit), bar(Math.abs(logit) / most)]]));
  return h("div", { class: "pair" }, side("Promoted", logits.promoted), side("Suppressed", logits.suppressed));
}

function near({ sae, labels }, list, title) {
  if (list.length === 0) return h("p", { class: "quiet" }, "None.");
  const rows = list.map(({ latent, cosine }) => [
    h("a", { href: links.to.latent(sae, latent) }, String(latent)), labels[latent] ?? unnamed(), [cosine.toFixed(3), bar(cosine)],
  ]);
  return table(title, [{ text: "Latent", number: true }, { text: "Name" }, { text: "Cosine", number: true, title }], rows, { class: "near" });
}

const TENTHS = ["strongest tenth", "9th tenth", "8th tenth", "7th tenth", "6th tenth", "5th tenth", "4th tenth", "3rd tenth", "2nd tenth", "weakest tenth"];

/// The kinds of sentences, and what shows each.
function kinds(detail) {
  const { record, labels, sae } = detail;
  const shown = items => () => tokens.list(detail, items, whole);
  const deciles = () => h("div", {}, [...record.deciles].reverse().map((items, i) =>
    h("section", {}, h("h3", {}, TENTHS[i]), tokens.list(detail, items, whole))));
  const few = () => h("p", { class: "quiet" }, "It is active in fewer than ten sentences.");
  const contrast = ({ latent, sentence }) => ({
    sentence,
    note: h("p", { class: "quiet" }, "active here: ", h("a", { href: links.to.latent(sae, latent) }, `latent ${latent}`), " ", labels[latent]),
  });
  return [
    ["Strongest token", shown(record.top.max)],
    ["Strongest mean", shown(record.top.mean)],
    ["Strongest last token", shown(record.top.last)],
    ["By tenths", record.deciles.length ? deciles : few],
    ["By importance", shown(record.importance)],
    ["Neighbours’", shown(record.contrast.map(contrast))],
    ["Silent", shown(record.silent.map(sentence => ({ sentence })))],
  ];
}

function sentences(detail) {
  const place = h("div", {});
  let chosen = 0;
  const entries = kinds(detail).map(([title, make], i) => [title, () => {
    chosen = i;
    return make();
  }]);
  const draw = () => place.replaceChildren(...tabs("Which sentences", entries, chosen));
  const change = event => {
    whole = event.target.checked;
    draw();
  };
  draw();
  return [
    h("p", { class: "quiet" }, "Shaded by the activation; point at a token, or go through them with the arrow keys, for the exact value. ",
      h("label", {}, h("input", { type: "checkbox", checked: whole, change }), " whole sentences")),
    place,
  ];
}

/// A sentence with all latents that are known to be active in it.
export async function showSentence(view, { sae, number, params, signal }) {
  if (!Number.isSafeInteger(number)) throw new api.Problem(404, "A sentence has a number, from 0.");
  const found = await api.sentence(sae, number, signal);
  const { sentence } = found;
  const place = h("div", {});
  view.append(
    h("div", { class: "heading" },
      h("h1", {}, `Sentence ${number}`),
      h("p", { class: "actions" }, h("a", { href: links.to.latents(sae) }, sae),
        h("a", { href: links.to.complete({ text: sentence.tokens.join(""), sae }) }, "Open in Complete"), copyLink())),
    facts([["document", count(sentence.document)], ["tokens", count(sentence.tokens.length)]]),
    place);
  const wanted = params.get("latent");
  const chosen = wanted === null ? null : Number(wanted);
  if (found.latents) place.append(...ofSentence(sae, found, chosen));
  else later(place, found, { sae, number, chosen, signal });
  return `Sentence ${number}`;
}

/// Shows the text alone until its latents are indexed.
async function later(place, found, { sae, number, chosen, signal }) {
  try {
    while (!found.latents) {
      const { state, done, total } = found.index;
      if (state === "failed") throw new api.Problem(0, "Its sentences cannot be indexed.", "The server's log says why.");
      place.replaceChildren(h("p", {}, tokens.text(found.sentence, null, { whole: true, max: 1 })),
        h("p", { class: "quiet" }, `Which latents are active here is being indexed: ${count(done)} of ${count(total)}.`));
      await pause(1500, signal);
      found = await api.sentence(sae, number, signal);
    }
    place.replaceChildren(...ofSentence(sae, found, chosen));
  } catch (error) {
    if (!signal.aborted) place.append(notice(error));
  }
}

const strongest = latent => Math.max(...latent.activations.value, 0);

/// Which latents are active at each token, strongest first.
function places({ sentence, latents }) {
  const found = sentence.tokens.map(() => []);
  latents.forEach(({ latent, label, activations: { at, value } }) => at.forEach((place, i) => found[place]?.push({ latent, label, value: value[i] })));
  found.forEach(active => active.sort((a, b) => b.value - a.value));
  return found;
}

function ofSentence(sae, found, wanted) {
  const { sentence, latents } = found;
  const most = Math.max(...latents.map(strongest), 1e-9), byToken = places(found);
  const line = h("p", { class: "sentence large" });
  let chosen = latents.find(latent => latent.latent === wanted) ?? null;
  const words = i => () => [h("b", {}, quoted(sentence.tokens[i])),
    byToken[i].slice(0, 8).map(({ latent, label, value }) => h("div", {}, `${exact(value)}  ${latent} ${label ?? ""}`)),
    byToken[i].length === 0 && " no known latent"];
  function token(text, i) {
    const value = chosen ? byToken[i].find(active => active.latent === chosen.latent)?.value : byToken[i][0]?.value;
    if (value === undefined) return hint(h("span", {}, visible(text)), words(i));
    return tokens.shaded(text, value / (chosen ? strongest(chosen) : most), words(i));
  }
  function draw() {
    line.replaceChildren(...sentence.tokens.map(token));
    const first = line.querySelector(".on");
    if (first) first.tabIndex = 0;
    buttons.forEach((made, i) => made.setAttribute("aria-pressed", String(latents[i] === chosen)));
  }
  const buttons = latents.map(latent => button("Shade", () => {
    chosen = chosen === latent ? null : latent;
    draw();
  }, { "aria-label": `Shade by latent ${latent.latent}` }));
  const rows = latents.map((latent, i) => [
    buttons[i], h("a", { href: links.to.latent(sae, latent.latent) }, String(latent.latent)), latent.label ?? unnamed(),
    [short(strongest(latent)), bar(strongest(latent) / most)], String(latent.activations.at.length),
  ]);
  roving(line, ".on");
  draw();
  const heads = [{ text: "" }, { text: "Latent", number: true }, { text: "Name" }, { text: "Strongest", number: true }, { text: "Tokens", number: true }];
  return [line, h("h2", {}, "Latents that name it"),
    latents.length ? table("Latents", heads, rows, { class: "near" }) : h("p", { class: "quiet" }, "None is active in it.")];
}
