// Inputs and outputs of graphs that the page cannot feed: those of feature extractors, and of nets without a description.

import { element } from "./view.js";

const HEADS = ["Graph", "Input or output", "Shape", "Type"];

export class Task {
  constructor(manifest, graphs, place) {
    this.graphs = graphs;
    const row = (graph, { name, axes, dtype }) =>
      element("tr", {}, ...[graph.name, name, axes.join(" × "), dtype].map((text) => element("td", {}, text)));
    const rows = manifest.graphs.flatMap((graph) => [...graph.inputs, ...graph.outputs].map((port) => row(graph, port)));
    const head = element("tr", {}, ...HEADS.map((text) => element("th", { scope: "col" }, text)));
    place.append(
      element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows)),
      element("p", {}, "Scripts run it: window.rescalenet.graphs.run(graph, inputs, outputs), see js/graphs.js."),
    );
  }

  facts() {
    return "The export has no classes, or does not describe its input: this page only runs it for scripts.";
  }

  /** Run a graph: {graph, inputs, outputs}, in the form of `Graphs.run`. */
  run({ graph, inputs, outputs }) {
    return this.graphs.run(graph, inputs, outputs);
  }
}
