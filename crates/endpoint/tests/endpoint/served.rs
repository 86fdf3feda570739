//! Which certificate the node serves to which client, and what happens when it is replaced.

use std::fs;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex};

use alknet_core::Carriage;
use alknet_endpoint::EndpointDialer;
use alknet_tls::{
    CertificateFiles, CertificateSource, CertificateStore, FileWatcher, NodeDiagnostics, NodeKey,
    PeerProof, ServerTlsOptions,
};
use rustls::NamedGroup;
use rustls::client::{ClientSessionMemoryCache, ClientSessionStore, Resumption};
use rustls::client::{Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls::pki_types::{CertificateDer, ServerName};

use crate::authority::{EndpointTestCa, shown};
use crate::matrix::{ClientKey, config, over_tcp, whoami};
use crate::support::{CARRIAGES, ECHO, EndpointTestNode, HTTP, WHOAMI, ask};

fn leaf(chain: &str) -> CertificateDer<'static> {
    use rustls::pki_types::pem::PemObject;
    CertificateDer::from_pem_slice(chain.as_bytes()).expect("a certificate")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_gets_its_certificate_and_others_the_nodes_own() {
    let authority = EndpointTestCa::new();
    let certificates = Arc::new(CertificateStore::default());
    certificates.put(
        CertificateSource::File(0),
        authority.pair(&["edge.example", "*.edge.example"]),
    );
    certificates.put(
        CertificateSource::File(1),
        authority.pair(&["www.edge.example"]),
    );
    let node = EndpointTestNode::with_tls(ServerTlsOptions {
        certificates: Arc::clone(&certificates),
        ..ServerTlsOptions::default()
    });
    let port = node.server.port();
    for carriage in CARRIAGES {
        for alpn in [HTTP, WHOAMI] {
            let mut seen = Vec::new();
            for name in ["edge.example", "mail.edge.example", "www.edge.example"] {
                let client = authority.client(alpn);
                seen.push(shown(carriage, port, name, client).await.expect(name));
            }
            assert_eq!(seen[0], seen[1]);
            assert_ne!(seen[1], seen[2], "the exact name wins");
        }
        for name in ["other.example", "a.b.edge.example", "127.0.0.1"] {
            let refused = shown(carriage, port, name, authority.client(HTTP)).await;
            assert!(refused.is_err(), "{name} is no name of the authority's");
            let server = node.key.public();
            let pinned = config(
                alknet_tls::provider(),
                server,
                false,
                ClientKey::None,
                Some(HTTP),
            );
            shown(carriage, port, name, pinned).await.expect(name);
        }
        // A raw key has no names.
        let (dialer, _) = node.peer("friend");
        dialer
            .dial_over(carriage, &node.target(), ECHO)
            .await
            .expect("dial");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn strict_names_refuse_unknown_names_with_the_right_alert() {
    let authority = EndpointTestCa::new();
    let certificates = Arc::new(CertificateStore::default());
    certificates.put(
        CertificateSource::File(0),
        authority.pair(&["edge.example"]),
    );
    let node = EndpointTestNode::with_tls(ServerTlsOptions {
        certificates,
        strict_sni: true,
        ..ServerTlsOptions::default()
    });
    let port = node.server.port();
    let server = node.key.public();
    let own_name = node.key.host_name();
    for carriage in CARRIAGES {
        let pinned = || {
            config(
                alknet_tls::provider(),
                server,
                false,
                ClientKey::None,
                Some(HTTP),
            )
        };
        for name in ["other.example", "127.0.0.1"] {
            let error = shown(carriage, port, name, pinned()).await.expect_err(name);
            let text = format!("{error:?}");
            let told = text.contains("UnrecognisedName") || text.contains("not served here");
            assert!(told, "{carriage} {name}: {text}");
        }
        shown(carriage, port, &own_name, pinned())
            .await
            .expect("the name of the node's key");
        shown(carriage, port, "edge.example", authority.client(HTTP))
            .await
            .expect("a configured name");
        let (dialer, _) = node.peer("friend");
        dialer
            .dial_over(carriage, &node.target(), ECHO)
            .await
            .expect("raw keys know no names");
    }
}

/// Counts tickets, which the library's own store does not show.
#[derive(Debug)]
struct CountingTicketStore {
    inner: ClientSessionMemoryCache,
    early_data: Mutex<Vec<u32>>,
}

impl ClientSessionStore for CountingTicketStore {
    fn set_kx_hint(&self, name: ServerName<'static>, group: NamedGroup) {
        self.inner.set_kx_hint(name, group);
    }

    fn kx_hint(&self, name: &ServerName<'_>) -> Option<NamedGroup> {
        self.inner.kx_hint(name)
    }

    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, name: ServerName<'static>, value: Tls13ClientSessionValue) {
        let bytes = value.max_early_data_size();
        self.early_data
            .lock()
            .expect("no test panics here")
            .push(bytes);
        self.inner.insert_tls13_ticket(name, value);
    }

    fn take_tls13_ticket(&self, name: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.inner.take_tls13_ticket(name)
    }
}

/// Two tickets, none for early data, and of no use where another configuration serves.
#[tokio::test(flavor = "multi_thread")]
async fn tickets_are_two_and_stay_where_they_were_made() {
    let node = EndpointTestNode::start();
    let port = node.server.port();
    let server = node.key.public();
    let store = Arc::new(CountingTicketStore {
        inner: ClientSessionMemoryCache::new(9),
        early_data: Mutex::default(),
    });
    let mut asked = config(
        alknet_tls::provider(),
        server,
        false,
        ClientKey::X509,
        Some(WHOAMI),
    );
    asked.resumption = Resumption::store(Arc::clone(&store) as _);
    let mut web = asked.clone();
    web.alpn_protocols = vec![HTTP.to_vec()];
    let (asked, web) = (Arc::new(asked), Arc::new(web));
    let (first, resumed) = over_tcp(port, Arc::clone(&asked)).await.expect("answer");
    assert!(first.starts_with("ed25519:") && !resumed);
    assert_eq!(
        *store.early_data.lock().expect("no test panics here"),
        [0, 0]
    );
    // The node requests no key from a client here, so a session with a known key must not come along.
    let (answer, resumed) = over_tcp(port, Arc::clone(&web)).await.expect("answer");
    assert_eq!((answer.as_str(), resumed), ("no key unknown\n", false));
    // A ticket from the web's configuration, in turn, leads to no session without a key.
    let (answer, _) = over_tcp(port, asked).await.expect("answer");
    assert_eq!(answer, first);
    let (_, resumed) = over_tcp(port, Arc::clone(&web)).await.expect("answer");
    assert!(!resumed, "the newest ticket is the other configuration's");
    let (_, resumed) = over_tcp(port, Arc::clone(&web)).await.expect("answer");
    assert!(resumed, "tickets do work where they were made");
    // On QUIC the tickets of TCP are as useless.
    let answer = whoami(Carriage::Quic, port, &web).await.expect("answer");
    assert_eq!(answer, "no key unknown\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_more_specific_protocol_is_chosen() {
    let node = EndpointTestNode::start();
    let server = node.key.public();
    let mut client = config(
        alknet_tls::provider(),
        server,
        false,
        ClientKey::X509,
        Some(HTTP),
    );
    client.alpn_protocols.push(WHOAMI.to_vec());
    for carriage in CARRIAGES {
        // 'h2' would not request the key.
        let answer = whoami(carriage, node.server.port(), &Arc::new(client.clone())).await;
        assert!(answer.expect("an answer").starts_with("ed25519:"));
    }
}

/// The certificate that browsers see without a configured one, over a restart.
#[tokio::test(flavor = "multi_thread")]
async fn the_browsers_certificate_keeps_its_key_and_is_private() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut keys = Vec::new();
    for _ in 0..2 {
        let node = EndpointTestNode::with_tls(ServerTlsOptions {
            state_dir: Some(dir.path().to_owned()),
            ..ServerTlsOptions::default()
        });
        let der = browser(node.server.port()).await;
        keys.push(PeerProof::from_certificate(&der).expect("a key").key);
    }
    assert_eq!(keys[0], keys[1]);
    let mode = fs::metadata(dir.path().join("browser.key")).expect("kept");
    assert_eq!(mode.permissions().mode() & 0o777, 0o600);
}

/// A client that checks nothing and, as all browsers, knows no Ed25519.
async fn browser(port: u16) -> CertificateDer<'static> {
    let output = tokio::process::Command::new("openssl")
        .args([
            "s_client",
            "-sigalgs",
            "ECDSA+SHA256:RSA-PSS+SHA256",
            "-alpn",
            "h2",
        ])
        .args(["-servername", "edge.example", "-connect"])
        .arg(format!("127.0.0.1:{port}"))
        .stdin(std::process::Stdio::null())
        .output()
        .await
        .expect("openssl is installed");
    leaf(&String::from_utf8_lossy(&output.stdout))
}

fn write(path: &Path, text: &str) {
    use std::io::Write;
    let temporary = path.with_extension("tmp");
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)
        .expect("create");
    file.write_all(text.as_bytes()).expect("write");
    fs::rename(&temporary, path).expect("rename");
}

