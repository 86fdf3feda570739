//! Chooses the certificate for a client that does not take raw keys.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use rustls::SignatureScheme;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::certs;
use crate::error::TlsError;
use crate::key::NodeKey;
use crate::store::CertificateStore;

/// The configured certificates, then the self-signed ones. Each of these is made for the first client that needs it:
/// most nodes never serve a browser, and no start waits for one.
pub(crate) struct ServerCertificates {
    key: NodeKey,
    own_name: String,
    state_dir: Option<PathBuf>,
    configured: Arc<CertificateStore>,
    node: OnceLock<Option<Arc<CertifiedKey>>>,
    browser: OnceLock<Option<Arc<CertifiedKey>>>,
}

impl ServerCertificates {
    pub(crate) fn new(
        key: NodeKey,
        state_dir: Option<PathBuf>,
        configured: Arc<CertificateStore>,
    ) -> Self {
        Self {
            own_name: key.host_name(),
            key,
            state_dir,
            configured,
            node: OnceLock::new(),
            browser: OnceLock::new(),
        }
    }

    /// Whether a client asks for a name of this node: a configured one, or that of its key.
    pub(crate) fn knows(&self, name: Option<&str>) -> bool {
        name.is_some_and(|name| {
            name.eq_ignore_ascii_case(&self.own_name) || self.configured.find(name).is_some()
        })
    }

    /// The configured certificate for the requested name, if the client can check its signatures.
    fn configured(&self, hello: &ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let found = self.configured.find(hello.server_name()?)?;
        // A client that cannot check the signatures of this certificate gets the self-signed one.
        found.key.choose_scheme(hello.signature_schemes())?;
        Some(found)
    }

    fn node(&self) -> Option<Arc<CertifiedKey>> {
        self.node
            .get_or_init(|| report(certs::wrapped(&self.key)))
            .clone()
    }

    fn browser(&self) -> Option<Arc<CertifiedKey>> {
        let make = || {
            let provider = crate::provider();
            // On a full or read-only disk the key does not survive the process, but the browser gets its certificate.
            report(certs::browser(
                &self.key,
                self.state_dir.as_deref(),
                &provider,
            ))
            .or_else(|| report(certs::browser(&self.key, None, &provider)))
        };
        self.browser.get_or_init(make).clone()
    }
}

impl ResolvesServerCert for ServerCertificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        if let Some(configured) = self.configured(&hello) {
            return Some(configured);
        }
        if hello
            .signature_schemes()
            .contains(&SignatureScheme::ED25519)
        {
            self.node()
        } else {
            self.browser()
        }
    }
}

impl fmt::Debug for ServerCertificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ServerCertificates({:?})", self.key)
    }
}

fn report<T>(result: Result<T, TlsError>) -> Option<T> {
    result.inspect_err(|error| tracing::error!("{error}")).ok()
}
