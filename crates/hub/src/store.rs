//! Where a hub keeps its enrolment tokens.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::{Mutex, MutexGuard, PoisonError};

use alknet_core::{BoxFuture, KeyId};
use thiserror::Error;

use crate::record::TokenRecord;

/// Keeps token records. One table is enough:
///
/// ```sql
/// CREATE TABLE enrolment_tokens (
///     key_id   TEXT PRIMARY KEY,   -- TokenRecord.hash.key_id
///     revision INTEGER NOT NULL,   -- TokenRecord.revision
///     expires  INTEGER NOT NULL,   -- TokenRecord.expires
///     record   TEXT NOT NULL       -- the whole TokenRecord as JSON
/// ) STRICT;
/// ```
///
/// A token is consumed by [`replace`](Self::replace), which is
/// `UPDATE … SET record = ?, revision = revision + 1 WHERE key_id = ? AND revision = ?`: of two who
/// show the last use of a token at the same time, one finds the revision changed.
pub trait TokenStore: Send + Sync + 'static {
    /// Adds a token.
    fn put(&self, record: TokenRecord) -> BoxFuture<'_, Result<(), TokenStoreError>>;

    /// The token of this name.
    fn get(&self, name: KeyId) -> BoxFuture<'_, Result<Option<TokenRecord>, TokenStoreError>>;

    /// Puts `record` in the place of the one of the same name and revision, and counts the revision
    /// up; `false` where that one is gone or has changed, and nothing is done.
    fn replace(&self, record: TokenRecord) -> BoxFuture<'_, Result<bool, TokenStoreError>>;

    /// Forgets a token; whether there was one.
    fn remove(&self, name: KeyId) -> BoxFuture<'_, Result<bool, TokenStoreError>>;

    /// Every token, by name.
    fn list(&self) -> BoxFuture<'_, Result<Vec<TokenRecord>, TokenStoreError>>;
}

/// Why a store fails.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum TokenStoreError {
    /// The medium.
    #[error("the tokens cannot be read or written: {0}")]
    Failed(String),
    /// There is a token of this name.
    #[error("a token of the name {0} exists already: make a new one")]
    Taken(KeyId),
}

/// Keeps records until the process ends.
#[derive(Debug, Default)]
pub struct MemoryTokens(Mutex<BTreeMap<KeyId, TokenRecord>>);

impl MemoryTokens {
    fn records(&self) -> MutexGuard<'_, BTreeMap<KeyId, TokenRecord>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn ready<T: Send + 'static>(value: T) -> BoxFuture<'static, T> {
    Box::pin(std::future::ready(value))
}

impl TokenStore for MemoryTokens {
    fn put(&self, record: TokenRecord) -> BoxFuture<'_, Result<(), TokenStoreError>> {
        let name = record.hash.key_id;
        ready(match self.records().entry(name) {
            Entry::Occupied(_) => Err(TokenStoreError::Taken(name)),
            Entry::Vacant(free) => {
                free.insert(record);
                Ok(())
            }
        })
    }

    fn get(&self, name: KeyId) -> BoxFuture<'_, Result<Option<TokenRecord>, TokenStoreError>> {
        ready(Ok(self.records().get(&name).cloned()))
    }

    fn replace(&self, mut record: TokenRecord) -> BoxFuture<'_, Result<bool, TokenStoreError>> {
        let mut records = self.records();
        let known = records.get_mut(&record.hash.key_id);
        let known = known.filter(|known| known.revision == record.revision || alknet_core::mutant_a(1069));
        ready(Ok(known.is_some_and(|known| {
            record.revision += 1;
            *known = record;
            true
        })))
    }

    fn remove(&self, name: KeyId) -> BoxFuture<'_, Result<bool, TokenStoreError>> {
        ready(Ok(self.records().remove(&name).is_some()))
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<TokenRecord>, TokenStoreError>> {
        ready(Ok(self.records().values().cloned().collect()))
    }
}
