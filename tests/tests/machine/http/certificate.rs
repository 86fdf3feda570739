//! A machine with a site and a name gets its certificate through port 80. That port also redirects, and does nothing
//! else.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Output;
use std::time::Duration;

use alknet_qemu::{Nic, VirtioDisk, Vm};
use alknet_tests::pebble::{GATEWAY, Pebble, PebbleAddress, PebbleOptions};
use alknet_tests::tools::{ext4_of, tool_says};
use alknet_tests::{
    BootVariant, Curl, CurlResponse, MachineNode, TestBench, curl, http3, whole_seconds,
};
use serde_json::json;

use super::{HTTP_PORT, VERSIONS};

/// Size of the data disk, in bytes; the file is sparse.
const DATA_BYTES: u64 = 1 << 30;

/// The machine's name, which the authority's name server resolves to this host.
const NAME: &str = "edge.example";

/// How far the machine's clock is ahead of the authority's, in the form that `date` takes. A clock that the test sets
/// to whole seconds may be behind, and then a certificate of this second would not be valid yet.
const AHEAD: &str = "60 seconds";

/// Lifetime of certificates in seconds, so long that the machine renews none during the test.
const LIFETIME_S: u64 = 90 * 86_400;

/// Longest run of curl.
const DONE_WITHIN: Duration = Duration::from_secs(300);

const PAGE: &str = "<!doctype html><title>a site</title><h1>here</h1>\n";
const SCRIPT: &str = "document.title = \"run\";\n";
/// Size of a file that is too large for the node to keep in memory, in bytes.
const LARGE_BYTES: usize = 1 << 20;

fn document(authority: &PebbleAddress) -> String {
    let directory = authority.directory(GATEWAY);
    format!(
        r#"
[http]
port80 = "acme+redirect"
site = "/data/www"

[tls]
roots = "/data/roots.pem"
webpki_ip = true

[tls.acme]
domains = ["{NAME}"]
directory = "{directory}"
challenge = "http-01"
"#
    )
}

/// A data partition that its owner wrote: the site, and the authority that the machine trusts.
fn disk(bench: &TestBench, authority: &PebbleAddress) -> VirtioDisk {
    let folder = bench.path().join("data.d");
    let www = folder.join("www");
    std::fs::create_dir_all(www.join("docs")).expect("the bench's folder is ours");
    let write = |path: &Path, content: &[u8]| {
        std::fs::write(path, content).expect("the bench's folder is ours");
    };
    write(&www.join("index.html"), PAGE.as_bytes());
    write(&www.join("docs/index.html"), PAGE.as_bytes());
    write(&www.join("app.js"), SCRIPT.as_bytes());
    write(&www.join("large.bin"), &large());
    write(&www.join(".hidden"), b"secret");
    let roots = std::fs::read(authority.roots()).expect("the authority has it");
    write(&folder.join("roots.pem"), &roots);
    let image = bench.disk("site", DATA_BYTES);
    ext4_of(&folder, &image);
    VirtioDisk::file(image).data()
}

fn large() -> Vec<u8> {
    (0..LARGE_BYTES).map(|n| (n % 251) as u8).collect()
}

#[test]
fn a_site_gets_its_certificate_through_port_80_which_does_nothing_else() {
    let bench = TestBench::new();
    let authority = PebbleAddress::new();
    let clock = tool_says("date", &["-u", "-d", AHEAD, "+base=%Y-%m-%dT%H:%M:%S"]);
    let machine = bench
        .machine(BootVariant::MicrovmErofs)
        .data(Some(disk(&bench, &authority)))
        .nic(Nic::user().forward(HTTP_PORT))
        .plain()
        .configured(&document(&authority))
        .with(|vm| vm.argument("-rtc").argument(clock.trim()));
    let vm = machine.start();
    let (port, plain) = (at(&vm, 443), at(&vm, HTTP_PORT));
    let pebble = authority.open(&PebbleOptions {
        http: plain.port(),
        tls: port.port(),
        lifetime_s: LIFETIME_S,
        refused_percent: 0,
    });
    let node = MachineNode::new(vm, BootVariant::MicrovmErofs, bench.admin().clone());
    pebble.certificate_at(port, NAME, None, || ());

    believed(&pebble, port);
    port_80_sends_on_and_does_nothing_else(plain);
    files_are_served_and_nothing_beside_them(port);
    let info = node.info();
    // The test checks the problems first, because a test run shows only the beginning of a long message.
    assert_eq!(info["problems"], json!([]), "{}", info["problems"]);
    assert_eq!(info["node_restarts"], 0, "{info:#}");
    node.end();
}

