// The graphs of the net, which a worker runs (worker.js).

/** Function from the inputs of the net's graphs to their outputs. */
export class Graphs {
  #worker;
  #waiting = new Map();
  #count = 0;

  /** @param {(progress: {name: string, loaded: number, total: number}) => void} onProgress */
  constructor(onProgress) {
    this.#worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
    this.#worker.onmessage = ({ data: { id, result, error, progress } }) => {
      if (progress) return onProgress(progress);
      const { resolve, reject } = this.#waiting.get(id);
      this.#waiting.delete(id);
      return error === undefined ? resolve(result) : reject(new Error(error));
    };
    this.#worker.onerror = (event) => {
      event.preventDefault();
      const error = new Error(`onnxruntime-web could not start (${event.message ?? "its script failed"}).`);
      for (const { reject } of this.#waiting.values()) reject(error);
      this.#waiting.clear();
    };
  }

  /** Fetch the runtime and the files of the graphs. */
  load(graphs) {
    return this.#send({ load: graphs.map(({ name, file }) => ({ name, url: new URL(file, document.baseURI).href })) });
  }

  /**
   * Run a graph.
   * @param {string} name name of the graph
   * @param {Object<string, {type: string, data: ArrayBufferView, dims: number[]}>} feeds inputs by name
   * @param {string[]} outputs names of the outputs that are read
   * @returns {Promise<{outputs: object, milliseconds: number}>} outputs by name, in the form of the inputs
   */
  run(name, feeds, outputs) {
    return this.#send({ run: name, feeds, outputs });
  }

  #send(message) {
    const id = this.#count++;
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject });
      this.#worker.postMessage({ id, ...message });
    });
  }
}
