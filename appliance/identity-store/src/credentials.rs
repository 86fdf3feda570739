//! Sealed secrets that the node uses towards other servers. Neither this file nor the database can
//! open them.

use std::io;
use std::path::PathBuf;

use alknet_core::{BoxFuture, CredentialError, CredentialStore, EncryptedData};
use rusqlite::Connection;

use crate::{IdentityDb, lock, rows};

/// Longest name of a secret's provider, in bytes.
const PROVIDER_BYTES_MAX: usize = 255;

/// Longest sealed secret in bytes: 1 MiB, and the tag of its cipher.
const SEALED_BYTES_MAX: usize = (1 << 20) + 16;

impl CredentialStore for IdentityDb {
    fn get(&self, provider: &str) -> Option<EncryptedData> {
        lock(&self.0.credentials).get(provider).cloned()
    }

    fn put<'a>(
        &'a self,
        provider: &'a str,
        sealed: EncryptedData,
    ) -> BoxFuture<'a, Result<(), CredentialError>> {
        let is_within_bounds = (1..=PROVIDER_BYTES_MAX).contains(&provider.len())
            && sealed.data.len() <= SEALED_BYTES_MAX;
        // These are the bounds that the next start checks as well: it would leave a longer row out.
        if !is_within_bounds {
            let what = "a name has 1 to 255 bytes, and a sealed secret at most 1 MiB";
            let source = io::Error::new(io::ErrorKind::InvalidInput, what);
            let path = self.0.path.clone();
            return Box::pin(std::future::ready(Err(CredentialError::Io {
                path,
                source,
            })));
        }
        let (path, provider) = (self.0.path.clone(), provider.to_owned());
        let done = self.0.in_background(move |db| {
            let put =
                |connection: &Connection| rows::put_credential(connection, &provider, &sealed);
            db.write(|_| Ok(false), put)?;
            // The map changes after the disk has the row, so that a reader never sees a secret that
            // a restart would lose.
            lock(&db.credentials).insert(provider, sealed);
            Ok(())
        });
        Box::pin(async { done.await.map_err(|why| failed(path, why)) })
    }

    fn delete<'a>(&'a self, provider: &'a str) -> BoxFuture<'a, Result<bool, CredentialError>> {
        let (path, provider) = (self.0.path.clone(), provider.to_owned());
        let done = self.0.in_background(move |db| {
            // A provider that is not stored needs no write, which spares the disk a transaction.
            if !lock(&db.credentials).contains_key(&provider) {
                return Ok(false);
            }
            let remove = |connection: &Connection| rows::remove_credential(connection, &provider);
            db.write(|_| Ok(true), remove)?;
            Ok(lock(&db.credentials).remove(&provider).is_some())
        });
        Box::pin(async { done.await.map_err(|why| failed(path, why)) })
    }
}

/// The error of a file that cannot be read or written, and why.
fn failed(path: PathBuf, why: String) -> CredentialError {
    let source = io::Error::other(why);
    CredentialError::Io { path, source }
}
