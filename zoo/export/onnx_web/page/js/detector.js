// Objects in a picture: boxes and masks, drawn over it.

import { decode, draw } from "./picture.js";
import { resize } from "./resize.js";
import { toImage } from "./transform.js";
import { element, filePicker, percent } from "./view.js";

const LARGEST = 1.5e6; // pixels of a picture: masks of larger ones do not fit into a browser's memory
const SHOWN = 0.5; // scores from here on are shown at first
const COLOURS = ["#e4572e", "#2a9d8f", "#3a6ee8", "#c2185b", "#8a5cd1", "#d08a00", "#1f8a3b", "#0097b2"];

export class Task {
  #found = null;

  constructor(manifest, graphs, place, onError) {
    Object.assign(this, { manifest, graphs, onError });
    this.picture = element("canvas");
    this.overlay = element("canvas");
    this.overlay.setAttribute("role", "img");
    this.caption = element("figcaption");
    this.threshold = element("input", { type: "range", id: "threshold", min: 0, max: 1, step: 0.01, value: SHOWN });
    this.number = element("output", { htmlFor: "threshold" });
    this.summary = element("div", { id: "objects" });
    this.summary.setAttribute("aria-live", "polite");
    this.status = element("p", { className: "quiet" });
    this.status.setAttribute("role", "status");
    const label = element("label", { htmlFor: "threshold" }, "Lowest score: ", this.number);
    const layers = element("div", { className: "layers" }, this.picture, this.overlay);
    this.result = element("div", { className: "result", hidden: true }, element("div", {}, label, this.threshold));
    this.result.append(element("figure", {}, layers, this.caption), this.summary);
    this.threshold.addEventListener("input", () => this.#showFound());
    const onFile = (file, name) => this.show(file, name);
    place.append(
      filePicker({ what: "a picture", accept: "image/*", example: "example.png", onFile, onError }),
      this.status,
      this.result,
    );
  }

  facts() {
    const { classes, input } = this.manifest;
    const names = classes.length > 5 ? `${classes.length} classes of objects` : `Objects: ${classes.join(", ")}`;
    return `${names}. Pictures are resized to ${input.min_size} pixels on their short side, at most ${input.max_size} on the long one.`;
  }

  async show(file, name) {
    try {
      this.onError(null);
      window.rescalenet.result = await this.run(file, name);
    } catch (error) {
      this.onError(error);
    } finally {
      this.status.textContent = "";
    }
  }

  /**
   * Find objects in a file, show and return them: {width, height, objects: [{label, score, box, area}], milliseconds}.
   * Boxes are x1, y1, x2, y2 in pixels of the picture that was searched; areas are pixels of masks, null without masks.
   */
  async run(file, name) {
    let picture = await decode(file, name);
    const size = `${picture.width} x ${picture.height} pixels`;
    picture = shrunk(picture);
    this.status.textContent = "Searching";
    const [{ name: graph, inputs, outputs }] = this.manifest.graphs;
    const names = outputs.map((output) => output.name);
    const answer = await this.graphs.run(graph, { [inputs[0].name]: toImage(picture) }, names);
    const { boxes, labels, scores, masks } = answer.outputs;
    const area = picture.width * picture.height;
    const objects = Array.from(scores.data, (score, i) => {
      const mask = masks ? masks.data.subarray(i * area, (i + 1) * area) : null;
      return {
        label: this.manifest.classes[Number(labels.data[i]) - 1],
        colour: COLOURS[(Number(labels.data[i]) - 1 + (this.manifest.classes.length > 1 ? 0 : i)) % COLOURS.length],
        score,
        box: Array.from(boxes.data.subarray(4 * i, 4 * i + 4)),
        mask,
      };
    });
    this.#found = { ...picture, objects };
    draw(this.picture, picture);
    const smaller = `${picture.width} x ${picture.height} pixels` === size ? "" : `, searched at ${picture.width} x ${picture.height}`;
    this.caption.textContent = `${name}, ${size}${smaller}, ${(answer.milliseconds / 1000).toFixed(1)} s`;
    this.#showFound();
    this.result.hidden = false;
    return {
      width: picture.width,
      height: picture.height,
      objects: objects.map(({ label, score, box, mask }) => ({
        label,
        score,
        box,
        area: mask && mask.reduce((count, probability) => count + (probability > 0.5), 0),
      })),
      milliseconds: answer.milliseconds,
    };
  }

  #showFound() {
    const threshold = Number(this.threshold.value);
    const objects = this.#found.objects.filter(({ score }) => score >= threshold);
    this.number.textContent = percent(threshold);
    drawObjects(this.overlay, this.#found, objects);
    const counts = new Map();
    for (const { label } of objects) counts.set(label, (counts.get(label) ?? 0) + 1);
    const lines = [...counts].sort((a, b) => b[1] - a[1]);
    this.overlay.setAttribute("aria-label", lines.map(([label, count]) => `${label}: ${count}`).join(", ") || "none");
    if (!objects.length) {
      const highest = Math.max(0, ...this.#found.objects.map(({ score }) => score));
      const reason = highest ? `the highest score is ${percent(highest)}` : "the network found none";
      this.summary.replaceChildren(element("p", {}, `No object has this score: ${reason}.`));
      return;
    }
    const rows = lines.map(([label, count]) =>
      element("tr", {}, element("td", {}, label), element("td", {}, `${count}`)),
    );
    const head = element("tr", {}, element("th", { scope: "col" }, "Object"), element("th", { scope: "col" }, "Number"));
    this.summary.replaceChildren(element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows)));
  }
}

