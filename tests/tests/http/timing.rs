//! A node that tells unknown peers nothing does not tell them by its response times either.
//!
//! Two kinds of requests are sent alternately over one connection, and the two-sample Kolmogorov-Smirnov test of
//! `alknet-test-support` decides whether their times could come from one distribution.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use alknet_core::AuthToken;
use alknet_endpoint::Target;
use alknet_test_support::{
    TIMING_SAMPLES, TimedKinds, deadline, timing_bound, timing_difference, timing_distance,
};
use alknet_tests::{HostNode, TestBench};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, Error, SignatureScheme, StreamOwned,
};
use socket2::{Domain, Socket, Type};

/// How many of them go over one connection. Wrong tokens are counted by their network, a /24, and
/// each connection comes from another one: with [`LIMITS`] none is blocked.
const ON_ONE_CONNECTION: usize = 500;

/// How long an answer may take before a test counts as hung.
fn hung() -> Duration {
    deadline(Duration::from_secs(120))
}

/// Room for wrong tokens, and no logging, because a log line for each request would be most of the
/// work.
const LIMITS: &str = "[limits]\nfailures_per_minute = 1000\nhandshake_burst = 10000\n\
                      handshakes_per_second = 10000\n[log]\nlevel = \"warn\"\n\
                      [http]\nstealth = true\n";

/// A header as long as `Authorization`, and as well known, because the library takes longer to read
/// names that it does not know.
const NOT_AUTHORIZATION: &str = "Cache-Control";

/// Replaces the check of the node's pin: here every server may answer.
#[derive(Debug)]
struct AcceptAnyCertificate;

impl ServerCertVerifier for AcceptAnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let provider = alknet_tls::provider();
        provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// An HTTP/1.1 connection that is kept open.
struct KeepAliveConnection {
    tls: StreamOwned<ClientConnection, TcpStream>,
    response: Vec<u8>,
}

impl KeepAliveConnection {
    /// Opens a connection to `to`, from an address of this machine.
    fn open(to: SocketAddr, from: Ipv4Addr) -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        let from = SocketAddr::new(from.into(), 0);
        socket.bind(&from.into()).expect("an address of loopback");
        socket.connect(&to.into()).expect("the node listens");
        let tcp = TcpStream::from(socket);
        tcp.set_nodelay(true).expect("a socket of TCP");
        tcp.set_read_timeout(Some(hung())).expect("a time-out");
        let mut config = ClientConfig::builder_with_provider(alknet_tls::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("the provider has TLS 1.3")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AcceptAnyCertificate))
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let name = ServerName::IpAddress(IpAddr::from(Ipv4Addr::LOCALHOST).into());
        let tls = ClientConnection::new(Arc::new(config), name).expect("a name");
        Self {
            tls: StreamOwned::new(tls, tcp),
            response: vec![0; 64 << 10],
        }
    }

    /// Sends a request. Returns how long the whole answer took, and the answer without its date.
    fn ask(&mut self, request: &str) -> (Duration, String) {
        let began = Instant::now();
        self.tls.write_all(request.as_bytes()).expect("it reads");
        self.tls.flush().expect("it reads");
        let mut had = 0;
        while whole(&self.response[..had]) != Some(had) {
            let read = self.tls.read(&mut self.response[had..]);
            let read = read.expect("it answers");
            assert!(read > 0, "it goes on after an answer");
            had += read;
        }
        let took = began.elapsed();
        let text = String::from_utf8_lossy(&self.response[..had]);
        let lines = text.lines().filter(|line| !line.starts_with("date:"));
        (took, lines.collect::<Vec<_>>().join("\n"))
    }
}

/// Length of an answer with this beginning, if its head is complete.
fn whole(response: &[u8]) -> Option<usize> {
    let head = memchr::memmem::find(response, b"\r\n\r\n")? + 4;
    let text = std::str::from_utf8(&response[..head]).expect("a head is text");
    let mut lines = text.lines();
    let length = lines.find_map(|line| line.strip_prefix("content-length:"));
    let length = length.expect("an answer of known length").trim();
    Some(head + length.parse::<usize>().expect("a number"))
}

