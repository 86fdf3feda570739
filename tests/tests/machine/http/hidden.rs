//! Answers of a machine to pages of other sites, and answers of a machine that hides from unknown peers.

use alknet_tests::{BootVariant, CurlResponse, Http3Response, TestBench, curl, http3, wrong_token};
use serde_json::{Value, json};

use super::{Machine, VERSIONS};

/// A name of the machine that hides.
const OWN_NAME: &str = "hub.invalid";

/// Names that are not the machine's: one that every node could have, and one of another host.
const FOREIGN_NAMES: [&str; 2] = ["x.alknet.invalid", "evil.example"];

/// The only site whose pages may call.
pub(super) const SITE: &str = "https://app.example.org";

/// Paths at which other nodes answer unknown peers, and paths that do not exist.
const PATHS: [&str; 10] = [
    "/",
    "/call",
    "/batch",
    "/subscribe",
    "/search",
    "/openapi.json",
    "/metrics",
    "/mcp",
    "/healthz",
    "/status/enter/x",
];

pub(super) fn pages_of_others_may_what_is_configured(web: &Machine) {
    for (version, _) in VERSIONS {
        let preflight = |origin: &str| {
            let origin = format!("Origin: {origin}");
            let asks = "Access-Control-Request-Method: POST";
            let headers = ["--header", &origin, "--header", asks];
            let asks = [&[version, "--request", "OPTIONS"][..], &headers].concat();
            web.curl("/call", &asks)
        };
        let allowed = |told: &CurlResponse| {
            let origin = told.header("access-control-allow-origin");
            origin.map(str::to_owned)
        };
        let told = preflight(SITE);
        assert_eq!((told.status, allowed(&told).as_deref()), (204, Some(SITE)));
        let header = format!("Origin: {SITE}");
        let body = r#"{"operation":"/node/info"}"#;
        let call = [version, "--header", &header, "--json", body];
        let told = web.curl_as(&web.admin, "/call", &call);
        assert_eq!((told.status, allowed(&told).as_deref()), (200, Some(SITE)));
        for origin in [
            "https://evil.example",
            "null",
            "https://app.example.org.evil.example",
        ] {
            let told = preflight(origin);
            assert_eq!(allowed(&told), None, "{version} {origin}: {told:?}");
            // A browser also shows the page no answer to a call without this header.
            let header = format!("Origin: {origin}");
            let call = [version, "--header", &header, "--json", body];
            let told = web.curl_as(&web.admin, "/call", &call);
            assert_eq!(allowed(&told), None, "{version} {origin}: {told:?}");
        }
    }
}

/// Configures the machine to hide from its next start on.
pub(super) fn is_to_hide(bench: &TestBench, web: &Machine) {
    let admin = bench.admin();
    let file = bench.path().join("hidden.toml");
    // Each run of curl is a connection of its own.
    let document = format!(
        "[limits]\nhandshake_burst = 10000\nhandshakes_per_second = 10000\n\
         [node]\nname = \"alknet\"\nadmin_keys = [\"{}\"]\n\
         [http]\nenabled = true\nstealth = true\nhealthz = false\nnames = [\"{OWN_NAME}\"]\n",
        admin.identity()
    );
    std::fs::write(&file, document).expect("the folder is ours");
    let mut command = admin.command(&["config", "apply", &web.node.target()]);
    command.arg(&file);
    let applied = admin.run(command).json();
    assert_eq!(applied["kept"], true, "{applied:#}");
}

/// A machine with the same disk and the applied configuration reveals itself only to a client with a known token.
pub(super) fn unknown_clients_see_one_and_the_same_nothing(bench: &TestBench, token: &str) {
    let node = bench.machine(BootVariant::MicrovmErofs).config("").boot();
    let ask = |path: &str, more: &[&str]| curl(&format!("https://{}{path}", node.address()), more);
    // The comparison includes the order of headers.
    let face = |told: &CurlResponse| {
        let mut headers = told.headers.clone();
        // The date changes with the clock.
        headers.retain(|(name, _)| name != "date");
        (told.status, headers, told.body.clone())
    };
    let wrong = format!("Authorization: Bearer {}", wrong_token());
    for (version, _) in VERSIONS {
        let nothing = face(&ask("/nonsense", &[version]));
        assert_eq!(nothing.0, 404);
        for path in PATHS {
            for more in [
                &[][..],
                &["--json", r#"{"operation":"/node/info"}"#],
                &[
                    "--request",
                    "OPTIONS",
                    "--header",
                    "Origin: https://a.example",
                ],
            ] {
                let told = ask(path, &[&[version], more].concat());
                assert_eq!(face(&told), nothing, "{version} {path} {more:?}");
            }
        }
        // The test guesses only once per version, because the node asks a client that guesses often to wait. That
        // answer reveals nothing else.
        let told = ask("/call", &[version, "--header", &wrong]);
        assert_eq!(face(&told), nothing, "{version} with a wrong token");
        let at = |name: &str| {
            let host = format!("Host: {name}");
            face(&ask("/search", &[version, "--header", &host]))
        };
        let own = at(OWN_NAME);
        for name in FOREIGN_NAMES {
            assert_eq!(at(name), own, "{version} {name}");
        }
    }
    let get = |path: &str| json!({ "method": "GET", "path": path });
    let at = |name: &str| json!({ "method": "GET", "path": "/search", "authority": name });
    let names = [OWN_NAME].into_iter().chain(FOREIGN_NAMES);
    let asked: Vec<Value> = ["/nonsense"]
        .iter()
        .chain(&PATHS)
        .map(|path| get(path))
        .chain(names.map(at))
        .collect();
    let heard = http3(node.address(), &json!(asked));
    // aioquic reports headers without an order.
    let face = |answer: &Http3Response| {
        let mut headers = answer.headers.clone();
        let fields = headers.as_object_mut().expect("names and values");
        fields.remove("date");
        (answer.status, headers, answer.body.clone())
    };
    let nothing = face(&heard[0]);
    assert_eq!(nothing.0, 404);
    for (answer, path) in heard.iter().zip(["/nonsense"].iter().chain(&PATHS)) {
        assert_eq!(face(answer), nothing, "{path} over HTTP/3");
    }
    let [own, foreign @ ..] = &heard[1 + PATHS.len()..] else {
        panic!("{heard:?}");
    };
    assert_eq!(own.status, 404);
    for (answer, name) in foreign.iter().zip(FOREIGN_NAMES) {
        assert_eq!(face(answer), face(own), "{name} over HTTP/3");
    }
    let known = format!("Authorization: Bearer {token}");
    let told = ask("/search", &["--header", &known]);
    assert_eq!(told.status, 200, "{told:?}");
    // A client with a token is protected from pages that have another name point to the machine.
    let [_, evil] = FOREIGN_NAMES.map(|name| format!("Host: {name}"));
    let told = ask("/search", &["--header", &known, "--header", &evil]);
    assert_eq!(told.status, 421, "{told:?}");
    let info = node.info();
    assert_eq!(info["node_restarts"], 0, "{info:#}");
    node.end();
}
