// The call protocol of alknet over WebSocket, for browsers and Node: docs/websocket.md.
// No dependencies. Needs WebSocket: every browser, Node 22 and later; others pass one in.

const DELAY_FIRST_MS = 200, DELAY_MAX_MS = 30_000, HELD_MS = 10_000, WINDOW = 64;
// Calls under way at once; more wait here for their turn. A node takes 256 of a known client and 8 of
// an unknown one.
const KNOWN_AT_ONCE = 128, UNKNOWN_AT_ONCE = 8;
// Ends that coming back at once does not change: broken, refused, too big, revoked, superseded.
const FINAL = new Set([1002, 1003, 1007, 1008, 1009, 4401, 4403, 4409]);

/** What a call or a subscription fails with. Programs compare `code`, never the message. */
export class CallError extends Error {
  constructor({ code = "INTERNAL", message = code, retryable = false, details, retry_after_ms } = {}) {
    super(message);
    Object.assign(this, { name: "CallError", code, retryable, details, retryAfterMs: retry_after_ms });
  }
}

const lost = (message) => new CallError({ code: "UNAVAILABLE", message, retryable: true });
const aborted = () => new CallError({ code: "ABORTED", message: "given up" });
const plain = (name) => name.replace(/^\//, "");

/**
 * A connection to a node, made again when it is lost. `url` is `wss://NODE/alknet/call`.
 *
 * Options: `token`; `operations`, what this side serves: `{"ui/notify": (input, {signal}) => output}`,
 * where a generator serves a subscription; `reconnect` (true); `atOnce`, how many calls run at the same
 * time while others wait for their turn; `text` sends text instead of bytes;
 * `WebSocket`, the class to use; `onstate(state, detail)` hears "open", "lost" and "closed".
 */
export class Alknet {
  #url; #options; #socket; #next = 0; #asked = new Map(); #served = new Map();
  #delay = DELAY_FIRST_MS; #timer; #closed = false; #open; #opened; #failed; #draining = false; #running = 0; #waiting = new Set();

  constructor(url, options = {}) {
    this.#url = String(url);
    this.#options = { reconnect: true, WebSocket: globalThis.WebSocket, ...options };
    this.operations = { ...options.operations };
    this.#renew();
    this.#connect();
  }

  /** Resolves once connected; fails when there is no use in waiting. */
  get ready() { return this.#open; }

  /** Calls a query or mutation. `signal` aborts it; `timeoutMs`, `idempotencyKey`, `peer` as documented. */
  async call(operation, input = null, options = {}) {
    const { signal } = options;
    while (this.#running >= this.#atOnce) await this.#turn(signal);
    this.#running += 1;
    try {
      if (signal?.aborted) throw aborted();
      await this.#connected(signal);
      return await new Promise((ok, no) => {
        const id = this.#ask(operation, input, request(options), {
          next: ({ output }) => { this.#forget(id); ok(output); },
          done: () => no(new CallError({ message: "no answer came" })),
          fail: no,
        }, signal);
      });
    } finally {
      this.#running -= 1;
      this.#waiting.values().next().value?.();
    }
  }

  /**
   * The events of a subscription: `for await (const event of node.subscribe(…))`. The node sends
   * `window` events ahead and no more; leaving the loop ends the subscription. A lost connection ends
   * it with `UNAVAILABLE`. With `whole` each item is `{output, cursor, dropped}`.
   */
  async *subscribe(operation, input = null, options = {}) {
    const { signal, window = WINDOW, whole = false } = options;
    if (signal?.aborted) throw aborted();
    await this.#connected(signal);
    const events = [];
    let wake = () => {}, over = false, error;
    const end = (why) => { over = true; error = why; wake(); };
    const id = this.#ask(operation, input, { ...request(options), window }, {
      next: (event) => { events.push(event); wake(); },
      done: () => end(), fail: end,
    }, signal);
    try {
      for (;;) {
        while (events.length > 0) {
          const event = events.shift();
          yield whole ? event : event.output;
          if (!over) this.#send("call.credit", id, { n: 1 });
        }
        if (error) throw error;
        if (over) return;
        await new Promise((resolve) => { wake = resolve; });
        wake = () => {};
      }
    } finally {
      if (this.#forget(id)) this.#send("call.aborted", id, {});
    }
  }

  /** Several calls in one go: `[[operation, input, options?], …]`, settled as by Promise.allSettled. */
  async batch(calls) {
    await this.#connected();
    return Promise.allSettled(calls.map((call) => this.call(...call)));
  }

  /** Makes this connection act as the holder of the token; again after every reconnect. */
  async authenticate(token) {
    const who = await this.call("session/authenticate", { token });
    this.#options.token = token;
    return who;
  }

  /** Serves an operation to the node: `handler(input, {signal, id})`. */
  serve(operation, handler) { this.operations[plain(operation)] = handler; }

  /** Ends the connection for good. */
  close() {
    this.#closed = true;
    clearTimeout(this.#timer);
    this.#socket?.close(1000);
    this.#fail(lost("closed here"));
    this.#failed(lost("closed here"));
  }

  get #atOnce() {
    return this.#options.atOnce ?? (this.#options.token ? KNOWN_AT_ONCE : UNKNOWN_AT_ONCE);
  }

  // Resolves when a call has ended, for the one that has waited longest; fails when `signal` gives it up.
  #turn(signal) {
    return new Promise((ok, no) => {
      const end = (settle) => {
        this.#waiting.delete(wake);
        signal?.removeEventListener("abort", give);
        settle();
      };
      const wake = () => end(ok), give = () => end(() => no(aborted()));
      if (signal?.aborted) return no(aborted());
      signal?.addEventListener("abort", give, { once: true });
      this.#waiting.add(wake);
    });
  }

  // The connection.

  #renew() {
    this.#open = new Promise((ok, no) => { this.#opened = ok; this.#failed = no; });
    this.#open.catch(() => {});
  }

  #connect() {
    const { token, WebSocket } = this.#options;
    const protocols = token ? ["alknet.call", `alknet.bearer.${token}`] : ["alknet.call"];
    const socket = this.#socket = new WebSocket(this.#url, protocols);
    socket.binaryType = "arraybuffer";
    this.#draining = false;
    let since;
    socket.onopen = () => {
      since = Date.now();
      this.#opened();
      this.#options.onstate?.("open");
    };
    socket.onmessage = ({ data }) => {
      const text = typeof data === "string" ? data : new TextDecoder().decode(data);
      this.#receive(JSON.parse(text));
    };
    socket.onerror = () => {};
    socket.onclose = ({ code, reason }) => this.#ended(code, reason, since);
  }

  #ended(code, reason, since) {
    this.#fail(lost(`the connection ended (${code}${reason && ` ${reason}`})`));
    if (since !== undefined) this.#renew();
    if (this.#closed) return this.#options.onstate?.("closed", { code, reason });
    if (!this.#options.reconnect || FINAL.has(code)) {
      this.#closed = true;
      this.#failed(lost(`the connection ended (${code}${reason && ` ${reason}`})`));
      return this.#options.onstate?.("closed", { code, reason });
    }
    if (since !== undefined && Date.now() - since > HELD_MS) this.#delay = DELAY_FIRST_MS;
    const least = { 1001: 5_000, 1013: 1_000, 4423: 30_000 }[code] ?? 0;
    const wait = least + this.#delay * (0.5 + Math.random() / 2);
    this.#delay = Math.min(this.#delay * 2, DELAY_MAX_MS);
    this.#timer = setTimeout(() => this.#connect(), wait);
    this.#options.onstate?.("lost", { code, reason, wait });
  }

  async #connected(signal) {
    if (this.#draining) throw lost("the node is shutting down");
    if (!signal) return this.#open;
    let give;
    const given = new Promise((_, no) => { give = () => no(aborted()); });
    signal.addEventListener("abort", give, { once: true });
    try { await Promise.race([this.#open, given]); } finally { signal.removeEventListener("abort", give); }
  }

  #send(type, id, payload) {
    if (this.#socket.readyState !== 1) return;
    const text = JSON.stringify({ type, id, payload });
    this.#socket.send(this.#options.text ? text : new TextEncoder().encode(text));
  }

  #fail(error) {
    const asked = [...this.#asked.values()];
    this.#asked.clear();
    for (const one of asked) { one.release(); one.fail(error); }
    for (const one of this.#served.values()) one.abort();
    this.#served.clear();
  }

  // What this side asks.

  #ask(operation, input, payload, handlers, signal) {
    if (this.#socket.readyState !== 1) throw lost("the connection ended");
    const id = String(++this.#next);
    const give = () => {
      if (!this.#forget(id)) return;
      this.#send("call.aborted", id, {});
      handlers.fail(aborted());
    };
    signal?.addEventListener("abort", give, { once: true });
    const release = () => signal?.removeEventListener("abort", give);
    this.#asked.set(id, { ...handlers, release });
    this.#send("call.requested", id, { operationId: `/${plain(operation)}`, input, ...payload });
    return id;
  }

  #forget(id) {
    this.#asked.get(id)?.release();
    return this.#asked.delete(id);
  }

  #receive({ type, id, payload = {} }) {
    if (type === "call.requested") return void this.#answer(id, payload);
    if (type === "call.goaway") { this.#draining = true; return; }
    if (type === "call.aborted" && this.#served.has(id)) return this.#served.get(id).abort();
    if (type === "call.credit") return this.#served.get(id)?.credit?.(payload.n);
    const asked = this.#asked.get(id);
    // The program waits for no more events: the node need not make them.
    if (!asked) return void (type === "call.responded" && this.#send("call.aborted", id, {}));
    if (type === "call.responded") return asked.next(payload);
    if (!this.#forget(id)) return;
    if (type === "call.completed") asked.done();
    else if (type === "call.error") asked.fail(new CallError(payload));
    else if (type === "call.aborted") asked.fail(aborted());
  }

  // What this side serves.

  async #answer(id, { operationId = "", input = null, window }) {
    const handler = Object.hasOwn(this.operations, plain(operationId)) && this.operations[plain(operationId)];
    const refuse = (code, message, more) => this.#send("call.error", id, { code, message, retryable: false, ...more });
    if (!handler) return refuse("NOT_FOUND", `there is no operation '${plain(operationId)}'`);
    const abort = new AbortController();
    let credit = window ?? Infinity, wake = () => {};
    this.#served.set(id, {
      abort: () => { this.#served.delete(id); abort.abort(); wake(); },
      credit: (n) => { credit += n; wake(); },
    });
    try {
      const made = await handler(input, { signal: abort.signal, id });
      if (typeof made?.[Symbol.asyncIterator] !== "function") {
        if (!abort.signal.aborted) this.#send("call.responded", id, { output: made ?? null });
        return;
      }
      for await (const output of made) {
        while (credit <= 0 && !abort.signal.aborted) await new Promise((resolve) => { wake = resolve; });
        if (abort.signal.aborted) return;
        credit -= 1;
        this.#send("call.responded", id, { output });
      }
      if (!abort.signal.aborted) this.#send("call.completed", id, {});
    } catch (error) {
      const { code = "INTERNAL", message, retryable, details } = error instanceof CallError ? error : { message: String(error) };
      if (!abort.signal.aborted) refuse(code, message, { retryable: retryable ?? false, details });
    } finally {
      this.#served.delete(id);
    }
  }
}

function request({ timeoutMs, idleMs, idempotencyKey, peer, authToken }) {
  return {
    timeout_ms: timeoutMs, idle_ms: idleMs, idempotency_key: idempotencyKey, peer, auth_token: authToken,
  };
}
