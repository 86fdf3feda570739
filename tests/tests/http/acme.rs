//! A node renews its certificate while clients read, and closes no connection.

use std::io::{BufReader, Read};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdout, Stdio};
use std::time::Duration;

use alknet_test_support::ReservedPort;
use alknet_test_support::seconds;
use alknet_tests::pebble::{PebbleAddress, PebbleOptions};
use alknet_tests::{Curl, TestBench, WebNode};
use serde_json::json;

/// The node's name, which the authority's name server resolves to this host.
const NAME: &str = "edge.example";

/// Lifetime of certificates in seconds. They are renewed after two thirds of it.
const LIFETIME_S: u64 = 60;

/// How many of a hundred requests the authority refuses because of their nonces. The library tries
/// three times, and the node again after a minute.
const REFUSED_PERCENT: u8 = 15;

/// Length of the download, a sparse file.
const FILE_BYTES: u64 = 64 << 20;

/// How much is read at once while the test waits for the renewal. The rest waits at the node.
const SOME_BYTES: usize = 64 << 10;

/// Longest run of curl.
const LIMIT: Duration = Duration::from_secs(300);

#[test]
fn a_renewal_ends_no_download_and_no_stream() {
    let bench = TestBench::new();
    let (authority, port) = (PebbleAddress::new(), ReservedPort::claim().expect("a port"));
    let www = bench.path().join("www");
    std::fs::create_dir(&www).expect("the bench's folder is ours");
    let file = std::fs::File::create(www.join("large.bin"));
    let sized = file.and_then(|file| file.set_len(FILE_BYTES));
    sized.expect("a sparse file costs nothing");
    let document = document(&authority, &www);
    let pebble = authority.open(&PebbleOptions {
        http: 1,
        tls: port.number(),
        lifetime_s: LIFETIME_S,
        refused_percent: REFUSED_PERCENT,
    });
    let web = WebNode::start_at(&bench, port.number(), &document);
    let first = pebble.certificate_at(web.address(), NAME, None, || ());

    let root = pebble.root();
    let begin = |version| Download::begin(web.address(), &root, version);
    let mut downloads = ["--http1.1", "--http2"].map(begin);
    let follow = r#"{"operation":"/node/log","input":{"follow":true,"last":1}}"#;
    let mut events = web.events(&web.admin, follow, &[]);
    assert!(events.next().is_some(), "a stream of events");

    pebble.certificate_at(web.address(), NAME, Some(&first), || {
        downloads.iter_mut().for_each(Download::read_some);
    });
    for download in downloads {
        download.end();
    }
    assert_eq!(web.curl("/after-the-renewal", &[]).status, 404);
    let told = events.any(|event| event.to_string().contains("/after-the-renewal"));
    assert!(told, "the stream ended");
    let info = web.node.call("node/info", &json!({}));
    assert_eq!(info["problems"], json!([]), "{info:#}");
}

fn document(authority: &PebbleAddress, www: &Path) -> String {
    let directory = authority.directory("localhost");
    format!(
        r#"
[http]
site = "{}"

[tls]
roots = "{}"

[tls.acme]
domains = ["{NAME}"]
directory = "{directory}"
challenge = "tls-alpn-01"
ca_file = "{}"
"#,
        www.display(),
        authority.roots().display(),
        authority.roots().display()
    )
}

/// curl that trusts only the test's authority, and reads only as much as the test asks for.
struct Download {
    curl: Child,
    output: BufReader<ChildStdout>,
    seen: u64,
    version: &'static str,
}

impl Download {
    fn begin(node: SocketAddr, root: &Path, version: &'static str) -> Self {
        let port = node.port();
        let (limit, root) = (seconds(LIMIT), root.display().to_string());
        let found = format!("{NAME}:{port}:{}", node.ip());
        let url = format!("https://{NAME}:{port}/large.bin");
        let fixed = ["--silent", "--show-error", "--fail", "--no-buffer", version];
        let asks = [
            "--max-time",
            &limit,
            "--cacert",
            &root,
            "--resolve",
            &found,
            "--url",
            &url,
        ];
        let mut curl = Curl::new(&[&fixed[..], &asks].concat()).start(Stdio::piped());
        let output = curl.stdout.take().expect("it was asked for above");
        let mut download = Self {
            curl,
            output: BufReader::new(output),
            seen: 0,
            version,
        };
        download.read_some();
        download
    }

    /// Reads a little more.
    fn read_some(&mut self) {
        let mut some = vec![0; SOME_BYTES];
        let read = self.output.read_exact(&mut some);
        read.unwrap_or_else(|error| panic!("{}: {error} after {}", self.version, self.seen));
        self.seen += SOME_BYTES as u64;
        assert!(self.seen < FILE_BYTES, "it ended before the renewal");
    }

    /// Reads the rest of the file.
    fn end(mut self) {
        let rest = std::io::copy(&mut self.output, &mut std::io::sink());
        let status = self.curl.wait().expect("it is our child");
        assert!(status.success(), "{}: {status}", self.version);
        let whole = self.seen + rest.expect("a pipe");
        assert_eq!(whole, FILE_BYTES, "{}", self.version);
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        // It has ended, or the test has failed.
        let _ = self.curl.kill();
        let _ = self.curl.wait();
    }
}
