//! Requests that fill the log.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Command;
use std::thread;

use alknet_core::PeerKey;
use alknet_endpoint::Target;
use alknet_test_support::skip;
use alknet_tests::{CliRunner, RawTcpConnection, TestBench, WebNode, serve};
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};

/// Requests of one client without an identity. A line of each is longer than half a KiB, and the log keeps 1 MiB.
const REQUESTS: usize = 3_000;

/// Lines that the log takes of one network, of one site and of all clients without an identity in a minute, and those
/// that only the first request of a site may take (docs/observability.md).
const LINES_OF_NETWORK: usize = 120;
const LINES_OF_SITE: usize = 240;
const LINES_OF_ALL: usize = 600;
const LINES_OF_FIRSTS: usize = 100;
/// The same of scripts of one owner that ended early.
const ENDS_OF_OWNER: usize = 30;
/// A new minute may begin during a test.
const MINUTES: usize = 2;

/// Lets one client do much at once, because something else is attacked here.
const FAST: &str = "[http]\nrequests_per_second = 10000\nrequests_burst = 10000\n";

/// Scripts that end early: more than two minutes' records of one owner, eight in each batch.
const ENDED_BATCHES: usize = 9;
const ENDED_AT_ONCE: usize = 8;
/// Limit in bytes for the record of a script that called 64 names of 128 bytes.
const ENDED_BYTES_MAX: usize = 512;

/// Batches of tokens that are made and revoked, and tokens in each. Their records are longer than the log.
const TOKEN_BATCHES: usize = 60;
const TOKENS_AT_ONCE: usize = 64;

/// Documents that the attacker applies. The records of each kind that they cause take more than half of the log, so that
/// records of both kinds give way.
const DOCUMENTS: usize = 280;
/// Peers in each document. The log names so many of those that a document adds, and gives so many warnings.
const PEERS_IN_DOCUMENT: u8 = 20;

/// One connection of HTTP/1.1, with one request after the other.
struct PlainConnection(RawTcpConnection);

impl PlainConnection {
    fn open(target: &Target, from: impl Into<IpAddr>) -> Self {
        let opened = RawTcpConnection::connect(target, from, None, b"http/1.1");
        Self(opened.expect("there is a place"))
    }

    /// The status and the body of the answer to a request.
    fn ask(&mut self, request: &str) -> (u16, Vec<u8>) {
        self.0.say(request.as_bytes()).expect("the node reads");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.extend(self.0.hear(1).expect("the node answers"));
        }
        let head = String::from_utf8_lossy(&head).to_lowercase();
        let status = head.split(' ').nth(1).and_then(|it| it.parse().ok());
        let mut lines = head.lines();
        let len = lines.find_map(|line| line.strip_prefix("content-length: "));
        let len = len.map_or(0, |len| len.trim().parse().expect("a number"));
        let body = self.0.hear(len).expect("the whole answer");
        (status.expect("a status"), body)
    }

    fn get(&mut self, path: &str) -> u16 {
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        self.ask(&request).0
    }

    fn post(&mut self, token: &str, path: &str, body: &Value) -> Value {
        let body = body.to_string();
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let (status, answer) = self.ask(&request);
        assert_eq!(status, 200, "{}", String::from_utf8_lossy(&answer));
        serde_json::from_slice(&answer).expect("JSON")
    }

    /// The outputs of a batch.
    fn batch(&mut self, token: &str, operation: &str, inputs: &[Value]) -> Vec<Value> {
        let calls = inputs.iter().enumerate();
        let calls = calls.map(
            |(n, input)| json!({ "id": n.to_string(), "operation": operation, "input": input }),
        );
        let calls: Vec<Value> = calls.collect();
        let answer = self.post(
            token,
            "/batch",
            &json!({ "calls": calls, "mode": "parallel" }),
        );
        answer["results"].as_array().expect("a list").clone()
    }
}

fn records(admin: &CliRunner, target: &str) -> Vec<Value> {
    let past = json!({ "last": 100_000 });
    admin.subscribe(target, "node/log", &past).collect()
}

/// The messages of the log with this text.
fn with<'a>(records: &'a [Value], text: &str) -> Vec<&'a str> {
    let texts = records.iter().filter_map(|it| it["message"].as_str());
    texts.filter(|it| it.contains(text)).collect()
}

/// A token with these scopes.
fn token(web: &WebNode, scopes: &[&str]) -> String {
    let made = web.node.call("token/make", &json!({ "scopes": scopes }));
    made["token"].as_str().expect("a token").to_owned()
}