fn request(method: &str, path: &str, header: Option<(&str, &str)>) -> String {
    let header = header.map(|(name, value)| format!("{name}: Bearer {value}\r\n"));
    let header = header.unwrap_or_default();
    let body = if method == "POST" { "{}" } else { "" };
    format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\n{header}Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// Addresses of networks from which the node has had no request.
struct FreshAddresses(u8);

impl FreshAddresses {
    fn next(&mut self) -> Ipv4Addr {
        self.0 += 1;
        Ipv4Addr::new(127, 0, self.0, 1)
    }
}

/// Sends both alternately. Returns the distance of their times.
fn compare(node: SocketAddr, fresh: &mut FreshAddresses, [one, other]: [&str; 2]) -> f64 {
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..TIMING_SAMPLES / ON_ONE_CONNECTION {
        let mut kept = KeepAliveConnection::open(node, fresh.next());
        let (_, nothing) = kept.ask(one);
        assert!(nothing.starts_with("HTTP/1.1 404 "), "{nothing}");
        for n in 0..ON_ONE_CONNECTION {
            // The second one may have an advantage, so neither is always second.
            let turns = if n % 2 == 0 { [0, 1] } else { [1, 0] };
            for which in turns {
                let (took, response) = kept.ask([one, other][which]);
                assert_eq!(response, nothing, "{}", [one, other][which]);
                times[which].push(took);
            }
        }
    }
    let [one, other] = times;
    timing_distance(one, other)
}

fn token() -> AuthToken {
    AuthToken::generate().expect("the system has entropy")
}

/// A node that tells nothing, and one of its expired tokens.
fn start(bench: &TestBench) -> (HostNode, SocketAddr, AuthToken) {
    let expired = token();
    let hash = expired.hash().expect("a token").to_string();
    let (id, sha256) = hash.split_once(':').expect("two parts");
    let document = format!(
        "[[api_keys]]\nkey_id = \"{id}\"\nsha256 = \"{sha256}\"\nscopes = [\"node:read\"]\n\
         expires = \"2020-01-01T00:00:00Z\"\n{LIMITS}"
    );
    let node = bench.host_with(&document);
    let target: Target = node.target().parse().expect("the node's own target");
    let address = target.address().parse().expect("an address");
    (node, address, expired)
}

#[test]
fn the_time_an_answer_takes_tells_unknown_clients_nothing() {
    let bench = TestBench::new();
    let (_node, address, expired) = start(&bench);
    let unknown = token();
    // One as long as a token, and none.
    let malformed = "x".repeat(expired.expose().len());
    // Another secret after a known name.
    let mut guessed = expired.expose().to_owned();
    guessed.replace_range(13.., &unknown.expose()[13..]);
    let wrong = |token: &str| {
        // With as many bytes, of which no more come.
        let nothing = request("POST", "/cull", Some((NOT_AUTHORIZATION, token)));
        [
            nothing,
            request("POST", "/call", Some(("Authorization", token))),
        ]
    };
    let plain = |method, path, like| [request(method, like, None), request(method, path, None)];
    let mut fresh = FreshAddresses(0);
    for (what, asked) in [
        ("/call without a token", plain("POST", "/call", "/cull")),
        ("/mcp without a token", plain("POST", "/mcp", "/mcq")),
        (
            "/openapi.json without a token",
            plain("GET", "/openapi.json", "/openapi.jsom"),
        ),
        ("/call with an unknown token", wrong(unknown.expose())),
        ("/call with a guessed secret", wrong(&guessed)),
        ("/call with an expired token", wrong(expired.expose())),
        ("/call with what is no token", wrong(&malformed)),
    ] {
        let [one, other] = asked;
        assert_eq!(one.len(), other.len(), "{what}");
        let difference = timing_difference(|kinds| match kinds {
            TimedKinds::Both => compare(address, &mut fresh, [&one, &other]),
            TimedKinds::FirstTwice => compare(address, &mut fresh, [&one, &one]),
        });
        assert_eq!(
            difference,
            None,
            "{what} differs from a path that is not there by more than {}",
            timing_bound()
        );
    }
}

#[test]
fn the_comparison_tells_apart_what_is_apart() {
    let micros = |of: fn(u64) -> u64| {
        let times = (0..TIMING_SAMPLES as u64).map(|n| Duration::from_micros(of(n)));
        times.collect::<Vec<_>>()
    };
    // Two sequences that fill the same range evenly.
    let even = micros(|n| n * 7919 % 2003);
    let same = micros(|n| n * 6101 % 2003);
    assert!(timing_distance(even.clone(), same) < timing_bound());
    // Shifted by a tenth of the range.
    let later = micros(|n| n * 7919 % 2003 + 200);
    assert!(timing_distance(even.clone(), later) > timing_bound());
    let elsewhere = micros(|n| n + 10_000);
    assert!((timing_distance(even.clone(), elsewhere) - 1.0).abs() < 1e-9);
    assert!(timing_distance(even.clone(), even).abs() < 1e-9);
}
