// Frames of a video by time, decoded by the browser's <video> element, and the times of a clip's frames as
// tasks/video/sampling.py chooses them.

import { pixelsOf } from "./picture.js";

const EPSILON = 1e-4; // seconds; larger than the rounding errors of times
const PATIENCE = 1000; // milliseconds from the end of a seek to the frame that it leads to, at most

function event(target, names) {
  return new Promise((resolve) => {
    const done = (found) => {
      for (const name of names) target.removeEventListener(name, done);
      resolve(found.type);
    };
    for (const name of names) target.addEventListener(name, done);
  });
}

export class Video {
  /**
   * Open a video file.
   * @param {Blob} blob file
   * @param {string} name name of the file, for messages
   */
  static async open(blob, name) {
    if (typeof VideoFrame === "undefined") {
      throw new Error("This browser does not state the times of frames (VideoFrame); use a current one.");
    }
    const element = document.createElement("video");
    Object.assign(element, { muted: true, playsInline: true, preload: "auto", src: URL.createObjectURL(blob) });
    const unreadable = new Error(`${name}: not a video that this browser can read. Try MP4 (H.264) or WebM.`);
    if ((await event(element, ["loadeddata", "error"])) === "error" || !element.videoWidth) throw unreadable;
    const video = new Video(element);
    try {
      await video.#readTimes();
    } catch {
      throw unreadable;
    }
    return video;
  }

  constructor(element) {
    this.element = element;
    [this.width, this.height] = [element.videoWidth, element.videoHeight];
    this.fps = Infinity; // not known yet
  }

  close() {
    URL.revokeObjectURL(this.element.src);
  }

  /** Return the time of the frame that is shown, in seconds on the file's clock; null while there is none. */
  #shownTime() {
    try {
      const frame = new VideoFrame(this.element);
      const time = frame.timestamp / 1e6;
      frame.close();
      return time;
    } catch {
      return null;
    }
  }

  /** Seek, and return the time of the frame that is shown then. */
  async seek(seconds) {
    const before = this.#shownTime();
    const arrived = event(this.element, ["seeked", "error"]);
    this.element.currentTime = seconds;
    if ((await arrived) === "error") throw new Error("The video cannot be decoded.");
    // busy browsers announce the end of a seek before they show the frame; none follows if it is the same frame
    const end = performance.now() + PATIENCE;
    let time = this.#shownTime();
    const isOld = () => time === null || (time === before && Math.abs(seconds - time) > 1 / this.fps);
    while (isOld() && performance.now() < end) {
      await new Promise((resolve) => setTimeout(resolve, 10));
      time = this.#shownTime();
    }
    if (time === null) throw new Error("The video cannot be decoded.");
    return time;
  }

  /** Find the first and the last frame; the last counts as long as the step before it. */
  async #readTimes() {
    if (!Number.isFinite(this.element.duration)) await this.seek(1e7); // recordings state no duration
    this.first = await this.seek(0);
    this.last = await this.seek(this.element.duration);
    const before = this.last > this.first ? await this.seek(this.last - 1e-3) : this.first;
    this.fps = this.last > before ? 1 / (this.last - before) : 1;
    this.duration = this.last - this.first + 1 / this.fps;
  }

  /** Return the frame shown some seconds after the first, with its time after the first frame. */
  async frameAt(seconds) {
    const time = await this.seek(this.first + Math.min(seconds, this.last - this.first) + EPSILON);
    return { ...pixelsOf(this.element, this.width, this.height), time: time - this.first };
  }
}

/**
 * Return the seconds after the first frame of each frame of clips that are spread over a video; one clip is the middle.
 * @param {{frames: number, interval: number | null, fps: number | null}} layout input of the net
 * @param {{duration: number, fps: number}} video video
 * @param {number} clips number of clips
 * @returns {number[][]}
 */
export function clipTimes(layout, video, clips = 1) {
  const numbers = [...Array(layout.frames).keys()];
  const places = [...Array(clips).keys()];
  if (layout.interval === null) {
    // the video in as many parts as the clip has frames, one frame of each
    const part = video.duration / layout.frames;
    return places.map((place) => numbers.map((i) => (i + (place + 0.5) / clips) * part));
  }
  const step = layout.interval / (layout.fps ?? video.fps);
  const span = step * (layout.frames - 1) + 1 / video.fps;
  const range = Math.max(0, video.duration - span);
  return places.map((place) => {
    const start = (clips > 1 ? place / (clips - 1) : 0.5) * range;
    return numbers.map((i) => start + i * step);
  });
}
