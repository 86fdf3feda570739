//! Scripts and shaders on the booted image, in fully sandboxed workers that may die.

use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use alknet_call::CallOptions;
use alknet_test_support::{deadline, limited, skipped};
use alknet_tests::tools::variable;
use alknet_tests::{BootVariant, MachineNode, PemKeyFiles, TestBench, WebNode, eventually};
use serde_json::{Value, json};

use super::concurrent_clients::ConcurrentClients;

/// [[1, 2], [3, 4]] and its square, as little-endian 32-bit floats.
const MATRIX: &str = "AACAPwAAAEAAAEBAAACAQA==";
const SQUARE: &str = "AADgQAAAIEEAAHBBAACwQQ==";

/// Deadline of a call whose shader an emulated processor has to compile, on a machine that others
/// use too.
const PATIENCE: Duration = Duration::from_secs(120);

/// Exit code of `alknet gpu selftest` without a driver, see docs/driver.md.
const WITHOUT_DRIVER: i32 = 3;

/// A shader that doubles its input.
const TWICE: &str = "@group(0) @binding(0) var<storage, read_write> a: array<u32>;
@compute @workgroup_size(4) fn twice(@builtin(global_invocation_id) id: vec3<u32>) {
    a[id.x] = a[id.x] * 2u;
}";

/// Requests the same product as [`product`], from a script.
fn script(variant: &str) -> String {
    format!(
        "const a = {{ inline: '{MATRIX}', dtype: 'F32', shape: [2, 2] }};
        const {{ product }} = await ops.call('compute/matmul', {{ a, b: a, variant: '{variant}' }});
        export default Array.from(new Uint8Array(product.inline));"
    )
}

#[test]
fn scripts_and_shaders_run_in_the_full_sandbox() {
    let bench = TestBench::new();
    let web = WebNode::restore(bench.snapshot(BootVariant::MicrovmErofs).faults(), "");
    let node = &web.node;
    let before = node.info();
    assert_eq!(
        before["listen"]["alpns"],
        json!([
            "alknet/call",
            "alknet/tensor",
            "/iroh-bytes/4",
            "alknet/fs-sync",
            "h3",
            "h2",
            "http/1.1"
        ])
    );
    assert_eq!(before["problems"], json!([]), "{before}");

    assert_eq!(node.call("compute/info", &json!({}))["state"], "unprobed");
    assert_eq!(node.call("runtime/stats", &json!({}))["workers"], json!({}));
    assert_eq!(product(node, "host"), SQUARE);
    // An image without a driver (`--vulkan none`) reports that, and computes what needs none.
    let has_driver = has_driver();
    if !has_driver {
        skipped("Vulkan driver", "shaders run in no worker");
    }
    let variant = if has_driver { "wgsl" } else { "host" };
    if !has_driver {
        assert_refused_without_driver(node);
    }
    assert_eq!(product(node, variant), SQUARE, "{variant}");
    let pem = PemKeyFiles::from_cli(bench.admin());
    for client in ["call_tls.py", "call_quic.py"] {
        unknown_clients_get_the_product(client, node, &pem, variant);
    }
    let hash = json!({
        "data": { "inline": "YWJj", "dtype": "U8", "shape": [3] }, "variant": variant
    });
    let digests = &node.call("compute/sha256", &hash)["digests"];
    assert_eq!(
        digests["inline"], "ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=",
        "{digests}"
    );
    if has_driver {
        doubles(node);
        given_back(node);
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

    // On the same machine: its workers are warm, and their compiled code could be lost.
    a_dying_worker_ends_no_other(&web);
}

/// Tensors one after the other. Each is freed before the next one.
const ROUNDS: usize = 2;

/// Half of the 128 MiB of a tensor. On a slow machine the worker had 35 MiB of the tensor before when the test looked, and
/// used them again for the next one.
const NOTICED_MIB: u64 = 64;

/// How much memory may be missing after a tensor, because the machine's other programs need some
/// too.
const MISSING_MIB: u64 = 16;

/// The number of checks in a row during which memory changes by no more than this, so that no
/// program is about to take or free memory.
const STEADY_LOOKS: u32 = 4;
const STEADY_MIB: u64 = 2;

/// 128 MiB in a tensor that a shader filled. The machine gets them back when the handle is dropped.
/// All this happens over one connection, because a handle does not outlive its last connection for
/// long.
fn given_back(node: &MachineNode) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    // The connection is dropped within it too.
    let _entered = runtime.enter();
    let (_dialer, client) = runtime.block_on(node.client()).expect("it serves");
    let options = CallOptions {
        timeout: Some(deadline(PATIENCE)),
        ..CallOptions::default()
    };
    let call = |operation: &str, input: &Value| {
        let answer = runtime.block_on(client.call_with(operation, input, &options));
        let answer = answer.unwrap_or_else(|error| panic!("{operation}: {error}"));
        answer.value().clone()
    };
    let available = || {
        let info = call("node/info", &json!({}));
        let bytes = info["memory"]["available_bytes"].as_u64();
        bytes.expect("a machine knows its memory") >> 20
    };
    let create = json!({ "dtype": "U32", "shape": [32 << 20] });
    let filled = || {
        let made = call("tensor/create", &create);
        let handle = json!({ "handle": made["handle"] });
        let fill = json!({
            "wgsl": FILL, "entry": "fill", "groups": [64, 1, 1],
            "bindings": [{ "binding": 0, "access": "read_write", "arg": handle }],
        });
        call("compute/dispatch", &fill);
        handle
    };
    // Once before the measurement: compiling needs memory, which the worker frees when it does
    // something else.
    call("tensor/drop", &filled());
    for _ in 0..ROUNDS {
        let before = steady(available);
        let handle = filled();
        let full = available();
        call("tensor/drop", &handle);
        // Other programs free what they need meanwhile, but leaked memory stays missing.
        alknet_test_support::eventually("a tensor's memory is given back", PATIENCE, || {
            let after = available();
            let is_back = after + MISSING_MIB > before;
            is_back
                .then_some(())
                .ok_or_else(|| format!("MiB before, with it, and after: {before}, {full}, {after}"))
        });
        // A program that frees its own memory meanwhile may still be about to do so.
        let after = steady(available);
        // Memory that another program had before and freed is still free afterwards.
        assert!(
            full + NOTICED_MIB < before.max(after),
            "MiB before, with the tensor, and after it: {before}, {full}, {after}"
        );
    }
}

