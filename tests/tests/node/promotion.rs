//! An operation written by a script's author, from its draft to its next version, by the command line:
//! drafted, tested, proposed, promoted by somebody else, called, replaced, taken back, kept.

use std::path::{Path, PathBuf};
use std::process::Command;

use alknet_tests::{Answer, Bench, Cli, HostNode};
use serde_json::{Value, json};

/// `[[1, 2], [3, 4]]` as little-endian 32-bit floats, and the last number of its square.
const MATRIX: &str = "AACAPwAAAEAAAEBAAACAQA==";
const SQUARE: &str = "AADgQAAAIEEAAHBBAACwQQ==";
const LAST: f64 = 22.0;

/// One operation, as its author has it: the path of a call is the only thing that a draft and what is
/// proposed say differently.
struct Operation<'a> {
    /// What `main.ts` computes from the product's last number.
    body: &'a str,
    expect: f64,
}

impl Operation<'_> {
    fn source(&self) -> String {
        format!(
            "type Matrix = {{ inline: string }};
export async function last({{ inline }}: Matrix): Promise<number> {{
  const a = {{ inline, dtype: 'F32', shape: [2, 2] }};
  const {{ product }} = await ops.call('compute/matmul', {{ a, b: a }});
  const numbers = new Float32Array(new Uint8Array(product.inline).buffer);
  return {};
}}
",
            self.body
        )
    }

    fn cases(&self) -> Value {
        let a = json!({ "inline": MATRIX, "dtype": "F32", "shape": [2, 2] });
        let product = json!({ "inline": { "$bin": [0, 16] }, "dtype": "F32", "shape": [2, 2] });
        json!([{
            "name": "a square",
            "input": { "inline": MATRIX },
            "calls": [{
                "path": "compute/matmul", "input": { "a": a, "b": a },
                "output": { "product": product, "variant": "host" }, "bytes": SQUARE,
            }],
            "expect": { "output": self.expect },
        }])
    }

    fn spec() -> Value {
        json!({
            "name": "matrix/last", "kind": "query",
            "description": "The last number of a matrix multiplied by itself.",
            "input": { "type": "object", "required": ["inline"] },
            "output": { "type": "number" },
            "uses": ["compute/matmul"],
        })
    }

    /// The folder that is proposed.
    fn folder(&self, at: &Path) -> PathBuf {
        std::fs::create_dir_all(at).expect("the folder is ours");
        let operation = json!({
            "spec": Self::spec(), "entry": "./main.ts", "export": "last", "tests": self.cases(),
        });
        std::fs::write(at.join("operation.json"), operation.to_string()).expect("room");
        std::fs::write(at.join("main.ts"), self.source()).expect("room");
        at.to_owned()
    }

    /// A script that offers the same in a session and tests it.
    fn draft(&self, at: &Path) -> PathBuf {
        let folder = self.folder(at);
        let draft = format!(
            "import {{ last }} from './main.ts';
await ops.register({}, last);
export default await ops.test('matrix/last', {});
",
            Self::spec(),
            self.cases()
        );
        let file = folder.join("draft.ts");
        std::fs::write(&file, draft).expect("room");
        file
    }
}

fn verb(who: &Cli, words: &[&str], more: &[&Path]) -> Answer {
    let mut command: Command = who.command(words);
    command.args(more);
    who.run(command)
}

fn configuration(people: &[(&str, &Cli, &[&str])]) -> String {
    let peers = people.iter().map(|(name, who, scopes)| {
        let key = who.identity();
        format!("[[peers]]\npeer_id = \"{name}\"\nkeys = [\"{key}\"]\nscopes = {scopes:?}\n")
    });
    let peers: String = peers.collect();
    format!("[promotion]\nactivate = \"live\"\n{peers}")
}

