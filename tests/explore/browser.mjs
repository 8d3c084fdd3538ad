// 05_explore's page in a real browser: browse, search, open a latent, complete, steer, permalink, a saved
// experiment, a slow line; on every view texts are read well in both themes and nothing lies beyond 1000 px.
// usage: node browser.mjs ADDRESS-WITH-TOKEN DIRECTORY    the directory gets the screenshots
// Exit code 1, with a message, where something is not as expected or the browser reports an error.

import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { chromium } from "playwright-core";

const [address, shots] = process.argv.slice(2);
if (!shots) {
  console.error("usage: node browser.mjs ADDRESS-WITH-TOKEN DIRECTORY");
  process.exit(2);
}
const FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync"];
const profile = mkdtempSync(join(tmpdir(), "explore-"));
const troubles = [];
const ENDED = /^\d+ tokens?; /;
/// Of text and what is behind it: WCAG 2.1, AA.
const CONTRAST = 4.5;
/// Milliseconds that one waits for a view on a line with 100 ms latency, on a machine that does other things, too.
const DISTANT = 2000;
/// What the browser may tell meanwhile, because it is meant to happen.
let meant = null;

function expect(is, what) {
  if (!is) throw new Error(`expected: ${what}`);
}

function watch(page) {
  page.on("console", message => {
    if (!["error", "warning"].includes(message.type()) || meant && message.text().includes(meant)) return;
    troubles.push(`console: ${message.text()}`);
  });
  page.on("pageerror", error => troubles.push(`page: ${error.stack}`));
}

const open = (page, hash) => page.evaluate(to => (location.hash = to), hash);
const heading = (page, text) => page.locator("main h1", { hasText: text }).waitFor();

async function shot(page, name) {
  for (const width of [1000, 1600]) {
    for (const colorScheme of ["light", "dark"]) {
      await page.setViewportSize({ width, height: 900 });
      await page.emulateMedia({ colorScheme });
      await page.waitForTimeout(80);
      await page.screenshot({ path: join(shots, `${name}-${width}-${colorScheme}.png`) });
      const faint = await page.evaluate(unreadable, CONTRAST);
      expect(faint.length === 0, `readable texts on ${name} in ${colorScheme}: ${faint.slice(0, 5).join("; ")}`);
      const wide = await page.evaluate(() => document.documentElement.scrollWidth);
      expect(wide <= width, `${name} within ${width} px, not ${wide}`);
    }
  }
}

/// Runs in the page: texts whose contrast is too small.
function unreadable(least) {
  const parts = text => {
    const n = text.match(/[\d.]+(?:e-?\d+)?/g).map(Number);
    return [...n.slice(0, 3).map(v => text.startsWith("color(") ? 255 * v : v), n[3] ?? 1];
  };
  const over = ([r, g, b, a], under) => [r, g, b].map((v, i) => v * a + under[i] * (1 - a));
  const behind = element => {
    if (!element) return [255, 255, 255];
    const own = parts(getComputedStyle(element).backgroundColor);
    return own[3] === 1 ? own.slice(0, 3) : over(own, behind(element.parentElement));
  };
  const linear = v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const text = [...element.childNodes].filter(node => node.nodeType === 3).map(node => node.data).join("").trim();
    if (!text || !element.checkVisibility() || element.closest(":disabled, .unseen, svg, noscript, option, [aria-disabled=true]")) continue;
    const back = behind(element), front = over(parts(getComputedStyle(element).color), back);
    const [dark, bright] = [light(back), light(front)].sort((a, b) => a - b);
    const ratio = (bright + 0.05) / (dark + 0.05);
    if (ratio < least) found.push(`${text.slice(0, 30)} (${element.className || element.tagName}) ${ratio.toFixed(2)}`);
  }
  return found;
}

/// What slows the page's line down, and what makes the browser forget the files that it keeps.
async function line(page) {
  const session = await page.context().newCDPSession(page);
  await session.send("Network.enable");
  return {
    slow: (latency, throughput) => session.send("Network.emulateNetworkConditions",
      { offline: false, latency, downloadThroughput: throughput, uploadThroughput: -1 }),
    forget: () => session.send("Network.clearBrowserCache"),
  };
}

