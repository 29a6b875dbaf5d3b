// Opens a page in Chromium, gives it inputs, and prints what it answers: node browser.mjs PLAYWRIGHT SCRIPT.json
//
// The script is {chromium, url, width, steps}; a step is {file}, {text, beam}, {click} or {evaluate}. The answer is
// {ready, steps: [{result, error}], requests, problems}.
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import { pathToFileURL } from "node:url";

const [playwright, script] = process.argv.slice(2);
const { chromium } = await import(pathToFileURL(path.join(playwright, "index.mjs")));
const { chromium: executablePath, url, width, steps } = JSON.parse(fs.readFileSync(script, "utf8"));
const profile = fs.mkdtempSync(path.join(os.tmpdir(), "chromium-"));
const args = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"];
args.push("--disable-background-networking", "--disable-component-update", "--disable-sync");
const context = await chromium.launchPersistentContext(profile, {
  executablePath,
  headless: true,
  viewport: { width: width ?? 1000, height: 800 },
  args,
});
const answer = { ready: null, steps: [], requests: [], problems: [] };
try {
  const page = await context.newPage();
  context.on("request", (request) => answer.requests.push(request.url()));
  page.on("pageerror", (error) => answer.problems.push(String(error)));
  page.on("console", (message) => message.type() === "error" && answer.problems.push(message.text()));
  const shown = async () => ((await page.isVisible("#error")) ? page.textContent("#error") : null);
  await page.goto(url);
  await page.waitForFunction(() => window.rescalenet, null, { timeout: 60000 });
  await page.evaluate("window.rescalenet.ready.catch(() => null)");
  answer.ready = { error: await shown(), width: await page.evaluate("document.documentElement.scrollWidth") };
  for (const { file, text, beam, click, evaluate } of answer.ready.error ? [] : steps) {
    await page.evaluate("window.rescalenet.result = null; document.getElementById('error').hidden = true");
    if (evaluate) {
      answer.steps.push({ result: await page.evaluate(evaluate) });
      continue;
    }
    if (file) await page.setInputFiles("#file", file);
    if (beam) await page.selectOption("#beam", String(beam));
    if (text !== undefined) {
      await page.fill("#text", text);
      await page.click("#translate");
    }
    if (click) await page.click(click);
    // a function: the page's policy forbids the evaluation of strings
    const done = () => window.rescalenet.result || !document.getElementById("error").hidden;
    await page.waitForFunction(done, null, { timeout: 120000 });
    answer.steps.push({ result: await page.evaluate("window.rescalenet.result"), error: await shown() });
  }
} finally {
  await context.close();
  fs.rmSync(profile, { recursive: true, force: true });
}
fs.writeSync(1, JSON.stringify(answer));
