//! Certificates from an independent authority: Pebble, with its own name server.

mod derived_keys;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use alknet_core::{BoxError, BoxFuture, Carriage, DialAllowList};
use alknet_endpoint::EndpointDialer;
use alknet_http_client::{ClientOptions, HttpClient, Redirects};
use alknet_test_support::ReservedPort;
use alknet_tls::acme::{
    AccountKey, Acme, AcmeHandle, AcmeOptions, AcmeParts, AcmeTransport, ChallengeKind,
    DnsChallenge, HttpChallengeResponder, HttpChallenges, KeySeal, SealError,
};
use alknet_tls::{
    ACME_FAILED, CLOCK_INSANE, CertificateSource, CertificateStore, NodeDiagnostics,
    ServerTlsOptions, roots_from_file,
};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use bytes::Bytes;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use zeroize::Zeroizing;

use crate::authority::{EndpointTestCa, shown};
use crate::support::{CARRIAGES, ECHO, EndpointTestNode, HTTP, ask, hung};

/// The node's way to the authority.
#[derive(Clone)]
struct AcmeTestTransport(HttpClient);

impl AcmeTestTransport {
    fn by(dialer: EndpointDialer) -> Self {
        let options = ClientOptions {
            reach: DialAllowList::Anywhere,
            redirects: Redirects::No,
            ..ClientOptions::default()
        };
        Self(HttpClient::new(Arc::new(dialer), options))
    }
}

impl AcmeTransport for AcmeTestTransport {
    fn send(
        &self,
        request: http::Request<Bytes>,
    ) -> BoxFuture<'static, Result<http::Response<Bytes>, BoxError>> {
        let client = self.0.clone();
        Box::pin(async move {
            let (head, body) = client.send(request).await?.into_parts();
            let body = body.collect_bounded(1 << 20).await?;
            Ok(http::Response::from_parts(head, body))
        })
    }
}

/// A program of the tests, which ends with them.
struct AcmeTestProcess(Child);

impl AcmeTestProcess {
    fn start(command: &mut Command, log: &Path) -> Self {
        let log = std::fs::File::create(log).expect("a log file");
        let errors = log.try_clone().expect("a log file");
        let child = command
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .spawn()
            .expect("the package pebble is installed");
        Self(child)
    }
}

impl Drop for AcmeTestProcess {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Ca {
    programs: [AcmeTestProcess; 2],
    dir: TempDir,
    web: EndpointTestCa,
    directory: u16,
    management: u16,
    names: u16,
    http: u16,
    _ports: [ReservedPort; 5],
}

impl Ca {
    /// An authority that reaches every name at 127.0.0.1, on port `tls` and on a port for HTTP.
    async fn start(tls: u16) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let web = EndpointTestCa::new();
        let (chain, key) = web.issue(&["localhost"]);
        std::fs::write(dir.path().join("chain.pem"), chain).expect("write");
        std::fs::write(dir.path().join("key.pem"), key).expect("write");
        let ports = ReservedPort::claim_all();
        let [directory, management, names, dns, http] = ports.each_ref().map(ReservedPort::number);
        let config = serde_json::json!({ "pebble": {
            "listenAddress": format!("127.0.0.1:{directory}"),
            "managementListenAddress": format!("127.0.0.1:{management}"),
            "certificate": dir.path().join("chain.pem"),
            "privateKey": dir.path().join("key.pem"),
            "httpPort": http,
            "tlsPort": tls,
            "ocspResponderURL": "",
            "externalAccountBindingRequired": false,
        }});
        let file = dir.path().join("pebble.json");
        std::fs::write(&file, config.to_string()).expect("write");
        let name_server = AcmeTestProcess::start(
            Command::new("pebble-challtestsrv")
                .args(["-http01", "", "-https01", "", "-tlsalpn01", ""])
                .args(["-defaultIPv4", "127.0.0.1", "-defaultIPv6", ""])
                .args(["-dns01", &format!("127.0.0.1:{dns}")])
                .args(["-management", &format!("127.0.0.1:{names}")]),
            &dir.path().join("names.log"),
        );
        let pebble = AcmeTestProcess::start(
            Command::new("pebble")
                .arg("-config")
                .arg(&file)
                .args(["-dnsserver", &format!("127.0.0.1:{dns}")])
                .env("PEBBLE_VA_NOSLEEP", "1")
                .env("PEBBLE_AUTHZREUSE", "0")
                // The library gives up after three refused nonces, which would be a failure of this side.
                .env("PEBBLE_WFE_NONCEREJECT", "0"),
            &dir.path().join("pebble.log"),
        );
        let ca = Self {
            programs: [name_server, pebble],
            dir,
            web,
            directory,
            management,
            names,
            http,
            _ports: ports,
        };
        for port in [names, management, directory] {
            ca.answers(port).await;
        }
        ca
    }

