//! The client against the server of moto, a model of Amazon's services by other authors.

use std::env;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Stdio;

use alknet_metadata::fetch;
use alknet_provisioning::MetadataService;
use alknet_test_support::{deadline, limited};

use super::{DOCUMENT, PATIENCE, access};

/// Where the set-up put moto, and packages that it needs.
const PACKAGES: [&str; 3] = [
    "ALKNET_TEST_MOTO",
    "ALKNET_TEST_SCHEMATHESIS",
    "ALKNET_TEST_PYTHONPATH",
];

/// The folders of the packages, for Python.
fn packages() -> std::ffi::OsString {
    let folders = PACKAGES.map(|name| {
        let folder = env::var_os(name);
        let folder = folder.unwrap_or_else(|| {
            panic!("{name} is not set; run these tests with `cargo xtask test`")
        });
        PathBuf::from(folder)
    });
    env::join_paths(folders).expect("no colon in the names of the cache")
}

#[test]
fn the_server_of_moto_gives_a_token_and_the_document() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let log = folder.path().join("log");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/models/amazon.py");
    let mut server = limited(PATIENCE, "python3")
        .args(["-u", script, DOCUMENT])
        .env("PYTHONPATH", packages())
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(File::create(&log).expect("writable"))
        .spawn()
        .expect("python3 is installed");
    let output = server.stdout.take().expect("it is piped");
    let mut lines = BufReader::new(output).lines().map_while(Result::ok);
    let port = lines.find_map(|line| line.strip_prefix("port ")?.parse().ok());
    let said = || fs::read_to_string(&log).expect("text");
    let port: u16 = port.unwrap_or_else(|| panic!("{}", said()));
    let at = access((Ipv4Addr::LOCALHOST, port).into(), deadline(PATIENCE));
    let found = fetch(MetadataService::Ec2, &at);
    let found = found.unwrap_or_else(|error| panic!("{error}: {}", said()));
    let found = found.expect("a document");
    assert_eq!(found.as_slice(), DOCUMENT.as_bytes());
    drop(server.stdin.take());
    server.wait().expect("it ends with its input");
    let said = said();
    let requests: Vec<_> = said
        .lines()
        .filter_map(|line| line.split('"').nth(1))
        .collect();
    let ours = [
        "PUT /latest/api/token HTTP/1.1",
        "GET /latest/user-data HTTP/1.1",
    ];
    assert!(requests.ends_with(&ours), "{said}");
}
