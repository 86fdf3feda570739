//! Shaders that ask for more than there is: time to be compiled, memory, code. Each ends with an answer or the
//! right code, and the next caller is answered.

use std::fmt::Write;
use std::time::Duration;

use alknet_test_support::{deadline, skip};
use serde_json::{Value, json};

use super::ends::works;
use super::hostile::{dispatch, main};
use super::node::{GpuTestNode, NODE, binary, codes, inline, patient};
use crate::adapter;

/// Functions that each call the one before twice.
const DOUBLINGS: usize = 40;

/// What may come of a shader that is merely large.
const ENDS: [(&str, &str); 4] = [
    ("SHADER_INVALID", "E_SHADER"),
    ("TIMEOUT", "E_GPU_TIMEOUT"),
    ("UNAVAILABLE", "E_WORKER_LOST"),
    ("UNAVAILABLE", "E_DEVICE_LOST"),
];

fn text(write: impl FnOnce(&mut String) -> std::fmt::Result) -> String {
    let mut text = String::new();
    write(&mut text).expect("a text takes everything");
    text
}

/// What doubles with each line, so that a few lines are more than any memory.
fn doubling() -> Vec<(&'static str, Value)> {
    let calls = text(|t| {
        writeln!(
            t,
            "fn f0(x: u32) -> u32 {{ return x * 3u + data[x % 64u]; }}"
        )?;
        (1..DOUBLINGS).try_for_each(|i| {
            let before = i - 1;
            writeln!(
                t,
                "fn f{i}(x: u32) -> u32 {{ return f{before}(x + 1u) ^ f{before}(x * 5u); }}"
            )
        })?;
        let last = DOUBLINGS - 1;
        writeln!(
            t,
            "@compute @workgroup_size(1) fn main() {{ data[0] = f{last}(data[1]); }}"
        )
    });
    let types = text(|t| {
        writeln!(t, "struct S0 {{ a: vec4<u32>, b: vec4<u32> }}")?;
        (1..28).try_for_each(|i| {
            let before = i - 1;
            writeln!(t, "struct S{i} {{ a: S{before}, b: S{before} }}")
        })?;
        writeln!(t, "var<private> p: S27;")?;
        writeln!(
            t,
            "@compute @workgroup_size(1) fn main() {{ p.a.b.a.b.a.b.a.b = p.b.a.b.a.b.a.b.a; data[0] = data[1]; }}"
        )
    });
    let constants = text(|t| {
        writeln!(t, "const c0 = array<u32, 2>(1u, 2u);")?;
        let mut ty = "array<u32, 2>".to_owned();
        for i in 1..28 {
            ty = format!("array<{ty}, 2>");
            let before = i - 1;
            writeln!(t, "const c{i} = {ty}(c{before}, c{before});")?;
        }
        writeln!(
            t,
            "@compute @workgroup_size(1) fn main() {{ var c = c27; data[0] = data[1]; }}"
        )
    });
    vec![
        ("calls", dispatch(&calls)),
        ("types", dispatch(&types)),
        ("constants", dispatch(&constants)),
    ]
}

/// What is long, and takes as long to be compiled.
fn long() -> Vec<(&'static str, Value)> {
    let statements = text(|t| {
        writeln!(t, "var x = f32(data[1]);")?;
        (0..3_000)
            .try_for_each(|i| writeln!(t, "x = sin(x * {i}.5) + pow(abs(x), 1.5) / cos(x);"))?;
        writeln!(t, "data[0] = u32(x);")
    });
    let cases = text(|t| {
        writeln!(t, "switch data[0] {{")?;
        (0..4_000).try_for_each(|i| writeln!(t, "case {i}u: {{ data[{}] = {i}u; }}", i % 64))?;
        writeln!(t, "default: {{ }} }}")
    });
    let loops = text(|t| {
        (0..12).try_for_each(|i| writeln!(t, "for (var i{i} = 0u; i{i} < 4u; i{i}++) {{"))?;
        writeln!(t, "data[i0 + i11] += i1 * i2 + i3 ^ i4 + i5;")?;
        (0..12).try_for_each(|_| writeln!(t, "}}"))
    });
    let functions = text(|t| {
        (0..2_000).try_for_each(|i| {
            writeln!(
                t,
                "fn g{i}(x: u32) -> u32 {{ return x * {i}u + data[x % 64u]; }}"
            )
        })?;
        writeln!(t, "@compute @workgroup_size(1) fn main() {{")?;
        (0..2_000).try_for_each(|i| writeln!(t, "data[{}] = g{i}(data[1]);", i % 64))?;
        writeln!(t, "}}")
    });
    let matrices = text(|t| {
        writeln!(
            t,
            "var m = mat4x4<f32>(vec4(1.0), vec4(2.0), vec4(3.0), vec4(f32(data[1])));"
        )?;
        (0..600).try_for_each(|_| writeln!(t, "m = m * m + transpose(m);"))?;
        writeln!(t, "data[0] = u32(m[0][0]);")
    });
    let variables = text(|t| {
        (0..1_000).try_for_each(|i| {
            writeln!(
                t,
                "var v{i} = array<u32, 16>(); v{i}[data[{}] % 16u] = {i}u;",
                i % 64
            )
        })?;
        (0..1_000).try_for_each(|i| writeln!(t, "data[{}] += v{i}[data[1] % 16u];", i % 64))
    });
    let barrier = "@compute @workgroup_size(64) fn main(@builtin(local_invocation_index) i: u32) {
        if i < 3u { workgroupBarrier(); } data[i] = i; }";
    vec![
        ("a barrier that some do not reach", dispatch(barrier)),
        ("statements", main(&statements)),
        ("cases", main(&cases)),
        ("loops in loops", main(&loops)),
        ("functions", dispatch(&functions)),
        ("matrices", main(&matrices)),
        ("variables", main(&variables)),
    ]
}