    async fn answers(&self, port: u16) {
        let connect = async {
            // No event announces it: the test polls.
            while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let up = tokio::time::timeout(hung(), connect).await;
        assert!(up.is_ok(), "{}", self.log());
    }

    fn log(&self) -> String {
        let read = |file| std::fs::read_to_string(self.dir.path().join(file)).unwrap_or_default();
        format!("{}\n{}", read("pebble.log"), read("names.log"))
    }

    /// Reaches the authority by a CA file, as `tls.acme.ca_file` names one.
    fn client(&self) -> AcmeTestTransport {
        let file = self.dir.path().join("vouching.pem");
        std::fs::write(&file, &self.web.pem).expect("write");
        let roots = roots_from_file(&file).expect("a certificate");
        AcmeTestTransport::by(EndpointDialer::with_roots(None, roots))
    }

    /// Trusts the certificates that this authority signs.
    async fn trusting(&self) -> ClientConfig {
        let request = http::Request::get(format!("https://localhost:{}/roots/0", self.management))
            .body(Bytes::new())
            .expect("a request");
        let answer = self.client().send(request).await.expect("the root");
        let root = CertificateDer::from_pem_slice(answer.body()).expect("a certificate");
        let mut roots = RootCertStore::empty();
        roots.add(root).expect("a root");
        let mut config = ClientConfig::builder_with_provider(alknet_tls::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![HTTP.to_vec()];
        config
    }

    fn options(&self, state: &Path, names: &[&str], challenge: ChallengeKind) -> AcmeOptions {
        AcmeOptions {
            directory: format!("https://localhost:{}/dir", self.directory),
            contact: vec!["mailto:admin@example.org".to_owned()],
            names: names.iter().map(|&name| name.to_owned()).collect(),
            challenge: Some(challenge),
            profile: None,
            state_dir: state.to_owned(),
            clock_floor: 0,
        }
    }
}

/// A node with the parts that its certificate needs.
struct AcmeTestNode {
    node: EndpointTestNode,
    tls: ServerTlsOptions,
    problems: Arc<NodeDiagnostics>,
    http: Arc<HttpChallenges>,
    state: TempDir,
}

impl AcmeTestNode {
    fn start() -> Self {
        let tls = ServerTlsOptions {
            certificates: Arc::new(CertificateStore::default()),
            ..ServerTlsOptions::default()
        };
        Self {
            node: EndpointTestNode::with_tls(tls.clone()),
            tls,
            problems: Arc::default(),
            http: Arc::default(),
            state: tempfile::tempdir().expect("a directory"),
        }
    }

    fn parts(&self, ca: &Ca) -> AcmeParts {
        AcmeParts {
            transport: Arc::new(ca.client()),
            store: Arc::clone(&self.tls.certificates),
            problems: Arc::clone(&self.problems),
            alpn: Arc::clone(&self.tls.challenges),
            http: Some(Arc::clone(&self.http)),
            dns: Some(Arc::new(DnsTestServer(ca.names))),
            account_key: None,
            key_seal: None,
        }
    }

    fn run(&self, ca: &Ca, names: &[&str], challenge: ChallengeKind) -> AcmeHandle {
        let options = ca.options(self.state.path(), names, challenge);
        let acme = Acme::new(options, self.parts(ca)).expect("good options");
        let handle = acme.handle();
        tokio::spawn(acme.run());
        handle
    }

    /// Waits for the next certificate.
    async fn renewed(&self, ca: &Ca, seen: &mut tokio::sync::watch::Receiver<u64>) {
        let done = tokio::time::timeout(hung(), seen.changed()).await;
        let problems = self.problems.list();
        assert!(done.is_ok(), "{problems:?}\n{}", ca.log());
    }

    async fn shows(
        &self,
        carriage: Carriage,
        name: &str,
        client: &ClientConfig,
    ) -> CertificateDer<'static> {
        shown(carriage, self.node.server.port(), name, client.clone())
            .await
            .unwrap_or_else(|error| panic!("{carriage} {name}: {error}"))
    }
}

/// The name server's own interface for records.
struct DnsTestServer(u16);

impl DnsTestServer {
    async fn post(port: u16, path: &str, body: serde_json::Value) -> Result<(), BoxError> {
        let body = body.to_string();
        let request = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut tcp = TcpStream::connect(("127.0.0.1", port)).await?;
        tcp.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        tcp.read_to_string(&mut answer).await?;
        match answer.starts_with("HTTP/1.1 200") {
            true => Ok(()),
            false => Err(answer.into()),
        }
    }
}

impl DnsChallenge for DnsTestServer {
    fn covers(&self, _: &str) -> bool {
        true
    }