/// The result of `look` after it was the same several times in a row.
fn steady(look: impl Fn() -> u64) -> u64 {
    let (mut last, mut agreeing) = (look(), 0);
    eventually("memory that stays the same", || {
        let now = look();
        let agrees = now.abs_diff(last) <= STEADY_MIB;
        agreeing = if agrees { agreeing + 1 } else { 0 };
        last = now;
        (agreeing == STEADY_LOOKS).then_some(now)
    })
}

fn a_dying_worker_ends_no_other(web: &WebNode<MachineNode>) {
    let node = &web.node;
    let mut beside = ConcurrentClients::start(web);

    assert_eq!(product(node, "auto"), SQUARE);
    let lasting = json!({ "source": "await new Promise(() => setTimeout(() => {}, 1e6))",
                          "limits": { "wall_ms": 60_000 } });
    let lost = thread::scope(|scope| {
        let waiting = scope.spawn(|| node.try_call("runtime/eval", &lasting, &[]));
        runs(node);
        // A worker of the GPU ends ten seconds after its last request, which is soon on a busy host.
        assert_eq!(product(node, "auto"), SQUARE);
        let killed = node.call("node/fault", &json!({ "kind": "worker-kill" }));
        // A worker that was about to be ready does not have all its restrictions yet.
        for count in ["killed", "walled"] {
            assert!(killed[count].as_u64() >= Some(2), "{count}: {killed}");
        }
        waiting.join().expect("the command line answers")
    });
    assert_eq!(lost.code(), "UNAVAILABLE", "{lost:?}");

    // The next calls get new workers, and no other client lost its connection.
    assert_eq!(product(node, "auto"), SQUARE);
    let ran = node.call("runtime/eval", &json!({ "source": "export default 6 * 7" }));
    assert_eq!(ran["value"], 42, "{ran}");
    node.call("node/fault", &json!({ "kind": "node-panic" }));
    beside.are_reported("node-panic");
    let info = node.info();
    assert_eq!(info["node_restarts"], 0, "{info}");
}

/// A shader that writes a number into each page of its tensor, so that all its memory is in use.
/// Even a busy emulated processor finishes within a request's GPU time.
const FILL: &str = "@group(0) @binding(0) var<storage, read_write> a: array<u32>;
@compute @workgroup_size(64) fn fill(@builtin(global_invocation_id) id: vec3<u32>) {
    for (var i = id.x * 1024u; i < arrayLength(&a); i += 4096u * 1024u) { a[i] = i; }
}";

/// An endless shader.
const ENDLESS: &str = "@group(0) @binding(0) var<storage, read_write> a: array<u32>;
@compute @workgroup_size(1) fn spin() {
    loop { a[0] = a[0] + 1u; if a[1] == 7u { break; } }
}";

