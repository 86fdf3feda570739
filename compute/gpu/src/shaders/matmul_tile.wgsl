// C = A B of n by n, n a multiple of 16: tiles in the workgroup's memory. The right form for a GPU, and
// the wrong one for a processor, where a barrier saves and restores every invocation.
@group(0) @binding(0) var<storage, read> a: array<f32>;
@group(0) @binding(1) var<storage, read> b: array<f32>;
@group(0) @binding(2) var<storage, read_write> c: array<f32>;
@group(0) @binding(3) var<storage, read> size: array<u32>;
const SIDE = 16u;
var<workgroup> of_a: array<f32, 256>;
var<workgroup> of_b: array<f32, 256>;

@compute @workgroup_size(16, 16)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) lane: vec3<u32>) {
    let n = size[0];
    let row = group.y * SIDE + lane.y;
    let column = group.x * SIDE + lane.x;
    var sum = 0.0;
    for (var tile = 0u; tile < n / SIDE; tile++) {
        of_a[lane.y * SIDE + lane.x] = a[row * n + tile * SIDE + lane.x];
        of_b[lane.y * SIDE + lane.x] = b[(tile * SIDE + lane.y) * n + column];
        workgroupBarrier();
        for (var k = 0u; k < SIDE; k++) { sum += of_a[lane.y * SIDE + k] * of_b[k * SIDE + lane.x]; }
        workgroupBarrier();
    }
    c[row * n + column] = sum;
}
