//! RFC 9114 and RFC 9204, rule by rule, with aioquic: how a server treats clients that violate
//! them.

use std::io::{BufRead, BufReader, Lines};
use std::process::{Child, ChildStdout};
use std::time::Duration;

use alknet_core::Carriage;
use alknet_endpoint::EndpointDialer;
use alknet_test_support::{deadline, limited};
use alknet_tests::tools::{client, start_with_json, variable};
use alknet_tests::{TestBench, WebNode};
use alknet_tls::NodeKey;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::task::block_in_place;
use tokio::time::timeout;

use super::{Faults, GROWTH_BYTES, SUITE, judge, resident};

const KNOWN: &str = include_str!("http3.txt");

/// With fewer rules, some are missing.
const RULES: usize = 90;

/// How long a write may wait before the test counts it as hung.
fn hung() -> Duration {
    deadline(Duration::from_secs(30))
}

/// "Nothing is wrong" (RFC 9114 section 8.1).
const NO_ERROR: u64 = 0x100;

/// Python, which prints a line for each observation.
struct PythonHttp3 {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl PythonHttp3 {
    fn start(web: &WebNode, what: &str, token: &str) -> Self {
        let address = web.address();
        let mut python = limited(SUITE, "python3");
        python
            .arg(client("http3_rules.py"))
            .args([address.ip().to_string(), address.port().to_string()])
            .arg(what)
            .env("PYTHONPATH", variable("ALKNET_TEST_PYTHONPATH"))
            .env("PYTHONDONTWRITEBYTECODE", "1");
        let mut child = start_with_json(&mut python, &json!({ "token": token }));
        let output = child.stdout.take().expect("it is piped");
        let lines = BufReader::new(output).lines();
        Self { child, lines }
    }

    fn line(&mut self) -> Option<String> {
        self.lines.next()?.ok()
    }

    fn end(mut self) {
        let status = self.child.wait().expect("it is our child");
        assert!(status.success(), "{status}");
    }
}

fn read(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
}

/// Rules that were violated.
fn broken(web: &WebNode) -> Faults {
    let mut python = PythonHttp3::start(web, "rules", &web.reader);
    let mut faults = Faults::new();
    let mut rules = 0;
    while let Some(line) = python.line() {
        let told = read(&line);
        let member = |name: &str| told[name].as_str().expect("text").to_owned();
        rules += 1;
        if told["kept"] != true {
            let seen = format!("{} instead of {}", member("got"), member("wanted"));
            faults.insert(member("rule"), seen);
        }
    }
    python.end();
    assert!(rules >= RULES, "{rules} rules");
    faults
}

/// A node that ends says which requests it has started. They include every request that it serves,
/// because a client would send any other one again elsewhere.
fn drained(web: &WebNode, faults: &mut Faults) {
    let mut python = PythonHttp3::start(web, "drain", &web.admin);
    assert_eq!(python.line().as_deref(), Some("drain"));
    let pid = i32::try_from(web.node.pid()).expect("a process id");
    kill(Pid::from_raw(pid), Signal::SIGTERM).expect("the node is ours");
    let told = read(&python.line().expect("how it ended"));
    python.end();
    assert_eq!(told["closed"], NO_ERROR, "{told}");
    let goaways = told["goaway"].as_array().expect("a list");
    assert!(!goaways.is_empty(), "{told}");
    let open = told["open"].as_u64();
    if goaways.iter().any(|id| id.as_u64() <= open) {
        let name = "5.2 GOAWAY is above every request that is served";
        faults.insert(name.to_owned(), told.to_string());
    }
}

#[test]
fn the_rules_of_http3_are_kept() {
    let bench = TestBench::new();
    let web = WebNode::start(&bench, "");
    let mut faults = broken(&web);
    drained(&web, &mut faults);
    judge(KNOWN, &faults);
}

/// A frame that announces more bytes than any client may send is not buffered until it is complete,
/// whether or not the client is known.
#[tokio::test(flavor = "multi_thread")]
async fn frames_without_end_cost_little() {
    /// A type that must be ignored, with a length of 2^40.
    const UNKNOWN: [u8; 9] = [0x21, 0xc0, 0, 1, 0, 0, 0, 0, 0];
    const HEADERS: [u8; 9] = [0x01, 0xc0, 0, 1, 0, 0, 0, 0, 0];
    /// A control stream with SETTINGS.
    const CONTROL: [u8; 3] = [0x00, 0x04, 0x00];
    const SENT_BYTES: usize = 256 << 20;

    let bench = TestBench::new();
    let web = WebNode::start(&bench, "");
    let before = resident(&web);
    let key = NodeKey::generate().expect("the system has entropy");
    let dialer = EndpointDialer::new(Some(key));
    for (on_control, frame) in [(true, UNKNOWN), (false, UNKNOWN), (false, HEADERS)] {
        let dialled = dialer.dial_over(Carriage::Quic, &web.target(), b"h3").await;
        let connection = dialled.expect("every client may connect");
        let mut control = connection.open_uni().await.expect("a stream");
        let mut said = control.write_all(&CONTROL).await.is_ok();
        let mut request = None;
        if !on_control {
            request = Some(connection.open_bi().await.expect("a stream"));
        }
        let stream = match &mut request {
            Some((send, _)) => send,
            None => &mut control,
        };
        said &= stream.write_all(&frame).await.is_ok();
        let piece = vec![0; 1 << 20];
        for _ in 0..SENT_BYTES / piece.len() {
            // It may be ended, or not read further.
            said = said && matches!(timeout(hung(), stream.write_all(&piece)).await, Ok(Ok(())));
        }
        let now = resident(&web);
        assert!(now < before + GROWTH_BYTES, "{before} became {now}");
        let told = block_in_place(|| web.curl("/healthz", &["--http2"]));
        assert_eq!(told.status, 200);
    }
}
