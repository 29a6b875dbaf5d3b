// Runs an ONNX file in onnxruntime-web (WASM) for zoo/export/onnx_web/node.py.
//
//   node run.mjs FOLDER_OF_ONNXRUNTIME MODEL.onnx
//
// A call is a line of JSON on standard input, {inputs: [{name, dtype, shape}], outputs: [name]}, and the bytes of the
// inputs in order. The answer is a line of JSON, [{dtype, shape}] or {error}, and the bytes of the outputs. The process
// ends with its input.
import fs from "node:fs";
import path from "node:path";
import { pathToFileURL } from "node:url";

const [folder, model] = process.argv.slice(2);
const TYPES = { float32: Float32Array, int64: BigInt64Array, int32: Int32Array, bool: Uint8Array };

async function* received() {
  // Yields calls as {call, bytes}.
  let buffer = Buffer.alloc(0);
  let call = null;
  for await (const chunk of process.stdin) {
    buffer = Buffer.concat([buffer, chunk]);
    for (;;) {
      if (call === null) {
        const end = buffer.indexOf(10);
        if (end < 0) break;
        call = JSON.parse(buffer.subarray(0, end).toString("utf8"));
        buffer = buffer.subarray(end + 1);
      }
      const length = call.inputs.reduce((sum, input) => sum + byteLength(input), 0);
      if (buffer.length < length) break;
      yield { call, bytes: buffer.subarray(0, length) };
      buffer = buffer.subarray(length);
      call = null;
    }
  }
}

function byteLength({ dtype, shape }) {
  return shape.reduce((product, size) => product * size, TYPES[dtype].BYTES_PER_ELEMENT);
}

function send(header, parts = []) {
  fs.writeSync(1, `${JSON.stringify(header)}\n`);
  for (const part of parts) {
    for (let start = 0; start < part.length; ) start += writeSome(part, start);
  }
}

function writeSome(part, start) {
  try {
    return fs.writeSync(1, part, start);
  } catch (error) {
    if (error.code === "EAGAIN") return 0; // the reader of the pipe is slower
    throw error;
  }
}

const ort = await import(pathToFileURL(path.join(folder, "ort.wasm.bundle.min.js")));
ort.env.wasm.numThreads = 1;
ort.env.wasm.wasmBinary = fs.readFileSync(path.join(folder, "ort-wasm-simd-threaded.wasm"));
let session = null;
for await (const { call, bytes } of received()) {
  try {
    session ??= await ort.InferenceSession.create(fs.readFileSync(model), { executionProviders: ["wasm"] });
    const feeds = {};
    let start = 0;
    for (const input of call.inputs) {
      const end = start + byteLength(input);
      const copy = Uint8Array.prototype.slice.call(bytes, start, end).buffer; // typed arrays begin at multiples of 8
      feeds[input.name] = new ort.Tensor(input.dtype, new TYPES[input.dtype](copy), input.shape);
      start = end;
    }
    const found = await session.run(feeds, call.outputs);
    const outputs = call.outputs.map((name) => found[name]);
    send(
      outputs.map((output) => ({ dtype: output.type, shape: output.dims })),
      outputs.map(({ data }) => new Uint8Array(data.buffer, data.byteOffset, data.byteLength)),
    );
  } catch (error) {
    send({ error: String(error?.message ?? error) });
  }
}
