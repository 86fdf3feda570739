//! An author writes an operation, and takes it with the command line from its draft to its next version: drafted,
//! tested, proposed, promoted by a reviewer, called, replaced, rolled back, and kept over a kill of the node.
//! Clients also call the active version over HTTP and with an MCP client.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use alknet_tests::tools::{client, run_with_json, variable};
use alknet_tests::{CliOutput, CliRunner, CurlResponse, HostNode, TestBench, binary, curl};
use nix::pty::openpty;
use serde_json::{Value, json};

/// `[[1, 2], [3, 4]]` as little-endian 32-bit floats in Base64, its square in the same form, and the last number of
/// the square.
const MATRIX: &str = "AACAPwAAAEAAAEBAAACAQA==";
const SQUARE: &str = "AADgQAAAIEEAAHBBAACwQQ==";
const LAST: f64 = 22.0;

/// Path of the promoted operation.
const PATH: &str = "js/matrix/last";

/// One operation in its author's files. The draft and the proposal differ only in the path that a call names.
struct PromotedOperation<'a> {
    /// Expression in `main.ts` that computes the answer from the product's numbers.
    body: &'a str,
    expect: f64,
}

impl PromotedOperation<'_> {
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

    /// Writes the folder that the author proposes.
    fn folder(&self, at: &Path) -> PathBuf {
        std::fs::create_dir_all(at).expect("the folder is ours");
        let operation = json!({
            "spec": Self::spec(), "entry": "./main.ts", "export": "last", "tests": self.cases(),
        });
        std::fs::write(at.join("operation.json"), operation.to_string()).expect("room");
        std::fs::write(at.join("main.ts"), self.source()).expect("room");
        at.to_owned()
    }

    /// Writes a script that registers the operation in a session and tests it there.
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

fn verb(who: &CliRunner, words: &[&str], more: &[&Path]) -> CliOutput {
    let mut command: Command = who.command(words);
    command.args(more);
    who.run(command)
}

fn configuration(people: &[(&str, &CliRunner, &[&str])]) -> String {
    let peers = people.iter().map(|(name, who, scopes)| {
        let key = who.identity();
        format!("[[peers]]\npeer_id = \"{name}\"\nkeys = [\"{key}\"]\nscopes = {scopes:?}\n")
    });
    let peers: String = peers.collect();
    // The node offers the operation as an MCP tool of its own as soon as the operation is active.
    format!("[promotion]\nactivate = \"live\"\n[http.mcp]\ntools = [\"{PATH}\"]\n{peers}")
}

/// The callers that may call the operation: one with a key, and one with a token.
struct PermittedCallers<'a> {
    bob: &'a CliRunner,
    token: String,
}

impl PermittedCallers<'_> {
    /// Each caller gets the same answer: at the command line, over HTTP, and as a model, which finds the operation
    /// in the list of operations and as an MCP tool of its own.
    fn are_reported(&self, node: &HostNode, expected: f64) {
        let input = json!({ "inline": MATRIX });
        let answer = self.bob.call(node.target(), PATH, &input, &[]).json();
        assert_eq!(answer.as_f64(), Some(expected), "{answer}");
        let told = posted(node, &self.token);
        assert_eq!(told.status, 200, "{told:?}");
        assert_eq!(told.json()["output"].as_f64(), Some(expected), "{told:?}");
        let mut python = Command::new("python3");
        python.arg("-S").arg(client("mcp_node.py"));
        python.arg(format!("/{PATH}"));
        python.args([input.to_string(), expected.to_string()]);
        python.env("PYTHONPATH", variable("ALKNET_TEST_MCP_PYTHON"));
        let facts = json!({ "url": url(node, "/mcp"), "token": self.token });
        let output = run_with_json(&mut python, &facts);
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        assert!(output.status.success() && text.contains("fine"), "{text}");
    }
}

/// A token with only these scopes.
fn token(node: &HostNode, scopes: &[&str]) -> String {
    let made = node.call("token/make", &json!({ "scopes": scopes }));
    made["token"].as_str().expect("a token").to_owned()
}

fn url(node: &HostNode, path: &str) -> String {
    let (_, address) = node.target().rsplit_once('@').expect("key and address");
    format!("https://{address}{path}")
}

/// Calls the operation over HTTP.
fn posted(node: &HostNode, token: &str) -> CurlResponse {
    let header = format!("Authorization: Bearer {token}");
    let body = json!({ "operation": format!("/{PATH}"), "input": { "inline": MATRIX } });
    let body = body.to_string();
    curl(&url(node, "/call"), &["--header", &header, "--json", &body])
}

