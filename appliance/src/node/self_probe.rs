//! How the node appears from outside: it dials its own public names as clients do. The node
//! promises clients only what it finds: HTTP/3 where it reaches itself over QUIC, and strict TLS
//! where it has shown a certificate that every client trusts for a day. It reports a name at which
//! another node with its key answers.

mod arrivals;
mod trust_history;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use alknet_core::config::NodeConfig;
use alknet_core::{
    Carriage, Clock, DialErrorKind, DialHost, DialRequest, Dialer as _, PeerAddr, PeerKey,
    PeerVerification,
};
use alknet_endpoint::EndpointDialer;
use alknet_http::{ALPN_HTTP1, ALPN_HTTP3, HttpHandler, PublicReachability};
use alknet_tls::{CertificateStore, NodeDiagnostics};
use futures_util::{StreamExt, stream};
use tokio::time::sleep;

use super::facts::{self, SharedFacts};
use super::reload::Reloader;
use trust_history::TrustHistory;

pub(crate) use arrivals::{ArrivalHandler, Arrivals};

/// Code of the problem that another node has this node's key.
pub(super) const IDENTITY_ELSEWHERE: &str = "identity-elsewhere";

/// How often the node dials itself. It also does so when its configuration, its certificates or the
/// addresses of the machine change.
const PROBE_EVERY: Duration = Duration::from_secs(600);
/// How often the addresses of the machine are compared.
const ADDRESSES_EVERY: Duration = Duration::from_secs(10);
/// Maximum number of addresses that are dialled in parallel.
const PROBES_AT_ONCE: usize = 4;
/// How long the node waits for its own connection to arrive. It is shorter than the time for which
/// an HTTP server waits for a request.
const COMES_WITHIN: Duration = Duration::from_secs(5);
/// The port at which browsers look for a name, whatever port the router behind it forwards to.
const HTTPS: u16 = 443;

/// Probes the node from outside, and passes the results to HTTP.
pub(crate) struct SelfProbe {
    pub(crate) http: Arc<HttpHandler>,
    /// Whether the node serves HTTP/3.
    pub(crate) h3: bool,
    pub(crate) reloader: Arc<Reloader>,
    pub(crate) facts: SharedFacts,
    pub(crate) certificates: Arc<CertificateStore>,
    /// The connections that arrived for HTTP.
    pub(crate) arrivals: Arc<Arrivals>,
    /// Where problems are reported.
    pub(crate) problems: Arc<NodeDiagnostics>,
    /// The node's key.
    pub(crate) own: PeerKey,
    /// The port that the node serves.
    pub(crate) port: u16,
    /// Folder of TLS files.
    pub(crate) tls_dir: PathBuf,
    pub(crate) clock: Arc<dyn Clock>,
}

impl SelfProbe {
    /// Probes for as long as the node runs.
    pub(crate) async fn run(self) {
        let mut documents = self.reloader.watch();
        let mut certificates = self.certificates.watch();
        let mut trusted = TrustHistory::read(&self.tls_dir);
        let mut before = PublicReachability::default();
        loop {
            let addresses = self.addresses();
            let names = names(&self.reloader.current().config);
            let seen = self.probe_names(&names, &mut trusted).await;
            if seen != before {
                let (http3, trusted) = (&seen.http3, &seen.trusted);
                tracing::info!("seen from outside: HTTP/3 at {http3:?}, trusted as {trusted:?}");
            }
            self.http.set_reachability(seen.clone());
            before = seen;
            // The senders of changes live as long as this task, so their errors cannot happen here.
            tokio::select! {
                () = sleep(PROBE_EVERY) => {}
                _ = documents.changed() => {}
                _ = certificates.changed() => {}
                () = self.moved(&addresses) => {}
            }
        }
    }

    fn addresses(&self) -> Vec<String> {
        facts::link_addresses(&self.facts.load())
    }

    /// Resolves when the machine has other addresses.
    async fn moved(&self, before: &[String]) {
        while self.addresses() == before {
            sleep(ADDRESSES_EVERY).await;
        }
    }

