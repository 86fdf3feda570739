//! Credentials for other servers on a host: set by `alknet credential`, used by the node, and sent
//! only to the server.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::Stdio;

use alknet_tests::tools::client;
use alknet_tests::{
    CliOutput, CliRunner, HostServer, RelayOperation, TestBench, WebNode, curl, eventually,
    run_with_input,
};
use nix::pty::openpty;
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, tcgetattr};
use nix::unistd::Pid;
use serde_json::{Value, json};

/// A secret that only the server may see.
const HUSH: &str = "hush-51c8-this-is-for-the-server-alone";

/// Runs `alknet credential` with these arguments and this standard input.
fn credential(state: &Path, words: &[&str], input: &str) -> CliOutput {
    let runner = CliRunner::new(state.to_owned());
    let all = [&["credential"], words].concat();
    run_with_input(runner.command(&all), input)
}

fn bearer(name: &str) -> String {
    format!("[[credentials]]\nname = \"{name}\"\nkind = \"bearer\"\n")
}

/// A node's problems by their codes, if their texts contain `word`.
fn problem(web: &WebNode, word: &str) -> Option<Value> {
    let problems = web.node.call("node/info", &Value::Null)["problems"].take();
    let mut problems = problems.as_array().expect("a list").clone();
    problems.retain(|one| one["text"].as_str().is_some_and(|text| text.contains(word)));
    problems.pop()
}

/// Every file below a folder that contains these bytes.
fn files_with(folder: &Path, bytes: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(files_with(&path, bytes));
        } else if path.is_file() {
            let content = fs::read(&path).expect("ours");
            if memchr::memmem::find(&content, bytes).is_some() {
                found.push(path.display().to_string());
            }
        }
    }
    found
}

/// A node that imports an API, parts of which require a token.
struct CredentialImportNode {
    bench: TestBench,
    api: HostServer,
    web: WebNode,
}

impl CredentialImportNode {
    fn start() -> Self {
        let bench = TestBench::new();
        let file = bench.path().join("token");
        fs::write(&file, HUSH).expect("the folder is ours");
        let api = HostServer::api(0, file.to_str());
        fs::copy(client("api.yaml"), bench.path().join("api.yaml")).expect("the folder is ours");
        let relay = RelayOperation::new(&bench, &["mine/*"]);
        let import = format!(
            "[[http.import]]\nkind = \"openapi\"\nnamespace = \"mine\"\nplain = true\n\
             private = [\"127.0.0.1\"]\ndocument = \"cfg:/api.yaml\"\n\
             base_url = \"{}\"\ncredential = \"api\"\n",
            api.url("/api")
        );
        let config = [relay.configuration(), bearer("api"), import].concat();
        let web = WebNode::start(&bench, &config);
        relay.promote(web.node.target());
        eventually("the import", || {
            let listed = RelayOperation::list(bench.admin(), web.node.target(), "mine/me");
            (listed == json!(["mine/me"])).then_some(())
        });
        Self { bench, api, web }
    }

    /// The result of a call of an operation that requires the token.
    fn me(&self) -> Value {
        let (admin, target) = (self.bench.admin(), self.web.node.target());
        RelayOperation::ask(admin, target, "mine/me", &Value::Null)
    }

    fn reason(&self) -> Value {
        self.me()["error"]["details"]["reason"].take()
    }

    /// Runs `alknet credential` on the node's computer.
    fn credential(&self, words: &[&str], input: &str) -> CliOutput {
        credential(self.web.node.state(), words, input)
    }
}

