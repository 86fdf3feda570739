//! Nodes by name: a user's own names, the default node, and workers behind a hub, with each verb.

use std::process::{Command, Stdio};

use alknet_tests::{CliOutput, CliRunner, Curl, TestBench, binary};
use serde_json::{Value, json};

use crate::enrolment::{EnrolmentNode, hub_config, invite, peer, run};

/// A hub, and a worker `kitchen` that joined it.
struct HubAndWorker {
    bench: TestBench,
    hub: EnrolmentNode,
    worker: EnrolmentNode,
    /// The ID of the worker on the hub.
    id: String,
}

impl HubAndWorker {
    fn start() -> Self {
        let bench = TestBench::new();
        let hub = EnrolmentNode::start(&bench, "hub", &hub_config(), "0");
        let join = invite(&bench, &hub, &["--role", "worker"]);
        // The worker gives its hub all rights, so that each verb gets an answer.
        let config = format!(
            "[node]\nname = \"kitchen\"\nadmin_keys = [\"{}\"]\n[[join]]\ncode = \"{join}\"\n",
            hub.key()
        );
        let worker = EnrolmentNode::start(&bench, "worker", &config, "0");
        let row = peer(&bench, &hub, "kitchen", "ready");
        let id = row["peer_id"].as_str().expect("an id").to_owned();
        Self {
            bench,
            hub,
            worker,
            id,
        }
    }

    /// The administrator, who calls the hub `attic`.
    fn admin(&self) -> &CliRunner {
        let admin = self.bench.admin();
        node_verb(admin, &["add", "attic", &self.hub.target]);
        admin
    }
}

/// Runs `alknet node …`, which must succeed.
fn node_verb(cli: &CliRunner, words: &[&str]) -> Value {
    run(cli, &[&["node"][..], words].concat()).json()
}

/// The message of an error.
fn message(output: &CliOutput) -> String {
    let error: Value = serde_json::from_str(output.errors.trim()).unwrap_or_default();
    let message = error["error"]["message"].as_str();
    message.map_or_else(|| output.errors.clone(), str::to_owned)
}

/// The node that answered `node/info`. `status` prints it even for a node with problems.
fn identity(cli: &CliRunner, words: &[&str]) -> Value {
    let answer = run(cli, words);
    let info: Value = serde_json::from_str(&answer.output).unwrap_or_default();
    assert!(info["identity"].is_string(), "{words:?}: {answer:?}");
    info["identity"].clone()
}

/// Verbs that need only a node, each with the arguments after NODE.
const VERBS: [(&[&str], &[&str]); 13] = [
    (&["status"], &[]),
    (&["ops"], &[]),
    (&["ops", "list"], &[]),
    (&["config", "show"], &[]),
    (&["file", "list"], &[]),
    (&["peer", "list"], &[]),
    (&["peers"], &[]),
    (&["pin"], &[]),
    (&["token", "list"], &[]),
    (&["call"], &["node/info"]),
    (&["js", "types"], &[]),
    (&["logs"], &["--last", "1"]),
    (&["open"], &["--print"]),
];

#[test]
fn every_verb_takes_a_name_and_the_default() {
    let bench = TestBench::new();
    let node = bench.host();
    let admin = bench.admin();
    node_verb(admin, &["add", "edge-1", node.target()]);
    let more = [
        (&["ops", "show"][..], &["node/info"][..]),
        (&["vault", "status"], &[]),
    ];
    for (verb, behind) in VERBS.iter().chain(&more) {
        let words = [*verb, &["edge-1"], *behind].concat();
        let answer = run(admin, &words);
        assert_eq!(answer.status, 0, "{words:?}: {answer:?}");
    }
    // Without a default, and without a node on this computer, a verb says what to do.
    let nothing = run(admin, &["ops"]);
    assert_eq!((nothing.status, nothing.code().as_str()), (2, "USAGE"));
    let said = message(&nothing);
    assert!(
        said.contains("alknet node use") && said.contains("alknet serve"),
        "{said}"
    );
    node_verb(admin, &["use", "edge-1"]);
    for (verb, behind) in VERBS.iter().chain(&more) {
        let words = [*verb, *behind].concat();
        let answer = run(admin, &words);
        assert_eq!(answer.status, 0, "{words:?}: {answer:?}");
    }
    let forgotten = node_verb(admin, &["remove", "edge-1"]);
    assert_eq!(forgotten["was_default"], true);
    assert_eq!(run(admin, &["ops"]).status, 2);
}