async function browse(page) {
  await heading(page, "Latents of");
  await page.locator(".space .row a").first().waitFor();
  expect(!page.url().includes("token="), "the token leaves the address");
  const found = await page.locator(".filters > .found").innerText();
  expect(/^[\d,]+ latents$/.test(found), `a count of latents, not ${found}`);
  await page.getByRole("button", { name: "Max" }).click();
  await page.waitForFunction(() => document.querySelector("[aria-sort=descending]")?.textContent.startsWith("Max"));
  await page.locator(".grid:not([aria-busy])").waitFor();
  const values = await page.locator(".space .row:not(.dead) > :nth-child(5)").allInnerTexts();
  const numbers = values.slice(0, 10).map(Number);
  expect(numbers.every((v, i) => i === 0 || v <= numbers[i - 1]), `Max falls: ${numbers}`);
  await page.locator(".grid").evaluate(grid => (grid.scrollTop = grid.scrollHeight));
  await page.waitForFunction(() => [...document.querySelectorAll(".space .row")].some(row => row.getAttribute("aria-rowindex") === document.querySelector(".grid").getAttribute("aria-rowcount") && row.querySelector("a")));
  await page.locator(".grid").evaluate(grid => (grid.scrollTop = 0));
  await page.locator("#row-0 a").waitFor();
  await shot(page, "latents");
}

async function latent(page) {
  await page.locator(".grid").focus();
  await page.keyboard.press("ArrowDown");
  await page.keyboard.press("ArrowUp");
  await page.keyboard.press("Enter");
  await heading(page, "Latent ");
  await page.locator(".sentences .on").first().waitFor();
  const token = page.locator(".sentences .on").first();
  await token.hover();
  expect(/\d/.test(await page.locator("#tip").innerText()), "the exact value of a token");
  await shot(page, "latent");
  await page.getByRole("tab", { name: "By tenths" }).click();
  await page.locator("[role=tabpanel] h3").first().waitFor();
  const number = (await page.locator("main h1").innerText()).match(/\d+/)[0];
  await page.locator(".sentences a").first().click();
  await heading(page, "Sentence ");
  await page.locator(".sentence.large .on").first().waitFor();
  await shot(page, "sentence");
  await page.goBack();
  await heading(page, `Latent ${number}`);
  return number;
}