/// Runs a command without `--json`, as a person at a terminal does.
fn plain(who: &CliRunner, words: &[&str], more: &[&Path]) -> CliOutput {
    let mut command = Command::new(binary());
    command
        .args(words)
        .args(more)
        .arg("--state")
        .arg(who.state());
    who.run(command)
}

/// Runs a command at a terminal where a person types this line. Returns the exit code, the terminal's output and the
/// errors.
fn typed(who: &CliRunner, words: &[&str], line: &str) -> (Option<i32>, String, String) {
    let pty = openpty(None, None).expect("a terminal");
    let side = || Stdio::from(pty.slave.try_clone().expect("a descriptor"));
    let mut command = Command::new(binary());
    command.args(words).arg("--state").arg(who.state());
    let at_terminal = command.stdin(side()).stdout(side()).stderr(Stdio::piped());
    let child = at_terminal.spawn().expect("the binary can be started");
    // From here on only the command holds this side of the terminal. The terminal keeps the line until the command
    // reads it.
    drop((command, pty.slave));
    let mut terminal = File::from(pty.master);
    terminal
        .write_all(line.as_bytes())
        .expect("it takes a line");
    let mut shown = Vec::new();
    // After the last program has closed the terminal, a read returns an error behind the last byte.
    terminal.read_to_end(&mut shown).ok();
    let ended = child.wait_with_output().expect("it is our child");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (ended.status.code(), text(&shown), text(&ended.stderr))
}

/// An author gives neither its own name nor whole ids, and each step names the step that is missing.
#[test]
fn each_step_to_an_operation_says_what_is_missing() {
    let bench = TestBench::new();
    let [ada, rev] = ["ada", "rev"].map(|name| bench.user(name));
    let config = configuration(&[
        ("ada", &ada, &["compute:run", "ops:propose", "peer:list"]),
        ("rev", &rev, &["ops:promote"]),
    ]);
    let config = config.replace("activate = \"live\"", "activate = \"boot\"");
    let node = bench.host_with(&config);
    let at = node.target();
    let right = PromotedOperation {
        body: "numbers[3]",
        expect: LAST,
    };
    let folder = right.folder(&bench.path().join("right"));
    // The node finds the author by the key of the client.
    let proposed = plain(&ada, &["ops", "propose", at], &[&folder]);
    assert_eq!(proposed.status, 0, "{proposed:?}");
    assert!(proposed.errors.contains("ops promote"), "{proposed:?}");
    assert!(proposed.errors.contains("'rev'"), "{proposed:?}");
    let listed = verb(&rev, &["ops", "proposals", at], &[]).json();
    let id = listed["id"].as_str().expect("one proposal").to_owned();
    assert_eq!(listed["author"], "ada");

    let other = match id.starts_with('0') {
        true => "1111",
        false => "0000",
    };
    let none = verb(&rev, &["ops", "promote", at, other], &[]);
    assert_eq!((none.status, none.code().as_str()), (1, "NOT_FOUND"));
    // A proposal that was never promoted has no path, so its name selects it.
    for which in [&id[..6], "matrix/last", PATH] {
        let shown = verb(&rev, &["ops", "proposals", at, which], &[]).json();
        assert_eq!(shown["proposal"]["id"], id.as_str(), "{which}");
    }
    // The name may select another proposal by the time of the approval. A person compares the printed id, and a
    // program must give the id.
    let by_name = ["ops", "approve", at, "matrix/last", "--external"];
    let refused = verb(&rev, &by_name, &[]);
    assert_eq!(refused.code(), "USAGE", "{refused:?}");
    assert!(refused.errors.contains(&id), "{refused:?}");
    let (status, shown, _) = typed(&rev, &by_name, "n\n");
    assert_eq!(status, Some(130), "{shown}");
    assert!(shown.contains(&id) && shown.contains("'ada'"), "{shown}");
    let (status, shown, errors) = typed(&rev, &by_name, "y\n");
    assert_eq!(status, Some(0), "{shown}{errors}");
    assert!(shown.contains("active: false"), "{shown}");
    let reboots = format!("alknet reboot {at}");
    for said in ["next start", &reboots] {
        assert!(errors.contains(said), "{said}: {errors}");
    }
    let path = plain(&rev, &["ops", "proposals", at, PATH], &[]);
    assert!(path.output.contains("runs no version now"), "{path:?}");
    let again = verb(&rev, &["ops", "promote", at, "matrix/last"], &[]);
    assert_eq!((again.status, again.code().as_str()), (1, "NOT_FOUND"));
}

