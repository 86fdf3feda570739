//! Shaders that are refused before anything runs.

use serde_json::{Value, json};

use super::hostile::{dispatch, main};
use super::node::inline;

/// What is refused before anything runs.
pub(super) fn invalid() -> Vec<(&'static str, Value)> {
    let repeat = |open: &str, count: usize, close: &str| {
        main(&format!(
            "data[0] = {}1u{};",
            open.repeat(count),
            close.repeat(count)
        ))
    };
    let mut unbound = main("data[0] = 1u;");
    unbound["bindings"] = json!([]);
    let mut stray = main("data[0] = 1u;");
    let extra = json!({ "binding": 9, "out": { "dtype": "U32", "shape": [1] } });
    stray["bindings"]
        .as_array_mut()
        .expect("a list")
        .push(extra);
    let mut access = main("data[0] = 1u;");
    access["bindings"] =
        json!([{ "binding": 0, "access": "read", "arg": inline("U32", &[1], &[0; 4]) }]);
    let mut entry = main("data[0] = 1u;");
    entry["entry"] = "other".into();
    let mut many = main("data[0] = 1u;");
    many["bindings"] = (0..17)
        .map(|binding| json!({ "binding": binding, "out": { "dtype": "U32", "shape": [1] } }))
        .collect();
    vec![
        (
            "no text",
            json!({ "wgsl": "", "entry": "main", "groups": [1, 1, 1], "bindings": [] }),
        ),
        ("no WGSL", dispatch("int main() { return 0; }")),
        ("bytes", dispatch("\u{0}\u{1}\u{7f}\u{feff}\u{202e}")),
        ("a string that does not end", main("let x = \"")),
        ("types", main("data[0] = 1.5;")),
        ("an unknown name", main("data[0] = secret;")),
        (
            "a huge group",
            dispatch("@compute @workgroup_size(65535, 65535, 64) fn main() { data[0] = 1u; }"),
        ),
        (
            "a group of nothing",
            dispatch("@compute @workgroup_size(0) fn main() { data[0] = 1u; }"),
        ),
        (
            "a group of 1025",
            dispatch("@compute @workgroup_size(1025) fn main() { data[0] = 1u; }"),
        ),
        (
            "much shared memory",
            dispatch(
                "var<workgroup> w: array<u32, 8193>; @compute @workgroup_size(1) fn main() { data[0] = w[data[0]]; }",
            ),
        ),
        (
            "much private memory",
            main("var p: array<array<u32, 1024>, 1024>; data[0] = p[data[1]][data[2]];"),
        ),
        (
            "a gigabyte of private memory",
            main("var p: array<array<u32, 16384>, 16384>; data[0] = p[data[1]][data[2]];"),
        ),
        (
            "an array beyond all numbers",
            main("var p: array<array<array<u32, 65536>, 65536>, 65536>; data[0] = p[0][0][0];"),
        ),
        (
            "recursion",
            dispatch(
                "fn f() { g(); } fn g() { f(); } @compute @workgroup_size(1) fn main() { f(); }",
            ),
        ),
        ("brackets in brackets", repeat("(", 60_000, ")")),
        (
            "recursion by way of itself",
            dispatch(
                "fn f(n: u32) -> u32 { if n == 0u { return 0u; } return f(n - 1u); } @compute @workgroup_size(1) fn main() { data[0] = f(data[1]); }",
            ),
        ),
        (
            "a chain of calls",
            dispatch(&format!(
                "fn f0() {{ data[0] += 1u; }} {} @compute @workgroup_size(1) fn main() {{ f2000(); }}",
                (1..=2000)
                    .map(|i| format!("fn f{i}() {{ f{}(); }} ", i - 1))
                    .collect::<String>()
            )),
        ),
        (
            "an index beyond an array",
            main("var a: array<u32, 4>; data[0] = a[4];"),
        ),
        (
            "an index below an array",
            main("var a: array<u32, 4>; data[0] = a[-1];"),
        ),
        ("a constant divided by zero", main("data[0] = 1u / 0u;")),
        ("a constant beyond its type", main("data[0] = 4294967296u;")),
        ("a shift beyond all bits", main("data[0] = 1u << 32u;")),
        (
            "no number as a whole number",
            main("data[0] = u32(1.0 / 0.0);"),
        ),
        (
            "an assertion that fails",
            main("const_assert 1 > 2; data[0] = 1u;"),
        ),
        (
            "a pointer that is kept",
            dispatch(
                "var<private> p: ptr<function, u32>; @compute @workgroup_size(1) fn main() { data[0] = 1u; }",
            ),
        ),
        (
            "a buffer written to that is read",
            dispatch(
                "@group(0) @binding(1) var<storage, read> r: array<u32>; @compute @workgroup_size(1) fn main() { r[0] = 1u; }",
            ),
        ),
        ("minus of minus", repeat("-", 60_000, "")),
        ("not of not", repeat("!", 60_000, "")),
        (
            "blocks in blocks",
            main(&format!("{}{}", "{".repeat(60_000), "}".repeat(60_000))),
        ),
        (
            "ifs in ifs",
            main(&format!(
                "{}{}",
                "if true {".repeat(20_000),
                "}".repeat(20_000)
            )),
        ),
        (
            "types in types",
            dispatch(&format!(
                "var<private> p: {}u32{}; @compute @workgroup_size(1) fn main() {{ data[0] = 1u; }}",
                "array<".repeat(20_000),
                ",1>".repeat(20_000)
            )),
        ),
        (
            "too long",
            dispatch(&format!("// {}", "x".repeat(256 << 10))),
        ),
        (
            "overrides",
            dispatch("override n: u32; @compute @workgroup_size(n) fn main() { data[0] = 1u; }"),
        ),
        ("floats of 64 bits", main("data[0] = u32(1.0lf);")),
        (
            "half floats",
            dispatch("enable f16; @compute @workgroup_size(1) fn main() { data[0] = u32(1.0h); }"),
        ),
        ("subgroups", main("data[0] = subgroupAdd(1u);")),
        (
            "ray tracing",
            dispatch(
                "enable wgpu_ray_query; var t: acceleration_structure; @compute @workgroup_size(1) fn main() { data[0] = 1u; }",
            ),
        ),
        (
            "a texture",
            dispatch(
                "@group(0) @binding(1) var t: texture_2d<f32>; @compute @workgroup_size(1) fn main() { data[0] = textureDimensions(t).x; }",
            ),
        ),
        (
            "another group",
            dispatch(
                "@group(1) @binding(0) var<storage> o: array<u32>; @compute @workgroup_size(1) fn main() { data[0] = o[0]; }",
            ),
        ),
        (
            "a fragment",
            dispatch("@fragment fn main() -> @location(0) vec4<f32> { return vec4<f32>(); }"),
        ),
        ("nothing bound", unbound),
        ("too much bound", stray),
        ("bound to be read", access),
        ("another entry", entry),
        ("many bindings", many),
    ]
}

