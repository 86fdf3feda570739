// Elements as the layout of a tensor file: what its `mt.schema` and `mt.index` say.
//
//   <Struct name="model">
//     <Field name="embed"><Tensor dtype="BF16" shape={[32000, 512]} /></Field>
//     <Field name="layers">
//       <ArrayOf count={2}>
//         <Struct><Field name="weight"><Tensor dtype="F32" shape={[512, 512]} /></Field></Struct>
//       </ArrayOf>
//     </Field>
//     <Field name="points">
//       <ArrayOf count={100}>
//         <Struct name="Point"><Field name="x" type="Float32" /><Field name="y" type="Float32" /></Struct>
//       </ArrayOf>
//     </Field>
//     <Field name="words"><Blob enc="utf8" /></Field>
//   </Struct>
//
// A Struct that has a field with a type, or says `record`, is a record: bytes of one tensor. Any other
// is a level of names, `model.layers.0.weight`, and of the nested view. Offsets in records are those of C, which is what
// the reader computes from the schema and holds them against.

import { createRoot, h } from 'alknet:core/ujsx';

export const Struct = 'Struct';
export const Field = 'Field';
export const Tensor = 'Tensor';
export const Blob = 'Blob';
export const ArrayOf = 'ArrayOf';

// As many as readers take from a network.
const TENSORS = 65536;
const FIELDS = 65536;
const NAME_BYTES = 1024;
const DIMENSIONS = 8;
const ALIGN = 65536;
// What is around the leaves of the nested view in a header, and how deep that may be.
const DEPTH = 30;

const dtypes = new Set([
  'BOOL', 'F4', 'F6_E2M3', 'F6_E3M2', 'U8', 'I8', 'F8_E5M2', 'F8_E4M3', 'F8_E8M0', 'F8_E4M3FNUZ', 'F8_E5M2FNUZ',
  'I16', 'U16', 'F16', 'BF16', 'I32', 'U32', 'F32', 'C64', 'F64', 'I64', 'U64',
]);
// Bytes of a value.
const numbers = {
  __proto__: null, Boolean: 1, Int8: 1, Uint8: 1, Int16: 2, Uint16: 2, Float16: 2, BFloat16: 2, Int32: 4, Uint32: 4,
  Float32: 4, Enum: 4, Int64: 8, Uint64: 8, Float64: 8,
};
const texts = new Set(['String', 'Timestamp', 'Bytes']);
const allowed = {
  __proto__: null,
  Struct: ['name', 'record'], ArrayOf: ['count'], Tensor: ['dtype', 'shape', 'align'], Blob: ['enc', 'count', 'shapeOf'],
  Field: ['name', 'type', 'count', 'bytes', 'values', 'nonfinite'],
};

const whole = (value, least, what) => {
  if (!Number.isSafeInteger(value) || value < least) throw new RangeError(`${what} is a whole number of ${least} or more`);
  return value;
};
const fits = (value) => whole(value, 0, 'a size');
const up = (size, align) => fits(Math.ceil(size / align) * align);
const named = (name, what) => {
  // Control characters have no place in a name.
  if (typeof name !== 'string' || name === '' || /\p{Cc}/u.test(name)) throw new TypeError(`${what} needs a name`);
  return name;
};

// What stands in a record, as far as its room goes: `fields(path, offset)` are its leaves.
function leaf({ name, type, bytes, values, nonfinite }) {
  const keyword = `TypeDef:${type}`;
  const one = (path, off, len) => [len === undefined ? { path, off, type } : { path, off, type, len }];
  if (type in numbers) {
    const width = numbers[type];
    const schema = { [keyword]: nonfinite === true ? { nonfinite: true } : true };
    if (type === 'Enum') {
      if (!Array.isArray(values) || values.length === 0) throw new TypeError(`the Enum ${name} needs values`);
      schema.enum = [...values];
    }
    return { size: width, align: width, number: true, schema, fields: (path, off) => one(path, off) };
  }
  if (!texts.has(type)) throw new TypeError(`the field ${name} is of the unknown type ${String(type)}`);
  if (bytes === undefined) {
    // Elsewhere: where, and how many.
    return { size: 16, align: 8, schema: { [keyword]: { encoding: 'indirect' } }, fields: (path, off) => one(path, off) };
  }
  const len = whole(bytes, 1, `bytes of ${name}`);
  const [before, align] = type === 'Bytes' ? [4, 4] : [0, 1];
  const schema = { [keyword]: true, 'TypeDef:maxBytes': len };
  return { size: up(before + len, align), align, schema, fields: (path, off) => one(path, off, len) };
}

