// Elements, components and roots. What an element becomes is a host's matter:
//
//   host.element(type, props, children)  one element of a plain type
//   host.text(value)                     a string or number
//   host.root(children)                  what `render` answers
//
// A component is a function of its props. A root renders again when a signal that was read changes.

import { effect, isSignal, untracked } from 'alknet:core/signals';

const mark = Symbol('element');
const levels = 512;

export const Fragment = Symbol('Fragment');

export function h(type, props, ...children) {
  const { key = null, ...rest } = props ?? {};
  return Object.freeze({ [mark]: true, type, key, props: Object.freeze(rest), children: children.flat(Infinity) });
}

export function isElement(value) {
  return typeof value === 'object' && value !== null && value[mark] === true;
}

function build(host, value, depth) {
  if (depth > levels) throw new RangeError('elements are nested too deeply');
  if (value === null || value === undefined || typeof value === 'boolean') return [];
  if (isSignal(value)) return build(host, value.value, depth + 1);
  if (Array.isArray(value)) return value.flatMap((item) => build(host, item, depth + 1));
  if (!isElement(value)) {
    // Functions are children of elements that call them, such as Map.
    return [typeof value === 'function' ? value : host.text(value)];
  }
  const { type, props, children } = value;
  if (type === Fragment) return build(host, children, depth + 1);
  if (typeof type === 'function') {
    return build(host, type({ ...props, children }), depth + 1);
  }
  const plain = {};
  for (const [name, prop] of Object.entries(props)) plain[name] = isSignal(prop) ? prop.value : prop;
  if (value.key !== null) plain.key = value.key;
  return [host.element(type, plain, build(host, children, depth + 1))];
}

export function createRoot(host) {
  let stop = null;
  let current;
  const root = {
    render(element) {
      root.unmount();
      stop = effect(() => {
        const children = build(host, element, 0);
        current = untracked(() => host.root(children));
      });
      return current;
    },
    get value() { return current; },
    unmount() {
      stop?.();
      stop = null;
    },
  };
  return root;
}
