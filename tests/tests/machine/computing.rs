//! Scripts and shaders on the booted image: in workers with every wall, which may die.

use std::thread;

use alknet_tests::{Bench, Boot, Node, eventually};
use serde_json::{Value, json};

/// [[1, 2], [3, 4]] and its square, as little-endian 32-bit floats.
const MATRIX: &str = "AACAPwAAAEAAAEBAAACAQA==";
const SQUARE: &str = "AADgQAAAIEEAAHBBAACwQQ==";

/// A shader that doubles what it is given.
const TWICE: &str = "@group(0) @binding(0) var<storage, read_write> a: array<u32>;
@compute @workgroup_size(4) fn twice(@builtin(global_invocation_id) id: vec3<u32>) {
    a[id.x] = a[id.x] * 2u;
}";

/// Asks for the same product as [`product`], from a script.
fn script(variant: &str) -> String {
    format!(
        "const a = {{ inline: '{MATRIX}', dtype: 'F32', shape: [2, 2] }};
        const {{ product }} = await ops.call('compute/matmul', {{ a, b: a, variant: '{variant}' }});
        export default Array.from(new Uint8Array(product.inline));"
    )
}

#[test]
fn scripts_and_shaders_run_behind_every_wall() {
    let bench = Bench::new();
    let node = bench.machine(Boot::MicrovmErofs).boot();
    let before = node.info();
    assert_eq!(
        before["listen"]["alpns"],
        json!(["alknet/call", "alknet/tensor"])
    );
    assert_eq!(before["problems"], json!([]), "{before}");

    assert_eq!(node.call("compute/info", &json!({}))["state"], "unprobed");
    assert_eq!(node.call("runtime/stats", &json!({}))["workers"], json!({}));
    assert_eq!(product(&node, "host"), SQUARE);
    // An image without a driver (`--vulkan none`) says so, and computes what needs none.
    let has_driver = node.call("compute/info", &json!({}))["state"] == "ready";
    let variant = if has_driver { "wgsl" } else { "host" };
    if !has_driver {
        assert_refused_without_driver(&node);
    }
    assert_eq!(product(&node, variant), SQUARE, "{variant}");
    let hash = json!({
        "data": { "inline": "YWJj", "dtype": "U8", "shape": [3] }, "variant": variant
    });
    let digests = &node.call("compute/sha256", &hash)["digests"];
    assert_eq!(
        digests["inline"], "ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=",
        "{digests}"
    );
    if has_driver {
        let outputs = &node.call("compute/dispatch", &twice())["outputs"];
        assert_eq!(
            outputs["0"]["inline"], "AgAAAAQAAAAGAAAACAAAAA==",
            "{outputs}"
        );
    }

    let ran = node.call("runtime/eval", &json!({ "source": script(variant) }));
    let bytes = [7.0_f32, 10.0, 15.0, 22.0].map(f32::to_le_bytes).concat();
    assert_eq!(ran["value"], json!(bytes), "{ran}");

    let stats = node.call("runtime/stats", &json!({}));
    for role in ["js", "gpu"] {
        let sandbox = &stats["sandbox"][role];
        assert_eq!(sandbox["level"], "full", "{role}: {stats}");
    }
    let after = node.info();
    assert_eq!(after["problems"], before["problems"], "{after}");
    assert_eq!(after["node_restarts"], 0);
    node.end();
}

#[test]
fn a_worker_that_dies_takes_nobody_along() {
    let bench = Bench::new();
    let node = bench.machine(Boot::MicrovmErofs).faults().boot();
    // A connection of somebody else's, with something under way.
    let mut watching = node.subscribe("node/log", &json!({ "last": 1, "follow": true }));
    watching.next().expect("a record");

    assert_eq!(product(&node, "auto"), SQUARE);
    let lasting = json!({ "source": "await new Promise(() => setTimeout(() => {}, 1e6))",
                          "limits": { "wall_ms": 60_000 } });
    let lost = thread::scope(|scope| {
        let waiting = scope.spawn(|| node.try_call("runtime/eval", &lasting, &[]));
        runs(&node);
        let killed = node.call("node/fault", &json!({ "kind": "worker-kill" }));
        assert!(killed["killed"].as_u64() >= Some(2), "{killed}");
        waiting.join().expect("the command line answers")
    });
    assert_eq!(lost.code(), "UNAVAILABLE", "{lost:?}");

    // The next ones get new workers, and nobody else noticed.
    assert_eq!(product(&node, "auto"), SQUARE);
    let ran = node.call("runtime/eval", &json!({ "source": "export default 6 * 7" }));
    assert_eq!(ran["value"], 42, "{ran}");
    node.call("node/fault", &json!({ "kind": "node-panic" }));
    let panicked = watching.any(|record| {
        let message = record["message"].as_str();
        message.is_some_and(|message| message.contains("node-panic"))
    });
    assert!(panicked, "the log was cut");
    let info = node.info();
    assert_eq!(info["node_restarts"], 0, "{info}");
    node.end();
}

fn twice() -> Value {
    let four = json!({ "inline": "AQAAAAIAAAADAAAABAAAAA==", "dtype": "U32", "shape": [4] });
    json!({
        "wgsl": TWICE, "entry": "twice", "groups": [1, 1, 1],
        "bindings": [{ "binding": 0, "access": "read_write", "arg": four }],
    })
}

fn assert_refused_without_driver(node: &Node) {
    let info = node.call("compute/info", &json!({}));
    assert_eq!(info["state"], "none", "{info}");
    assert!(info["reason"].is_string(), "{info}");
    let refused = node.try_call("compute/dispatch", &twice(), &[]);
    assert_eq!(refused.code(), "UNAVAILABLE", "{refused:?}");
}

/// Waits until a script runs.
fn runs(node: &Node) {
    eventually("a script that runs", || {
        let listed = node.call("runtime/sessions", &json!({}));
        let sessions = listed["sessions"].as_array().cloned().unwrap_or_default();
        let running = sessions.iter().any(|it| it["state"] == "running");
        running.then_some(())
    });
}

fn product(node: &Node, variant: &str) -> Value {
    let matrix = json!({ "inline": MATRIX, "dtype": "F32", "shape": [2, 2] });
    let input = json!({ "a": matrix, "b": matrix, "variant": variant });
    let answer = node.call("compute/matmul", &input);
    assert!(
        variant == "auto" || answer["variant"] == variant,
        "{answer}"
    );
    answer["product"]["inline"].clone()
}
