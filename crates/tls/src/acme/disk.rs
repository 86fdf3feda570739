//! What is kept of an account and its certificate.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use data_encoding::HEXLOWER;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::error::AcmeError;
use super::keys::KeySeal;
use crate::error::TlsError;
use crate::pair::CertificatePair;
use crate::secret_file;

/// Chain and key, where there is no seal.
const BOTH: &str = "certificate.pem";
/// The chain, where there is one.
const CHAIN: &str = "chain.pem";
/// How the files of sealed keys begin and end; between is which chain they belong to.
const KEY: (&str, &str) = ("key-", ".sealed");
/// Bytes of a chain's hash in the name of its key.
const KEY_NAME_BYTES: usize = 8;

/// `<state>/acme`: `account.json`, `orders.json`, and a folder named after the certificate's first
/// name. Everything is mode 0600 in folders of mode 0700.
///
/// Without a seal, chain and key are one file, so that no power cut can part them. With one they are
/// two, and the name of the key's file is of the chain's hash: a chain says which key is its own. The
/// new key is on the disk, beside the old one, before the new chain replaces the old chain, and the old
/// key is removed after that. So at every moment the chain that is there has its key, and a power cut
/// leaves at most a key that no chain asks for, which goes with the next start.
pub(crate) struct AcmeStorage {
    root: PathBuf,
    folder: PathBuf,
    name: String,
    seal: Option<Arc<dyn KeySeal>>,
}

/// A key in the form it is kept in.
pub(crate) enum StoredCertificateKey {
    /// Key in PEM, unsealed.
    Plain(Zeroizing<String>),
    /// What the seal made of that.
    Sealed(Vec<u8>),
}

/// An account at one authority.
#[derive(Serialize, Deserialize)]
pub(crate) struct StoredAccount {
    /// The authority's directory.
    pub(crate) directory: String,
    /// What the account is and its key.
    pub(crate) credentials: instant_acme::AccountCredentials,
}

impl AcmeStorage {
    /// Below `state_dir`, for a certificate whose first name is `name`.
    pub(crate) fn open(
        state_dir: &Path,
        name: &str,
        seal: Option<Arc<dyn KeySeal>>,
    ) -> Result<Self, TlsError> {
        let root = state_dir.join("acme");
        let folder = root.join(name.replace('*', "_"));
        private_dir(&folder).map_err(|source| TlsError::KeyWrite {
            path: folder.clone(),
            source,
        })?;
        Ok(Self {
            root,
            folder,
            name: name.to_owned(),
            seal,
        })
    }

    pub(crate) fn account(&self) -> Result<Option<StoredAccount>, TlsError> {
        self.read_json("account.json")
    }

    pub(crate) fn keep_account(&self, account: &StoredAccount) -> Result<(), TlsError> {
        self.write_json("account.json", account)
    }

    /// The history of orders; one that cannot be read is replaced by an empty one.
    pub(crate) fn history<T: DeserializeOwned + Default>(&self) -> T {
        match self.read_json("orders.json") {
            Ok(history) => history.unwrap_or_default(),
            Err(error) => {
                tracing::warn!("the history of certificate orders starts empty: {error}");
                T::default()
            }
        }
    }

    pub(crate) fn keep_history(&self, history: &impl Serialize) -> Result<(), TlsError> {
        self.write_json("orders.json", history)
    }

    /// The certificate last kept.
    pub(crate) fn certificate(&self) -> Result<Option<CertificatePair>, AcmeError> {
        let (chain_at, both_at) = (self.folder.join(CHAIN), self.folder.join(BOTH));
        let chain = secret_file::read(&chain_at)?;
        if let (Some(seal), Some(chain)) = (&self.seal, &chain) {
            let key = self.open_key(&**seal, chain)?;
            return Ok(Some(pair(&chain_at, chain, &key)?));
        }
        match secret_file::read(&both_at)? {
            Some(pem) => Ok(Some(pair(&both_at, &pem, &pem)?)),
            None if chain.is_none() => Ok(None),
            None => {
                let reason = "its key is sealed, and this node has no vault that opens it";
                Err(damaged(&chain_at, reason).into())
            }
        }
    }

    fn open_key(&self, seal: &dyn KeySeal, chain: &[u8]) -> Result<Zeroizing<Vec<u8>>, AcmeError> {
        let path = self.key_of(chain);
        let sealed = secret_file::read(&path)?
            .ok_or_else(|| damaged(&path, "the key of the chain beside it is not there"))?;
        seal.open(&self.name, &sealed)
            .map_err(|source| AcmeError::KeyOpen { path, source })
    }

    /// The form in which [`AcmeStorage::keep_certificate`] will keep the key with this PEM.
    pub(crate) fn seal(&self, key: &str) -> Result<StoredCertificateKey, AcmeError> {
        match &self.seal {
            None => Ok(StoredCertificateKey::Plain(Zeroizing::new(key.to_owned()))),
            Some(seal) => seal
                .seal(&self.name, key.as_bytes())
                .map(StoredCertificateKey::Sealed)
                .map_err(AcmeError::KeySeal),
        }
    }

