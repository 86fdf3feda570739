//! A node that tells strangers nothing, and one that answers to its own names only.

use alknet_tests::Bench;

use super::web::{Told, Web};

const PATHS: [&str; 9] = [
    "/call",
    "/batch",
    "/subscribe",
    "/search",
    "/schema?operation=/node/info",
    "/openapi.json",
    "/metrics",
    "/mcp",
    "/nonsense",
];

/// Everything that is seen from outside.
fn face(told: &Told) -> (u16, Vec<(String, String)>, Vec<u8>) {
    let mut headers = told.headers.clone();
    // The clock goes on.
    headers.retain(|(name, _)| name != "date");
    headers.sort();
    (told.status, headers, told.body.clone())
}

#[test]
fn strangers_see_one_and_the_same_nothing() {
    let bench = Bench::new();
    let web = Web::start(&bench, "[http]\nstealth = true\nhealthz = false\n");
    for version in ["--http1.1", "--http2"] {
        let nothing = face(&web.curl("/nonsense", &[version]));
        assert_eq!(nothing.0, 404);
        let asks: [&[&str]; 4] = [
            &[],
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
        for path in PATHS
            .iter()
            .chain(&["/", "/healthz", "/status/enter/x", "/alknet/call"])
        {
            for ask in asks {
                let told = web.curl(path, &[&[version], ask].concat());
                assert_eq!(face(&told), nothing, "{version} {path} {ask:?}");
            }
        }
        // Few of them: who guesses is shut out.
        for path in ["/call", "/mcp", "/nonsense"] {
            let told = web.curl_as(&web.expired, path, &[version]);
            assert_eq!(face(&told), nothing, "{version} {path} with a wrong token");
        }
    }
    assert_eq!(web.curl_as(&web.reader, "/search", &[]).status, 200);
    let told = web.post(&web.admin, "/call", r#"{"operation":"/node/info"}"#);
    assert_eq!(told.status, 200);
}

#[test]
fn a_decoy_may_send_elsewhere() {
    let bench = Bench::new();
    let config = "[http]\ndecoy = \"redirect\"\nredirect = \"https://example.org/\"\n";
    let web = Web::start(&bench, config);
    let told = web.curl("/nonsense", &[]);
    assert_eq!(
        (told.status, told.header("location")),
        (302, Some("https://example.org/"))
    );
}

#[test]
fn only_names_of_the_node_are_answered() {
    let bench = Bench::new();
    let web = Web::start(&bench, "[http]\nnames = [\"hub.example.org\"]\n");
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
