//! What a command takes for a node: words that are no node's, names that another user wrote, and a certificate that
//! would vouch for more than the node.

use std::fs;
use std::io::Read;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use alknet_tests::{CliRunner, TestBench};
use alknet_tls::NodeKey;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, SanType,
    date_time_ymd,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection};

use crate::enrolment::run;

/// What a hostile server makes different in its certificate.
type CertificateChange = fn(&mut CertificateParams);

/// What stands before the 32 bytes of an Ed25519 key in PKCS#8 (RFC 8410 section 7).
const PKCS8_PREFIX: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];
const SEED: [u8; 32] = [7; 32];

/// The user forgot `ed25519:`. As the name of a peer the key would pin nothing.
#[test]
fn a_key_without_its_kind_is_not_dialled_without_a_pin() {
    let bench = TestBench::new();
    let admin = bench.admin();
    let identity = admin.identity();
    let (_, key) = identity.split_once(':').expect("a key has a kind");
    // Nothing listens there, so that a dial would fail in another way.
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

/// `oven` is a machine at one hub. A machine of the same name at another hub is not switched off in its place.
#[test]
fn a_worker_with_a_name_is_not_looked_for_at_another_hub() {
    let bench = TestBench::new();
    let admin = bench.admin();
    for (hub, seed) in [("attic", [1; 32]), ("cellar", [2; 32])] {
        // Nothing listens there, so that a dial would fail in another way.
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

/// Another user made the folder that the user names as the state, and chose its default node.
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
        // An address needs no name.
        assert_eq!(run(admin, &["ops", node.target()]).status, 0);
        allow(path, own);
        assert_eq!(run(admin, &["ops"]).status, 0);
    }
}

/// A server with a certificate of its own making, by a key that a user pinned. Answers its port.
fn hostile_server(change: impl FnOnce(&mut CertificateParams)) -> u16 {
    let key = NodeKey::from_seed(&SEED);
    let pkcs8 = [&PKCS8_PREFIX[..], &SEED].concat();
    let pkcs8 = PrivatePkcs8KeyDer::from(pkcs8);
    let pair = KeyPair::try_from(&pkcs8).expect("it is a key");
    let mut params = CertificateParams::new(vec![key.host_name()]).expect("a name");
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, key.host_name());
    params.not_before = date_time_ymd(1975, 1, 1);
    params.not_after = date_time_ymd(4096, 1, 1);
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
            // The client may refuse what it sees. Until it has left, the server holds the connection.
            while tls.is_handshaking() && tls.complete_io(&mut stream).is_ok() {}
            stream.read_to_end(&mut Vec::new()).ok();
        }
    });
    port
}

/// The file goes to clients that take it for an authority: with the right to issue it would vouch for every name.
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
    // The same server without a change, and a node.
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
}
