//! Which nodes a command trusts: the tests give it words that name no node, names that another user wrote, and a
//! certificate that would be valid for more than the node.

use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::thread;

use alknet_test_support::skip;
use alknet_tests::tools::tool;
use alknet_tests::{CliRunner, Curl, HostNode, TestBench, binary, curl};
use alknet_tls::NodeKey;
use nix::sys::stat::Mode;
use nix::unistd::{geteuid, mkfifo};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, SanType,
    date_time_ymd,
};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{ServerConfig, ServerConnection};
use serde_json::Value;

use crate::enrolment::run;

/// A change that a hostile server makes to its certificate.
type CertificateChange = fn(&mut CertificateParams);

/// The bytes before the 32 bytes of an Ed25519 private key in PKCS#8 (RFC 8410 section 7).
const PKCS8_PREFIX: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];
const SEED: [u8; 32] = [7; 32];

/// The user forgot `ed25519:`. If the command took the key for a peer's name, it would pin no key.
#[test]
fn a_key_without_its_kind_is_not_dialled_without_a_pin() {
    let bench = TestBench::new();
    let admin = bench.admin();
    let identity = admin.identity();
    let (_, key) = identity.split_once(':').expect("a key has a kind");
    // No node listens on port 1, so an attempt to dial would fail with another code.
    let target = format!("{key}@localhost:1");
    for words in [
        &["status", &target][..],
        &["call", &target, "node/info"],
        &["node", "add", "oven", &target],
        &["node", "add", "oven", &format!("{key}@attic")],
    ] {
        let refused = run(admin, words);
        assert_eq!(
            (refused.status, refused.code().as_str()),
            (2, "USAGE"),
            "{words:?}: {refused:?}"
        );
        assert!(refused.errors.contains(&identity), "{words:?}: {refused:?}");
    }
}

/// The printed command of OpenSSL accepts the node that it names, and no other one at that address.
#[test]
fn openssl_accepts_the_node_of_the_printed_command_alone() {
    let bench = TestBench::new();
    let node = bench.host();
    let admin = bench.admin();
    let mut command = Command::new(binary());
    command.args(["pin", node.target(), "--state"]);
    command.arg(admin.state());
    let printed = admin.run(command);
    let line = printed.output.lines().find(|it| it.starts_with("openssl "));
    let line = line.unwrap_or_else(|| panic!("{printed:?}"));
    let file = bench.path().join("node.pem");
    let file = file.to_str().expect("UTF-8");
    run(admin, &["pin", node.target(), "--cert", file]).json();
    let line = line.replace("node.pem", file);
    let said = tool("sh", &["-c", &line]);
    assert!(said.status.success(), "{line}: {said:?}");
    let other = TestBench::new();
    let other = other.host();
    let (_, own_address) = node.target().split_once('@').expect("KEY@HOST:PORT");
    let (_, other_address) = other.target().split_once('@').expect("KEY@HOST:PORT");
    assert!(line.contains(own_address), "{line}");
    let line = line.replace(own_address, other_address);
    let said = tool("sh", &["-c", &line]);
    let errors = String::from_utf8_lossy(&said.stderr);
    assert!(!said.status.success(), "{line}: {said:?}");
    assert!(errors.contains("verify error"), "{line}: {errors}");
}

/// `oven` is a machine at one hub. The command does not switch off a machine with the same name at another hub.
#[test]
fn a_worker_with_a_name_is_not_looked_for_at_another_hub() {
    let bench = TestBench::new();
    let admin = bench.admin();
    for (hub, seed) in [("attic", [1; 32]), ("cellar", [2; 32])] {
        // No node listens on port 1, so an attempt to dial would fail with another code.
        let target = format!("{}@127.0.0.1:1", NodeKey::from_seed(&seed).public());
        run(admin, &["node", "add", hub, &target]).json();
    }
    run(admin, &["node", "add", "oven", "kitchen@attic"]).json();
    let refused = run(admin, &["poweroff", "oven", "--via", "cellar", "--yes"]);
    assert_eq!(
        (refused.status, refused.code().as_str()),
        (2, "USAGE"),
        "{refused:?}"
    );
    assert!(refused.errors.contains("'attic'"), "{refused:?}");
    let right = ["poweroff", "oven", "--via", "attic", "--yes"];
    let right = run(admin, &[&right[..], &["--carriage", "tcp"]].concat());
    assert_eq!(right.code(), "UNAVAILABLE", "{right:?}");
}

