//! Boot, enrol with the key from provisioning, call: every form of the machine, and the host.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use alknet_test_support::deadline;
use alknet_tests::{BootVariant, CliOutput, CliRunner, HostNode, MachineNode, TestBench, binary};
use serde_json::{Value, json};

use super::served_names::OPERATIONS;

/// The operations that every node offers unknown peers.
const OPEN: [&str; 4] = [
    "services/list",
    "services/schema",
    "services/watch",
    "session/authenticate",
];

/// Both carriages.
const CARRIAGES: [&str; 2] = ["quic", "tcp"];

/// The code of an interrupted stream.
const INTERRUPTED: i32 = 130;

/// User `nobody` of every distribution.
const NOBODY: u32 = 65534;

fn null() -> Value {
    Value::Null
}

/// Everything that holds for a served node, whatever it runs on.
fn serves(admin: &CliRunner, target: &str) {
    knows_itself(admin, target);
    lists_operations(admin, target);
    streams_its_log(admin, target);
    refuses_unknown_peers(admin, target);
    counts(admin, target);
}

fn knows_itself(admin: &CliRunner, target: &str) {
    for carriage in CARRIAGES {
        let answer = admin.call(target, "node/info", &null(), &["--carriage", carriage]);
        let info = answer.json();
        let identity = info["identity"].as_str().expect("an identity");
        assert!(target.starts_with(identity), "{carriage}: {info}");
        assert!(info["uptime_ms"].as_u64() > Some(0), "{info}");
        assert!(info["processors"].as_u64() > Some(0), "{info}");
        let memory = &info["memory"];
        assert!(memory["node_resident_bytes"].as_u64() > Some(0), "{info}");
        assert!(memory["total_bytes"].as_u64() > memory["node_resident_bytes"].as_u64());
        let alpns = &info["listen"]["alpns"];
        let served = json!([
            "alknet/call",
            "alknet/tensor",
            "/iroh-bytes/4",
            "alknet/fs-sync",
            "h3",
            "h2",
            "http/1.1"
        ]);
        assert_eq!(*alpns, served, "{info}");
        let counted = &info["endpoint"][format!("connections_{carriage}")];
        assert!(counted.as_u64() > Some(0), "{carriage}: {info}");
    }
}

fn lists_operations(admin: &CliRunner, target: &str) {
    let all = json_of(admin, &["ops", target]);
    let mut names: Vec<_> = all.as_array().expect("a list").iter().map(name).collect();
    // Only a machine has a vault that can be locked.
    let info = json_of(admin, &["call", target, "node/info"]);
    let is_machine = info["role"] == "appliance";
    assert_eq!(names.contains(&"vault/lock"), is_machine, "{names:?}");
    names.retain(|name| *name != "vault/lock");
    assert_eq!(names, OPERATIONS);
    let spec = json_of(admin, &["ops", target, "node/log"]);
    assert_eq!(spec["op_type"], "subscription", "{spec}");
    assert_eq!(spec["access_control"]["required_scopes"], json!(["admin"]));
    assert!(spec["input_schema"]["properties"]["follow"].is_object());
}

/// The numbers and the text contain what was done above.
fn counts(admin: &CliRunner, target: &str) {
    let metrics = json_of(admin, &["call", target, "node/metrics"]);
    let of = |series: &str| metrics["values"][series].as_f64().unwrap_or(-1.0);
    assert!(
        of("alknet_handshakes_total{result=\"ok\"}") > 0.0,
        "{metrics:#}"
    );
    assert!(of("alknet_auth_total{method=\"key\",result=\"unknown\"}") > 0.0);
    assert!(of("alknet_bytes_total{dir=\"tx\",alpn=\"alknet/call\"}") > 0.0);
    let text = metrics["text"].as_str().unwrap_or_default();
    assert!(
        text.contains("# TYPE alknet_handshake_seconds histogram\n"),
        "{text}"
    );
}

fn name(operation: &Value) -> &str {
    operation["name"].as_str().unwrap_or_default()
}

