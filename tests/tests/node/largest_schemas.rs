//! A list of 400,000 numbers, each of which a schema compares with 100,000 others: what the node takes of such an
//! attack, and the largest schema and the largest list that it compares.

use std::time::Duration;

use alknet_call::ErrorCode;
use alknet_test_support::took;
use alknet_tests::{RequestLoop, TestBench};
use serde_json::{Value, json};

use super::hostile_scripts::{people, propose};
use super::manual_peer::caller;
use super::promoted_callers::{OperationDraft, configuration, promote};

/// Numbers of the schema, and items of the list, of the attack.
const COMPARED: u32 = 100_000;
const ITEMS: usize = 400_000;

/// Numbers of the largest schema: it has 20,000 values, with the list of the numbers and two objects around it.
const LARGEST: u32 = 19_997;
/// Items of the longest list that may be compared with it: each takes a step for each number and two more, and a check
/// may take 1,000,000 steps.
const LONGEST: usize = 50;

/// Parts of the messages of these limits.
const TOO_WIDE: &str = "more values than a schema may";
const TOO_MUCH: &str = "schema takes more than 1000000 steps";
/// That of a value which does not leave a script.
const TOO_LARGE: &str = "the value takes more than 4 MiB of memory";

/// Time within which the node must answer other callers meanwhile.
const ANSWER_WITHIN: Duration = Duration::from_millis(100);

/// A schema for a list whose items are each one of this many numbers.
fn each_of(numbers: u32) -> Value {
    let numbers: Vec<f64> = (0..numbers).map(|n| f64::from(n) + 0.5).collect();
    json!({ "items": { "enum": numbers } })
}

/// The number with which an item of the largest schema is compared last.
fn last() -> f64 {
    f64::from(LARGEST) - 0.5
}

/// A script neither registers the schema nor passes the list on: neither has room among the values of scripts. Its
/// worker compares the largest schema.
#[test]
fn schemas_of_scripts_cost_the_node_little_time_at_their_largest() {
    let bench = TestBench::new();
    let node = bench.host();
    let asking = RequestLoop::begin(node.target(), bench.admin());
    let last = last();
    let source = format!(
        "const told = [];
         const tries = async (what) => {{
             try {{ told.push(['done', await what()]); }} catch ({{ code, message }}) {{ told.push([code, message]); }}
         }};
         const offers = (name, numbers) => tries(async () => {{
             const input = {{ items: {{ enum: Array.from({{ length: numbers }}, (_, n) => n + 0.5) }} }};
             await ops.register({{ name, kind: 'query', input }}, () => 'fits');
             return name;
         }});
         const lists = (length, number) => tries(() => ops.call('js/largest', new Array(length).fill(number)));
         await offers('attack', {COMPARED});
         await offers('larger', {LARGEST} + 1);
         await offers('largest', {LARGEST});
         await lists({ITEMS}, 7);
         await lists({LONGEST} + 1, {last});
         await lists({LONGEST}, {last});
         export default told"
    );
    let ran = node.call("runtime/eval", &json!({ "source": source }));
    let what = "an answer beside the largest schema of a script";
    took(what, ANSWER_WITHIN, asking.end());
    let told: Vec<(String, String)> =
        serde_json::from_value(ran["value"].clone()).expect("pairs of texts");
    let expected = [
        ("E_ENCODE", TOO_LARGE),
        ("INVALID_INPUT", TOO_WIDE),
        ("done", "largest"),
        ("E_ENCODE", TOO_LARGE),
        ("INVALID_INPUT", TOO_MUCH),
        ("done", "fits"),
    ];
    assert_eq!(told.len(), expected.len(), "{told:?}");
    for ((code, said), (wanted, part)) in told.iter().zip(expected) {
        assert!(code == wanted && said.contains(part), "{part}: {told:?}");
    }
}

/// The node itself compares the answers of proposals' tests, and the inputs of promoted operations. A peer may send it
/// the whole list.
#[tokio::test(flavor = "multi_thread")]
async fn schemas_of_proposals_cost_the_node_little_time_at_their_largest() {
    let bench = TestBench::new();
    let [ada, rev, eve] = ["ada", "rev", "eve"].map(|name| bench.user(name));
    let author = [("author".to_owned(), bench.user("author"))];
    let config = configuration(
        &people(&author, &["ops:propose"]),
        &[
            ("ada", &ada, &["ops:propose"]),
            ("rev", &rev, &["ops:promote"]),
            ("eve", &eve, &["call:js:picky"]),
        ],
    );
    let node = bench.host_with(&config);
    let draft = OperationDraft {
        input: each_of(LARGEST),
        example: json!([last()]),
        source: "export const run = () => 'done';",
        ..OperationDraft::waits("picky")
    };
    promote(&bench, node.target(), ("ada", &ada), &rev, &draft);
    let (_dialer, client) = caller(&node, &eve).await;
    let asking = RequestLoop::begin(node.target(), bench.admin());

    for too_long in [json!(vec![7; ITEMS]), json!(vec![last(); LONGEST + 1])] {
        let refused = client.call("js/picky", &too_long).await;
        let refused = refused.expect_err("the list is too long for the schema");
        assert_eq!(refused.code, ErrorCode::InvalidInput, "{refused}");
        assert!(refused.message.contains(TOO_MUCH), "{refused}");
    }
    let longest = client.call("js/picky", &json!(vec![last(); LONGEST])).await;
    assert_eq!(longest.expect("it fits").value(), &json!("done"));

    let list = |items: usize| format!("new Array({items}).fill({})", last());
    let proposed = |n: usize, numbers: u32, items: usize| {
        let schema = each_of(numbers);
        propose(&bench, &node, &author[0].1, (n, &schema, &list(items)))
    };
    for (n, numbers, items, reason) in [
        (0, COMPARED, 1, TOO_WIDE),
        (1, LARGEST + 1, 1, TOO_WIDE),
        (2, LARGEST, LONGEST + 1, TOO_MUCH),
        // The answer does not leave the script, whatever it is compared with.
        (3, LARGEST, ITEMS, "E_ENCODE"),
    ] {
        let refused = proposed(n, numbers, items);
        assert_eq!(refused.code(), "TESTS_FAILED", "{refused:?}");
        assert!(refused.errors.contains(reason), "{reason}: {refused:?}");
    }
    let accepted = proposed(4, LARGEST, LONGEST);
    assert_eq!(accepted.status, 0, "{accepted:?}");
    let what = "an answer beside the largest schemas of proposals";
    took(what, ANSWER_WITHIN, asking.end());
    assert_eq!(node.call("node/info", &Value::Null)["problems"], json!([]));
}