#[test]
fn an_import_uses_the_credential_that_is_set_on_its_host() {
    let node = CredentialImportNode::start();
    // The node reports what is missing, and which command sets it. It sends nothing to the server.
    assert_eq!(node.reason(), "credential_missing");
    let missing = problem(&node.web, "credential api: it is not set").expect("a problem");
    assert_eq!(missing["code"], "credential-missing");
    let text = missing["text"].as_str().unwrap_or_default();
    assert!(text.ends_with("import mine uses it"), "{missing:#}");
    let hint = missing["hint"].as_str().unwrap_or_default();
    let state = node.web.node.state();
    let command = format!("'alknet credential set api --state {}'", state.display());
    assert!(hint.contains(&command), "{missing:#}");
    assert_eq!(node.web.curl("/healthz", &[]).text(), "ok\n");
    assert_eq!(curl(&node.api.url("/told"), &[]).json(), json!([]));
    let row = json!({ "name": "api", "state": "missing", "set": null, "kind": "bearer",
                      "used_by": ["import mine"] });
    let listed = node.credential(&["list"], "").json();
    assert_eq!(listed, json!({ "credentials": [row] }));

    // One line end after the value is not part of it.
    let set = node
        .credential(&["set", "api"], &format!("{HUSH}\n"))
        .json();
    assert_eq!(set["replaced"], false);
    // Once the command has returned, the next call has the value.
    assert_eq!(node.me()["output"], json!({ "me": true }));
    assert!(problem(&node.web, "credential api").is_none());
    let status = node.web.node.call("vault/status", &Value::Null)["credentials"].take();
    let said = (&status[0]["state"], &status[0]["origin"]);
    assert_eq!(said, (&json!("ready"), &json!("node")));
    assert_eq!(node.credential(&["show", "api"], "").json()["state"], "set");
    let (admin, target) = (node.bench.admin(), node.web.node.target());
    let remote = admin.run(admin.command(&["credential", "list", target]));
    assert_eq!(remote.json()["credentials"][0]["state"], "ready");

    // Only the test's own file, which is elsewhere, contains the value.
    let log = node
        .web
        .node
        .try_call("node/log", &json!({ "last": 100_000 }));
    assert!(log.output.contains("serving"), "{log:?}");
    assert!(!log.output.contains(HUSH), "{log:?}");
    assert_eq!(files_with(state, HUSH.as_bytes()), Vec::<String>::new());
}

#[test]
fn a_node_follows_a_credential_that_is_replaced_and_removed() {
    let node = CredentialImportNode::start();
    node.credential(&["set", "api"], HUSH).json();
    let answers = |at: &str, expected: &Value| {
        let answer = node.me();
        assert_eq!(answer.pointer(at), Some(expected), "{answer}");
    };
    answers("/output", &json!({ "me": true }));
    let other = node.credential(&["set", "api"], "not-the-one").json();
    assert_eq!(other["replaced"], true);
    answers("/error/code", &json!("HTTP_401"));
    let removed = node.credential(&["remove", "api"], "").json();
    assert_eq!(removed, json!({ "name": "api", "removed": true }));
    let missing = json!("credential_missing");
    answers("/error/details/reason", &missing);
    for verb in ["remove", "show"] {
        let gone = node.credential(&[verb, "other"], "");
        let said = (gone.status, gone.code());
        assert_eq!(said, (1, "NOT_FOUND".to_owned()), "{verb}");
    }
}

/// Every user of the host can read arguments, and may see a command's output.
#[test]
fn a_value_is_in_no_argument_no_environment_and_no_error() {
    let bench = TestBench::new();
    let state = bench.path().join("host");
    let config = bench.path().join("node.toml");
    fs::write(&config, bearer("api")).expect("the folder is ours");
    let runner = CliRunner::new(state.clone());
    let mut command = runner.command(&["credential", "set", "api"]);
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn();
    let mut set = piped.expect("the binary can be started");
    let mut input = set.stdin.take().expect("it was asked for above");
    input.write_all(HUSH.as_bytes()).expect("it reads");
    // It waits for the end of its input.
    for file in ["cmdline", "environ"] {
        let path = format!("/proc/{}/{file}", set.id());
        let seen = fs::read(&path).expect("it runs");
        assert!(
            memchr::memmem::find(&seen, HUSH.as_bytes()).is_none(),
            "{path}"
        );
    }
    drop(input);
    assert!(set.wait().expect("it is our child").success());

    let config = config.display().to_string();
    let two_lines = format!("{HUSH}\n{HUSH}");
    let long = HUSH.repeat(1000);
    let of_kind = ["set", "api", "--config", config.as_str()];
    for (words, input, said) in [
        (&["set", "api", HUSH][..], "", "standard input"),
        (&["set", "Hush Hush"], HUSH, "no name of a credential"),
        (&["set", "api"], "\n", "the value is empty"),
        (&["set", "api"], long.as_str(), "longer than 16384 bytes"),
        (&of_kind, two_lines.as_str(), "of kind bearer"),
    ] {
        let refused = credential(&state, words, input);
        assert_eq!((refused.status, refused.code().as_str()), (2, "USAGE"));
        assert!(refused.errors.contains(said), "{said}: {refused:?}");
        for text in [&refused.output, &refused.errors] {
            assert!(
                !text.contains(HUSH) && !text.contains("Hush"),
                "{refused:?}"
            );
        }
    }
    let kept = credential(&state, &["show", "api"], "").json();
    assert_eq!(kept["state"], "set", "what was refused changed nothing");
}

