// Memory of every kind: a workgroup's with a barrier, an invocation's own by computed index, structures
// that are copied; and division of signed numbers.
struct Block { rows: array<vec4<u32>, 16> }

@group(0) @binding(0) var<storage, read_write> data: array<u32>;
var<workgroup> together: array<u32, 64>;
var<private> own: array<u32, 32>;

fn filled(lane: u32) -> Block {
    var block: Block;
    for (var i = 0u; i < 16u; i++) {
        block.rows[i] = vec4<u32>(i, lane, together[(lane + i) % 64u], own[i]);
    }
    return block;
}

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    together[lane] = data[id.x];
    workgroupBarrier();
    own[lane % 32u] = together[(lane * 29u + 1u) % 64u];
    let before = filled(lane);
    var after = before;
    after.rows[lane % 16u].z = 1u;
    var sum = 0u;
    for (var i = 0u; i < 16u; i++) {
        let row = after.rows[i];
        sum += ((row.x * 3u + row.y) ^ row.z) + row.w;
    }
    let whole = bitcast<i32>(sum);
    let quotient = whole / -7 + whole % 13;
    data[id.x] = (sum ^ bitcast<u32>(quotient)) + before.rows[lane % 16u].z;
}
