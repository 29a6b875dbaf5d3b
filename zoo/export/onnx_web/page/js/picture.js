// Decoding of pictures by the browser.

const LONGEST = 16384; // pixels of a side that browsers draw

/**
 * Return the RGB pixels of a file: turned to its EXIF orientation, on white where it is transparent.
 * Colour profiles are ignored, as in training.
 */
export async function decode(blob, name) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none" });
  } catch {
    throw new Error(`${name}: not a picture that this browser can read. Try PNG, JPEG or WebP.`);
  }
  try {
    if (Math.max(bitmap.width, bitmap.height) > LONGEST) {
      throw new Error(`${name}: ${bitmap.width} x ${bitmap.height} pixels are too many; shrink it first.`);
    }
    return pixelsOf(bitmap, bitmap.width, bitmap.height);
  } finally {
    bitmap.close();
  }
}

/** Return the RGB pixels of what a canvas can draw, as {data, width, height, channels}. */
export function pixelsOf(source, width, height) {
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white";
  context.fillRect(0, 0, width, height);
  context.drawImage(source, 0, 0, width, height);
  const { data } = context.getImageData(0, 0, width, height);
  const out = new Uint8Array(width * height * 3);
  for (let i = 0, j = 0; j < out.length; i += 4, j += 3) {
    out[j] = data[i];
    out[j + 1] = data[i + 1];
    out[j + 2] = data[i + 2];
  }
  return { data: out, width, height, channels: 3 };
}

/** Draw RGB pixels onto a canvas of their size. */
export function draw(canvas, { data, width, height }) {
  canvas.width = width;
  canvas.height = height;
  const image = new ImageData(width, height);
  for (let i = 0, j = 0; j < data.length; i += 4, j += 3) {
    image.data.set([data[j], data[j + 1], data[j + 2], 255], i);
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}
