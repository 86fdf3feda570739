//! `alknet:core/fs`: a script reads, writes and watches the files of a node, with the rights of its caller alone, and
//! what it called is a test that needs no node.

use std::fs;

use alknet_tests::{CliOutput, CliRunner, TestBench};
use serde_json::{Value, json};

use super::manual_peer::people;

/// Longer than `fs/put` takes, so that it goes through a session.
const LONG_BYTES: usize = 600 << 10;

const SCRIPT: &str = "
import { entries, open, read, readText, stat, watch, write } from 'alknet:core/fs';

const events = watch('docs:/', { topics: ['fs.put'] });
const begin = await events.next();
const put = await write('docs:/2026/report.txt', 'first', { ifNoneMatch: '*' });
const { value: event } = await events.next();
await events.return();

const session = await open('docs:/2026/report.txt', { mode: 'modify' });
await session.writeAt(5, ' and second');
const during = await readText('docs:/2026/report.txt');
await session.close({ ifMatch: put.hash });
const after = await readText('docs:/2026/report.txt', { offset: 6 });

const long = await write('docs:/long', new Uint8Array(LONG).fill(7));
const [last] = await read('docs:/long', { offset: LONG - 1, length: 1 });
const { size } = await stat('docs:/long');
const paths = [];
for await (const { path } of entries('docs:/', { recursive: true, limit: 1 })) paths.push(path);

const conflict = await write('docs:/long', 'x', { ifMatch: put.hash }).catch((error) => error.code);
const wrong = await stat('docs:/../long').catch((error) => error.code);
export default {
  begin: begin.value.topic, event: [event.topic, event.path], during, after, bytes: long.bytes, last, size, paths, conflict, wrong,
};
";

fn run(cli: &CliRunner, bench: &TestBench, at: &str, words: &[&str], script: &str) -> CliOutput {
    let file = bench.path().join("files.js");
    fs::write(&file, script).expect("the folder is ours");
    let mut command = cli.command(&["js", "run", at]);
    command.args(words).arg(&file);
    cli.run(command)
}

/// The default export of a script that ran.
fn value(ran: &CliOutput) -> Value {
    assert_eq!(ran.status, 0, "{ran:?}");
    ran.json()["value"].clone()
}

fn make_bucket(admin: &CliRunner, target: &str) {
    let made = admin.call(
        target,
        "fs/bucket/create",
        &json!({ "bucket": "docs" }),
        &[],
    );
    assert_eq!(made.json()["name"], "docs");
}

#[test]
fn a_script_uses_the_files_of_a_node() {
    let bench = TestBench::new();
    let node = bench.host();
    make_bucket(bench.admin(), node.target());
    let script = SCRIPT.replace("LONG", &LONG_BYTES.to_string());
    let ran = run(bench.admin(), &bench, node.target(), &[], &script);
    let expected = json!({
        "begin": "watch.begin", "event": ["fs.put", "/2026/report.txt"],
        "during": "first", "after": "and second",
        "bytes": LONG_BYTES, "last": 7, "size": LONG_BYTES,
        "paths": ["/2026", "/long", "/2026/report.txt"],
        "conflict": "CONFLICT", "wrong": "INVALID_PATH",
    });
    assert_eq!(value(&ran), expected);
}

/// What a script read is in the record, with its bytes, and the record answers the same script again.
#[test]
fn what_a_script_read_is_a_test_without_a_node() {
    let bench = TestBench::new();
    let node = bench.host();
    make_bucket(bench.admin(), node.target());
    let put = json!({ "path": "docs:/a", "bytes": "aGVsbG8=" });
    bench
        .admin()
        .call(node.target(), "fs/put", &put, &[])
        .json();
    let source = "import { readText, write } from 'alknet:core/fs';
        const length = async () => {
          const text = await readText('docs:/a');
          await write('docs:/b', text.toUpperCase());
          return text.length;
        };";
    let record = bench.path().join("calls.json");
    let words = ["--record", &record.to_string_lossy()];
    let first = format!("{source} export default await length();");
    let ran = run(bench.admin(), &bench, node.target(), &words, &first);
    assert_eq!(value(&ran), json!(5));
    let calls: Value = {
        let text = fs::read_to_string(&record).expect("it was written");
        serde_json::from_str(&text).expect("JSON")
    };
    assert_eq!(calls[0]["bytes"], "aGVsbG8=", "{calls:#}");
    let cases = json!([{ "calls": calls, "expect": { "output": 5 } }]);
    let again = format!(
        "{source} await ops.register({{ name: 'length', kind: 'mutation' }}, length);
        export default (await ops.test('length', {cases})).passed;"
    );
    let tested = run(bench.admin(), &bench, node.target(), &[], &again);
    assert_eq!(value(&tested), json!(true));
}

/// The module adds no right to those of the caller.
#[test]
fn a_script_has_the_rights_of_its_caller() {
    let bench = TestBench::new();
    let [ada, eve] = ["ada", "eve"].map(|name| bench.user(name));
    let config = people([
        ("ada", &ada, &["runtime:debug", "fs:read:docs"][..]),
        ("eve", &eve, &["runtime:debug"]),
    ]);
    let node = bench.host_with(&config);
    make_bucket(bench.admin(), node.target());
    let put = json!({ "path": "docs:/a", "bytes": "aGVsbG8=" });
    bench
        .admin()
        .call(node.target(), "fs/put", &put, &[])
        .json();
    let source = "import { readText, write } from 'alknet:core/fs';
        const told = (promise) => promise.catch((error) => error.code);
        export default [await told(readText('docs:/a')), await told(write('docs:/a', 'x'))];";
    let ran = |who: &CliRunner| value(&run(who, &bench, node.target(), &[], source));
    assert_eq!(ran(&ada), json!(["hello", "FORBIDDEN"]));
    assert_eq!(ran(&eve), json!(["NOT_FOUND", "NOT_FOUND"]));
}
