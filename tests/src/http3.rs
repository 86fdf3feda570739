//! HTTP/3 requests with aioquic.

use std::net::SocketAddr;
use std::time::Duration;

use alknet_test_support::limited;
use data_encoding::BASE64;
use serde_json::Value;

use crate::tools::{client, start_with_json, variable};

/// Python packages of the tests, which the set-up puts into the cache.
const PACKAGES_VARIABLE: &str = "ALKNET_TEST_PYTHONPATH";

/// Longest run. Long, because guests may run in emulation.
const ANSWERED_WITHIN: Duration = Duration::from_secs(300);

/// The response to a request.
#[derive(Clone, Debug)]
pub struct Http3Response {
    /// The status.
    pub status: u64,
    /// Names, in lower case, and values.
    pub headers: Value,
    /// The body, as far as it was read.
    pub body: Vec<u8>,
}

/// Sends a node one request after the other over one connection. `tests/clients/http3.py` documents
/// their form.
///
/// # Panics
/// One of them is not answered.
#[must_use]
pub fn http3(address: SocketAddr, requests: &Value) -> Vec<Http3Response> {
    let mut python = limited(ANSWERED_WITHIN, "python3");
    python
        .arg(client("http3.py"))
        .args([address.ip().to_string(), address.port().to_string()])
        .env("PYTHONPATH", variable(PACKAGES_VARIABLE));
    let child = start_with_json(&mut python, requests);
    let output = child.wait_with_output().expect("it is our child");
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout);
    let heard: Vec<_> = text.lines().map(heard).collect();
    let asked = requests.as_array().expect("a list").len();
    assert_eq!(heard.len(), asked);
    heard
}

fn heard(line: &str) -> Http3Response {
    let value: Value = serde_json::from_str(line).expect("it prints JSON");
    let body = value["body"].as_str().expect("a body");
    Http3Response {
        status: value["status"].as_u64().expect("a status"),
        headers: value["headers"].clone(),
        body: BASE64.decode(body.as_bytes()).expect("base64"),
    }
}
