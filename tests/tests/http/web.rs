//! A node that speaks HTTP, tokens for it, and curl.

use std::net::SocketAddr;
use std::process::Command;

use alknet_core::AuthToken;
use alknet_endpoint::Target;
use alknet_tests::{Bench, HostNode};
use serde_json::{Value, json};

/// A node with three tokens: an administrator's, one that only reads, and one that has ended.
pub(crate) struct Web {
    pub(crate) node: HostNode,
    pub(crate) admin: String,
    pub(crate) reader: String,
    pub(crate) expired: String,
}

/// What curl was told.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) status: u16,
    /// `HTTP/2` or so.
    pub(crate) version: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Told {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut all = self.headers.iter();
        all.find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }

    pub(crate) fn json(&self) -> Value {
        let text = String::from_utf8_lossy(&self.body);
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    pub(crate) fn code(&self) -> String {
        self.json()["error"]["code"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }
}

impl Web {
    /// Starts one with this configuration besides.
    pub(crate) fn start(bench: &Bench, config: &str) -> Self {
        let token = || AuthToken::generate().expect("the system has entropy");
        let (reader, expired) = (token(), token());
        let entry = |token: &AuthToken, scopes: &str, more: &str| {
            let hash = token.hash().expect("a token").to_string();
            let (id, sha256) = hash.split_once(':').expect("two parts");
            format!(
                "[[api_keys]]\nkey_id = \"{id}\"\nsha256 = \"{sha256}\"\nscopes = [{scopes}]\n{more}\n"
            )
        };
        // Every run of curl is a connection of its own.
        let limits = "[limits]\nhandshake_burst = 10000\nhandshakes_per_second = 10000\n";
        let text = [
            limits.to_owned(),
            entry(&reader, "\"node:read\"", ""),
            entry(
                &expired,
                "\"node:read\"",
                "expires = \"2020-01-01T00:00:00Z\"",
            ),
            config.to_owned(),
        ];
        let own = |token: AuthToken| token.expose().to_owned();
        let node = bench.host_with(&text.concat());
        // The configuration gives nobody but keys everything; an administrator may.
        let made = node.call("token/make", &json!({ "scopes": ["*"] }));
        Self {
            admin: made["token"].as_str().expect("a token").to_owned(),
            node,
            reader: own(reader),
            expired: own(expired),
        }
    }

    pub(crate) fn target(&self) -> Target {
        self.node.target().parse().expect("the node's own target")
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.target().address().parse().expect("an address")
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("https://{}{path}", self.address())
    }

    /// Runs curl on a path with these arguments.
    pub(crate) fn curl(&self, path: &str, arguments: &[&str]) -> Told {
        let mut command = Command::new("curl");
        command
            .args([
                "--silent",
                "--show-error",
                "--insecure",
                "--include",
                "--path-as-is",
            ])
            .args(["--max-time", "60"])
            .args(arguments)
            .arg(self.url(path));
        let output = command.output().expect("curl is installed by the set-up");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{path} {arguments:?}: {error}");
        parse(&output.stdout)
    }

    /// The same with a token.
    pub(crate) fn curl_as(&self, token: &str, path: &str, arguments: &[&str]) -> Told {
        let header = format!("Authorization: Bearer {token}");
        let all = [&["--header", &header], arguments].concat();
        self.curl(path, &all)
    }

    /// Posts JSON with a token.
    pub(crate) fn post(&self, token: &str, path: &str, body: &str) -> Told {
        let json = "Content-Type: application/json";
        self.curl_as(token, path, &["--header", json, "--data-binary", body])
    }
}

/// Reads what `--include` prints; interim answers are skipped.
fn parse(text: &[u8]) -> Told {
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
            continue;
        }
        let headers = lines.filter_map(|line| line.split_once(':'));
        return Told {
            status,
            version,
            headers: headers
                .map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()))
                .collect(),
            body: rest.to_vec(),
        };
    }
}
