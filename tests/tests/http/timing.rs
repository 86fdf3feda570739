//! A node that tells unknown peers nothing does not tell them by its response times either.
//!
//! Times are compared with each other and never with a fixed number of seconds. Two kinds of
//! requests are sent alternately over one connection, and the two-sample Kolmogorov-Smirnov test
//! decides whether their times could come from one distribution.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use alknet_core::AuthToken;
use alknet_endpoint::Target;
use alknet_test_support::deadline;
use alknet_tests::{HostNode, TestBench};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, Error, SignatureScheme, StreamOwned,
};
use socket2::{Domain, Socket, Type};

/// Requests of each kind that are compared.
const SAMPLES: usize = 2000;

/// How many of them go over one connection. Wrong tokens are counted by their network, a /24, and
/// each connection comes from another one: with [`LIMITS`] none is blocked.
const ON_ONE_CONNECTION: usize = 500;

/// How often two equal kinds may be mistaken for different ones: once in a million comparisons, if
/// times are independent of each other.
const FALSE_ALARM: f64 = 1e-6;

/// How many comparisons in a row must distinguish two kinds. Times are not independent: a burst of
/// work by the kernel or by the host's other guests affects neighbouring requests. So the bound is
/// exceeded more often than [`FALSE_ALARM`] says, even when the test runs alone. If that happened
/// once in a hundred comparisons, one of seven would fail in 7 runs of 100, but three in a row
/// would in 7 of a million. The price is small: what one comparison finds with a probability of
/// 0.99 is found with one of 0.97.
const IN_A_ROW: usize = 3;

/// Two kinds of requests count as distinguishable only if they are this many times further apart
/// than requests of one kind, sent directly after them. Beside other programs, times depend on each
/// other so much that even those of one kind exceed the bound.
const OF_ONE_KIND: f64 = 1.5;

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

/// The distance of two samples: the largest difference of their empirical distributions.
fn distance(mut one: Vec<Duration>, mut other: Vec<Duration>) -> f64 {
    one.sort_unstable();
    other.sort_unstable();
    let share = |sample: &[Duration], time: &Duration| {
        let below = sample.partition_point(|taken| taken <= time);
        below as f64 / sample.len() as f64
    };
    let times = one.iter().chain(&other);
    times
        .map(|time| (share(&one, time) - share(&other, time)).abs())
        .fold(0.0, f64::max)
}

/// The distance of two samples of [`SAMPLES`] from one distribution, with the probability
/// [`FALSE_ALARM`] of a larger one.
fn furthest() -> f64 {
    let samples = SAMPLES as f64;
    (-(FALSE_ALARM / 2.0).ln() / samples).sqrt()
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
    for _ in 0..SAMPLES / ON_ONE_CONNECTION {
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
    distance(one, other)
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
        let mut told_apart = || {
            let distance = compare(address, &mut fresh, [&one, &other]);
            let is_far = distance > furthest();
            // For comparison, the distance of the times of one kind.
            let of_one = is_far.then(|| compare(address, &mut fresh, [&one, &one]));
            (distance, of_one)
        };
        let distances: Vec<_> = std::iter::repeat_with(&mut told_apart)
            .take(IN_A_ROW)
            .take_while(|(distance, of_one)| {
                of_one.is_some_and(|of_one| *distance > of_one * OF_ONE_KIND)
            })
            .collect();
        assert!(
            distances.len() < IN_A_ROW,
            "{what} differs from a path that is not there: {distances:?} and not {}",
            furthest()
        );
    }
}

#[test]
fn the_comparison_tells_apart_what_is_apart() {
    let micros = |of: fn(u64) -> u64| {
        let times = (0..SAMPLES as u64).map(|n| Duration::from_micros(of(n)));
        times.collect::<Vec<_>>()
    };
    // Two sequences that fill the same range evenly.
    let even = micros(|n| n * 7919 % 2003);
    let same = micros(|n| n * 6101 % 2003);
    assert!(distance(even.clone(), same) < furthest());
    // Shifted by a tenth of the range.
    let later = micros(|n| n * 7919 % 2003 + 200);
    assert!(distance(even.clone(), later) > furthest());
    let elsewhere = micros(|n| n + 10_000);
    assert!((distance(even.clone(), elsewhere) - 1.0).abs() < 1e-9);
    assert!(distance(even.clone(), even).abs() < 1e-9);
}
