// Bytes and element types of arrays, for `gpu` and `tensor`.
(function (native, hooks) {
  const { isView } = ArrayBuffer;
  const { toString } = Object.prototype;
  hooks.bytesOf = (data) => {
    if (data instanceof ArrayBuffer) return new Uint8Array(data);
    if (isView(data)) return new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
    throw new TypeError('bytes are an ArrayBuffer or a view of one');
  };
  const DTYPES = {
    Float16Array: 'F16', Float32Array: 'F32', Float64Array: 'F64', Int8Array: 'I8', Int16Array: 'I16',
    Int32Array: 'I32', BigInt64Array: 'I64', Uint8Array: 'U8', Uint8ClampedArray: 'U8',
    Uint16Array: 'U16', Uint32Array: 'U32', BigUint64Array: 'U64', DataView: 'U8', ArrayBuffer: 'U8',
  };
  hooks.dtypeOf = (data) => DTYPES[Reflect.apply(toString, data, []).slice(8, -1)] ?? 'U8';
});