#[test]
fn whatever_is_heavy_ends_and_the_next_one_is_answered() {
    if let Err(why) = adapter() {
        skip!("Vulkan adapter", "{why}");
    }
    let mut settings = patient();
    // Ends what is heavy, and is enough for a quick shader.
    settings.gpu_time = deadline(Duration::from_millis(300));
    let node = GpuTestNode::start(settings, |_| {});
    let other = node.person("light");
    assert!(works(&other));
    for (what, input) in doubling().into_iter().chain(long()) {
        // Each from a caller of its own, so that none is shut out for what an earlier one sent.
        let person = node.person(&format!("heavy-{}", what.replace(' ', "-")));
        match person.try_ask("compute/dispatch", &input) {
            // The driver was quick enough.
            Ok(_) => {}
            Err(error) => {
                let (code, inside) = codes(&error);
                assert!(
                    ENDS.contains(&(code.as_str(), inside.as_str())),
                    "{what}: {error:?}"
                );
            }
        }
        assert!(works(&other), "after {what}");
    }
}

#[test]
fn memory_is_refused_before_it_is_taken() {
    if let Err(why) = adapter() {
        skip!("Vulkan adapter", "{why}");
    }
    let person = NODE.person("greedy");
    let most = 128_u64 << 20;
    let outputs = |count: u32| -> Vec<Value> {
        let out = json!({ "dtype": "U8", "shape": [most] });
        (0..count)
            .map(|binding| json!({ "binding": binding, "out": out }))
            .collect()
    };
    let declared: String = (0..16)
        .map(|i| format!("@group(0) @binding({i}) var<storage, read_write> b{i}: array<u32>;\n"))
        .collect();
    let used: String = (0..16).map(|i| format!("b{i}[0] = 1u;")).collect();
    let input = json!({
        "wgsl": format!("{declared} @compute @workgroup_size(1) fn main() {{ {used} }}"),
        "entry": "main", "groups": [1, 1, 1], "bindings": outputs(16),
    });
    let error = person.try_ask("compute/dispatch", &input);
    let error = error.expect_err("refused");
    assert_eq!(codes(&error), ("QUOTA_EXCEEDED".into(), "E_QUOTA".into()));
    // The node says so, by what it was asked for. The worker would have taken what fits, and an allocation that
    // fails has the same codes.
    let said = format!("all tensors together may have {} bytes", 8 * most);
    assert!(error.message.contains(&said), "{error:?}");
    assert!(works(&person), "nothing was taken");
}

#[test]
fn numbers_without_meaning_have_an_answer() {
    if let Err(why) = adapter() {
        skip!("Vulkan adapter", "{why}");
    }
    let person = NODE.person("meaningless");
    // What is given is only known when it runs, so that no compiler sees it coming.
    let wgsl = "
        @group(0) @binding(0) var<storage, read> given: array<u32, 8>;
        @group(0) @binding(1) var<storage, read_write> got: array<u32, 16>;
        @compute @workgroup_size(1) fn main() {
            let zero = given[0]; let seven = given[1]; let least = bitcast<i32>(given[2]); let minus = bitcast<i32>(given[3]);
            let nan = bitcast<f32>(given[4]); let inf = bitcast<f32>(given[5]); let large = given[6];
            got[0] = seven / zero; got[1] = seven % zero;
            got[2] = bitcast<u32>(least / minus); got[3] = bitcast<u32>(least % minus);
            got[4] = bitcast<u32>(i32(seven) / i32(zero)); got[5] = bitcast<u32>(i32(seven) % i32(zero));
            got[6] = seven << (large & 31u); got[7] = u32(-inf); got[8] = u32(nan) & 0u;
            got[9] = u32(i32(inf) > 2000000000); got[10] = u32(i32(-inf) < -2000000000);
            got[11] = u32(f32(seven) / f32(zero) > 1e38) | u32(i32(nan) * 0);
            got[12] = extractBits(seven, large, large); got[13] = insertBits(seven, large, large, large) & 0u;
            got[14] = countLeadingZeros(zero); got[15] = u32(f32(large)) >> 31u;
        }";
    let given = [
        0_u32,
        7,
        i32::MIN.cast_unsigned(),
        u32::MAX,
        f32::NAN.to_bits(),
        f32::INFINITY.to_bits(),
        u32::MAX,
        0,
    ];
    let given: Vec<u8> = given.iter().flat_map(|word| word.to_le_bytes()).collect();
    let input = json!({
        "wgsl": wgsl, "entry": "main", "groups": [1, 1, 1],
        "bindings": [
            { "binding": 0, "access": "read", "arg": inline("U32", &[8], &given) },
            { "binding": 1, "out": { "dtype": "U32", "shape": [16] } },
        ],
    });
    let answer = person.ask("compute/dispatch", &input);
    let bytes = binary(&answer, &answer.value()["outputs"]["1"]["inline"]);
    let (words, _) = bytes.as_chunks::<4>();
    let got: Vec<u32> = words.iter().copied().map(u32::from_le_bytes).collect();
    // What WGSL says: a division by zero is the dividend, its remainder zero; so for what overflows.
    let least = i32::MIN.cast_unsigned();
    assert_eq!(got[..6], [7, 0, least, 0, 7, 0]);
    // Conversions stop at the ends; of what is no number, anything may come.
    assert_eq!(got[6..12], [7 << 31, 0, 0, 1, 1, 1]);
    assert_eq!(got[12..], [0, 0, 32, 1]);
    assert!(works(&person));
}
