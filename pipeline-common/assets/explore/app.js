// Which view is shown, the bar above it, and what is said when the server is gone.

import * as api from "./api.js";
import { button, debounce, h, hideTip, notice, pause, say } from "./dom.js";
import * as links from "./links.js";
import * as compare from "./compare.js";
import * as complete from "./complete.js";
import * as find from "./find.js";
import * as latent from "./latent.js";
import * as latents from "./latents.js";
import * as runs from "./runs.js";
import * as steer from "./steer.js";

const at = id => document.getElementById(id);
const main = at("main"), picker = at("sae"), query = at("query"), banner = at("banner");
const TITLE = "05_explore";

/// By the first part of the address, or the third after `sae/NAME`: which entry of the bar is lit, and
/// what shows the view.
const VIEWS = {
  runs: ["runs", runs.show],
  search: [null, find.show],
  compare: ["compare", compare.show],
  complete: ["complete", complete.show],
  steer: ["steer", steer.show],
};
const OF_SAE = {
  "": ["runs", runs.showSae],
  latents: ["latents", latents.show],
  latent: ["latents", latent.show],
  sentence: ["latents", latent.showSentence],
};

let leaving = new AbortController();

/// The SAE that a view begins with.
function current(list) {
  const known = name => list.saes.some(sae => sae.sae === name);
  return [sessionStorage.getItem("sae"), list.newest].find(known) ?? list.saes[0]?.sae ?? null;
}

function choose(sae) {
  if (sae) sessionStorage.setItem("sae", sae);
  picker.value = sae ?? "";
}

async function fillPicker() {
  const list = await api.saes();
  picker.replaceChildren(...list.saes.map(sae => h("option", { value: sae.sae }, sae.sae)));
  picker.disabled = list.saes.length === 0;
  choose(current(list));
  return list;
}

const own = (views, key) => Object.hasOwn(views, key) ? views[key] : null;

/// What an address asks for; `null` where there is no such view.
function wanted(address, sae) {
  if (!address) return null;
  const { parts, params } = address;
  const [first = "latents", name, what = "", number] = parts;
  if (first === "latents") return { view: OF_SAE.latents, sae, params };
  if (first !== "sae") return { view: own(VIEWS, first), sae, params };
  return { view: own(OF_SAE, what), sae: name, params, number: number === undefined ? null : Number(number) };
}

async function route() {
  leaving.abort();
  leaving = new AbortController();
  const { signal } = leaving;
  hideTip();
  const slow = setTimeout(() => main.replaceChildren(h("p", { class: "quiet" }, "Loading …")), 200);
  try {
    const list = await fillPicker();
    const found = wanted(links.read(location.hash), current(list));
    if (signal.aborted) return;
    await render(found, list, { signal, slow });
  } catch (error) {
    if (signal.aborted) return;
    main.replaceChildren(failed(error));
  } finally {
    clearTimeout(slow);
  }
}

async function render(found, list, { signal, slow }) {
  if (!found?.view || Number.isNaN(found.number)) {
    throw new api.Problem(404, "There is no such view.", "The bar above leads to those that there are.");
  }
  const [entry, show] = found.view;
  light(entry);
  if (!found.sae && show !== runs.show) return main.replaceChildren(...empty());
  if (list.saes.some(sae => sae.sae === found.sae)) choose(found.sae);
  const view = h("div", { class: "view" });
  const title = await show(view, { ...found, list, signal });
  if (signal.aborted) return;
  clearTimeout(slow);
  main.replaceChildren(view);
  view.dispatchEvent(new CustomEvent("attached"));
  document.title = `${title} – ${TITLE}`;
  remember();
  arrive(view);
}

/// Readers of the screen hear where they are; who types in the bar goes on typing.
function arrive(view) {
  if (document.activeElement === query) return;
  const heading = view.querySelector("h1");
  if (!heading) return;
  heading.tabIndex = -1;
  heading.focus({ preventScroll: true });
  if (!view.keepsScroll) scrollTo(0, 0);
}

