//! What the node serves beside its key: certificates from files and from an authority.

use std::path::Path;
use std::sync::Arc;

use alknet_core::config::{AcmeChallenge, NodeConfig, TlsSection};
use alknet_endpoint::{Dialer, HttpsClient};
use alknet_tls::acme::{Acme, AcmeError, AcmeOptions, AcmeParts, ChallengeKind};
use alknet_tls::{
    ACME_FAILED, CertificateFiles, ClientTlsOptions, FILES_INTERVAL, FileWatcher, Problems,
    ServerTlsOptions, TlsError, bundled_roots, roots_from_file,
};

/// Starts what keeps the certificates of `config`, and returns what the port serves of them. Must
/// run inside a runtime. Nothing that is wrong with a certificate keeps the node from starting: it
/// is reported, and the node's own key is served.
pub(crate) fn start(config: &NodeConfig, tls_dir: &Path) -> ServerTlsOptions {
    let problems = Arc::new(Problems::default());
    let options = ServerTlsOptions {
        state_dir: Some(tls_dir.to_owned()),
        strict_sni: config.tls.strict_sni,
        ..ServerTlsOptions::default()
    };
    let files = files(&config.tls);
    if !files.is_empty() {
        let store = Arc::clone(&options.certificates);
        let watcher = FileWatcher::new(files, store, Arc::clone(&problems));
        tokio::spawn(watcher.run(FILES_INTERVAL));
    }
    let names = config.certificate_names();
    if !names.is_empty() {
        let subject = names.join(", ");
        match acme(config, names, tls_dir, &options, &problems) {
            Ok(acme) => drop(tokio::spawn(acme.run())),
            Err(error) => problems.set(ACME_FAILED, &subject, error.to_string()),
        }
    }
    options
}

/// How the node dials others, apart from the key it shows.
pub(crate) fn client_options(tls: &TlsSection) -> Result<ClientTlsOptions, TlsError> {
    let roots = match &tls.roots {
        Some(path) => roots_from_file(Path::new(path))?,
        None => bundled_roots(),
    };
    Ok(ClientTlsOptions {
        key: None,
        roots,
        webpki_ip: tls.webpki_ip,
        present_key_to_public: tls.present_key_to_public,
    })
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
    served: &ServerTlsOptions,
    problems: &Arc<Problems>,
) -> Result<Acme, AcmeError> {
    let section = &config.tls.acme;
    let dialer = Dialer::with_options(client_options(&config.tls)?);
    let options = AcmeOptions {
        directory: section.directory.clone(),
        contact: section.contact.clone(),
        names,
        challenge: section.challenge.map(kind),
        profile: section.profile.clone(),
        state_dir: tls_dir.to_owned(),
        clock_floor: alknet_init::BUILD_TIME_S,
    };
    let parts = AcmeParts {
        transport: Arc::new(HttpsClient::new(Arc::new(dialer))),
        store: Arc::clone(&served.certificates),
        problems: Arc::clone(problems),
        alpn: Arc::clone(&served.challenges),
        // Mounted by the parts that serve HTTP and DNS.
        http: None,
        dns: None,
    };
    Acme::new(options, parts)
}

fn kind(challenge: AcmeChallenge) -> ChallengeKind {
    match challenge {
        AcmeChallenge::Dns01 => ChallengeKind::Dns01,
        AcmeChallenge::Http01 => ChallengeKind::Http01,
        AcmeChallenge::TlsAlpn01 => ChallengeKind::TlsAlpn01,
    }
}
