@group(0) @binding(0) var<storage, read_write> data: array<u32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    while data[0] != 0xffffffffu {
        data[1] = data[1] * 3u + id.x;
        data[0] = data[1] % 1000u;
    }
}