    pub(crate) fn keep_certificate(
        &self,
        chain: &str,
        key: &StoredCertificateKey,
    ) -> Result<(), TlsError> {
        let (chain_at, both_at) = (self.folder.join(CHAIN), self.folder.join(BOTH));
        match key {
            StoredCertificateKey::Plain(key) => {
                // Where there are both, the sealed one counts. The plain one is newer, and this node has no seal to
                // open the other with.
                remove(&chain_at)?;
                let pem = Zeroizing::new(format!("{}\n{}", chain.trim_end(), key.as_str()));
                secret_file::write(&both_at, pem.as_bytes())?;
                self.sweep(&[&both_at]);
            }
            StoredCertificateKey::Sealed(key) => {
                let key_at = self.key_of(chain.as_bytes());
                secret_file::write(&key_at, key)?;
                secret_file::write(&chain_at, chain.as_bytes())?;
                self.sweep(&[&chain_at, &key_at]);
            }
        }
        Ok(())
    }

    /// Where there is a seal, leaves no key without it: seals those of a node that had none, and finishes
    /// what a power cut left half done. For after [`AcmeStorage::certificate`] found nothing wrong.
    pub(crate) fn seal_kept(&self) -> Result<(), AcmeError> {
        if self.seal.is_none() {
            return Ok(());
        }
        self.seal_own()?;
        self.others()?.iter().try_for_each(Self::seal_own)
    }

    /// Certificates of names that were the first before the configuration was changed.
    fn others(&self) -> Result<Vec<Self>, TlsError> {
        let fail = |source| TlsError::KeyRead {
            path: self.root.clone(),
            source,
        };
        let mut others = Vec::new();
        for entry in fs::read_dir(&self.root).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            let folder = entry.path();
            if folder == self.folder || !folder.is_dir() {
                continue;
            }
            let name = entry.file_name().to_string_lossy().into_owned();
            others.push(Self {
                root: self.root.clone(),
                folder,
                name: match name.strip_prefix("_.") {
                    Some(parent) => format!("*.{parent}"),
                    None => name,
                },
                seal: self.seal.clone(),
            });
        }
        Ok(others)
    }

    /// The same for this certificate alone.
    fn seal_own(&self) -> Result<(), AcmeError> {
        let (chain_at, both_at) = (self.folder.join(CHAIN), self.folder.join(BOTH));
        if let Some(chain) = secret_file::read(&chain_at)? {
            self.sweep(&[&chain_at, &self.key_of(&chain)]);
            return Ok(());
        }
        let Some(pem) = secret_file::read(&both_at)? else {
            return Ok(());
        };
        let (chain, key) =
            parts(&pem).ok_or_else(|| damaged(&both_at, "it does not end with a key"))?;
        // Nothing is removed that was not found good in the form it is written in.
        pair(&both_at, chain.as_bytes(), key.as_bytes())?;
        self.keep_certificate(chain, &self.seal(key)?)?;
        tracing::info!("sealed the key that was in {}", both_at.display());
        Ok(())
    }

    /// Where the sealed key of this chain is.
    fn key_of(&self, chain: &[u8]) -> PathBuf {
        let (begin, end) = KEY;
        let hash = HEXLOWER.encode(&Sha256::digest(chain)[..KEY_NAME_BYTES]);
        self.folder.join(format!("{begin}{hash}{end}"))
    }

    /// Removes every other form of the certificate, and what a power cut left of writing one: a key in
    /// the clear may be among it. The certificate is kept whether or not this works.
    fn sweep(&self, keep: &[&Path]) {
        if let Err(error) = self.try_sweep(keep) {
            let folder = self.folder.display();
            tracing::warn!("cannot remove older keys from {folder}, do it by hand: {error}");
        }
    }

    fn try_sweep(&self, keep: &[&Path]) -> io::Result<()> {
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            // What is not whole yet begins with a dot.
            let name = name.strip_prefix('.').unwrap_or(&name);
            let ours = [BOTH, CHAIN, KEY.0].iter().any(|own| name.starts_with(own));
            let path = entry.path();
            if ours && !keep.contains(&path.as_path()) {
                fs::remove_file(&path)?;
            }
        }
        alknet_durable::sync_folder(&self.folder)
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
        secret_file::write(&path, &Zeroizing::new(text))
    }
}

fn pair(path: &Path, chain: &[u8], key: &[u8]) -> Result<CertificatePair, TlsError> {
    CertificatePair::from_pem(chain, key).map_err(|error| damaged(path, &error.to_string()))
}

fn damaged(path: &Path, reason: &str) -> TlsError {
    TlsError::State {
        path: path.to_owned(),
        reason: reason.to_owned(),
    }
}

/// Chain and key of a file with both, where the key is the last.
fn parts(pem: &[u8]) -> Option<(&str, &str)> {
    let pem = str::from_utf8(pem).ok()?;
    let label = pem.find("PRIVATE KEY-----")?;
    let key = pem[..label].rfind("-----BEGIN ")?;
    Some(pem.split_at(key))
}

fn remove(path: &Path) -> Result<(), TlsError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(TlsError::KeyWrite {
            path: path.to_owned(),
            source: error,
        }),
        _ => Ok(()),
    }
}

fn private_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

#[cfg(test)]
mod tests;