/// An argument after the options still belongs to the verb after NODE.
#[test]
fn words_behind_a_node_may_be_parted_by_options() {
    let bench = TestBench::new();
    let node = bench.host();
    let script = bench.path().join("six.js");
    std::fs::write(&script, "export default 2 * 3").expect("the folder is ours");
    // `--json --state DIR` are between the node and the file.
    let mut command = bench.admin().command(&["js", "run", node.target()]);
    command.arg(&script);
    assert_eq!(bench.admin().run(command).json()["value"], 6);
    node_verb(
        bench.admin(),
        &["add", "edge-1", node.target(), "--default"],
    );
    let mut command = bench.admin().command(&["js", "run"]);
    command.arg(&script);
    assert_eq!(bench.admin().run(command).json()["value"], 6);
    // A node's name alone is not a file.
    let missing = run(bench.admin(), &["js", "run", "edge-1"]);
    assert_eq!(missing.status, 2, "{missing:?}");
    assert!(
        message(&missing).starts_with("FILE is missing"),
        "{missing:?}"
    );
}

#[test]
fn the_node_of_a_state_directory_needs_no_name() {
    let bench = TestBench::new();
    let node = bench.host();
    let here = CliRunner::new(node.state().to_owned());
    let listed = run(&here, &["ops"]);
    assert_eq!(listed.status, 0, "{listed:?}");
    // The default comes first.
    let other = EnrolmentNode::start(&bench, "other", "", "0");
    node_verb(&here, &["add", "other", &other.target, "--default"]);
    let chosen = run(&here, &["status"]);
    assert_eq!(
        (chosen.status, chosen.code().as_str()),
        (4, "UNAUTHENTICATED")
    );
    drop(other);
    let gone = run(&here, &["ops", "--carriage", "tcp"]);
    assert_eq!((gone.status, gone.code().as_str()), (3, "UNAVAILABLE"));
    node_verb(&here, &["use", "--none"]);
    assert_eq!(run(&here, &["ops"]).status, 0);
}