/// The node refuses other names before it knows the client.
#[test]
fn requests_for_other_names_leave_the_log_to_others() {
    let bench = TestBench::new();
    let web = WebNode::start(&bench, "");
    let source = "console.error('was here before')";
    web.node.call("runtime/eval", &json!({ "source": source }));
    let path = format!("/{}", "x".repeat(250));
    let paths = vec![&*path; REQUESTS];
    let others = "http2\nheader = \"Host: x\"\n";
    let statuses = web.at_once(&bench, &paths, 32, others).statuses();
    let misdirected = statuses.iter().filter(|status| **status == 421).count();
    let limited = statuses.iter().filter(|status| **status == 429).count();
    assert_eq!(misdirected + limited, REQUESTS);
    assert!(
        misdirected > 0 && limited > 0,
        "{misdirected} and {limited}"
    );
    let records = records(bench.admin(), web.node.target());
    assert_eq!(with(&records, "was here before").len(), 1);
    let lines = with(&records, &path).len();
    assert!((1..=MINUTES * LINES_OF_NETWORK).contains(&lines), "{lines}");
}

/// Each of the scripts calls long names that no operation has.
#[test]
fn scripts_that_end_early_leave_the_log_to_others() {
    let bench = TestBench::new();
    let web = WebNode::start(&bench, FAST);
    let source = "console.error('was here before')";
    web.node.call("runtime/eval", &json!({ "source": source }));
    let attacker = token(&web, &["runtime:debug"]);
    let source = "for (let n = 0; n < 64; n++)
             await ops.call(`nowhere/${'x'.repeat(117)}-${n}`, 1).catch(() => {});
         for (;;);";
    let script = json!({ "source": source, "limits": { "cpu_ms": 50 } });
    let mut client = PlainConnection::open(&web.target(), Ipv4Addr::LOCALHOST);
    for _ in 0..ENDED_BATCHES {
        let ended = client.batch(
            &attacker,
            "/runtime/eval",
            &vec![script.clone(); ENDED_AT_ONCE],
        );
        assert!(
            ended.iter().all(|one| one["error"].is_object()),
            "{ended:?}"
        );
    }
    let records = records(bench.admin(), web.node.target());
    assert_eq!(with(&records, "was here before").len(), 1);
    let ends = with(&records, "a script session is over");
    assert!(
        (1..=MINUTES * ENDS_OF_OWNER).contains(&ends.len()),
        "{}",
        ends.len()
    );
    assert!(ends.iter().all(|it| it.len() < ENDED_BYTES_MAX), "{ends:?}");
    assert!(ends.iter().all(|it| it.contains("owner=")), "{ends:?}");
}

/// The attacker makes a token, with it many others, and so on.
#[test]
fn tokens_without_an_end_leave_the_records_of_others() {
    let bench = TestBench::new();
    let web = WebNode::start(&bench, FAST);
    let before = with(
        &records(bench.admin(), web.node.target()),
        "token.make by=admin ",
    )
    .len();
    assert_eq!(before, 1, "that of the administrator's token");
    let attacker = token(&web, &["admin"]);
    let mut client = PlainConnection::open(&web.target(), Ipv4Addr::LOCALHOST);
    let scopes = json!({ "scopes": ["admin"] });
    let of = |made: &Value, member: &str| {
        made["output"][member]
            .as_str()
            .expect("it was made")
            .to_owned()
    };
    for _ in 0..TOKEN_BATCHES {
        let next = client.batch(&attacker, "/token/make", std::slice::from_ref(&scopes));
        let by = of(&next[0], "token");
        let made = client.batch(&by, "/token/make", &vec![scopes.clone(); TOKENS_AT_ONCE]);
        let made: Vec<Value> = made
            .iter()
            .map(|it| json!({ "key_id": of(it, "key_id") }))
            .collect();
        client.batch(&by, "/token/revoke", &made);
        let itself = json!({ "key_id": of(&next[0], "key_id") });
        client.batch(&attacker, "/token/revoke", &[itself]);
    }
    let records = records(bench.admin(), web.node.target());
    let made = with(&records, "token.make by=");
    assert!(
        made.len() < TOKEN_BATCHES * TOKENS_AT_ONCE,
        "some gave way: {}",
        made.len()
    );
    // Both tokens of the administrator.
    assert_eq!(with(&records, "token.make by=admin ").len(), 2);
}

/// A document with peers of this name. Nothing asks for their scope.
fn document(name: &str, peers: u8) -> String {
    let peer = |n: u8| {
        let key = PeerKey::Ed25519([n; 32]);
        let (id, scope) = (
            format!("{name}-{n}-{}", "x".repeat(40)),
            format!("{name}:{}", "y".repeat(200)),
        );
        format!("[[peers]]\npeer_id = \"{id}\"\nkeys = [\"{key}\"]\nscopes = [\"{scope}\"]\n")
    };
    (1..=peers).map(peer).collect()
}

