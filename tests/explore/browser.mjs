// 05_explore's page in a real browser: browse, search, open a latent, complete, steer, permalink.
// usage: node browser.mjs ADDRESS-WITH-TOKEN DIRECTORY    the directory gets the screenshots
// Exit code 1, with a message, where something is not as expected or the browser reports an error.

import { mkdirSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { mkdtempSync, rmSync } from "node:fs";
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

function expect(is, what) {
  if (!is) throw new Error(`expected: ${what}`);
}

function watch(page) {
  page.on("console", message => ["error", "warning"].includes(message.type()) && troubles.push(`console: ${message.text()}`));
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
    }
  }
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
  await page.getByRole("combobox", { name: "Add a latent" }).fill(number);
  await page.locator("[role=option]").first().waitFor();
  await page.keyboard.press("Enter");
  await page.locator(".changes .chip").first().waitFor();
  await page.locator(".drawing [name=n]").fill("1000");
  await page.getByRole("button", { name: "Generate both" }).click();
  await page.locator(".continuation .token").nth(3).waitFor({ timeout: 60_000 });
  await page.getByRole("button", { name: "Cancel" }).click();
  await page.getByText("Cancelled.").waitFor();
  await page.locator(".drawing [name=n]").fill("16");
  await page.getByRole("button", { name: "Generate both" }).click();
  await page.waitForFunction(() => document.querySelectorAll(".continuation > .quiet").length === 2
    && [...document.querySelectorAll(".continuation > .quiet")].every(end => /^\d+ tokens?; /.test(end.textContent)), null, { timeout: 60_000 });
  expect(await page.locator(".continuation .kl").count() > 0, "a divergence of each token");
  await page.waitForTimeout(400);
  await shot(page, "steer");
  return (await page.locator(".continuation .text").allInnerTexts()).join("\n--\n");
}

async function permalink(context, page, written) {
  const other = await context.newPage();
  watch(other);
  await other.goto(page.url());
  await heading(other, "Steer");
  await other.locator(".changes .chip").first().waitFor();
  await other.getByRole("button", { name: "Generate both" }).click();
  await other.waitForFunction(() => [...document.querySelectorAll(".continuation > .quiet")].every(end => /^\d+ tokens?; /.test(end.textContent)), null, { timeout: 60_000 });
  const again = (await other.locator(".continuation .text").allInnerTexts()).join("\n--\n");
  expect(again === written, `the same continuations from the link:\n${written}\nand\n${again}`);
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
    await search(page, process.env.WORD ?? "the");
    await runs(page);
    await compare(page);
    await complete(page);
    const written = await steer(page, number);
    await permalink(context, page, written);
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