/// Makes a folder with an operation that answers with this number.
fn constant(bench: &TestBench, name: &str, number: u8) -> PathBuf {
    let folder = bench.path().join(name);
    std::fs::create_dir(&folder).expect("the folder is ours");
    let operation = json!({
        "spec": { "name": "one", "kind": "query" }, "entry": "./main.js", "export": "run",
        "tests": [{ "input": 1, "expect": { "output": number } }],
    });
    std::fs::write(folder.join("operation.json"), operation.to_string()).expect("room");
    let source = format!("export const run = () => {number};");
    std::fs::write(folder.join("main.js"), source).expect("room");
    folder
}

/// Runs the only command in a text, as a person who copies it.
fn pasted(who: &CliRunner, said: &str) -> CliOutput {
    let commands = commands(said);
    assert_eq!(commands.len(), 1, "{said}");
    let mut shell = Command::new("sh");
    shell.arg("-c");
    shell.arg(format!(
        "alknet() {{ \"$ALKNET\" \"$@\"; }}; {}",
        commands[0]
    ));
    shell.env("ALKNET", binary());
    let ran = who.run(shell);
    assert_eq!(ran.status, 0, "{said}: {ran:?}");
    ran
}

/// The output of a proposal has one command for a sole administrator. The command makes a second key, and promotes
/// the proposal with it.
#[test]
fn a_sole_administrator_reads_the_command_that_promotes() {
    let bench = TestBench::new();
    let node = bench.host_with("[promotion]\nactivate = \"live\"\n");
    let (admin, at) = (bench.admin(), node.target());
    let proposed = plain(
        admin,
        &["ops", "propose", at],
        &[&constant(&bench, "one", 1)],
    );
    assert_eq!(proposed.status, 0, "{proposed:?}");
    // The author may not promote its own proposal, and the refusal has the same command.
    let listed = verb(admin, &["ops", "proposals", at], &[]).json();
    let id = listed["id"].as_str().expect("one proposal");
    let refused = plain(admin, &["ops", "promote", at, id], &[]);
    assert_eq!(refused.status, 4, "{refused:?}");
    for said in [&proposed.errors, &refused.errors] {
        assert!(said.contains("does not review its own bundle"), "{said}");
    }
    assert_eq!(commands(&refused.errors), commands(&proposed.errors));
    let promoted = pasted(admin, &proposed.errors);
    assert!(
        promoted.errors.contains("js/one is external: "),
        "{promoted:?}"
    );
    assert_eq!(admin.call(at, "js/one", &json!(1), &[]).json(), 1);
    let whole = verb(admin, &["ops", "proposals", at, id], &[]).json();
    let record = whole["record"].as_array().and_then(|all| all.last());
    let record = record.expect("a record");
    assert_eq!(
        (&record["who"], &record["did"]),
        (&json!("reviewer"), &json!("promote"))
    );
    assert!(
        record["note"]
            .as_str()
            .is_some_and(|note| note.contains("second key"))
    );
}

/// An administrator promotes an operation without `--external`, and the output has the command that opens it to
/// peers.
#[test]
fn an_internal_operation_says_how_peers_reach_it() {
    let bench = TestBench::new();
    let node = bench.host_with("[promotion]\nactivate = \"live\"\n");
    let (admin, at) = (bench.admin(), node.target());
    let folder = constant(&bench, "one", 1);
    let proposed = verb(admin, &["ops", "propose", at], &[&folder]).json();
    let id = proposed["id"].as_str().expect("an id");
    let internal = plain(admin, &["ops", "promote", at, id, "--second-key"], &[]);
    assert_eq!(internal.status, 0, "{internal:?}");
    assert!(
        internal.errors.contains("js/one is internal: "),
        "{internal:?}"
    );
    let hidden = admin.call(at, "js/one", &json!(1), &[]);
    assert_eq!(hidden.code(), "NOT_FOUND", "{hidden:?}");
    // The second key exists already, and the node knows it.
    pasted(admin, &internal.errors);
    assert_eq!(admin.call(at, "js/one", &json!(1), &[]).json(), 1);

    // The second key is lost. The refusal names the command that removes it, and the client makes no other key.
    let other = bench.path().join("other");
    let lost = format!("--second-key={}", other.display());
    let refused = plain(admin, &["ops", "promote", at, id, &lost], &[]);
    assert_eq!(refused.status, 4, "{refused:?}");
    let removal = format!("alknet peer remove {at} reviewer");
    assert!(refused.errors.contains(&removal), "{refused:?}");
    assert!(!other.exists(), "{refused:?}");

    // As soon as another peer may review, the node requires two persons.
    let rev = bench.user("rev").identity();
    let add = [
        "peer",
        "add",
        at,
        "rev",
        "--key",
        &rev,
        "--scope",
        "ops:promote",
    ];
    assert_eq!(verb(admin, &add, &[]).status, 0);
    let refused = verb(admin, &["ops", "promote", at, id, "--second-key"], &[]);
    assert_eq!(refused.code(), "FORBIDDEN", "{refused:?}");
    assert!(refused.errors.contains("'rev'"), "{refused:?}");
}

