// Elements as plain JSON: for tests, and for programs that draw them elsewhere.

export const jsonHost = {
  element(type, props, children) { return { type: String(type), props, children }; },
  text(value) { return typeof value === 'number' ? value : String(value); },
  root(children) { return children.length === 1 ? children[0] : children; },
};