    async fn probe_names(
        &self,
        names: &[String],
        trusted: &mut TrustHistory,
    ) -> PublicReachability {
        // Each round has a new dialler: a resumed TLS session would prove nothing about the present
        // certificates.
        let probe = ExternalProbe {
            dialer: EndpointDialer::new(None),
            own: self.own,
            arrivals: Arc::clone(&self.arrivals),
            patience: COMES_WITHIN,
        };
        self.arrivals.set_probing(true);
        let probes = dial_targets(names, self.port).into_iter();
        let probes: Vec<_> = probes.map(|at| probe.probe_name(at, self.h3)).collect();
        // The results are in order, and few probes run at a time, so that they are no burden for
        // the node.
        let found: Vec<_> = stream::iter(probes)
            .buffered(PROBES_AT_ONCE)
            .collect()
            .await;
        self.arrivals.set_probing(false);
        probe.dialer.close().await;
        report_twins(&self.problems, &found);
        // Without a set clock, the node can judge no certificate.
        let trusted = self.clock.now_s().map(|now_s| {
            trusted.note(names, &found, now_s);
            trusted.long_enough(now_s)
        });
        let http3 = found.into_iter().filter(|one| one.http3);
        PublicReachability {
            http3: http3.map(|one| (one.name, one.port)).collect(),
            trusted: trusted.unwrap_or_default(),
        }
    }
}

/// Names under which clients may look for the node. A name that begins with `*` stands for more
/// names than can be tried.
fn names(config: &NodeConfig) -> Vec<String> {
    let names = config.http.names.iter();
    let names = names
        .chain(&config.node.domain)
        .chain(&config.tls.acme.domains);
    let names: BTreeSet<_> = names
        // A name with a star cannot be dialled.
        .filter(|name| !name.starts_with('*'))
        .map(|name| name.to_ascii_lowercase())
        .collect();
    names.into_iter().collect()
}

/// Each name with the ports at which it may lead to the node: the node's own port, and the port of
/// browsers, which a router may forward.
fn dial_targets(names: &[String], port: u16) -> Vec<(String, u16)> {
    let ports: BTreeSet<_> = [port, HTTPS].into();
    let dial_targets = names
        .iter()
        .flat_map(|name| ports.iter().map(move |port| (name.clone(), *port)));
    dial_targets.collect()
}

/// The result of one probe.
#[derive(Clone, Debug, PartialEq, Eq)]
struct ProbeFinding {
    name: String,
    port: u16,
    /// Whether the node answers there over QUIC.
    http3: bool,
    /// Whether every client trusts the certificate that the node shows there. `None` if that could
    /// not be found out.
    trusted: Option<bool>,
    /// Whether another node answers there with this node's key.
    twin: bool,
}

/// Reports the addresses at which another node has this node's key, and clears the problem of every
/// other address.
fn report_twins(problems: &NodeDiagnostics, found: &[ProbeFinding]) {
    let twins = found.iter().filter(|one| one.twin);
    let twin_addresses: BTreeSet<_> = twins
        .map(|one| format!("{}:{}", one.name, one.port))
        .collect();
    for old in problems.list() {
        if old.code == IDENTITY_ELSEWHERE && !twin_addresses.contains(&old.subject) {
            problems.clear(IDENTITY_ELSEWHERE, &old.subject);
        }
    }
    for address in twin_addresses {
        let text = "another node answers there with this node's key".to_owned();
        problems.set(IDENTITY_ELSEWHERE, &address, text);
    }
}

/// The server that answers at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AddressHolder {
    /// No server answers, or one without the node's key does.
    Other,
    /// This node answers.
    Us,
    /// Another node that has its key answers.
    Twin,
}

/// A client that dials the node's own public addresses, as an outside client does.
struct ExternalProbe {
    dialer: EndpointDialer,
    own: PeerKey,
    arrivals: Arc<Arrivals>,
    patience: Duration,
}

