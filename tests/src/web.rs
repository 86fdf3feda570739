//! A node that serves HTTP, on this host or on a machine, with tokens for it, and curl.

use std::io::{BufRead, BufReader, Lines, Read};
use std::net::SocketAddr;
use std::process::{Child, ChildStdout, Stdio};
use std::time::Duration;

use alknet_core::AuthToken;
use alknet_endpoint::Target;
use serde_json::{Value, json};

use crate::bench::TestBench;
use crate::curl::Curl;
use crate::host::HostNode;
use crate::node::{MachineBuilder, MachineNode};
use crate::snapshot::MachineSnapshot;
use crate::store::SnapshotStore;
use crate::wait::whole_seconds;

/// Longest run of curl. Long, because guests may run in emulation.
const CURL_WITHIN: Duration = Duration::from_secs(300);

/// Makes curl print the status of a response on a separate line.
const STATUS: &str = "write-out = \"%{http_code}\\n\"\n";

/// Every run of curl is a separate connection.
const LIMITS: &str = "[limits]\nhandshake_burst = 10000\nhandshakes_per_second = 10000\n";

/// A node with three tokens: an administrator's, a read-only one, and an expired one.
#[derive(Debug)]
pub struct WebNode<N = HostNode> {
    /// The node.
    pub node: N,
    /// Token of an administrator.
    pub admin: String,
    /// Token that may only read facts about the node.
    pub reader: String,
    /// Expired token.
    pub expired: String,
    address: SocketAddr,
}

impl WebNode<HostNode> {
    /// Starts a node on this host with this additional configuration.
    ///
    /// # Panics
    /// It does not serve.
    pub fn start(bench: &TestBench, config: &str) -> Self {
        Self::start_at(bench, 0, config)
    }

    /// The same on this port. 0 means a free port.
    ///
    /// # Panics
    /// As [`start`](Self::start).
    pub fn start_at(bench: &TestBench, port: u16, config: &str) -> Self {
        let known = WebTokens::new();
        let node = bench.host_at(port, &known.document(config));
        Self::on_host(node, &known)
    }

    /// The same as [`start`](Self::start), on a machine that seems to the node to have this much
    /// memory. `None` without root, see [`HostNode::start_on`].
    ///
    /// # Panics
    /// As [`start`](Self::start).
    pub fn start_on(bench: &TestBench, memory_bytes: u64, config: &str) -> Option<Self> {
        let known = WebTokens::new();
        let node = bench.host_on(memory_bytes, &known.document(config))?;
        Some(Self::on_host(node, &known))
    }

    /// The same as [`start`](Self::start), with so many files that the node may have open.
    ///
    /// # Panics
    /// As [`start`](Self::start).
    pub fn start_with_files(bench: &TestBench, files: u64, config: &str) -> Self {
        let known = WebTokens::new();
        let node = bench.host_with_files(files, &known.document(config));
        Self::on_host(node, &known)
    }

    fn on_host(node: HostNode, known: &WebTokens) -> Self {
        let address = target(node.target()).address().parse();
        let address = address.expect("an address");
        let made = node.call("token/make", &everything());
        Self::from_node(node, address, known, &made)
    }

    /// The target in the form for diallers.
    pub fn target(&self) -> Target {
        target(self.node.target())
    }
}

impl WebNode<MachineNode> {
    /// Boots a machine with this additional configuration.
    ///
    /// # Panics
    /// It does not serve.
    pub fn boot(machine: MachineBuilder<'_>, config: &str) -> Self {
        let known = WebTokens::new();
        let node = machine.configured(&known.document(config)).boot();
        let address = node.address();
        let made = node.call("token/make", &everything());
        Self::from_node(node, address, &known, &made)
    }

    /// A copy of a machine that already serves, with this additional configuration.
    ///
    /// # Panics
    /// As [`MachineSnapshot::restore`].
    pub fn restore(snapshot: MachineSnapshot<'_>, config: &str) -> Self {
        let known = WebTokens::of_snapshots();
        let node = snapshot.configured(&known.document(config)).restore();
        let address = node.address();
        let made = node.call("token/make", &everything());
        Self::from_node(node, address, &known, &made)
    }

    /// The target in the form for diallers.
    pub fn target(&self) -> Target {
        target(&self.node.target())
    }
}

impl<N> WebNode<N> {
    fn from_node(node: N, address: SocketAddr, known: &WebTokens, made: &Value) -> Self {
        Self {
            node,
            admin: made["token"].as_str().expect("a token").to_owned(),
            reader: known.reader.expose().to_owned(),
            expired: known.expired.expose().to_owned(),
            address,
        }
    }

    /// The host's end of the node's port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL of a path of the node.
    pub fn url(&self, path: &str) -> String {
        format!("https://{}{path}", self.address)
    }

