//! What the node serves beside its key: certificates from files and from an authority.

mod keys;

use std::path::Path;
use std::sync::Arc;

use alknet_core::config::{AcmeChallenge, NodeConfig, Port80, TlsSection};
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
use super::key_rotation::NODE_KEY_WAITS;
use super::self_probe::IDENTITY_ELSEWHERE;
use super::vault::NodeVault;
use keys::CertificateKeys;

/// The certificate authorities of `tls.roots` or `tls.acme.ca_file` cannot be read.
const ROOTS_FAILED: &str = "tls-roots-failed";

/// Certificates both ways: those that the node serves, and those that it trusts when it dials.
pub(crate) struct NodeCertificates {
    /// What the port serves beside its key.
    pub(crate) served: ServerTlsOptions,
    /// What is wrong.
    pub(crate) problems: Arc<NodeDiagnostics>,
    /// How the node dials others.
    pub(crate) dialer: Arc<EndpointDialer>,
    /// Answers for the authority over plain HTTP.
    pub(crate) challenges: Arc<HttpChallenges>,
}

impl NodeCertificates {
    /// Starts what keeps the certificates of `config`. Must run inside a runtime. Nothing that is
    /// wrong with a certificate keeps the node from starting: it is reported, and the node's own
    /// key is served.
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

    /// Orders a certificate for `names`, and renews it for as long as the node runs.
    fn order(
        &self,
        config: &NodeConfig,
        names: Vec<String>,
        tls_dir: &Path,
        vault: Option<&NodeVault>,
        way: &Arc<EndpointDialer>,
    ) {
        let subject = names.join(", ");
        // Without port 80 no authority could read the answers.
        let plain = config.http.port80 != Port80::Off;
        let answers = plain.then(|| Arc::clone(&self.challenges));
        let keys = vault.map(|vault| Arc::new(CertificateKeys::new(vault.vault())));
        let parts = AcmeParts {
            transport: Arc::new(AcmeHttpTransport::new(way)),
            store: Arc::clone(&self.served.certificates),
            problems: Arc::clone(&self.problems),
            alpn: Arc::clone(&self.served.challenges),
            http: answers,
            // Comes with the part that serves DNS.
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

/// What is wrong with certificates, as the console and `node/info` show it.
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

/// How the node dials, with no public authority where those asked for cannot be had.
fn trusted(tls: &TlsSection, problems: &NodeDiagnostics) -> ClientTlsOptions {
    client_options(tls).unwrap_or_else(|error| {
        let subject = tls.roots.as_deref().unwrap_or("tls.roots");
        problems.set(ROOTS_FAILED, subject, error.to_string());
        // Without roots no public certificate is trusted, which is safer than to trust others than the named ones.
        ClientTlsOptions {
            roots: RootCertStore::empty(),
            ..ClientTlsOptions::default()
        }
    })
}

/// How the node dials others, apart from the key it shows.
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

/// The dialler for the ACME server: the `usual` one, or one that trusts the certificates of `tls.acme.ca_file`, which
/// count for no other server.
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

/// Longest answer of a certificate authority.
const AUTHORITY_BYTES_MAX: usize = 1 << 20;

/// The way to a certificate authority. The administrator names it, so it may be anywhere, also on the
/// node's own network.
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
    fn without_a_file_the_authority_is_dialled_like_others() {
        let tls = TlsSection::default();
        let key = NodeKey::from_seed(&[1; 32]);
        let usual = dialler::make(&key, trusting(&tls, bundled_roots()));
        let way = to_authority(&tls, &key, &usual).expect("nothing is read");
        assert!(Arc::ptr_eq(&way, &usual));
    }
}