/// The log's kept records, then the new ones, among them the next connection.
fn streams_its_log(admin: &CliRunner, target: &str) {
    let kept = admin.call(
        target,
        "node/log",
        &json!({ "last": 2 }),
        &["--carriage", "tcp"],
    );
    assert_eq!(kept.status, 0, "{kept:?}");
    let records: Vec<Value> = kept.output.lines().map(parse).collect();
    assert_eq!(records.len(), 2, "{kept:?}");
    assert!(
        records
            .iter()
            .all(|r| r["boot_ms"].is_u64() && r["message"].is_string())
    );

    let input = json!({ "last": 1, "follow": true });
    let mut follow = admin.subscribe(target, "node/log", &input);
    // After the kept records, all records are new.
    assert!(follow.next().is_some());
    let other = admin.call(target, "services/list", &null(), &[]);
    assert_eq!(other.status, 0, "{other:?}");
    let news = follow.find(|record| said(record, "conn.open") && said(record, "peer="));
    assert!(news.is_some_and(|record| record["target"] == "endpoint"));
    assert_eq!(follow.interrupt(), INTERRUPTED);
}

fn said(record: &Value, what: &str) -> bool {
    record["message"]
        .as_str()
        .is_some_and(|text| text.contains(what))
}

fn refuses_unknown_peers(admin: &CliRunner, target: &str) {
    let unknown_peer = CliRunner::new(admin.state().with_file_name("unknown-peer"));
    for operation in ["node/info", "node/log", "node/poweroff"] {
        let answer = unknown_peer.call(target, operation, &null(), &[]);
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (4, "UNAUTHENTICATED"),
            "{answer:?}"
        );
        // The line that an administrator has to add.
        let key = unknown_peer.identity();
        assert!(answer.errors.contains(&key), "{answer:?}");
    }
    let seen = json_of(&unknown_peer, &["ops", target]);
    let seen: Vec<_> = seen.as_array().expect("a list").iter().map(name).collect();
    assert_eq!(seen, OPEN);
}

/// Facts that only a machine of this project has.
fn is_an_appliance(node: &MachineNode, boot: BootVariant) {
    let info = node.info();
    assert_eq!(
        (&info["role"], &info["name"]),
        (&json!("appliance"), &json!("alknet")),
        "{info}"
    );
    assert_eq!(info["data"]["mode"], "mounted", "{info}");
    assert_eq!(info["config"]["source"], boot.config_source(), "{info}");
    assert_eq!(
        (&info["node_restarts"], &info["problems"]),
        (&json!(0), &json!([])),
        "{info}"
    );
    assert_eq!(info["fault_injection"], false, "{info}");
    assert!(
        info["kernel"]
            .as_str()
            .is_some_and(|release| release.starts_with("6.12"))
    );
    let addresses = info["addresses"].as_array().expect("a list");
    // The address that QEMU's network gives its first machine.
    assert!(addresses.contains(&json!("10.0.2.15")), "{info}");
    let stages = info["boot"]["stages"].as_array().expect("a list");
    let times: Vec<_> = stages.iter().map(|stage| stage["at_ms"].as_u64()).collect();
    assert!(times.len() > 2 && times.is_sorted(), "{info}");
}

fn boots_and_serves(boot: BootVariant) {
    let bench = TestBench::new();
    let node = bench.machine(boot).boot();
    is_an_appliance(&node, boot);
    serves(bench.admin(), &node.target());
    let status = run(bench.admin(), &["status", &node.target()]);
    assert_eq!(status.status, 0, "{status:?}");
    let ended = node.end();
    let reason = if boot == BootVariant::MicrovmErofs {
        "guest-reset"
    } else {
        "guest-shutdown"
    };
    assert_eq!(ended.reason(), Some(reason));
}

#[test]
fn microvm_with_an_erofs_root() {
    boots_and_serves(BootVariant::MicrovmErofs);
}

#[test]
fn q35_with_an_initramfs() {
    boots_and_serves(BootVariant::Q35Initramfs);
}

#[test]
fn the_raw_disk_under_uefi() {
    boots_and_serves(BootVariant::UefiRaw);
}

