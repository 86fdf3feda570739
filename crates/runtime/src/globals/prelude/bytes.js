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
  // Bits of an element, by its type.
  hooks.bitsOf = {
    __proto__: null,
    BOOL: 8, F4: 4, F6_E2M3: 6, F6_E3M2: 6, U8: 8, I8: 8, F8_E5M2: 8, F8_E4M3: 8, F8_E8M0: 8,
    F8_E4M3FNUZ: 8, F8_E5M2FNUZ: 8, I16: 16, U16: 16, F16: 16, BF16: 16, I32: 32, U32: 32, F32: 32,
    C64: 64, F64: 64, I64: 64, U64: 64,
  };
  hooks.dtypeOf = (data) => DTYPES[Reflect.apply(toString, data, []).slice(8, -1)] ?? 'U8';
});
