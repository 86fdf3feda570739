// capabilities: what the operation that runs the script was given. A handle acts by calls of the host's;
// what is behind it never comes here. Bytes travel as text, so that tests can say what was answered.
(function (native, hooks) {
  const { call, toBase64, fromBase64 } = native;
  const { bytesOf } = hooks;

  const ask = (act, input) => new Promise((resolve, reject) => {
    call(`capability/${act}`, input, {}, resolve, reject);
  });
  const buffer = (text) => fromBase64(String(text)).buffer;

  const acts = {
    signer: (name, { public_key }) => ({
      publicKey: buffer(public_key),
      async sign(data) {
        return buffer((await ask('sign', { name, data: toBase64(bytesOf(data)) })).signature);
      },
    }),
    aead: (name) => ({
      async seal(label, data) {
        const input = { name, label: String(label), data: toBase64(bytesOf(data)) };
        return buffer((await ask('seal', input)).sealed);
      },
      async open(label, sealed) {
        const input = { name, label: String(label), sealed: toBase64(bytesOf(sealed)) };
        return buffer((await ask('open', input)).data);
      },
    }),
  };
  Object.setPrototypeOf(acts, null);

  const capabilities = {
    async get(name) {
      const id = String(name);
      const found = await ask('get', { name: id });
      const does = acts[found.kind]?.(id, found) ?? {};
      return Object.freeze({ name: id, kind: found.kind, ...does });
    },
  };
  hooks.define(globalThis, 'capabilities', Object.freeze(capabilities));
});
