// As much memory as possible for as little arithmetic as possible.
@group(0) @binding(0) var<storage, read_write> data: array<vec4<f32>>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x >= arrayLength(&data) { return; }
    data[id.x] = data[id.x] * 2.0 + 1.0;
}
