// Tests of docs/examples/alknet.js with a node that serves demo/…, in browsers and in Node.
// `suite(Alknet, CallError, facts, options)` runs every test and returns the names of those that passed.
// `facts`: `url`, and the `token` of an identity with the scope "demo".

const equal = (a, b) => {
  const [x, y] = [JSON.stringify(a), JSON.stringify(b)];
  if (x !== y) throw new Error(`${x} is not ${y}`);
};

const fails = async (promise, code) => {
  const error = await promise.then(() => { throw new Error(`it did not fail with ${code}`); }, (e) => e);
  equal(error.code ?? String(error), code);
  return error;
};

export async function suite(Alknet, CallError, { url, token }, options = {}) {
  const connect = (more) => new Alknet(url, { token, ...options, ...more });
  const tests = {
    async calls_and_errors() {
      const node = connect();
      await node.ready;
      equal(await node.call("demo/echo", { n: [1, "ä"] }), { n: [1, "ä"] });
      equal(await node.call("/demo/echo"), null);
      const missing = await fails(node.call("demo/nothing"), "NOT_FOUND");
      if (!(missing instanceof CallError) || missing.retryable) throw new Error("a typed error");
      await fails(node.call("demo/hang", null, { timeoutMs: 50 }), "TIMEOUT");
      node.close();
      await fails(node.call("demo/echo"), "UNAVAILABLE");
    },
    async unknown_peers_authenticate() {
      const node = connect({ token: undefined });
      await fails(node.call("demo/echo", 1), "UNAUTHENTICATED");
      await fails(node.authenticate(token.replace(/.$/, (c) => (c === "A" ? "B" : "A"))), "UNAUTHENTICATED");
      equal((await node.authenticate(token)).scopes, ["demo"]);
      equal(await node.call("demo/echo", 1), 1);
      node.close();
    },
    async a_thousand_calls_find_their_answers() {
      const node = connect();
      const order = [];
      const calls = Array.from({ length: 1000 }, (_, n) => node.call("demo/echo", n).then((got) => { order.push(got); return got; }));
      equal(await Promise.all(calls), Array.from({ length: 1000 }, (_, n) => n));
      equal(order.length, 1000);
      const results = await node.batch([["demo/echo", 1], ["demo/nothing"], ["demo/echo", 3, { timeoutMs: 60000 }]]);
      equal(results.map((r) => r.value ?? r.reason.code), [1, "NOT_FOUND", 3]);
      node.close();
    },
    async what_is_given_up_ends_at_the_node() {
      const node = connect();
      const giving = new AbortController();
      const hangs = node.call("demo/hang", null, { signal: giving.signal });
      while ((await node.call("demo/state")).running === 0) await null;
      giving.abort();
      await fails(hangs, "ABORTED");
      while ((await node.call("demo/state")).running > 0) await null;
      node.close();
    },
    async what_waits_for_its_turn_is_given_up_at_once() {
      const node = connect({ atOnce: 1 });
      const holding = new AbortController(), giving = new AbortController();
      const hangs = node.call("demo/hang", null, { signal: holding.signal });
      const waits = node.call("demo/echo", 1, { signal: giving.signal }).catch(({ code }) => code);
      const next = node.call("demo/echo", 2);
      giving.abort();
      // Without waiting for the node: before the first timer.
      const timer = new Promise((resolve) => setTimeout(resolve, 0, "it still waits"));
      equal(await Promise.race([waits, timer]), "ABORTED");
      const late = node.call("demo/echo", 3, { signal: AbortSignal.abort() }).catch(({ code }) => code);
      equal(await late, "ABORTED");
      holding.abort();
      await fails(hangs, "ABORTED");
      equal(await next, 2);
      equal(await node.call("demo/echo", 4), 4);
      node.close();
    },
    async subscriptions_wait_for_their_reader() {
      const node = connect();
      const seen = [];
      for await (const n of node.subscribe("demo/count", 300, { window: 16 })) seen.push(n);
      equal(seen, Array.from({ length: 300 }, (_, n) => n));
      const before = (await node.call("demo/state")).made;
      for await (const n of node.subscribe("demo/count", null, { window: 16 })) {
        if (n === 20) break;
        await node.call("demo/echo");
      }
      while ((await node.call("demo/state")).running > 0) await null;
      const made = (await node.call("demo/state")).made - before;
      if (made > 21 + 16 + 2) throw new Error(`${made} events were made for 21 read`);
      node.close();
    },
    async the_node_calls_back() {
      const notes = [];
      const node = connect({ operations: { "ui/notify": (note) => { notes.push(note); return { seen: notes.length }; } } });
      equal(await node.call("demo/back", { operation: "ui/notify", input: "hello" }), { seen: 1 });
      equal(notes, ["hello"]);
      await fails(node.call("demo/back", { operation: "ui/other" }), "NOT_FOUND");
      node.serve("ui/refuse", () => { throw new CallError({ code: "FORBIDDEN", message: "no" }); });
      await fails(node.call("demo/back", { operation: "ui/refuse" }), "FORBIDDEN");
      node.serve("ui/ticks", async function* (count) { for (let n = 0; n < count; n += 1) yield n; });
      equal(await node.call("demo/back-stream", { operation: "ui/ticks", input: 100 }), 100);
      let stopped;
      const given = new Promise((resolve) => { stopped = resolve; });
      node.serve("ui/hang", (_, { signal }) => new Promise(() => signal.addEventListener("abort", stopped)));
      const giving = new AbortController();
      const call = node.call("demo/back", { operation: "ui/hang" }, { signal: giving.signal });
      equal(await node.call("demo/echo", 1), 1);
      giving.abort();
      await fails(call, "ABORTED");
      await given;
      node.close();
    },
    async a_lost_connection_is_made_again() {
      const states = [];
      let back;
      const again = new Promise((resolve) => { back = resolve; });
      const sockets = [];
      class Watched extends (options.WebSocket ?? WebSocket) {
        constructor(...given) { super(...given); sockets.push(this); }
      }
      const node = connect({
        WebSocket: Watched,
        onstate: (state) => { states.push(state); if (states.filter((s) => s === "open").length === 2) back(); },
      });
      equal(await node.call("demo/echo", 1), 1);
      const hangs = node.call("demo/hang");
      const events = node.subscribe("demo/count");
      equal((await events.next()).value, 0);
      sockets[0].close(3000);
      await fails(hangs, "UNAVAILABLE");
      const rest = (async () => { for await (const _ of events); })();
      await fails(rest, "UNAVAILABLE");
      await again;
      equal(await node.call("demo/echo", 2), 2);
      equal(states, ["open", "lost", "open"]);
      node.close();
    },
    async what_was_closed_stays_closed() {
      const states = [];
      const node = connect({ onstate: (state) => states.push(state) });
      await node.ready;
      node.close();
      await new Promise((resolve) => { const look = () => states.includes("closed") ? resolve() : setTimeout(look, 5); look(); });
      equal(states, ["open", "closed"]);
    },
    async text_works_as_well() {
      const node = connect({ text: true });
      equal(await node.call("demo/echo", "ä€😀"), "ä€😀");
      node.close();
    },
  };
  const passed = [];
  for (const [name, test] of Object.entries(tests)) {
    try {
      await test();
    } catch (error) {
      throw new Error(`${name}: ${error.code ?? ""} ${error.stack ?? error}`);
    }
    passed.push(name);
  }
  return passed;
}