/// What is no shader's fault.
pub(super) fn shapes() -> Vec<(&'static str, Value, [&'static str; 2])> {
    let mut groups = main("data[0] = 1u;");
    groups["groups"] = json!([65_536, 1, 1]);
    let mut twice = main("data[0] = 1u;");
    let again = twice["bindings"][0].clone();
    twice["bindings"]
        .as_array_mut()
        .expect("a list")
        .push(again);
    let mut huge = main("data[0] = 1u;");
    huge["bindings"][0]["out"]["shape"] = json!([1_u64 << 40]);
    let mut beyond = main("data[0] = 1u;");
    beyond["bindings"][0]["out"]["shape"] = json!([1 << 20, 1 << 20, 1 << 20, 1 << 20]);
    let mut empty = main("data[0] = 1u;");
    empty["bindings"][0]["out"]["shape"] = json!([0]);
    let mut both = main("data[0] = 1u;");
    both["bindings"][0]["access"] = "read".into();
    let shape = ["INVALID_INPUT", "E_SHAPE"];
    let large = ["TENSOR_TOO_LARGE", "E_TOO_LARGE"];
    vec![
        ("too many groups", groups, ["INVALID_INPUT", ""]),
        ("bound twice", twice, shape),
        ("a huge buffer", huge, large),
        ("a buffer beyond all numbers", beyond, large),
        ("an empty buffer", empty, shape),
        ("an output that is read", both, shape),
    ]
}
