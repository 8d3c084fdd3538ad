// Elements, numbers and the small parts that every view uses.

const SVG = "http://www.w3.org/2000/svg";

/// Sets attributes; functions are listeners, `vars` are style properties (a `style` attribute would be
/// against the content security policy).
function dress(made, props, children) {
  for (const [key, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") made.addEventListener(key, value);
    else if (key === "vars") for (const [name, v] of Object.entries(value)) made.style.setProperty(name, v);
    else if (key === "value" || key === "checked" || key === "selected") made[key] = value;
    else made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.flat(Infinity).filter(child => child !== null && child !== undefined && child !== false));
  return made;
}

export const h = (name, props = {}, ...children) => dress(document.createElement(name), props, children);
export const svg = (name, props = {}, ...children) => dress(document.createElementNS(SVG, name), props, children);

/// Puts other children into an element; those that are left out by a condition may be among them.
export const fill = (element, ...children) => {
  element.replaceChildren();
  return dress(element, {}, children);
};

export const count = n => n.toLocaleString("en-GB");
export const counted = (n, thing) => `${count(n)} ${thing}${n === 1 ? "" : "s"}`;

/// Three digits.
export function short(x) {
  if (x === null || x === undefined) return "–";
  const size = Math.abs(x);
  if (x === 0) return "0";
  if (size >= 1e5 || size < 1e-3) return x.toExponential(1).replace("e+", "e");
  return String(+x.toPrecision(3));
}

export const exact = x => x === null || x === undefined ? "–" : String(+x.toPrecision(7));
export const share = (x, digits = 2) => x === null || x === undefined ? "–" : `${(100 * x).toFixed(digits)} %`;

export function bytes(n) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const unit = n < 1 ? 0 : Math.min(units.length - 1, Math.floor(Math.log2(n) / 10));
  return `${short(n / 1024 ** unit)} ${units[unit]}`;
}

/// A token as one sees it.
export const visible = text => text.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/\r/g, "␍");
export const quoted = text => `“${visible(text)}”`;

/// Told to screen readers.
export function say(text) {
  document.getElementById("said").textContent = text;
}

export function debounce(wait, work) {
  let timer = 0;
  return (...args) => {
    clearTimeout(timer);
    timer = setTimeout(work, wait, ...args);
  };
}

/// Waits, or ends at once when the signal is raised.
export const pause = (ms, signal) => new Promise((go, stop) => {
  signal?.throwIfAborted();
  const ends = () => {
    clearTimeout(timer);
    stop(signal.reason);
  };
  const timer = setTimeout(() => {
    signal?.removeEventListener("abort", ends);
    go();
  }, ms);
  signal?.addEventListener("abort", ends, { once: true });
});

/// What went wrong and what to do about it.
export function notice(problem, ...actions) {
  return h("div", { class: "notice", role: "alert" },
    h("p", {}, problem.message),
    problem.hint && h("p", { class: "quiet" }, problem.hint),
    actions);
}

/// In place of a name.
export const unnamed = () => h("span", { class: "quiet" }, "unnamed");

export const button = (text, click, props = {}) => h("button", { type: "button", click, ...props }, text);

/// A list of terms; entries without a value are left out.
export function facts(entries) {
  const known = entries.filter(([, value]) => value !== null && value !== undefined && value !== "");
  return h("dl", { class: "facts" }, known.map(([term, value]) => [h("dt", {}, term), h("dd", {}, value)]));
}

export function table(caption, heads, rows, props = {}) {
  const number = i => heads[i].number ? "number" : null;
  return h("table", props,
    h("caption", { class: "unseen" }, caption),
    h("thead", {}, h("tr", {}, heads.map((head, i) => h("th", { scope: "col", class: number(i), title: head.title }, head.text)))),
    h("tbody", {}, rows.map(row => h("tr", {}, row.map((cell, i) => h("td", { class: number(i) }, cell))))));
}

/// A bar beside a number.
export const bar = part => h("span", { class: "bar", "aria-hidden": "true" },
  h("span", { vars: { width: `${100 * Math.max(0, Math.min(1, part))}%` } }));

/// Tabs whose panel is made when it is chosen; a tab is `[title, () => element]`.
export function tabs(label, entries, chosen = 0) {
  const panel = h("div", { role: "tabpanel", id: fresh("panel") });
  const heads = entries.map(([title], i) => h("button", {
    type: "button", role: "tab", id: fresh("tab"), "aria-controls": panel.id, click: () => choose(i),
  }, title));
  function choose(i) {
    heads.forEach((head, n) => {
      head.setAttribute("aria-selected", String(n === i));
      head.tabIndex = n === i ? 0 : -1;
    });
    panel.setAttribute("aria-labelledby", heads[i].id);
    panel.replaceChildren(entries[i][1]());
  }
  const keydown = event => {
    const now = heads.indexOf(document.activeElement);
    const to = stepped(event.key, now, heads.length);
    if (to === null) return;
    event.preventDefault();
    heads[to].focus();
    choose(to);
  };
  choose(chosen);
  return [h("div", { role: "tablist", class: "tabs", "aria-label": label, keydown }, heads), panel];
}

/// Where an arrow key leads in a row of things.
export function stepped(key, now, length) {
  const to = { ArrowLeft: now - 1, ArrowRight: now + 1, Home: 0, End: length - 1 }[key];
  return to === undefined || to < 0 || to >= length ? null : to;
}

let made = 0;
export const fresh = name => `${name}-${++made}`;

/// One stop of the Tab key for many small things; arrow keys go on from one to the next.
export function roving(container, selector) {
  const first = container.querySelector(selector);
  if (first) first.tabIndex = 0;
  container.addEventListener("keydown", event => {
    const all = [...container.querySelectorAll(selector)];
    const now = all.indexOf(event.target.closest(selector));
    const to = now < 0 ? null : stepped(event.key, now, all.length);
    if (to === null) return;
    event.preventDefault();
    event.stopPropagation();
    all[now].tabIndex = -1;
    all[to].tabIndex = 0;
    all[to].focus();
  });
}

const tipped = new WeakMap();
let tip = null;

/// Shows `words()` beside an element that is pointed at or focused.
export function hint(element, words) {
  tipped.set(element, words);
  return element;
}

function showTip(event) {
  let element = event.target;
  while (element instanceof Element && !tipped.has(element)) element = element.parentElement;
  hideTip();
  if (!(element instanceof Element)) return;
  tip = h("div", { id: "tip", role: "tooltip" }, tipped.get(element)());
  document.body.append(tip);
  element.setAttribute("aria-describedby", "tip");
  tip.owner = element;
  placeTip();
}

/// Beside its element, which may have moved.
function placeTip() {
  if (!tip) return;
  if (!tip.owner.isConnected) return hideTip();
  const element = tip.owner;
  const box = element.getBoundingClientRect(), own = tip.getBoundingClientRect();
  const left = Math.max(4, Math.min(box.left + box.width / 2 - own.width / 2, innerWidth - own.width - 4));
  const above = box.top - own.height - 6;
  tip.style.left = `${left}px`;
  tip.style.top = `${above < 4 ? box.bottom + 6 : above}px`;
}

export function hideTip() {
  tip?.owner.removeAttribute("aria-describedby");
  tip?.remove();
  tip = null;
}

document.addEventListener("pointerover", showTip);
document.addEventListener("focusin", showTip);
document.addEventListener("focusout", hideTip);
document.addEventListener("pointerleave", hideTip);
document.addEventListener("keydown", event => event.key === "Escape" && hideTip());
addEventListener("scroll", placeTip, { capture: true, passive: true });