impl ExternalProbe {
    async fn probe_name(&self, (name, port): (String, u16), h3: bool) -> ProbeFinding {
        let at = PeerAddr {
            pins: Vec::new(),
            host: DialHost::Name(name.clone()),
            port,
        };
        let over_quic = match h3 {
            true => self.finds(&at, Carriage::Quic, ALPN_HTTP3).await,
            false => AddressHolder::Other,
        };
        // Another server at that address may have a valid certificate, which says nothing about
        // this node's.
        let over_tcp = self.finds(&at, Carriage::Tcp, ALPN_HTTP1).await;
        let trusted = match over_tcp {
            AddressHolder::Us => self.trusts(&at).await,
            AddressHolder::Other | AddressHolder::Twin => None,
        };
        ProbeFinding {
            name,
            port,
            http3: over_quic == AddressHolder::Us,
            trusted,
            twin: [over_quic, over_tcp].contains(&AddressHolder::Twin),
        }
    }

    /// Which server answers at an address. Only this node has its key, unless the key was copied or
    /// the recovery words were used twice.
    async fn finds(&self, at: &PeerAddr, carriage: Carriage, alpn: &'static [u8]) -> AddressHolder {
        let request = DialRequest {
            carriage,
            present_key: false,
            ..DialRequest::new(at.clone(), PeerVerification::Pinned(vec![self.own]), alpn)
        };
        // The dial is pinned to the node's own key: only the node, or its twin, can finish this
        // handshake.
        let Ok(dialled) = self.dialer.connect(request).await else {
            return AddressHolder::Other;
        };
        match self.arrivals.has(&dialled.connection, self.patience).await {
            Some(false) => AddressHolder::Twin,
            Some(true) | None => AddressHolder::Us,
        }
    }

