//! The account at the authority: of a key that the caller derives, or of one that is generated and stored on disk.

use std::sync::Arc;

use instant_acme::{Account, AccountBuilder, Key, NewAccount};
use rustls::pki_types::PrivatePkcs8KeyDer;

use super::disk::StoredAccount;
use super::transport::InstantAcmeTransport;
use super::{AccountKey, Acme, AcmeError};

impl Acme {
    /// The account at the configured authority, which the first order creates.
    pub(super) async fn account(&mut self) -> Result<Account, AcmeError> {
        if let Some(account) = &self.account {
            return Ok(account.clone());
        }
        let account = match &self.account_key {
            Some(key) => self.derived_account(&**key).await?,
            None => self.own_account().await?,
        };
        self.account = Some(account.clone());
        Ok(account)
    }

    /// The account of a derived key. The authority returns the existing one, or creates one (RFC 8555 section 7.3.1).
    async fn derived_account(&self, key: &dyn AccountKey) -> Result<Account, AcmeError> {
        let pkcs8 = key.pkcs8().map_err(AcmeError::AccountKey)?;
        let der = PrivatePkcs8KeyDer::from(pkcs8.to_vec());
        let key = Key::from_pkcs8_der(der.clone_key())?;
        let directory = self.options.directory.clone();
        let builder = self.builder();
        let (account, _) = builder
            .create_from_key((key, der.into()), directory)
            .await?;
        let contact = self.contact();
        // An empty list would remove the contacts of the account (RFC 8555 section 7.3.2).
        if !contact.is_empty() {
            account.update_contacts(&contact).await?;
        }
        tracing::info!("uses the account {}", account.id());
        Ok(account)
    }

    /// The account whose key is on disk.
    async fn own_account(&self) -> Result<Account, AcmeError> {
        let stored = self.disk.account()?;
        let directory = &self.options.directory;
        // An account belongs to one authority: the stored one is of no use if the configuration names another
        // directory.
        if let Some(stored) = stored.filter(|stored| stored.directory == *directory) {
            return Ok(self.builder().from_credentials(stored.credentials).await?);
        }
        let new = NewAccount {
            contact: &self.contact(),
            // An authority with terms of service creates no account without this (RFC 8555 section 7.3).
            terms_of_service_agreed: true,
            only_return_existing: false,
        };
        let made = self.builder().create(&new, directory.clone(), None).await;
        let (account, credentials) = made?;
        self.disk.keep_account(&StoredAccount {
            directory: directory.clone(),
            credentials,
        })?;
        tracing::info!("made the account {}", account.id());
        Ok(account)
    }

    fn builder(&self) -> AccountBuilder {
        Account::builder_with_http(Box::new(InstantAcmeTransport {
            transport: Arc::clone(&self.transport),
            retry_after: Arc::clone(&self.retry_after),
        }))
    }

    fn contact(&self) -> Vec<&str> {
        self.options.contact.iter().map(String::as_str).collect()
    }
}
