//! The gateway's paths, with curl.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Duration;

use alknet_gateway::limits::STREAMS_PER_IDENTITY;
use alknet_test_support::seconds;
use alknet_tests::{Curl, TestBench, WebNode, eventually};
use serde_json::{Value, json};

const VERSIONS: [(&str, &str); 2] = [("--http1.1", "HTTP/1.1"), ("--http2", "HTTP/2")];

#[test]
fn a_call_is_answered_over_every_version() {
    let bench = TestBench::new();
    let web = WebNode::start(&bench, "");
    for (version, name) in VERSIONS {
        let told = web.curl("/healthz", &[version]);
        assert_eq!((told.status, told.version.as_str()), (200, name));
        assert_eq!(told.body, b"ok\n");
        let body = r#"{"operation":"/node/info"}"#;
        let json = "Content-Type: application/json";
        let told = web.curl_as(
            &web.admin,
            "/call",
            &[version, "--header", json, "--data", body],
        );
        assert_eq!(
            (told.status, told.version.as_str()),
            (200, name),
            "{told:?}"
        );
        let answer = told.json();
        assert_eq!(answer["output"]["problems"], json!([]));
        assert_eq!(answer["request_id"].as_str(), told.header("x-request-id"));
        assert_eq!(told.header("cache-control"), Some("no-store"));
        assert_eq!(told.header("x-content-type-options"), Some("nosniff"));
        let services = told.header("alt-svc").expect("HTTP/3 is served");
        assert!(
            services.contains(&format!(":{}\"", web.address().port())),
            "{services}"
        );
    }
}

