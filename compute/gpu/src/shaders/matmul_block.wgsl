// C = A B of n by n, n a multiple of 32: a block of 4 by 4 outputs for each invocation, kept in
// registers, with rows loaded four elements at a time.
@group(0) @binding(0) var<storage, read> a: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> b: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> c: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> size: array<u32>;

@compute @workgroup_size(8, 8)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let width = size[0] / 4u;
    let row = id.y * 4u * width;
    var r0 = vec4<f32>();
    var r1 = vec4<f32>();
    var r2 = vec4<f32>();
    var r3 = vec4<f32>();
    for (var k = 0u; k < width; k++) {
        let first = k * 4u * width + id.x;
        let b0 = b[first];
        let b1 = b[first + width];
        let b2 = b[first + 2u * width];
        let b3 = b[first + 3u * width];
        let a0 = a[row + k];
        let a1 = a[row + width + k];
        let a2 = a[row + 2u * width + k];
        let a3 = a[row + 3u * width + k];
        r0 += a0.x * b0 + a0.y * b1 + a0.z * b2 + a0.w * b3;
        r1 += a1.x * b0 + a1.y * b1 + a1.z * b2 + a1.w * b3;
        r2 += a2.x * b0 + a2.y * b1 + a2.z * b2 + a2.w * b3;
        r3 += a3.x * b0 + a3.y * b1 + a3.z * b2 + a3.w * b3;
    }
    c[row + id.x] = r0;
    c[row + width + id.x] = r1;
    c[row + 2u * width + id.x] = r2;
    c[row + 3u * width + id.x] = r3;
}
