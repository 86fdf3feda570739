// tensor: arrays with a type and a shape, of the script's own or mapped from a stored file.
(function (native, hooks) {
  const { callBytes } = native;
  const { isView } = ArrayBuffer;
  // Longest header that is read: what a network file may have.
  const HEADER = 16 * 1024 * 1024;
  const KINDS = {
    __proto__: null,
    BOOL: Uint8Array, U8: Uint8Array, I8: Int8Array, U16: Uint16Array, I16: Int16Array,
    U32: Uint32Array, I32: Int32Array, U64: BigUint64Array, I64: BigInt64Array,
    F16: globalThis.Float16Array, F32: Float32Array, F64: Float64Array,
  };
  const { bitsOf } = hooks;
  // The small floats: bits of exponent and of fraction, and what the exponent is off by.
  const SMALL = {
    __proto__: null,
    F4: [2, 1, 1], F6_E2M3: [2, 3, 1], F6_E3M2: [3, 2, 3], F8_E5M2: [5, 2, 15], F8_E4M3: [4, 3, 7],
    F8_E4M3FNUZ: [4, 3, 8], F8_E5M2FNUZ: [5, 2, 16], F8_E8M0: [8, 0, 127],
  };

  const product = (shape) => shape.reduce((all, one) => all * one, 1);
  const checked = (shape) => {
    const plain = Array.from(shape, Number);
    if (plain.length > 8 || !plain.every((n) => Number.isSafeInteger(n) && n >= 0)
        || !Number.isSafeInteger(product(plain))) {
      throw new RangeError('a shape has at most 8 whole numbers');
    }
    return plain;
  };
  const stridesOf = (shape) => {
    const strides = new Array(shape.length);
    for (let at = shape.length - 1, step = 1; at >= 0; step *= shape[at], at -= 1) strides[at] = step;
    return strides;
  };
  // Bytes of so many elements; no whole number where the last byte is not full.
  const lengthOf = (dtype, shape) => product(shape) * bitsOf[dtype] / 8;
  // What these bits are in a small format.
  const decoded = (dtype, bits) => {
    const [exponents, fractions, bias] = SMALL[dtype];
    // The scale of blocks has neither sign nor zero.
    if (dtype === 'F8_E8M0') return bits === 0xff ? NaN : 2 ** (bits - bias);
    if (dtype.endsWith('FNUZ') ? bits === 0x80 : dtype === 'F8_E4M3' && (bits & 0x7f) === 0x7f) return NaN;
    const sign = bits >> exponents + fractions ? -1 : 1;
    const exponent = bits >> fractions & (1 << exponents) - 1;
    const fraction = (bits & (1 << fractions) - 1) / (1 << fractions);
    if (dtype === 'F8_E5M2' && exponent === 31) return fraction === 0 ? sign * Infinity : NaN;
    return exponent === 0 ? sign * fraction * 2 ** (1 - bias) : sign * (1 + fraction) * 2 ** (exponent - bias);
  };
  // All of a format, by their bits, once one is asked for.
  const tables = { __proto__: null };
  // Elements lie from the lowest bit of the first byte on.
  const unpacked = (dtype, bytes) => {
    const width = bitsOf[dtype];
    tables[dtype] ??= Float32Array.from({ length: 1 << width }, (_, bits) => decoded(dtype, bits));
    const table = tables[dtype];
    return Float32Array.from({ length: bytes.length * 8 / width }, (_, at) => {
      const byte = Math.floor(at * width / 8);
      return table[(bytes[byte] | bytes[byte + 1] << 8) >> at * width % 8 & (1 << width) - 1];
    });
  };
  // The upper halves of 32-bit floats.
  const widened = (bytes) => {
    const words = new Uint32Array(bytes.length / 2);
    for (let at = 0; at < words.length; at += 1) words[at] = bytes[2 * at] << 16 | bytes[2 * at + 1] << 24;
    return new Float32Array(words.buffer);
  };

  const secret = Symbol('internal');
  class Tensor {
    #bytes;
    constructor(key, bytes, dtype, shape, readonly, copied) {
      if (key !== secret) throw new TypeError('Illegal constructor');
      this.#bytes = bytes;
      for (const [name, value] of Object.entries({
        dtype, shape: Object.freeze(shape), strides: Object.freeze(stridesOf(shape)),
        byteLength: bytes.byteLength, readonly, copied,
      })) hooks.define(this, name, value);
      Object.freeze(this);
    }
    #held() {
      if (this.#bytes === undefined) throw hooks.runtimeError('E_DISPOSED', 'the tensor was disposed of');
      return this.#bytes;
    }
    data() {
      const bytes = this.#held();
      const Kind = KINDS[this.dtype] ?? Uint8Array;
      return new Kind(bytes.buffer, bytes.byteOffset, bytes.byteLength / Kind.BYTES_PER_ELEMENT);
    }
    toF32() {
      const { dtype } = this;
      const bytes = this.#held();
      if (KINDS[dtype] !== undefined) return Float32Array.from(this.data(), Number);
      if (dtype === 'BF16') return widened(bytes);
      if (dtype in SMALL) return unpacked(dtype, bytes);
      throw hooks.runtimeError('E_LIMIT', `no numbers are known of ${dtype}`);
    }
    // Rows `from` to `to` of the first dimension: a view, not a copy.
    slice(from = 0, to = this.shape[0]) {
      const bytes = this.#held();
      if (this.shape.length === 0) throw new RangeError('there are no rows');
      const [rows, ...rest] = this.shape;
      const clamp = (n) => Math.min(rows, Math.max(0, Math.trunc(n < 0 ? n + rows : n)));
      const [first, last] = [clamp(from), Math.max(clamp(from), clamp(to))];
      const row = rows === 0 ? 0 : bytes.byteLength / rows;
      if (!Number.isInteger(first * row) || !Number.isInteger(last * row)) {
        throw new RangeError(`a row of ${this.dtype} begins inside a byte here`);
      }
      const part = bytes.subarray(first * row, last * row);
      return new Tensor(secret, part, this.dtype, [last - first, ...rest], this.readonly, this.copied);
    }
    reshape(shape) {
      const bytes = this.#held();
      const asked = checked(shape);
      if (product(asked) !== product(this.shape)) throw new RangeError('another number of elements');
      return new Tensor(secret, bytes, this.dtype, asked, this.readonly, this.copied);
    }
    async toGPU() {
      if (hooks.gpuCreate === undefined) throw hooks.runtimeError('E_DENIED', 'the session may not use the GPU');
      return hooks.gpuCreate(this.dtype, [...this.shape], this.#held());
    }
    // Lets go of the bytes; other views of them stay.
    dispose() { this.#bytes = undefined; }
  }

  const invalid = (what) => new OpError('TENSOR_INVALID', what, { path: 'tensor/open' });
  class TensorFile {
    #bytes; #start; #entries; #names;
    constructor(key, answer, file) {
      if (key !== secret) throw new TypeError('Illegal constructor');
      const view = new DataView(file);
      const length = file.byteLength < 8 ? 0n : view.getBigUint64(0, true);
      if (length < 2n || length > BigInt(HEADER) || 8n + length > BigInt(file.byteLength)) throw invalid('no header');
      const start = 8 + Number(length);
      try {
        this.#entries = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(new Uint8Array(file, 8, start - 8)));
      } catch (error) {
        // Memory and time that are used up are no fault of the file's.
        if (!(error instanceof SyntaxError || error instanceof TypeError)) throw error;
        throw invalid('the header is no JSON');
      }
      this.#bytes = file;
      this.#start = start;
      this.#names = answer.tensors.map((tensor) => tensor.name);
      const { file: _, ...about } = answer;
      hooks.define(this, 'info', about);
      Object.freeze(this);
    }
    #held() {
      if (this.#bytes === undefined) throw hooks.runtimeError('E_DISPOSED', 'the file was closed');
      return this.#bytes;
    }
    names() { return [...this.#names]; }
    view(name) {
      const file = this.#held();
      const known = this.#names.includes(name) && Object.hasOwn(this.#entries, name);
      const entry = known ? this.#entries[name] : undefined;
      if (entry === undefined) throw hooks.runtimeError('E_NOTFOUND', `the file has no tensor ${JSON.stringify(name)}`);
      const { dtype, shape, data_offsets: [begin, end] = [] } = entry;
      const room = file.byteLength - this.#start;
      if (!(Number.isSafeInteger(begin) && Number.isSafeInteger(end) && 0 <= begin && begin <= end && end <= room)) {
        throw invalid('offsets outside of the file');
      }
      const sized = checked(shape);
      if (dtype in bitsOf && lengthOf(dtype, sized) !== end - begin) throw invalid('another length than its shape has');
      const at = this.#start + begin;
      const Kind = KINDS[dtype] ?? Uint8Array;
      const copied = at % Kind.BYTES_PER_ELEMENT !== 0;
      let bytes = new Uint8Array(file, at, end - begin);
      if (copied) bytes = bytes.slice();
      return new Tensor(secret, bytes, dtype, sized, !copied, copied);
    }
    close() { this.#bytes = undefined; }
  }

  const tensor = {
    // `{id}` or `{path}` of the store.
    open(ref) {
      return new Promise((resolve, reject) => {
        callBytes('tensor/open', { src: ref }, undefined, true, resolve, reject);
      }).then((answer) => new TensorFile(secret, answer, answer.file));
    },
    // A view of the array's own memory.
    from(data, shape = [data.length]) {
      if (!isView(data) || data instanceof DataView) throw new TypeError('no typed array');
      const dtype = hooks.dtypeOf(data);
      const asked = checked(shape);
      if (product(asked) !== data.length) throw new RangeError('another number of elements');
      return new Tensor(secret, hooks.bytesOf(data), dtype, asked, false, false);
    },
    alloc(dtype, shape) {
      if (!(dtype in bitsOf)) throw new RangeError(`there is no element type ${dtype} here`);
      const asked = checked(shape);
      const length = lengthOf(dtype, asked);
      if (!Number.isInteger(length)) throw new RangeError(`so many elements of ${dtype} are no whole bytes`);
      return new Tensor(secret, new Uint8Array(length), dtype, asked, false, false);
    },
  };
  hooks.define(globalThis, 'tensor', Object.freeze(tensor));
});
