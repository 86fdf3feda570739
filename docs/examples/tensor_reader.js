// Reads a tensor file out of an ArrayBuffer and copies nothing. Any engine runs it; its author had only docs/tensor.md.
// The reader does not check the file: check a file of unknown origin with `alknet tensor verify` first.

const ARRAYS = {
  BOOL: Uint8Array, U8: Uint8Array, I8: Int8Array, U16: Uint16Array, I16: Int16Array, U32: Uint32Array,
  I32: Int32Array, F32: Float32Array, U64: BigUint64Array, I64: BigInt64Array, F64: Float64Array,
};
const FIELDS = {
  Int8: 1, Uint8: 1, Int16: 2, Uint16: 2, Int32: 4, Uint32: 4, Float32: 4, BigInt64: 8, BigUint64: 8, Float64: 8,
};
const ALIASES = { Boolean: 'Uint8', Enum: 'Uint32', Int64: 'BigInt64', Uint64: 'BigUint64' };

export function open(file) {
  const length = Number(new DataView(file).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(file, 8, length)));
  const index = JSON.parse(header.__metadata__?.['mt.index'] ?? '{"tensors":{}}');
  const view = (name) => {
    const { dtype, shape, data_offsets: [begin, end] } = header[name];
    const Kind = ARRAYS[dtype] ?? Uint8Array;
    return { dtype, shape, data: new Kind(file, 8 + length + begin, (end - begin) / Kind.BYTES_PER_ELEMENT) };
  };
  const records = (name) => {
    const { stride, count, fields } = index.tensors[name];
    const { buffer, byteOffset } = view(name).data;
    const value = (start, { off, type, len = 1 }) => {
      if (type === 'String') return new TextDecoder().decode(new Uint8Array(buffer, start + off, len)).replace(/\0+$/, '');
      const kind = ALIASES[type] ?? type;
      const one = (_, at) => new DataView(buffer)[`get${kind}`](start + off + at * FIELDS[kind], true);
      return len === 1 ? one(null, 0) : Array.from({ length: len }, one);
    };
    const record = (start) => Object.fromEntries(fields.map((field) => [field.path, value(start, field)]));
    return Array.from({ length: count }, (_, at) => record(byteOffset + at * stride));
  };
  const items = (name) => {
    const [bytes, ends] = [view(name).data, view(`${name}.__off__`).data];
    return Array.from(ends.subarray(1), (end, at) => bytes.subarray(Number(ends[at]), Number(end)));
  };
  return { names: Object.keys(index.tensors), metadata: header.__metadata__, view, records, items };
}