#[test]
fn a_worker_is_reached_through_its_hub_with_each_verb() {
    let fleet = HubAndWorker::start();
    let admin = fleet.admin();
    node_verb(admin, &["add", "oven", "kitchen@attic"]);
    let key = json!(fleet.worker.key());
    let direct = fleet.hub.target.as_str();
    let through = format!("kitchen@{direct}");
    let ways: [&[&str]; 8] = [
        &["attic", "--peer", "kitchen"],
        &["attic", "--peer", &fleet.id],
        &["kitchen", "--via", "attic"],
        &["kitchen", "--via", direct],
        &[direct, "--peer", "kitchen"],
        &["kitchen@attic"],
        &[&through],
        &["oven"],
    ];
    for way in ways {
        assert_eq!(
            identity(admin, &[&["status"][..], way].concat()),
            key,
            "{way:?}"
        );
        let call = [&["call"][..], way, &["node/info"]].concat();
        assert_eq!(identity(admin, &call), key, "{way:?}");
    }
    // The hub by default, and the worker by its name there.
    node_verb(admin, &["use", "attic"]);
    let call = ["call", "node/info", "--peer", "kitchen"];
    assert_eq!(identity(admin, &call), key);
    assert_eq!(
        identity(admin, &["call", "node/info"]),
        json!(fleet.hub.key())
    );

    let config = fleet.bench.path().join("worker.toml");
    let config = config.to_str().expect("UTF-8");
    let script = fleet.bench.path().join("port.js");
    let source = "export default (await ops.call('node/info', null)).identity";
    std::fs::write(&script, source).expect("the folder is ours");
    let script = script.to_str().expect("UTF-8");
    let behind = |verb: &[&str], more: &[&str]| {
        let words = [verb, &["oven"], more].concat();
        let answer = run(admin, &words);
        assert_eq!(answer.status, 0, "{words:?}: {answer:?}");
        answer
    };
    for (verb, more) in VERBS {
        behind(verb, more);
    }
    assert_eq!(behind(&["js", "run"], &[script]).json()["value"], key);
    let status = behind(&["vault", "status"], &[]).json();
    assert_eq!(status["state"], "absent");
    let applied = behind(&["config", "apply"], &[config, "--dry-run"]).json();
    assert_eq!(applied["dry_run"], true);
    // Each command shows the worker's data: its hub knows it by an ID, and it is not a hub.
    let [of_hub, of_worker] = ["attic", "oven"].map(|node| run(admin, &["peer", "list", node]));
    assert!(of_hub.output.contains(&fleet.id), "{of_hub:?}");
    assert!(!of_worker.output.contains(&fleet.id), "{of_worker:?}");
    let listed = behind(&["ops", "list"], &[]).json();
    let names: Vec<_> = listed
        .as_array()
        .expect("a list")
        .iter()
        .map(|op| &op["name"])
        .collect();
    assert!(
        names.contains(&&json!("node/info")) && !names.contains(&&json!("hub/invite")),
        "{names:?}"
    );
    let described = behind(&["ops", "show"], &["node/info"]).json();
    assert_eq!(described["op_type"], "query");
    let link = behind(&["open"], &["--print"]).json()["url"].clone();
    let port = fleet.worker.target.rsplit_once(':').expect("a port").1;
    assert!(
        link.as_str()
            .is_some_and(|url| url.contains(&format!(":{port}/status/enter/"))),
        "{link}"
    );
    pins_a_worker(&behind(&["pin"], &[]).json(), &key, fleet.hub.key());
    // Its certificate as well: it proves the key that the hub named.
    let certificate = fleet.bench.path().join("oven.pem");
    let certificate = certificate.to_str().expect("UTF-8");
    let written = behind(&["pin"], &["--cert", certificate]).json();
    assert_eq!(
        (&written["word_of"], &written["key"]),
        (&json!("attic"), &key)
    );
    // Tensor files do not go through a hub.
    let output = fleet.bench.path().join("out.mt");
    let pull = [
        "tensor",
        "pull",
        "oven",
        "models/bert",
        output.to_str().expect("UTF-8"),
    ];
    let by_option = [&pull[..2], &["attic"], &pull[3..], &["--peer", "kitchen"]].concat();
    for pull in [&pull[..], &by_option] {
        let refused = run(admin, pull);
        assert_eq!(refused.status, 2, "{refused:?}");
        assert!(
            message(&refused).contains("behind the hub 'attic'"),
            "{refused:?}"
        );
    }
}

/// With the output of `alknet pin` for a worker, curl trusts that worker, and not its hub.
fn pins_a_worker(pinned: &Value, worker: &Value, hub: &str) {
    assert_eq!(pinned["word_of"], "attic", "{pinned}");
    let first = &pinned["keys"][0];
    assert_eq!(first["key"], *worker, "{pinned}");
    let url = format!("{}/healthz", pinned["url"].as_str().expect("a URL"));
    let asks = |pin: &str| {
        let options = [
            "--silent",
            "--insecure",
            "--pinnedpubkey",
            pin,
            "--url",
            &url,
        ];
        Curl::new(&options).output()
    };
    let own = asks(first["curl_pin"].as_str().expect("a pin"));
    assert!(own.status.success(), "{own:?}");
    let bench = TestBench::new();
    let words = ["pin", &format!("{hub}@127.0.0.1:1")];
    let hub = run(bench.admin(), &words).json();
    let other = asks(hub["keys"][0]["curl_pin"].as_str().expect("a pin"));
    // curl's CURLE_SSL_PINNEDPUBKEYNOTMATCH.
    assert_eq!(other.status.code(), Some(90), "{other:?}");
}

