//! Workers without a driver: they say so, and what needs none works.

use std::path::Path;

use alknet_test_support::skip;
use serde_json::json;

use super::node::{GpuTestNode, binary, floats, inline, le, patient};
use crate::adapter;

fn without_driver() -> GpuTestNode {
    GpuTestNode::start(patient(), |role| {
        let wanted = ("ALKNET_GPU_DRIVER".to_owned(), "none".to_owned());
        role.environment.push(wanted);
    })
}

#[test]
fn without_a_driver_it_is_said_and_the_processor_computes() {
    let node = without_driver();
    let person = node.person("poor");
    let info = person.ask("compute/info", &json!({}));
    assert_eq!(info.value()["state"], "unprobed");
    let info = person
        .ask("compute/info", &json!({ "probe": true }))
        .value()
        .clone();
    assert_eq!(info["state"], "none", "{info}");
    let reason = info["reason"].as_str().expect("a reason");
    assert!(
        !reason.is_empty() && info.get("adapter").is_none(),
        "{info}"
    );
    assert_eq!(info["measured"]["matmul_wgsl"], 0.0);
    assert!(info["measured"]["matmul_host"].as_f64().expect("measured") > 0.0);

    let a = person.create("F32", &[2, 2], &le(&[1.0, 2.0, 3.0, 4.0]));
    let b = inline("F32", &[2, 2], &le(&[5.0, 6.0, 7.0, 8.0]));
    let input = json!({ "a": { "handle": a }, "b": b, "as": "handle" });
    let answer = person.ask("compute/matmul", &input);
    assert_eq!(answer.value()["variant"], "host");
    let product = person.bytes(&answer, &answer.value()["product"]);
    assert_eq!(floats(&product), [19.0, 22.0, 43.0, 50.0]);
    let hashed = person.ask(
        "compute/sha256",
        &json!({ "data": inline("U8", &[3], b"abc") }),
    );
    let digest = binary(&hashed, &hashed.value()["digests"]["inline"]);
    assert_eq!(digest[..4], [0xba, 0x78, 0x16, 0xbf]);

    for (operation, input) in [
        (
            "compute/matmul",
            json!({ "a": { "handle": a }, "b": { "handle": a }, "variant": "wgsl" }),
        ),
        (
            "compute/sha256",
            json!({ "data": inline("U8", &[3], b"abc"), "variant": "wgsl" }),
        ),
        (
            "compute/dispatch",
            json!({ "wgsl": "@compute @workgroup_size(1) fn main() {}", "entry": "main",
                    "groups": [1, 1, 1], "bindings": [] }),
        ),
    ] {
        let error = person
            .try_ask(operation, &input)
            .expect_err("nothing to compute on");
        assert_eq!(
            (error.code.name(), error.retryable),
            ("UNAVAILABLE", false),
            "{operation}"
        );
        assert_eq!(error.details.expect("details")["code"], "E_NO_ADAPTER");
    }
}

#[test]
fn without_a_program_it_is_said_too() {
    let node = GpuTestNode::with_program(Path::new("/bin/false"), patient(), |_| {});
    let person = node.person("poorest");
    let info = person
        .ask("compute/info", &json!({ "probe": true }))
        .value()
        .clone();
    assert_eq!(info["state"], "none", "{info}");
    assert!(
        info["reason"]
            .as_str()
            .is_some_and(|reason| !reason.is_empty()),
        "{info}"
    );
    let one = inline("F32", &[1, 1], &le(&[3.0]));
    let (code, inside) = person.refused("compute/matmul", &json!({ "a": one, "b": one }));
    assert_eq!(
        (code.as_str(), inside.as_str()),
        ("UNAVAILABLE", "E_WORKER_LOST")
    );
}

#[test]
fn the_device_in_use_is_reported() {
    let person = super::node::NODE.person("curious");
    let info = person
        .ask("compute/info", &json!({ "probe": true }))
        .value()
        .clone();
    if let Err(why) = adapter() {
        assert_eq!(info["state"], "none", "{info}");
        skip!("Vulkan adapter", "{why}");
    }
    assert_eq!(info["state"], "ready", "{info}");
    assert_eq!(info["adapter"]["class"], "cpu");
    assert_eq!(info["adapter"]["hardware"], false);
    let reason = info["adapter"]["fallback_reason"]
        .as_str()
        .expect("why it is no hardware");
    assert!(!reason.is_empty());
    for version in ["mesa", "llvm", "wgpu", "naga"] {
        assert!(info["versions"][version].is_string(), "{version}: {info}");
    }
    assert_eq!(info["selftest"]["ok"], true);
    for figure in ["cold_ms", "warm_ms", "worker_start_ms"] {
        let ms = info["selftest"][figure].as_f64();
        assert!(ms > Some(0.0), "{figure}: {info}");
    }
    assert!(info["limits"]["storage_bytes"].as_u64().expect("a limit") > 0);
    for figure in [
        "matmul_wgsl",
        "matmul_host",
        "map_bytes_s",
        "dispatch_us",
        "cold_jit_ms",
    ] {
        assert!(info["measured"][figure].is_number(), "{figure}: {info}");
    }
}
