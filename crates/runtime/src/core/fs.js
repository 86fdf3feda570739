// Files of the node. Every function calls operations `fs/*` by `ops`, so a script may do here what its session may call.
//
//   const text = await readText('docs:/2026/report.txt');
//   await write('docs:/2026/report.txt', `${text}\nseen`);
//   for await (const event of watch('docs:/2026')) console.log(event.topic, event.path);
//
// A path is `bucket[@branch][#seq]:/path`. Rules of paths and ranges are the operations' own: what breaks one fails with
// the operation's error.

// Bytes that `fs/write/chunk` takes, and `fs/put`.
const CHUNK_BYTES = 256 * 1024;
const PUT_BYTES = 512 * 1024;
// What `read` takes at once: a content that fills the heap would end the session.
const READ_BYTES = 16 * 1024 * 1024;

const CALL_OPTIONS = ['peer', 'signal', 'timeoutMs'];
const VERSION_OPTIONS = ['asOf'];
const RANGE_OPTIONS = [...VERSION_OPTIONS, 'length', 'offset'];
const LIST_OPTIONS = [...VERSION_OPTIONS, 'limit', 'recursive'];
const CONDITION_OPTIONS = ['ifMatch', 'ifNoneMatch'];
const WRITE_OPTIONS = [...CONDITION_OPTIONS, 'fileMode', 'lockTokens', 'mtimeMs'];

// The options of a function, and those of its calls. A misspelt option would have no effect, so it is an error.
function checked(name, options, known) {
  if (typeof options !== 'object' || options === null) throw new TypeError(`the options of ${name} are an object`);
  const all = [...known, ...CALL_OPTIONS];
  for (const option of Object.keys(options)) {
    if (!all.includes(option)) throw new TypeError(`${name} has no option ${option}; its options are ${all.join(', ')}`);
  }
  const { peer, signal, timeoutMs, ...own } = options;
  return [own, { peer, signal, timeoutMs }];
}

function pathOf(path) {
  if (typeof path !== 'string') throw new TypeError('a path is a text such as docs:/2026/report.txt');
  return path;
}

const isBytes = (data) => data instanceof ArrayBuffer || ArrayBuffer.isView(data);

function encoded(data) {
  if (typeof data === 'string') return new TextEncoder().encode(data);
  if (data instanceof ArrayBuffer) return new Uint8Array(data);
  if (ArrayBuffer.isView(data)) return new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  throw new TypeError('data is a text, an ArrayBuffer or a view of one');
}

// Binary data of the answer, or the base64 that a recorded test may have in its place.
const decoded = (bytes) => (typeof bytes === 'string' ? Uint8Array.fromBase64(bytes) : new Uint8Array(bytes));

// The items of a subscription in the form of `shape`, which leaves an item out by `undefined`. Unlike that of a generator,
// `return` ends the subscription also while an item is awaited.
const shaped = (items, shape) => ({
  [Symbol.asyncIterator]() { return this; },
  async next() {
    for (;;) {
      const { done, value } = await items.next();
      if (done) return { done, value };
      const made = shape(value);
      if (made !== undefined) return { done, value: made };
    }
  },
  return(value) { return items.return(value); },
  throw(error) { return items.throw(error); },
});

const entryOf = ({ mtime_ms: mtimeMs, ...entry }) => ({ ...entry, mtimeMs });
const eventOf = ({ time_ms: timeMs, ...event }) => (timeMs === undefined ? event : { ...event, timeMs });

// What the entry at a path is.
export async function stat(path, options = {}) {
  const [{ asOf }, call] = checked('stat', options, VERSION_OPTIONS);
  return entryOf(await ops.call('fs/stat', { path: pathOf(path), as_of: asOf }, call));
}

// One page of a directory: `entries`, and `next` if there are more.
export async function list(path, options = {}) {
  const [{ asOf, limit, page, recursive }, call] = checked('list', options, [...LIST_OPTIONS, 'page']);
  const found = await ops.call('fs/list', { path: pathOf(path), as_of: asOf, limit, page, recursive }, call);
  const entries = found.entries.map(entryOf);
  return found.next === undefined ? { entries } : { entries, next: found.next };
}

// All entries of a directory. The next page is asked for once the loop has taken the one before.
export function entries(path, options = {}) {
  checked('entries', options, LIST_OPTIONS);
  return pages(pathOf(path), options);
}

async function* pages(path, options) {
  let page;
  do {
    const found = await list(path, { ...options, page });
    yield* found.entries;
    page = found.next;
  } while (page !== undefined);
}

function subscribed(name, path, options) {
  const [{ asOf, length, offset }, call] = checked(name, options, RANGE_OPTIONS);
  return ops.subscribe('fs/read', { path: pathOf(path), as_of: asOf, length, offset }, call);
}

// The content of a file or a range of it, block by block.
export function readBlocks(path, options = {}) {
  // The first item says what the blocks are of.
  return shaped(subscribed('readBlocks', path, options), ({ bytes }) => (bytes === undefined ? undefined : decoded(bytes)));
}

