// Whole numbers, floats, a loop and memory: what every other kernel is made of.
@group(0) @binding(0) var<storage, read_write> data: array<u32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    var x = data[id.x];
    var f = f32(x % 256u);
    for (var round = 0u; round < 5u; round++) {
        x = (x ^ (x >> 15u)) * 0x85ebca6bu + round;
        f = f * 3.0 + f32(id.x % 8u);
    }
    data[id.x] = x ^ u32(f);
}