function several(item, count) {
  whole(count, 1, 'count');
  const stride = up(item.size, item.align);
  const schema = { 'TypeDef:Array': true, minItems: count, maxItems: count, items: item.schema };
  const fields = (path, off) => {
    if (item.number) {
      const [field] = item.fields(path, off);
      return [count === 1 ? field : { ...field, len: count }];
    }
    if (count > FIELDS) throw new RangeError(`more than ${FIELDS} fields in a record`);
    return Array.from({ length: count }, (_, at) => item.fields(`${path}/${at}`, off + at * stride)).flat();
  };
  return { size: fits(stride * count), align: item.align, schema, fields };
}

function record(node, defs) {
  const name = node.props.name;
  if (typeof name !== 'string' || !/^[A-Za-z0-9_-]+$/.test(name)) {
    throw new TypeError('a Struct of typed fields needs a name of letters, digits, _ and -');
  }
  const members = [];
  const properties = {};
  let [size, align] = [0, 1];
  for (const { props, children: [child] } of node.children) {
    if (Object.hasOwn(properties, props.name)) throw new TypeError(`two fields of ${name} are called ${props.name}`);
    let part = child === undefined ? leaf(props) : inRecord(child, defs);
    if (props.count !== undefined) part = several(part, props.count);
    size = up(size, part.align);
    const path = `/${props.name.replaceAll('~', '~0').replaceAll('/', '~1')}`;
    members.push({ path, off: size, part });
    size = fits(size + part.size);
    align = Math.max(align, part.align);
    // Not by assignment: `__proto__` is a name like any other.
    Object.defineProperty(properties, props.name, { value: part.schema, enumerable: true });
  }
  const def = { 'TypeDef:Struct': { fields: node.children.map(({ props }) => props.name) }, properties };
  if (defs.has(name) && JSON.stringify(defs.get(name)) !== JSON.stringify(def)) {
    throw new TypeError(`two different records are called ${name}`);
  }
  defs.set(name, def);
  const fields = (path, off) => members.flatMap((member) => member.part.fields(path + member.path, off + member.off));
  return { size: up(size, align), align, schema: { $ref: `#/$defs/${name}` }, fields };
}

function inRecord(node, defs) {
  switch (node.type) {
    case Struct: return record(node, defs);
    case ArrayOf: return several(inRecord(node.children[0], defs), node.props.count);
    default: throw new TypeError(`a record has no ${node.type}`);
  }
}

// Whether an element is one tensor of records.
function isRecord({ type, props, children: [child, ...others] }) {
  switch (type) {
    case Struct: return props.record === true || [child, ...others].some((field) => field.props.type !== undefined);
    case ArrayOf: return child.type === Struct && isRecord(child);
    default: return false;
  }
}

class Layout {
  defs = new Map();
  tensors = {};
  order = [];

  add(path, about) {
    const name = path.join('.');
    if (new TextEncoder().encode(name).length > NAME_BYTES) throw new RangeError(`a name of more than ${NAME_BYTES} bytes`);
    if (name === '' || name === '__metadata__' || name.startsWith('__pad__.') || name.endsWith('.__off__')) {
      throw new TypeError(`the name ${JSON.stringify(name)} is not to be had`);
    }
    if (Object.hasOwn(this.tensors, name)) throw new TypeError(`two tensors are called ${name}`);
    if (this.order.length >= TENSORS) throw new RangeError(`more than ${TENSORS} tensors`);
    Object.defineProperty(this.tensors, name, { value: about, enumerable: true });
    this.order.push(name);
    return `#${name}`;
  }

