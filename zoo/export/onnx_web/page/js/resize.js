// Resizing of 8-bit pictures as torchvision and Pillow do it: with antialiasing, in integers, so that the results are
// equal bit by bit.
//
// A picture is {data, width, height, channels}: bytes, row by row, channels last.

/** Triangle and Keys' cubic with a = -0.5, and how many source pixels they reach at scale 1. */
const FILTERS = {
  bilinear: { reach: 1, weight: (x) => Math.max(0, 1 - Math.abs(x)) },
  bicubic: {
    reach: 2,
    weight(x) {
      const a = -0.5;
      const d = Math.abs(x);
      if (d < 1) return ((a + 2) * d - (a + 3)) * d * d + 1;
      return d < 2 ? (((d - 5) * d + 8) * d - 4) * a : 0;
    },
  },
};

/** Return the picture's part (left, top, width, height). */
export function crop({ data, width, channels }, left, top, w, h) {
  const out = new Uint8Array(w * h * channels);
  for (let y = 0; y < h; y++) {
    const start = ((top + y) * width + left) * channels;
    out.set(data.subarray(start, start + w * channels), y * w * channels);
  }
  return { data: out, width: w, height: h, channels };
}

/**
 * Resize a picture and return a part of the result; only this part is computed.
 * @param {object} picture picture
 * @param {[number, number]} size width and height of the whole result
 * @param {string} interpolation bilinear, bicubic, nearest or nearest-exact
 * @param {[number, number, number, number]} part left, top, width and height of the part that is returned
 */
export function resize(picture, size, interpolation = "bilinear", part = [0, 0, ...size]) {
  const [left, top, width, height] = part;
  let result = picture;
  // columns first; where a length stays, nothing is computed, as in torch
  for (const [axis, before, after, first, count] of [
    ["x", picture.width, size[0], left, width],
    ["y", picture.height, size[1], top, height],
  ]) {
    const table =
      interpolation in FILTERS ? filtered(before, after, first, count, FILTERS[interpolation]) : null;
    if (before === after) {
      result =
        axis === "x"
          ? crop(result, first, 0, count, result.height)
          : crop(result, 0, first, result.width, count);
    } else {
      result = resample(result, axis, table ?? nearest(before, after, first, count, interpolation));
    }
  }
  return result;
}

/** Weights of the source pixels for `count` result pixels from `first` on, as integers of `bits` fractional bits. */
function filtered(before, after, first, count, { reach, weight }) {
  const scale = before / after;
  const stretch = Math.max(scale, 1);
  const support = reach * stretch;
  const rows = [];
  let largest = 0;
  for (let i = 0; i < after; i++) {
    const center = scale * (i + 0.5);
    const begin = Math.max(Math.trunc(center - support + 0.5), 0);
    const end = Math.min(Math.trunc(center + support + 0.5), before);
    const weights = [];
    for (let j = begin; j < end; j++) weights.push(weight((j - center + 0.5) * (1 / stretch)));
    const total = weights.reduce((sum, w) => sum + w, 0);
    for (let j = 0; j < weights.length; j++) {
      if (total !== 0) weights[j] /= total;
      largest = Math.max(largest, weights[j]);
    }
    rows.push({ begin, weights });
  }
  // the largest weight of all fits into 16 bits
  let bits = 0;
  while (bits < 22 && Math.trunc(0.5 + largest * 2 ** (bits + 1)) < 2 ** 15) bits++;
  const toInteger = (w) => Math.trunc((w < 0 ? -0.5 : 0.5) + w * 2 ** bits);
  return {
    bits,
    rows: rows.slice(first, first + count).map(({ begin, weights }) => ({ begin, weights: weights.map(toInteger) })),
  };
}

/** The same table for the nearest pixel. */
function nearest(before, after, first, count, interpolation) {
  const scale = Math.fround(before / after);
  const shift = interpolation === "nearest-exact" ? 0.5 : 0;
  const place = (i) => Math.min(Math.floor(Math.fround((i + shift) * scale)), before - 1);
  return { bits: 0, rows: Array.from({ length: count }, (_, i) => ({ begin: place(first + i), weights: [1] })) };
}

function resample({ data, width, height, channels }, axis, { bits, rows }) {
  const alongX = axis === "x";
  const [w, h] = alongX ? [rows.length, height] : [width, rows.length];
  const out = new Uint8ClampedArray(w * h * channels);
  const step = alongX ? channels : width * channels; // from one source pixel of a sum to the next
  const half = bits > 0 ? 2 ** (bits - 1) : 0;
  for (let y = 0; y < h; y++) {
    for (let x = 0; x < w; x++) {
      const { begin, weights } = rows[alongX ? x : y];
      const start = alongX ? (y * width + begin) * channels : (begin * width + x) * channels;
      for (let c = 0; c < channels; c++) {
        let sum = half;
        for (let j = 0, from = start + c; j < weights.length; j++, from += step) sum += weights[j] * data[from];
        out[(y * w + x) * channels + c] = sum >> bits;
      }
    }
  }
  return { data: out, width: w, height: h, channels };
}
