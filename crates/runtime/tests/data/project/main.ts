import { Empty, largest, total, type Item } from './invoice.ts';
import { show } from './view.tsx';
import { run, Operation, Sequential, h } from 'alknet:core/ops-host';

const items: Item[] = [{ name: 'ink', price: 3, count: 2 }, { name: 'paper', price: 4 }];

// Its input and its answer have the types of the operation's schemas.
const doubled: number = await ops.call('double', { a: 21 });

const counted: number[] = [];
for await (const item of ops.subscribe('count', 3)) counted.push(item);

let code = 'none';
try {
  await ops.call('fail', { a: 1 }, { timeoutMs: 1000 });
} catch (error) {
  if (error instanceof OpError) code = error.code;
}

let empty = false;
try {
  total([], 0);
} catch (error) {
  empty = error instanceof Empty;
}

const controller = new AbortController();
setTimeout(() => controller.abort(), 1);
const aborted = await ops.call('double', { a: 1 }, { signal: controller.signal });

const digest = await crypto.subtle.digest('SHA-256', new TextEncoder().encode('abc'));
const url = new URL('https://example.org/a?b=1');
const flow = await run(h(Sequential, null, h(Operation, { path: 'double', input: { a: 1 } })));

export default {
  total: total(items, 50),
  largest: largest(items, ({ price }) => price)?.name,
  tree: show(items),
  doubled, counted, code, empty, aborted,
  digest: new Uint8Array(digest)[0],
  search: url.searchParams.get('b'),
  flow: flow.answer as number,
  listed: ops.list('co').map(({ kind }) => kind),
};

export async function greet({ name }: { name: string }, { signal }: HandlerContext): Promise<string> {
  signal.throwIfAborted();
  return `hello ${structuredClone(name)}`;
}
