//! Tensors that stay with their worker: what they hold, whose they are, and when they end.

use std::time::Duration;

use alknet_test_support::{deadline, eventually};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::ends::running;
use super::node::{GpuTestCaller, GpuTestNode, LONG, NODE, binary, inline, patient};

fn not_found() -> (String, String) {
    ("NOT_FOUND".to_owned(), "E_NOTFOUND".to_owned())
}

fn read(person: &GpuTestCaller, handle: &Value, rows: Value) -> (Value, Vec<u8>) {
    let answer = person.ask("tensor/read", &json!({ "handle": handle, "rows": rows }));
    let told = answer.value().clone();
    let bytes = binary(&answer, &told["bytes"]);
    (told["shape"].clone(), bytes)
}

#[test]
fn what_is_written_is_read_by_rows() {
    let person = NODE.person("rows");
    let made = person.ask("tensor/create", &json!({ "dtype": "u8", "shape": [4, 3] }));
    let handle = made.value()["handle"].clone();
    assert!(made.value()["expires_ms"].as_u64().expect("a number") > 0);
    assert_eq!(
        read(&person, &handle, Value::Null),
        (json!([4, 3]), vec![0; 12])
    );
    let write = |rows: Value, bytes: &[u8]| {
        let bytes = STANDARD.encode(bytes);
        person.ask(
            "tensor/write",
            &json!({ "handle": handle, "rows": rows, "bytes": bytes }),
        )
    };
    write(Value::Null, b"abcdefghijkl");
    // Neither begins nor ends with a word.
    write(json!([1, 2]), b"DEF");
    write(json!([4, 4]), b"");
    assert_eq!(
        read(&person, &handle, json!([1, 3])),
        (json!([2, 3]), b"DEFghi".to_vec())
    );
    let all = read(&person, &handle, Value::Null);
    assert_eq!(all.1, b"abcDEFghijkl");
    for (rows, bytes) in [(json!([0, 5]), 15), (json!([2, 1]), 3), (json!([0, 1]), 4)] {
        let bytes = STANDARD.encode(vec![0; bytes]);
        let input = json!({ "handle": handle, "rows": rows, "bytes": bytes });
        assert_eq!(
            person.refused("tensor/write", &input).1,
            "E_SHAPE",
            "{rows}"
        );
    }
    person.ask("tensor/drop", &json!({ "handle": handle }));
    for operation in ["tensor/read", "tensor/drop"] {
        assert_eq!(
            person.refused(operation, &json!({ "handle": handle })),
            not_found()
        );
    }
}

#[test]
fn a_tensor_is_made_from_another() {
    let person = NODE.person("copies");
    let from = inline("F32", &[2, 2], &[7; 16]);
    let input = json!({ "dtype": "F32", "shape": [4], "from": from });
    let first = person.ask("tensor/create", &input).value()["handle"].clone();
    let input = json!({ "dtype": "F32", "shape": [4, 1], "from": { "handle": first } });
    let second = person.ask("tensor/create", &input).value()["handle"].clone();
    let zeros = STANDARD.encode([0; 16]);
    person.ask("tensor/write", &json!({ "handle": first, "bytes": zeros }));
    assert_eq!(
        read(&person, &second, Value::Null),
        (json!([4, 1]), vec![7; 16])
    );
    let wrong = |input: Value| person.refused("tensor/create", &input).1;
    assert_eq!(
        wrong(json!({ "dtype": "F32", "shape": [3], "from": { "handle": first } })),
        "E_SHAPE"
    );
    assert_eq!(
        wrong(json!({ "dtype": "I32", "shape": [4], "from": { "handle": first } })),
        "E_DTYPE"
    );
    assert_eq!(wrong(json!({ "dtype": "X7", "shape": [4] })), "E_DTYPE");
    let reference = json!({ "ref": "alknet-tensor://peer/id#name" });
    let input = json!({ "dtype": "F32", "shape": [4], "from": reference });
    let error = person
        .try_ask("tensor/create", &input)
        .expect_err("no store of tensors");
    assert_eq!((error.code.name(), error.retryable), ("UNAVAILABLE", false));
}

