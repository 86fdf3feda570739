// The second TypeScript kit, which speaks 2026-07-28 with servers that do.
import assert from 'node:assert/strict';
import { load, refused, tryAll } from './shared.mjs';

const [folder, url, token] = process.argv.slice(2);
const { Client, StreamableHTTPClientTransport } = await load(folder, '@modelcontextprotocol/client');

async function connect(headers, options) {
  const client = new Client({ name: 'test', version: '1' }, options);
  await client.connect(new StreamableHTTPClientTransport(new URL(url), { requestInit: { headers } }));
  return client;
}

const headers = { authorization: `Bearer ${token}` };
for (const mode of ['legacy', 'auto']) {
  const client = await connect(headers, { versionNegotiation: { mode } });
  await tryAll(client);
  if (mode === 'auto') assert.equal(client.getNegotiatedProtocolVersion(), '2026-07-28');
  await client.close();
}
await refused(() => connect({}));
console.log('fine');
