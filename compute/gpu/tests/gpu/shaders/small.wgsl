@group(0) @binding(0) var<storage, read_write> data: array<u32>;
override round: u32 = 0u;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    data[id.x] = data[id.x] * 31u + round;
}
