// console, TextEncoder, TextDecoder, crypto, URL.
(function (native, hooks) {
  const { encode, decode, log, fill, digest } = native;
  const wellFormed = String.prototype.toWellFormed;
  const scalar = (value) => wellFormed.call(String(value));
  const view = (data) => {
    if (ArrayBuffer.isView(data)) return new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
    if (data instanceof ArrayBuffer) return new Uint8Array(data);
    throw new TypeError('a buffer or a view of one is needed');
  };

  class TextEncoder {
    get encoding() { return 'utf-8'; }
    encode(text = '') { return encode(scalar(text)); }
    encodeInto(text, target) {
      let read = 0;
      let written = 0;
      for (const char of scalar(text)) {
        const bytes = encode(char);
        if (written + bytes.length > target.length) break;
        target.set(bytes, written);
        written += bytes.length;
        read += char.length;
      }
      return { read, written };
    }
  }

  const labels = new Set(['utf-8', 'utf8', 'unicode-1-1-utf-8']);
  class TextDecoder {
    #fatal;
    #ignoreBom;
    #rest = new Uint8Array(0);
    #begun = false;
    constructor(label = 'utf-8', options = {}) {
      if (!labels.has(String(label).trim().toLowerCase())) throw new RangeError('only utf-8 is decoded');
      this.#fatal = Boolean(options?.fatal);
      this.#ignoreBom = Boolean(options?.ignoreBOM);
    }
    get encoding() { return 'utf-8'; }
    get fatal() { return this.#fatal; }
    get ignoreBOM() { return this.#ignoreBom; }
    decode(data = new Uint8Array(0), options = {}) {
      const stream = Boolean(options?.stream);
      let bytes = view(data);
      if (this.#rest.length > 0) {
        const joined = new Uint8Array(this.#rest.length + bytes.length);
        joined.set(this.#rest);
        joined.set(bytes, this.#rest.length);
        bytes = joined;
      }
      let [text, used] = decode(bytes, this.#fatal, stream);
      this.#rest = bytes.slice(used);
      if (!this.#begun && text.length > 0) {
        this.#begun = true;
        if (!this.#ignoreBom && text.charCodeAt(0) === 0xfeff) text = text.slice(1);
      }
      if (!stream) this.#begun = false;
      return text;
    }
  }

  const integers = [Int8Array, Uint8Array, Uint8ClampedArray, Int16Array, Uint16Array, Int32Array, Uint32Array, BigInt64Array, BigUint64Array];
  const subtle = Object.freeze({
    async digest(algorithm, data) {
      const name = typeof algorithm === 'object' && algorithm !== null ? algorithm.name : algorithm;
      const made = digest(String(name).toUpperCase(), view(data));
      if (made === undefined) throw new DOMException(`no digest ${name}`, 'NotSupportedError');
      return made.buffer;
    },
  });
  const crypto = Object.freeze({
    subtle,
    getRandomValues(array) {
      if (!integers.some((kind) => array instanceof kind)) throw new DOMException('integers only', 'TypeMismatchError');
      if (array.byteLength > 65536) throw new DOMException('at most 65536 bytes', 'QuotaExceededError');
      view(array).set(fill(array.byteLength));
      return array;
    },
  });

  // What a person reads. Depth and length are bounded, getters are not run.
  const quote = (text) => `'${text.replace(/[\\']/g, '\\$&').replace(/\n/g, '\\n')}'`;
  const inspect = (value, depth = 0, seen = []) => {
    switch (typeof value) {
      case 'string': return quote(value.length > 1000 ? `${value.slice(0, 1000)}…` : value);
      case 'bigint': return `${value}n`;
      case 'symbol': return value.toString();
      case 'function': return `[Function ${String(value.name) || '(anonymous)'}]`;
      case 'object': break;
      default: return Object.is(value, -0) ? '-0' : String(value);
    }
    if (value === null) return 'null';
    if (seen.includes(value)) return '[Circular]';
    if (value instanceof Error) return String(value.stack ? `${value}\n${value.stack}`.trimEnd() : value);
    if (value instanceof Date) return Number.isNaN(+value) ? 'Invalid Date' : value.toISOString();
    if (value instanceof RegExp) return String(value);
    if (value instanceof Promise) return 'Promise {}';
    if (value instanceof ArrayBuffer) return `ArrayBuffer(${value.byteLength})`;
    const name = Object.getPrototypeOf(value)?.constructor?.name;
    if (depth >= 4) return Array.isArray(value) ? '[Array]' : '[Object]';
    const inner = [...seen, value];
    const show = (item) => inspect(item, depth + 1, inner);
    const most = 100;
    const listed = (items, more) => {
      if (more > 0) items.push(`… ${more} more`);
      return items;
    };
    if (Array.isArray(value) || ArrayBuffer.isView(value) && value.length !== undefined) {
      const items = listed(Array.prototype.slice.call(value, 0, most).map(show), value.length - most);
      return `${Array.isArray(value) ? '' : `${name}(${value.length}) `}[${items.length ? ` ${items.join(', ')} ` : ''}]`;
    }
    if (value instanceof Map || value instanceof Set) {
      const items = [...value].slice(0, most).map((item) => (value instanceof Map ? `${show(item[0])} => ${show(item[1])}` : show(item)));
      return `${name}(${value.size}) { ${listed(items, value.size - most).join(', ')} }`;
    }
    const keys = Reflect.ownKeys(value).filter((key) => Object.getOwnPropertyDescriptor(value, key)?.enumerable);
    const members = keys.slice(0, most).map((key) => {
      const { value: member, get } = Object.getOwnPropertyDescriptor(value, key);
      const shown = typeof key === 'symbol' ? `[${String(key)}]` : /^[A-Za-z_$][\w$]*$/.test(key) ? key : quote(key);
      return `${shown}: ${get ? '[Getter]' : show(member)}`;
    });
    const prefix = name && name !== 'Object' ? `${name} ` : '';
    const all = listed(members, keys.length - most);
    return `${prefix}{${all.length ? ` ${all.join(', ')} ` : ''}}`;
  };
  hooks.inspect = (value) => inspect(value);

  const line = (args) => {
    const shown = args.map((arg) => (typeof arg === 'string' ? arg : inspect(arg)));
    return scalar(shown.join(' '));
  };
  const console = {};
  const levels = { debug: 0, log: 1, info: 1, dir: 1, warn: 2, error: 3, trace: 3 };
  for (const [name, level] of Object.entries(levels)) {
    hooks.define(console, name, { [name](...args) { log(level, line(args)); } }[name]);
  }
  hooks.define(console, 'assert', function assert(holds, ...args) {
    if (!holds) log(3, line(['assertion failed', ...args]));
  });

  const parts = ['href', 'protocol', 'username', 'password', 'host', 'hostname', 'port', 'pathname', 'search', 'hash', 'origin'];
  const { urlParse, urlSet, formParse, formWrite } = native;
  class URLSearchParams {
    #pairs = [];
    #changed = () => {};
    constructor(init = '') {
      if (typeof init === 'object' && init !== null) {
        const pairs = typeof init[Symbol.iterator] === 'function' ? [...init] : Object.entries(init);
        this.#pairs = pairs.map(([name, value]) => [scalar(name), scalar(value)]);
      } else {
        this.#pairs = formParse(scalar(init).replace(/^\?/, ''));
      }
    }
    static of(text, changed) {
      const params = new URLSearchParams(text);
      params.#changed = changed;
      return params;
    }
    #set(pairs) { this.#pairs = pairs; this.#changed(this.toString()); }
    get size() { return this.#pairs.length; }
    append(name, value) { this.#set([...this.#pairs, [scalar(name), scalar(value)]]); }
    delete(name) { this.#set(this.#pairs.filter(([key]) => key !== String(name))); }
    get(name) { return this.#pairs.find(([key]) => key === String(name))?.[1] ?? null; }
    getAll(name) { return this.#pairs.filter(([key]) => key === String(name)).map(([, value]) => value); }
    has(name) { return this.#pairs.some(([key]) => key === String(name)); }
    set(name, value) {
      const at = this.#pairs.findIndex(([key]) => key === String(name));
      const kept = this.#pairs.filter(([key], index) => key !== String(name) || index === at);
      if (at < 0) kept.push([scalar(name), scalar(value)]);
      else kept[kept.findIndex(([key]) => key === String(name))] = [scalar(name), scalar(value)];
      this.#set(kept);
    }
    sort() { this.#set([...this.#pairs].sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0))); }
    forEach(callback, self) { for (const [name, value] of this.#pairs) callback.call(self, value, name, this); }
    *entries() { for (const [name, value] of this.#pairs) yield [name, value]; }
    *keys() { for (const [name] of this.#pairs) yield name; }
    *values() { for (const [, value] of this.#pairs) yield value; }
    [Symbol.iterator]() { return this.entries(); }
    toString() { return formWrite(this.#pairs); }
  }
  const paramsOf = URLSearchParams.of;
  delete URLSearchParams.of;
  class URL {
    #parts;
    #params = null;
    constructor(url, base) {
      const parsed = urlParse(scalar(url), base === undefined ? undefined : scalar(base));
      if (parsed === undefined) throw new TypeError(`not a URL: ${url}`);
      this.#parts = parsed;
    }
    static canParse(url, base) {
      return urlParse(scalar(url), base === undefined ? undefined : scalar(base)) !== undefined;
    }
    static parse(url, base) { return URL.canParse(url, base) ? new URL(url, base) : null; }
    static part(url, index) { return url.#parts[index]; }
    static change(url, name, value) {
      url.#parts = urlSet(url.#parts[0], name, scalar(value)) ?? url.#parts;
      if (name !== 'search') url.#params = null;
    }
    get searchParams() {
      this.#params ??= paramsOf(this.search, (text) => change(this, 'search', text));
      return this.#params;
    }
    toString() { return this.#parts[0]; }
    toJSON() { return this.#parts[0]; }
  }
  const { part, change } = URL;
  delete URL.part;
  delete URL.change;
  parts.forEach((name, index) => {
    Object.defineProperty(URL.prototype, name, {
      enumerable: true,
      configurable: true,
      get() { return part(this, index); },
      set: name === 'origin' ? undefined : function (value) {
        if (name === 'href') {
          if (urlParse(scalar(value), undefined) === undefined) throw new TypeError(`not a URL: ${value}`);
        }
        change(this, name, value);
      },
    });
  });

  hooks.define(globalThis, 'console', console);
  hooks.define(globalThis, 'TextEncoder', TextEncoder);
  hooks.define(globalThis, 'TextDecoder', TextDecoder);
  hooks.define(globalThis, 'crypto', crypto);
  hooks.define(globalThis, 'URL', URL);
});