#[test]
fn a_draft_becomes_an_operation_and_its_next_version_is_taken_back() {
    let bench = Bench::new();
    let [ada, rev, bob] = ["ada", "rev", "bob"].map(|name| bench.somebody(name));
    let config = configuration(&[
        (
            "ada",
            &ada,
            &["runtime:debug", "compute:run", "ops:propose"],
        ),
        ("rev", &rev, &["ops:promote"]),
        ("bob", &bob, &["call:js:matrix:last"]),
    ]);
    let node = bench.host_with(&config);
    let at = node.target();
    let input = json!({ "inline": MATRIX });

    // The first draft takes the wrong number; its test says so, and so it is not taken.
    let wrong = Operation {
        body: "numbers[0]",
        expect: LAST,
    };
    let file = wrong.draft(&bench.path().join("wrong-draft"));
    let report = verb(&ada, &["js", "run", at], &[&file]).json();
    assert_eq!(report["value"]["passed"], false, "{report:#}");
    let folder = wrong.folder(&bench.path().join("wrong"));
    let propose = ["ops", "propose", at, "--as", "ada"];
    let refused = verb(&ada, &propose, &[&folder]);
    assert_eq!(refused.code(), "TESTS_FAILED");

    let right = Operation {
        body: "numbers[3]",
        expect: LAST,
    };
    let file = right.draft(&bench.path().join("right-draft"));
    let report = verb(&ada, &["js", "run", at], &[&file]).json();
    assert_eq!(report["value"]["passed"], true, "{report:#}");
    let folder = right.folder(&bench.path().join("right"));
    let proposed = verb(&ada, &propose, &[&folder]).json();
    let id = proposed["id"].as_str().expect("an id");

    // Nobody else may, nor the author; and before it is promoted there is nothing to call.
    let promote = ["ops", "promote", at, id, "--external"];
    for who in [&ada, &bob] {
        assert_eq!(verb(who, &promote, &[]).code(), "FORBIDDEN");
    }
    let early = bob.call(at, "js/matrix/last", &input, &[]);
    assert_eq!(early.code(), "NOT_FOUND");
    let promoted = verb(&rev, &promote, &[]).json();
    assert_eq!(
        (&promoted["path"], &promoted["version"], &promoted["active"]),
        (&json!("js/matrix/last"), &json!(1), &json!(true)),
        "{promoted:#}"
    );
    assert_eq!(called(&bob, &node, &input), LAST);
    // Bob may call it; what it calls is not his.
    let matmul = bob.call(at, "compute/matmul", &json!({}), &[]);
    assert_eq!(matmul.code(), "FORBIDDEN");

    let next = Operation {
        body: "numbers[3] + 1",
        expect: LAST + 1.0,
    };
    let folder = next.folder(&bench.path().join("next"));
    let proposed = verb(&ada, &propose, &[&folder]).json();
    let id = proposed["id"].as_str().expect("an id");
    let promoted = verb(&rev, &["ops", "promote", at, id, "--external"], &[]).json();
    assert_eq!(promoted["version"], 2, "{promoted:#}");
    assert_eq!(called(&bob, &node, &input), LAST + 1.0);
    let back = [
        "ops",
        "rollback",
        at,
        "js/matrix/last",
        "--reason",
        "one too many",
    ];
    assert_eq!(verb(&ada, &back, &[]).code(), "FORBIDDEN");
    assert_eq!(verb(&rev, &back, &[]).json()["version"], 1);
    assert_eq!(called(&bob, &node, &input), LAST);

    // It is there after a power cut, with who decided what.
    drop(node);
    let node = bench.host_with(&config);
    assert_eq!(called(&bob, &node, &input), LAST);
    let shown = verb(
        &rev,
        &["ops", "proposals", node.target(), "js/matrix/last"],
        &[],
    )
    .json();
    assert_eq!(
        (
            &shown["current"],
            &shown["versions"].as_array().map(Vec::len)
        ),
        (&json!(1), &Some(2)),
        "{shown:#}"
    );
}

fn called(who: &Cli, node: &HostNode, input: &Value) -> f64 {
    let answer = who.call(node.target(), "js/matrix/last", input, &[]).json();
    answer.as_f64().unwrap_or_else(|| panic!("{answer}"))
}
