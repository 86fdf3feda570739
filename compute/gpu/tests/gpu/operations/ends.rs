//! Workers that die, and callers who give up.

use std::fs;
use std::os::unix::fs::MetadataExt;

use alknet_call::CallError;
use alknet_compute::ComputeSettings;
use alknet_test_support::{eventually, skip};
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::node::{GpuTestCaller, GpuTestNode, LONG, block_on, codes, floats, inline, le, patient};
use crate::adapter;

/// A shader that does not end before the watchdog ends its worker.
pub(super) const ENDLESS: &str = "
    @group(0) @binding(0) var<storage, read_write> data: array<u32>;
    @compute @workgroup_size(1) fn main() {
        loop { data[0] = data[0] * 5u + 1u; if data[1] == 7u { break; } }
    }";

/// Processor time after which a worker is busy with what it was asked last, in ticks of 10 ms: more than it takes to
/// compile that.
const BUSY_TICKS: u64 = 20;

/// Marks the workers of one test, so that no other's are touched.
const MARK: &str = "ALKNET_TEST_MARK";

pub(super) fn endless() -> Value {
    json!({
        "wgsl": ENDLESS, "entry": "main", "groups": [1, 1, 1],
        "bindings": [{ "binding": 0, "out": { "dtype": "U32", "shape": [2] } }],
    })
}

/// Whether the node computes for this caller.
pub(super) fn works(person: &GpuTestCaller) -> bool {
    let one = inline("F32", &[1, 1], &le(&[3.0]));
    let answer = person.ask(
        "compute/matmul",
        &json!({ "a": one, "b": one, "variant": "wgsl" }),
    );
    floats(&person.bytes(&answer, &answer.value()["product"])) == [9.0]
}

/// The worker with this mark, and how much processor time it has used, in ticks.
fn marked(mark: &str) -> Option<(i32, u64)> {
    let wanted = format!("{MARK}={mark}");
    for entry in fs::read_dir("/proc").expect("/proc is there").flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
        let mut variables = environment.split(|byte| *byte == 0);
        if variables.any(|variable| variable == wanted.as_bytes()) {
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            let fields: Vec<&str> = stat[stat.rfind(')')? + 2..].split(' ').collect();
            return Some((pid, fields.get(11)?.parse().ok()?));
        }
    }
    None
}

fn node(settings: ComputeSettings, mark: &str) -> GpuTestNode {
    GpuTestNode::start(settings, |role| {
        role.environment.push((MARK.to_owned(), mark.to_owned()));
    })
}

/// Waits until the worker is busy with what it was asked last.
fn busy(mark: &str) -> i32 {
    let mut first = None;
    eventually("the worker is busy", LONG, || {
        let (pid, ticks) = marked(mark)?;
        let (known, begun) = *first.get_or_insert((pid, ticks));
        (known == pid && ticks > begun + BUSY_TICKS).then_some(pid)
    })
}

/// Ends a worker of this test's own, found by its mark.
fn kill(pid: i32) {
    signal::kill(Pid::from_raw(pid), Signal::SIGKILL).expect("it lives");
}

pub(super) fn running(node: &GpuTestNode) -> u64 {
    node.workers.stats().workers.values().sum()
}

/// Bytes that a worker's files in memory take: its device's memory is one.
fn committed(pid: i32) -> u64 {
    let folder = format!("/proc/{pid}/fd");
    let files = fs::read_dir(folder).expect("the worker is there").flatten();
    files
        .filter_map(|entry| fs::metadata(entry.path()).ok())
        .filter(|file| file.is_file())
        .map(|file| file.blocks() * 512)
        .sum()
}