/// Fifty connections live through a change of the files. A client that connects after it sees the new certificate,
/// and one that connects while a bad file lies there sees the old.
#[tokio::test(flavor = "multi_thread")]
async fn files_are_swapped_under_live_connections() {
    let dir = tempfile::tempdir().expect("a directory");
    let files = CertificateFiles {
        chain: dir.path().join("chain.pem"),
        key: dir.path().join("key.pem"),
    };
    let authority = EndpointTestCa::new();
    let (chain, key) = authority.issue(&["edge.example"]);
    write(&files.chain, &chain);
    write(&files.key, &key);
    let certificates = Arc::new(CertificateStore::default());
    let problems = Arc::new(NodeDiagnostics::default());
    let watcher = FileWatcher::new(
        vec![files.clone()],
        Arc::clone(&certificates),
        Arc::clone(&problems),
    );
    let mut problems = problems.watch();
    let period = std::time::Duration::from_millis(10);
    let watching = tokio::spawn(watcher.run(period));
    let node = EndpointTestNode::with_tls(ServerTlsOptions {
        certificates,
        ..ServerTlsOptions::default()
    });
    let port = node.server.port();
    let seen = async || {
        let client = authority.client(HTTP);
        shown(Carriage::Tcp, port, "edge.example", client).await
    };
    assert_eq!(seen().await.expect("served"), leaf(&chain));
    let dialer = EndpointDialer::new(Some(NodeKey::generate().expect("a key")));
    let mut live = Vec::new();
    for n in 0..50 {
        let carriage = CARRIAGES[n % 2];
        let dialled = dialer.dial_over(carriage, &node.target(), ECHO).await;
        live.push(dialled.expect("dial"));
    }

    let (new_chain, new_key) = authority.issue(&["edge.example"]);
    write(&files.chain, &new_chain);
    problems
        .wait_for(|list| !list.is_empty())
        .await
        .expect("the pair does not fit, and that is reported");
    assert_eq!(seen().await.expect("still served"), leaf(&chain));
    write(&files.key, &new_key);
    problems
        .wait_for(Vec::is_empty)
        .await
        .expect("the pair fits again");
    assert_eq!(seen().await.expect("served"), leaf(&new_chain));
    for connection in &live {
        assert_eq!(
            ask(connection, b"still here").await.expect("echo"),
            "still here"
        );
    }
    watching.abort();
}
