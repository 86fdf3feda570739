//! What is kept of an account and its certificate.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::TlsError;
use crate::pair::{CertificatePair, PairError};
use crate::secret_file;

/// `<state>/acme`: `account.json`, `orders.json`, and a folder with `certificate.pem` named after
/// the certificate's first name. Chain and key are one file, so that no power cut can part them.
/// Everything is mode 0600 in folders of mode 0700.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    root: PathBuf,
    certificate: PathBuf,
}

/// An account at one authority.
#[derive(Serialize, Deserialize)]
pub(crate) struct StoredAccount {
    /// The authority's directory.
    pub(crate) directory: String,
    /// What the account is and its key.
    pub(crate) credentials: instant_acme::AccountCredentials,
}

impl Disk {
    /// Below `state_dir`, for a certificate whose first name is `name`.
    pub(crate) fn open(state_dir: &Path, name: &str) -> Result<Self, TlsError> {
        let root = state_dir.join("acme");
        let folder = root.join(name.replace('*', "_"));
        private_dir(&folder).map_err(|source| TlsError::KeyWrite {
            path: folder.clone(),
            source,
        })?;
        Ok(Self {
            certificate: folder.join("certificate.pem"),
            root,
        })
    }

    pub(crate) fn account(&self) -> Result<Option<StoredAccount>, TlsError> {
        self.read_json("account.json")
    }

    pub(crate) fn keep_account(&self, account: &StoredAccount) -> Result<(), TlsError> {
        self.write_json("account.json", account)
    }

    /// The history of orders; one that cannot be read begins anew.
    pub(crate) fn history<T: DeserializeOwned + Default>(&self) -> T {
        match self.read_json("orders.json") {
            Ok(history) => history.unwrap_or_default(),
            Err(error) => {
                tracing::warn!("the history of certificate orders begins anew: {error}");
                T::default()
            }
        }
    }

    pub(crate) fn keep_history(&self, history: &impl Serialize) -> Result<(), TlsError> {
        self.write_json("orders.json", history)
    }

    /// The certificate last kept.
    pub(crate) fn certificate(&self) -> Result<Option<CertificatePair>, TlsError> {
        let Some(pem) = secret_file::read(&self.certificate)? else {
            return Ok(None);
        };
        let broken = |error: PairError| TlsError::State {
            path: self.certificate.clone(),
            reason: error.to_string(),
        };
        CertificatePair::from_pem(&pem, &pem)
            .map(Some)
            .map_err(broken)
    }

    pub(crate) fn keep_certificate(&self, chain: &str, key: &str) -> Result<(), TlsError> {
        let pem = zeroize::Zeroizing::new(format!("{}\n{key}", chain.trim_end()));
        secret_file::write(&self.certificate, pem.as_bytes())
    }

    fn read_json<T: DeserializeOwned>(&self, file: &str) -> Result<Option<T>, TlsError> {
        let path = self.root.join(file);
        let Some(text) = secret_file::read(&path)? else {
            return Ok(None);
        };
        // The parser's own text could quote a secret.
        serde_json::from_slice(&text).map(Some).map_err(|error| {
            let reason = format!("damaged at line {}", error.line());
            TlsError::State { path, reason }
        })
    }

    fn write_json(&self, file: &str, value: &impl Serialize) -> Result<(), TlsError> {
        let path = self.root.join(file);
        let text = serde_json::to_vec(value).map_err(|error| TlsError::State {
            path: path.clone(),
            reason: error.to_string(),
        })?;
        secret_file::write(&path, &zeroize::Zeroizing::new(text))
    }
}

fn private_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::super::plan::History;
    use super::*;
    use crate::pair::tests::Authority;

    #[test]
    fn a_certificate_survives_and_is_private() {
        let dir = tempfile::tempdir().expect("a directory");
        let disk = Disk::open(dir.path(), "*.a.example").expect("a folder");
        assert!(disk.certificate().expect("readable").is_none());
        assert!(disk.account().expect("readable").is_none());
        assert_eq!(disk.history::<History>(), History::default());
        let (chain, key) = Authority::new("ca").issue(&["*.a.example"]);
        disk.keep_certificate(&chain, &key).expect("kept");
        let pair = disk.certificate().expect("readable").expect("there");
        assert_eq!(pair.names(), ["*.a.example"]);
        let path = dir.path().join("acme/_.a.example/certificate.pem");
        let mode = |path: &Path| {
            let meta = std::fs::metadata(path).expect("stat");
            meta.permissions().mode() & 0o777
        };
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(path.parent().expect("a folder")), 0o700);
        disk.keep_history(&History::default()).expect("kept");
        std::fs::write(&path, "-----BEGIN").expect("write");
        assert!(matches!(disk.certificate(), Err(TlsError::State { .. })));
        std::fs::write(dir.path().join("acme/orders.json"), "{").expect("write");
        assert_eq!(disk.history::<History>(), History::default());
    }
}