#[test]
fn a_terminal_does_not_show_the_value_that_is_typed() {
    let bench = TestBench::new();
    let state = bench.path().join("host");
    let pty = openpty(None, None).expect("a terminal");
    let side = || Stdio::from(pty.slave.try_clone().expect("a descriptor"));
    let mut command = CliRunner::new(state.clone()).command(&["credential", "set", "api"]);
    let at_terminal = command.stdin(side()).stdout(side()).stderr(side());
    let mut set = at_terminal.spawn().expect("the binary can be started");
    // The program has its own copies of the terminal.
    drop(command);
    eventually("the terminal shows nothing", || {
        let now = tcgetattr(&pty.slave).expect("a terminal");
        (!now.local_flags.contains(LocalFlags::ECHO)).then_some(())
    });
    let mut keyboard = fs::File::from(pty.master);
    let typed = keyboard.write_all(format!("{HUSH}\n").as_bytes());
    typed.expect("the terminal takes it");
    drop(pty.slave);
    assert!(set.wait().expect("it is our child").success());
    let mut seen = Vec::new();
    // After the last output, the kernel reports an error for a terminal without a process.
    let _ = keyboard.read_to_end(&mut seen);
    let seen = String::from_utf8_lossy(&seen);
    assert!(seen.contains("value of api: "), "{seen}");
    assert!(!seen.contains(HUSH), "{seen}");
    assert_eq!(
        credential(&state, &["show", "api"], "").json()["state"],
        "set"
    );
}

/// The attacker may write the file, but has no key. A running node notices the change, and so does
/// the next start.
#[test]
fn a_file_that_was_changed_is_named_and_gives_no_value() {
    let bench = TestBench::new();
    let config = [bearer("cheap"), bearer("costly")].concat();
    let web = WebNode::start(&bench, &config);
    let state = web.node.state().to_owned();
    for name in ["cheap", "costly"] {
        credential(&state, &["set", name], &format!("{HUSH}-{name}")).json();
    }
    let states = || {
        let status = web.node.call("vault/status", &Value::Null)["credentials"].take();
        [status[0]["state"].clone(), status[1]["state"].clone()]
    };
    let until = |what: &str, state: &str| {
        eventually(what, || (states() == [state, state]).then_some(()));
    };
    until("both are there", "ready");
    let file = state.join("credentials/sealed.json");
    let whole = fs::read_to_string(&file).expect("ours");
    let swapped = whole
        .replace("\"cheap\"", "\"other\"")
        .replace("\"costly\"", "\"cheap\"")
        .replace("\"other\"", "\"costly\"");
    let newer = whole.replace("\"alkcred\":1", "\"alkcred\":2");
    for (text, word) in [
        (swapped.as_str(), "does not open"),
        (&whole[..whole.len() / 2], "sealed.json is damaged"),
        (newer.as_str(), "of a newer alknet"),
    ] {
        fs::write(&file, text).expect("ours");
        until(word, "credential_unusable");
        let said = problem(&web, word).expect("a problem");
        assert_eq!(said["code"], "credential-unusable");
        assert!(!said.to_string().contains(HUSH), "{said:#}");
        fs::write(&file, &whole).expect("ours");
        until("they are back", "ready");
    }
    // Another user may read it from now on. The content does not change, so the node notices only
    // at SIGHUP.
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    fs::set_permissions(&file, open).expect("ours");
    let pid = Pid::from_raw(web.node.pid().cast_signed());
    kill(pid, Signal::SIGHUP).expect("it runs");
    until("it may be read by others", "credential_unusable");
    let said = problem(&web, "sealed.json").expect("a problem");
    let text = said["text"].as_str().unwrap_or_default();
    assert!(text.contains("mode 644"), "{said:#}");
    let refused = credential(&state, &["list"], "");
    assert_eq!(refused.status, 1);
    assert!(refused.errors.contains("mode 644"), "{refused:?}");
}
