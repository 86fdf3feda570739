//! Tests reach operations that are closed to requests from outside through a script, which calls the operation
//! that its input names: an author proposes the script, and a reviewer approves it.

use std::path::PathBuf;

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

/// The operation `js/relay`, which answers with the `output` of another, or with its `error`.
#[derive(Debug)]
pub struct RelayOperation {
    author: CliRunner,
    reviewer: CliRunner,
    folder: PathBuf,
    /// What its author may do.
    scopes: Vec<String>,
}

impl RelayOperation {
    /// What it is called.
    pub const PATH: &str = "js/relay";

    /// One that reaches `uses`, names or everything below one as `fs/*`. Its author holds the scopes that imported
    /// operations of these names need.
    ///
    /// # Panics
    /// There is nothing in `uses`, or the bench's folder cannot be written.
    pub fn new(bench: &TestBench, uses: &[&str]) -> Self {
        let scopes = uses.iter().map(|name| import_scope(name)).collect();
        Self::with_scopes(bench, uses, scopes)
    }

    /// The same whose author holds these scopes beside the one to propose it.
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

    /// What the configuration of its node has to have.
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

    /// Puts it in place at a node, for callers from outside.
    ///
    /// # Panics
    /// The node does not take it.
    pub fn promote(&self, target: &str) {
        let mut propose = self
            .author
            .command(&["ops", "propose", target, "--as", "ada"]);
        propose.arg(&self.folder);
        let proposed = self.author.run(propose).json();
        let id = proposed["id"].as_str().expect("an id");
        let promote = ["ops", "promote", target, id, "--external"];
        let promoted = self.reviewer.run(self.reviewer.command(&promote)).json();
        assert_eq!(promoted["active"], true, "{promoted:#}");
    }

    /// What has to be given to it for a call of `operation`.
    #[must_use]
    pub fn input(operation: &str, input: &Value) -> Value {
        json!({ "operation": operation, "input": input })
    }

    /// What has to be given to it to learn how many values the list has that `operation` answers with, and nothing else
    /// of it.
    #[must_use]
    pub fn count(operation: &str, input: &Value) -> Value {
        let mut input = Self::input(operation, input);
        input["count"] = true.into();
        input
    }

    /// The same of a subscription: how many events it has.
    #[must_use]
    pub fn count_events(operation: &str, input: &Value) -> Value {
        let mut input = Self::count(operation, input);
        input["follow"] = true.into();
        input
    }

    /// What `operation` answers with to a node that `who` asks: `output` or `error`.
    ///
    /// # Panics
    /// The relay itself cannot be called.
    pub fn ask(who: &CliRunner, target: &str, operation: &str, input: &Value) -> Value {
        run(who, target, &Self::input(operation, input))
    }

    /// The same of a subscription, whose events are the output.
    ///
    /// # Panics
    /// As [`ask`](Self::ask).
    pub fn follow(who: &CliRunner, target: &str, operation: &str, input: &Value) -> Value {
        let mut input = Self::input(operation, input);
        input["follow"] = true.into();
        run(who, target, &input)
    }

    /// What has to be given to it for an answer of so many bytes.
    #[must_use]
    pub fn long(bytes: usize) -> Value {
        json!({ "text": bytes })
    }

    /// The operations that it finds at a node and whose names begin so.
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
    // Tests may call what the operation uses and nothing else.
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
