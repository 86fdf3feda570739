// Error classes, and what Rust asks our own code to do with the script's values.
(function (native, hooks) {
  const { apply, construct, defineProperty, ownKeys } = Reflect;
  const PlainError = Error;
  const then = Promise.prototype.then;
  const { isView } = ArrayBuffer;
  const key = Symbol('internal');

  class OpError extends Error {
    #op = true;
    constructor(code, message = '', options = {}) {
      super(message);
      const { retryable = false, details = null, path = '' } = options ?? {};
      this.code = String(code);
      this.retryable = Boolean(retryable);
      this.details = details;
      this.path = String(path);
    }
    get name() { return 'OpError'; }
    static is(value) { return typeof value === 'object' && value !== null && #op in value; }
  }

  class RuntimeError extends Error {
    // The script may change the property `code`, and only this field says what the runtime threw.
    #code;
    constructor(code, message, from) {
      if (from !== key) throw new TypeError('Illegal constructor');
      super(message);
      this.#code = code;
      this.code = code;
    }
    get name() { return 'RuntimeError'; }
    static is(value) { return typeof value === 'object' && value !== null && #code in value; }
    static codeOf(value) { return value.#code; }
  }

  const isOp = OpError.is;
  const isRuntime = RuntimeError.is;
  const codeOf = RuntimeError.codeOf;
  delete OpError.is;
  delete RuntimeError.is;
  delete RuntimeError.codeOf;

  hooks.runtimeError = (code, message, module, line) => {
    const error = new RuntimeError(code, message, key);
    if (module !== undefined) {
      error.module = module;
      error.line = line;
    }
    return error;
  };
  // The stack at this moment: an answer comes when no function of the script runs any more.
  hooks.here = () => text(new PlainError().stack);
  hooks.opError = (code, message, retryable, details, path, calledAt) => {
    const error = new OpError(code, message, { retryable, details, path });
    if (typeof calledAt === 'string') {
      const stack = { __proto__: null, value: calledAt, writable: true, enumerable: false, configurable: true };
      defineProperty(error, 'stack', stack);
    }
    return error;
  };

  const text = (value) => {
    if (typeof value === 'string') return value;
    if (value === undefined || value === null) return undefined;
    return typeof value === 'object' || typeof value === 'function' ? undefined : String(value);
  };
  hooks.describe = (thrown) => {
    const object = (typeof thrown === 'object' && thrown !== null) || typeof thrown === 'function';
    if (!object) return ['value', undefined, `uncaught ${hooks.inspect(thrown)}`];
    const message = text(thrown.message) ?? `uncaught ${hooks.inspect(thrown)}`;
    const told = ['error', text(thrown.name), message, text(thrown.stack)];
    if (isRuntime(thrown)) {
      told[0] = 'runtime';
      told[4] = codeOf(thrown);
      told[5] = text(thrown.module);
      told[6] = thrown.line;
    } else if (isOp(thrown)) {
      told[0] = 'operation';
      told[4] = text(thrown.code);
      told[7] = thrown.retryable === true;
      told[8] = text(thrown.path) ?? '';
      told[9] = thrown.details;
    }
    return told;
  };

  const limit = 9007199254740992n;
  const special = [ArrayBuffer, Map, Set];
  hooks.fits = (value) => {
    if (typeof value === 'bigint') return value >= -limit && value <= limit;
    return !isView(value) && !special.some((kind) => value instanceof kind);
  };

  hooks.isArray = Array.isArray;

  hooks.quiet = (promise) => { apply(then, promise, [undefined, () => {}]); };
  const quiet = hooks.quiet;
  hooks.invoke = (f, input, signal) => {
    const promise = (async () => f(input, { signal }))();
    quiet(promise);
    return promise;
  };
  hooks.serve = (f, input, signal, entry) => {
    const promise = (async () => {
      for await (const item of f(input, { signal })) {
        if (signal.aborted) break;
        await new Promise((resolve, reject) => native.emit(entry, item, resolve, reject));
      }
    })();
    quiet(promise);
    return promise;
  };

  hooks.define = (target, name, value) =>
    Object.defineProperty(target, name, { value, writable: true, enumerable: false, configurable: true });
  hooks.define(globalThis, 'OpError', OpError);
  hooks.define(globalThis, 'RuntimeError', RuntimeError);

  // The built-in objects of the language, for graphs whose modules do not trust each other. Our own
  // globals are among them.
  hooks.freeze = () => {
    const seen = new Set();
    const walk = (value) => {
      if ((typeof value !== 'object' || value === null) && typeof value !== 'function') return;
      if (seen.has(value) || value === globalThis) return;
      seen.add(value);
      walk(Object.getPrototypeOf(value));
      for (const name of ownKeys(value)) {
        const { value: member, get, set } = Object.getOwnPropertyDescriptor(value, name);
        walk(member);
        walk(get);
        walk(set);
      }
      Object.freeze(value);
    };
    for (const name of ownKeys(globalThis)) walk(globalThis[name]);
    const hidden = [
      async function () {}, function* () {}, async function* () {},
      [][Symbol.iterator](), ''[Symbol.iterator](), new Map().entries(), new Set().values(),
      'a'.matchAll(/a/g), (function* () {})(), (async function* () {})(), new Uint8Array(1),
    ];
    for (const value of hidden) walk(Object.getPrototypeOf(value));
  };
});
