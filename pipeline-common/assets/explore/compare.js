// A latent and those of another SAE whose decoder rows are nearest, side by side.

import * as api from "./api.js";
import { bar, facts, h, notice, quoted, share, short, table, unnamed } from "./dom.js";
import * as links from "./links.js";
import { activations } from "./plots.js";
import * as tokens from "./tokens.js";

const SENTENCES = 6, NEAREST = 12;

export async function show(view, { sae: chosen, list, params, signal }) {
  const left = params.get("left") ?? chosen;
  const of = name => list.saes.find(one => one.sae === name);
  const fits = list.saes.filter(one => one.d_in === of(left)?.d_in);
  const right = params.get("right") ?? fits.find(one => one.sae !== left)?.sae ?? left;
  const latent = params.get("latent") ?? "0";
  const place = h("div", {});
  view.append(h("h1", {}, "Compare"), form({ left, right, latent, list }), h("p", { class: "quiet" },
    "The latents of the right SAE whose decoder rows point most nearly where that of the left latent does, by cosine."), place);
  try {
    const found = await api.compare({ left, right, latent, k: NEAREST }, signal);
    await nearest(place, found, { of, pick: Number(params.get("pick") ?? NaN), signal });
  } catch (error) {
    if (signal.aborted || !(error instanceof api.Problem) || !error.status) throw error;
    place.append(notice(error));
  }
  return `Compare ${left} ${latent} with ${right}`;
}

function form({ left, right, latent, list }) {
  const options = value => list.saes.map(({ sae, d_in }) => h("option", { value: sae, selected: sae === value }, `${sae} (${d_in} wide)`));
  const submit = event => {
    event.preventDefault();
    const [l, n, r] = event.target.elements;
    links.open(links.to.compare({ left: l.value, latent: n.value.trim(), right: r.value }));
  };
  const change = event => event.target.form.requestSubmit();
  return h("form", { class: "filters", submit },
    h("label", {}, "Left SAE", h("select", { change }, options(left))),
    h("label", {}, "Its latent", h("input", { value: latent, inputmode: "numeric", pattern: "[0-9]+", required: true, size: 8 })),
    h("label", {}, "Right SAE", h("select", { change }, options(right))),
    h("button", { type: "submit" }, "Compare"));
}

async function nearest(place, found, { of, pick, signal }) {
  const { left, right, latent, nearest: all } = found;
  const other = h("div", {}), one = h("div", {});
  let turn = null;
  const choose = n => {
    inputs.forEach((input, i) => (input.checked = all[i].latent === n));
    links.show(links.to.compare({ left, right, latent, pick: n }));
    turn?.abort();
    turn = new AbortController();
    return side(other, of(right), n, AbortSignal.any([signal, turn.signal]));
  };
  const inputs = all.map(row => h("input", { type: "radio", name: "pick", "aria-label": `Show latent ${row.latent}`, change: () => choose(row.latent) }));
  const heads = [{ text: "" }, { text: "Latent", number: true }, { text: "Cosine", number: true }, { text: "Name" }, { text: "Strongest token" },
    { text: "Density", number: true }, { text: "Nearest to it on the left" }];
  const cells = (row, i) => [
    inputs[i], h("a", { href: links.to.latent(right, row.latent) }, String(row.latent)), [row.cosine.toFixed(3), bar(row.cosine)],
    row.label ?? unnamed(), row.token ? h("code", {}, quoted(row.token)) : "–", share(row.density, 4),
    row.mutual ? h("b", {}, "this latent") : [h("a", { href: links.to.latent(left, row.back.latent) }, String(row.back.latent)),
      ` (${row.back.cosine.toFixed(3)}) `, row.back.label],
  ];
  place.append(table("Nearest latents", heads, all.map(cells), { class: "wide near" }), h("div", { class: "split" }, one, other));
  const first = all.some(row => row.latent === pick) ? pick : all[0]?.latent;
  await Promise.all([side(one, of(left), latent, signal), first !== undefined && choose(first)]);
}

/// What is known of a latent, in short.
async function side(place, sae, latent, signal) {
  const title = h("h2", {}, h("a", { href: links.to.latent(sae.sae, latent) }, `Latent ${latent}`), ` of ${sae.sae}`);
  if (!sae.top_sentences) {
    place.replaceChildren(title, notice({ message: `${sae.sae} has no top sentences.`, hint: `SAE_RUN_ID=${sae.sae} 03_top_sentences writes them.` }));
    return;
  }
  try {
    const detail = await api.latent(sae.sae, latent, signal);
    const { record, name } = detail;
    if (signal.aborted) return;
    place.replaceChildren(title, h("p", {}, name?.label ?? unnamed()),
      facts([["density", share(record.density, 4)], ["largest", short(record.max)]]),
      record.fired > 0 ? activations(record.histogram) : h("span", { class: "tag" }, "dead"),
      tokens.list(detail, record.top.max.slice(0, SENTENCES), false));
  } catch (error) {
    if (!signal.aborted) place.replaceChildren(title, notice(error));
  }
}
