// From pictures to the input of a net: the transforms of zoo/transforms.py.

import { resize } from "./resize.js";

const LARGEST = 2 ** 27; // pixels of a picture after the resize

/** Round as Python does: halves to the even neighbour. */
function roundHalfEven(x) {
  const below = Math.floor(x);
  return x - below === 0.5 ? below + (below % 2) : Math.round(x);
}

/** Return width and height after the resize: of the short side, or of both (`squash`). */
export function resizedSize({ width, height }, side, squash = false) {
  if (squash) return [side, side];
  const [short, long] = width <= height ? [width, height] : [height, width];
  const longer = Math.trunc((side * long) / short);
  return width <= height ? [side, longer] : [longer, side];
}

/** Return a picture as {data, width, height, channels}, resized and cropped to the square that enters the net. */
export function toSquare(picture, { size, resize: side, interpolation, crop_mode: mode }) {
  const [width, height] = resizedSize(picture, side, mode === "squash");
  if (width * height > LARGEST) {
    throw new Error(`The picture is too long and narrow (${picture.width} x ${picture.height} pixels); crop it first.`);
  }
  const part = [roundHalfEven((width - size) / 2), roundHalfEven((height - size) / 2), size, size];
  return resize(picture, [width, height], interpolation ?? "bilinear", part);
}

/** Return an RGB picture with the channels of the net: three, or one of luminance. */
export function withChannels(picture, channels) {
  if (channels === 3) return picture;
  const { data, width, height } = picture;
  const grey = new Uint8Array(width * height);
  for (let i = 0; i < grey.length; i++) {
    grey[i] = (data[3 * i] * 19595 + data[3 * i + 1] * 38470 + data[3 * i + 2] * 7471 + 0x8000) >> 16; // as Pillow
  }
  return { data: grey, width, height, channels: 1 };
}

/**
 * Write pixels into the input of a net in 0..1, channels first, and standardise them.
 * @param {Float32Array} out input of the net
 * @param {number} start place of the first channel
 * @param {number} stride number of values from one channel to the next
 * @param {object} picture picture
 * @param {{mean: number[], std: number[], channel_order?: string} | null} statistics null: the graph standardises
 */
export function fill(out, start, stride, { data, width, height, channels }, statistics) {
  const unit = Math.fround(1 / 255);
  for (let c = 0; c < channels; c++) {
    const from = statistics?.channel_order === "BGR" ? channels - 1 - c : c;
    const mean = Math.fround(statistics?.mean[c] ?? 0);
    const std = Math.fround(statistics?.std[c] ?? 1);
    const place = start + c * stride;
    for (let i = 0; i < width * height; i++) {
      const value = Math.fround(data[i * channels + from] * unit);
      out[place + i] = statistics ? Math.fround(value - mean) / std : value;
    }
  }
}

/**
 * Return the input of a classifier: (1, C, size, size).
 * @param {object} picture RGB picture
 * @param {{input: object, statistics: object | null}} manifest manifest
 */
export function toInput(picture, { input, statistics }) {
  const channels = input.mean.length;
  const square = toSquare(withChannels(picture, channels), input);
  const area = input.size ** 2;
  const data = new Float32Array(channels * area);
  fill(data, 0, area, square, statistics);
  return { type: "float32", data, dims: [1, channels, input.size, input.size] };
}

/** Return the input of a video net: (1, 3, T, size, size). */
export function toClip(frames, { input, statistics }) {
  const area = input.size ** 2;
  const count = frames.length;
  const data = new Float32Array(3 * count * area);
  frames.forEach((frame, t) => {
    fill(data, t * area, count * area, toSquare(frame, input), statistics);
  });
  return { type: "float32", data, dims: [1, 3, count, input.size, input.size] };
}

/** Return the input of a detector: (3, H, W) in 0..1. */
export function toImage(picture) {
  const { width, height } = picture;
  const data = new Float32Array(3 * width * height);
  fill(data, 0, width * height, picture, null);
  return { type: "float32", data, dims: [3, height, width] };
}
