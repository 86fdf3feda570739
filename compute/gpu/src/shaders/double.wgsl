// 64-bit floats. On a processor without SSE4.1 the compiler turns `floor` into a call.
@group(0) @binding(0) var<storage, read> xs: array<f64>;
@group(0) @binding(1) var<storage, read_write> ys: array<f64>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x >= arrayLength(&xs) { return; }
    let x = xs[id.x];
    ys[id.x] = floor(x) + x / 4.0lf + sqrt(x * x);
}
