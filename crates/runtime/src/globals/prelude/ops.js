// ops: everything a script can do to the outside.
(function (native, hooks) {
  const { call, cancel, subscribe, pull, unsubscribe, list, schema, register, test, pure } = native;

  const optionsOf = (options) => {
    const { peer, timeoutMs, idempotencyKey, signal } = options ?? {};
    const plain = {};
    if (peer !== undefined) plain.peer = String(peer);
    if (timeoutMs !== undefined) plain.timeout_ms = Number(timeoutMs);
    if (idempotencyKey !== undefined) plain.idempotency_key = String(idempotencyKey);
    return { plain, signal };
  };

  const session = hooks.newSignal();
  const ops = {
    get signal() { return session.signal; },

    call(path, input = null, options = undefined) {
      return new Promise((resolve, reject) => {
        const { plain, signal } = optionsOf(options);
        signal?.throwIfAborted();
        let id;
        const stop = () => { cancel(id); reject(signal.reason); };
        const done = (settle) => (value) => { signal?.removeEventListener('abort', stop); settle(value); };
        id = call(String(path), input, plain, done(resolve), done(reject));
        signal?.addEventListener('abort', stop, { once: true });
      });
    },

    subscribe(path, input = null, options = undefined) {
      const { plain, signal } = optionsOf(options);
      let id;
      let ended = false;
      const close = () => {
        if (!ended && id !== undefined) unsubscribe(id);
        ended = true;
      };
      return {
        [Symbol.asyncIterator]() { return this; },
        next() {
          return new Promise((resolve, reject) => {
            signal?.throwIfAborted();
            if (ended) return resolve({ done: true, value: undefined });
            id ??= subscribe(String(path), input, plain);
            const stop = () => { cancel(waits); close(); reject(signal.reason); };
            const waits = pull(id, (value, end) => {
              signal?.removeEventListener('abort', stop);
              if (end) close();
              resolve({ done: end, value });
            }, (error) => {
              signal?.removeEventListener('abort', stop);
              close();
              reject(error);
            });
            signal?.addEventListener('abort', stop, { once: true });
          });
        },
        async return(value) { close(); return { done: true, value }; },
        async throw(error) { close(); throw error; },
      };
    },

    // Runs `f` with nothing to call: predicates of workflows decide by their arguments alone.
    pure(f, ...args) {
      pure(true);
      try {
        return f(...args);
      } finally {
        pure(false);
      }
    },
    list(prefix = '') { return list(String(prefix)); },
    schema(path) { return schema(String(path)); },
    register(spec, handler) {
      if (typeof handler !== 'function') throw new TypeError('the handler is no function');
      return new Promise((resolve, reject) => register(spec, handler, resolve, reject));
    },
    test(name, cases) {
      return new Promise((resolve, reject) => test(String(name), cases, resolve, reject));
    },
  };
  hooks.define(globalThis, 'ops', Object.freeze(ops));
  hooks.sessionAbort = session.abort;
});
