//! What of a request is time on the GPU, and what is not.

use std::time::Duration;

use alknet_test_support::skip;
use serde_json::json;

use super::node::{GpuTestNode, floats, inline, le, patient};
use crate::adapter;

/// A product of a new worker, each of whose requests has so much time on the GPU. Returns how long its kernel was
/// compiled, which is nothing that the caller asked for.
fn compiled(gpu_time: Duration) -> Duration {
    let mut settings = patient();
    settings.gpu_time = gpu_time;
    let node = GpuTestNode::start(settings, |_| {});
    let person = node.person("first");
    let one = inline("F32", &[1, 1], &le(&[3.0]));
    let input = json!({ "a": one, "b": one, "variant": "wgsl" });
    let answer = person.ask("compute/matmul", &input);
    let product = person.bytes(&answer, &answer.value()["product"]);
    assert_eq!(floats(&product), [9.0]);
    let jit_ms = answer.value()["jit_ms"].as_f64();
    Duration::from_secs_f64(jit_ms.expect("a time") / 1e3)
}

/// The limit is half of what compiling took before, and half of that again, until compiling has taken longer than it:
/// a node that counted compiling would have ended that request.
#[test]
fn compiling_kernels_of_ours_is_no_time_on_the_gpu() {
    if let Err(why) = adapter() {
        skip!("Vulkan adapter", "{why}");
    }
    let mut compiling = compiled(patient().gpu_time);
    let mut limit = Duration::MAX;
    while compiling <= limit {
        limit = compiling / 2;
        compiling = compiled(limit);
        println!("figure compiling with {limit:?} on the GPU: {compiling:?}");
    }
    assert!(compiling > limit);
}
