// Addresses within the page: `#/sae/NAME/latent/7?key=value`.

const segment = encodeURIComponent;

function link(parts, params = {}) {
  const pairs = Object.entries(params).flatMap(([key, value]) =>
    (Array.isArray(value) ? value : [value]).map(one => [key, one]));
  const query = new URLSearchParams(pairs.filter(([, v]) => v !== "" && v !== null && v !== undefined && v !== false));
  const path = `#/${parts.map(part => segment(part)).join("/")}`;
  return query.size ? `${path}?${query}` : path;
}

export const to = {
  runs: () => link(["runs"]),
  sae: sae => link(["sae", sae]),
  latents: (sae, params) => link(["sae", sae, "latents"], params),
  latent: (sae, latent) => link(["sae", sae, "latent", latent]),
  sentence: (sae, sentence, latent) => link(["sae", sae, "sentence", sentence], { latent }),
  search: params => link(["search"], params),
  compare: params => link(["compare"], params),
  complete: params => link(["complete"], params),
  steer: params => link(["steer"], params),
};

/// The parts and parameters of an address; `null` where it is not well formed.
export function read(hash) {
  const [path, query = ""] = hash.replace(/^#\/?/, "").split(/\?(.*)/s);
  try {
    const parts = path.split("/").filter(part => part).map(decodeURIComponent);
    return { parts, params: new URLSearchParams(query) };
  } catch {
    return null;
  }
}

/// Puts an address into the bar without opening it.
export function show(hash) {
  if (location.hash !== hash) history.replaceState(history.state, "", hash);
  dispatchEvent(new CustomEvent("shown"));
}

export function open(hash) {
  location.hash = hash;
}

const OPS = ["add", "clamp", "scale", "ablate"];

/// A change of a latent as `clamp:7.25:3:NAME`.
export const written = change => `${change.op}:${change.value}:${change.latent}:${change.sae}`;

export function parsed(text) {
  const [, op, value, latent, sae] = /^(\w+):([^:]*):(\d+):(.+)$/s.exec(text) ?? [];
  const known = OPS.includes(op) && Number.isFinite(Number(value)) && Number.isSafeInteger(Number(latent));
  return known ? { op, value: Number(value), latent: Number(latent), sae } : null;
}
