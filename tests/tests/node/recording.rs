//! From a session to a test, with the command line: a script's calls on a node are written to a
//! file, and with that file its test passes without a node.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use alknet_tests::{CliOutput, CliRunner, TestBench};
use serde_json::{Value, json};

/// `[[1, 2], [3, 4]]` as little-endian 32-bit floats, and its square.
const MATRIX: &str = "AACAPwAAAEAAAEBAAACAQA==";
const SQUARE: &str = "AADgQAAAIEEAAHBBAACwQQ==";

/// Computes with bytes, with numbers that have no short text, and with an error that may contain a
/// secret: that of an operation that returns one, and is refused to scripts.
const SOURCE: &str =
    "export async function door({ inline }: { inline: string }): Promise<unknown> {
  const a = { inline, dtype: 'F32', shape: [2, 2] };
  const { product } = await ops.call('compute/matmul', { a, b: a });
  const numbers = [...new Float32Array(new Uint8Array(product.inline).buffer)];
  let refused = '';
  try {
    await ops.call('hub/invite', { role: 'worker' });
  } catch (error) {
    refused = (error as OpError).code;
  }
  return { numbers: numbers.map((n) => n / 13), refused };
}
";

fn run(who: &CliRunner, words: &[&str], more: &[&Path]) -> CliOutput {
    let mut command: Command = who.command(words);
    command.args(more);
    who.run(command)
}

/// Runs a script and writes its calls to `out`.
fn record(who: &CliRunner, at: &str, out: &Path, script: &Path) -> CliOutput {
    run(
        who,
        &["js", "run", at],
        &[Path::new("--record"), out, script],
    )
}

fn read(path: &Path) -> Value {
    let text = fs::read_to_string(path).expect("it was written");
    serde_json::from_str(&text).expect("JSON")
}

/// A folder in the form for `alknet ops propose`, whose only case expects `output`.
fn draft(folder: &Path, calls: &Value, output: &Value) {
    fs::create_dir_all(folder).expect("the folder is ours");
    let operation = json!({
        "spec": {
            "name": "door", "kind": "query", "input": { "type": "object" },
            "uses": ["compute/matmul", "hub/invite"],
        },
        "entry": "./main.ts", "export": "door",
        "tests": [{
            "input": { "inline": MATRIX }, "calls": calls, "expect": { "output": output },
        }],
    });
    fs::write(folder.join("operation.json"), operation.to_string()).expect("room");
    fs::write(folder.join("main.ts"), SOURCE).expect("room");
}

#[test]
fn what_a_session_called_is_what_its_test_is_answered_with() {
    let bench = TestBench::new();
    let [ada, bob] = ["ada", "bob"].map(|name| bench.user(name));
    let peers = [
        (
            "ada",
            &ada,
            &["compute:run", "hub:invite", "ops:propose", "runtime:debug"][..],
        ),
        ("bob", &bob, &["runtime:debug"]),
    ];
    let peers = peers.map(|(name, who, scopes)| {
        let key = who.identity();
        format!("[[peers]]\npeer_id = \"{name}\"\nkeys = [\"{key}\"]\nscopes = {scopes:?}\n")
    });
    let config = format!("[hub]\nenabled = true\n{}", peers.concat());
    let node = bench.host_with(&config);
    let at = node.target();
    let folder = bench.path().join("door");
    draft(&folder, &json!([]), &json!(null));
    let script = bench.path().join("try.ts");
    let source = format!(
        "import {{ door }} from './door/main.ts';\nexport default await door({{ inline: '{MATRIX}' }});\n"
    );
    fs::write(&script, source).expect("room");

    // Records a real session's calls. The recording replaces the error message about the invitation
    // with `[secret]`.
    let recorded = folder.join("calls.json");
    let answer = record(&ada, at, &recorded, &script).json();
    let calls = read(&recorded);
    assert_eq!(
        (&answer["calls"], &answer["calls_left_out"]),
        (&calls, &json!(0))
    );
    let value = &answer["value"];
    let numbers = [7.0, 10.0, 15.0, 22.0].map(|n: f64| n / 13.0);
    assert_eq!(value["numbers"], json!(numbers), "{answer:#}");
    assert_eq!(
        (&calls[0]["path"], &calls[0]["bytes"]),
        (&json!("compute/matmul"), &json!(SQUARE))
    );
    assert_eq!(calls[1]["error"]["message"], "[secret]", "{calls:#}");
    assert_eq!(
        (&calls[1]["error"]["code"], &value["refused"]),
        (&json!("FORBIDDEN"), &json!("FORBIDDEN"))
    );

    // A second session does not overwrite the first.
    let again = record(&ada, at, &recorded, &script);
    assert_eq!(
        (again.status, again.code().as_str()),
        (2, "USAGE"),
        "{again:?}"
    );
    assert_eq!(read(&recorded), calls);

    // A proposal is tested with the file as it is. With an empty file, all answers are unknown.
    let propose = ["ops", "propose", at, "--as", "ada"];
    draft(&folder, &json!("none.json"), value);
    fs::write(folder.join("none.json"), "[]").expect("room");
    assert_eq!(run(&ada, &propose, &[&folder]).code(), "TESTS_FAILED");
    draft(&folder, &json!("calls.json"), value);
    let proposed = run(&ada, &propose, &[&folder]).json();
    assert_eq!(proposed["report"]["passed"], true, "{proposed:#}");

    // A session's own test gets its answers from the file too, in a session that reaches nothing.
    let cases = json!([{
        "input": { "inline": MATRIX }, "calls": calls, "expect": { "output": value },
    }]);
    let test = bench.path().join("test.ts");
    let source = format!(
        "import {{ door }} from './door/main.ts';
await ops.register({{ name: 'door', kind: 'query' }}, door);
export default await ops.test('door', {cases});
"
    );
    fs::write(&test, source).expect("room");
    let words = ["js", "run", at, "--uses", "none/such"];
    let report = run(&ada, &words, &[&test]).json();
    assert_eq!(report["value"]["passed"], true, "{report:#}");

    // A recording shows only the answers of its own session, and gives the caller no rights.
    let refused = bench.path().join("refused.json");
    assert_ne!(record(&bob, at, &refused, &script).status, 0);
    let calls = read(&refused);
    assert_eq!(
        (&calls[0]["error"]["code"], &calls[1]),
        (&json!("FORBIDDEN"), &Value::Null)
    );
}

#[test]
fn lines_are_recorded_as_they_are_typed() {
    let bench = TestBench::new();
    let node = bench.host();
    let typed = bench.path().join("typed");
    fs::write(
        &typed,
        "const { name } = await ops.call('node/info', {})\nawait ops.call('runtime/kill', {})\nname\n",
    )
    .expect("room");
    let recorded = bench.path().join("calls.json");
    let mut command = bench.admin().command(&["js", "repl", node.target()]);
    command
        .arg("--record")
        .arg(&recorded)
        .stdin(File::open(&typed).expect("it was written"));
    let answer = bench.admin().run(command);
    assert_eq!(answer.status, 1, "a line failed: {answer:?}");
    let calls = read(&recorded);
    let name = &calls[0]["output"]["name"];
    assert!(name.is_string(), "{calls:#}");
    assert_eq!(
        (&calls[1]["path"], &calls[1]["error"]["code"], &calls[2]),
        (
            &json!("runtime/kill"),
            &json!("INVALID_INPUT"),
            &Value::Null
        )
    );
    assert!(!answer.errors.contains("calls_left_out"), "{answer:?}");
}
