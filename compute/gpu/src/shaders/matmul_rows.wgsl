// C = A B of n by n, n a multiple of 64: eight rows of one column for each invocation, so that an
// element of B is loaded once for eight products.
@group(0) @binding(0) var<storage, read> a: array<f32>;
@group(0) @binding(1) var<storage, read> b: array<f32>;
@group(0) @binding(2) var<storage, read_write> c: array<f32>;
@group(0) @binding(3) var<storage, read> size: array<u32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let n = size[0];
    let first = id.y * 8u * n;
    var s0 = 0.0; var s1 = 0.0; var s2 = 0.0; var s3 = 0.0;
    var s4 = 0.0; var s5 = 0.0; var s6 = 0.0; var s7 = 0.0;
    for (var k = 0u; k < n; k++) {
        let y = b[k * n + id.x];
        let x = first + k;
        s0 += a[x] * y;
        s1 += a[x + n] * y;
        s2 += a[x + 2u * n] * y;
        s3 += a[x + 3u * n] * y;
        s4 += a[x + 4u * n] * y;
        s5 += a[x + 5u * n] * y;
        s6 += a[x + 6u * n] * y;
        s7 += a[x + 7u * n] * y;
    }
    let to = first + id.x;
    c[to] = s0;
    c[to + n] = s1;
    c[to + 2u * n] = s2;
    c[to + 3u * n] = s3;
    c[to + 4u * n] = s4;
    c[to + 5u * n] = s5;
    c[to + 6u * n] = s6;
    c[to + 7u * n] = s7;
}
