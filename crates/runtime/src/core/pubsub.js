// Topics within a session: who publishes does not know who listens.
//
//   const orders = topic('orders');
//   const stop = orders.subscribe((order) => console.log(order.id));
//   orders.publish({ id: 7 });
//   for await (const order of orders) { … }

// Values that a loop may have waiting: one that is slower for good ends with an error.
const waitingMax = 1024;

class Topic {
  #listeners = new Set();
  constructor(name) { Object.defineProperty(this, 'name', { value: name, enumerable: true }); }

  // Calls every listener before it returns, and says how many it called.
  publish(value) {
    const errors = [];
    let called = 0;
    for (const entry of [...this.#listeners]) {
      // One that left meanwhile hears no more.
      if (!this.#listeners.has(entry)) continue;
      called += 1;
      try {
        entry.listener(value);
      } catch (error) {
        errors.push(error);
      }
    }
    if (errors.length === 1) throw errors[0];
    if (errors.length > 1) throw new AggregateError(errors, `${errors.length} listeners of ${this.name} failed`);
    return called;
  }

  subscribe(listener, { signal } = {}) {
    if (typeof listener !== 'function') throw new TypeError('a listener is a function');
    signal?.throwIfAborted();
    const entry = { listener };
    const stop = () => {
      this.#listeners.delete(entry);
      signal?.removeEventListener('abort', stop);
    };
    this.#listeners.add(entry);
    signal?.addEventListener('abort', stop);
    return stop;
  }

  [Symbol.asyncIterator]() { return values(this); }
}

// Hears what is published from here on, until `return`.
function values(topic) {
  const waiting = [];
  const asked = [];
  let over = false;
  let error = null;
  const stop = topic.subscribe((value) => {
    if (asked.length > 0) {
      asked.shift()({ value, done: false });
    } else if (waiting.length < waitingMax) {
      waiting.push(value);
    } else {
      stop();
      over = true;
      error = new RangeError(`${waitingMax} values of ${topic.name} wait to be read`);
    }
  });
  return {
    async next() {
      if (waiting.length > 0) return { value: waiting.shift(), done: false };
      if (error !== null) {
        const thrown = error;
        error = null;
        throw thrown;
      }
      if (over) return { value: undefined, done: true };
      return new Promise((answer) => asked.push(answer));
    },
    async return(value) {
      stop();
      over = true;
      error = null;
      waiting.length = 0;
      for (const answer of asked.splice(0)) answer({ value: undefined, done: true });
      return { value, done: true };
    },
    [Symbol.asyncIterator]() { return this; },
  };
}

const topics = new Map();

// The one of this name, for every module of the session.
export function topic(name) {
  if (typeof name !== 'string') throw new TypeError('a topic has a name');
  let found = topics.get(name);
  if (found === undefined) topics.set(name, (found = new Topic(name)));
  return found;
}