/// Both the changes and the warnings about them.
#[test]
fn configurations_without_an_end_leave_the_records_of_others() {
    let bench = TestBench::new();
    let web = WebNode::start(&bench, FAST);
    let attacker = token(&web, &["admin"]);
    let honest = json!({ "document": format!("{FAST}{}", document("honest", 1)) });
    web.node.call("config/apply", &honest);
    let mut client = PlainConnection::open(&web.target(), Ipv4Addr::LOCALHOST);
    for n in 0..DOCUMENTS {
        let name = ["odd", "even"][n % 2];
        let document = format!("{FAST}{}", document(name, PEERS_IN_DOCUMENT));
        let call = json!({ "operation": "/config/apply", "input": { "document": document } });
        let answer = client.post(&attacker, "/call", &call);
        assert_eq!(answer["output"]["changed"], true, "{answer}");
    }
    let records = records(bench.admin(), web.node.target());
    let applied = with(&records, "config.apply");
    assert!(
        applied.len() < DOCUMENTS,
        "some gave way: {}",
        applied.len()
    );
    let warned = with(&records, "configuration: ");
    assert!(warned.len() < DOCUMENTS * usize::from(PEERS_IN_DOCUMENT));
    for all in [applied, warned] {
        let of_admin = all
            .iter()
            .filter(|it| it.contains("by=admin") && it.contains("honest-1-"));
        assert_eq!(of_admin.count(), 1, "{:?}", all.first());
    }
}

/// The address of the node, in a /48 of its own.
const NODE: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 1);
/// A client in another /48 than the attacker's.
const OTHER: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);
/// All addresses of clients.
const CLIENTS: &str = "2001:db8::/32";

/// An address in one of the 256 networks of the attacker's /48.
fn of_site(network: usize) -> Ipv6Addr {
    let network = u16::try_from(network).expect("a byte");
    [0x2001, 0xdb8, 0, network << 8, 0, 0, 0, 1].into()
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output();
    let output = output.expect("the set-up installs iproute2");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {error}");
}

/// In a network namespace of this thread, which ends with it, as do those of its programs.
fn in_a_network(attack: fn()) {
    let alone = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("root may");
        ip("link set lo up");
        ip(&format!("-6 addr add {NODE}/128 dev lo nodad"));
        ip(&format!("-6 route add local {CLIENTS} dev lo"));
        attack();
    });
    alone
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

/// The first networks of the site make as many requests as the log takes of each, and the others one each: more than it
/// takes of all clients.
fn requests_from_a_whole_site() {
    let bench = TestBench::new();
    let node = CliRunner::new(bench.path().join("node"));
    let config = bench.path().join("node.toml");
    let limits = "[limits]\nhandshake_burst = 10000\nhandshakes_per_second = 10000\n";
    std::fs::write(&config, limits).expect("the folder is ours");
    let mut command = node.command(&["serve", "--port", "0", "--listen", &NODE.to_string()]);
    command
        .args(["--admin", &bench.admin().identity(), "--config"])
        .arg(&config);
    let (child, said) = serve(command);
    let node = EndedChild(child);
    let text = said["target"].as_str().expect("a target");
    let target: Target = text.parse().expect("the node's own target");
    let many = (LINES_OF_ALL - LINES_OF_FIRSTS).div_ceil(LINES_OF_NETWORK);
    for network in 0..many + LINES_OF_FIRSTS {
        let asked = if network < many { LINES_OF_NETWORK } else { 1 };
        let mut client = PlainConnection::open(&target, of_site(network));
        for _ in 0..asked {
            let status = client.get("/of-the-site");
            assert!([401, 404, 429].contains(&status), "{status}");
        }
    }
    PlainConnection::open(&target, OTHER).get("/of-another");
    let records = records(bench.admin(), text);
    drop(node);
    let lines = with(&records, "path=/of-the-site ").len();
    assert!((1..=MINUTES * LINES_OF_SITE).contains(&lines), "{lines}");
    assert_eq!(with(&records, "path=/of-another ").len(), 1);
}

/// A node that ends with its test.
struct EndedChild(std::process::Child);

impl Drop for EndedChild {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn requests_from_a_whole_site_leave_lines_to_others() {
    if !nix::unistd::geteuid().is_root() {
        skip!("root", "no network namespace can be made");
    }
    in_a_network(requests_from_a_whole_site);
}
