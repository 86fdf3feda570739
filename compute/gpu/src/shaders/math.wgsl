// One function of the mathematics library per row, one argument per column.
@group(0) @binding(0) var<storage, read> xs: array<f32>;
@group(0) @binding(1) var<storage, read_write> ys: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let n = arrayLength(&xs);
    if id.x >= n { return; }
    let x = xs[id.x];
    ys[id.x] = sin(x);
    ys[n + id.x] = cos(x);
    ys[2u * n + id.x] = exp(x);
    ys[3u * n + id.x] = exp2(x);
    ys[4u * n + id.x] = log(x);
    ys[5u * n + id.x] = log2(x);
    ys[6u * n + id.x] = sqrt(x);
    ys[7u * n + id.x] = pow(x, 1.3);
    ys[8u * n + id.x] = tanh(x);
    ys[9u * n + id.x] = atan2(x, 2.0);
    ys[10u * n + id.x] = floor(-x);
    ys[11u * n + id.x] = round(x * 4.0);
    ys[12u * n + id.x] = fma(x, x, 1.0);
    ys[13u * n + id.x] = x % 0.75;
}
