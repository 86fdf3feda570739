//! Copies of a serving machine: the properties that tests with copies rely on.

use std::time::{Duration, Instant};

use alknet_test_support::took;
use alknet_tests::{BootVariant, MachineNode, TestBench};
use serde_json::{Value, json};

/// What docs/adding-tests.md says about a machine that was saved before.
const ANSWERS_WITHIN: Duration = Duration::from_secs(1);

/// How many tokens were made at a node.
fn tokens(node: &MachineNode) -> usize {
    let listed = node.call("token/list", &Value::Null);
    listed["tokens"].as_array().expect("a list").len()
}

#[test]
fn what_is_written_in_one_copy_no_other_copy_sees() {
    let benches = [TestBench::new(), TestBench::new()];
    let copy = |bench: &TestBench| bench.snapshot(BootVariant::MicrovmErofs).restore();
    let [one, two] = benches.each_ref().map(copy);
    assert_eq!(one.identity(), two.identity());
    assert_ne!(one.address(), two.address());
    let before = (tokens(&one), tokens(&two));
    assert_eq!(before, (0, 0));
    one.call("token/make", &json!({ "scopes": ["node:read"] }));
    assert_eq!((tokens(&one), tokens(&two)), (1, 0));
    // After that copy has ended, it is on its disk, and on no other.
    one.end();
    let again = benches[0].machine(BootVariant::MicrovmErofs).boot();
    assert_eq!(again.identity(), two.identity());
    assert_eq!((tokens(&again), tokens(&two)), (1, 0));
    let bench = TestBench::new();
    let began = Instant::now();
    let late = copy(&bench);
    assert_eq!(tokens(&late), 0, "the saved machine is as it was");
    took(
        "a copy of a saved machine answers",
        ANSWERS_WITHIN,
        began.elapsed(),
    );
    for node in [again, two, late] {
        assert_eq!(node.info()["problems"], json!([]));
    }
}
