// Classes of a video clip.

import { draw } from "./picture.js";
import { best, softmax } from "./scores.js";
import { toClip } from "./transform.js";
import { Video, clipTimes } from "./video.js";
import { classList, element, filePicker } from "./view.js";

export class Task {
  #video = null;

  constructor(manifest, graphs, place, onError) {
    Object.assign(this, { manifest, graphs, onError });
    this.count = element("select", { id: "clips" });
    for (const number of [1, 3, 10]) this.count.append(element("option", { value: number }, `${number}`));
    const row = element("div", { className: "row" }, element("label", { htmlFor: "clips" }, "Clips of the video"));
    row.append(this.count);
    row.hidden = manifest.input.interval === null; // a clip is spread over the whole video
    this.status = element("p", { className: "quiet" });
    this.status.setAttribute("role", "status");
    this.figure = element("figure");
    this.caption = element("figcaption");
    this.strip = element("div", { className: "strip" });
    this.classes = element("div", { id: "classes" });
    this.classes.setAttribute("aria-live", "polite");
    this.result = element("div", { className: "result beside", hidden: true }, this.figure, this.classes);
    const onFile = (file, name) => this.show(file, name);
    place.append(
      filePicker({ what: "a clip", accept: "video/*", example: "example.webm", onFile, onError }),
      row,
      this.status,
      this.result,
    );
  }

  facts() {
    const { classes, input } = this.manifest;
    const spread = input.interval === null ? "spread evenly over the video" : "of a part of the video";
    return `${classes.length} classes. The network sees ${input.frames} frames, ${spread}, of ${input.size} x ${input.size} pixels.`;
  }

  async show(file, name) {
    try {
      this.onError(null);
      window.rescalenet.result = await this.run(file, name);
    } catch (error) {
      this.onError(error);
    }
  }

  /** Classify a file, show and return {values of each clip, classes, times of the frames in seconds, milliseconds}. */
  async run(file, name) {
    const { graphs, classes } = this.manifest;
    const [{ name: graph, inputs, outputs }] = graphs;
    const values = [];
    const times = [];
    let milliseconds = 0;
    let frames = [];
    const video = await Video.open(file, name);
    try {
      const plan = clipTimes(this.manifest.input, video, Number(this.count.value));
      for (const [number, seconds] of plan.entries()) {
        frames = [];
        for (const [i, second] of seconds.entries()) {
          this.status.textContent = `Clip ${number + 1} of ${plan.length}: frame ${i + 1} of ${seconds.length}`;
          frames.push(await video.frameAt(second));
        }
        const feeds = { [inputs[0].name]: toClip(frames, this.manifest) };
        const answer = await this.graphs.run(graph, feeds, [outputs[0].name]);
        values.push(Array.from(answer.outputs[outputs[0].name].data));
        times.push(frames.map((frame) => frame.time));
        milliseconds += answer.milliseconds;
      }
    } catch (error) {
      video.close();
      throw error;
    } finally {
      this.status.textContent = "";
    }
    const scores = values.map((row) => (this.manifest.softmax ? row : softmax(row)));
    const mean = scores[0].map((_, i) => scores.reduce((sum, row) => sum + row[i], 0) / scores.length);
    const found = best(mean, classes);
    this.#showVideo(video, frames, name, milliseconds);
    this.classes.replaceChildren(classList(found));
    this.result.hidden = false;
    return { values, classes: found, times, milliseconds };
  }

  #showVideo(video, frames, name, milliseconds) {
    this.#video?.close();
    this.#video = video;
    video.element.controls = true;
    video.element.currentTime = video.first;
    const seconds = video.duration.toFixed(1);
    this.caption.textContent =
      `${name}, ${video.width} x ${video.height} pixels, ${seconds} s, ${Math.round(milliseconds)} ms. ` +
      "Frames that the network saw last:";
    this.strip.replaceChildren(
      ...frames.map((frame) => {
        const canvas = element("canvas");
        draw(canvas, frame);
        canvas.setAttribute("role", "img");
        canvas.setAttribute("aria-label", `frame at ${frame.time.toFixed(2)} s`);
        return canvas;
      }),
    );
    this.figure.replaceChildren(video.element, this.caption, this.strip);
  }
}
