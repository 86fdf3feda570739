// gpu: shaders on the node's GPU, by its operations. What a buffer holds lies in another process; a
// handle is all there is of it here.
(function (native, hooks) {
  const { callBytes, call } = native;
  // Bytes of one tensor/write: what fits a frame, with room for what else is in it.
  const PART = 512 * 1024;
  // Bytes of one tensor/read: what the operation gives at most.
  const READ = 16 * 1024 * 1024;

  const ask = (path, input, bytes) => new Promise((resolve, reject) => {
    if (bytes === undefined) call(path, input, {}, resolve, reject);
    else callBytes(path, input, bytes, false, resolve, reject);
  });

  const secret = Symbol('internal');
  class GpuTensor {
    #handle;
    constructor(key, handle, dtype, shape) {
      if (key !== secret) throw new TypeError('Illegal constructor');
      this.#handle = handle;
      hooks.define(this, 'dtype', dtype);
      hooks.define(this, 'shape', Object.freeze([...shape]));
      Object.freeze(this);
    }
    get handle() {
      if (this.#handle === undefined) throw hooks.runtimeError('E_DISPOSED', 'the tensor was disposed of');
      return this.#handle;
    }
    data() { throw new TypeError('what lies on the GPU is read by read()'); }
    async read(rows = undefined) {
      const { handle, dtype, shape: [count, ...inner] } = this;
      const part = async (asked) => (await ask('tensor/read', { handle, rows: asked })).bytes;
      const row = inner.reduce((all, one) => all * one, hooks.bitsOf[dtype] / 8);
      const [from, to] = rows ?? [0, count];
      const length = (to - from) * row;
      // In one piece, or for the operation to refuse.
      if (!(length > READ && row <= READ && from >= 0 && to <= count)) return part(rows);
      const whole = new Uint8Array(length);
      const step = Math.floor(READ / row);
      for (let at = from; at < to; at += step) {
        whole.set(new Uint8Array(await part([at, Math.min(to, at + step)])), (at - from) * row);
      }
      return whole.buffer;
    }
    async write(data, rows = undefined) {
      const bytes = hooks.bytesOf(data);
      const input = { handle: this.handle, bytes: { $bin: [0, bytes.length] } };
      if (rows !== undefined) input.rows = rows;
      await ask('tensor/write', input, bytes);
    }
    async dispose() {
      const handle = this.#handle;
      this.#handle = undefined;
      if (handle !== undefined) await ask('tensor/drop', { handle });
    }
  }

  hooks.gpuCreate = async (dtype, shape, bytes) => {
    const { handle } = await ask('tensor/create', { dtype, shape });
    const made = new GpuTensor(secret, handle, dtype, shape);
    if (bytes !== undefined && bytes.length > 0) {
      if (bytes.length <= PART || shape.length === 0) await made.write(bytes);
      else {
        const row = bytes.length / shape[0];
        const step = Math.max(1, Math.floor(PART / row));
        for (let at = 0; at < shape[0]; at += step) {
          const end = Math.min(shape[0], at + step);
          await made.write(bytes.subarray(at * row, end * row), [at, end]);
        }
      }
    }
    return made;
  };

  const bind = (given) => {
    const { binding, access, arg, out } = given;
    const plain = { binding };
    if (access !== undefined) plain.access = access;
    // A buffer like any other, however short, unless the script wants the bytes at once.
    if (out !== undefined) plain.out = { ...out, as: out.as ?? 'handle' };
    if (arg instanceof GpuTensor) plain.arg = { handle: arg.handle };
    else if (arg !== undefined) plain.arg = arg;
    return plain;
  };

  const gpu = {
    // Asked once; an adapter does not change while the node runs.
    get adapter() { return adapter ??= ask('compute/info', {}); },
    module(wgsl) {
      const module = {};
      hooks.define(module, 'wgsl', String(wgsl));
      return Object.freeze(module);
    },
    // A number of bytes, or what it is to hold. `usage` is a word for the reader: every buffer can be
    // bound, read and written.
    async buffer(size, usage = 'storage') {
      void usage;
      if (typeof size === 'number') return hooks.gpuCreate('U8', [size]);
      const bytes = hooks.bytesOf(size);
      return hooks.gpuCreate(hooks.dtypeOf(size), [size.length ?? bytes.length], bytes);
    },
    async dispatch(module, entry, binds, groups = [1, 1, 1]) {
      const bindings = Array.from(binds, bind);
      const [x = 1, y = 1, z = 1] = groups;
      const input = { wgsl: module.wgsl, entry: String(entry), groups: [x, y, z], bindings };
      const { outputs, gpu_ms, jit_ms } = await ask('compute/dispatch', input);
      for (const [binding, { handle, dtype, shape }] of Object.entries(outputs)) {
        if (handle !== undefined) outputs[binding] = new GpuTensor(secret, handle, dtype, shape);
      }
      return { outputs, gpu_ms, jit_ms };
    },
    async read(buffer, rows = undefined) {
      if (!(buffer instanceof GpuTensor)) throw new TypeError('no buffer of the GPU');
      return buffer.read(rows);
    },
  };
  let adapter;
  hooks.define(globalThis, 'gpu', Object.freeze(gpu));
});