/// A shader that an adapter without 16-bit floats cannot run.
const HALVES: &str = "enable f16;
@group(0) @binding(0) var<storage, read_write> a: array<u32>;
@compute @workgroup_size(1) fn half() { a[0] = u32(f16(a[1]) * 2.0h); }";

/// Every mathematical function, the clock, timers, randomness and sorting, as one number.
const EVERYTHING: &str = "
const bits = new BigUint64Array(1), float = new Float64Array(bits.buffer);
let hash = 14695981039346656037n;
const feed = (n) => { hash = BigInt.asUintN(64, (hash ^ BigInt.asUintN(64, n)) * 1099511628211n); };
const number = (x) => { float[0] = x; feed(bits[0]); };
const names = 'acos acosh asin asinh atan atanh cbrt cos cosh exp expm1 log log10 log1p log2 sin sinh tan tanh sqrt fround';
for (let i = -1500; i < 1500; i += 3) {
  const x = i * 0.7310585786300049 / (1 + Math.abs(i) % 7);
  for (const name of names.split(' ')) number(Math[name](x));
  number(Math.abs(x) ** (i / 300)); number(Math.atan2(x, i)); number(Math.hypot(x, i)); number(Math.random());
}
const seen = [];
const wait = (ms) => new Promise((done) => setTimeout(() => { seen.push(ms, Date.now()); done(); }, ms));
await Promise.all([30, 1, 10].map(wait));
for (const n of [...seen, ...crypto.getRandomValues(new Uint8Array(64)), ...[5, 3, 9, 1].sort()]) feed(BigInt(n));
export default hash.toString(16);";

/// The result of a seeded run, and its amount of work.
fn everything(node: impl Fn(&str, &Value) -> Value) -> (Value, Value) {
    let input = json!({
        "source": EVERYTHING, "seed": "07".repeat(32),
        "limits": { "wall_ms": 60_000, "cpu_ms": 60_000 },
    });
    let ran = node("runtime/eval", &input);
    assert!(ran["value"].is_string(), "{ran}");
    (ran["value"].clone(), ran["stats"]["fuel"].clone())
}

fn dispatch(wgsl: &str, entry: &str) -> Value {
    json!({
        "wgsl": wgsl, "entry": entry, "groups": [1, 1, 1],
        "bindings": [{ "binding": 0, "access": "read_write",
                       "arg": { "inline": "AQAAAAIAAAADAAAABAAAAA==", "dtype": "U32", "shape": [4] } }],
    })
}

/// The oldest processor of its kind, little memory, and everything in the image. The adapter's
/// self-test passes there, and a shader's failure affects only its caller.
#[test]
fn an_old_processor_computes() {
    let bench = TestBench::new();
    // Enough for a quick shader here, and no longer, because one of these is endless. The node's
    // own shaders take longer to compile on most machines.
    let seconds = deadline(Duration::from_secs(2)).as_secs().min(600);
    let admin = bench.admin().identity();
    let node = bench
        .machine(BootVariant::Q35Initramfs)
        .config(format!(
            "compute.gpu_seconds = {seconds}\nnode.admin_keys = [\"{admin}\"]\n"
        ))
        .with(|vm| vm.argument("-cpu").argument("qemu64"))
        .boot();
    assert_eq!(product(&node, "host"), SQUARE);
    // A processor that fuses multiplications and additions, and one that cannot.
    let host = bench.host();
    let here = everything(|operation, input| host.call(operation, input));
    let there = everything(|operation, input| node.call(operation, input));
    assert_eq!(there, here);

    if has_driver() {
        our_kernels_are_compiled(&node, seconds);
        judges_shaders(&node);
    } else {
        skipped("Vulkan driver", "no shader is judged");
    }
    let after = node.info();
    assert_eq!(
        (&after["node_restarts"], &after["problems"]),
        (&json!(0), &json!([]))
    );
}

/// A request is answered although an emulated processor must compile its kernel first, on a machine
/// whose requests have `seconds` of GPU time. `compute/gpu/tests/gpu/operations/clock.rs` tests
/// that compiling does not count, even if it takes no longer.
fn our_kernels_are_compiled(node: &MachineNode, seconds: u64) {
    let matrix = json!({ "inline": MATRIX, "dtype": "F32", "shape": [2, 2] });
    let input = json!({ "a": matrix, "b": matrix, "variant": "wgsl" });
    let answer = node.call("compute/matmul", &input);
    assert_eq!(answer["product"]["inline"], SQUARE, "{answer}");
    let compiling = answer["jit_ms"].as_f64();
    let compiling = compiling.expect("it says how long it compiled");
    println!(
        "figure compiling on an emulated processor, of {seconds} s on the GPU: {compiling:.0} ms"
    );
}