#[test]
fn a_caller_without_scope_learns_only_that() {
    let bench = TestBench::new();
    let web = WebNode::start(&bench, "");
    let call = r#"{"operation":"/node/reboot"}"#;
    let info = r#"{"operation":"/node/info"}"#;
    let unknown_peer = web.curl("/call", &["--json", call]);
    assert_eq!(
        (unknown_peer.status, unknown_peer.code().as_str()),
        (401, "UNAUTHENTICATED")
    );
    let challenge = unknown_peer.header("www-authenticate");
    assert_eq!(challenge, Some("Bearer realm=\"alknet\""));
    let unknown = format!("alk_00000000_{}", "A".repeat(43));
    for token in [web.expired.as_str(), &unknown, "x", ""] {
        let told = web.post(token, "/call", call);
        assert_eq!(
            (told.status, told.code().as_str()),
            (401, "UNAUTHENTICATED"),
            "{token}"
        );
        let challenge = told.header("www-authenticate").expect("a challenge");
        assert!(challenge.contains("invalid_token"), "{challenge}");
    }
    let narrower = web.post(&web.reader, "/call", call);
    assert_eq!(
        (narrower.status, narrower.code().as_str()),
        (403, "FORBIDDEN")
    );
    let error = narrower.json()["error"].take();
    assert_eq!(error["details"]["missing_scopes"], json!(["admin"]));
    let message = error["message"].as_str().unwrap_or_default();
    assert!(message.contains("'admin'"), "{message}");
    // An unknown caller learns nothing about the rule.
    assert!(
        !unknown_peer.text().contains("missing_scopes"),
        "{unknown_peer:?}"
    );
    assert_eq!(web.post(&web.reader, "/call", info).status, 200);
    // The node ignores headers in which a client claims to act for another.
    let forged = [
        "--header",
        "X-Forwarded-For: 127.0.0.1",
        "--header",
        "Forwarded: for=admin",
    ];
    let json = ["--json", call];
    let told = web.curl_as(&web.reader, "/call", &[forged.as_slice(), &json].concat());
    assert_eq!(told.status, 403);
    let unknown = web.post(&web.admin, "/call", r#"{"operation":"/no/such"}"#);
    assert_eq!(
        (unknown.status, unknown.code().as_str()),
        (404, "NOT_FOUND")
    );
}

#[test]
fn what_is_wrong_with_a_request_is_named() {
    let bench = TestBench::new();
    let web = WebNode::start(&bench, "");
    let post = |body: &str| web.post(&web.admin, "/call", body);
    let told = post(r#"{"operation":"/node/info","extra":1}"#);
    assert_eq!(told.status, 400);
    assert_eq!(told.json()["error"]["details"]["pointer"], "/extra");
    let told = post(r#"{"operation":"/node/info","input":{"x":1}}"#);
    assert_eq!((told.status, told.code().as_str()), (422, "INVALID_INPUT"));
    let told = post(r#"{"operation":"/node/log"}"#);
    assert_eq!(
        (told.status, told.code().as_str()),
        (400, "INVALID_OPERATION_TYPE")
    );
    assert_eq!(post("{").status, 400);
    let told = web.curl_as(&web.admin, "/call", &[]);
    assert_eq!((told.status, told.header("allow")), (405, Some("POST")));
    let told = web.curl_as(&web.admin, "/call", &["--data", "{}"]);
    assert_eq!(told.status, 415);
    let told = web.post(&web.admin, "/subscribe", r#"{"operation":"/node/log"}"#);
    assert_eq!(told.status, 406);
    for (path, pointer) in [("/search?limit=0", "/limit"), ("/search?sort=x", "/sort")] {
        let told = web.curl_as(&web.admin, path, &[]);
        assert_eq!(told.status, 400, "{path}");
        assert_eq!(told.json()["error"]["details"]["pointer"], pointer);
    }
    let both = [
        "--json",
        r#"{"operation":"/node/info","idempotency_key":"a"}"#,
    ];
    let key = ["--header", "Idempotency-Key: b"];
    let told = web.curl_as(&web.admin, "/call", &[both, key].concat());
    assert_eq!(told.status, 400);
    let deep = format!(
        r#"{{"operation":"/node/info","input":{}1{}}}"#,
        "[".repeat(70),
        "]".repeat(70)
    );
    assert_eq!(post(&deep).status, 400);
}

#[test]
fn bodies_have_a_limit_to_the_byte() {
    let bench = TestBench::new();
    let web = WebNode::start(&bench, "");
    let body = |bytes: usize| {
        let frame = r#"{"operation":"/services/list","input":{"prefix":""}}"#.len();
        let text = "x".repeat(bytes - frame);
        format!(r#"{{"operation":"/services/list","input":{{"prefix":"{text}"}}}}"#)
    };
    for (version, _) in VERSIONS {
        for (bytes, status) in [(8 << 20, 200), ((8 << 20) + 1, 413)] {
            let file = bench.path().join("body");
            std::fs::write(&file, body(bytes)).expect("room");
            let file = format!("@{}", file.display());
            let json = "Content-Type: application/json";
            for length in ["Content-Length", "Transfer-Encoding: chunked"] {
                let mut arguments = vec![version, "--header", json, "--data-binary", &file];
                if length != "Content-Length" {
                    arguments.extend(["--header", length]);
                }
                let told = web.curl_as(&web.admin, "/call", &arguments);
                assert_eq!(told.status, status, "{version} {bytes} {length}");
            }
        }
    }
}

#[test]
fn operations_are_found_and_described() {
    let bench = TestBench::new();
    let web = WebNode::start(&bench, "");
    let told = web.curl_as(&web.admin, "/search?q=reboot", &[]);
    let found = told.json();
    assert_eq!(found["operations"][0]["operation"], "/node/reboot");
    assert_eq!(found["operations"][0]["access"], "ok");
    let etag = told.header("etag").expect("a version");
    let known = format!("If-None-Match: {etag}");
    let again = web.curl_as(&web.admin, "/search?q=reboot", &["--header", &known]);
    assert_eq!((again.status, again.body.len()), (304, 0));
    // Another identity sees other operations.
    let other = web.curl_as(&web.reader, "/search?q=reboot", &["--header", &known]);
    assert_eq!(
        (other.status, &other.json()["operations"]),
        (200, &json!([]))
    );
    let mut names = Vec::new();
    let mut path = "/search?limit=7".to_owned();
    loop {
        let page = web.curl_as(&web.admin, &path, &[]).json();
        let page_names = page["operations"].as_array().expect("a list").iter();
        names.extend(page_names.map(|one| one["operation"].to_string()));
        match page["next"].as_str() {
            Some(next) => path = format!("/search?limit=7&cursor={next}"),
            None => break,
        }
    }
    let all = web.curl_as(&web.admin, "/search?limit=500", &[]).json();
    assert_eq!(
        names.len(),
        all["operations"].as_array().expect("a list").len()
    );
    let told = web.curl_as(&web.admin, "/schema?operation=/node/info", &[]);
    let info = told.json();
    assert_eq!(
        (info["operation"].as_str(), info["type"].as_str()),
        (Some("/node/info"), Some("query"))
    );
    assert!(info["output_schema"].is_object());
    assert_eq!(
        web.curl_as(&web.reader, "/schema?operation=node/reboot", &[])
            .status,
        404
    );
}

/// For every operation: callers who see it may call it, and others may not.
#[test]
fn what_is_listed_can_be_called_and_what_is_not_cannot() {
    let bench = TestBench::new();
    let web = WebNode::start(&bench, "");
    let names = |token: &str| -> Vec<String> {
        let found = web.curl_as(token, "/search?limit=500", &[]).json();
        let found = found["operations"].as_array().expect("a list").iter();
        found
            .map(|one| one["operation"].as_str().expect("a name").to_owned())
            .collect()
    };
    let seen = names(&web.reader);
    for name in names(&web.admin) {
        let harmless = json!({ "operation": name, "input": { "no such member": 1 } });
        let status = web.post(&web.reader, "/call", &harmless.to_string()).status;
        let refused = matches!(status, 401 | 403 | 404);
        assert_eq!(refused, !seen.contains(&name), "{name}: {status}");
    }
}

#[test]
fn batches_answer_in_order_and_stop_when_asked() {
    let bench = TestBench::new();
    let web = WebNode::start(&bench, "");
    let calls = json!([
        { "id": "a", "operation": "/node/info" },
        { "id": "b", "operation": "/no/such" },
        { "id": "c", "operation": "/services/list" },
    ]);
    let batch = |mode: &str| {
        let body = json!({ "calls": calls, "mode": mode }).to_string();
        let told = web.post(&web.admin, "/batch", &body);
        assert_eq!(told.status, 200, "{told:?}");
        let results = told.json()["results"].clone();
        let part = |result: &Value| {
            let code = result["error"]["code"].as_str().unwrap_or("ok").to_owned();
            (result["id"].as_str().expect("an id").to_owned(), code)
        };
        results
            .as_array()
            .expect("a list")
            .iter()
            .map(part)
            .collect::<Vec<_>>()
    };
    let own = |list: [(&str, &str); 3]| list.map(|(id, code)| (id.to_owned(), code.to_owned()));
    let all = own([("a", "ok"), ("b", "NOT_FOUND"), ("c", "ok")]);
    assert_eq!(batch("parallel"), all);
    assert_eq!(batch("sequential"), all);
    let stopped = own([("a", "ok"), ("b", "NOT_FOUND"), ("c", "NOT_RUN")]);
    assert_eq!(batch("stop_on_error"), stopped);
    let many: Vec<_> = (0..65)
        .map(|n| json!({ "id": n.to_string(), "operation": "/node/info" }))
        .collect();
    let told = web.post(&web.admin, "/batch", &json!({ "calls": many }).to_string());
    assert_eq!(told.status, 400);
    let twice =
        json!({ "calls": [{ "id": "a", "operation": "x/y" }, { "id": "a", "operation": "x/y" }] });
    let told = web.post(&web.admin, "/batch", &twice.to_string());
    assert_eq!(told.json()["error"]["details"]["pointer"], "/calls/1/id");
}

#[test]
fn events_come_as_they_happen_and_end_with_their_reader() {
    let bench = TestBench::new();
    let web = WebNode::start(&bench, "");
    for (version, _) in VERSIONS {
        let (within, url) = (seconds(Duration::from_secs(60)), web.url("/subscribe"));
        let bearer = format!("Authorization: Bearer {}", web.admin);
        let follow = r#"{"operation":"/node/log","input":{"follow":true,"last":3}}"#;
        let fixed = ["--silent", "--no-buffer", "--insecure", version];
        let asks = ["--max-time", &within, "--header", &bearer, "--json", follow];
        let more = ["--header", "Accept: text/event-stream", "--url", &url];
        let all = [&fixed[..], &asks, &more].concat();
        let mut curl = Curl::new(&all).start(Stdio::piped());
        let lines = BufReader::new(curl.stdout.take().expect("asked for")).lines();
        let data = lines
            .map_while(Result::ok)
            .find_map(|line| line.strip_prefix("data: ").map(str::to_owned));
        let event: Value = serde_json::from_str(&data.expect("an event")).expect("JSON");
        assert!(event["message"].is_string(), "{event}");
        curl.kill().expect("it runs");
        curl.wait().expect("it ran");
    }
    let ended = web.curl_as(
        &web.admin,
        "/subscribe",
        &[
            "--header",
            "Accept: text/event-stream",
            "--json",
            r#"{"operation":"/node/log","input":{"last":1}}"#,
        ],
    );
    let text = String::from_utf8(ended.body).expect("text");
    assert!(text.contains("id: 1\nevent: data\ndata: {"), "{text}");
    assert!(text.ends_with("event: completed\ndata: {}\n\n"), "{text}");
}

/// Opens as many streams as an identity may have, and kills the client. All have ended when there
/// is room for another.
#[test]
fn nothing_is_left_running_for_a_client_that_is_gone() {
    let bench = TestBench::new();
    let web = WebNode::start(&bench, "");
    let follow = r#"{"operation":"/node/log","input":{"follow":true,"last":1}}"#;
    let ended = r#"{"operation":"/node/log","input":{"last":1}}"#;
    let one_more = || {
        let asks = ["--header", "Accept: text/event-stream", "--json", ended];
        web.curl_as(&web.admin, "/subscribe", &asks)
    };
    for round in 0..2 {
        let heard = |n: usize| bench.path().join(format!("heard-{round}-{n}"));
        let each = (0..STREAMS_PER_IDENTITY).map(|n| {
            format!(
                "url = \"{}\"\noutput = \"{}\"\ninsecure\nhttp2\nno-buffer\nmax-time = {}\ndata = \"{}\"\n\
                 header = \"Authorization: Bearer {}\"\nheader = \"Accept: text/event-stream\"\n\
                 header = \"Content-Type: application/json\"\n",
                web.url("/subscribe"),
                heard(n).display(),
                seconds(Duration::from_secs(300)),
                follow.replace('"', "\\\""),
                web.admin,
            )
        });
        let file = bench.path().join("followers");
        let text = each.collect::<Vec<_>>().join("next\n");
        std::fs::write(&file, text).expect("the folder is ours");
        let file = file.display().to_string();
        let all = [
            "--silent",
            "--parallel",
            "--parallel-max",
            "300",
            "--config",
            &file,
        ];
        let mut curl = Curl::new(&all).start(Stdio::null());
        eventually("every one hears something", || {
            let has_heard = |n: &usize| heard(*n).metadata().is_ok_and(|file| file.len() > 0);
            (0..STREAMS_PER_IDENTITY)
                .all(|n| has_heard(&n))
                .then_some(())
        });
        let refused = one_more();
        assert_eq!(
            (refused.status, refused.code().as_str()),
            (429, "OVERLOADED"),
            "round {round}"
        );
        curl.kill().expect("it runs");
        curl.wait().expect("it ran");
        eventually("there is room again", || {
            (one_more().status == 200).then_some(())
        });
    }
}

#[test]
fn tickets_stream_once() {
    let bench = TestBench::new();
    let web = WebNode::start(&bench, "");
    let call = r#"{"operation":"/node/log","input":{"last":1}}"#;
    let ask = ["--header", "Prefer: respond-async", "--json", call];
    let told = web.curl_as(&web.admin, "/subscribe", &ask);
    assert_eq!(told.status, 201, "{told:?}");
    let url = told.json()["url"].as_str().expect("an address").to_owned();
    assert_eq!(url.len(), "/subscribe/t/".len() + 43);
    let first = web.curl(&url, &[]);
    assert_eq!(
        (first.status, first.header("content-type")),
        (200, Some("text/event-stream"))
    );
    assert!(first.body.ends_with(b"event: completed\ndata: {}\n\n"));
    assert_eq!(web.curl(&url, &[]).status, 404);
    let again = web.curl(&url, &["--header", "Last-Event-ID: 1"]);
    assert_eq!((again.status, again.body.len()), (204, 0));
    let refused = web.curl_as(&web.reader, "/subscribe", &ask);
    assert_eq!(
        refused.status, 404,
        "a caller without the scope gets no ticket"
    );
}

#[test]
fn pages_of_others_may_what_the_configuration_says() {
    let bench = TestBench::new();
    let web = WebNode::start(
        &bench,
        "[http.cors]\norigins = [\"https://app.example.org\"]\n",
    );
    let preflight = |origin: &str| {
        let origin = format!("Origin: {origin}");
        let asks = "Access-Control-Request-Method: POST";
        web.curl(
            "/call",
            &[
                "--request",
                "OPTIONS",
                "--header",
                &origin,
                "--header",
                asks,
            ],
        )
    };
    let told = preflight("https://app.example.org");
    assert_eq!(told.status, 204);
    let allowed = told.header("access-control-allow-origin");
    assert_eq!(allowed, Some("https://app.example.org"));
    assert!(told.header("access-control-allow-credentials").is_none());
    for origin in [
        "https://evil.example",
        "null",
        "https://app.example.org.evil.example",
    ] {
        let told = preflight(origin);
        assert!(
            told.header("access-control-allow-origin").is_none(),
            "{origin}"
        );
    }
    let origin = ["--header", "Origin: https://app.example.org"];
    let body = ["--json", r#"{"operation":"/node/info"}"#];
    let told = web.curl_as(&web.admin, "/call", &[origin, body].concat());
    let allowed = told.header("access-control-allow-origin");
    assert_eq!(allowed, Some("https://app.example.org"));
}

/// A client that could follow operations open on `alknet/call` here would occupy an unknown peer's
/// connection slot.
#[test]
fn no_client_has_a_stream_of_events() {
    let bench = TestBench::new();
    let web = WebNode::start(&bench, "");
    let within = seconds(Duration::from_secs(60));
    let limit = ["--max-time", &within];
    let accept = ["--header", "Accept: text/event-stream"];
    let body = ["--json", r#"{"operation":"/services/watch"}"#];
    for version in ["--http1.1", "--http2"] {
        let asks = [&limit[..], &accept, &body, &[version]].concat();
        let told = web.curl("/subscribe", &asks);
        assert_eq!(told.status, 401, "{version}: {told:?}");
    }
    // A client with a token may follow this one.
    let mut events = web.events(&web.reader, body[1], &[]);
    assert!(events.next().is_some());
}

#[test]
fn the_description_says_what_there_is() {
    let bench = TestBench::new();
    let web = WebNode::start(&bench, "");
    assert_eq!(web.curl("/openapi.json", &[]).status, 401);
    let document = web.curl_as(&web.reader, "/openapi.json", &[]).json();
    assert_eq!(document["openapi"], "3.1.0");
    for path in ["/call", "/batch", "/search", "/schema", "/subscribe"] {
        assert!(document["paths"][path].is_object(), "{path}");
    }
    let other = TestBench::new();
    let public = WebNode::start(&other, "[http]\npublic_openapi = true\n");
    assert_eq!(public.curl("/openapi.json", &[]).status, 200);
}
