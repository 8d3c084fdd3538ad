// Requests: errors as the server tells them, waiting where it asks for it, lines as they arrive.

import { count, pause } from "./dom.js";

/// An answer that is not a success; `status` is 0 where there was none.
export class Problem extends Error {
  constructor(status, message, hint = null, retry = null) {
    super(message);
    this.status = status;
    this.hint = hint;
    this.retry = retry;
  }
}

const GONE = "The server does not answer.";
const TRIES = 60;

async function ask(path, options) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw lost();
  }
  if (answer.ok) {
    dispatchEvent(new CustomEvent("answered"));
    return answer;
  }
  const told = await answer.json().catch(() => ({}));
  const retry = Number(answer.headers.get("retry-after")) || null;
  const problem = new Problem(answer.status, told.error ?? `The server answers ${answer.status}.`, told.hint, retry);
  if (problem.status === 401) dispatchEvent(new CustomEvent("locked", { detail: problem }));
  throw problem;
}

function lost() {
  const problem = new Problem(0, GONE, "Is 05_explore still running, and the ssh tunnel open?");
  dispatchEvent(new CustomEvent("gone", { detail: problem }));
  return problem;
}

function address(path, params) {
  const kept = Object.entries(params).filter(([, value]) => value !== "" && value !== null && value !== undefined);
  const query = new URLSearchParams(kept).toString();
  return query ? `${path}?${query}` : path;
}

/// The answer to a question; its body may break off, too.
async function json(answer, signal) {
  try {
    return await answer.json();
  } catch (error) {
    if (signal?.aborted) throw error;
    throw lost();
  }
}

async function get(path, params = {}, signal = undefined) {
  return json(await ask(address(path, params), { signal }), signal);
}

const posted = (body, signal) => ({
  method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body), signal,
});

async function post(path, body, signal) {
  return json(await ask(path, posted(body, signal)), signal);
}

/// Calls `use` with each line of the answer as it arrives; a line without its end was cut off.
async function lines(path, body, signal, use) {
  const answer = await ask(path, posted(body, signal));
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read().catch(error => {
      throw signal?.aborted ? error : lost();
    });
    if (done) break;
    const all = (rest + value).split("\n");
    rest = all.pop();
    all.filter(line => line.trim()).forEach(line => use(JSON.parse(line)));
  }
}

/// Tries again as long as the server says when; `wait` is told of each refusal.
export async function patiently(signal, wait, work) {
  for (let n = 1; ; n++) {
    try {
      return await work();
    } catch (error) {
      if (!(error instanceof Problem) || !error.retry || n === TRIES) throw error;
      wait(error);
      await pause(1000 * error.retry, signal);
    }
  }
}

/// What a view says while it waits for its turn.
export const again = ({ status, message, retry }) =>
  `${status === 429 ? "The queue is full" : message}; trying again in ${retry} s …`;

/// Bytes of a text that the server takes.
const TEXT = 16_384;

/// A request with a text that is not too long.
function fitting(body) {
  const { length } = new TextEncoder().encode(body.text);
  if (length > TEXT) throw new Problem(400, `The text has ${count(length)} bytes.`, `At most ${count(TEXT)} are read.`);
  return body;
}

const segment = encodeURIComponent;
const paths = {
  sae: sae => `api/saes/${segment(sae)}`,
  latents: sae => `api/saes/${segment(sae)}/latents`,
  latent: (sae, latent) => `api/saes/${segment(sae)}/latents/${latent}`,
  strength: (sae, latent) => `api/saes/${segment(sae)}/latents/${latent}/strength`,
  sentence: (sae, sentence) => `api/saes/${segment(sae)}/sentences/${sentence}`,
};

export const runs = signal => get("api/runs", {}, signal);
export const sae = (name, signal) => get(paths.sae(name), {}, signal);
export const latents = (name, params, signal) => get(paths.latents(name), params, signal);
export const sentence = (name, n, signal) => get(paths.sentence(name, n), {}, signal);
export const search = (params, signal) => get("api/search", params, signal);
export const compare = (params, signal) => get("api/compare", params, signal);
export const complete = async (body, signal) => post("api/complete", fitting(body), signal);
export const generate = async (body, signal, use) => lines("api/generate", fitting(body), signal, use);

const KEPT = 48, FRESH = 120_000;
const kept = new Map();

/// What one comes back to is kept for a while.
async function remembered(path, signal) {
  const known = kept.get(path);
  if (known && Date.now() - known.at < FRESH) return known.value;
  const value = await get(path, {}, signal);
  kept.delete(path);
  kept.set(path, { value, at: Date.now() });
  if (kept.size > KEPT) kept.delete(kept.keys().next().value);
  return value;
}

export const latent = (name, n, signal) => remembered(paths.latent(name, n), signal);
export const strength = (name, n, signal) => remembered(paths.strength(name, n), signal);

let list = null;

/// The SAEs; asked for once, and again after `forget`.
export function saes() {
  list ??= get("api/saes").catch(error => {
    list = null;
    throw error;
  });
  return list;
}

export function forget() {
  list = null;
  kept.clear();
}
