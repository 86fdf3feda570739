//! A node that tells unknown peers nothing, and one that answers only to its own names.

use std::process::Command;

use alknet_core::PeerKey;
use alknet_tests::{CurlResponse, TestBench, WebNode, binary};
use data_encoding::BASE32_NOPAD;
use serde_json::{Value, json};

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

/// The name that the node's own certificate has: a client that has never seen the node can compute it from the key.
fn name_of_key(web: &WebNode) -> String {
    let (key, _) = web.node.target().split_once('@').expect("a pinned target");
    let Ok(PeerKey::Ed25519(key)) = key.parse() else {
        panic!("the key of a node is of this kind: {key}");
    };
    let name = BASE32_NOPAD.encode(&key).to_ascii_lowercase();
    format!("{name}.alknet.invalid")
}

/// The name in a request does not matter to a client without a token: not a name of the node, not the one that its key
/// makes, not one that every node of this program could have, and not one of another host.
#[test]
fn unknown_clients_do_not_learn_which_names_are_the_node_s() {
    let bench = TestBench::new();
    let config = "[http]\nstealth = true\nnames = [\"hub.invalid\"]\n";
    let web = WebNode::start(&bench, config);
    let of_key = name_of_key(&web);
    let at = |name: &str| format!("Host: {name}");
    for version in ["--http1.1", "--http2"] {
        for path in ["/search", "/healthz"] {
            let own = at("hub.invalid");
            let own = face(&web.curl(path, &[version, "--header", &own]));
            assert_eq!(own.0, if path == "/healthz" { 200 } else { 404 });
            for name in [
                of_key.as_str(),
                "x.alknet.invalid",
                "alknet.invalid",
                "x.invalid",
                "evil.example",
            ] {
                let told = web.curl(path, &[version, "--header", &at(name)]);
                assert_eq!(face(&told), own, "{version} {path} {name}");
            }
        }
    }
    // A wrong token counts as no token.
    let elsewhere = ["--header", "Host: evil.example"];
    let own = ["--header", "Host: hub.invalid"];
    let nothing = face(&web.curl("/search", &own));
    let told = web.curl_as(&web.expired, "/search", &elsewhere);
    assert_eq!(face(&told), nothing);
    // A browser that has a token is protected from pages that have another name point here.
    assert_eq!(web.curl_as(&web.reader, "/search", &elsewhere).status, 421);
    assert_eq!(web.curl_as(&web.reader, "/search", &own).status, 200);
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

/// A node that tells unknown peers nothing cannot show them a description, nor answer browsers that ask without a token
/// whether a page may call. The command that checks a document refuses such a one, and so does a node that serves and
/// keeps to what it has.
#[test]
fn what_contradicts_stealth_is_refused() {
    let bench = TestBench::new();
    let web = WebNode::start(&bench, "[http]\nstealth = true\n");
    let before = face(&web.curl("/openapi.json", &[]));
    assert_eq!(before.0, 404);
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
        let document = format!("[http]\nstealth = true\n{line}\n");
        let input = json!({ "document": document });
        let applied = web.node.try_call("config/apply", &input);
        assert_eq!(applied.code(), "INVALID_INPUT", "{line}: {applied:?}");
        assert!(applied.errors.contains(key), "{line}: {applied:?}");
        assert_eq!(face(&web.curl("/openapi.json", &[])), before, "{line}");
    }
}
