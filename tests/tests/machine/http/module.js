// Tests of docs/examples/alknet.js with a booted machine, in browsers and in Node.
// `use(Alknet, CallError, facts, options)` runs every test and returns the names of those that passed.
// `facts`: `url`, the `token` of an administrator, and the `identity` of the machine.

const equal = (a, b) => {
  const [x, y] = [JSON.stringify(a), JSON.stringify(b)];
  if (x !== y) throw new Error(`${x} is not ${y}`);
};

const fails = async (promise, code) => {
  const error = await promise.then(() => { throw new Error(`it did not fail with ${code}`); }, (e) => e);
  equal(error.code ?? String(error), code);
  return error;
};

export async function use(Alknet, CallError, { url, token, identity }, options = {}) {
  const connect = (more) => new Alknet(url, { token, ...options, ...more });
  const uses = {
    async calls_and_errors() {
      const node = connect();
      equal((await node.call("node/info")).identity, identity);
      const missing = await fails(node.call("node/nothing"), "NOT_FOUND");
      if (!(missing instanceof CallError)) throw new Error("a typed error");
      await fails(node.call("node/info", { x: 1 }), "INVALID_INPUT");
      node.close();
    },
    async unknown_peers_authenticate() {
      const node = connect({ token: undefined });
      await fails(node.call("node/info"), "UNAUTHENTICATED");
      await node.authenticate(token);
      equal((await node.call("node/info")).identity, identity);
      node.close();
    },
    async many_calls_at_once() {
      const node = connect();
      const calls = Array.from({ length: 100 }, () => node.call("node/info"));
      for (const info of await Promise.all(calls)) equal(info.identity, identity);
      node.close();
    },
    async events_as_they_happen() {
      const node = connect();
      const records = [];
      for await (const record of node.subscribe("node/log", { follow: true, last: 5 }, { window: 2 })) {
        records.push(record.message);
        if (records.length === 5) break;
      }
      if (!records.every((message) => typeof message === "string")) throw new Error(String(records));
      equal((await node.call("node/info")).identity, identity);
      node.close();
    },
    async text_works_as_well() {
      const node = connect({ text: true });
      equal((await node.call("node/info")).identity, identity);
      node.close();
    },
  };
  const passed = [];
  for (const [name, use] of Object.entries(uses)) {
    try {
      await use();
    } catch (error) {
      throw new Error(`${name}: ${error.code ?? ""} ${error.stack ?? error}`);
    }
    passed.push(name);
  }
  return passed;
}