    /// Whether the node's certificate leads to an authority that this program bundles, as other
    /// clients have them.
    async fn trusts(&self, at: &PeerAddr) -> Option<bool> {
        let request = DialRequest {
            carriage: Carriage::Tcp,
            present_key: false,
            ..DialRequest::new(at.clone(), PeerVerification::WebPki, ALPN_HTTP1)
        };
        match self.dialer.connect(request).await {
            Ok(_) => Some(true),
            Err(error) if error.kind == DialErrorKind::Impostor => Some(false),
            // A failed connection says nothing about the certificate.
            Err(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use alknet_core::{
        AlpnSpec, AuthContext, AuthNeed, BoxFuture, Connection, HandlerError, HandlerRegistry,
        Identities, IdentityEntries, ProtocolHandler, SystemClock,
    };
    use alknet_endpoint::{EndpointServer, ServerOptions};
    use alknet_test_support::deadline;
    use alknet_tls::NodeKey;

    use super::*;

    pub(super) fn found(name: &str, trusted: Option<bool>) -> ProbeFinding {
        ProbeFinding {
            name: name.to_owned(),
            port: HTTPS,
            http3: false,
            trusted,
            twin: false,
        }
    }

    #[test]
    fn every_public_name_is_looked_at_where_browsers_look() {
        let document = br#"
[node]
name = "edge-1"
domain = "hub.example.org"
[http]
names = ["www.example.org", "hub.example.org"]
[tls.acme]
domains = ["*.apps.example.org", "apps.example.org"]
"#;
        let config = NodeConfig::parse(document).expect("a correct document");
        let names = names(&config);
        let expected = ["apps.example.org", "hub.example.org", "www.example.org"];
        assert_eq!(names, expected);
        assert_eq!(dial_targets(&names, HTTPS).len(), 3);
        let two = dial_targets(&names[..1], 8443);
        let at = |port| ("apps.example.org".to_owned(), port);
        assert_eq!(two, [at(HTTPS), at(8443)]);
    }

    /// A handler that speaks both protocols and sends nothing.
    struct SilentHandler([AlpnSpec; 2]);

    impl SilentHandler {
        fn new() -> Self {
            let spec = |id, carriage| AlpnSpec {
                carriage,
                auth: AuthNeed::Late,
                ..AlpnSpec::new(id)
            };
            Self([
                spec(ALPN_HTTP3, Carriage::Quic),
                spec(ALPN_HTTP1, Carriage::Tcp),
            ])
        }
    }

    impl ProtocolHandler for SilentHandler {
        fn alpns(&self) -> &[AlpnSpec] {
            &self.0
        }

        fn handle(
            self: Arc<Self>,
            connection: Connection,
            _: AuthContext,
        ) -> BoxFuture<'static, Result<(), HandlerError>> {
            Box::pin(async move {
                connection.closed().await;
                Ok(())
            })
        }
    }

    /// A node with `key`, as far as the probe sees it.
    fn serve(key: &NodeKey, arrivals: &Arc<Arrivals>) -> (EndpointServer, PeerAddr) {
        let mut handlers = HandlerRegistry::new();
        let silent = ArrivalHandler::new(Arc::new(SilentHandler::new()), Arc::clone(arrivals));
        handlers.register(Arc::new(silent)).expect("the only one");
        let clock = Arc::new(SystemClock { built_s: 0 });
        let identities = Arc::new(Identities::new(IdentityEntries::default(), clock));
        let options = ServerOptions {
            addrs: vec![Ipv4Addr::LOCALHOST.into()],
            port: 0,
            ..ServerOptions::default()
        };
        let server = EndpointServer::bind(options, key, handlers, identities).expect("a free port");
        let at = PeerAddr {
            pins: Vec::new(),
            host: DialHost::Ip(Ipv4Addr::LOCALHOST.into()),
            port: server.port(),
        };
        (server, at)
    }

    /// A probe of the node that has `key` and marks arriving connections.
    fn probe(key: &NodeKey, arrivals: &Arc<Arrivals>, patience_s: u64) -> ExternalProbe {
        arrivals.set_probing(true);
        ExternalProbe {
            dialer: EndpointDialer::new(None),
            own: key.public(),
            arrivals: Arc::clone(arrivals),
            patience: deadline(Duration::from_secs(patience_s)),
        }
    }

    const WAYS: [(Carriage, &[u8]); 2] =
        [(Carriage::Quic, ALPN_HTTP3), (Carriage::Tcp, ALPN_HTTP1)];

    #[tokio::test]
    async fn a_node_finds_itself_and_no_other_node() {
        let key = NodeKey::generate().expect("the system has entropy");
        let arrivals = Arc::default();
        let (server, at) = serve(&key, &arrivals);
        let ours = probe(&key, &arrivals, 60);
        let other_key = NodeKey::generate().expect("the system has entropy");
        let other = probe(&other_key, &arrivals, 60);
        for (carriage, alpn) in WAYS {
            assert_eq!(ours.finds(&at, carriage, alpn).await, AddressHolder::Us);
            assert_eq!(other.finds(&at, carriage, alpn).await, AddressHolder::Other);
        }
        // No client trusts the self-signed certificate.
        let by_name = ours
            .probe_name(("localhost".to_owned(), server.port()), true)
            .await;
        let expected = ProbeFinding {
            port: server.port(),
            http3: true,
            ..found("localhost", Some(false))
        };
        assert_eq!(by_name, expected);
    }

    #[tokio::test]
    async fn another_node_with_the_same_key_is_a_problem_for_as_long_as_it_answers() {
        let key = NodeKey::generate().expect("the system has entropy");
        let [here, there] = [Arc::default(), Arc::default()];
        let (server, _) = serve(&key, &here);
        let (twin, at) = serve(&key, &there);
        let ours = probe(&key, &here, 1);
        for (carriage, alpn) in WAYS {
            assert_eq!(ours.finds(&at, carriage, alpn).await, AddressHolder::Twin);
        }
        let of_twin = ours
            .probe_name(("localhost".to_owned(), twin.port()), true)
            .await;
        let expected = ProbeFinding {
            port: twin.port(),
            twin: true,
            ..found("localhost", None)
        };
        assert_eq!(of_twin, expected);

        let problems = NodeDiagnostics::default();
        let of_us = ProbeFinding {
            port: server.port(),
            ..found("localhost", Some(false))
        };
        report_twins(&problems, &[of_us.clone(), of_twin]);
        let told = problems.list();
        assert_eq!(told.len(), 1, "{told:?}");
        assert_eq!(told[0].code, IDENTITY_ELSEWHERE);
        assert_eq!(told[0].subject, format!("localhost:{}", twin.port()));
        report_twins(&problems, &[of_us]);
        assert_eq!(problems.list(), []);
    }
}
