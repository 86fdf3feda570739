// AbortController, AbortSignal, timers.
(function (native, hooks) {
  const key = Symbol('internal');
  const { timer, untimer } = native;

  hooks.define(globalThis, 'setTimeout', function setTimeout(callback, delay = 0, ...args) {
    if (typeof callback !== 'function') throw new TypeError('the callback is no function');
    const ms = Number(delay);
    return timer(() => { callback(...args); }, ms > 0 && ms < 2 ** 31 ? Math.trunc(ms) : 0);
  });
  hooks.define(globalThis, 'clearTimeout', function clearTimeout(id) {
    if (typeof id === 'number') untimer(id);
  });

  class AbortSignal {
    #aborted = false;
    #reason = undefined;
    #listeners = new Map();
    #handler = null;

    constructor(from) {
      if (from !== key) throw new TypeError('Illegal constructor');
    }
    get aborted() { return this.#aborted; }
    get reason() { return this.#reason; }
    get onabort() { return this.#handler; }
    set onabort(value) { this.#handler = typeof value === 'function' ? value : null; }
    throwIfAborted() { if (this.#aborted) throw this.#reason; }
    addEventListener(type, listener, options) {
      if (type !== 'abort' || typeof listener !== 'function') return;
      this.#listeners.set(listener, Boolean(options?.once));
    }
    removeEventListener(type, listener) {
      if (type === 'abort') this.#listeners.delete(listener);
    }
    static abort(reason) {
      const signal = new AbortSignal(key);
      fire(signal, reason);
      return signal;
    }
    static timeout(ms) {
      const signal = new AbortSignal(key);
      setLater(() => fire(signal, new DOMException('the time is over', 'TimeoutError')), ms);
      return signal;
    }
    static any(signals) {
      const joined = new AbortSignal(key);
      for (const signal of signals) {
        if (signal.aborted) fire(joined, signal.reason);
        else signal.addEventListener('abort', () => fire(joined, signal.reason), { once: true });
      }
      return joined;
    }
    static fire(signal, reason = new DOMException('the operation was aborted', 'AbortError')) {
      if (signal.#aborted) return;
      signal.#aborted = true;
      signal.#reason = reason;
      const event = { type: 'abort', target: signal };
      const listeners = [...signal.#listeners];
      for (const [listener, once] of listeners) {
        if (once) signal.#listeners.delete(listener);
      }
      const all = listeners.map(([listener]) => listener);
      if (signal.#handler !== null) all.unshift(signal.#handler);
      for (const listener of all) {
        // One listener's exception keeps the others from nothing.
        try { listener.call(signal, event); } catch (error) { queueMicrotask(() => { throw error; }); }
      }
    }
  }
  const fire = AbortSignal.fire;
  delete AbortSignal.fire;
  const setLater = globalThis.setTimeout;

  class AbortController {
    #signal = new AbortSignal(key);
    get signal() { return this.#signal; }
    abort(reason) { fire(this.#signal, reason); }
  }

  hooks.newSignal = () => {
    const signal = new AbortSignal(key);
    return { signal, abort: () => fire(signal, undefined) };
  };
  hooks.define(globalThis, 'AbortSignal', AbortSignal);
  hooks.define(globalThis, 'AbortController', AbortController);
});
