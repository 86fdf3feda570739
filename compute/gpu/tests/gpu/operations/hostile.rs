//! Shaders that are meant to do harm.

use std::time::Duration;

use alknet_test_support::{deadline, skip};
use serde_json::{Value, json};

use super::ends::{ENDLESS, endless, works};
use super::node::{GpuTestCaller, GpuTestNode, NODE, block_on, codes, inline, patient};
use super::refused::{invalid, shapes};
use crate::adapter;

const INVALID: &str = "SHADER_INVALID";

/// A shader with one buffer.
pub(super) fn dispatch(body: &str) -> Value {
    let wgsl = format!("@group(0) @binding(0) var<storage, read_write> data: array<u32>;\n{body}");
    json!({
        "wgsl": wgsl, "entry": "main", "groups": [1, 1, 1],
        "bindings": [{ "binding": 0, "out": { "dtype": "U32", "shape": [64] } }],
    })
}

pub(super) fn main(body: &str) -> Value {
    dispatch(&format!(
        "@compute @workgroup_size(1) fn main() {{ {body} }}"
    ))
}

#[test]
fn what_is_wrong_is_refused_and_the_worker_lives() {
    if let Err(why) = adapter() {
        skip!("Vulkan adapter", "{why}");
    }
    let person = NODE.person("hostile");
    let canary = person.create("U8", &[6], b"canary");
    for (what, input) in invalid() {
        let error = person.try_ask("compute/dispatch", &input).expect_err(what);
        assert_eq!(
            codes(&error),
            (INVALID.into(), "E_SHADER".into()),
            "{what}: {error:?}"
        );
        let details = error.details.expect("details");
        assert_eq!(
            details["line"].is_u64(),
            details["column"].is_u64(),
            "{what}: {details}"
        );
        assert_ne!(details["line"], 0, "{what}: {details}");
        assert!(error.message.len() < 4000, "{what}");
    }
    for (what, input, [code, inside]) in shapes() {
        let refused = person.refused("compute/dispatch", &input);
        assert_eq!(refused, (code.into(), inside.into()), "{what}");
    }
    // None of them cost the worker its life: what it keeps is still there.
    let read = person.ask("tensor/read", &json!({ "handle": canary }));
    assert_eq!(
        super::node::binary(&read, &read.value()["bytes"]),
        b"canary"
    );
}

#[test]
fn a_mistake_has_its_line() {
    if let Err(why) = adapter() {
        skip!("Vulkan adapter", "{why}");
    }
    let person = NODE.person("mistaken");
    let input = dispatch("@compute @workgroup_size(1)\nfn main() {\n  data[0] = 1.5;\n}");
    let error = person
        .try_ask("compute/dispatch", &input)
        .expect_err("types");
    assert!(!error.message.is_empty());
    let details = error.details.expect("details");
    assert_eq!(details["line"], 4, "{details}");
}

#[test]
fn reaching_beyond_a_buffer_reaches_nothing() {
    if let Err(why) = adapter() {
        skip!("Vulkan adapter", "{why}");
    }
    let (person, other) = (NODE.person("reaching"), NODE.person("reached"));
    let secret = [0x5e_u8; 4096];
    let theirs = other.create("U8", &[secret.len()], &secret);
    let mine = person.create("U8", &[secret.len()], &secret);
    // Every index that there is room for, far beyond either end, read and written.
    let wgsl = "
        @group(0) @binding(0) var<storage, read_write> found: array<u32>;
        @group(0) @binding(1) var<storage, read_write> small: array<u32, 4>;
        @group(0) @binding(2) var<uniform> steps: vec4<u32>;
        @compute @workgroup_size(64) fn main(@builtin(global_invocation_id) id: vec3<u32>) {
            let at = id.x * steps.x + steps.y;
            if small[at] == 0x5e5e5e5eu { atomic_free(at); }
            small[at] = 7u;
            if i32(at) > 3 { small[u32(-i32(at))] = 7u; }
        }
        fn atomic_free(at: u32) { found[0] = 1u; found[1] = at; }";
    for [step, from] in [[1_u32, 0], [4096, 3], [65_521, 17], [u32::MAX / 4096, 1]] {
        let steps: Vec<u8> = [step, from, 0, 0]
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect();
        let input = json!({
            "wgsl": wgsl, "entry": "main", "groups": [64, 1, 1],
            "bindings": [
                { "binding": 0, "out": { "dtype": "U32", "shape": [2] } },
                { "binding": 1, "out": { "dtype": "U32", "shape": [4] } },
                { "binding": 2, "access": "uniform", "arg": inline("U32", &[4], &steps) },
            ],
        });
        let answer = person.ask("compute/dispatch", &input);
        let found = person.bytes(&answer, &answer.value()["outputs"]["0"]);
        assert_eq!(found, [0; 8], "something was found at {step}");
    }
    for (who, handle) in [(&person, mine), (&other, theirs)] {
        let read = who.ask("tensor/read", &json!({ "handle": handle }));
        let bytes = super::node::binary(&read, &read.value()["bytes"]);
        assert_eq!(bytes, secret, "another process wrote into it");
    }
}

