// Runs the graphs in onnxruntime-web, beside the page, which stays responsive.
//
// Messages: {id, load: [{name, url}]} and {id, run: name, feeds, outputs}; answers: {id, result}, {id, error} and
// {progress: {url, loaded, total}}.

import * as ort from "../onnxruntime/ort.wasm.bundle.min.js";

const BINARY = new URL("../onnxruntime/ort-wasm-simd-threaded.wasm", import.meta.url).href;
const sessions = new Map();

async function fetchBytes(url) {
  const name = url.split("/").pop();
  const answer = await fetch(url);
  if (!answer.ok) throw new Error(`${name}: the server answered ${answer.status}; serve the whole folder.`);
  const encoded = answer.headers.has("content-encoding"); // its length is that of the compressed file
  const total = encoded ? 0 : Number(answer.headers.get("content-length"));
  const parts = [];
  let loaded = 0;
  const reader = answer.body.getReader();
  for (let step = await reader.read(); !step.done; step = await reader.read()) {
    parts.push(step.value);
    loaded += step.value.length;
    postMessage({ progress: { name, loaded, total } });
  }
  postMessage({ progress: { name, loaded, total: loaded } });
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

async function load(graphs) {
  ort.env.wasm.numThreads = 1; // more need headers of the server, see "cross-origin isolation"
  const [binary, ...models] = await Promise.all([BINARY, ...graphs.map(({ url }) => url)].map(fetchBytes));
  ort.env.wasm.wasmBinary = binary;
  for (const [i, { name }] of graphs.entries()) {
    sessions.set(name, await ort.InferenceSession.create(models[i], { executionProviders: ["wasm"] }));
  }
}

async function run(name, feeds, outputs) {
  const tensors = {};
  for (const [key, { type, data, dims }] of Object.entries(feeds)) tensors[key] = new ort.Tensor(type, data, dims);
  const start = performance.now();
  const found = await sessions.get(name).run(tensors, outputs);
  const milliseconds = performance.now() - start;
  const result = {};
  for (const [key, { type, data, dims }] of Object.entries(found)) result[key] = { type, data, dims };
  return { outputs: result, milliseconds };
}

onmessage = async ({ data: { id, load: graphs, run: name, feeds, outputs } }) => {
  try {
    const result = graphs ? await load(graphs) : await run(name, feeds, outputs);
    const buffers = Object.values(result?.outputs ?? {}).map((output) => output.data.buffer);
    postMessage({ id, result }, [...new Set(buffers)]); // moved, not copied
  } catch (error) {
    postMessage({ id, error: String(error?.message ?? error) });
  }
};