/// Another user made the folder that the user names as the state, and set its default node.
#[test]
fn names_in_a_folder_that_others_may_write_are_not_used() {
    let bench = TestBench::new();
    let node = bench.host();
    let admin = bench.admin();
    run(
        admin,
        &["node", "add", "edge-1", node.target(), "--default"],
    )
    .json();
    let file = admin.state().join("nodes.json");
    let allow = |path: &Path, mode: u32| {
        let allowed = fs::set_permissions(path, fs::Permissions::from_mode(mode));
        allowed.expect("the folder is ours");
    };
    assert_eq!(run(admin, &["ops"]).status, 0);
    for (path, foreign, own) in [
        (admin.state(), 0o777, 0o700),
        (file.as_path(), 0o666, 0o600),
    ] {
        allow(path, foreign);
        for words in [&["ops"][..], &["ops", "edge-1"], &["node", "list"]] {
            let refused = run(admin, words);
            assert_eq!(refused.code(), "LOCAL", "{words:?}: {refused:?}");
            assert!(
                refused.errors.contains("others may write it"),
                "{words:?}: {refused:?}"
            );
        }
        // A call by address needs no name, but needs the user's key. The key in a foreign folder may belong to
        // another user.
        let by_address = run(admin, &["ops", node.target()]);
        let is_folder = path == admin.state();
        assert_eq!(by_address.status, i32::from(is_folder), "{by_address:?}");
        let unknown = run(admin, &["ops", node.target(), "--anonymous"]);
        assert_eq!(unknown.status, 0, "{unknown:?}");
        allow(path, own);
        assert_eq!(run(admin, &["ops"]).status, 0);
    }
}

/// An attacker on the same machine waits until root names the folder. Through a link in the place of a file, the
/// command would create a file at the link's target. At a pipe, the command would wait for ever.
#[test]
fn a_link_in_a_folder_makes_no_command_write_elsewhere() {
    let bench = TestBench::new();
    let admin = bench.admin();
    admin.identity();
    let (lock, elsewhere) = (
        admin.state().join("nodes.lock"),
        bench.path().join("elsewhere"),
    );
    let words = ["node", "use", "--none"];
    symlink(&elsewhere, &lock).expect("the folder is ours");
    for (mode, why) in [(0o777, "others may write it"), (0o700, "nodes.lock")] {
        let allowed = fs::set_permissions(admin.state(), fs::Permissions::from_mode(mode));
        allowed.expect("the folder is ours");
        let refused = run(admin, &words);
        assert_eq!(refused.code(), "LOCAL", "{mode:o}: {refused:?}");
        assert!(refused.errors.contains(why), "{mode:o}: {refused:?}");
        let made = elsewhere.symlink_metadata();
        assert!(made.is_err(), "{mode:o}: a file was made");
    }
    fs::remove_file(&lock).expect("the folder is ours");
    mkfifo(&lock, Mode::S_IRWXU).expect("the folder is ours");
    let refused = run(admin, &words);
    assert_eq!(refused.code(), "LOCAL", "{refused:?}");
    assert!(refused.errors.contains("nodes.lock"), "{refused:?}");
    fs::remove_file(&lock).expect("the folder is ours");
    assert_eq!(run(admin, &words).status, 0);
}

/// Root may read every file. A command of root that took another user's key would act as that user.
#[test]
fn root_acts_with_no_key_of_another_user() {
    /// User id of a user without rights.
    const OTHER_USER: u32 = 65_534;
    if !geteuid().is_root() {
        skip!("root", "no file can be given to another user");
    }
    let bench = TestBench::new();
    let node = bench.host();
    let admin = bench.admin();
    let key = admin.state().join("identity.key");
    for path in [admin.state(), key.as_path()] {
        for (owner, refuses) in [(OTHER_USER, true), (0, false)] {
            chown(path, Some(owner), None).expect("root may");
            for words in [&["identity"][..], &["ops", node.target()]] {
                let answer = run(admin, words);
                assert_eq!(answer.status != 0, refuses, "{words:?}: {answer:?}");
                let why = answer.errors.contains("belongs to user 65534");
                assert_eq!(why, refuses, "{words:?}: {answer:?}");
            }
        }
    }
}

