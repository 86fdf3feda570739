// The first TypeScript kit, which speaks 2025-11-25.
import { load, refused, tryAll } from './shared.mjs';

const [folder, url, token] = process.argv.slice(2);
const { Client } = await load(folder, '@modelcontextprotocol/sdk/client/index.js');
const { StreamableHTTPClientTransport } = await load(folder, '@modelcontextprotocol/sdk/client/streamableHttp.js');

async function connect(headers) {
  const client = new Client({ name: 'test', version: '1' });
  await client.connect(new StreamableHTTPClientTransport(new URL(url), { requestInit: { headers } }));
  return client;
}

const client = await connect({ authorization: `Bearer ${token}` });
await tryAll(client);
await client.close();
await refused(() => connect({}));
console.log('fine');
