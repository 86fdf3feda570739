import { entries, list, open, read, readBlocks, readText, stat, watch, write } from 'alknet:core/fs';
import type { Entry, FsEvent, WriteSession } from 'alknet:core/fs';

const report = 'docs:/2026/report.txt';

const entry: Entry = await stat(report, { asOf: 7 });
const page = await list('docs:/2026', { limit: 2 });
const names: string[] = [];
for await (const { path } of entries('docs:/2026', { limit: 2 })) names.push(path);

const text = await readText(report);
const part = await read(report, { offset: 1, length: 3 });
const blocks: number[] = [];
for await (const block of readBlocks(report)) blocks.push(block.length);

const written = await write('docs:/copy.txt', text, { ifNoneMatch: '*', fileMode: 0o600 });

const session: WriteSession = await open('docs:/parts.txt', { mode: 'create', size: 4 });
await session.write('ab');
await session.write(new Uint8Array([99]));
await session.writeAt(3, new TextEncoder().encode('d').buffer);
const closed = await session.close({ ifNoneMatch: '*' });
await session.abort();

// A content in parts that fails leaves the file as it was.
async function* broken(): AsyncGenerator<string> {
  yield 'x';
  throw new Error('no more parts');
}
let failed = '';
try {
  await write(report, broken());
} catch (error) {
  if (error instanceof Error) failed = error.message;
}

const events: FsEvent[] = [];
for await (const event of watch('docs:/2026', { cursor: 4, topics: ['fs.put'] })) {
  events.push(event);
  if (event.topic === 'fs.put') break;
}

export default {
  entry, page, names, text, part: [...part], blocks, failed, events,
  hashes: [written.hash, closed.hash],
};