/** Return a picture of at most LARGEST pixels. */
export function shrunk(picture) {
  const { width, height } = picture;
  if (width * height <= LARGEST) return picture;
  const scale = Math.sqrt(LARGEST / (width * height));
  return resize(picture, [Math.max(1, Math.floor(width * scale)), Math.max(1, Math.floor(height * scale))]);
}

/** Draw boxes, masks and labels, on a canvas with at least the pixels of the picture and about those of a screen. */
function drawObjects(canvas, { width, height }, objects) {
  const scale = Math.max(1, Math.round(1400 / Math.max(width, height)));
  canvas.width = width * scale;
  canvas.height = height * scale;
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  const masks = new OffscreenCanvas(width, height);
  const pixels = new ImageData(width, height);
  for (const { mask, colour } of objects) {
    if (!mask) continue;
    const rgb = [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));
    for (let i = 0; i < mask.length; i++) if (mask[i] > 0.5) pixels.data.set([...rgb, 110], 4 * i);
  }
  masks.getContext("2d").putImageData(pixels, 0, 0);
  context.drawImage(masks, 0, 0, canvas.width, canvas.height);
  const line = Math.max(1.5, canvas.width / 500);
  const letters = Math.max(12, canvas.width / 60);
  context.font = `600 ${letters}px system-ui, sans-serif`;
  context.lineWidth = line;
  for (const { box, colour, label, score } of objects) {
    const [x1, y1, x2, y2] = box.map((value) => value * scale);
    context.strokeStyle = colour;
    context.strokeRect(x1, y1, x2 - x1, y2 - y1);
    if (objects.length > 25) continue; // the labels of many objects hide them
    const text = `${label} ${Math.round(100 * score)}`;
    const y = y1 > 1.4 * letters ? y1 : y1 + 1.4 * letters;
    const length = context.measureText(text).width + letters / 2;
    const x = Math.max(0, Math.min(x1, canvas.width - length));
    context.fillStyle = colour;
    context.fillRect(x, y - 1.4 * letters, length, 1.4 * letters);
    context.fillStyle = "white";
    context.fillText(text, x + letters / 4, y - 0.35 * letters);
  }
}