/// The private key of the hostile server in PKCS#8, and as a signing key pair.
fn hostile_key() -> (PrivatePkcs8KeyDer<'static>, KeyPair) {
    let pkcs8 = PrivatePkcs8KeyDer::from([&PKCS8_PREFIX[..], &SEED].concat());
    let pair = KeyPair::try_from(&pkcs8).expect("it is a key");
    (pkcs8, pair)
}

/// The parameters that a node uses for the certificate of this key.
fn own_params() -> CertificateParams {
    let name = NodeKey::from_seed(&SEED).host_name();
    let mut params = CertificateParams::new(vec![name.clone()]).expect("a name");
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = date_time_ymd(1975, 1, 1);
    params.not_after = date_time_ymd(4096, 1, 1);
    params
}

/// Starts a server with a self-signed certificate for a key that a user pinned. Returns the server's port.
fn hostile_server(change: impl FnOnce(&mut CertificateParams)) -> u16 {
    let (pkcs8, pair) = hostile_key();
    let mut params = own_params();
    change(&mut params);
    let certificate: CertificateDer<'static> =
        params.self_signed(&pair).expect("it signs").der().clone();
    let mut config = ServerConfig::builder_with_provider(alknet_tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has it")
        .with_no_client_auth()
        .with_single_cert(vec![certificate], PrivateKeyDer::Pkcs8(pkcs8))
        .expect("the key fits");
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let port = listener.local_addr().expect("it is bound").port();
    let config = Arc::new(config);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a client");
            let mut tls = ServerConnection::new(Arc::clone(&config)).expect("it is usable");
            // The client may refuse the certificate. The server holds the connection until the client has closed it.
            while tls.is_handshaking() && tls.complete_io(&mut stream).is_ok() {}
            stream.read_to_end(&mut Vec::new()).ok();
        }
    });
    port
}

/// Whether OpenSSL accepts a server's certificate with this file of authorities.
fn openssl_believes(authorities: &Path, certificate: &Path) -> bool {
    let words = ["verify", "-purpose", "sslserver", "-no-CApath", "-CAfile"].map(OsStr::new);
    let files = [authorities.as_os_str(), certificate.as_os_str()];
    let output = tool("openssl", &[&words[..], &files].concat());
    output.status.success()
}

/// The node signs a certificate for another name, as an authority would. OpenSSL checks whether the node's own
/// certificate has the right to issue, and rustls does not. The file is therefore only for clients built on OpenSSL,
/// and `pin` says so.
#[test]
fn a_pinned_node_vouches_for_no_other_name_at_a_client_built_on_openssl() {
    const BANK: &str = "bank.example";
    let bench = TestBench::new();
    let admin = bench.admin();
    let [file, authority, leaf] =
        ["node.pem", "authority.pem", "leaf.pem"].map(|name| bench.path().join(name));
    let key = NodeKey::from_seed(&SEED).public();
    let target = format!("{key}@127.0.0.1:{}", hostile_server(|_| {}));
    let mut command = Command::new(binary());
    command.args(["pin", &target, "--cert"]).arg(&file);
    command.arg("--state").arg(admin.state());
    let written = admin.run(command);
    assert_eq!(written.status, 0, "{written:?}");
    assert!(written.errors.contains("rustls"), "{written:?}");
    let (_, pair) = hostile_key();
    let mut params = own_params();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let whole = params.self_signed(&pair).expect("it signs");
    fs::write(&authority, whole.pem()).expect("the folder is ours");
    let of_bank = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).expect("a key");
    let issued = CertificateParams::new(vec![BANK.to_owned()]).expect("a name");
    let issued = issued.signed_by(&of_bank, &Issuer::new(own_params(), pair));
    let issued = issued.expect("it signs");
    fs::write(&leaf, issued.pem()).expect("the folder is ours");
    assert!(!openssl_believes(&file, &leaf), "the node is an authority");
    // OpenSSL accepts the node's own certificate. With the right to issue in the node's certificate, OpenSSL would
    // also accept the other one.
    assert!(openssl_believes(&file, &file));
    assert!(openssl_believes(&authority, &leaf));
    let roots = alknet_tls::roots_from_file(&file).expect("a certificate");
    let verifier =
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), alknet_tls::provider());
    let verifier = verifier.build().expect("it has an authority");
    let bank = ServerName::try_from(BANK).expect("a name");
    let by_rustls = verifier.verify_server_cert(issued.der(), &[], &bank, &[], UnixTime::now());
    assert!(
        by_rustls.is_ok(),
        "rustls looks for the right to issue: say so in docs/certificates.md"
    );
}