#[test]
fn the_host() {
    let bench = TestBench::new();
    let node = bench.host();
    let info = node.call("node/info", &null());
    assert_eq!(
        (&info["role"], &info["data"]["mode"]),
        (&json!("host"), &json!("host"))
    );
    // It listens on no other address.
    assert_eq!(info["addresses"], json!(["127.0.0.1"]), "{info}");
    serves(bench.admin(), node.target());
    for operation in ["node/reboot", "node/poweroff"] {
        let answer = bench.admin().call(node.target(), operation, &null(), &[]);
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (3, "UNAVAILABLE"),
            "{answer:?}"
        );
    }
}

/// An ordinary host replaces its own programs: each operation says so, and none answers something else.
#[test]
fn a_host_does_not_update_itself() {
    let bench = TestBench::new();
    let node = bench.host();
    for (operation, input) in [
        ("update/status", null()),
        ("update/check", null()),
        ("update/log", null()),
        ("update/stage", json!({ "bytes": 1 })),
        ("update/write", json!({ "session": "s1", "abort": true })),
        ("update/offer", json!({ "version": "1.1.0", "bytes": 1 })),
        ("update/apply", null()),
        ("update/cancel", null()),
        ("update/confirm", null()),
        ("update/rollback", null()),
    ] {
        let answer = bench.admin().call(node.target(), operation, &input, &[]);
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (3, "UNAVAILABLE"),
            "{operation}: {answer:?}"
        );
        assert!(answer.errors.contains("A node on a host"), "{answer:?}");
    }
    let update = run(bench.admin(), &["update", node.target(), "--yes"]);
    assert_eq!(
        (update.status, update.code().as_str()),
        (3, "UNAVAILABLE"),
        "{update:?}"
    );
}

/// A user without privileges can serve too.
#[test]
fn the_host_of_an_unprivileged_user() {
    let bench = TestBench::new();
    // Benches are in a folder that other users cannot enter.
    let shared = tempfile::tempdir().expect("the temporary directory is writable");
    let (folder, program) = (shared.path().join("nobody"), shared.path().join("alknet"));
    std::fs::create_dir(&folder).expect("the folder is ours");
    std::fs::copy(binary(), &program).expect("the folder is ours");
    let open = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(shared.path(), open).expect("the folder is ours");
    let mut serve = Command::new(&program);
    serve.args([
        "serve",
        "--json",
        "--port",
        "0",
        "--listen",
        "127.0.0.1",
        "--state",
    ]);
    serve
        .arg(&folder)
        .args(["--admin", &bench.admin().identity()]);
    if nix::unistd::geteuid().is_root() {
        std::os::unix::fs::chown(&folder, Some(NOBODY), Some(NOBODY)).expect("we are root");
        serve.uid(NOBODY).gid(NOBODY);
    }
    let node = ManualNode::start(serve);
    serves(bench.admin(), &node.target);
    let key = std::fs::metadata(folder.join("identity/node.key")).expect("it has a key");
    assert_eq!(key.permissions().mode() & 0o777, 0o600);
    node.stops_on_sigterm();
}

/// `alknet serve` started by hand.
struct ManualNode {
    child: std::process::Child,
    target: String,
}

impl ManualNode {
    fn start(mut serve: Command) -> Self {
        use std::io::BufRead;
        let mut child = serve.stdout(Stdio::piped()).spawn().expect("it starts");
        let mut line = String::new();
        let output = child.stdout.take().expect("it was asked for above");
        std::io::BufReader::new(output)
            .read_line(&mut line)
            .expect("it says where it serves");
        let target = parse(&line)["target"]
            .as_str()
            .expect("a target")
            .to_owned();
        Self { child, target }
    }

    fn stops_on_sigterm(mut self) {
        use nix::sys::signal::{Signal, kill};
        let pid = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        kill(pid, Signal::SIGTERM).expect("it runs");
        let status = self.child.wait().expect("it is our child");
        assert!(status.success(), "{status}");
    }
}

