// What every TypeScript client tries, and where packages are found.
import assert from 'node:assert/strict';
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';

export function load(folder, name) {
  const path = createRequire(`${folder}/`).resolve(name);
  return import(pathToFileURL(path));
}

export async function tryAll(client) {
  const names = (await client.listTools()).tools.map(tool => tool.name).sort();
  assert.deepEqual(names, ['batch', 'call', 'demo_add', 'schema', 'search', 'test_image_content']);
  const call = (name, args) => client.callTool({ name, arguments: args });
  const found = await call('search', { q: 'add' });
  assert.equal(found.structuredContent.operations[0].operation, '/demo/add');
  const about = await call('schema', { operation: '/demo/add' });
  assert.deepEqual(about.structuredContent.output_schema.required, ['sum']);
  const add = { operation: '/demo/add', input: { a: 2, b: 3 } };
  assert.deepEqual((await call('call', add)).structuredContent, { sum: 5 });
  assert.deepEqual((await call('demo_add', { a: 20, b: 22 })).structuredContent, { sum: 42 });
  const batch = await call('batch', { calls: [{ id: 'x', ...add }] });
  assert.deepEqual(batch.structuredContent.results[0].output, { sum: 5 });
  for (const [name, args, code] of [
    ['call', { operation: '/demo/fill' }, 'DISK_FULL'],
    ['demo_add', { a: 'x', b: 1 }, 'INVALID_INPUT'],
  ]) {
    const wrong = await call(name, args);
    assert.equal(wrong.isError, true);
    assert.equal(JSON.parse(wrong.content[0].text).code, code);
  }
  const image = await call('test_image_content', {});
  assert.equal(image.content[0].type, 'image');
}

export async function refused(connect) {
  await assert.rejects(connect, /UNAUTHENTICATED/);
}
