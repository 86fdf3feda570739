//! A node that tells unknown peers nothing, and one that answers only to its own names.

use std::process::Command;

use alknet_tests::{CurlResponse, TestBench, WebNode, binary};
use serde_json::Value;

const PATHS: [&str; 10] = [
    "/call",
    "/batch",
    "/subscribe",
    "/search",
    "/schema?operation=/node/info",
    "/openapi.json",
    "/metrics",
    "/mcp",
    "/tensor/x",
    "/nonsense",
];

/// Paths at which unknown peers may find something on other nodes.
const MORE_PATHS: [&str; 5] = [
    "/",
    "/healthz",
    "/status/enter/x",
    "/subscribe/t/x",
    "/alknet/call",
];

/// Everything that is visible from outside, even the order of headers.
fn face(told: &CurlResponse) -> (u16, Vec<(String, String)>, Vec<u8>) {
    let mut headers = told.headers.clone();
    // The date changes.
    headers.retain(|(name, _)| name != "date");
    (told.status, headers, told.body.clone())
}

#[test]
fn unknown_clients_see_one_and_the_same_nothing() {
    let bench = TestBench::new();
    let web = WebNode::start(&bench, "[http]\nstealth = true\nhealthz = false\n");
    for version in ["--http1.1", "--http2"] {
        let nothing = face(&web.curl("/nonsense", &[version]));
        assert_eq!(nothing.0, 404);
        let asks: [&[&str]; 5] = [
            &[],
            &["--header", "Last-Event-ID: 1"],
            &["--json", r#"{"operation":"/node/info"}"#],
            &["--request", "DELETE"],
            &[
                "--request",
                "OPTIONS",
                "--header",
                "Origin: https://a.example",
                "--header",
                "Access-Control-Request-Method: POST",
            ],
        ];
        for path in PATHS.iter().chain(&MORE_PATHS) {
            for ask in asks {
                let told = web.curl(path, &[&[version], ask].concat());
                assert_eq!(face(&told), nothing, "{version} {path} {ask:?}");
            }
        }
        // Only a few, because a client that guesses is blocked.
        for path in ["/call", "/mcp", "/nonsense", "/subscribe/t/x"] {
            let told = web.curl_as(&web.expired, path, &[version]);
            assert_eq!(face(&told), nothing, "{version} {path} with a wrong token");
        }
    }
    assert_eq!(web.curl_as(&web.reader, "/search", &[]).status, 200);
    let told = web.post(&web.admin, "/call", r#"{"operation":"/node/info"}"#);
    assert_eq!(told.status, 200);
    // Input that is too large is refused before the node reads it, without this program's own
    // texts.
    let long = "a".repeat(9000);
    let wide = ["--header", "Accept: */*"].repeat(101);
    for (path, more, status) in [
        (format!("/call?{long}"), &[][..], 414),
        (format!("/nonsense?{long}"), &[][..], 414),
        ("/call".to_owned(), wide.as_slice(), 431),
        ("/nonsense".to_owned(), wide.as_slice(), 431),
    ] {
        let told = web.curl(&path, more);
        assert_eq!(told.status, status);
        let kind = told.header("content-type");
        assert_eq!(kind, Some("text/html; charset=utf-8"), "{told:?}");
    }
}

#[test]
fn every_client_gets_the_same_alt_svc() {
    let bench = TestBench::new();
    let config = "[http]\nstealth = true\nnames = [\"hub.invalid\"]\n";
    let web = WebNode::start(&bench, config);
    let port = web.address().port();
    let here = format!("127.0.0.1:{port}");
    let served = format!("h3=\":{port}\"; ma=86400");
    for (host, services) in [
        (here.as_str(), served.as_str()),
        ("localhost", "h3=\":443\"; ma=86400"),
        // The node has not seen itself there, and never will.
        ("hub.invalid", "clear"),
        ("192.0.2.7", "clear"),
    ] {
        let host = format!("Host: {host}");
        let host = ["--header", host.as_str()];
        let unknown_peer = web.curl("/search", &host);
        let known = web.curl_as(&web.reader, "/search", &host);
        assert_eq!((unknown_peer.status, known.status), (404, 200));
        for told in [unknown_peer, known] {
            assert_eq!(told.header("alt-svc"), Some(services), "{host:?}");
            assert_eq!(told.header("strict-transport-security"), None);
        }
    }
}

#[test]
fn a_decoy_may_send_elsewhere() {
    let bench = TestBench::new();
    let config = "[http]\ndecoy = \"redirect\"\nredirect = \"https://example.org/\"\n";
    let web = WebNode::start(&bench, config);
    let told = web.curl("/nonsense", &[]);
    assert_eq!(
        (told.status, told.header("location")),
        (302, Some("https://example.org/"))
    );
}

#[test]
fn only_names_of_the_node_are_answered() {
    let bench = TestBench::new();
    let web = WebNode::start(&bench, "[http]\nnames = [\"hub.example.org\"]\n");
    let port = web.address().port();
    let host = |name: &str| {
        web.curl("/healthz", &["--header", &format!("Host: {name}")])
            .status
    };
    assert_eq!(host("hub.example.org"), 200);
    assert_eq!(host(&format!("HUB.example.org:{port}")), 200);
    assert_eq!(host("localhost"), 200);
    for name in [
        "evil.example",
        "hub.example.org.evil.example",
        "user@hub.example.org",
    ] {
        let status = host(name);
        assert!(matches!(status, 400 | 421), "{name}: {status}");
    }
}

/// A node that tells unknown peers nothing cannot show them a description. Nor can it answer
/// browsers that ask without a token whether a page may call.
#[test]
fn what_contradicts_stealth_is_refused() {
    let bench = TestBench::new();
    let file = bench.path().join("document.toml");
    for (line, key) in [
        ("public_openapi = true", "http.public_openapi"),
        (
            "cors = { origins = [\"https://a.example\"] }",
            "http.cors.origins",
        ),
    ] {
        for (stealth, valid) in [(false, true), (true, false)] {
            let document = format!("[http]\nstealth = {stealth}\n{line}\n");
            std::fs::write(&file, document).expect("the folder is ours");
            let mut command = Command::new(binary());
            command.args(["config", "check", "--json"]).arg(&file);
            let output = command.output().expect("the binary can be started");
            let told: Value = serde_json::from_slice(&output.stdout).expect("JSON");
            assert_eq!(told["valid"], valid, "{line}: {told}");
            let named = told["errors"].to_string().contains(key);
            assert_eq!(named, !valid, "{line}: {told}");
        }
    }
}