#[test]
fn an_absent_peer_and_an_unserved_name_give_different_errors() {
    let fleet = HubAndWorker::start();
    let admin = fleet.admin();
    let answers = |peer: &str, verb: &[&str]| {
        let answer = run(admin, &[verb, &["attic", "--peer", peer]].concat());
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (1, "NOT_FOUND"),
            "{answer:?}"
        );
        message(&answer)
    };
    for verb in [
        &["status"][..],
        &["ops"],
        &["peers"],
        &["token", "list"],
        &["js", "types"],
    ] {
        let said = answers("kitchn", verb);
        assert_eq!(
            said, "'attic' has no peer 'kitchn'; it knows kitchen",
            "{verb:?}"
        );
    }
    let call = ["call", "attic", "no/such-operation", "--peer", "kitchen"];
    let unserved = run(admin, &call);
    assert_eq!(unserved.code(), "NOT_FOUND");
    let said = message(&unserved);
    assert!(
        said.contains("'kitchen' does not serve 'no/such-operation' to 'attic'"),
        "{said}"
    );
    // Answers of the peer's own operation are unchanged.
    let own = run(
        admin,
        &["token", "remove", "attic", "k3v9a2mb", "--peer", "kitchen"],
    );
    assert_eq!(own.code(), "NOT_FOUND", "{own:?}");
    assert!(!message(&own).contains("does not serve"), "{own:?}");
    // A node that is not a hub forwards nothing.
    node_verb(admin, &["add", "box", &fleet.worker.target]);
    let no_hub = run(admin, &["status", "box", "--peer", "kitchen"]);
    assert!(message(&no_hub).contains("'box' is no hub"), "{no_hub:?}");
    let no_hub = run(admin, &["hub", "list", "box"]);
    assert!(message(&no_hub).contains("'box' is no hub"), "{no_hub:?}");
    // A hub names the peers that it has.
    let unknown = run(admin, &["hub", "remove", "attic", "kitchn"]);
    assert_eq!(unknown.code(), "NOT_FOUND", "{unknown:?}");
    let said = message(&unknown);
    assert!(
        said.starts_with("'kitchn': ") && said.ends_with("; enrolled are kitchen"),
        "{unknown:?}"
    );
    for words in [
        &["call", "attic", "node/ifno"][..],
        &["ops", "show", "attic", "node/ifno"],
        &["ops", "show", "kitchen@attic", "node/ifno"],
    ] {
        let mistyped = run(admin, words);
        assert_eq!(mistyped.code(), "NOT_FOUND", "{words:?}: {mistyped:?}");
        assert!(
            message(&mistyped).contains("did you mean 'node/info'?"),
            "{words:?}: {mistyped:?}"
        );
    }
    run(admin, &["hub", "remove", "attic", "kitchen"]).json();
    peer(&fleet.bench, &fleet.hub, &fleet.id, "removed");
    let said = answers(&fleet.id, &["status"]);
    assert!(said.contains("an administrator removed it"), "{said}");
}

/// A caller that may not see the peers of a hub learns nothing about them, and gets no advice about
/// an operation.
#[test]
fn a_caller_that_may_not_see_the_peers_gets_the_hub_s_answer() {
    let fleet = HubAndWorker::start();
    let laptop = fleet.bench.user("laptop");
    let join = invite(&fleet.bench, &fleet.hub, &["--role", "user"]);
    run(&laptop, &["enroll", &join, "--hub", "attic"]).json();
    // The hub has had a name since it was joined.
    assert_eq!(
        identity(&laptop, &["status", "kitchen@attic"]),
        json!(fleet.worker.key())
    );
    let unknown = run(&laptop, &["status", "kitchn@attic"]);
    assert_eq!((unknown.status, unknown.code().as_str()), (1, "NOT_FOUND"));
    let said = message(&unknown);
    assert!(
        said.contains("'kitchn'") && !said.contains("kitchen"),
        "{said}"
    );
}

#[test]
fn names_that_several_processes_give_at_once_are_all_kept() {
    let bench = TestBench::new();
    let admin = bench.admin();
    let at = format!("{}@192.0.2.7:443", admin.identity());
    let mut children = Vec::new();
    for n in 0..8 {
        let name = format!("edge-{n}");
        let mut command = admin.command(&["node", "add", &name, &at]);
        command.stdout(Stdio::null());
        children.push(command.spawn().expect("the binary can be started"));
    }
    for mut child in children {
        let ended = child.wait().expect("it is our child");
        assert!(ended.success(), "{ended}");
    }
    let listed = node_verb(admin, &["list"]);
    assert_eq!(
        listed["nodes"].as_array().map(Vec::len),
        Some(8),
        "{listed}"
    );
}