#[test]
fn fresh_buffers_hold_nothing_of_old_ones() {
    if let Err(why) = adapter() {
        skip!("Vulkan adapter", "{why}");
    }
    let person = NODE.person("frugal");
    let copy = "
        @group(0) @binding(0) var<storage, read_write> to: array<u32>;
        var<workgroup> w: array<u32, 256>;
        var<private> p: array<u32, 16>;
        @compute @workgroup_size(1) fn main(@builtin(workgroup_id) id: vec3<u32>) {
            var own: array<u32, 16>;
            to[id.x] = to[id.x] | w[id.x % 256u] | p[id.x % 16u] | own[id.x % 16u];
        }";
    for _ in 0..3 {
        let full = person.create("U8", &[65_536], &[0xff; 65_536]);
        person.ask("tensor/drop", &json!({ "handle": full }));
        let input = json!({
            "wgsl": copy, "entry": "main", "groups": [16_384, 1, 1],
            "bindings": [{ "binding": 0, "out": { "dtype": "U8", "shape": [65_536] } }],
        });
        let answer = person.ask("compute/dispatch", &input);
        let seen = person.bytes(&answer, &answer.value()["outputs"]["0"]);
        assert!(seen.iter().all(|byte| *byte == 0));
    }
}

/// How long the other one waits after an answer: it is to be answered while the endless one runs, and need not keep the
/// other processors busy.
const PAUSE: Duration = Duration::from_millis(50);

/// What runs for longer than it may.
fn endless_ones() -> Vec<(&'static str, Value)> {
    let mut flood = main("for (var i = 0u; i < 4000000000u; i++) { data[i % 64u] += i; }");
    flood["groups"] = json!([65_535, 65_535, 65_535]);
    vec![
        ("a loop", endless()),
        (
            "a loop in a function",
            dispatch(
                "fn f(n: u32) -> u32 { var m = n; while m != 1u { m = m * m * 2u; data[1] = m; } return m; } @compute @workgroup_size(64) fn main() { data[0] = f(data[2]); }",
            ),
        ),
        ("as many groups as there are", flood),
        (
            "a barrier in an endless loop",
            dispatch(
                "@compute @workgroup_size(64) fn main(@builtin(local_invocation_index) i: u32) { while data[i] != 7u { workgroupBarrier(); } }",
            ),
        ),
        (
            "a barrier in a loop",
            dispatch(
                "var<workgroup> w: u32; @compute @workgroup_size(64) fn main(@builtin(local_invocation_index) i: u32) { loop { w += 1u; workgroupBarrier(); data[i] = w; if workgroupUniformLoad(&w) == 0xffffffffu { break; } } }",
            ),
        ),
    ]
}

#[test]
fn what_does_not_end_is_ended_while_others_are_answered() {
    if let Err(why) = adapter() {
        skip!("Vulkan adapter", "{why}");
    }
    let mut settings = patient();
    // Ends what is endless, and is enough for a quick shader, also while other tests use the processors: it is time by
    // the clock.
    settings.gpu_time = deadline(Duration::from_secs(1));
    let node = GpuTestNode::start(settings, |_| {});
    let (hostile, other) = (node.person("endless"), node.person("bystander"));
    assert!(ENDLESS.contains("loop") && works(&other));
    let hash = json!({ "data": inline("U8", &[1], b"x") });
    for (what, input) in endless_ones() {
        // What the other one needs is there: the time that the endless one has may be less than its start takes.
        other.ask("compute/sha256", &hash);
        let answered = block_on(async {
            let mut ending = std::pin::pin!(hostile.asking("compute/dispatch", &input));
            let mut answered = 0;
            let error = loop {
                let asking = async {
                    let answer = other.asking("compute/sha256", &hash).await;
                    answer.expect("the other one is answered");
                    answered += 1;
                    tokio::time::sleep(PAUSE).await;
                };
                tokio::select! {
                    ended = &mut ending => break ended.expect_err(what),
                    () = asking => {}
                }
            };
            assert_eq!(
                codes(&error),
                ("TIMEOUT".into(), "E_GPU_TIMEOUT".into()),
                "{what}"
            );
            answered
        });
        assert!(answered > 0, "{what}: no other client was answered");
        assert_works(&hostile);
    }
}

#[track_caller]
fn assert_works(person: &GpuTestCaller) {
    assert!(works(person), "there is a new worker");
}
