// Uses a node with two TypeScript SDKs of the Model Context Protocol: node mcp_node.mjs PACKAGES.
// The input is a JSON object with the node's `url` and a `token`. The token is not an argument, because every user of
// the host can read arguments.
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';

const folder = process.argv[2];
const { url, token } = JSON.parse(readFileSync(0, 'utf8'));
const load = name => import(pathToFileURL(createRequire(`${folder}/`).resolve(name)));
const older = {
  ...(await load('@modelcontextprotocol/sdk/client/index.js')),
  ...(await load('@modelcontextprotocol/sdk/client/streamableHttp.js')),
};
const newer = await load('@modelcontextprotocol/client');

for (const { Client, StreamableHTTPClientTransport } of [older, newer]) {
  const client = new Client({ name: 'test', version: '1' });
  const requestInit = { headers: { authorization: `Bearer ${token}` } };
  await client.connect(new StreamableHTTPClientTransport(new URL(url), { requestInit }));
  const names = (await client.listTools()).tools.map(tool => tool.name);
  assert.ok(['search', 'schema', 'call', 'batch', 'node_info'].every(name => names.includes(name)));
  const info = await client.callTool({ name: 'call', arguments: { operation: '/node/info' } });
  assert.deepEqual(info.structuredContent.problems, []);
  await client.close();
}
console.log('fine');