#[test]
fn memory_of_tensors_that_are_dropped_is_given_back() {
    if let Err(why) = adapter() {
        skip!("Vulkan adapter", "{why}");
    }
    let mark = format!("gives-back-{}", std::process::id());
    let node = node(patient(), &mark);
    let person = node.person("tidy");
    assert!(works(&person));
    let (pid, _) = marked(&mark).expect("it lingers");
    let before = committed(pid);
    let each = 64_u64 << 20;
    // A word of every page of each.
    let body: String = (0..4)
        .map(|i| format!("b{i}[id.x * 1024u] = 1u;"))
        .collect();
    let declared: String = (0..4)
        .map(|i| format!("@group(0) @binding({i}) var<storage, read_write> b{i}: array<u32>;"))
        .collect();
    let out = json!({ "dtype": "U8", "shape": [each], "as": "handle" });
    let outputs: Vec<Value> = (0..4)
        .map(|binding| json!({ "binding": binding, "out": out }))
        .collect();
    let input = json!({
        "wgsl": format!("{declared} @compute @workgroup_size(64)
            fn main(@builtin(global_invocation_id) id: vec3<u32>) {{ {body} }}"),
        "entry": "main", "groups": [each / 4096 / 64, 1, 1], "bindings": outputs,
    });
    let answer = person.ask("compute/dispatch", &input);
    let during = committed(pid);
    assert!(during >= before + 4 * each, "{before}, {during}");
    for tensor in answer.value()["outputs"]
        .as_object()
        .expect("outputs")
        .values()
    {
        person.ask("tensor/drop", &json!({ "handle": tensor["handle"] }));
    }
    assert!(works(&person));
    let after = committed(pid);
    assert!(after <= before + (16 << 20), "{before}, {during}, {after}");
}

#[test]
fn a_worker_that_dies_ends_its_call_and_the_next_one_has_another() {
    if let Err(why) = adapter() {
        skip!("Vulkan adapter", "{why}");
    }
    let mark = format!("dies-{}", std::process::id());
    let node = node(patient(), &mark);
    let (person, other) = (node.person("unlucky"), node.person("unlucky"));
    assert!(works(&person));
    let handle = person.create("U8", &[1], b"x");
    let killer = std::thread::spawn(move || {
        let pid = busy(&mark);
        kill(pid);
    });
    let error = person
        .try_ask("compute/dispatch", &endless())
        .expect_err("its worker died");
    killer.join().expect("it found the worker");
    assert_eq!(
        codes(&error),
        ("UNAVAILABLE".to_owned(), "E_WORKER_LOST".to_owned())
    );
    assert!(error.retryable);
    assert!(works(&other), "the next call has a new worker");
    let lost = other.refused("tensor/read", &json!({ "handle": handle }));
    assert_eq!(
        lost.0, "NOT_FOUND",
        "what was in the worker is gone with it"
    );
}

#[test]
fn a_worker_that_died_between_requests_fails_no_request() {
    if let Err(why) = adapter() {
        skip!("Vulkan adapter", "{why}");
    }
    let mark = format!("idle-{}", std::process::id());
    let node = node(patient(), &mark);
    let person = node.person("patient");
    assert!(works(&person));
    let (pid, _) = marked(&mark).expect("it lingers");
    kill(pid);
    eventually("the death is noticed", LONG, || running(&node) == 0);
    assert!(works(&person));
}

#[test]
fn a_cancelled_request_leaves_its_place_to_the_next() {
    if let Err(why) = adapter() {
        skip!("Vulkan adapter", "{why}");
    }
    let mark = format!("gives-up-{}", std::process::id());
    let node = node(patient(), &mark);
    let person = node.person("impatient");
    assert!(works(&person));
    block_on(async {
        let input = endless();
        let busy = tokio::task::spawn_blocking(move || busy(&mark));
        // The call is dropped, which gives it up, when the worker is busy with it.
        tokio::select! {
            _ = person.asking("compute/dispatch", &input) => {
                panic!("an endless shader has an answer")
            }
            pid = busy => pid.expect("the worker was found"),
        }
    });
    assert!(
        works(&person),
        "its worker was killed, and there is another"
    );
}

#[test]
fn a_queue_has_an_end() {
    if let Err(why) = adapter() {
        skip!("Vulkan adapter", "{why}");
    }
    let mark = format!("crowd-{}", std::process::id());
    let node = node(patient(), &mark);
    let person = node.person("crowd");
    let (endless, quick) = (endless(), json!({ "probe": true }));
    let is_refused = |answer: Result<_, CallError>| match answer {
        Ok(_) => false,
        Err(error) => {
            assert_eq!(error.code.name(), "OVERLOADED", "{error:?}");
            assert!(error.retry_after_ms.is_some());
            true
        }
    };
    block_on(async {
        let crowd = async {
            let busy = tokio::task::spawn_blocking(move || busy(&mark));
            busy.await.expect("the first call runs");
            let mut waiting = tokio::task::JoinSet::new();
            for _ in 0..40 {
                let (person, quick) = (GpuTestCaller(person.0.clone()), quick.clone());
                waiting.spawn(async move { person.asking("compute/info", &quick).await });
            }
            let first = waiting.join_next().await.expect("forty").expect("no panic");
            assert!(is_refused(first), "the queue took all of the crowd");
            waiting
        };
        let mut waiting = tokio::select! {
            _ = person.asking("compute/dispatch", &endless) => {
                panic!("an endless shader has an answer")
            }
            waiting = crowd => waiting,
        };
        // The first call was dropped, which gives it up: those in the queue get their answers.
        let mut answered = 0;
        while let Some(answer) = waiting.join_next().await {
            answered += usize::from(!is_refused(answer.expect("no panic")));
        }
        assert!(answered > 0, "the queue was not served");
    });
}
