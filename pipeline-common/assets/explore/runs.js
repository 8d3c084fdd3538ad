// Runs of the store and where they come from; an SAE's curves and metadata.

import * as api from "./api.js";
import { bytes, count, counted, facts, h, notice, share, short, table } from "./dom.js";
import { to } from "./links.js";
import { curve, densities } from "./plots.js";

const yes = (is, text, other = "–") => is ? text : h("span", { class: "quiet" }, other);

export async function show(view, { signal }) {
  const { captures, trainings, problems } = await api.runs(signal);
  const known = new Set(captures.map(capture => capture.run_id));
  const orphans = trainings.filter(training => !known.has(training.capture));
  view.append(
    h("h1", {}, "Runs"),
    ...problems.map(({ run_id, error, hint }) => notice({ message: `${run_id}: ${error}`, hint })),
    ...captures.map(capture => ofCapture(capture, trainings.filter(training => training.capture === capture.run_id))));
  if (captures.length + trainings.length === 0) {
    view.append(notice({
      message: "This store has no run yet.",
      hint: "01_save_activations makes a capture, 02_train_sae a training on it; STORE_DIR says where this server looks.",
    }));
  }
  if (orphans.length) view.append(h("section", { class: "card" }, h("h2", {}, "Trainings whose capture is not in this store"), trained(orphans)));
  return "Runs";
}

function ofCapture({ run_id, complete, meta }, trainings) {
  const { model, hooks, dataset, totals } = meta;
  return h("section", { class: "card" },
    h("h2", {}, "Capture ", h("code", {}, run_id), !complete && [" ", h("span", { class: "tag" }, "not complete")]),
    facts([
      ["model", model && `${model.id}, revision ${model.revision}`],
      ["dataset", dataset && `${dataset.source}, ${counted(dataset.documents, "document")}`],
      ["hooks", hooks?.map(hook => `${hook.name}${hook.alias ? ` (${hook.alias})` : ""}, ${hook.d_in} wide`).join("; ")],
      ["rows", totals && `${count(totals.rows)} from ${counted(totals.sentences, "sentence")}, in ${counted(totals.shards, "shard")}`],
    ]),
    details("Configuration", meta.config),
    trainings.length > 0 ? trained(trainings)
      : h("p", { class: "quiet" }, "No training on it yet: ", h("code", {}, `RUN_ID=${run_id} 02_train_sae`), " makes one."));
}

function trained(trainings) {
  const heads = [{ text: "SAE" }, { text: "Hook" }, { text: "Latents", number: true },
    { text: "FVU", number: true, title: "Fraction of variance unexplained, held-out rows" },
    { text: "L0", number: true, title: "Mean active latents of a row" }, { text: "Steps", number: true },
    { text: "Sentences" }, { text: "Names", number: true }, { text: "" }];
  const rows = trainings.map(({ run_id, complete, meta, top_sentences, names }) => [
    complete ? h("a", { href: to.sae(run_id) }, run_id) : [run_id, " ", h("span", { class: "tag" }, "not complete")],
    meta?.hook ?? "–", meta ? count(meta.d_sae) : "–", short(meta?.validation?.fvu), short(meta?.validation?.l0),
    meta ? count(meta.steps) : "–", yes(top_sentences, "found", "not yet"), yes(names > 0, count(names)),
    complete && h("a", { href: to.latents(run_id) }, "Latents"),
  ]);
  return table("Trainings", heads, rows, { class: "wide" });
}

/// Every value of a configuration and where it came from.
function details(title, config) {
  const given = entry => entry && typeof entry === "object" && entry.value !== null && entry.value !== undefined;
  const entries = Object.entries(config ?? {}).filter(([, entry]) => given(entry));
  if (entries.length === 0) return null;
  const rows = entries.map(([key, { value, origin }]) =>
    [h("code", {}, key), typeof value === "object" ? JSON.stringify(value) : String(value), origin ?? ""]);
  return h("details", {}, h("summary", {}, title), table(title, [{ text: "Setting" }, { text: "Value" }, { text: "From" }], rows));
}

const CURVES = [
  ["loss", "Loss"], ["mse", "Mean squared error"], ["fvu", "Variance unexplained"], ["l0", "L0, active latents a row"],
  ["aux", "Auxiliary loss"], ["dead_fraction", "Dead fraction"], ["lr", "Learning rate"],
];

export async function showSae(view, { sae: name, signal }) {
  const detail = await api.sae(name, signal);
  const { sae, meta, capture, missing, curves } = detail;
  const parts = [
    h("div", { class: "heading" }, h("h1", {}, `SAE ${name}`),
      h("p", { class: "actions" }, h("a", { href: to.runs() }, "All runs"), h("a", { href: to.complete({ sae: name }) }, "Complete"),
        h("a", { href: to.steer() }, "Steer"), h("a", { href: to.latents(name), class: "button" }, "Latents"))),
    lineage(sae, capture),
    missing && notice({ message: missing.error, hint: missing.hint }),
    h("div", { class: "split" }, training(sae, meta), ofLatents(detail)),
    h("section", {}, h("h2", {}, "Training curves"), drawn(curves)),
    details("Configuration of the training", meta.config),
    capture && details("Configuration of the capture", capture.config),
  ];
  view.append(...parts.filter(part => part));
  return `SAE ${name}`;
}

function training(sae, meta) {
  const { rows, mse, fvu, l0 } = sae.validation;
  return h("section", {}, h("h2", {}, "Training"), facts([
    ["hook", sae.hook], ["writes to", sae.target_hook], ["width", `${count(sae.d_in)} to ${count(sae.d_sae)} latents`],
    ["activation", sae.activation], ["steps", count(meta.steps)], ["tokens", count(meta.tokens)], ["weights", bytes(sae.memory)],
  ]), h("h2", {}, "On held-out rows"), facts([
    ["rows", count(rows)], ["mean squared error", short(mse)], ["variance unexplained", share(fvu)], ["L0", short(l0)],
  ]));
}

const ofLatents = ({ sae, alive, dead, rows, densities: found }) => h("section", {}, h("h2", {}, "Latents"), facts([
  ["alive", alive === null ? null : count(alive)], ["dead", dead === null ? null : `${count(dead)} (${share(dead / sae.d_sae)})`],
  ["rows read", rows === null ? null : count(rows)], ["named", sae.names > 0 ? count(sae.names) : "none yet: 04_name_latents names them"],
]), found && densities(found));

function lineage(sae, capture) {
  const step = (title, name, more) => h("li", {}, h("span", { class: "quiet" }, title), h("b", {}, name), more && h("span", { class: "quiet" }, more));
  return h("ol", { class: "lineage", "aria-label": "Where it comes from" },
    step("Model", sae.model ?? "not known", capture?.model && `revision ${capture.model.revision}`),
    step("Text", capture?.dataset?.source ?? "not known", capture?.dataset && counted(capture.dataset.documents, "document")),
    step("Capture", sae.capture, capture ? capture.totals && counted(capture.totals.rows, "row") : "not in this store"),
    step("SAE", sae.sae, `${count(sae.d_sae)} latents`));
}

function drawn(curves) {
  if (curves.step.length === 0) return h("p", { class: "quiet" }, "This training left no history.");
  return h("div", { class: "plots" }, CURVES.map(([key, title]) => curve(title, curves.step, curves[key])));
}
