//! The command line serves, fetches and computes with a folder of tensor files.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command};

use alknet_tests::{CliOutput, CliRunner, TestBench, binary, serve};
use serde_json::{Value, json};

use super::promoted_callers::{OperationDraft, configuration, promote};

/// Number of elements of the large tensor: so many that the node proves them in several groups.
const LARGE: usize = 100_000;

/// Size in bytes of a tensor that is too large for a node to compute with.
const TOO_LARGE: u64 = (128 << 20) + 4;

/// A matrix of two rows, and its square as little-endian 32-bit floats in Base64.
const MATRIX: [f32; 4] = [1.0, 2.0, 3.0, 4.0];
const SQUARE: &str = "AADgQAAAIEEAAHBBAACwQQ==";

/// The beginning of a safetensors file: the header's length and the header.
pub(super) fn head(entries: &Value) -> Vec<u8> {
    let header = entries.to_string();
    // The header's length is rounded up so that the data begins at an aligned offset.
    let len = header.len().next_multiple_of(8);
    let mut file = (len as u64).to_le_bytes().to_vec();
    file.extend(header.into_bytes());
    file.resize(size_of::<u64>() + len, b' ');
    file
}

/// A safetensors file, built byte by byte.
fn file() -> Vec<u8> {
    let mut file = head(&json!({
        "large": { "dtype": "U8", "shape": [LARGE], "data_offsets": [0, LARGE] },
        "a#b": { "dtype": "U8", "shape": [3], "data_offsets": [LARGE, LARGE + 3] },
    }));
    file.extend((0..LARGE).map(|at| (at * 31 % 251) as u8));
    file.extend([1, 2, 3]);
    file
}

/// A running `alknet tensor serve` and its target. Dropping it ends the process.
struct TensorNode(Child, String);

impl TensorNode {
    /// Starts a node that serves the folder, with the further arguments in `more`.
    fn start(state: &Path, folder: &Path, admin: &CliRunner, more: &[&Path]) -> Self {
        let node = CliRunner::new(state.to_owned());
        let mut command = node.command(&["tensor", "serve", "--port", "0"]);
        command.args(["--listen", "127.0.0.1", "--admin", &admin.identity()]);
        command.args(more).arg(folder);
        let (child, said) = serve(command);
        let target = said["target"].as_str().expect("where it serves");
        Self(child, target.to_owned())
    }
}