    /// Runs curl on a path with these arguments.
    ///
    /// # Panics
    /// It gets no answer.
    pub fn curl(&self, path: &str, arguments: &[&str]) -> CurlResponse {
        curl(&self.url(path), arguments)
    }

    /// The same with a token.
    ///
    /// # Panics
    /// As [`curl`](Self::curl).
    pub fn curl_as(&self, token: &str, path: &str, arguments: &[&str]) -> CurlResponse {
        let header = format!("Authorization: Bearer {token}");
        let all = [&["--header", &header], arguments].concat();
        self.curl(path, &all)
    }

    /// The same, or curl's error if it gets no answer.
    ///
    /// # Errors
    /// For example, the node has no connection slot left.
    pub fn try_curl_as(
        &self,
        token: &str,
        path: &str,
        arguments: &[&str],
    ) -> Result<CurlResponse, String> {
        let header = format!("Authorization: Bearer {token}");
        let all = [&["--header", &header], arguments].concat();
        try_curl(&self.url(path), &all)
    }

    /// Posts JSON with a token.
    ///
    /// # Panics
    /// As [`curl`](Self::curl).
    pub fn post(&self, token: &str, path: &str, body: &str) -> CurlResponse {
        let json = "Content-Type: application/json";
        self.curl_as(token, path, &["--header", json, "--data-binary", body])
    }

    /// Starts requesting all these paths with one run of curl, `at_once` at a time. `options` are
    /// those of each request, as lines of a curl settings file. Answers are read and discarded.
    ///
    /// # Panics
    /// curl is not installed, or the folder of `bench` is full.
    pub fn at_once(
        &self,
        bench: &TestBench,
        paths: &[&str],
        most: usize,
        options: &str,
    ) -> ParallelCurl {
        // After `next`, curl forgets the options before it.
        let within = whole_seconds(CURL_WITHIN);
        let each = paths.iter().map(|path| {
            let url = self.url(path);
            format!(
                "url = \"{url}\"\noutput = \"/dev/null\"\ninsecure\nmax-time = {within}\n\
                 {STATUS}{options}"
            )
        });
        let file = bench.path().join("at-once.curl");
        let text = each.collect::<Vec<_>>().join("next\n");
        std::fs::write(&file, text).expect("the folder is ours");
        let (most, file) = (most.to_string(), file.display().to_string());
        let all = [
            "--silent",
            "--parallel",
            "--parallel-max",
            &most,
            "--config",
            &file,
        ];
        ParallelCurl(Curl::new(&all).start(Stdio::piped()))
    }

    /// Follows a subscription with the request `call`.
    ///
    /// # Panics
    /// curl is not installed.
    pub fn events(&self, token: &str, call: &str, arguments: &[&str]) -> CurlEvents {
        let (within, url) = (whole_seconds(CURL_WITHIN), self.url("/subscribe"));
        let bearer = format!("Authorization: Bearer {token}");
        let fixed = ["--silent", "--show-error", "--insecure", "--no-buffer"];
        let asks = ["--max-time", &within, "--json", call, "--header", &bearer];
        let more = ["--header", "Accept: text/event-stream", "--url", &url];
        let all = [&fixed[..], &asks, &more, arguments].concat();
        let mut curl = Curl::new(&all).start(Stdio::piped());
        let output = curl.stdout.take().expect("it was asked for above");
        let lines = BufReader::new(output).lines();
        CurlEvents { curl, lines }
    }
}

/// Many requests of one run of curl. It is ended on drop.
#[derive(Debug)]
pub struct ParallelCurl(Child);

impl ParallelCurl {
    /// Whether all of them were answered.
    ///
    /// # Panics
    /// It is no longer a child of this process.
    pub fn is_over(&mut self) -> bool {
        self.0.try_wait().expect("it is our child").is_some()
    }

    /// Waits for all answers, and returns their statuses, 0 for requests without a connection.
    ///
    /// # Panics
    /// As [`is_over`](Self::is_over).
    pub fn statuses(mut self) -> Vec<u16> {
        let mut said = String::new();
        if let Some(output) = &mut self.0.stdout {
            output.read_to_string(&mut said).expect("it says numbers");
        }
        self.0.wait().expect("it is our child");
        said.lines()
            .filter_map(|line| line.trim().parse().ok())
            .collect()
    }
}

