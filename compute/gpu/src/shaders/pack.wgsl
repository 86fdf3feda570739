// Copies a matrix that lies anyhow into rows without gaps, with zeros beyond its edges.
struct Shape {
    offset: i32,
    row_stride: i32,
    column_stride: i32,
    rows: u32,
    columns: u32,
    height: u32, // rows of the copy
    width: u32, // columns of the copy
    lines: u32, // groups in x
}

@group(0) @binding(0) var<storage, read> data: array<f32>;
@group(0) @binding(1) var<storage, read_write> packed: array<f32>;
@group(0) @binding(2) var<storage, read> shape: Shape;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let at = (group.y * shape.lines + group.x) * 64u + lane;
    if at >= shape.width * shape.height { return; }
    let row = at / shape.width;
    let column = at % shape.width;
    var value = 0.0;
    if row < shape.rows && column < shape.columns {
        value = data[shape.offset + i32(row) * shape.row_stride + i32(column) * shape.column_stride];
    }
    packed[at] = value;
}
