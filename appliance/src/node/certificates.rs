//! Certificates that the node serves beside its key: those from files, and those from a certificate
//! authority.

mod keys;

use std::path::Path;
use std::sync::Arc;

use alknet_core::config::{AcmeChallenge, ConfigError, NodeConfig, Port80, TlsSection};
use alknet_core::{BoxError, BoxFuture, DialAllowList};
use alknet_endpoint::EndpointDialer;
use alknet_http_client::{ClientOptions, HttpClient, Redirects};
use alknet_init::control::MachineDiagnostic;
use alknet_tls::acme::{
    Acme, AcmeError, AcmeOptions, AcmeParts, AcmeTransport, ChallengeKind, HttpChallenges,
};
use alknet_tls::{
    ACME_FAILED, CERT_RELOAD_FAILED, CLOCK_INSANE, CertificateFiles, ClientTlsOptions,
    FILES_INTERVAL, FileWatcher, NodeDiagnostics, NodeKey, RootCertStore, ServerTlsOptions,
    TlsError, bundled_roots, roots_from_file,
};
use bytes::Bytes;

use super::dialler;
use super::node_key_rotation::NODE_KEY_WAITS;
use super::self_probe::IDENTITY_ELSEWHERE;
use super::vault::NodeVault;
use keys::CertificateKeys;

/// Code of the problem that the certificate authorities of `tls.roots` or `tls.acme.ca_file` cannot
/// be read.
const ROOTS_FAILED: &str = "tls-roots-failed";

/// The certificates that the node serves, and the roots that it trusts when it dials.
pub(crate) struct NodeCertificates {
    /// What the port serves beside the node's key.
    pub(crate) served: ServerTlsOptions,
    /// The problems with certificates.
    pub(crate) problems: Arc<NodeDiagnostics>,
    /// The dialler to other nodes and servers.
    pub(crate) dialer: Arc<EndpointDialer>,
    /// Responses to the authority's HTTP challenge, on port 80.
    pub(crate) challenges: Arc<HttpChallenges>,
}

impl NodeCertificates {
    /// Starts the file watcher and the ACME client for the certificates of `config`. Must run
    /// inside a runtime. A problem with a certificate does not keep the node from starting: the
    /// node reports the problem and serves its own key.
    pub(crate) fn start(
        config: &NodeConfig,
        key: &NodeKey,
        tls_dir: &Path,
        vault: Option<&NodeVault>,
    ) -> Self {
        let problems = Arc::new(NodeDiagnostics::default());
        let served = ServerTlsOptions {
            state_dir: Some(tls_dir.to_owned()),
            strict_sni: config.tls.strict_sni,
            ..ServerTlsOptions::default()
        };
        let challenges = Arc::new(HttpChallenges::default());
        let dialer = dialler::make(key, trusted(&config.tls, &problems));
        let files = files(&config.tls);
        if !files.is_empty() {
            let store = Arc::clone(&served.certificates);
            let watcher = FileWatcher::new(files, store, Arc::clone(&problems));
            tokio::spawn(watcher.run(FILES_INTERVAL));
        }
        let started = Self {
            served,
            problems,
            dialer,
            challenges,
        };
        let names = config.certificate_names();
        if !names.is_empty() {
            match to_authority(&config.tls, key, &started.dialer) {
                Ok(way) => started.order(config, names, tls_dir, vault, &way),
                Err(error) => {
                    let file = config.tls.acme.ca_file.as_deref();
                    let subject = file.unwrap_or("tls.acme.ca_file");
                    let problems = &started.problems;
                    problems.set(ROOTS_FAILED, subject, error.to_string());
                }
            }
        }
        started
    }

    /// Orders a certificate for `names`, and renews it while the node runs.
    fn order(
        &self,
        config: &NodeConfig,
        names: Vec<String>,
        tls_dir: &Path,
        vault: Option<&NodeVault>,
        dialer: &Arc<EndpointDialer>,
    ) {
        let subject = names.join(", ");
        // Without port 80, the authority cannot read the responses.
        let plain = config.http.port80 != Port80::Off;
        let answers = plain.then(|| Arc::clone(&self.challenges));
        // Without a vault, the ACME client keeps its keys in files of the TLS folder.
        let keys = vault.map(|vault| Arc::new(CertificateKeys::new(vault.vault())));
        let parts = AcmeParts {
            transport: Arc::new(AcmeHttpTransport::new(dialer)),
            store: Arc::clone(&self.served.certificates),
            problems: Arc::clone(&self.problems),
            alpn: Arc::clone(&self.served.challenges),
            http: answers,
            // The DNS server will provide this, and `unprovable` will then refuse nothing.
            dns: None,
            account_key: keys.clone().map(|keys| keys as _),
            key_seal: keys.map(|keys| keys as _),
        };
        match acme(config, names, tls_dir, parts) {
            Ok(acme) => drop(tokio::spawn(acme.run())),
            Err(error) => self.problems.set(ACME_FAILED, &subject, error.to_string()),
        }
    }
}