impl Drop for ParallelCurl {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Events that curl follows. It is ended on drop.
#[derive(Debug)]
pub struct CurlEvents {
    curl: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Iterator for CurlEvents {
    type Item = Value;

    /// The next event. `None` after the last one.
    fn next(&mut self) -> Option<Value> {
        let mut lines = self.lines.by_ref().map_while(Result::ok);
        let data = lines.find_map(|line| line.strip_prefix("data: ").map(str::to_owned));
        let data = data?;
        let event = serde_json::from_str(&data);
        Some(event.unwrap_or_else(|error| panic!("{error}: {data}")))
    }
}

impl Drop for CurlEvents {
    fn drop(&mut self) {
        let _ = self.curl.kill();
        let _ = self.curl.wait();
    }
}

fn target(text: &str) -> Target {
    text.parse().expect("the node's own target")
}

/// Input of the request for an administrator's token. Scopes in the configuration give this right
/// to keys only.
fn everything() -> Value {
    json!({ "scopes": ["*"] })
}

/// Tokens of the configuration.
struct WebTokens {
    reader: AuthToken,
    expired: AuthToken,
}

impl WebTokens {
    fn new() -> Self {
        let token = || AuthToken::generate().expect("the system has entropy");
        Self {
            reader: token(),
            expired: token(),
        }
    }

    /// The tokens of all snapshots, whose texts the cache keeps.
    fn of_snapshots() -> Self {
        let store = SnapshotStore::open();
        let token = |name: &str| {
            let made = || AuthToken::generate().expect("the system has entropy");
            AuthToken::new(store.text(name, || made().expose().to_owned()))
        };
        Self {
            reader: token("reader.token"),
            expired: token("expired.token"),
        }
    }

    /// `config` with the tokens before it.
    fn document(&self, config: &str) -> String {
        let entry = |token: &AuthToken, more: &str| {
            let hash = token.hash().expect("a token").to_string();
            let (id, sha256) = hash.split_once(':').expect("two parts");
            format!(
                "[[api_keys]]\nkey_id = \"{id}\"\nsha256 = \"{sha256}\"\n\
                 scopes = [\"node:read\"]\n{more}\n"
            )
        };
        let reader = entry(&self.reader, "");
        let expired = entry(&self.expired, "expires = \"2020-01-01T00:00:00Z\"");
        [LIMITS, &reader, &expired, config].concat()
    }
}

/// The response that curl received.
#[derive(Clone, Debug)]
pub struct CurlResponse {
    /// Statuses before the response: 100 if a body was awaited.
    pub interim: Vec<u16>,
    /// The status.
    pub status: u16,
    /// Such as `HTTP/2`.
    pub version: String,
    /// Names, in lower case, and values.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl CurlResponse {
    /// The first value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut all = self.headers.iter();
        all.find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    ///
    /// # Panics
    /// The body is not JSON.
    pub fn json(&self) -> Value {
        let value = serde_json::from_slice(&self.body);
        value.unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// The code of the error that it is.
    ///
    /// # Panics
    /// It is no JSON.
    pub fn code(&self) -> String {
        let code = self.json()["error"]["code"].as_str().map(str::to_owned);
        code.unwrap_or_default()
    }
}

/// Runs curl, which believes every certificate, on an address with these arguments.
///
/// # Panics
/// It gets no answer, or is not installed.
pub fn curl(url: &str, arguments: &[&str]) -> CurlResponse {
    try_curl(url, arguments).unwrap_or_else(|error| panic!("{error}"))
}

/// The answer to a request for `/healthz` of the node at this target, which is as the command line takes it.
///
/// # Panics
/// It gets no answer.
pub fn health(target: &str) -> CurlResponse {
    let target: Target = target.parse().expect("the node's own target");
    curl(&format!("https://{}/healthz", target.address()), &[])
}

/// The same, or what curl says where it gets no answer.
fn try_curl(url: &str, arguments: &[&str]) -> Result<CurlResponse, String> {
    let within = whole_seconds(CURL_WITHIN);
    let fixed = [
        "--silent",
        "--show-error",
        "--insecure",
        "--include",
        "--path-as-is",
    ];
    let asks = ["--max-time", &within, "--url", url];
    let output = Curl::new(&[&fixed[..], &asks, arguments].concat()).output();
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{url} {arguments:?}: {error}"));
    }
    Ok(parse(&output.stdout))
}

/// Reads what `--include` prints.
fn parse(text: &[u8]) -> CurlResponse {
    let mut interim = Vec::new();
    let mut rest = text;
    loop {
        let end = memchr::memmem::find(rest, b"\r\n\r\n").expect("a head");
        let head = String::from_utf8_lossy(&rest[..end]).into_owned();
        rest = &rest[end + 4..];
        let mut lines = head.lines();
        let mut first = lines.next().unwrap_or_default().split(' ');
        let version = first.next().unwrap_or_default().to_owned();
        let status = first.next().and_then(|status| status.parse().ok());
        let status = status.expect("a status");
        if status < 200 {
            interim.push(status);
            continue;
        }
        let headers = lines.filter_map(|line| line.split_once(':'));
        return CurlResponse {
            interim,
            status,
            version,
            headers: headers
                .map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()))
                .collect(),
            body: rest.to_vec(),
        };
    }
}