fn judges_shaders(node: &MachineNode) {
    let info = node.call("compute/info", &json!({ "probe": true }));
    assert_eq!(info["state"], "ready", "{info}");
    assert_eq!(info["selftest"]["ok"], true, "{info}");
    assert_eq!(product(node, "wgsl"), SQUARE);
    let halves = node.try_call("compute/dispatch", &dispatch(HALVES, "half"), &[]);
    assert_eq!(halves.code(), "SHADER_INVALID", "{halves:?}");
    let endless = node.try_call("compute/dispatch", &dispatch(ENDLESS, "spin"), &[]);
    // On a busy host an emulated processor may not run the worker's other thread, which shows that
    // the worker is alive. Then the node ends the worker before its GPU time is used up.
    let starved = alknet_tests::is_busy()
        && endless.code() == "UNAVAILABLE"
        && endless.errors.contains("no sign of life");
    if starved {
        skipped(
            "slow processor",
            "the worker of a shader without end was ended before its time on the GPU was up",
        );
    } else {
        assert_eq!(endless.code(), "TIMEOUT", "{endless:?}");
    }
    // Its worker was killed. The next caller gets a new one, which must compile its shaders.
    doubles(node);
}

/// A caller's own shader runs.
fn doubles(node: &MachineNode) {
    let outputs = &node.call("compute/dispatch", &twice())["outputs"];
    assert_eq!(
        outputs["0"]["inline"], "AgAAAAQAAAAGAAAACAAAAA==",
        "{outputs}"
    );
}

fn twice() -> Value {
    let four = json!({ "inline": "AQAAAAIAAAADAAAABAAAAA==", "dtype": "U32", "shape": [4] });
    json!({
        "wgsl": TWICE, "entry": "twice", "groups": [1, 1, 1],
        "bindings": [{ "binding": 0, "access": "read_write", "arg": four }],
    })
}

fn assert_refused_without_driver(node: &MachineNode) {
    let info = node.call("compute/info", &json!({}));
    assert_eq!(info["state"], "none", "{info}");
    assert!(info["reason"].is_string(), "{info}");
    let refused = node.try_call("compute/dispatch", &twice(), &[]);
    assert_eq!(refused.code(), "UNAVAILABLE", "{refused:?}");
}

/// Whether the binary under test was built with a driver, as it reports on this host.
fn has_driver() -> bool {
    let mut selftest = Command::new(alknet_tests::binary());
    let ran = selftest.args(["gpu", "selftest", "--json"]).output();
    match ran.expect("the binary can be started").status.code() {
        Some(0) => true,
        Some(WITHOUT_DRIVER) => false,
        other => panic!("the self-test ended with {other:?}"),
    }
}

/// Waits until a script runs.
fn runs(node: &MachineNode) {
    eventually("a script that runs", || {
        let listed = node.call("runtime/sessions", &json!({}));
        let sessions = listed["sessions"].as_array().cloned().unwrap_or_default();
        let running = sessions.iter().any(|it| it["state"] == "running");
        running.then_some(())
    });
}

/// A client of the documentation requests the same product.
fn unknown_clients_get_the_product(
    client: &str,
    node: &MachineNode,
    pem: &PemKeyFiles,
    variant: &str,
) {
    let matrix = json!({ "inline": MATRIX, "dtype": "F32", "shape": [2, 2] });
    let input = json!({ "a": matrix, "b": matrix, "variant": variant });
    let program = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../docs/examples")
        .join(client);
    let output = limited(PATIENCE, "python3")
        .env("PYTHONPATH", variable("ALKNET_TEST_PYTHONPATH"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .arg(program)
        .args([
            &node.target(),
            "compute/matmul",
            &input.to_string(),
            "--cert",
        ])
        .arg(&pem.certificate)
        .output()
        .expect("timeout is part of every Debian");
    let answer: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{client}: {error}: {output:?}"));
    assert_eq!(answer["product"]["inline"], SQUARE, "{client}: {answer}");
}

fn product(node: &MachineNode, variant: &str) -> Value {
    let matrix = json!({ "inline": MATRIX, "dtype": "F32", "shape": [2, 2] });
    let input = json!({ "a": matrix, "b": matrix, "variant": variant });
    let answer = node.call("compute/matmul", &input);
    assert!(
        variant == "auto" || answer["variant"] == variant,
        "{answer}"
    );
    answer["product"]["inline"].clone()
}