/// What `config` wants of a certificate authority that no node can prove: control over a name by a record in its zone
/// (RFC 8555 section 8.4), which is the only way for a name with `*`. A node with such a document orders nothing.
pub(crate) fn unprovable(config: &NodeConfig) -> Vec<ConfigError> {
    let acme = &config.tls.acme;
    let refused = |path: String, what: &str, fix: &str| ConfigError {
        path,
        line: None,
        what: format!("{what} needs a DNS zone that this node serves, and no node serves one yet"),
        fix: fix.to_owned(),
    };
    let challenge = (acme.challenge == Some(AcmeChallenge::Dns01)).then(|| {
        let fix = "leave it out, or write tls-alpn-01 or http-01";
        refused("tls.acme.challenge".to_owned(), "the challenge dns-01", fix)
    });
    let names = acme.domains.iter().enumerate();
    let names = names.filter(|(_, name)| name.starts_with("*."));
    let names = names.map(|(n, name)| {
        let fix = "list each name without '*', or name a certificate for it in tls.files";
        refused(format!("tls.acme.domains[{n}]"), &format!("'{name}'"), fix)
    });
    challenge.into_iter().chain(names).collect()
}

/// The problems with certificates, as the console and `node/info` show them.
pub(crate) fn problems(problems: &NodeDiagnostics) -> Vec<MachineDiagnostic> {
    let list = problems.list().into_iter();
    list.map(|problem| MachineDiagnostic {
        code: problem.code.to_owned(),
        text: format!("{}: {}", problem.subject, problem.text),
        hint: hint(problem.code).to_owned(),
    })
    .collect()
}

fn hint(code: &str) -> &'static str {
    match code {
        ACME_FAILED => "it is tried again by itself; the node's own key is served meanwhile",
        CERT_RELOAD_FAILED => "correct the file; it is read again within seconds",
        CLOCK_INSANE => "let the node reach a time server, or set the clock",
        IDENTITY_ELSEWHERE => {
            "switch one of the two off, and give it words or a vault.device of its own"
        }
        NODE_KEY_WAITS => "let those who pinned the old key know this one, and restart the node",
        ROOTS_FAILED => "correct the file and restart; peers with pinned keys are reached anyway",
        _ => "",
    }
}

/// Options of the dialler. It trusts no public authority if the configured ones cannot be read.
fn trusted(tls: &TlsSection, problems: &NodeDiagnostics) -> ClientTlsOptions {
    client_options(tls).unwrap_or_else(|error| {
        let subject = tls.roots.as_deref().unwrap_or("tls.roots");
        problems.set(ROOTS_FAILED, subject, error.to_string());
        // With no roots the node trusts no public certificate. Trusting other authorities than the
        // configured ones would be less safe.
        ClientTlsOptions {
            roots: RootCertStore::empty(),
            ..ClientTlsOptions::default()
        }
    })
}

/// Options of the dialler, except the key that it shows.
fn client_options(tls: &TlsSection) -> Result<ClientTlsOptions, TlsError> {
    let roots = match &tls.roots {
        Some(path) => roots_from_file(Path::new(path))?,
        None => bundled_roots(),
    };
    Ok(trusting(tls, roots))
}

fn trusting(tls: &TlsSection, roots: RootCertStore) -> ClientTlsOptions {
    ClientTlsOptions {
        key: None,
        roots,
        webpki_ip: tls.webpki_ip,
        present_key_to_public: tls.present_key_to_public,
    }
}

/// The dialler for the ACME server: the `usual` one, or one that trusts the authorities of
/// `tls.acme.ca_file`, which the node trusts for no other server.
fn to_authority(
    tls: &TlsSection,
    key: &NodeKey,
    usual: &Arc<EndpointDialer>,
) -> Result<Arc<EndpointDialer>, TlsError> {
    let Some(file) = &tls.acme.ca_file else {
        return Ok(Arc::clone(usual));
    };
    let roots = roots_from_file(Path::new(file))?;
    Ok(dialler::make(key, trusting(tls, roots)))
}

fn files(tls: &TlsSection) -> Vec<CertificateFiles> {
    let files = tls.files.iter();
    files
        .map(|files| CertificateFiles {
            chain: files.chain.clone().into(),
            key: files.key.clone().into(),
        })
        .collect()
}

fn acme(
    config: &NodeConfig,
    names: Vec<String>,
    tls_dir: &Path,
    parts: AcmeParts,
) -> Result<Acme, AcmeError> {
    let section = &config.tls.acme;
    let options = AcmeOptions {
        directory: section.directory.clone(),
        contact: section.contact.clone(),
        names,
        challenge: section.challenge.map(kind),
        profile: section.profile.clone(),
        state_dir: tls_dir.to_owned(),
        clock_floor: alknet_init::BUILD_TIME_S,
    };
    Acme::new(options, parts)
}