/// A reviewer who rolls back the only version reads which answer callers now get, and how to restore the version.
#[test]
fn a_rollback_says_what_is_left() {
    let bench = TestBench::new();
    let rev = bench.user("rev");
    let config = configuration(&[("rev", &rev, &["ops:promote", "call:js:one"])]);
    let node = bench.host_with(&config);
    let (admin, at) = (bench.admin(), node.target());
    for (name, number) in [("one", 1), ("two", 2)] {
        let folder = constant(&bench, name, number);
        let proposed = verb(admin, &["ops", "propose", at], &[&folder]).json();
        let id = proposed["id"].as_str().expect("an id");
        let promoted = verb(&rev, &["ops", "promote", at, id, "--external"], &[]);
        assert_eq!(promoted.json()["version"], number);
    }
    let back = ["ops", "rollback", at, "js/one"];
    let first = plain(&rev, &back, &[]);
    let said = "js/one is version 1 again, in the place of version 2";
    assert!(first.errors.contains(said), "{first:?}");
    assert_eq!(rev.call(at, "js/one", &json!(1), &[]).json(), 1);
    let last = plain(&rev, &back, &[]);
    for said in ["Version 1 was the only one", "NOT_FOUND"] {
        assert!(last.errors.contains(said), "{said}: {last:?}");
    }
    let gone = rev.call(at, "js/one", &json!(1), &[]);
    assert_eq!(gone.code(), "NOT_FOUND", "{gone:?}");
    pasted(&rev, &last.errors);
    assert_eq!(rev.call(at, "js/one", &json!(1), &[]).json(), 1);
}

/// The lines of a text that are commands.
fn commands(said: &str) -> Vec<&str> {
    let lines = said.lines().map(str::trim);
    lines.filter(|line| line.starts_with("alknet ")).collect()
}

/// Two reviewers have to agree. An administrator removes the first reviewer before the second one decides.
#[test]
fn the_vote_of_a_reviewer_who_was_put_out_does_not_count() {
    let bench = TestBench::new();
    let [ada, rev, out] = ["ada", "rev", "out"].map(|name| bench.user(name));
    let people: [(&str, &CliRunner, &[&str]); 2] = [
        ("ada", &ada, &["ops:propose"]),
        ("rev", &rev, &["ops:promote"]),
    ];
    let config = configuration(&people);
    let node = bench.host_with(&config.replace("[promotion]\n", "[promotion]\nreviews = 2\n"));
    let (admin, at, key) = (bench.admin(), node.target(), out.identity());
    let scope = ["--scope", "ops:promote"];
    let add = ["peer", "add", at, "out", "--key", &key];
    verb(admin, &[&add[..], &scope].concat(), &[]).json();
    let folder = constant(&bench, "one", 1);
    let proposed = verb(&ada, &["ops", "propose", at, "--as", "ada"], &[&folder]).json();
    let id = proposed["id"].as_str().expect("an id");
    let promote = |who: &CliRunner| verb(who, &["ops", "promote", at, id], &[]).json();
    let waits = json!({ "id": id, "state": "proposed", "reviews": 1, "needed": 2 });
    assert_eq!(promote(&out), waits);
    verb(admin, &["peer", "remove", at, "out"], &[]).json();
    assert_eq!(promote(&rev), waits, "the vote of one who is gone");
}