/// A hub that was joined with an older version of the program.
#[test]
fn hubs_of_an_earlier_version_are_nodes() {
    let bench = TestBench::new();
    let node = bench.host();
    let admin = bench.admin();
    admin.identity();
    let entry = json!({ "target": node.target(), "peer_id": "p1", "name": "ada" });
    let hubs = json!({ "hubs": { "attic": entry } });
    let file = admin.state().join("hubs.json");
    std::fs::write(&file, hubs.to_string()).expect("the folder is ours");
    assert_eq!(run(admin, &["status", "attic"]).status, 0);
    node_verb(admin, &["use", "attic"]);
    let shown = node_verb(admin, &["show"]);
    assert_eq!(
        (&shown["name"], &shown["own_name"], &shown["target"]),
        (&json!("attic"), &json!("ada"), &json!(node.target()))
    );
    node_verb(admin, &["remove", "attic"]);
    assert_eq!(node_verb(admin, &["list"])["nodes"], json!([]));
    assert!(!file.exists(), "it would bring the name back");
}

#[test]
fn a_mistyped_name_is_answered_with_those_that_are_known() {
    let bench = TestBench::new();
    let admin = bench.admin();
    let at = format!("{}@127.0.0.1:1", admin.identity());
    node_verb(admin, &["add", "attic", &at]);
    // It may be a host of the local network: only the dial shows that no such host exists.
    let mistyped = run(admin, &["status", "atic", "--timeout", "5s"]);
    assert_ne!(mistyped.status, 0, "{mistyped:?}");
    let said = message(&mistyped);
    assert!(
        said.starts_with(
            "'atic' was taken for a NODE: no node is called 'atic' here; did you mean 'attic'? Known are attic; "
        ),
        "{said}"
    );
    let verb = message(&run(admin, &["ops", "lst", "--timeout", "5s"]));
    assert!(verb.starts_with("'lst' was taken for a NODE: "), "{verb}");
    assert!(verb.contains("did you mean 'alknet ops list'?"), "{verb}");
    // Nothing is dialled, and no public certificate is spoken of.
    let pinned = run(admin, &["pin", "atic"]);
    assert_eq!((pinned.status, pinned.code().as_str()), (2, "USAGE"));
    let said = message(&pinned);
    assert!(
        said.starts_with("no node is called 'atic' here; did you mean 'attic'?"),
        "{said}"
    );
    // Nothing is dialled.
    let halves = run(admin, &["call", "node", "info"]);
    assert_eq!((halves.status, halves.code().as_str()), (2, "USAGE"));
    let said = message(&halves);
    assert!(said.contains("'alknet call node/info'"), "{said}");
}

#[test]
fn a_wrong_command_line_is_one_line_of_json() {
    for (words, said) in [
        (&["status", "--frobnicate", "--json"][..], "'--frobnicate'"),
        (&["--json", "frobnicate"], "'frobnicate'"),
        (&["hub", "--json"], "a verb is missing"),
        (&["gpu", "frob", "--json"], "'gpu frob'"),
        (&["node", "add", "--json"], "<NAME>"),
        (&["hub", "invite", "--ttl", "1w", "--json"], "'1w'"),
        (&["call", "--json"], "OPERATION is missing"),
    ] {
        let output = Command::new(binary()).args(words).output();
        let output = output.expect("the binary runs");
        assert_eq!(output.status.code(), Some(2), "{words:?}");
        assert!(output.stdout.is_empty(), "{words:?}");
        let text = String::from_utf8(output.stderr).expect("it is text");
        assert_eq!(text.lines().count(), 1, "{words:?}: {text}");
        let error: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(error["error"]["code"], "USAGE", "{words:?}");
        let message = error["error"]["message"].as_str().unwrap_or_default();
        assert!(message.contains(said), "{words:?}: {message}");
    }
    // The text output is unchanged.
    let output = Command::new(binary()).arg("frobnicate").output();
    let text = String::from_utf8(output.expect("the binary runs").stderr).expect("it is text");
    assert!(text.contains("Usage: alknet"), "{text}");
}