/// Ends of the row of latents, latents that are not there, and colours by hand.
async function edges(page) {
  const name = decodeURIComponent(page.url().match(/#\/sae\/([^/]+)/)[1]);
  const { saes } = await page.evaluate(() => fetch("api/saes").then(answer => answer.json()));
  const { sae, d_sae } = saes.find(one => one.sae === name);
  const off = async link => await page.getByRole("link", { name: link, disabled: true }).count() === 1;
  for (const [number, isFirst] of [[0, true], [1, null], [d_sae - 1, false]]) {
    await open(page, `#/sae/${sae}/latent/${number}`);
    await heading(page, `Latent ${number}`);
    expect(await off("Previous") === (isFirst === true) && await off("Next") === (isFirst === false), `links to those beside latent ${number}`);
  }
  meant = "404";
  await open(page, `#/sae/${sae}/latent/${d_sae}`);
  await page.locator("main .notice").waitFor();
  meant = null;
  const themes = [];
  for (let n = 0; n < 3; n++) {
    await page.locator("#theme").click();
    themes.push(await page.evaluate(() => document.documentElement.dataset.theme ?? "auto"));
  }
  expect(themes.join() === "dark,light,auto", `three themes, not ${themes}`);
  await open(page, "#/latents");
  await heading(page, "Latents of");
}

/// The server is gone for a moment, then asks for its token.
async function gone(page) {
  const banner = page.locator("#banner");
  const meets = async (answer, said) => {
    await page.route("**/api/runs", answer);
    await open(page, "#/runs");
    await banner.getByText(said).waitFor();
    await page.unroute("**/api/runs");
    await banner.getByRole("button", { name: "Try again" }).click();
    await heading(page, "Runs");
    expect(await banner.isHidden(), `nothing more is said of "${said}"`);
    await open(page, "#/latents");
    await heading(page, "Latents of");
  };
  meant = "Failed to load resource";
  await meets(route => route.abort(), "The server does not answer.");
  await meets(route => route.fulfill({ status: 401, json: { error: "no token", hint: "open the address" } }), "The server asks for its token.");
  meant = null;
}

/// What one waits for most, over a line as an ssh tunnel may have it.
async function distant(page) {
  const { slow, forget } = await line(page);
  const took = async work => {
    const begun = Date.now();
    await work();
    return Date.now() - begun;
  };
  await open(page, "#/latents");
  await page.locator(".space .row a").first().waitFor();
  await forget();
  await slow(100, -1);
  const table = await took(async () => {
    await page.reload();
    await page.locator(".space .row a").first().waitFor();
  });
  const latent = await took(async () => {
    await page.locator("#row-4 a").click();
    await page.locator(".sentences .on").first().waitFor();
  });
  await slow(0, -1);
  console.log(`with 100 ms latency: table ${table} ms, latent ${latent} ms`);
  expect(Math.max(table, latent) < DISTANT, `views within ${DISTANT} ms: ${table}, ${latent}`);
}

async function search(page, word) {
  await page.keyboard.press("Escape");
  await page.locator("main h1").click();
  await page.keyboard.press("/");
  await page.keyboard.type(word);
  await page.keyboard.press("Enter");
  await heading(page, `Search: ${word}`);
  await page.locator(".results mark").first().waitFor({ timeout: 60_000 });
  await shot(page, "search");
}

async function runs(page) {
  await open(page, "#/runs");
  await heading(page, "Runs");
  await shot(page, "runs");
  await page.locator("main td a").first().click();
  await heading(page, "SAE ");
  await page.locator(".plots polyline").first().waitFor();
  await shot(page, "sae");
}

async function compare(page) {
  await open(page, "#/compare");
  await heading(page, "Compare");
  await page.locator("main input[type=radio]").first().waitFor();
  await page.locator("main input[type=radio]").nth(1).check();
  await shot(page, "compare");
}

async function complete(page) {
  await open(page, "#/complete");
  await heading(page, "Complete");
  await page.locator("label.block textarea").fill("Once upon a time there was a dog.");
  await page.locator("label.block textarea").press("Control+Enter");
  await page.locator(".strip .token").first().waitFor();
  await page.locator(".strip .token[aria-selected=true]").focus();
  await page.keyboard.press("ArrowLeft");
  expect(await page.locator(".panel td.number").count() > 0, "latents of a token");
  await page.getByRole("button", { name: /^Shade the text/ }).first().click();
  expect(await page.locator(".strip .on").count() > 0, "tokens shaded by a latent");
  await page.locator(".drawing [name=n]").fill("12");
  await page.getByRole("button", { name: "Continue the text" }).click();
  await page.getByText(ENDED).waitFor({ timeout: 60_000 });
  await shot(page, "complete");
}

async function steer(page, number) {
  await open(page, "#/steer");
  await heading(page, "Steer");
  await page.locator("label.block textarea").fill("Anna went to the market");
  await changes(page, number);
  // So slow that there is something left to cancel.
  const { slow } = await line(page);
  await slow(0, 2000);
  await page.locator(".drawing [name=n]").fill("1000");
  await page.getByRole("button", { name: "Generate both" }).click();
  await page.locator(".continuation .token").nth(3).waitFor({ timeout: 60_000 });
  await page.getByRole("button", { name: "Cancel" }).click();
  await page.getByText("Cancelled.").waitFor();
  await slow(0, -1);
  await page.locator(".drawing [name=n]").fill("16");
  await page.getByRole("button", { name: "Generate both" }).click();
  await ended(page);
  expect(await page.locator(".continuation .kl").count() > 0, "a divergence of each token");
  await page.waitForTimeout(400);
  await shot(page, "steer");
  return texts(page);
}

/// A latent of each SAE, and of the first another, which is taken away again by the keyboard.
async function changes(page, number) {
  const field = page.getByRole("combobox", { name: "Add a latent" }), sae = page.getByLabel("SAE to find it in");
  const names = await sae.locator("option").allInnerTexts();
  const rows = page.locator(".changes > li:has(button)");
  const remove = n => rows.nth(n).getByRole("button", { name: "Remove" }).press("Enter");
  const focused = () => page.evaluate(() => document.activeElement.outerHTML);
  const add = async name => {
    await sae.selectOption(name);
    await field.fill(number);
    await page.locator("[role=option]").first().waitFor();
    await page.keyboard.press("Enter");
  };
  await add(names[0]);
  await remove(0);
  expect((await focused()).includes("combobox"), "behind the last change the focus goes to where one adds");
  for (const name of [names[0], ...names]) await add(name);
  expect(await rows.count() === names.length + 1, `changes of ${names} beside the first`);
  await rows.first().locator(".chip").last().click();
  expect(/chip.*aria-pressed="true"/.test(await focused()), "the strength that was chosen keeps the focus");
  await remove(1);
  expect(await rows.count() === names.length, "a change less");
  expect((await focused()).includes("Remove latent"), "the focus goes on to the next change");
}

const ended = page => page.waitForFunction(() => {
  const ends = [...document.querySelectorAll(".continuation > .quiet")];
  return ends.length === 2 && ends.every(end => /^\d+ tokens?; /.test(end.textContent));
}, null, { timeout: 60_000 });
const texts = async page => (await page.locator(".continuation .text").allInnerTexts()).join("\n--\n");

/// What "Save as JSON" gives.
async function saved(page) {
  const [download] = await Promise.all([page.waitForEvent("download"), page.getByRole("button", { name: "Save as JSON" }).click()]);
  return readFileSync(await download.path());
}

/// Saves, changes, and loads what was saved; files that are none change nothing.
async function experiment(page, written) {
  const file = await saved(page);
  const { request, result } = JSON.parse(file);
  expect(result.complete && result.request.text === request.text && result.steered.tokens.length > 0, "the experiment in the file");
  const damaged = join(profile, "damaged.json"), field = page.locator("label.block textarea");
  await field.fill("Another text");
  for (const content of ["{", "[]", JSON.stringify({ kind: "05_explore experiment", schema: 1, link: "#/steer", result: { request: {} } })]) {
    writeFileSync(damaged, content);
    await page.locator("input[type=file]").setInputFiles(damaged);
    await page.locator("main .notice", { hasText: "is no experiment" }).waitFor();
    expect(await field.inputValue() === "Another text", "a damaged file changes nothing");
  }
  await page.locator("input[type=file]").setInputFiles({ name: "saved.json", mimeType: "application/json", buffer: file });
  await page.waitForFunction(text => document.querySelector("label.block textarea")?.value === text, request.text);
  await ended(page);
  expect(await texts(page) === written, "the continuations that were saved");
}

/// Generations that fail, and one that a stop string ends, as a server may tell them.
async function endings(page) {
  const field = page.locator("label.block textarea");
  const token = text => ({ event: "token", side: "baseline", index: 0, id: 1, text, kl: null, logprob: -1 });
  const told = async (events, said) => {
    const body = events.map(event => `${JSON.stringify(event)}\n`).join("");
    await page.route("**/api/generate", route => route.fulfill({ contentType: "application/x-ndjson", body }), { times: 1 });
    await page.getByRole("button", { name: "Generate both" }).click();
    await page.locator(".actions [role=status]", { hasText: said }).waitFor();
  };
  const start = { event: "start", model: "m", prompt: [], seed: 0, sides: ["baseline"], context: 256 };
  const end = { event: "end", side: "baseline", reason: "stop", text: " one", tokens: 3, mean_kl: null };
  const asked = JSON.parse(await saved(page)).result.request.text;
  await field.fill("A text");
  await told([{ event: "error", error: "It failed.", hint: null }], "It failed.");
  expect(JSON.parse(await saved(page)).result.request.text === asked, "the outcome that is saved has its own request");
  await told([start, token(" one")], "The connection ended");
  const { result } = JSON.parse(await saved(page));
  expect(!result.complete && result.request.text === "A text" && result.baseline.tokens.length === 1, "what came before the connection ended");
  await told([start, token(" one"), token(" two"), token(" three"), end, { event: "done", seconds: 1 }], "3 tokens in");
  expect(await page.locator(".continuation .text").first().textContent() === "A text one", "a text without the stop string");
  await field.fill("ż".repeat(9000));
  await page.getByRole("button", { name: "Generate both" }).click();
  await page.locator(".actions [role=status]", { hasText: "The text has 18,000 bytes. At most 16,384 are read." }).waitFor();
}

async function permalink(context, page, written) {
  const other = await context.newPage();
  watch(other);
  await other.goto(page.url());
  await heading(other, "Steer");
  await other.locator(".changes .chip").first().waitFor();
  await other.getByRole("button", { name: "Generate both" }).click();
  await ended(other);
  const again = await texts(other);
  expect(again === written, `the same continuations from the link:\n${written}\nand\n${again}`);
  await other.close();
}

async function main() {
  mkdirSync(shots, { recursive: true });
  const context = await chromium.launchPersistentContext(profile, { executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", headless: true, args: FLAGS });
  try {
    const page = context.pages()[0];
    page.setDefaultTimeout(20_000);
    watch(page);
    await page.goto(address);
    await browse(page);
    const number = await latent(page);
    await edges(page);
    await gone(page);
    await search(page, process.env.WORD ?? "the");
    await runs(page);
    await compare(page);
    await complete(page);
    const written = await steer(page, number);
    await permalink(context, page, written);
    await experiment(page, written);
    await endings(page);
    await distant(page);
  } finally {
    await context.close();
    rmSync(profile, { recursive: true, force: true });
  }
}

const failed = await main().then(() => null, error => error);
troubles.forEach(trouble => console.error(trouble));
if (failed) console.error(String(failed.stack));
if (failed || troubles.length) process.exit(1);
console.log("the page does what it should");
