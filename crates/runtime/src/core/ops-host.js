// Elements as workflows. Rendering gives a plan; running it calls the operations.
//
//   <Sequential>
//     <Operation path="http/fetch" input={{ url }} as="page" />
//     <Conditional when={(results) => results.page.status === 200}>
//       <Operation path="fs/write" input={(results) => ({ text: results.page.text })} />
//     </Conditional>
//   </Sequential>
//
// What an Operation gives is known to those after it under the name of `as`. Functions for `input`,
// `when` and `over` decide by these results alone: nothing can be called from them.

import { createRoot, h, isElement } from 'alknet:core/ujsx';

export const Operation = 'Operation';
export const Sequential = 'Sequential';
export const Parallel = 'Parallel';
export const Conditional = 'Conditional';
export const Map = 'Map';

const kinds = new Set([Operation, Sequential, Parallel, Conditional, Map]);

export const opsHost = {
  element(type, props, children) {
    if (!kinds.has(type)) throw new TypeError(`a workflow has no ${String(type)}`);
    return { type, props, children };
  },
  text(value) { throw new TypeError(`a workflow has no text: ${value}`); },
  root(children) { return { type: Sequential, props: {}, children }; },
};

const given = (value, ...args) => (typeof value === 'function' ? ops.pure(value, ...args) : value);

async function step(plan, results, options) {
  options.signal?.throwIfAborted();
  const { type, props, children } = plan;
  switch (type) {
    case Operation: {
      const { path, input = null, as, peer, timeoutMs, idempotencyKey } = props;
      const answer = await ops.call(path, given(input, results), { peer, timeoutMs, idempotencyKey, signal: options.signal });
      if (as !== undefined) results[as] = answer;
      return answer;
    }
    case Parallel:
      return Promise.all(children.map((child) => step(child, results, options)));
    case Conditional: {
      if (given(props.when, results)) return sequence(children, results, options);
      return props.else === undefined ? null : sequence(planOf(props.else), results, options);
    }
    case Map: {
      const items = [...given(props.over, results)];
      const [make] = children;
      if (typeof make !== 'function') throw new TypeError('the child of Map is a function');
      const answers = new Array(items.length);
      let next = 0;
      const work = async () => {
        while (next < items.length) {
          const index = next++;
          const element = ops.pure(make, items[index], index);
          answers[index] = await sequence(planOf(element), { ...results }, options);
        }
      };
      const width = Math.max(1, Math.min(items.length, props.concurrency ?? 8));
      await Promise.all(Array.from({ length: width }, work));
      return answers;
    }
    default:
      return sequence(children, results, options);
  }
}

async function sequence(plans, results, options) {
  let answer = null;
  for (const plan of plans) answer = await step(plan, results, options);
  return answer;
}

const planOf = (element) => (isElement(element) ? plan(element).children : element);

export function plan(element) { return createRoot(opsHost).render(element); }

// The last answer of the workflow, and everything that was given a name.
export async function run(element, options = {}) {
  const results = { __proto__: null };
  const answer = await step(plan(element), results, options);
  return { answer, results: { ...results } };
}

export { h };