function light(entry) {
  for (const link of document.querySelectorAll("nav a")) {
    if (link.dataset.view === entry) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}

/// The bar leads back to where one was.
function remember() {
  const link = document.querySelector("nav a[aria-current]");
  const address = links.read(location.hash);
  if (link && address && ["latents", "complete", "steer", "compare"].includes(link.dataset.view)) {
    if (link.dataset.view !== "latents" || address.parts[2] === "latents") link.href = location.hash;
  }
}

const empty = () => [
  h("h1", {}, "No SAE yet"),
  h("p", {}, "This store has no complete training: ", h("code", {}, "02_train_sae"), " makes one, and ",
    h("code", {}, "03_top_sentences"), " finds the sentences that are shown here."),
  h("p", {}, h("a", { href: links.to.runs() }, "Runs"), " says what the store has; then ",
    button("look again", refresh), "."),
];

function refresh() {
  api.forget();
  return route();
}

function failed(error) {
  if (error instanceof api.Problem) return notice(error, button("Try again", refresh));
  console.error(error);
  return notice(new api.Problem(0, "A defect of this page.", String(error)));
}

function warn(message, hint) {
  banner.replaceChildren(h("b", {}, message), ` ${hint} `, button("Try again", refresh));
  banner.hidden = false;
}

let watching = false;

/// Says that the server is gone, and looks whether it comes back.
async function gone({ detail }) {
  warn(detail.message, detail.hint);
  if (watching) return;
  watching = true;
  for (let wait = 2000; !banner.hidden; wait = Math.min(30_000, 1.5 * wait)) {
    await pause(wait);
    const answer = banner.hidden ? null : await fetch("api/saes").catch(() => null);
    if (!answer) continue;
    answered();
    if (!answer.ok || main.querySelector(":scope > .notice")) refresh();
  }
  watching = false;
}

/// Any answer that is a success ends what the banner says.
function answered() {
  if (banner.hidden) return;
  banner.hidden = true;
  say("The server answers again.");
}

const locked = ({ detail }) => warn("The server asks for its token.", `It was started anew, perhaps: ${detail.hint}.`);

const THEMES = { auto: "dark", dark: "light", light: "auto" };

function setTheme(theme) {
  const known = Object.hasOwn(THEMES, theme ?? "") ? theme : "auto";
  if (known === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = known;
  localStorage.setItem("theme", known);
  at("theme").textContent = { auto: "◐ Auto", dark: "☾ Dark", light: "☼ Light" }[known];
  at("theme").setAttribute("aria-label", `Colours: ${known}. Change to ${THEMES[known]}.`);
  at("theme").onclick = () => setTheme(THEMES[known]);
}

/// The cookie lets one in from now on: the token need not stay in addresses that are copied.
function dropToken() {
  const address = new URL(location.href);
  if (!address.searchParams.has("token")) return;
  address.searchParams.delete("token");
  history.replaceState(null, "", address);
}

function switchSae() {
  choose(picker.value);
  const address = links.read(location.hash);
  const [first = "latents", , what = ""] = address?.parts ?? [];
  if (first === "sae") links.open(what === "" ? links.to.sae(picker.value) : links.to.latents(picker.value));
  else if (first === "latents") route();
}

function search(event) {
  event?.preventDefault();
  const q = query.value.trim();
  if (!q) return;
  const now = links.read(location.hash), there = now?.parts[0] === "search";
  const address = links.to.search({ q, sae: there ? now.params.get("sae") : null });
  if (!there) return links.open(address);
  links.show(address);
  route();
}

function shortcut(event) {
  const typing = event.target.closest?.("input, textarea, select");
  if (event.key !== "/" || typing || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  query.focus();
}

addEventListener("hashchange", route);
addEventListener("shown", remember);
addEventListener("answered", answered);
addEventListener("gone", gone);
addEventListener("locked", locked);
document.addEventListener("keydown", shortcut);
document.querySelector(".skip").addEventListener("click", event => {
  event.preventDefault();
  main.focus();
});
picker.addEventListener("change", switchSae);
at("find").addEventListener("submit", search);
query.addEventListener("input", debounce(350, () => query.value.trim().length > 2 && search()));
setTheme(localStorage.getItem("theme"));
route().then(dropToken);
