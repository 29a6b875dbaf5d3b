// Translations of sentences.

import { clean } from "./cleaning.js";
import { Search } from "./search.js";
import { Vocabulary } from "./sentencepiece.js";
import { element } from "./view.js";

const EOS = 2;
const MOST_LINES = 100;

async function fetched(name) {
  const answer = await fetch(name);
  if (!answer.ok) throw new Error(`${name}: the server answered ${answer.status}; serve the whole folder.`);
  return new Uint8Array(await answer.arrayBuffer());
}

/** Return a language by its English name, or as the net names it. */
function languageName(code) {
  try {
    return new Intl.DisplayNames("en", { type: "language" }).of(code);
  } catch {
    return code;
  }
}

export class Task {
  #example = 0;

  constructor(manifest, graphs, place, onError) {
    Object.assign(this, { manifest, graphs, onError });
    const { languages } = manifest.content;
    [this.source, this.target] = [languages.source, languages.target].map(languageName);
    this.text = element("textarea", { id: "text", lang: languages.source, rows: 3 });
    this.beam = element("select", { id: "beam" });
    for (const count of [1, 4, 8]) {
      this.beam.append(element("option", { value: count, selected: count === 4 }, count === 1 ? "1 (greedy)" : `${count}`));
    }
    this.button = element("button", { type: "button", className: "main", id: "translate" }, "Translate");
    const example = element("button", { type: "button", id: "example" }, "Try an example");
    this.status = element("p", { className: "quiet" });
    this.status.setAttribute("role", "status");
    this.result = element("div", { className: "result", hidden: true });
    this.result.setAttribute("aria-live", "polite");
    this.button.addEventListener("click", () => this.show());
    this.text.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.show();
    });
    example.addEventListener("click", () => {
      this.text.value = this.examples[this.#example++ % this.examples.length];
      this.show();
    });
    const row = element("div", { className: "row" }, this.button, example);
    row.append(element("label", { htmlFor: "beam" }, "Beam"), this.beam);
    const label = element("label", { htmlFor: "text" }, `${this.source}, a sentence on each line`);
    place.append(label, this.text, row, this.status, this.result);
  }

  /** Fetch the vocabularies and the examples. */
  async prepare() {
    const { vocabularies } = this.manifest.content;
    const [source, target, examples] = await Promise.all(
      [vocabularies.source, vocabularies.target, "example.txt"].map(fetched),
    );
    this.vocabularies = { source: new Vocabulary(source), target: new Vocabulary(target) };
    this.examples = new TextDecoder().decode(examples).split("\n").filter(Boolean);
    this.search = new Search(this.manifest, (...call) => this.graphs.run(...call));
  }

  facts() {
    const { target } = this.vocabularies;
    return `${this.source} to ${this.target}, ${target.pieces.length} word pieces, sentences of at most ${this.manifest.content.max_length - 1} pieces.`;
  }

  async show() {
    if (this.button.disabled) return;
    this.button.disabled = true;
    try {
      this.onError(null);
      window.rescalenet.result = await this.run(this.text.value);
    } catch (error) {
      this.onError(error);
    } finally {
      this.button.disabled = false;
      this.status.textContent = "";
    }
  }

  /** Translate text, show and return {lines: [{ids, hypotheses: [{tokens, score, text}]}], milliseconds}. */
  async run(text) {
    const given = text.split("\n").map(clean);
    if (!given.some(Boolean)) throw new Error(`Write a sentence in ${this.source} first.`);
    if (given.length > MOST_LINES) throw new Error(`${given.length} lines: at most ${MOST_LINES} at once.`);
    const start = performance.now();
    const beam = Number(this.beam.value);
    const lines = [];
    for (const [number, line] of given.entries()) {
      this.status.textContent = given.length > 1 ? `Line ${number + 1} of ${given.length}` : "Translating";
      const ids = this.vocabularies.source.encode(line);
      const found = ids.length ? await this.search.hypotheses([...ids, EOS], { beam }) : [];
      const hypotheses = found.map(({ tokens, score }) => ({
        tokens,
        score,
        text: this.vocabularies.target.decode(tokens),
      }));
      lines.push({ ids, hypotheses });
    }
    const milliseconds = performance.now() - start;
    this.#showLines(lines, milliseconds);
    return { lines, milliseconds };
  }

  #showLines(lines, milliseconds) {
    const { languages, longest } = this.manifest.content;
    const best = lines.map(({ hypotheses }) => element("div", {}, hypotheses[0]?.text || "\u00a0"));
    const heading = element("h2", {}, this.target);
    this.result.replaceChildren(heading, element("div", { className: "translation", lang: languages.target }, ...best));
    const notes = [`${(milliseconds / 1000).toFixed(1)} s`];
    const tooLong = lines.filter(({ ids }) => longest && ids.length > longest).length;
    if (tooLong) notes.push(`${tooLong} longer than the sentences of its training: expect errors, or cut at full stops`);
    this.result.append(element("p", { className: "quiet" }, notes.join("; ")));
    if (lines.length === 1 && lines[0].hypotheses.length > 1) {
      const rows = lines[0].hypotheses.map(({ text, score }) =>
        element("tr", {}, element("td", {}, text), element("td", { className: "number" }, score.toFixed(3))),
      );
      const head = element("tr", {}, element("th", { scope: "col" }, "Hypothesis"));
      head.append(element("th", { scope: "col" }, "Score"));
      this.result.append(element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows)));
    }
    this.result.hidden = false;
  }
}
