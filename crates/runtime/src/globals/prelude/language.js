// The language's own objects, made independent of time, chance and the outside.
(function (native, hooks, repl) {
  for (const name of ['escape', 'unescape', 'SharedArrayBuffer', 'Atomics', 'performance', 'WeakRef', 'FinalizationRegistry', 'gc', 'navigator']) {
    delete globalThis[name];
  }

  if (!repl) {
    // Modules are compiled by the host. Without these five names nothing a script can reach turns
    // a text into code.
    delete globalThis.eval;
    const { defineProperty, getPrototypeOf } = Object;
    const kinds = [function () {}, async function () {}, function* () {}, async function* () {}];
    for (const kind of kinds) {
      const prototype = getPrototypeOf(kind);
      const refuse = function Function() {
        throw new TypeError('code is made from modules only');
      };
      defineProperty(refuse, 'prototype', { value: prototype, writable: false, configurable: false });
      defineProperty(prototype, 'constructor', { value: refuse, writable: false, enumerable: false, configurable: true });
    }
    hooks.define(globalThis, 'Function', Function.prototype.constructor);
  }

  const Real = Date;
  const { now } = native;
  const construct = Reflect.construct;
  function SessionDate(...args) {
    if (new.target === undefined) return new Real(now()).toString();
    return construct(Real, args.length === 0 ? [now()] : args, new.target);
  }
  Object.defineProperties(SessionDate, {
    name: { value: 'Date', configurable: true },
    length: { value: 7, configurable: true },
    prototype: { value: Real.prototype, writable: false, configurable: false },
  });
  hooks.define(SessionDate, 'now', { now() { return now(); } }.now);
  hooks.define(SessionDate, 'parse', Real.parse);
  hooks.define(SessionDate, 'UTC', Real.UTC);
  hooks.define(Real.prototype, 'constructor', SessionDate);
  hooks.define(globalThis, 'Date', SessionDate);

  const { random } = native;
  hooks.define(Math, 'random', { random() { return random(); } }.random);
});
