// A server of the first TypeScript kit, with sessions. A line on its input gives it another tool. With "hold-stream" it
// answers requests for its events only after the line "give-stream".
import { createServer } from 'node:http';
import { createInterface } from 'node:readline';
import { randomUUID } from 'node:crypto';
import { load } from './shared.mjs';

const [folder, hold] = process.argv.slice(2);
const { McpServer } = await load(folder, '@modelcontextprotocol/sdk/server/mcp.js');
const { StreamableHTTPServerTransport } = await load(folder, '@modelcontextprotocol/sdk/server/streamableHttp.js');
const { z } = await load(folder, 'zod');

let grown = false;
let give;
const streams = hold === 'hold-stream' ? new Promise(resolve => { give = resolve; }) : undefined;
const sessions = new Map();

function tools() {
  const server = new McpServer({ name: 'tools', version: '1' });
  const numbers = { a: z.number(), b: z.number() };
  const adds = { inputSchema: numbers, outputSchema: { sum: z.number() }, annotations: { readOnlyHint: true } };
  server.registerTool('add', adds, ({ a, b }) => ({ content: [], structuredContent: { sum: a + b } }));
  const text = text => ({ content: [{ type: 'text', text }] });
  server.registerTool('files.list', {}, () => text('{"looks": "like JSON"}'));
  server.registerTool('fail', {}, () => { throw new Error('no such luck'); });
  server.registerTool('ask', {}, async () => {
    const requestedSchema = { type: 'object', properties: { text: { type: 'string' } } };
    return text(JSON.stringify(await server.server.elicitInput({ message: 'What now?', requestedSchema })));
  });
  if (grown) server.registerTool('late', {}, () => text('late'));
  return server;
}

const listener = createServer(async (request, response) => {
  let session = sessions.get(request.headers['mcp-session-id']);
  if (!session) {
    const transport = new StreamableHTTPServerTransport({
      sessionIdGenerator: () => randomUUID(),
      onsessioninitialized: id => sessions.set(id, session),
    });
    session = { server: tools(), transport };
    await session.server.connect(transport);
  }
  if (request.method === 'GET') await streams;
  await session.transport.handleRequest(request, response);
});
listener.listen(0, '127.0.0.1', () => console.log(listener.address().port));
createInterface({ input: process.stdin }).on('line', line => {
  if (line === 'give-stream') return give();
  grown = true;
  for (const { server } of sessions.values()) {
    server.registerTool('late', {}, () => ({ content: [] }));
  }
});
