//! The files of an account and its certificate.

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

/// File of chain and key, if the node has no seal.
const BOTH: &str = "certificate.pem";
/// File of the chain, if the node has a seal.
const CHAIN: &str = "chain.pem";
/// Prefix and suffix of the files of sealed keys. The hash of the chain is between them.
const KEY: (&str, &str) = ("key-", ".sealed");
/// Bytes of a chain's hash in the name of its key.
const KEY_NAME_BYTES: usize = 8;

/// The folder `<state>/acme`: `account.json`, `orders.json`, and a folder named after the certificate's first name.
/// All files have mode 0600, all folders mode 0700.
///
/// Without a seal, chain and key are one file, so that no power cut can part them. With one they are two, and the
/// name of the key's file has the hash of the chain: hence a chain names its own key. The new key is on disk, beside
/// the old one, before the new chain replaces the old chain, and the old key is removed after that. So the chain on
/// disk has its key at every moment, and a power cut leaves at most a key of no chain, which the next start removes.
pub(crate) struct AcmeStorage {
    root: PathBuf,
    folder: PathBuf,
    name: String,
    seal: Option<Arc<dyn KeySeal>>,
}

/// A key in its form on disk.
pub(crate) enum StoredCertificateKey {
    /// Key in PEM, unsealed.
    Plain(Zeroizing<String>),
    /// The sealed key.
    Sealed(Vec<u8>),
}

/// An account at one authority.
#[derive(Serialize, Deserialize)]
pub(crate) struct StoredAccount {
    /// The authority's directory.
    pub(crate) directory: String,
    /// The account's id and key.
    pub(crate) credentials: instant_acme::AccountCredentials,
}

impl AcmeStorage {
    /// Opens the folder in `state_dir` for a certificate whose first name is `name`.
    pub(crate) fn open(
        state_dir: &Path,
        name: &str,
        seal: Option<Arc<dyn KeySeal>>,
    ) -> Result<Self, TlsError> {
        let root = state_dir.join("acme");
        // A shell would expand `*` in the name of a folder.
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

    /// The history of orders. A history that cannot be read counts as empty.
    pub(crate) fn history<T: DeserializeOwned + Default>(&self) -> T {
        match self.read_json("orders.json") {
            Ok(history) => history.unwrap_or_default(),
            // Without its history the node still serves, and only the limits and pauses of orders begin again.
            Err(error) => {
                tracing::warn!("the history of certificate orders starts empty: {error}");
                T::default()
            }
        }
    }

    pub(crate) fn keep_history(&self, history: &impl Serialize) -> Result<(), TlsError> {
        self.write_json("orders.json", history)
    }

    /// The certificate that was stored last.
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

    /// The form in which [`AcmeStorage::keep_certificate`] stores the key with this PEM.
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
                // If both forms are on disk, the sealed one is read. The plain one is newer here, and this node has
                // no seal that opens the other.
                remove(&chain_at)?;
                let pem = Zeroizing::new(format!("{}\n{}", chain.trim_end(), key.as_str()));
                secret_file::write(&both_at, pem.as_bytes())?;
                self.sweep(&[&both_at]);
            }
            StoredCertificateKey::Sealed(key) => {
                let key_at = self.key_of(chain.as_bytes());
                // The key comes before its chain: after a crash between the two, the old chain still has its own key.
                secret_file::write(&key_at, key)?;
                secret_file::write(&chain_at, chain.as_bytes())?;
                // Older keys are removed last, because a failure before leaves a readable pair.
                self.sweep(&[&chain_at, &key_at]);
            }
        }
        Ok(())
    }

    /// If the node has a seal, seals every key on disk: those of a node that had none, and those that a power cut
    /// left half done. To be called after [`AcmeStorage::certificate`] found no error.
    pub(crate) fn seal_stored(&self) -> Result<(), AcmeError> {
        if self.seal.is_none() {
            return Ok(());
        }
        self.seal_own()?;
        self.others()?.iter().try_for_each(Self::seal_own)
    }

    /// The storage of certificates whose first name was another one before the configuration changed.
    fn others(&self) -> Result<Vec<Self>, TlsError> {
        let fail = |source| TlsError::KeyRead {
            path: self.root.clone(),
            source,
        };
        let mut others = Vec::new();
        for entry in fs::read_dir(&self.root).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            let folder = entry.path();
            // The files of the account lie beside the folders.
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

    /// Seals the key of this certificate alone.
    fn seal_own(&self) -> Result<(), AcmeError> {
        let (chain_at, both_at) = (self.folder.join(CHAIN), self.folder.join(BOTH));
        if let Some(chain) = secret_file::read(&chain_at)? {
            // A crash may have come after the sealed form was written and before the plain one was removed.
            self.sweep(&[&chain_at, &self.key_of(&chain)]);
            return Ok(());
        }
        let Some(pem) = secret_file::read(&both_at)? else {
            return Ok(());
        };
        let (chain, key) =
            parts(&pem).ok_or_else(|| damaged(&both_at, "it does not end with a key"))?;
        // The old form is removed only after the new one was read back as valid.
        pair(&both_at, chain.as_bytes(), key.as_bytes())?;
        self.keep_certificate(chain, &self.seal(key)?)?;
        tracing::info!("sealed the key that was in {}", both_at.display());
        Ok(())
    }

    /// The path of the sealed key of this chain.
    fn key_of(&self, chain: &[u8]) -> PathBuf {
        let (begin, end) = KEY;
        // The name binds a key to its chain, so that a chain never meets the key of another.
        let hash = HEXLOWER.encode(&Sha256::digest(chain)[..KEY_NAME_BYTES]);
        self.folder.join(format!("{begin}{hash}{end}"))
    }

    /// Removes every other form of the certificate, and partial files that a power cut left, which may hold a key in
    /// the clear. The certificate is stored whether or not this works.
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
            // The name of a partial file begins with a dot.
            let name = name.strip_prefix('.').unwrap_or(&name);
            let ours = [BOTH, CHAIN, KEY.0].iter().any(|own| name.starts_with(own));
            let path = entry.path();
            // The folder may hold files of the operator.
            if ours && !keep.contains(&path.as_path()) {
                fs::remove_file(&path)?;
            }
        }
        // Removals are durable only once the folder is synced (fsync(2)).
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

/// Chain and key of a file that ends with the key.
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