/// PID 1 starts its child this way, and no user does.
#[test]
fn the_noun_alone_is_the_child_of_pid_1() {
    let output = Command::new(binary())
        .arg("node")
        .stdin(Stdio::null())
        .output();
    let output = output.expect("the binary runs");
    let text = String::from_utf8(output.stderr).expect("it is text");
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(!text.contains("Usage"), "{text}");
}

#[test]
fn a_machine_is_not_switched_off_unasked() {
    let bench = TestBench::new();
    let node = bench.host();
    node_verb(
        bench.admin(),
        &["add", "edge-1", node.target(), "--default"],
    );
    for verb in ["reboot", "poweroff"] {
        let refused = run(bench.admin(), &[verb]);
        assert_eq!(
            (refused.status, refused.code().as_str()),
            (2, "USAGE"),
            "{verb}"
        );
        assert!(message(&refused).contains("--yes"), "{refused:?}");
        // A host's node is switched by its owner.
        let asked = run(bench.admin(), &[verb, "--yes"]);
        assert_eq!(
            (asked.status, asked.code().as_str()),
            (3, "UNAVAILABLE"),
            "{verb}"
        );
        assert!(message(&asked).contains("ordinary host"), "{asked:?}");
    }
}

#[test]
fn the_log_is_read_from_a_time_on() {
    let bench = TestBench::new();
    let node = bench.host();
    let admin = bench.admin();
    let records = |more: &[&str]| {
        let answer = run(admin, &[&["logs", node.target()][..], more].concat());
        assert_eq!(answer.status, 0, "{answer:?}");
        answer.output.lines().count()
    };
    assert_eq!(records(&["--last", "2"]), 2);
    assert!(records(&["--since", "1h"]) > 2, "the node has just started");
    assert_eq!(records(&["--since", "2999-01-01T00:00:00Z"]), 0);
    // Of the last two records and of all.
    node.call(
        "runtime/eval",
        &json!({ "source": "console.error('of a script')" }),
    );
    assert_eq!(records(&["--grep", "of a script"]), 1);
    // The node's record of what a script says is of the level info, whatever level the script gives it.
    assert_eq!(records(&["--grep", "of a script", "--level", "info"]), 1);
    assert_eq!(records(&["--grep", "of a script", "--level", "error"]), 0);
    assert_eq!(records(&["--grep", "of no script"]), 0);
    // Each command adds records of its own connection.
    let info = records(&["--level", "info"]);
    let all = records(&["--last", "1000"]);
    assert!(
        records(&["--level", "error"]) < info && info <= all,
        "{info} of {all}"
    );
    let mut follow = admin.command(&["logs", node.target(), "-f", "--last", "1"]);
    let mut child = follow
        .stdout(Stdio::piped())
        .spawn()
        .expect("the binary can be started");
    let mut lines = std::io::BufReader::new(child.stdout.take().expect("it was asked for"));
    let mut first = String::new();
    std::io::BufRead::read_line(&mut lines, &mut first).expect("a record");
    let record: Value = serde_json::from_str(&first).expect("JSON");
    assert!(record["message"].is_string(), "{first}");
    assert_eq!(
        child.try_wait().expect("it is our child"),
        None,
        "it goes on"
    );
    child.kill().expect("it runs");
    child.wait().expect("it is our child");
}

/// The hub answers an administrator by the name that its configuration gives to the key.
#[test]
fn a_name_for_a_key_of_the_hubs_configuration_is_refused() {
    let bench = TestBench::new();
    let hub = EnrolmentNode::start(&bench, "hub", &hub_config(), "0");
    let join = invite(&bench, &hub, &["--role", "user"]);
    let enroll = |more: &[&str]| run(bench.admin(), &[&["enroll", &join][..], more].concat());
    let refused = enroll(&["--name", "ada"]);
    assert_eq!((refused.status, refused.code().as_str()), (2, "USAGE"));
    assert!(
        refused.errors.contains("calls it 'admin'") && refused.errors.contains("--name ada"),
        "{refused:?}"
    );
    let nodes = run(bench.admin(), &["node", "list"]).json();
    assert_eq!(nodes["nodes"], json!([]), "{nodes}");
    let enrolled = enroll(&["--hub", "attic"]).json();
    assert_eq!(
        (&enrolled["name"], &enrolled["hub"]),
        (&json!("admin"), &json!("attic"))
    );
}
