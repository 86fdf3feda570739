//! Tests reach operations that are closed to outside requests through a script, which calls the
//! operation named in its input. An author proposes the script, and a reviewer approves it.

use std::path::{Path, PathBuf};

use alknet_call::import_scope;
use serde_json::{Value, json};

use crate::bench::TestBench;
use crate::cli::CliRunner;

const SOURCE: &str = "
export async function relay({ operation, input, follow, list, text, count, pass, timeoutMs }) {
  try {
    if (text) return { output: 'x'.repeat(text) };
    if (list) return { output: ops.list(list).map((one) => one.path).sort() };
    if (!follow) {
      const output = await ops.call(operation, input, { timeoutMs });
      return { output: count ? output.length : output };
    }
    const output = [];
    let events = 0;
    for await (const event of ops.subscribe(operation, input)) {
      events += 1;
      if (!count) output.push(event);
    }
    return { output: count ? events : output };
  } catch (error) {
    if (pass || !(error instanceof OpError)) throw error;
    const { code, message, retryable, details } = error;
    return { error: { code, message, retryable, details } };
  }
}
";

/// The operation `js/relay`, which returns the `output` of another, or its `error`.
#[derive(Debug)]
pub struct RelayOperation {
    author: CliRunner,
    reviewer: CliRunner,
    folder: PathBuf,
    /// The rights of its author.
    scopes: Vec<String>,
}

impl RelayOperation {
    /// The name under which the operation is proposed and called.
    pub const PATH: &str = "js/relay";

    /// A relay that reaches `uses`, which are names, or everything below a name, such as `fs/*`.
    /// Its author has the scopes that imported operations of these names need.
    ///
    /// # Panics
    /// `uses` is empty, or the bench's folder cannot be written.
    pub fn new(bench: &TestBench, uses: &[&str]) -> Self {
        let scopes = uses.iter().map(|name| import_scope(name)).collect();
        Self::with_scopes(bench, uses, scopes)
    }

    /// The same, with an author who has these scopes besides the one to propose it.
    ///
    /// # Panics
    /// As [`new`](Self::new).
    pub fn with_scopes(bench: &TestBench, uses: &[&str], scopes: Vec<String>) -> Self {
        let folder = bench.path().join("relay");
        std::fs::create_dir_all(&folder).expect("the folder is ours");
        std::fs::write(folder.join("operation.json"), operation(uses)).expect("room");
        std::fs::write(folder.join("main.js"), SOURCE).expect("room");
        Self {
            author: bench.user("ada"),
            reviewer: bench.user("rev"),
            folder,
            scopes,
        }
    }

    /// The configuration that its node must have.
    pub fn configuration(&self) -> String {
        let peer = |name: &str, who: &CliRunner, scopes: &[String]| {
            let key = who.identity();
            format!("[[peers]]\npeer_id = \"{name}\"\nkeys = [\"{key}\"]\nscopes = {scopes:?}\n")
        };
        let author = [&["ops:propose".to_owned()][..], &self.scopes].concat();
        [
            "[promotion]\nactivate = \"live\"\n".to_owned(),
            peer("ada", &self.author, &author),
            peer("rev", &self.reviewer, &["ops:promote".to_owned()]),
        ]
        .concat()
    }

    /// Promotes it at a node, for outside callers.
    ///
    /// # Panics
    /// The node does not accept it.
    pub fn promote(&self, target: &str) {
        self.promote_folder(target, &self.folder);
    }

    /// Promotes another operation of the same author, whose bundle is in this folder.
    ///
    /// # Panics
    /// The node does not accept it.
    pub fn promote_folder(&self, target: &str, folder: &Path) {
        let mut propose = self
            .author
            .command(&["ops", "propose", target, "--as", "ada"]);
        propose.arg(folder);
        let proposed = self.author.run(propose).json();
        let id = proposed["id"].as_str().expect("an id");
        let promote = ["ops", "promote", target, id, "--external"];
        let promoted = self.reviewer.run(self.reviewer.command(&promote)).json();
        assert_eq!(promoted["active"], true, "{promoted:#}");
    }

    /// Its input for a call of `operation`.
    #[must_use]
    pub fn input(operation: &str, input: &Value) -> Value {
        json!({ "operation": operation, "input": input })
    }

    /// Its input to learn only how many values are in the list that `operation` returns.
    #[must_use]
    pub fn count(operation: &str, input: &Value) -> Value {
        let mut input = Self::input(operation, input);
        input["count"] = true.into();
        input
    }

    /// The same for a subscription: how many events it has.
    #[must_use]
    pub fn count_events(operation: &str, input: &Value) -> Value {
        let mut input = Self::count(operation, input);
        input["follow"] = true.into();
        input
    }

    /// The result of `operation` at a node for the caller `who`: `output` or `error`.
    ///
    /// # Panics
    /// The relay itself cannot be called.
    pub fn ask(who: &CliRunner, target: &str, operation: &str, input: &Value) -> Value {
        run(who, target, &Self::input(operation, input))
    }

    /// The same for a subscription, whose events are the output.
    ///
    /// # Panics
    /// As [`ask`](Self::ask).
    pub fn follow(who: &CliRunner, target: &str, operation: &str, input: &Value) -> Value {
        let mut input = Self::input(operation, input);
        input["follow"] = true.into();
        run(who, target, &input)
    }

    /// Its input for an answer with this many bytes.
    #[must_use]
    pub fn long(bytes: usize) -> Value {
        json!({ "text": bytes })
    }

    /// The operations that it finds at a node and whose names begin with `prefix`.
    ///
    /// # Panics
    /// As [`ask`](Self::ask).
    pub fn list(who: &CliRunner, target: &str, prefix: &str) -> Value {
        run(who, target, &json!({ "list": prefix }))["output"].take()
    }
}

fn run(who: &CliRunner, target: &str, input: &Value) -> Value {
    who.call(target, RelayOperation::PATH, input, &[]).json()
}

fn operation(uses: &[&str]) -> String {
    // Tests may call only what the operation uses.
    let other = uses.first().expect("something is to be called");
    let other = other.replace('*', "any");
    json!({
        "spec": {
            "name": "relay", "kind": "mutation", "description": "Calls another.",
            "input": { "type": "object" }, "output": { "type": "object" }, "uses": uses,
        },
        "entry": "./main.js",
        "export": "relay",
        "tests": [{
            "input": { "operation": other, "input": 7 },
            "calls": [{ "path": other, "input": 7, "output": 8 }],
            "expect": { "output": { "output": 8 } },
        }],
    })
    .to_string()
}
