//! Operations that compute on a caller's behalf, by the rights of their authors.

use std::time::Duration;

use alknet_compute::limits::RIGHTS_MAX;
use alknet_test_support::deadline;
use serde_json::{Value, json};

use super::node::{AUTHORS, GpuTestNode, binary, codes, floats, inline, le, patient};

fn not_found() -> (String, String) {
    ("NOT_FOUND".to_owned(), "E_NOTFOUND".to_owned())
}

fn create() -> Value {
    json!({ "dtype": "F32", "shape": [2] })
}

/// Computes for longer than any request may, whatever driver there is.
fn endless() -> Value {
    let one = inline("F32", &[1, 1], &le(&[3.0]));
    let view = |rows: usize, columns: usize| json!({ "shape": [rows, columns], "strides": [0, 0] });
    json!({
        "a": one, "b": one, "variant": "host",
        "a_view": view(4096, 1 << 20), "b_view": view(1 << 20, 4096),
    })
}

#[test]
fn an_operation_ends_its_own_worker_and_not_its_caller_s() {
    let mut settings = patient();
    settings.gpu_time = deadline(Duration::from_secs(2));
    let node = GpuTestNode::start(settings, |_| {});
    let admin = node.person("admin");
    let own = admin.create("F32", &[2], &le(&[1.0, 2.0]));
    let own = json!({ "handle": own });
    // Neither has the tensors of the other.
    let refused = admin.try_lent(0, "tensor/read", &own);
    assert_eq!(codes(&refused.expect_err("not its tensor")), not_found());
    let made = admin.try_lent(0, "tensor/create", &create());
    let lent = json!({ "handle": made.expect("a tensor").value()["handle"] });
    assert_eq!(admin.refused("tensor/read", &lent), not_found());
    let refused = admin.try_lent(1, "tensor/read", &lent);
    assert_eq!(codes(&refused.expect_err("not its tensor")), not_found());
    let read = admin.try_lent(0, "tensor/read", &lent);
    read.expect("it has its own");

    let died = admin.try_lent(0, "compute/matmul", &endless());
    let timed_out = ("TIMEOUT".to_owned(), "E_GPU_TIMEOUT".to_owned());
    assert_eq!(codes(&died.expect_err("it does not end")), timed_out);
    let read = admin.ask("tensor/read", &own);
    let bytes = binary(&read, &read.value()["bytes"]);
    assert_eq!(floats(&bytes), [1.0, 2.0]);
    let lost = admin.try_lent(0, "tensor/read", &lent);
    assert_eq!(codes(&lost.expect_err("its worker died")), not_found());
}

#[test]
fn operations_with_other_rights_leave_their_caller_and_others_room() {
    const { assert!(AUTHORS > RIGHTS_MAX) };
    let node = GpuTestNode::start(patient(), |_| {});
    let (first, second) = (node.person("first"), node.person("second"));
    for author in 0..RIGHTS_MAX {
        let made = first.try_lent(author, "tensor/create", &create());
        made.expect("a tensor");
    }
    let refused = first.try_lent(RIGHTS_MAX, "tensor/create", &create());
    let busy = ("OVERLOADED".to_owned(), "E_BUSY".to_owned());
    assert_eq!(codes(&refused.expect_err("one too many")), busy);
    first.ask("tensor/create", &create());
    let made = second.try_lent(RIGHTS_MAX, "tensor/create", &create());
    made.expect("another identity has its own");
}
