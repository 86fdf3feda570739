// The suite names a function that Node has since version 22, and calls it for something else than this.
import { register } from 'node:module';

const fs = `
export * from 'node:fs';
export const globSync = () => { throw new Error('this needs Node 22'); };
`;
const hook = `
const fs = ${JSON.stringify('data:text/javascript,' + encodeURIComponent(fs))};
export async function resolve(name, context, next) {
  const suite = name === 'fs' && context.parentURL?.includes('/conformance/');
  return suite ? { url: fs, shortCircuit: true } : next(name, context);
}
`;
register('data:text/javascript,' + encodeURIComponent(hook));