    fn publish<'a>(&'a self, name: &'a str, value: &'a str) -> BoxFuture<'a, Result<(), BoxError>> {
        let record = serde_json::json!({ "host": format!("{name}."), "value": value });
        Box::pin(Self::post(self.0, "/set-txt", record))
    }

    fn withdraw<'a>(&'a self, name: &'a str, _: &'a str) -> BoxFuture<'a, Result<(), BoxError>> {
        let record = serde_json::json!({ "host": format!("{name}.") });
        Box::pin(Self::post(self.0, "/clear-txt", record))
    }
}

/// Over the node's own port; renewed while fifty connections live and new ones keep coming; kept over a restart.
#[tokio::test(flavor = "multi_thread")]
async fn over_our_port_and_renewed_under_load() {
    let served = AcmeTestNode::start();
    let port = served.node.server.port();
    let ca = Ca::start(port).await;
    let mut changes = served.tls.certificates.watch();
    let acme = served.run(
        &ca,
        &["Edge.Example", "www.edge.example"],
        ChallengeKind::TlsAlpn01,
    );
    served.renewed(&ca, &mut changes).await;
    assert_eq!(served.problems.list(), []);
    let client = ca.trusting().await;
    let first = served.shows(Carriage::Tcp, "edge.example", &client).await;
    assert_eq!(
        first,
        served
            .shows(Carriage::Quic, "www.edge.example", &client)
            .await
    );

    let dialer = EndpointDialer::new(None);
    let mut live = Vec::new();
    for n in 0..50 {
        let carriage = CARRIAGES[n % 2];
        let dialled = dialer
            .dial_over(carriage, &served.node.target(), ECHO)
            .await;
        live.push(dialled.expect("dial"));
    }
    let failed = served.node.server.counters().handshakes_failed;
    changes.mark_unchanged();
    acme.renew();
    let begun = Instant::now();
    loop {
        served.shows(Carriage::Tcp, "edge.example", &client).await;
        // The pause stays below the limit on new handshakes of one network, which this test does not cover.
        let pause = Duration::from_millis(200);
        if tokio::time::timeout(pause, changes.changed()).await.is_ok() {
            break;
        }
        let in_time = begun.elapsed() < hung();
        assert!(in_time, "{:?}\n{}", served.problems.list(), ca.log());
    }
    let second = served.shows(Carriage::Tcp, "edge.example", &client).await;
    assert_ne!(first, second);
    for connection in &live {
        assert_eq!(
            ask(connection, b"still here").await.expect("echo"),
            "still here"
        );
    }
    assert_eq!(served.node.server.counters().handshakes_failed, failed);
    assert!(!served.tls.challenges.is_pending());

    let store = Arc::new(CertificateStore::default());
    let parts = AcmeParts {
        store: Arc::clone(&store),
        ..served.parts(&ca)
    };
    let options = ca.options(
        served.state.path(),
        &["edge.example", "www.edge.example"],
        ChallengeKind::TlsAlpn01,
    );
    let _again = Acme::new(options, parts).expect("good options");
    let kept = store.pair(CertificateSource::Acme).expect("kept on disk");
    assert_eq!(kept.names(), ["edge.example", "www.edge.example"]);
    drop(ca.programs);
}

#[tokio::test(flavor = "multi_thread")]
async fn over_http() {
    let served = AcmeTestNode::start();
    let ca = Ca::start(1).await;
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", ca.http))
        .await
        .expect("the port");
    tokio::spawn(answer_http(listener, Arc::clone(&served.http) as _));
    let mut changes = served.tls.certificates.watch();
    served.run(&ca, &["http.example"], ChallengeKind::Http01);
    served.renewed(&ca, &mut changes).await;
    let client = ca.trusting().await;
    served.shows(Carriage::Tcp, "http.example", &client).await;
}