  // Adds what is below, and answers its part of the nested view.
  walk(node, path, depth) {
    if (depth > DEPTH) throw new RangeError(`more than ${DEPTH} levels`);
    const { type, props, children } = node;
    if (isRecord(node)) {
      const [count, of] = type === ArrayOf ? [props.count, children[0]] : [1, node];
      const { schema, size, fields } = record(of, this.defs);
      const list = fields('', 0);
      if (list.length > FIELDS) throw new RangeError(`more than ${FIELDS} fields in a record`);
      fits(size * count);
      return this.add(path, { kind: 'struct', def: schema.$ref, stride: size, count, fields: list });
    }
    switch (type) {
      case Tensor: {
        const { dtype, shape, align } = props;
        return this.add(path, { kind: 'flat', dtype, shape, ...(align !== undefined && { align }) });
      }
      case Blob: {
        const { enc, count, shapeOf } = props;
        const more = { ...(count !== undefined && { count }), ...(shapeOf !== undefined && { shape_of: shapeOf }) };
        return this.add(path, { kind: 'blob', enc, ...more });
      }
      case ArrayOf: {
        if (props.count > TENSORS) throw new RangeError(`more than ${TENSORS} tensors`);
        const each = (_, at) => [String(at), this.walk(children[0], [...path, String(at)], depth + 1)];
        return Object.fromEntries(Array.from({ length: props.count }, each));
      }
      default: {
        const each = ({ props: { name }, children: [child] }) => [name, this.walk(child, [...path, name], depth + 1)];
        const names = children.map((field) => field.props.name);
        if (new Set(names).size < names.length) throw new TypeError(`two fields in ${path.join('.')} have one name`);
        return Object.fromEntries(children.map(each));
      }
    }
  }

  done(root) {
    for (const { shape_of: shape } of Object.values(this.tensors)) {
      if (shape !== undefined && !Object.hasOwn(this.tensors, shape)) throw new TypeError(`no tensor ${shape} has shapes`);
    }
    const schema = this.defs.size === 0 ? null : { $defs: Object.fromEntries(this.defs) };
    return { schema, index: { tensors: this.tensors, order: this.order, root } };
  }
}

function checked(type, props, children) {
  const known = allowed[type];
  if (known === undefined) throw new TypeError(`a layout has no ${String(type)}`);
  for (const name of Object.keys(props)) {
    if (name !== 'key' && !known.includes(name)) throw new TypeError(`a ${type} has no ${name}`);
  }
  const [child, ...others] = children;
  const only = (kinds, of) => {
    if (!children.every((one) => kinds.includes(one.type))) throw new TypeError(`in a ${of} are: ${kinds.join(', ')}`);
  };
  switch (type) {
    case Tensor: {
      const { dtype, shape, align } = props;
      if (!dtypes.has(dtype)) throw new TypeError(`there is no element type ${String(dtype)}`);
      if (!Array.isArray(shape) || shape.length > DIMENSIONS) throw new RangeError(`a shape has at most ${DIMENSIONS} sizes`);
      const sizes = shape.map((size) => whole(size, 0, 'a size'));
      if (align !== undefined && !(align >= 1 && align <= ALIGN && Number.isInteger(Math.log2(align)))) {
        throw new RangeError(`align is a power of two up to ${ALIGN}`);
      }
      only([], type);
      return { type, props: { ...props, shape: sizes }, children };
    }
    case Blob: {
      const { enc = 'bytes', count } = props;
      named(enc, 'the encoding of a Blob');
      if (count !== undefined) whole(count, 0, 'count');
      only([], type);
      return { type, props: { ...props, enc }, children };
    }
    case ArrayOf:
      whole(props.count, 0, 'count');
      only([Struct, ArrayOf, Tensor, Blob], type);
      if (child === undefined || others.length > 0) throw new TypeError('an ArrayOf repeats one element');
      break;
    case Field:
      named(props.name, 'a Field');
      only([Struct, ArrayOf, Tensor, Blob], type);
      if ((child === undefined) !== (props.type !== undefined) || others.length > 0) {
        throw new TypeError(`the field ${props.name} has either a type or one element in it`);
      }
      if (props.count !== undefined && props.type === undefined) throw new TypeError('more than one element is an ArrayOf');
      break;
    default:
      if (props.name !== undefined) named(props.name, 'a Struct');
      only([Field], type);
      if (child === undefined) throw new TypeError('a Struct without fields');
  }
  return { type, props, children };
}