fn at(vm: &Vm, guest_port: u16) -> SocketAddr {
    vm.forward_of(guest_port).expect("it is forwarded")
}

/// curl trusts only the authority, and gets the site under its name.
fn believed(pebble: &Pebble, port: SocketAddr) {
    let root = pebble.root().display().to_string();
    let number = port.port();
    let found = format!("{NAME}:{number}:127.0.0.1");
    let url = format!("https://{NAME}:{number}/");
    let fixed = [
        "--silent",
        "--show-error",
        "--fail",
        "--max-time",
        &whole_seconds(DONE_WITHIN),
    ];
    for (version, _) in VERSIONS {
        let asked = [
            version,
            "--cacert",
            &root,
            "--resolve",
            &found,
            "--url",
            &url,
        ];
        let page = Curl::new(&[&fixed[..], &asked].concat()).says();
        assert_eq!(page, PAGE, "{version}");
    }
}

fn port_80_sends_on_and_does_nothing_else(plain: SocketAddr) {
    let url = |path: &str| format!("http://{plain}{path}");
    let ask = |path: &str, more: &[&str]| curl(&url(path), more);
    let paths = [
        "/",
        "/a/b?c=d",
        "/healthz",
        "/.well-known/acme-challenge/unknown",
    ];
    for path in paths {
        for how in [
            &[][..],
            &["--head"],
            &["--data", "x"],
            &["--request", "DELETE"],
        ] {
            let told = ask(path, how);
            let to = format!("https://127.0.0.1{path}");
            assert_eq!(
                (told.status, told.header("location")),
                (308, Some(to.as_str())),
                "{how:?}"
            );
            assert!(told.body.is_empty(), "{path} {how:?}: {}", told.text());
        }
    }
    let named = ask("/", &["--header", &format!("Host: {NAME}")]);
    let to = format!("https://{NAME}/");
    assert_eq!(
        (named.status, named.header("location")),
        (308, Some(to.as_str()))
    );
    let evil = ask("/", &["--header", "Host: evil.example"]);
    assert_eq!((evil.status, evil.header("location")), (404, None));

    let tls = format!("https://{plain}/");
    assert!(!asked(&["--insecure", &tls]).status.success());
    let prior = asked(&["--http2-prior-knowledge", &url("/")]);
    assert!(!prior.status.success(), "{prior:?}");
}

/// Runs curl with these arguments: options, and then the address.
fn asked(arguments: &[&str]) -> Output {
    let within = whole_seconds(DONE_WITHIN);
    let (url, options) = arguments.split_last().expect("an address");
    let fixed = ["--silent", "--max-time", &within, "--url", url];
    Curl::new(&[&fixed[..], options].concat()).output()
}

fn files_are_served_and_nothing_beside_them(port: SocketAddr) {
    let large = large();
    for (version, name) in VERSIONS {
        let get = |path: &str, more: &[&str]| -> CurlResponse {
            let url = format!("https://{port}{path}");
            let told = curl(&url, &[&[version], more].concat());
            assert_eq!(told.version, name);
            told
        };
        let page = get("/", &[]);
        assert_eq!((page.status, page.text().as_str()), (200, PAGE));
        assert_eq!(
            page.header("content-type"),
            Some("text/html; charset=utf-8")
        );
        assert_eq!(get("/docs/", &[]).text(), PAGE);
        assert_eq!(get("/docs", &[]).header("location"), Some("/docs/"));
        let script = get("/app.js", &[]);
        assert_eq!((script.status, script.text().as_str()), (200, SCRIPT));
        let known = script.header("etag").expect("a version");
        let known = format!("If-None-Match: {known}");
        assert_eq!(get("/app.js", &["--header", &known]).status, 304);
        let whole = get("/large.bin", &[]);
        assert!(whole.body == large, "{} bytes came", whole.body.len());
        let part = get("/large.bin", &["--range", "1000000-1000009"]);
        assert_eq!(
            (part.status, part.body.as_slice()),
            (206, &large[1_000_000..1_000_010])
        );
        for path in ["/.hidden", "/../roots.pem", "/%2e%2e/roots.pem", "/nothing"] {
            assert_eq!(get(path, &[]).status, 404, "{path}");
        }
    }
    let heard = http3(
        port,
        &json!([
            { "method": "GET", "path": "/" },
            { "method": "GET", "path": "/large.bin" },
            { "method": "GET", "path": "/.hidden" },
        ]),
    );
    let statuses: Vec<_> = heard.iter().map(|one| one.status).collect();
    assert_eq!(statuses, [200, 200, 404]);
    assert_eq!(heard[0].body, PAGE.as_bytes());
    assert!(heard[1].body == large, "{} bytes came", heard[1].body.len());
}
