// structuredClone.
(function (native, hooks) {
  const errors = { EvalError, RangeError, ReferenceError, SyntaxError, TypeError, URIError };
  const refuse = (value) => new DOMException(`${hooks.inspect(value)} cannot be cloned`, 'DataCloneError');

  hooks.define(globalThis, 'structuredClone', function structuredClone(value, options) {
    const known = new Map();
    for (const buffer of options?.transfer ?? []) {
      if (!(buffer instanceof ArrayBuffer) || known.has(buffer)) throw refuse(buffer);
      known.set(buffer, undefined);
    }
    for (const buffer of known.keys()) known.set(buffer, buffer.transfer());

    const clone = (from) => {
      if (typeof from === 'function' || typeof from === 'symbol') throw refuse(from);
      if (typeof from !== 'object' || from === null) return from;
      if (known.has(from)) return known.get(from);
      const keep = (to) => { known.set(from, to); return to; };
      if (from instanceof Date) return keep(new Date(+from));
      if (from instanceof RegExp) return keep(new RegExp(from.source, from.flags));
      if (from instanceof ArrayBuffer) return keep(from.slice(0));
      if (from instanceof Boolean || from instanceof Number || from instanceof String) return keep(Object(from.valueOf()));
      if (ArrayBuffer.isView(from)) {
        const buffer = clone(from.buffer);
        const length = from instanceof DataView ? from.byteLength : from.length;
        return keep(new from.constructor(buffer, from.byteOffset, length));
      }
      if (from instanceof Map) {
        const to = keep(new Map());
        for (const [name, member] of [...from]) to.set(clone(name), clone(member));
        return to;
      }
      if (from instanceof Set) {
        const to = keep(new Set());
        for (const member of [...from]) to.add(clone(member));
        return to;
      }
      if (from instanceof Error) {
        const to = keep(new (errors[from.name] ?? Error)(String(from.message)));
        if (typeof from.stack === 'string') hooks.define(to, 'stack', from.stack);
        if (Object.hasOwn(from, 'cause')) hooks.define(to, 'cause', clone(from.cause));
        return to;
      }
      if (from instanceof Promise || from instanceof DOMException) throw refuse(from);
      const to = keep(Array.isArray(from) ? new Array(from.length) : {});
      for (const name of Object.keys(from)) {
        Object.defineProperty(to, name, { value: clone(from[name]), writable: true, enumerable: true, configurable: true });
      }
      return to;
    };
    return clone(value);
  });
});
