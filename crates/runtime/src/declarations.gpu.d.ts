interface GpuTensor {
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly handle: string;
  /** What lies on the GPU, or the rows from the first number to before the second. */
  read(rows?: [number, number]): Promise<ArrayBuffer>;
  write(data: Bytes, rows?: [number, number]): Promise<void>;
  dispose(): Promise<void>;
}
interface GpuModule { readonly wgsl: string }
interface GpuBinding {
  binding: number;
  access?: "uniform" | "read" | "read_write";
  arg?: GpuTensor | { handle: string } | { ref: string } | { inline: string; dtype: string; shape: number[] };
  /** Comes back as a `GpuTensor`, or `inline`: as `{ inline: ArrayBuffer, dtype, shape }`, up to 64 KiB. */
  out?: { dtype: string; shape: number[]; as?: "handle" | "inline" };
}
declare const gpu: {
  /** What `compute/info` says. */
  readonly adapter: Promise<any>;
  module(wgsl: string): GpuModule;
  /** A number of bytes, or what the buffer is to hold. */
  buffer(size: number | Bytes, usage?: string): Promise<GpuTensor>;
  dispatch(module: GpuModule, entry: string, binds: Iterable<GpuBinding>, groups?: [number, number?, number?]):
    Promise<{ outputs: { [binding: string]: any }; gpu_ms: number; jit_ms: number }>;
  read(buffer: GpuTensor, rows?: [number, number]): Promise<ArrayBuffer>;
};
