// Classes of a picture.

import { decode, draw } from "./picture.js";
import { best, softmax } from "./scores.js";
import { toInput } from "./transform.js";
import { classList, element, filePicker } from "./view.js";

export class Task {
  constructor(manifest, graphs, place, onError) {
    Object.assign(this, { manifest, graphs, onError });
    this.canvas = element("canvas");
    this.caption = element("figcaption");
    this.classes = element("div", { id: "classes" });
    this.classes.setAttribute("aria-live", "polite");
    this.result = element("div", { className: "result beside", hidden: true });
    this.result.append(element("figure", {}, this.canvas, this.caption), this.classes);
    const onFile = (file, name) => this.show(file, name);
    place.append(
      filePicker({ what: "a picture", accept: "image/*", example: "example.png", onFile, onError }),
      this.result,
    );
  }

  facts() {
    const { classes, input } = this.manifest;
    return (
      `${classes.length} classes. Pictures are resized to ${input.resize} pixels on their short side; the network ` +
      `sees the central ${input.size} x ${input.size}.`
    );
  }

  async show(file, name) {
    try {
      this.onError(null);
      window.rescalenet.result = await this.run(file, name);
    } catch (error) {
      this.onError(error);
    }
  }

  /** Classify a file, show and return {logits or probabilities as `values`, classes, milliseconds}. */
  async run(file, name) {
    const picture = await decode(file, name);
    const { graphs, classes } = this.manifest;
    const [{ name: graph, inputs, outputs }] = graphs;
    const feeds = { [inputs[0].name]: toInput(picture, this.manifest) };
    const answer = await this.graphs.run(graph, feeds, [outputs[0].name]);
    const values = Array.from(answer.outputs[outputs[0].name].data);
    const found = best(this.manifest.softmax ? values : softmax(values), classes);
    draw(this.canvas, picture);
    this.canvas.classList.toggle("small", Math.max(picture.width, picture.height) < 200);
    this.canvas.setAttribute("role", "img");
    this.canvas.setAttribute("aria-label", name);
    this.caption.textContent =
      `${name}, ${picture.width} x ${picture.height} pixels, ${Math.round(answer.milliseconds)} ms`;
    this.classes.replaceChildren(classList(found));
    this.result.hidden = false;
    return { values, classes: found, milliseconds: answer.milliseconds };
  }
}
