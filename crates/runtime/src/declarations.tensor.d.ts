interface Tensor {
  readonly dtype: string;
  readonly shape: readonly number[];
  /** In elements. */
  readonly strides: readonly number[];
  readonly byteLength: number;
  /** Writing to its elements has no effect. */
  readonly readonly: boolean;
  /** The file has it where no array can begin. */
  readonly copied: boolean;
  data(): any;
  /** Of every element type but complex numbers. */
  toF32(): Float32Array;
  slice(from?: number, to?: number): Tensor;
  reshape(shape: readonly number[]): Tensor;
  toGPU(): Promise<any>;
  dispose(): void;
}
interface TensorFile {
  /** What `tensor/open` says. */
  readonly info: any;
  names(): string[];
  view(name: string): Tensor;
  close(): void;
}
declare const tensor: {
  open(ref: { id: string } | { path: string }): Promise<TensorFile>;
  from(data: ArrayBufferView & { length: number }, shape?: readonly number[]): Tensor;
  alloc(dtype: string, shape: readonly number[]): Tensor;
};
