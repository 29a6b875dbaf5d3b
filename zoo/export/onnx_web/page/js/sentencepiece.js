// Models of sentencepiece, of the kinds bpe and unigram: text to token ids and back, equal to the library's.
//
// Kudo and Richardson 2018, "SentencePiece"; the format is sentencepiece_model.proto. Models with user-defined or unused
// pieces or with pieces of bytes are refused by the export (zoo/export/onnx_web/contents.py).

const NORMAL = 1;
const UNKNOWN = 2;
const BPE = 2;
const SPACE = "\u2581"; // stands for a blank
const UNKNOWN_PENALTY = 10;
const UNKNOWN_SURFACE = " \u2047 ";
const MOST_MATCHES = 32; // prefixes of a text that the normaliser looks at

const toText = (bytes) => new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes);

/** Yield the fields of a message of protocol buffers as [number, value]: a number, or bytes. */
function* fields(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let place = 0;
  const varint = () => {
    let value = 0;
    for (let shift = 0; ; shift += 7) {
      const byte = bytes[place++];
      value += (byte & 127) * 2 ** shift;
      if (byte < 128) return value;
    }
  };
  while (place < bytes.length) {
    const key = varint();
    const number = key >>> 3;
    switch (key & 7) {
      case 0:
        yield [number, varint()];
        break;
      case 1:
        place += 8;
        break;
      case 2: {
        const length = varint();
        yield [number, bytes.subarray(place, place + length)];
        place += length;
        break;
      }
      case 5:
        yield [number, view.getFloat32(place, true)];
        place += 4;
        break;
      default:
        throw new Error("The vocabulary is damaged; export the net again.");
    }
  }
}

/** Rules that replace prefixes of a text: a double-array trie of UTF-8 (Darts) and the texts it leads to. */
class Rules {
  constructor(bytes) {
    const copy = new Uint8Array(bytes); // that begins at a multiple of 4
    const size = new DataView(copy.buffer).getUint32(0, true);
    this.units = new Uint32Array(copy.buffer.slice(4, 4 + size));
    this.texts = copy.subarray(4 + size);
  }

  /** Return [length, replacement] of the longest prefix from a place on that has a rule; null if none has. */
  longest(bytes, start) {
    const offset = (unit) => (unit >>> 10) << ((unit & 0x200) >>> 6);
    let found = null;
    let matches = 0;
    let node = offset(this.units[0]);
    for (let i = start; i < bytes.length && matches < MOST_MATCHES; i++) {
      node ^= bytes[i];
      const unit = this.units[node];
      if (unit === undefined || ((unit & 0x800000ff) >>> 0) !== bytes[i]) break;
      node ^= offset(unit);
      if (unit & 0x100) {
        found = [i + 1 - start, this.units[node] & 0x7fffffff];
        matches++;
      }
    }
    if (!found) return null;
    const [length, begin] = found;
    return [length, this.texts.subarray(begin, this.texts.indexOf(0, begin))];
  }
}

export class Vocabulary {
  /** @param {Uint8Array} model serialised model */
  constructor(model) {
    this.pieces = []; // [text, score, type]
    let normalizer = new Uint8Array();
    let kind = 1; // unigram
    for (const [number, value] of fields(model)) {
      if (number === 1) {
        const piece = ["", 0, NORMAL];
        for (const [field, content] of fields(value)) piece[field - 1] = field === 1 ? toText(content) : content;
        this.pieces.push(piece);
      } else if (number === 2) {
        for (const [field, content] of fields(value)) if (field === 3) kind = content;
      } else if (number === 3) {
        normalizer = value;
      }
    }
    this.isBpe = kind === BPE;
    // as in the proto file
    Object.assign(this, { rules: null, dummyPrefix: true, removeExtra: true, escape: true });
    for (const [field, content] of fields(normalizer)) {
      if (field === 2 && content.length) this.rules = new Rules(content);
      else if (field === 3) this.dummyPrefix = Boolean(content);
      else if (field === 4) this.removeExtra = Boolean(content);
      else if (field === 5) this.escape = Boolean(content);
    }
    this.unknown = this.pieces.findIndex(([, , type]) => type === UNKNOWN);
    this.ids = new Map();
    this.longest = 0; // characters of a piece
    let least = Infinity;
    for (const [id, [text, score, type]] of this.pieces.entries()) {
      if (type !== NORMAL) continue;
      this.ids.set(text, id);
      this.longest = Math.max(this.longest, [...text].length);
      least = Math.min(least, score);
    }
    this.unknownScore = Math.fround(least - UNKNOWN_PENALTY);
  }