#[test]
fn an_identity_reaches_only_its_own_tensors() {
    let (owner, other) = (NODE.person("owner"), NODE.person("other"));
    let handle = owner.create("U8", &[3], b"abc");
    for operation in ["tensor/read", "tensor/drop"] {
        assert_eq!(
            other.refused(operation, &json!({ "handle": handle })),
            not_found()
        );
    }
    let input = json!({ "handle": handle, "bytes": "AAAA" });
    assert_eq!(other.refused("tensor/write", &input), not_found());
    let input = json!({ "data": { "handle": handle } });
    assert_eq!(other.refused("compute/sha256", &input), not_found());
    // The same identity over another connection does.
    let again = NODE.person("owner");
    assert_eq!(read(&again, &handle, Value::Null).1, b"abc");
    // A caller without the scope may do nothing at all.
    let reader = NODE.person_with("reader", &["node:read"]);
    for operation in [
        "tensor/create",
        "compute/info",
        "compute/dispatch",
        "compute/matmul",
    ] {
        assert_eq!(
            reader.refused(operation, &json!({})).0,
            "FORBIDDEN",
            "{operation}"
        );
    }
}

#[test]
fn there_is_only_so_much() {
    let mut settings = patient();
    settings.tenant_bytes = 1 << 20;
    let node = GpuTestNode::start(settings, |_| {});
    let person = node.person("greedy");
    let create = |bytes: usize| json!({ "dtype": "U8", "shape": [bytes] });
    let handle = person.ask("tensor/create", &create(1 << 20)).value()["handle"].clone();
    let quota = ("QUOTA_EXCEEDED".to_owned(), "E_QUOTA".to_owned());
    assert_eq!(person.refused("tensor/create", &create(1)), quota);
    person.ask("tensor/drop", &json!({ "handle": handle }));
    person.ask("tensor/create", &create(1 << 20));
    let too_large = ("TENSOR_TOO_LARGE".to_owned(), "E_TOO_LARGE".to_owned());
    assert_eq!(
        person.refused("tensor/create", &create((128 << 20) + 1)),
        too_large
    );
    let shape = json!({ "dtype": "U8", "shape": [u64::MAX, u64::MAX] });
    assert_eq!(person.refused("tensor/create", &shape), too_large);
}

#[test]
fn a_lease_ends_and_then_the_worker_does() {
    let mut settings = patient();
    // Long enough to ask twice.
    settings.lease = deadline(Duration::from_millis(1500));
    settings.idle = Duration::from_millis(100);
    settings.tick = Duration::from_millis(20);
    let node = GpuTestNode::start(settings, |_| {});
    let person = node.person("leased");
    let handle = person.create("U8", &[3], b"abc");
    let lost = || {
        let read = person.try_ask("tensor/read", &json!({ "handle": handle }));
        read.is_err()
    };
    // Asking renews it.
    assert!(!lost() && !lost());
    // Reading would renew it. The worker ends when it holds no tensor any more.
    eventually("the worker ends", LONG, || running(&node) == 0);
    assert!(lost(), "the lease is over");
    // A new one gets a worker again.
    assert_eq!(
        read(&person, &person.create("U8", &[3], b"def"), Value::Null).1,
        b"def"
    );
}

#[test]
fn little_is_left_of_a_lease_once_the_connection_is_gone() {
    let mut settings = patient();
    settings.orphan_lease = Duration::ZERO;
    settings.tenant_bytes = 3;
    settings.tick = Duration::from_millis(20);
    let node = GpuTestNode::start(settings, |_| {});
    let staying = node.person("somebody");
    let leaving = node.person("somebody");
    let (kept, lost) = (
        staying.create("U8", &[1], b"k"),
        leaving.create("U8", &[1], b"l"),
    );
    leaving.0.close(alknet_core::CloseCode::Normal, "done");
    drop(leaving);
    // Looking at it would take it over: what is looked at is whether there is room again.
    let two = json!({ "dtype": "U8", "shape": [2] });
    eventually("the handle ends", LONG, || {
        staying.try_ask("tensor/create", &two).is_ok()
    });
    assert_eq!(
        staying.refused("tensor/read", &json!({ "handle": lost })),
        not_found()
    );
    assert_eq!(read(&staying, &kept, Value::Null).1, b"k");
}
