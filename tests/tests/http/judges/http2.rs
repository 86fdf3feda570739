//! RFC 9113, rule by rule, with httpwg, which tests the same as h2spec.

use std::time::Duration;

use alknet_core::{Carriage, Connection};
use alknet_endpoint::{EndpointDialer, Target};
use alknet_test_support::{deadline, limited, skip};
use alknet_tests::tools::variable;
use alknet_tests::{TestBench, WebNode};
use alknet_tls::NodeKey;
use tokio::io::{AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::block_in_place;

use super::{Faults, SUITE, judge, printed};

const KNOWN: &str = include_str!("http2.txt");

/// With fewer cases, some are missing.
const CASES: usize = 90;

/// The suite does not support TLS. It connects to this listener, which forwards each connection to
/// the node over TLS.
async fn carry_all(listener: TcpListener, target: Target) {
    let key = NodeKey::generate().expect("the system has entropy");
    let dialer = EndpointDialer::new(Some(key));
    while let Ok((plain, _)) = listener.accept().await {
        let dialled = dialer.dial_over(Carriage::Tcp, &target, b"h2").await;
        tokio::spawn(carry(plain, dialled.expect("every client may connect")));
    }
}

async fn carry(plain: TcpStream, connection: Connection) {
    let streams = connection.accept_bi().await;
    let (mut send, mut recv) = streams.expect("a connection over TCP has one stream");
    let (mut from, mut to) = plain.into_split();
    let there = async {
        // Either side may end in any way, and the other should see it as an end.
        let _ = copy(&mut from, &mut send).await;
        let _ = send.shutdown().await;
    };
    let back = async {
        let _ = copy(&mut recv, &mut to).await;
        let _ = to.shutdown().await;
    };
    tokio::join!(there, back);
}

/// A node that answers every request for `/`, without a rate limit.
fn with_a_page(bench: &TestBench) -> WebNode {
    let folder = bench.path().join("www");
    std::fs::create_dir(&folder).expect("the folder is ours");
    std::fs::write(folder.join("index.html"), "<!doctype html>\n").expect("room");
    let config = format!(
        "[http]\nsite = \"{}\"\ndecoy = \"site\"\nrequests_per_second = 10000\n\
         requests_burst = 10000\nunknown_peer_requests_per_second = 10000\n",
        folder.display()
    );
    WebNode::start(bench, &config)
}

/// Failed cases with their messages. A case that panics does not report a failure.
fn failed(said: &str) -> Faults {
    let mut faults = Faults::new();
    let mut all = 0;
    for case in said.split("Running test: ").skip(1) {
        all += 1;
        let (name, rest) = case.split_once('\n').unwrap_or((case, ""));
        let passed = format!("Test passed: {name}");
        if !rest.contains(&passed) {
            let lines = rest.lines().map(str::trim);
            let seen: Vec<_> = lines.filter(|line| !line.is_empty()).take(6).collect();
            faults.insert(name.to_owned(), seen.join("; "));
        }
    }
    assert!(all >= CASES, "{all} cases: {said}");
    faults
}

/// The suite's message if it may not use io_uring, which it requires. Containers are often not
/// allowed to.
fn denied(said: &str) -> Option<&str> {
    let errors = ["Operation not permitted", "Function not implemented"];
    let is_error = |line: &&str| errors.iter().any(|error| line.contains(error));
    let began = said.contains("Running test: ");
    said.lines().find(is_error).filter(|_| !began)
}

fn milliseconds(seconds: u64) -> String {
    let limit = deadline(Duration::from_secs(seconds));
    limit.as_millis().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rules_of_http2_are_kept() {
    let bench = TestBench::new();
    let web = with_a_page(&bench);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("it is bound");
    let relay = tokio::spawn(carry_all(listener, web.target()));
    let said = block_in_place(|| {
        printed(
            limited(SUITE, variable("ALKNET_TEST_HTTPWG"))
                .args(["--address", &address.to_string(), "--verbose"])
                // Waits equally long for what never comes.
                .args(["--frame-timeout", &milliseconds(2)])
                .args(["--connect-timeout", &milliseconds(10)])
                .env("SEQUENTIAL", "1")
                .env("RUST_LOG", "off")
                .env("NO_COLOR", "1"),
        )
    });
    assert!(!relay.is_finished(), "{said}");
    relay.abort();
    if let Some(why) = denied(&said) {
        skip!("io_uring", "{why}");
    }
    judge(KNOWN, &failed(&said));
    let told = block_in_place(|| web.curl("/healthz", &["--http2"]));
    assert_eq!(told.status, 200);
}