impl Drop for ManualNode {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[test]
fn a_host_keeps_its_identity_and_leaves_no_trace_of_running() {
    let bench = TestBench::new();
    let state = bench.path().join("host");
    let admin = bench.admin().identity();
    let serve = || {
        let words = [
            "serve",
            "--port",
            "0",
            "--listen",
            "127.0.0.1",
            "--admin",
            &admin,
        ];
        ManualNode::start(CliRunner::new(state.clone()).command(&words))
    };
    let first = serve();
    let (key, _) = first.target.split_once('@').expect("a pinned target");
    let key = key.to_owned();
    // `status` needs only the state directory to find the node.
    assert!(state.join("serve.json").exists());
    first.stops_on_sigterm();
    assert!(!state.join("serve.json").exists());
    let gone = run(&CliRunner::new(state.clone()), &["status"]);
    assert_eq!((gone.status, gone.code().as_str()), (2, "USAGE"));
    assert!(serve().target.starts_with(&key));
}

/// Two nodes would serve with one key, and each would overwrite the other's files.
#[test]
fn a_second_process_on_the_folder_of_a_node_is_refused_by_the_first_s_number() {
    let bench = TestBench::new();
    let state = CliRunner::new(bench.path().join("host"));
    let node = HostNode::start(state.state(), &state);
    for verb in [&["serve"][..], &["tensor", "serve", "."]] {
        let mut command = state.command(verb);
        command.args(["--listen", "127.0.0.1", "--port", "0"]);
        command.current_dir(bench.path());
        let second = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        let mut second = second.expect("it starts");
        let ended = ends(&mut second);
        // A second node that serves must be stopped, and fails the test.
        second.kill().ok();
        let said = second.wait_with_output().expect("it is our child").stderr;
        let said = String::from_utf8_lossy(&said).into_owned();
        assert_eq!(ended, Some(2), "{verb:?}: {said}");
        assert!(
            said.contains(&format!("process {} ", node.pid())),
            "{verb:?}: {said}"
        );
        // The file by which 'alknet status' finds a node is still the first node's.
        let found = std::fs::read_to_string(node.state().join("serve.json")).expect("it serves");
        let found: Value = serde_json::from_str(&found).expect("JSON");
        assert_eq!(found["pid"], node.pid(), "{verb:?}");
        let shown = run(&state, &["status"]).json();
        let (key, _) = node.target().split_once('@').expect("a pinned target");
        assert_eq!(shown["identity"], key, "{verb:?}: {shown:#}");
    }
    let folder = node.state().to_owned();
    drop(node);
    // The lock belongs to the process, not to the file.
    assert!(folder.join("serve.lock").exists());
    drop(HostNode::start(&folder, bench.admin()));
}

/// Its exit status, unless it continues.
fn ends(child: &mut std::process::Child) -> Option<i32> {
    let until = Instant::now() + deadline(Duration::from_secs(20));
    while Instant::now() < until {
        if let Some(status) = child.try_wait().expect("it is our child") {
            return status.code();
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    None
}

#[test]
fn every_exit_code_is_as_documented() {
    let bench = TestBench::new();
    let node = bench.host();
    let (admin, target) = (bench.admin(), node.target());
    let call = |operation: &str, input: &str| run(admin, &["call", target, operation, input]);
    let ends = |answer: CliOutput, status: i32, code: &str| {
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (status, code),
            "{answer:?}"
        );
        assert_eq!(
            (answer.output.as_str(), answer.errors.lines().count()),
            ("", 1)
        );
    };
    assert_eq!(call("node/info", "{}").status, 0);
    ends(call("no/such-operation", "{}"), 1, "NOT_FOUND");
    ends(call("node/info", r#"{"unknown":1}"#), 2, "INVALID_INPUT");
    ends(call("node/log", r#"{"last":-1}"#), 2, "INVALID_INPUT");
    ends(call("node/info", "{"), 2, "USAGE");
    ends(
        run(admin, &["call", "ed25519:00@localhost", "node/info"]),
        2,
        "USAGE",
    );
    let (_, address) = target.split_once('@').expect("a pinned target");
    ends(
        run(admin, &["call", address, "node/info"]),
        2,
        "UNKNOWN_PEER",
    );
    assert_eq!(
        run(admin, &["call"]).status,
        2,
        "clap explains that in its own words"
    );
    let pinned = |address: &str| format!("{}@{address}", admin.identity());
    ends(
        run(admin, &["call", &pinned(address), "node/info"]),
        3,
        "PIN_MISMATCH",
    );
    // Port 1 of loopback, where no server listens.
    let unknown_peer = [
        "call",
        "--carriage",
        "tcp",
        &pinned("127.0.0.1:1"),
        "node/info",
    ];
    ends(run(admin, &unknown_peer), 3, "UNAVAILABLE");
    ends(
        run(admin, &["call", "--anonymous", target, "node/info"]),
        4,
        "UNAUTHENTICATED",
    );
    ends(silence(admin, &pinned), 5, "TIMEOUT");
}

/// A call to a port that accepts but sends nothing.
fn silence(admin: &CliRunner, pinned: &impl Fn(&str) -> String) -> CliOutput {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = silent.local_addr().expect("it is bound").to_string();
    run(
        admin,
        &["call", "--timeout", "0.2", &pinned(&address), "node/info"],
    )
}

/// Input comes from the command line, from standard input, or from a file.
#[test]
fn input_comes_from_where_it_is() {
    let bench = TestBench::new();
    let node = bench.host();
    let file = bench.path().join("input.json");
    std::fs::write(&file, r#"{"name":"node/info"}"#).expect("the folder is ours");
    let from_file = format!("@{}", file.display());
    let call = ["call", node.target(), "services/schema"];
    let by_file = json_of(bench.admin(), &[&call[..], &[&from_file]].concat());
    let mut command = bench.admin().command(&[&call[..], &["-"]].concat());
    command.stdin(std::fs::File::open(&file).expect("it was just written"));
    let by_stdin = bench.admin().run(command).json();
    assert_eq!((name(&by_file), &by_file), ("node/info", &by_stdin));
}

/// Without `--json` the same facts are printed as text.
#[test]
fn people_read_lines() {
    let bench = TestBench::new();
    let node = bench.host();
    let ops = plain(bench.admin(), &["ops", node.target()]);
    assert_eq!(ops.status, 0, "{ops:?}");
    for (line, operation) in ops.output.lines().zip(OPERATIONS) {
        assert!(line.starts_with(operation), "{ops:?}");
    }
    let status = plain(bench.admin(), &["status", node.target()]);
    assert!(status.output.contains("health     ok"), "{status:?}");
    let log = plain(
        bench.admin(),
        &["call", node.target(), "node/log", r#"{"last":1}"#],
    );
    assert!(log.output.contains(" endpoint: conn."), "{log:?}");
    let identity = plain(bench.admin(), &["identity"]);
    assert_eq!(identity.output.trim(), bench.admin().identity());
    let error = plain(bench.admin(), &["call", node.target(), "no/such-operation"]);
    assert!(error.errors.starts_with("alknet: NOT_FOUND: "), "{error:?}");
}

/// `| head` reads what it wants and closes the pipe: the program exits without an error message.
#[test]
fn a_reader_may_go_away() {
    use std::io::Read;
    let mut words = Command::new(binary());
    let words = words.args(["completions", "bash"]);
    let words = words.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = words.spawn().expect("it starts");
    drop(child.stdout.take());
    let mut errors = String::new();
    let mut pipe = child.stderr.take().expect("it was asked for above");
    pipe.read_to_string(&mut errors).expect("it is text");
    let status = child.wait().expect("it is our child");
    assert!(status.success() && errors.is_empty(), "{status} {errors}");
}

#[test]
fn help_says_what_the_exit_codes_mean() {
    let help = Command::new(binary())
        .arg("--help")
        .output()
        .expect("the binary runs");
    let text = String::from_utf8_lossy(&help.stdout).into_owned();
    assert!(
        help.status.success() && text.contains("Exit codes: 0 it worked; 1 the operation failed;"),
        "{text}"
    );
    let key = TestBench::new();
    let mode = |path: &Path| path.metadata().expect("it exists").permissions().mode() & 0o777;
    key.admin().identity();
    assert_eq!(mode(&key.admin().state().join("identity.key")), 0o600);
    assert_eq!(mode(key.admin().state()), 0o700);
}

fn parse(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
}

fn run(cli: &CliRunner, words: &[&str]) -> CliOutput {
    cli.run(cli.command(words))
}

fn json_of(cli: &CliRunner, words: &[&str]) -> Value {
    run(cli, words).json()
}

/// As users run it.
fn plain(cli: &CliRunner, words: &[&str]) -> CliOutput {
    let mut command = Command::new(binary());
    command
        .args(words)
        .arg("--state")
        .arg(cli.state())
        .stdin(Stdio::null());
    cli.run(command)
}