impl Drop for TensorNode {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs `alknet tensor pull`, and returns the command's output.
fn pull(cli: &CliRunner, what: &[&str], output: &Path) -> CliOutput {
    let mut command = cli.command(&["tensor", "pull"]);
    command.args(what).arg(output);
    cli.run(command)
}

/// Runs a verb that needs no node and no state, and returns its JSON.
fn local(cli: &CliRunner, verb: &[&str], file: &Path, more: &[&str]) -> Value {
    let mut command = Command::new(binary());
    command.args(verb).arg("--json").arg(file).args(more);
    cli.run(command).json()
}

fn bytes_of(cli: &CliRunner, file: &Path, name: &str) -> Vec<u8> {
    let values = local(cli, &["tensor", "cat"], file, &[name]);
    serde_json::from_value(values["values"].clone()).unwrap_or_else(|_| panic!("{values}"))
}

#[test]
fn a_file_is_stored_and_removed_and_none_is_written_over_unasked() {
    let scratch = tempfile::tempdir().expect("writable");
    let at = |name: &str| scratch.path().join(name);
    let admin = CliRunner::new(at("admin"));
    fs::create_dir(at("models")).expect("writable");
    fs::write(at("m.safetensors"), file()).expect("writable");
    let node = TensorNode::start(&at("node"), &at("models"), &admin, &[]);
    let push = |cli: &CliRunner| {
        let mut command = cli.command(&["tensor", "push", &node.1]);
        command.arg(at("m.safetensors")).arg("small/m");
        cli.run(command)
    };
    let stored = push(&admin).json();
    assert_eq!(stored["path"], "small/m");
    let list = |below: &str| {
        let words = ["tensor", "stored", &node.1, "--below", below];
        admin.run(admin.command(&words)).json()["files"].clone()
    };
    let row = json!({ "path": "small/m", "id": stored["id"], "bytes": file().len() });
    assert_eq!((list("small"), list("smal")), (json!([row]), json!([])));

    let output = at("whole.safetensors");
    let what = [node.1.as_str(), "small/m"];
    assert_eq!(pull(&admin, &what, &output).json()["id"], stored["id"]);
    fs::write(&output, "mine").expect("ours");
    let refused = pull(&admin, &what, &output);
    assert_eq!((refused.status, refused.code().as_str()), (2, "USAGE"));
    assert!(refused.errors.contains("--force"), "{refused:?}");
    assert_eq!(fs::read(&output).expect("ours"), b"mine");
    let forced = [&["--force"][..], &what].concat();
    assert_eq!(pull(&admin, &forced, &output).json()["id"], stored["id"]);
    assert!(fs::read(&output).expect("made") == file());

    let remove = |cli: &CliRunner| cli.run(cli.command(&["tensor", "remove", &node.1, "small/m"]));
    let refused = remove(&CliRunner::new(at("unknown-peer")));
    assert_eq!(refused.status, 4, "{refused:?}");
    let removed = remove(&admin).json();
    let expected = json!({ "id": stored["id"], "freed": file().len() });
    assert_eq!(removed, expected);
    assert_eq!(pull(&admin, &what, &at("gone")).code(), "E_NOTFOUND");
    assert_eq!(remove(&admin).code(), "NOT_FOUND");
    let log = admin.run(admin.command(&["logs", &node.1, "--last", "100"]));
    let audit = log
        .output
        .lines()
        .find(|line| line.contains("tensor.remove"));
    assert!(
        audit.is_some_and(|line| line.contains("small/m")),
        "{log:?}"
    );
}

/// A node says nothing of its files to an unknown peer, and to a known peer without a scope no more than that a file is
/// missing. The command adds what the user needs.
#[test]
fn an_error_of_a_transfer_names_the_file_the_node_and_what_is_missing() {
    let scratch = tempfile::tempdir().expect("writable");
    let at = |name: &str| scratch.path().join(name);
    let [admin, guest, unknown] = ["admin", "guest", "unknown"].map(|it| CliRunner::new(at(it)));
    fs::create_dir(at("models")).expect("writable");
    let config = format!(
        "[[peers]]\npeer_id = \"guest\"\nkeys = [\"{}\"]\n",
        guest.identity()
    );
    let config_file = at("node.toml");
    fs::write(&config_file, config).expect("writable");
    let more = [Path::new("--config"), &config_file];
    let node = TensorNode::start(&at("node"), &at("models"), &admin, &more);
    fs::write(at("m.safetensors"), file()).expect("writable");
    fs::write(at("notes.txt"), "words and no tensors").expect("writable");
    fs::write(at("short"), "abc").expect("writable");
    let push = |cli: &CliRunner, name: &str| {
        let mut command = cli.command(&["tensor", "push", &node.1]);
        command.arg(at(name)).arg("small/m");
        cli.run(command)
    };
    let other_carriage = ["--carriage", "tcp", &node.1, "small/m"];
    let over_tcp = pull(&admin, &other_carriage, &at("out"));
    let fetch = |cli: &CliRunner| pull(cli, &[&node.1, "small/m"], &at("out"));
    let remove = |cli: &CliRunner| cli.run(cli.command(&["tensor", "remove", &node.1, "small/m"]));
    let at_node = format!("small/m on {}", node.1);
    let key = unknown.identity();
    for (output, status, code, parts) in [
        (over_tcp, 2, "USAGE", &["--carriage tcp"][..]),
        (
            push(&admin, "notes.txt"),
            2,
            "E_LIMIT",
            &["notes.txt is no tensor file"][..],
        ),
        (
            push(&admin, "short"),
            2,
            "E_HEADER",
            &["short is no tensor file", "3 bytes"],
        ),
        (push(&admin, "models"), 2, "USAGE", &["models is a folder"]),
        (
            push(&guest, "m.safetensors"),
            4,
            "E_NOTFOUND",
            &[&*at_node, "tensor:write:small/m"],
        ),
        (
            fetch(&guest),
            1,
            "E_NOTFOUND",
            &[&*at_node, "tensor:read:small/m"],
        ),
        (
            remove(&guest),
            1,
            "NOT_FOUND",
            &["small/m: ", "tensor:write:small/m"],
        ),
        (
            push(&unknown, "m.safetensors"),
            4,
            "UNAUTHENTICATED",
            &[&*key, "tensor:write:small/m"],
        ),
        (
            fetch(&unknown),
            4,
            "UNAUTHENTICATED",
            &[&*key, "tensor:read:small/m"],
        ),
    ] {
        let found = (output.status, output.code());
        assert_eq!(found, (status, code.to_owned()), "{output:?}");
        for part in parts {
            assert!(output.errors.contains(part), "{part}: {output:?}");
        }
    }
}

#[test]
fn a_folder_is_served_and_fetched() {
    let scratch = tempfile::tempdir().expect("writable");
    let at = |name: &str| scratch.path().join(name);
    let admin = CliRunner::new(at("admin"));
    fs::create_dir_all(at("models/small")).expect("writable");
    fs::write(at("models/small/m.safetensors"), file()).expect("writable");
    fs::write(at("models/notes.txt"), "no tensors").expect("writable");
    let node = TensorNode::start(&at("node"), &at("models"), &admin, &[]);

    let whole = at("whole.safetensors");
    let said = pull(&admin, &[&node.1, "small/m.safetensors"], &whole).json();
    assert_eq!(said["bytes"], file().len());
    assert!(fs::read(&whole).expect("made") == file());
    let id = said["id"].as_str().expect("an id");
    let address = format!("alknet-tensor://{}/{id}", node.1);
    let again = at("again.safetensors");
    assert_eq!(pull(&admin, &[&address], &again).json()["id"], id);

    // The command fetches one tensor by its name, and several by a pattern.
    let one = at("one.mt");
    let address = format!("alknet-tensor://{}/small/m.safetensors#a#b", node.1);
    assert_eq!(pull(&admin, &[&address], &one).json()["fetched"], 3);
    let some = at("some.mt");
    let said = pull(&admin, &["--only", "l*", &node.1, id], &some).json();
    assert_eq!(said["fetched"], LARGE);
    for (file, name) in [(&one, "a#b"), (&some, "large")] {
        let said = local(&admin, &["tensor", "verify", "--full"], file, &[]);
        assert_eq!(said["good"], true, "{name}");
    }
    assert_eq!(bytes_of(&admin, &one, "a#b"), [1, 2, 3]);

    let missing = pull(&admin, &[&node.1, "notes.txt"], &at("none"));
    assert_eq!(missing.code(), "E_NOTFOUND");
    let unknown_peer = CliRunner::new(at("unknown-peer"));
    let refused = pull(
        &unknown_peer,
        &[&node.1, "small/m.safetensors"],
        &at("none"),
    );
    assert_ne!(refused.status, 0);
    assert!(!at("none").exists());

    // Two nodes on the same folder would not know of each other's files.
    let second = CliRunner::new(at("node"));
    let mut command = second.command(&["tensor", "serve", "--port", "0"]);
    command.arg(at("models"));
    assert_eq!(second.run(command).status, 2);
}

/// A node with a small file, which `reader` may read, and a file whose tensor is too large. `other` may read
/// neither.
fn models(bench: &TestBench, reader: &CliRunner, other: &CliRunner) -> TensorNode {
    let folder = bench.path().join("models");
    fs::create_dir_all(folder.join("small")).expect("writable");
    let entry = json!({ "dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16] });
    let small = [
        head(&json!({ "m#1": entry })),
        MATRIX.map(f32::to_le_bytes).concat(),
    ];
    fs::write(folder.join("small/m.safetensors"), small.concat()).expect("writable");
    let entry = json!({ "dtype": "U8", "shape": [TOO_LARGE], "data_offsets": [0, TOO_LARGE] });
    let large = head(&json!({ "all": entry }));
    let path = folder.join("large.safetensors");
    fs::write(&path, &large).expect("writable");
    let opened = File::options().write(true).open(&path).expect("just made");
    let grown = opened.set_len(large.len() as u64 + TOO_LARGE);
    grown.expect("zeros that are not written take no room");

    let people = [
        (
            "reader",
            reader,
            &["compute:run", "runtime:debug", "tensor:read:small"][..],
        ),
        ("other", other, &["compute:run", "runtime:debug"]),
    ];
    let people = people.map(|(name, who, scopes)| {
        let key = who.identity();
        format!("[[peers]]\npeer_id = \"{name}\"\nkeys = [\"{key}\"]\nscopes = {scopes:?}\n")
    });
    let config = bench.path().join("node.toml");
    fs::write(&config, people.concat()).expect("writable");
    let more = [Path::new("--config"), &config];
    TensorNode::start(&bench.path().join("node"), &folder, bench.admin(), &more)
}

/// The id that `tensor/open` returns for a file.
fn id(who: &CliRunner, target: &str, path: &str) -> String {
    let input = json!({ "src": { "path": path } });
    let said = who.call(target, "tensor/open", &input, &[]).json();
    said["id"].as_str().expect("an id").to_owned()
}

fn square(who: &CliRunner, target: &str, reference: &str) -> CliOutput {
    let matrix = json!({ "ref": reference });
    let input = json!({ "a": matrix, "b": matrix, "variant": "host" });
    who.call(target, "compute/matmul", &input, &[])
}

#[test]
fn a_stored_tensor_is_computed_with_by_its_readers() {
    let bench = TestBench::new();
    let [reader, other] = ["reader", "other"].map(|name| bench.user(name));
    let TensorNode(_, target) = &models(&bench, &reader, &other);
    let (node, _) = target.split_once('@').expect("a pinned target");
    let small = id(&reader, target, "small/m.safetensors");
    let reference = format!("alknet-tensor://{node}/{small}#m#1");

    let product = square(&reader, target, &reference).json();
    assert_eq!(product["product"]["inline"], SQUARE, "{product}");
    // A script opens the file without copying it, and passes the reference on.
    let script = format!(
        "const file = await tensor.open({{ path: 'small/m.safetensors' }});
        const seen = file.view('m#1'), a = {{ ref: '{reference}' }};
        const {{ product }} = await ops.call('compute/matmul', {{ a, b: a, variant: 'host' }});
        export default {{
            id: file.info.id, names: file.names(), shape: seen.shape, copied: seen.copied,
            numbers: [...seen.data()],
            square: [...new Float32Array(new Uint8Array(product.inline).buffer)],
        }};"
    );
    let input = json!({ "source": script });
    let ran = reader.call(target, "runtime/eval", &input, &[]).json();
    let expected = json!({
        "id": small, "names": ["m#1"], "shape": [2, 2], "copied": false,
        "numbers": [1, 2, 3, 4], "square": [7, 10, 15, 22],
    });
    assert_eq!(ran["value"], expected, "{ran}");

    // Without the scope the node answers `NOT_FOUND` to a call and to a script.
    assert_eq!(square(&other, target, &reference).code(), "NOT_FOUND");
    let script = format!(
        "const codes = [];
        for (const src of [{{ path: 'small/m.safetensors' }}, {{ id: '{small}' }}]) {{
            try {{ await tensor.open(src); }} catch (error) {{ codes.push(error.code); }}
        }}
        export default codes;"
    );
    let input = json!({ "source": script });
    let ran = other.call(target, "runtime/eval", &input, &[]).json();
    assert_eq!(ran["value"], json!(["NOT_FOUND", "NOT_FOUND"]), "{ran}");
    refuses_what_is_no_matrix_here(bench.admin(), target, &small);
}

/// The test checks the code of the call and the code inside its message.
fn refuses_what_is_no_matrix_here(admin: &CliRunner, target: &str, small: &str) {
    let (node, _) = target.split_once('@').expect("a pinned target");
    let large = id(admin, target, "large.safetensors");
    let (missing, elsewhere) = ("0".repeat(64), admin.identity());
    let input = "INVALID_INPUT";
    for (reference, code, inside) in [
        (format!("{node}/{missing}#m"), "NOT_FOUND", "E_NOTFOUND"),
        (format!("{node}/{small}#m"), input, "E_NOTFOUND"),
        (format!("{node}/{small}"), input, "E_SHAPE"),
        (format!("{elsewhere}/{small}#m#1"), input, "E_SHAPE"),
        (
            format!("{node}/{large}#all"),
            "TENSOR_TOO_LARGE",
            "E_TOO_LARGE",
        ),
    ] {
        let reference = format!("alknet-tensor://{reference}");
        let refused = square(admin, target, &reference);
        assert_eq!(refused.code(), code, "{reference}: {refused:?}");
        assert!(refused.errors.contains(inside), "{reference}: {refused:?}");
    }
}

/// The author of the first operation may not read the folder, and the author of the second one may.
#[test]
fn an_operation_reads_and_writes_what_its_author_and_its_caller_may() {
    let bench = TestBench::new();
    let [ada, carl, rev, reader, other] =
        ["ada", "carl", "rev", "reader", "other"].map(|name| bench.user(name));
    let folder = bench.path().join("models");
    fs::create_dir_all(folder.join("small")).expect("writable");
    let entry = json!({ "dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16] });
    let file = [
        head(&json!({ "m#1": entry })),
        MATRIX.map(f32::to_le_bytes).concat(),
    ];
    for name in ["m", "spare"] {
        let path = folder.join(format!("small/{name}.safetensors"));
        fs::write(path, file.concat()).expect("writable");
    }
    let (reads, writes) = ("tensor:read:small", "tensor:write:small");
    let people: [(&str, &CliRunner, &[&str]); 5] = [
        ("ada", &ada, &["ops:propose", "compute:run"]),
        (
            "carl",
            &carl,
            &["ops:propose", "compute:run", reads, writes],
        ),
        ("rev", &rev, &["ops:promote"]),
        ("reader", &reader, &[reads, "call:js:shares"]),
        ("other", &other, &["call:js:shares"]),
    ];
    let config = bench.path().join("node.toml");
    fs::write(&config, configuration("", &people)).expect("writable");
    let more = [Path::new("--config"), &config];
    let serving = TensorNode::start(&bench.path().join("node"), &folder, bench.admin(), &more);
    let target = serving.1.as_str();
    let (node, _) = target.split_once('@').expect("a pinned target");
    let small = id(&reader, target, "small/m.safetensors");

    let source = format!(
        "const drain = async (items) => {{ for await (const _ of items); }};
         export const run = async (id) => {{
             if (!id) return 'done';
             const src = {{ id }}, a = {{ ref: `alknet-tensor://{node}/${{id}}#m#1` }};
             const told = [];
             for (const tries of [
                 () => ops.call('tensor/open', {{ src }}),
                 () => ops.call('tensor/stat', {{ src, name: 'm#1' }}),
                 () => drain(ops.subscribe('tensor/fetch', {{ src, want: 'header' }})),
                 () => ops.call('tensor/put', {{ header: '', path: 'small/new' }}),
                 () => ops.call('tensor/remove', {{ src: {{ path: 'small/spare.safetensors' }} }}),
                 () => ops.call('compute/matmul', {{ a, b: a, variant: 'host' }}),
             ]) {{
                 try {{ await tries(); told.push('done'); }} catch (error) {{ told.push(error.code); }}
             }}
             return told;
         }};"
    );
    let draft = OperationDraft {
        uses: &[
            "tensor/open",
            "tensor/stat",
            "tensor/fetch",
            "tensor/put",
            "tensor/remove",
            "compute/matmul",
        ],
        input: json!({ "type": "string" }),
        example: json!(""),
        source: &source,
        ..OperationDraft::waits("reads")
    };
    promote(&bench, target, ("ada", &ada), &rev, &draft);
    // The administrator has every right, and the operation gets none of them.
    let told = bench.admin().call(target, "js/reads", &json!(small), &[]);
    let all = ["NOT_FOUND"; 6];
    assert_eq!(told.json(), json!(all));

    // The author of this operation may read and write the folder, so the operation reaches everything. The file that
    // it tries to store has no header.
    let own = OperationDraft {
        name: "owns",
        input: draft.input.clone(),
        example: draft.example.clone(),
        ..draft
    };
    promote(&bench, target, ("carl", &carl), &rev, &own);
    let told = bench.admin().call(target, "js/owns", &json!(small), &[]);
    let all = ["done", "done", "done", "INVALID_INPUT", "done", "done"];
    assert_eq!(told.json(), json!(all));

    let draft = OperationDraft {
        name: "shares",
        uses: &["tensor/open"],
        source: "const opened = async (open) => {
            try { return (await open()).id; } catch (error) { return error.code; }
        };
        export const run = async (id) => {
            if (!id) return 'done';
            return [
                await opened(() => ops.call('tensor/open', { src: { id } })),
                await opened(async () => (await tensor.open({ id })).info),
            ];
        };",
        ..own
    };
    promote(&bench, target, ("carl", &carl), &rev, &draft);
    for (who, answer) in [(&reader, small.as_str()), (&other, "NOT_FOUND")] {
        let told = who.call(target, "js/shares", &json!(small), &[]).json();
        assert_eq!(told, json!([answer, answer]));
    }
}