/// The printed commands set the file for one program at a time, and say for which clients it is not suitable.
#[test]
fn the_commands_of_pin_warn_of_clients_built_on_rustls() {
    let bench = TestBench::new();
    let key = NodeKey::from_seed(&SEED).public();
    let mut command = Command::new(binary());
    command.args(["pin", &format!("{key}@127.0.0.1:1"), "--state"]);
    command.arg(bench.admin().state());
    let said = bench.admin().run(command);
    assert_eq!(said.status, 0, "{said:?}");
    assert!(said.output.contains("SSL_CERT_FILE="), "{said:?}");
    assert!(said.output.contains("built on rustls"), "{said:?}");
    let mut lines = said.output.lines();
    let is_for_all = lines.any(|line| line.trim_start().starts_with("export "));
    assert!(!is_for_all, "{said:?}");
}

/// Clients use the file as an authority. With the right to issue, the node's certificate would be valid for every
/// name.
#[test]
fn a_pinned_node_becomes_no_authority() {
    let bench = TestBench::new();
    let admin = bench.admin();
    let key = NodeKey::from_seed(&SEED).public();
    let file = bench.path().join("node.pem");
    let pinned = |cli: &CliRunner, port: u16| {
        let target = format!("{key}@127.0.0.1:{port}");
        run(
            cli,
            &["pin", &target, "--cert", file.to_str().expect("UTF-8")],
        )
    };
    let changes: [(&str, CertificateChange); 3] = [
        ("an authority", |it| {
            it.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }),
        ("another name", |it| {
            let name = "bank.example".try_into().expect("a name");
            it.subject_alt_names.push(SanType::DnsName(name));
        }),
        ("other dates", |it| it.not_after = date_time_ymd(4097, 1, 1)),
    ];
    for (what, change) in changes {
        let refused = pinned(admin, hostile_server(change));
        assert_eq!(refused.code(), "PIN_MISMATCH", "{what}: {refused:?}");
        assert!(!file.exists(), "{what}: the file was written");
    }
    // `pin` accepts the same server without a change, and a node.
    let own = pinned(admin, hostile_server(|_| {}));
    assert_eq!(own.status, 0, "{own:?}");
    fs::remove_file(&file).expect("it was written");
    let node = bench.host();
    let words = [
        "pin",
        node.target(),
        "--cert",
        file.to_str().expect("UTF-8"),
    ];
    run(admin, &words).json();
    alknet_tls::roots_from_file(&file).expect("a certificate");
    let pinned = run(admin, &["pin", node.target()]).json();
    is_served_by_its_name(&node, &file, &pinned["keys"][0]);
}

/// A client with the file sends its request to the name in the file, which `alknet pin` prints.
fn is_served_by_its_name(node: &HostNode, file: &Path, pinned: &Value) {
    let name = pinned["server_name"]
        .as_str()
        .expect("the name in the file");
    let (_, address) = node.target().split_once('@').expect("a key and an address");
    let address: SocketAddr = address.parse().expect("an address");
    let (ip, port) = (address.ip(), address.port());
    let file = file.to_str().expect("UTF-8");
    let (way, url) = (
        format!("{name}:{port}:{ip}"),
        format!("https://{name}:{port}/healthz"),
    );
    // An attacker's page may have a name with the same ending. That name belongs to no key of this node.
    let other = NodeKey::from_seed(&SEED).host_name();
    let host = format!("Host: {other}:{port}");
    let (ask, served) = (["--header", &host], format!("https://{address}/healthz"));
    assert_eq!(curl(&served, &ask).status, 421, "{other}");
    assert_eq!(curl(&served, &[]).status, 200);
    let asks = [
        "--silent",
        "--cacert",
        file,
        "--resolve",
        &way,
        "--url",
        &url,
    ];
    assert_eq!(Curl::new(&asks).says(), "ok\n");
}