async fn answer_http(listener: tokio::net::TcpListener, answers: Arc<dyn HttpChallengeResponder>) {
    while let Ok((mut tcp, _)) = listener.accept().await {
        let mut head = vec![0; 4096];
        let read = tcp.read(&mut head).await.unwrap_or(0);
        let head = String::from_utf8_lossy(&head[..read]).into_owned();
        let token = head
            .strip_prefix("GET /.well-known/acme-challenge/")
            .and_then(|rest| rest.split_once(' '))
            .and_then(|(token, _)| answers.answer(token));
        let answer = match token {
            Some(body) => format!(
                "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            ),
            None => "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n".to_owned(),
        };
        let _ = tcp.write_all(answer.as_bytes()).await;
    }
}

/// A name and a wildcard above the same record name.
#[tokio::test(flavor = "multi_thread")]
async fn over_dns_with_a_wildcard() {
    let served = AcmeTestNode::start();
    let ca = Ca::start(1).await;
    let mut changes = served.tls.certificates.watch();
    served.run(&ca, &["dns.example", "*.dns.example"], ChallengeKind::Dns01);
    served.renewed(&ca, &mut changes).await;
    let client = ca.trusting().await;
    for name in ["dns.example", "any.dns.example"] {
        served.shows(Carriage::Quic, name, &client).await;
    }
}

/// The authority refuses the order: the node goes on serving the certificate before, and reports the reason.
#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_keeps_the_old_certificate() {
    let served = AcmeTestNode::start();
    let old = EndpointTestCa::new();
    let certificates = &served.tls.certificates;
    certificates.put(CertificateSource::Acme, old.pair(&["lost.example"]));
    // No server of the test listens where the authority connects.
    let ca = Ca::start(1).await;
    let mut problems = served.problems.watch();
    served.run(&ca, &["lost.example"], ChallengeKind::TlsAlpn01);
    let problem = tokio::time::timeout(hung(), problems.wait_for(|list| !list.is_empty())).await;
    let problem = problem
        .unwrap_or_else(|_| panic!("{}", ca.log()))
        .expect("alive")[0]
        .clone();
    assert_eq!(
        (problem.code, &*problem.subject),
        (ACME_FAILED, "lost.example")
    );
    // The authority names the server, or the way in which it could not be reached, whichever it knows first.
    let reasons = ["lost.example", "tls-alpn-01"];
    assert!(
        reasons.iter().any(|it| problem.text.contains(it)),
        "{problem}"
    );
    let client = old.client(HTTP);
    served.shows(Carriage::Tcp, "lost.example", &client).await;
}

/// A private authority, for which no public one vouches: only a node with its CA file trusts it.
#[tokio::test(flavor = "multi_thread")]
async fn an_authority_of_ones_own_is_reached_by_its_file() {
    let served = AcmeTestNode::start();
    let ca = Ca::start(1).await;
    let names = ["own.example"];
    let mut problems = served.problems.watch();
    let options = ca.options(served.state.path(), &names, ChallengeKind::Dns01);
    let parts = AcmeParts {
        transport: Arc::new(AcmeTestTransport::by(EndpointDialer::new(None))),
        ..served.parts(&ca)
    };
    let running = tokio::spawn(Acme::new(options, parts).expect("good options").run());
    let problem = tokio::time::timeout(hung(), problems.wait_for(|list| !list.is_empty())).await;
    let problem = problem.expect("told").expect("alive")[0].clone();
    assert_eq!(
        (problem.code, &*problem.subject),
        (ACME_FAILED, "own.example")
    );
    running.abort();
    assert!(running.await.is_err());

    let again = AcmeTestNode::start();
    let mut changes = again.tls.certificates.watch();
    again.run(&ca, &names, ChallengeKind::Dns01);
    again.renewed(&ca, &mut changes).await;
    assert_eq!(again.problems.list(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_ordered_by_a_wrong_clock() {
    let served = AcmeTestNode::start();
    let ca = Ca::start(1).await;
    let mut problems = served.problems.watch();
    let mut options = ca.options(
        served.state.path(),
        &["a.example"],
        ChallengeKind::TlsAlpn01,
    );
    options.clock_floor = u64::MAX;
    let acme = Acme::new(options, served.parts(&ca)).expect("good options");
    let running = tokio::spawn(acme.run());
    let problem = tokio::time::timeout(hung(), problems.wait_for(|list| !list.is_empty())).await;
    let problem = problem.expect("told").expect("alive")[0].clone();
    assert_eq!(problem.code, CLOCK_INSANE);
    assert!(!served.state.path().join("acme/account.json").exists());
    running.abort();
}
