// Beam search with the encoder and the decoder's step, one sentence at a time: zoo/export/translate.py.

const PAD = 1;
const EOS = 2;
const MAX_RATIO = 1.5;
const MAX_EXTRA = 20;

/** Return the places of the largest values of a row, best first; of equals the first. */
function largest(values, start, length, count) {
  const places = [];
  for (let i = 0; i < length; i++) {
    const value = values[start + i];
    if (places.length === count && !(value > values[start + places[count - 1]])) continue;
    let at = places.length;
    while (at > 0 && value > values[start + places[at - 1]]) at--;
    places.splice(at, 0, i);
    if (places.length > count) places.pop();
  }
  return places;
}

function logSumExp(values, start, length) {
  let most = -Infinity;
  for (let i = 0; i < length; i++) most = Math.max(most, values[start + i]);
  let total = 0;
  for (let i = 0; i < length; i++) total += Math.exp(values[start + i] - most);
  return Math.fround(Math.log(total) + most);
}

/** Return the rows of a tensor with these numbers. */
function rowsOf({ type, data, dims }, numbers) {
  const size = dims.slice(1).reduce((a, b) => a * b, 1);
  const out = new data.constructor(numbers.length * size);
  numbers.forEach((row, i) => out.set(data.subarray(row * size, (row + 1) * size), i * size));
  return { type, data: out, dims: [numbers.length, ...dims.slice(1)] };
}

function mapped(tensors, change) {
  return Object.fromEntries(Object.entries(tensors).map(([name, tensor]) => [name, change(tensor)]));
}

export class Search {
  /**
   * @param {object} manifest manifest of the export
   * @param {(name: string, feeds: object, outputs: string[]) => Promise<{outputs: object}>} run function that runs a
   *   graph
   */
  constructor(manifest, run) {
    this.run = run;
    this.longest = manifest.content.max_length;
    [this.encoder, this.decoder] = ["encoder", "decoder"].map((name) =>
      manifest.graphs.find((graph) => graph.name === name),
    );
  }

  /**
   * Return the hypotheses of a sentence, best first.
   * @param {number[]} ids tokens of the source, with </s> at the end
   * @param {{beam: number, lengthPenalty?: number}} settings beam 1 is greedy search
   * @returns {Promise<{tokens: number[], score: number}[]>}
   */
  async hypotheses(ids, { beam, lengthPenalty = 1 }) {
    if (ids.length > this.longest) {
      throw new Error(`A sentence of ${ids.length} tokens: the network takes ${this.longest}. Cut it into parts.`);
    }
    const limit = Math.max(Math.min(Math.trunc(ids.length * MAX_RATIO + MAX_EXTRA), this.longest - 1), 1);
    const source = { type: "int64", data: BigInt64Array.from(ids, BigInt), dims: [1, ids.length] };
    const names = (graph) => graph.outputs.map((output) => output.name);
    let memory = (await this.run("encoder", { source }, names(this.encoder))).outputs;
    memory.source = source;
    let cache = {};
    for (const { name, axes } of this.decoder.inputs) {
      if (name.startsWith("past_")) {
        cache[name] = { type: "float32", data: new Float32Array(0), dims: [1, 0, ...axes.slice(2)] };
      }
    }
    const finished = [];
    let words = [[]]; // tokens of each row
    let last = [EOS];
    let scores = [0];
    for (let length = 0; length <= limit; length++) {
      // 1. the logits of the next token, without tokens that may not follow
      const rows = words.length;
      if (memory.source.dims[0] !== rows) memory = mapped(memory, (tensor) => rowsOf(tensor, Array(rows).fill(0)));
      const token = { type: "int64", data: BigInt64Array.from(last, BigInt), dims: [rows, 1] };
      const { logits, ...present } = (
        await this.run("decoder", { ...memory, token, ...cache }, names(this.decoder))
      ).outputs;
      const { data } = logits;
      const size = logits.dims[1];
      // 2. the best candidates of each row, then of the sentence
      const candidates = [];
      for (let row = 0; row < rows; row++) {
        const start = row * size;
        const total = logSumExp(data, start, size);
        const ends = data[start + EOS];
        data[start + PAD] = -Infinity;
        if (length === limit) data.fill(-Infinity, start, start + size);
        data[start + EOS] = length === 0 && limit > 0 ? -Infinity : ends;
        for (const word of largest(data, start, size, Math.min(2 * beam, size))) {
          candidates.push({ row, word, value: Math.fround(Math.fround(data[start + word] - total) + scores[row]) });
        }
      }
      candidates.sort((a, b) => (a.value === b.value ? 0 : b.value - a.value));
      candidates.length = Math.min(candidates.length, 2 * beam);
      // 3. those among the first `beam` that end, and the best others, which go on
      for (const { row, word, value } of candidates.slice(0, beam)) {
        if (word === EOS && Number.isFinite(value) && finished.length < beam) {
          finished.push({ tokens: words[row], score: Math.fround(value / Math.fround((length + 1) ** lengthPenalty)) });
        }
      }
      if (length === limit || finished.length === beam) break;
      const going = candidates.filter(({ word }) => word !== EOS).slice(0, beam);
      words = going.map(({ row, word }) => [...words[row], word]);
      last = going.map(({ word }) => word);
      scores = going.map(({ value }) => value);
      const parents = going.map(({ row }) => row);
      cache = Object.fromEntries(
        Object.entries(present).map(([name, tensor]) => [name.replace("present", "past"), rowsOf(tensor, parents)]),
      );
    }
    if (!finished.length) throw new Error("The network gives no finite scores for this sentence.");
    return finished.sort((a, b) => b.score - a.score);
  }
}
