// gpu: shaders on the node's GPU, by its operations. What a buffer holds lies in another process; a
// handle is all there is of it here.
(function (native, hooks) {
  const { callBytes, call } = native;
  // Bytes of one tensor/write: what fits a frame, with room for what else is in it.
  const PART = 512 * 1024;

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
      const input = { handle: this.handle };
      if (rows !== undefined) input.rows = rows;
      return (await ask('tensor/read', input)).bytes;
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
    if (out !== undefined) plain.out = out;
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
      for (const { binding, out } of bindings) {
        const given = outputs[binding];
        if (out && given?.handle !== undefined) {
          outputs[binding] = new GpuTensor(secret, given.handle, given.dtype ?? out.dtype, given.shape ?? out.shape);
        }
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