export const layoutHost = {
  element: checked,
  text(value) { throw new TypeError(`a layout has no text: ${value}`); },
  // Structs and fields; what a Struct without a name has in it stands at the top.
  root(children) {
    const layout = new Layout();
    const root = {};
    const put = (name, below) => {
      if (Object.hasOwn(root, name)) throw new TypeError(`two elements at the top are called ${name}`);
      Object.defineProperty(root, name, { value: below, enumerable: true });
    };
    for (const node of children) {
      const { type, props, children: [child] } = node;
      if (type === Field && child !== undefined) {
        put(props.name, layout.walk(child, [props.name], 1));
      } else if (type === Struct && props.name !== undefined) {
        put(props.name, layout.walk(node, [props.name], 1));
      } else if (type === Struct && !isRecord(node)) {
        for (const [name, below] of Object.entries(layout.walk(node, [], 0))) put(name, below);
      } else {
        throw new TypeError('at the top are Structs, and Fields with an element');
      }
    }
    return layout.done(root);
  },
};

// `{ schema, index }` of a tree; `schema` is null where there are no records.
export function layout(element) { return createRoot(layoutHost).render(element); }

const said = ({ type, off, len }) => {
  const kind = texts.has(type) && len === undefined ? 'Indirect' : type;
  return len === undefined || len === 1 ? `${kind} at ${off}` : `${kind}[${len}] at ${off}`;
};
const shapeOf = (about) => {
  switch (about.kind) {
    case 'struct': return [`struct of ${about.stride} bytes`, `[${about.count}]`];
    case 'blob': return [`blob of ${about.enc}`, `[${about.count ?? '?'}]`];
    default: return [about.dtype, `[${about.shape.join(', ')}]`];
  }
};
const fieldsOf = (about) => new Map((about.fields ?? []).map((field) => [field.path, said(field)]));

// The steps from one layout to another, in the words of `alknet tensor diff`: what goes, in the order
// of the first, then the rest in that of the second.
export function diff({ index: before }, { index: after }) {
  const of = (index, name) => (Object.hasOwn(index.tensors, name) ? index.tensors[name] : undefined);
  const text = (about) => shapeOf(about).join(' ');
  const gone = before.order.filter((name) => of(after, name) === undefined);
  const changes = gone.map((path) => ({ op: 'remove', path, from: text(of(before, path)) }));
  for (const path of after.order) {
    const [was, is] = [of(before, path), of(after, path)];
    if (was === undefined) {
      changes.push({ op: 'add', path, to: text(is) });
      continue;
    }
    const [[kind, dims], [newKind, newDims]] = [shapeOf(was), shapeOf(is)];
    if (kind !== newKind || dims !== newDims) {
      changes.push({ op: kind === newKind ? 'reshape' : 'retype', path, from: text(was), to: text(is) });
    }
    const [old, now] = [fieldsOf(was), fieldsOf(is)];
    for (const [field, from] of old) {
      if (!now.has(field)) changes.push({ op: 'remove', path: `${path}#${field}`, from });
    }
    for (const [field, to] of now) {
      const from = old.get(field);
      if (from === undefined) changes.push({ op: 'add', path: `${path}#${field}`, to });
      else if (from !== to) changes.push({ op: 'retype', path: `${path}#${field}`, from, to });
    }
  }
  return changes;
}

export { h };
