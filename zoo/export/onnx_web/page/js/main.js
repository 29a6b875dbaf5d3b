// The page: loads the net, and shows what its task needs.
//
// window.rescalenet is for scripts: {ready: Promise, manifest, run(input), result}. `run` takes a Blob or a sentence and
// returns what the page shows; `result` is the last.

import { Graphs } from "./graphs.js";
import { readManifest } from "./manifest.js";
import { bytes, element } from "./view.js";

const TASKS = {
  images: { module: "./classifier.js", kind: "Classifier of pictures" },
  clips: { module: "./clips.js", kind: "Classifier of video clips" },
  image_lists: { module: "./detector.js", kind: "Detector of objects" },
  text: { module: "./translator.js", kind: "Translator" },
};
const OTHER = { module: "./ports.js", kind: "Network" };
const byId = (id) => document.getElementById(id);

function showError(error) {
  const place = byId("error");
  place.textContent = error ? error.message : "";
  place.hidden = !error;
}

/** Show the progress of the files that are fetched. */
function progressOf() {
  const files = new Map();
  return ({ name, loaded, total }) => {
    files.set(name, { loaded, total });
    const all = [...files.values()];
    const known = all.every((file) => file.total);
    const sum = (key) => all.reduce((count, file) => count + file[key], 0);
    byId("loading-text").textContent = known
      ? `Loading ${bytes(sum("loaded"))} of ${bytes(sum("total"))}`
      : `Loading ${bytes(sum("loaded"))}`;
    if (known) byId("loading-bar").value = sum("loaded") / sum("total");
    byId("loading-files").replaceChildren(
      ...[...files].map(([file, { loaded: some, total: size }]) => element("li", {}, `${file}: ${bytes(size || some)}`)),
    );
    return files;
  };
}

async function start() {
  const manifest = await readManifest();
  const task = manifest.described ? TASKS[manifest.kind] : OTHER;
  document.title = `${manifest.title} · RescaleNet`;
  const parts = manifest.title.split(/(?<=[._])/); // names break between words
  byId("title").replaceChildren(...parts.flatMap((part) => [part, element("wbr")]));
  byId("kind").textContent = task.kind;
  const graphs = new Graphs(progressOf());
  const [{ Task }] = await Promise.all([import(task.module), graphs.load(manifest.graphs)]);
  byId("loading-text").textContent = "Loaded";
  byId("loading").hidden = true;

  const shown = new Task(manifest, graphs, byId("work"), showError);
  await shown.prepare?.();
  byId("facts").textContent = shown.facts();
  const { versions } = manifest.content;
  byId("versions").textContent =
    `Made by rescalenet-zoo ${versions["rescalenet-zoo"]}, run by onnxruntime-web ${versions["onnxruntime-web"]} ` +
    `(WebAssembly). Loaded: ${[...byId("loading-files").children].map((item) => item.textContent).join(", ")}.`;
  byId("work").hidden = false;
  Object.assign(window.rescalenet, {
    manifest,
    graphs,
    run: async (input) => {
      window.rescalenet.result = await shown.run(input, input?.name ?? "input");
      return window.rescalenet.result;
    },
  });
}

window.rescalenet = { result: null };
window.rescalenet.ready = start().catch((error) => {
  byId("loading").hidden = true;
  showError(error);
  throw error;
});
