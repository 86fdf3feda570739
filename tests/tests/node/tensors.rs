//! A folder of tensor files, served and fetched by the command line alone.

use std::fs;
use std::path::Path;
use std::process::{Child, Command};

use alknet_tests::{Cli, binary, serve};
use serde_json::{Value, json};

/// Elements of the large tensor: several groups of what is proven at once.
const LARGE: usize = 100_000;

/// A safetensors file, made by hand.
fn file() -> Vec<u8> {
    let header = json!({
        "large": { "dtype": "U8", "shape": [LARGE], "data_offsets": [0, LARGE] },
        "a#b": { "dtype": "U8", "shape": [3], "data_offsets": [LARGE, LARGE + 3] },
    });
    let header = header.to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.into_bytes());
    file.extend((0..LARGE).map(|at| (at * 31 % 251) as u8));
    file.extend([1, 2, 3]);
    file
}

/// Ended when dropped.
struct Serving(Child, String);

impl Serving {
    fn start(state: &Path, folder: &Path, admin: &Cli) -> Self {
        let node = Cli::new(state.to_owned());
        let mut command = node.command(&["tensor", "serve", "--port", "0"]);
        command.args(["--listen", "127.0.0.1", "--admin", &admin.identity()]);
        command.arg(folder);
        let (child, said) = serve(command);
        let target = said["target"].as_str().expect("where it serves");
        Self(child, target.to_owned())
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What `alknet tensor pull` says.
fn pull(cli: &Cli, what: &[&str], output: &Path) -> alknet_tests::Answer {
    let mut command = cli.command(&["tensor", "pull"]);
    command.args(what).arg(output);
    cli.run(command)
}

/// What a verb says that needs no node and no state.
fn local(cli: &Cli, verb: &[&str], file: &Path, more: &[&str]) -> Value {
    let mut command = Command::new(binary());
    command.args(verb).arg("--json").arg(file).args(more);
    cli.run(command).json()
}

fn bytes_of(cli: &Cli, file: &Path, name: &str) -> Vec<u8> {
    let values = local(cli, &["tensor", "cat"], file, &[name]);
    serde_json::from_value(values["values"].clone()).unwrap_or_else(|_| panic!("{values}"))
}

#[test]
fn a_folder_is_served_and_fetched() {
    let scratch = tempfile::tempdir().expect("writable");
    let at = |name: &str| scratch.path().join(name);
    let admin = Cli::new(at("admin"));
    fs::create_dir_all(at("models/small")).expect("writable");
    fs::write(at("models/small/m.safetensors"), file()).expect("writable");
    fs::write(at("models/notes.txt"), "no tensors").expect("writable");
    let node = Serving::start(&at("node"), &at("models"), &admin);

    let whole = at("whole.safetensors");
    let said = pull(&admin, &[&node.1, "small/m.safetensors"], &whole).json();
    assert_eq!(said["bytes"], file().len());
    assert!(fs::read(&whole).expect("made") == file());
    let id = said["id"].as_str().expect("an id");
    let address = format!("alknet-tensor://{}/{id}", node.1);
    let again = at("again.safetensors");
    assert_eq!(pull(&admin, &[&address], &again).json()["id"], id);

    // One tensor by its name, several by a pattern.
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
    let stranger = Cli::new(at("stranger"));
    let refused = pull(&stranger, &[&node.1, "small/m.safetensors"], &at("none"));
    assert_ne!(refused.status, 0);
    assert!(!at("none").exists());

    // Two nodes would not know of each other's files.
    let second = Cli::new(at("node"));
    let mut command = second.command(&["tensor", "serve", "--port", "0"]);
    command.arg(at("models"));
    assert_eq!(second.run(command).status, 2);
}
