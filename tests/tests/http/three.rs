//! HTTP/3, by aioquic.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use alknet_tests::Bench;
use data_encoding::BASE64;
use serde_json::{Value, json};

use super::web::Web;

/// The operations of this project's dependencies in Python, put into the cache by the set-up.
const PACKAGES_VARIABLE: &str = "ALKNET_TEST_PYTHONPATH";

struct Heard {
    status: u64,
    headers: Value,
    body: Vec<u8>,
}

fn ask(web: &Web, requests: &Value) -> Vec<Heard> {
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("clients/http3.py");
    let packages = std::env::var(PACKAGES_VARIABLE).expect("`cargo xtask test` sets it");
    let address = web.address();
    let mut child = Command::new("timeout")
        .args(["120", "python3"])
        .arg(script)
        .args([address.ip().to_string(), address.port().to_string()])
        .env("PYTHONPATH", packages)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("Python is installed by the set-up");
    let mut input = child.stdin.take().expect("asked for");
    input
        .write_all(requests.to_string().as_bytes())
        .expect("it reads");
    drop(input);
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{output:?}");
    let lines = output
        .stdout
        .split(|b| *b == b'\n')
        .filter(|line| !line.is_empty());
    let heard: Vec<_> = lines
        .map(|line| {
            let value: Value = serde_json::from_slice(line).expect("JSON");
            let body = value["body"].as_str().expect("a body");
            Heard {
                status: value["status"].as_u64().expect("a status"),
                headers: value["headers"].clone(),
                body: BASE64.decode(body.as_bytes()).expect("base64"),
            }
        })
        .collect();
    let asked = requests.as_array().expect("a list").len();
    assert_eq!(heard.len(), asked);
    heard
}

#[test]
fn the_gateway_answers_over_http3() {
    let bench = Bench::new();
    let web = Web::start(&bench, "");
    let bearer = format!("Bearer {}", web.admin);
    let headers = json!({ "authorization": bearer, "content-type": "application/json" });
    let events = json!({ "authorization": bearer, "content-type": "application/json", "accept": "text/event-stream" });
    let body = r#"{"operation":"/node/info"}"#;
    let follow = r#"{"operation":"/node/log","input":{"follow":true,"last":2}}"#;
    let heard = ask(
        &web,
        &json!([
            { "method": "GET", "path": "/healthz" },
            { "method": "POST", "path": "/call", "headers": headers, "body": body },
            { "method": "POST", "path": "/call", "body": body },
            { "method": "GET", "path": "/nonsense" },
            { "method": "GET", "path": "/healthz", "authority": "evil.example" },
            { "method": "POST", "path": "/subscribe", "headers": events, "body": follow, "events": 2 },
            // The stream before was given up; the connection goes on.
            { "method": "GET", "path": "/healthz" },
            { "method": "POST", "path": "/call", "headers": headers, "body": " ".repeat(1 << 20), "times": 9 },
        ]),
    );
    let statuses: Vec<_> = heard.iter().map(|one| one.status).collect();
    assert_eq!(statuses, [200, 200, 401, 404, 421, 200, 200, 413]);
    assert_eq!(heard[0].body, b"ok\n");
    let answer: Value = serde_json::from_slice(&heard[1].body).expect("JSON");
    assert_eq!(answer["output"]["problems"], json!([]));
    assert_eq!(heard[1].headers["x-request-id"], answer["request_id"]);
    assert!(
        heard[5].body.starts_with(b"id: 1\nevent: data\n"),
        "events come"
    );
}

#[test]
fn strangers_see_the_same_nothing_over_http3() {
    let bench = Bench::new();
    let web = Web::start(&bench, "[http]\nstealth = true\nhealthz = false\n");
    let paths = [
        "/nonsense",
        "/call",
        "/mcp",
        "/openapi.json",
        "/alknet/call",
        "/healthz",
        "/",
    ];
    let requests: Vec<_> = paths
        .iter()
        .map(|path| json!({ "method": "GET", "path": path }))
        .collect();
    let heard = ask(&web, &Value::from(requests));
    for (one, path) in heard.iter().zip(paths) {
        assert_eq!((one.status, &one.body), (404, &heard[0].body), "{path}");
        let mut headers = one.headers.clone();
        let mut first = heard[0].headers.clone();
        for all in [&mut headers, &mut first] {
            all.as_object_mut().expect("headers").remove("date");
        }
        assert_eq!(headers, first, "{path}");
    }
    let tcp = web.curl("/nonsense", &["--http2"]);
    assert_eq!(heard[0].body, tcp.body);
}