  /** Return the ids of a text. */
  encode(text) {
    const characters = [...this.normalize(text)];
    const pieces = this.isBpe ? this.#merged(characters) : this.#likeliest(characters);
    const ids = [];
    for (const piece of pieces) {
      const id = this.ids.get(piece) ?? this.unknown;
      if (id !== this.unknown || ids.at(-1) !== this.unknown) ids.push(id); // neighbours that are unknown are one
    }
    return ids;
  }

  /** Return the text of ids. */
  decode(ids) {
    let out = "";
    let atBegin = true; // the blank there stands for none
    for (const id of ids) {
      const [text, , type] = this.pieces[id];
      if (type === UNKNOWN) {
        out += UNKNOWN_SURFACE;
        atBegin = false;
      } else if (type === NORMAL) {
        const strip = atBegin && (this.dummyPrefix || this.removeExtra) && text.startsWith(SPACE);
        out += (strip ? text.slice(1) : text).replaceAll(SPACE, " ");
        if (strip ? !this.removeExtra || text.length > 1 : text.length) atBegin = false;
      }
    }
    return out;
  }

  /** Return a text as the model reads it: replaced by the rules, with single blanks, which are visible. */
  normalize(text) {
    const bytes = new TextEncoder().encode(text);
    const space = this.escape ? SPACE : " ";
    let out = "";
    let afterSpace = this.removeExtra; // as if a blank came before
    for (let place = 0; place < bytes.length; ) {
      const [length, replacement] = this.rules?.longest(bytes, place) ?? character(bytes, place);
      place += length;
      let part = toText(replacement);
      if (afterSpace) part = part.replace(/^ +/, "");
      if (part) {
        out += part;
        afterSpace = part.endsWith(" ");
      }
      if (!this.removeExtra) afterSpace = false;
    }
    if (!out) return "";
    out = (this.dummyPrefix ? space : "") + out.replaceAll(" ", space);
    if (this.removeExtra) while (out.endsWith(space)) out = out.slice(0, -1);
    return out;
  }

  /** Byte pair encoding: merge the neighbours whose piece has the highest score, the first of equals, and again. */
  #merged(symbols) {
    const score = (i) => {
      const id = i + 1 < symbols.length ? this.ids.get(symbols[i] + symbols[i + 1]) : undefined;
      return id === undefined ? -Infinity : this.pieces[id][1];
    };
    const scores = symbols.map((_, i) => score(i));
    for (;;) {
      let at = -1;
      for (let i = 0; i < scores.length; i++) if (scores[i] > (at < 0 ? -Infinity : scores[at])) at = i;
      if (at < 0) return symbols;
      symbols.splice(at, 2, symbols[at] + symbols[at + 1]);
      scores.splice(at, 1);
      scores[at] = score(at);
      if (at > 0) scores[at - 1] = score(at - 1);
    }
  }

  /** Unigram model: the pieces whose sum of scores is the highest (Viterbi), in 32 bits as the library adds them. */
  #likeliest(characters) {
    const count = characters.length;
    const best = new Float32Array(count + 1).fill(-Infinity);
    const begins = new Int32Array(count + 1).fill(-1);
    best[0] = 0;
    const offer = (begin, end, score) => {
      const sum = Math.fround(best[begin] + score);
      if (begins[end] < 0 || sum > best[end]) [best[end], begins[end]] = [sum, begin];
    };
    for (let begin = 0; begin < count; begin++) {
      let piece = "";
      let single = false;
      for (let end = begin + 1; end <= Math.min(count, begin + this.longest); end++) {
        piece += characters[end - 1];
        const id = this.ids.get(piece);
        if (id === undefined) continue;
        offer(begin, end, this.pieces[id][1]);
        single ||= end === begin + 1;
      }
      if (!single) offer(begin, begin + 1, this.unknownScore);
    }
    const pieces = [];
    for (let end = count; end > 0; end = begins[end]) pieces.push(characters.slice(begins[end], end).join(""));
    return pieces.reverse();
  }
}

/** Return [length, bytes] of the character of UTF-8 at a place. */
function character(bytes, place) {
  const first = bytes[place];
  const length = first < 0x80 ? 1 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
  return [length, bytes.subarray(place, place + length)];
}
