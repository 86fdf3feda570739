// Values that tell who read them when they change.
//
//   const count = signal(1);
//   const twice = computed(() => count.value * 2);
//   const stop = effect(() => console.log(twice.value));

let reader = null;
let depth = 0;
const waiting = new Set();

function read(source) {
  if (reader !== null) {
    source.readers.add(reader);
    reader.sources.add(source);
  }
}

function forget(reading) {
  for (const source of reading.sources) source.readers.delete(reading);
  reading.sources.clear();
}

function watch(reading, run) {
  const outer = reader;
  reader = reading;
  try {
    return run();
  } finally {
    reader = outer;
  }
}

function changed(source) {
  for (const reading of [...source.readers]) {
    if (reading.stale) continue;
    reading.stale = true;
    if (reading.run) waiting.add(reading);
    else changed(reading);
  }
}

function flush() {
  let rounds = 0;
  while (waiting.size > 0) {
    if (++rounds > 100) {
      waiting.clear();
      throw new Error('effects change what they read, without end');
    }
    const now = [...waiting];
    waiting.clear();
    for (const reading of now) reading.run();
  }
}

class Signal {
  #value;
  #source = { readers: new Set() };
  constructor(value) { this.#value = value; }
  get value() { read(this.#source); return this.#value; }
  set value(value) {
    if (Object.is(value, this.#value)) return;
    this.#value = value;
    changed(this.#source);
    if (depth === 0) flush();
  }
  peek() { return this.#value; }
  toJSON() { return this.value; }
  toString() { return String(this.value); }
}

class Computed {
  #compute;
  #value;
  #node = { readers: new Set(), sources: new Set(), stale: true };
  constructor(compute) { this.#compute = compute; }
  get value() { read(this.#node); return this.peek(); }
  peek() {
    if (this.#node.stale) {
      forget(this.#node);
      this.#node.stale = false;
      this.#value = watch(this.#node, this.#compute);
    }
    return this.#value;
  }
  toJSON() { return this.value; }
  toString() { return String(this.value); }
}

export function signal(value) { return new Signal(value); }
export function computed(compute) { return new Computed(compute); }
export function isSignal(value) { return value instanceof Signal || value instanceof Computed; }

export function effect(run) {
  const node = {
    sources: new Set(),
    stale: false,
    cleanup: undefined,
    run() {
      if (typeof node.cleanup === 'function') node.cleanup();
      forget(node);
      node.stale = false;
      node.cleanup = watch(node, run);
    },
  };
  node.run();
  return () => {
    forget(node);
    waiting.delete(node);
    if (typeof node.cleanup === 'function') node.cleanup();
    node.cleanup = undefined;
    node.run = () => {};
  };
}

export function batch(run) {
  depth += 1;
  try {
    return run();
  } finally {
    depth -= 1;
    if (depth === 0) flush();
  }
}

export function untracked(run) { return watch(null, run); }