/// While a reviewer reads a proposal, another decision rejects it, and a second author proposes the same code. If
/// the decision named only the id, the operation would act with the rights of the second author, whose proposal the
/// reviewer has not read.
#[test]
fn a_decision_is_about_the_proposal_that_was_read() {
    let bench = TestBench::new();
    let [ada, eve, rev] = ["ada", "eve", "rev"].map(|name| bench.user(name));
    let node = bench.host_with(&configuration(&[
        ("ada", &ada, &["ops:propose"]),
        ("eve", &eve, &["ops:propose"]),
        ("rev", &rev, &["ops:promote"]),
    ]));
    let at = node.target();
    let folder = constant(&bench, "one", 1);
    let propose = |who: &CliRunner, name: &str| {
        verb(who, &["ops", "propose", at, "--as", name], &[&folder]).json()
    };
    let read = propose(&ada, "ada");
    let id = read["id"].as_str().expect("an id");
    let shown = verb(&rev, &["ops", "proposals", at, id], &[]).json();
    let digest = shown["proposal"]["digest"].as_str().expect("a digest");
    verb(&rev, &["ops", "promote", at, id, "--reject"], &[]).json();
    let other = propose(&eve, "eve");
    assert_eq!(other["id"], id);
    for more in ["--external", "--reject"] {
        let words = ["ops", "promote", at, id, "--digest", digest, more];
        let refused = verb(&rev, &words, &[]);
        assert_eq!(refused.code(), "CONFLICT", "{more}: {refused:?}");
    }
    let digest = other["digest"].as_str().expect("a digest");
    let words = ["ops", "promote", at, id, "--digest", digest, "--external"];
    assert_eq!(verb(&rev, &words, &[]).json()["state"], "promoted");
}

#[test]
fn a_draft_becomes_an_operation_and_its_next_version_is_taken_back() {
    let bench = TestBench::new();
    let [ada, rev, bob] = ["ada", "rev", "bob"].map(|name| bench.user(name));
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
    let callers = PermittedCallers {
        bob: &bob,
        token: token(&node, &["call:js:matrix:last"]),
    };

    // The first draft returns the wrong number. Its test fails, and the node refuses the proposal.
    let wrong = PromotedOperation {
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

    let right = PromotedOperation {
        body: "numbers[3]",
        expect: LAST,
    };
    let file = right.draft(&bench.path().join("right-draft"));
    let report = verb(&ada, &["js", "run", at], &[&file]).json();
    assert_eq!(report["value"]["passed"], true, "{report:#}");
    let folder = right.folder(&bench.path().join("right"));
    let proposed = verb(&ada, &propose, &[&folder]).json();
    let id = proposed["id"].as_str().expect("an id");

    // Neither the author nor another caller may promote the proposal. Before its promotion the operation cannot be
    // called.
    let promote = ["ops", "promote", at, id, "--external"];
    for who in [&ada, &bob] {
        assert_eq!(verb(who, &promote, &[]).code(), "FORBIDDEN");
    }
    let early = bob.call(at, PATH, &json!({}), &[]);
    assert_eq!(early.code(), "NOT_FOUND");
    assert_eq!(posted(&node, &callers.token).status, 404);
    let promoted = verb(&rev, &promote, &[]).json();
    assert_eq!(
        (&promoted["path"], &promoted["version"], &promoted["active"]),
        (&json!(PATH), &json!(1), &json!(true)),
        "{promoted:#}"
    );
    callers.are_reported(&node, LAST);
    assert_eq!(posted(&node, &token(&node, &["node:read"])).status, 403);
    // Bob may call the operation, and may not call the operations that it uses.
    let matmul = bob.call(at, "compute/matmul", &json!({}), &[]);
    assert_eq!(matmul.code(), "FORBIDDEN");

    let next = PromotedOperation {
        body: "numbers[3] + 1",
        expect: LAST + 1.0,
    };
    let folder = next.folder(&bench.path().join("next"));
    let proposed = verb(&ada, &propose, &[&folder]).json();
    let id = proposed["id"].as_str().expect("an id");
    let promoted = verb(&rev, &["ops", "promote", at, id, "--external"], &[]).json();
    assert_eq!(promoted["version"], 2, "{promoted:#}");
    callers.are_reported(&node, LAST + 1.0);
    let back = ["ops", "rollback", at, PATH, "--reason", "one too many"];
    assert_eq!(verb(&ada, &back, &[]).code(), "FORBIDDEN");
    assert_eq!(verb(&rev, &back, &[]).json()["version"], 1);
    callers.are_reported(&node, LAST);

    // After a kill, as after a power cut, the node still has the operation, its versions and the decisions about
    // them.
    drop(node);
    let node = bench.host_with(&config);
    callers.are_reported(&node, LAST);
    let shown = verb(&rev, &["ops", "proposals", node.target(), PATH], &[]).json();
    assert_eq!(
        (
            &shown["current"],
            &shown["versions"].as_array().map(Vec::len)
        ),
        (&json!(1), &Some(2)),
        "{shown:#}"
    );
}
