// What the page knows of the net: manifest.json, which the export has written.

const FORMAT = 1;
const KINDS = ["images", "clips", "image_lists", "text"];

/** Fetch the manifest and return what the page uses of it. */
export async function readManifest() {
  const answer = await fetch("manifest.json", { cache: "no-cache" });
  if (!answer.ok) throw new Error(`manifest.json: the server answered ${answer.status}; serve the whole folder.`);
  return parseManifest(await answer.json());
}

/**
 * @param {object} content manifest as JSON
 * @returns {{title: string, described: boolean, kind: string, classes: string[], input: object, statistics: object | null,
 *   softmax: boolean, graphs: {name: string, file: string, inputs: object[], outputs: object[]}[], content: object}}
 *   `statistics` are mean, std and channel_order of the input; null if the graph itself standardises
 */
export function parseManifest(content) {
  if (content.format !== FORMAT || content.target !== "onnx-web" || !KINDS.includes(content.kind)) {
    throw new Error("manifest.json: not that of a page of this version; export the net again.");
  }
  const input = content.input ?? {};
  const graphs = content.graphs.map((graph) => ({ ...graph, file: `${graph.name}.onnx` }));
  return {
    title: content.weights?.name ?? content.model ?? "A network without a name",
    // whether the input and what comes out are described, so that the page can run the net on a user's input
    described: Boolean(content.vocabularies) || Boolean(content.input && content.classes?.length),
    kind: content.kind,
    classes: content.classes ?? [],
    input,
    statistics: input.standardised_in_graph ? null : input,
    softmax: graphs[0].outputs[0].name === "probabilities",
    graphs,
    content,
  };
}