async function readAs(name, path, options) {
  let content = new Uint8Array(0);
  let at = 0;
  for await (const { bytes, length } of subscribed(name, path, options)) {
    if (bytes === undefined) {
      if (length > READ_BYTES) {
        throw new RangeError(`${name} takes at most ${READ_BYTES} bytes, and ${path} has ${length} in the range; use readBlocks`);
      }
      content = new Uint8Array(length);
    } else {
      const block = decoded(bytes);
      content.set(block, at);
      at += block.length;
    }
  }
  return content;
}

// The content of a file or a range of it.
export async function read(path, options = {}) { return readAs('read', path, options); }

// The same as text of UTF-8.
export async function readText(path, options = {}) {
  return new TextDecoder('utf-8', { fatal: true }).decode(await readAs('readText', path, options));
}

// A private version of a file, which becomes the file by `close`.
class WriteSession {
  #id;
  #call;
  #at = 0;
  #over = false;

  constructor(path, id, call) {
    Object.defineProperty(this, 'path', { value: path, enumerable: true });
    this.#id = id;
    this.#call = call;
  }

  #check() {
    if (this.#over) throw new TypeError(`the write session of ${this.path} is over`);
  }

  // Writes behind what `write` wrote before.
  async write(data) {
    this.#check();
    const bytes = encoded(data);
    const at = this.#at;
    this.#at += bytes.length;
    await this.writeAt(at, bytes);
  }

  async writeAt(offset, data) {
    this.#check();
    if (!Number.isSafeInteger(offset) || offset < 0) throw new RangeError('an offset is a whole number of 0 or more');
    const bytes = encoded(data);
    // In order: the node hashes a content while it comes in order.
    for (let at = 0; at < bytes.length; at += CHUNK_BYTES) {
      const chunk = bytes.subarray(at, at + CHUNK_BYTES).toBase64();
      await ops.call('fs/write/chunk', { session: this.#id, offset: offset + at, bytes: chunk }, this.#call);
    }
  }

  // The session is over also if this fails.
  async close(options = {}) {
    this.#check();
    const [{ ifMatch, ifNoneMatch }] = checked('close', options, CONDITION_OPTIONS);
    this.#over = true;
    const input = { session: this.#id, if_match: ifMatch, if_none_match: ifNoneMatch };
    return ops.call('fs/write/close', input, this.#call);
  }

  // Leaves the file as it was. Does nothing once the session is over.
  async abort() {
    if (this.#over) return;
    this.#over = true;
    // Without the signal, which may be the reason of the abort.
    await ops.call('fs/write/abort', { session: this.#id }, { ...this.#call, signal: undefined });
  }
}

// Opens a write session.
export async function open(path, options = {}) {
  const [own, call] = checked('open', options, [...WRITE_OPTIONS, 'mode', 'size']);
  const { session } = await ops.call('fs/write/open', {
    path: pathOf(path), mode: own.mode, size: own.size, file_mode: own.fileMode, mtime_ms: own.mtimeMs,
    if_match: own.ifMatch, if_none_match: own.ifNoneMatch, lock_tokens: own.lockTokens,
  }, call);
  return new WriteSession(path, session, call);
}

// Makes data the content of a file: at once, or by a session if it is long or comes in parts.
export async function write(path, data, options = {}) {
  const [own, call] = checked('write', options, WRITE_OPTIONS);
  const isWhole = typeof data === 'string' || isBytes(data);
  if (!isWhole && data?.[Symbol.asyncIterator] === undefined && data?.[Symbol.iterator] === undefined) {
    throw new TypeError('what is written is a text, an ArrayBuffer or a view of one, or an iterable of these');
  }
  const bytes = isWhole ? encoded(data) : undefined;
  if (isWhole && bytes.length <= PUT_BYTES) {
    return ops.call('fs/put', {
      path: pathOf(path), bytes: bytes.toBase64(), mode: own.fileMode, mtime_ms: own.mtimeMs,
      if_match: own.ifMatch, if_none_match: own.ifNoneMatch, lock_tokens: own.lockTokens,
    }, call);
  }
  const session = await open(path, { ...options, size: bytes?.length });
  try {
    for await (const part of isWhole ? [bytes] : data) await session.write(part);
  } catch (error) {
    // The caller needs the reason of the failure more than that of the abort; the node sweeps the session later.
    await session.abort().catch(() => {});
    throw error;
  }
  return session.close();
}

// What happens at a path and below it, from `cursor` or from now on.
export function watch(path, options = {}) {
  const [{ allBranches, cursor, topics }, call] = checked('watch', options, ['allBranches', 'cursor', 'topics']);
  const input = { path: pathOf(path), all_branches: allBranches, cursor, topics };
  return shaped(ops.subscribe('fs/watch', input, call), eventOf);
}
