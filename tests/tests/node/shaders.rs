//! Shaders of scripts: `gpu` compared with the operations behind it.

use std::collections::BTreeMap;
use std::thread;

use alknet_test_support::skip;
use alknet_tests::{HostNode, TestBench};
use nix::libc;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
use serde_json::{Value, json};

/// The documentation's example must run on a node unchanged.
const PAGE: &str = include_str!("../../../docs/sessions.md");

/// Fills 20 MiB, which take two reads, and sums some of it twice: into a buffer, and into the
/// answer.
const SCRIPT: &str = "
const fill = gpu.module(`@group(0) @binding(0) var<storage, read_write> a: array<u32>;
    @compute @workgroup_size(64) fn fill(@builtin(global_invocation_id) id: vec3<u32>) {
        for (var i = id.x; i < arrayLength(&a); i += 4096u) { a[i] = i; }
    }`);
const sum = gpu.module(`@group(0) @binding(0) var<storage, read> a: array<u32>;
    @group(0) @binding(1) var<storage, read_write> b: array<u32>;
    @compute @workgroup_size(1) fn sum() {
        for (var i = 0u; i < 1000u; i++) { b[0] += a[i]; }
    }`);
const length = 5 * 2 ** 20;
const filled = await gpu.dispatch(fill, 'fill', [
    { binding: 0, out: { dtype: 'U32', shape: [length] } },
], [64]);
const long = filled.outputs[0];
const all = new Uint32Array(await gpu.read(long));
const places = [0, 2 ** 22 - 1, 2 ** 22, length - 1].map((at) => all[at]);
const total = async (as) => (await gpu.dispatch(sum, 'sum', [
    { binding: 0, access: 'read', arg: long },
    { binding: 1, out: { dtype: 'U32', shape: [1], as } },
])).outputs[1];
const [kept, told] = [await total(), await total('inline')];
const sums = [await gpu.read(kept), told.inline].map((bytes) => new Uint32Array(bytes)[0]);
await Promise.all([long, kept].map((buffer) => buffer.dispose()));
let after; try { await kept.read(); } catch (e) { after = e.code; }
export default [long.dtype, long.shape, places, sums, after];
";

/// The error of a node without a driver.
const REFUSED: &str = "
let code;
try {
    await gpu.dispatch(gpu.module('@compute @workgroup_size(1) fn main() {}'), 'main', []);
} catch (e) { code = e.code; }
export default code;
";

#[test]
fn scripts_fill_change_and_read_buffers() {
    let bench = TestBench::new();
    let node = bench.host();
    let info = node.call("compute/info", &json!({ "probe": true }));
    if info["state"] == "none" {
        let reason = info["reason"].as_str().unwrap_or_default();
        assert!(reason.contains("no Vulkan driver linked"), "{info}");
        assert_eq!(eval(&node, REFUSED), "UNAVAILABLE");
        skip!("Vulkan adapter", "{reason}");
    }
    let long = 5 << 20;
    let places = [0, (1 << 22) - 1, 1 << 22, long - 1];
    let expected = json!(["U32", [long], places, [499_500, 499_500], "E_DISPOSED"]);
    assert_eq!(eval(&node, SCRIPT), expected);
    let example = PAGE.split_once("\n```js gpu\n");
    let example = example.and_then(|(_, rest)| rest.split_once("\n```"));
    let (example, _) = example.expect("the page has an example");
    assert_eq!(eval(&node, example), json!([2, 4, 6]));
}

/// Workers with fewer restrictions than the configuration requires get no work, and the node says so.
#[test]
fn a_sandbox_below_the_minimum_is_refused() {
    let bench = TestBench::new();
    let node = bench.host_with("[runtime]\nmin_sandbox = \"full\"\n");
    let answer = node.try_call("runtime/eval", &json!({ "source": "export default 1" }));
    let stats = node.call("runtime/stats", &json!({}));
    let level = &stats["sandbox"]["js"]["level"];
    let info = node.call("node/info", &Value::Null);
    let problems = info["problems"].as_array().expect("a list");
    let is_listed = problems.iter().any(|one| one["code"] == "sandbox-low");
    if level == "full" {
        assert_eq!(answer.json()["value"], 1);
        assert!(!is_listed, "{info}");
    } else {
        assert_eq!(answer.code(), "UNAVAILABLE", "{stats}");
        assert!(is_listed, "{info}");
    }
}

/// Starts a node on a kernel that refuses every list of system calls, as a kernel without seccomp does.
fn without_seccomp(bench: &TestBench) -> HostNode {
    let rules = BTreeMap::from([(libc::SYS_seccomp, Vec::new())]);
    let arch = std::env::consts::ARCH.try_into().expect("a known one");
    let refused = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refused, arch);
    let program: BpfProgram = filter.expect("rules").try_into().expect("a program");
    // The filter is that of one thread, and of the processes that this thread starts.
    thread::scope(|scope| {
        let started = scope.spawn(|| {
            seccompiler::apply_filter(&program).expect("the first one is allowed");
            bench.host()
        });
        started.join().expect("it serves")
    })
}

/// The configuration has no setting for it.
#[test]
fn a_worker_without_its_list_of_system_calls_is_refused_by_default() {
    let bench = TestBench::new();
    let node = without_seccomp(&bench);
    let answer = node.try_call("runtime/eval", &json!({ "source": "export default 1" }));
    assert_eq!(answer.code(), "UNAVAILABLE", "{answer:?}");
    let why = "process-only where at least partial is required";
    assert!(answer.errors.contains(why), "{answer:?}");
    let stats = node.call("runtime/stats", &json!({}));
    assert_eq!(stats["sandbox"]["js"]["level"], "process-only", "{stats}");
    let info = node.call("node/info", &Value::Null);
    let problems = info["problems"].as_array().expect("a list");
    let is_listed = problems.iter().any(|one| one["code"] == "sandbox-low");
    assert!(is_listed, "{info}");
}

/// A script has as much time as its call, because an emulated processor compiles shaders slowly.
fn eval(node: &HostNode, source: &str) -> Value {
    let input = json!({ "source": source, "limits": { "wall_ms": 120_000 } });
    node.call("runtime/eval", &input)["value"].clone()
}