/// Maximum length of a certificate authority's response, in bytes.
const AUTHORITY_BYTES_MAX: usize = 1 << 20;

/// The HTTP transport to a certificate authority. The administrator names the authority, so it may
/// have any address, also one on the node's own network.
struct AcmeHttpTransport(HttpClient);

impl AcmeHttpTransport {
    fn new(dialer: &Arc<EndpointDialer>) -> Self {
        let options = ClientOptions {
            reach: DialAllowList::Anywhere,
            // An authority names each address itself (RFC 8555, 7.1), and a redirect could lead requests elsewhere.
            redirects: Redirects::No,
            ..ClientOptions::default()
        };
        Self(HttpClient::new(
            Arc::<EndpointDialer>::clone(dialer),
            options,
        ))
    }
}

impl AcmeTransport for AcmeHttpTransport {
    fn send(
        &self,
        request: http::Request<Bytes>,
    ) -> BoxFuture<'static, Result<http::Response<Bytes>, BoxError>> {
        let client = self.0.clone();
        Box::pin(async move {
            let (head, body) = client.send(request).await?.into_parts();
            let body = body.collect_bounded(AUTHORITY_BYTES_MAX).await?;
            Ok(http::Response::from_parts(head, body))
        })
    }
}

fn kind(challenge: AcmeChallenge) -> ChallengeKind {
    match challenge {
        AcmeChallenge::Dns01 => ChallengeKind::Dns01,
        AcmeChallenge::Http01 => ChallengeKind::Http01,
        AcmeChallenge::TlsAlpn01 => ChallengeKind::TlsAlpn01,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use alknet_test_support::deadline;

    use super::*;

    #[tokio::test]
    async fn a_file_of_authorities_that_cannot_be_read_is_a_problem_and_no_order() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = dir.path().join("authority.pem");
        let path = file.display().to_string();
        let document = format!("[tls.acme]\ndomains = [\"a.example\"]\nca_file = \"{path}\"\n");
        let config = NodeConfig::parse(document.as_bytes()).expect("a correct document");
        let key = NodeKey::from_seed(&[1; 32]);
        for content in [None, Some("no certificate\n")] {
            if let Some(content) = content {
                std::fs::write(&file, content).expect("the folder is ours");
            }
            let certificates = NodeCertificates::start(&config, &key, dir.path(), None);
            let problems = problems(&certificates.problems);
            assert_eq!(problems.len(), 1, "{problems:?}");
            assert_eq!(problems[0].code, ROOTS_FAILED);
            assert!(problems[0].text.contains(&path), "{}", problems[0].text);
            assert!(!problems[0].hint.is_empty());
            assert!(!dir.path().join("acme").exists());
        }
    }

    #[test]
    fn what_only_dns_proves_is_refused_with_a_remedy() {
        let found = |text: &str| {
            let config = NodeConfig::parse(text.as_bytes()).expect("a correct document");
            unprovable(&config)
        };
        assert_eq!(
            found("[tls.acme]\ndomains = [\"a.example\"]\nchallenge = \"http-01\"\n"),
            []
        );
        let both =
            "[tls.acme]\ndomains = [\"a.example\", \"*.a.example\"]\nchallenge = \"dns-01\"\n";
        let both = found(both);
        let paths: Vec<_> = both.iter().map(|error| error.path.as_str()).collect();
        assert_eq!(paths, ["tls.acme.challenge", "tls.acme.domains[1]"]);
        for error in &both {
            let text = error.to_string();
            assert!(
                text.contains("no node serves one yet") && !error.fix.is_empty(),
                "{text}"
            );
        }
    }

    /// The rest of the document is in force, and the node runs; the authority is not asked.
    #[tokio::test]
    async fn a_node_orders_nothing_that_only_dns_proves() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let document =
            "[tls.acme]\ndomains = [\"*.a.example\"]\ndirectory = \"https://127.0.0.1:1/\"\n";
        let config = NodeConfig::parse(document.as_bytes()).expect("a correct document");
        let key = NodeKey::from_seed(&[1; 32]);
        let certificates = NodeCertificates::start(&config, &key, dir.path(), None);
        let mut seen = certificates.problems.watch();
        let waits = seen.wait_for(|list| !list.is_empty());
        let seen = tokio::time::timeout(deadline(Duration::from_secs(60)), waits).await;
        let found = seen.expect("a problem").expect("the node runs")[0].clone();
        assert_eq!(found.code, ACME_FAILED);
        assert!(found.text.contains("no node serves one yet"), "{found}");
    }

    #[test]
    fn without_a_file_the_authority_is_dialled_like_others() {
        let tls = TlsSection::default();
        let key = NodeKey::from_seed(&[1; 32]);
        let usual = dialler::make(&key, trusting(&tls, bundled_roots()));
        let way = to_authority(&tls, &key, &usual).expect("nothing is read");
        assert!(Arc::ptr_eq(&way, &usual));
    }
}
