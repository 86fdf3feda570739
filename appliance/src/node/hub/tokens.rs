//! Enrolment tokens in the node's identity file, so that an invitation survives a restart.

use alknet_core::{BoxFuture, KeyId};
use alknet_hub::{TokenRecord, TokenStore, TokenStoreError};
use alknet_identity_store::{EnrolmentError, EnrolmentRecord, IdentityDb};

/// The table of tokens in the identity file.
#[derive(Clone)]
pub(crate) struct StoredTokens(IdentityDb);

impl StoredTokens {
    pub(crate) fn new(db: IdentityDb) -> Self {
        Self(db)
    }
}

impl TokenStore for StoredTokens {
    fn put(&self, record: TokenRecord) -> BoxFuture<'_, Result<(), TokenStoreError>> {
        Box::pin(async move {
            let name = record.hash.key_id;
            let put = self.0.put_enrolment(row(&record)?).await;
            if put.map_err(failed)? {
                Ok(())
            } else {
                Err(TokenStoreError::Taken(name))
            }
        })
    }

    fn get(&self, name: KeyId) -> BoxFuture<'_, Result<Option<TokenRecord>, TokenStoreError>> {
        Box::pin(async move {
            let found = self.0.enrolment(name).await.map_err(failed)?;
            found.as_ref().map(read).transpose()
        })
    }

    fn replace(&self, record: TokenRecord) -> BoxFuture<'_, Result<bool, TokenStoreError>> {
        Box::pin(async move {
            let replaced = self.0.replace_enrolment(row(&record)?).await;
            replaced.map_err(failed)
        })
    }

    fn remove(&self, name: KeyId) -> BoxFuture<'_, Result<bool, TokenStoreError>> {
        Box::pin(async move { self.0.remove_enrolment(name).await.map_err(failed) })
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<TokenRecord>, TokenStoreError>> {
        Box::pin(async move {
            let rows = self.0.enrolments().await.map_err(failed)?;
            rows.iter().map(read).collect()
        })
    }
}

fn failed(error: EnrolmentError) -> TokenStoreError {
    TokenStoreError::Failed(error.0)
}

fn row(record: &TokenRecord) -> Result<EnrolmentRecord, TokenStoreError> {
    let text = serde_json::to_string(record)
        .map_err(|error| TokenStoreError::Failed(error.to_string()))?;
    Ok(EnrolmentRecord {
        key_id: record.hash.key_id,
        revision: record.revision,
        expires: record.expires,
        record: text,
    })
}

/// Reads a record. The revision is that of the column, whatever revision the text was written with.
fn read(row: &EnrolmentRecord) -> Result<TokenRecord, TokenStoreError> {
    let record: TokenRecord = serde_json::from_str(&row.record)
        .map_err(|error| TokenStoreError::Failed(error.to_string()))?;
    Ok(TokenRecord {
        revision: row.revision,
        ..record
    })
}

#[cfg(test)]
mod tests {
    use alknet_hub::{EnrolRole, EnrolToken, TokenKind};

    use super::*;

    #[tokio::test]
    async fn tokens_survive_a_restart_and_are_used_once() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("identity.db");
        let record = TokenRecord {
            hash: EnrolToken::generate().expect("randomness").hash(),
            kind: TokenKind::Once,
            expires: 1000,
            role: EnrolRole::new("worker".parse().expect("a role")),
            made_by: "admin".to_owned(),
            made_by_key: None,
            uses: Vec::new(),
            removals: Some(0),
            closed: false,
            revision: 0,
        };
        let name = record.hash.key_id;
        {
            let tokens = StoredTokens::new(IdentityDb::open(&path).0);
            assert_eq!(tokens.get(name).await, Ok(None));
            assert_eq!(tokens.put(record.clone()).await, Ok(()));
            let taken = Err(TokenStoreError::Taken(name));
            assert_eq!(tokens.put(record.clone()).await, taken);
        }
        let tokens = StoredTokens::new(IdentityDb::open(&path).0);
        assert_eq!(tokens.list().await, Ok(vec![record.clone()]));
        assert_eq!(tokens.replace(record.clone()).await, Ok(true));
        assert_eq!(tokens.replace(record.clone()).await, Ok(false));
        let used = tokens.get(name).await.expect("a readable file");
        assert_eq!(used.map(|record| record.revision), Some(1));
        assert_eq!(tokens.remove(name).await, Ok(true));
        assert_eq!(tokens.list().await, Ok(Vec::new()));
    }
}
