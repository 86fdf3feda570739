//! Shares of other nodes' keys. The node keeps them in its own vault (`escrow/*`). The child that
//! PID 1 starts asks for its own share elsewhere ([`helper`]).

mod helper;

use std::path::Path;
use std::sync::Arc;

use alknet_escrow::{EscrowVault, EscrowVaultError, ShareId, ShareRegistry};
use alknet_init::control::MachineDiagnostic;
use alknet_vault::credentials::{CredentialsError, VaultCredentials};
use alknet_vault::{BlobLabel, VaultError};
use zeroize::Zeroizing;

use super::vault::NodeVault;

pub(crate) use helper::run as run_helper;

/// Folder of shares, below the state directory.
const DIR: &str = "state/escrow";
/// Folder of the sealed records, in the folder of shares.
const RECORDS_DIR: &str = "records";
/// Prefix of the labels of shares.
const KIND: &str = "escrow";

/// The share registry of this node. Without a vault it accepts no share.
pub(super) fn share_registry(state_dir: &Path, vault: Option<&NodeVault>) -> Arc<ShareRegistry> {
    let dir = state_dir.join(DIR);
    let records = ShareRecords {
        vault: vault.cloned(),
        dir: dir.join(RECORDS_DIR),
    };
    // The folder is missing until the first share is deposited, and then there is nothing to renew.
    if !matches!(records.dir.try_exists(), Ok(false)) {
        records.renew();
    }
    Arc::new(ShareRegistry::open(&dir, Arc::new(records)))
}

/// The problem of a damaged registry.
pub(super) fn problem(share_registry: &ShareRegistry) -> Option<MachineDiagnostic> {
    share_registry.broken().map(|text| MachineDiagnostic {
        code: "escrow-damaged".to_owned(),
        text,
        hint:
            "no share is taken or released: put back the file from a backup, or delete it and let \
               every node deposit again"
                .to_owned(),
    })
}

/// Stores shares as records of the node's vault.
struct ShareRecords {
    vault: Option<NodeVault>,
    dir: std::path::PathBuf,
}

impl ShareRecords {
    fn opened(&self) -> Result<(&NodeVault, VaultCredentials), EscrowVaultError> {
        let vault = self.vault.as_ref().ok_or(EscrowVaultError::Absent)?;
        Ok((
            vault,
            VaultCredentials::open(&self.dir).map_err(from_records_error)?,
        ))
    }

    /// Seals every record again with the key version that the configuration names, while the older
    /// versions may still be opened.
    fn renew(&self) {
        let (vault, records) = match self.opened() {
            Ok(opened) => opened,
            // Each request for a share is answered with this error, so it is not logged here.
            Err(EscrowVaultError::Absent) => return,
            Err(error) => return tracing::error!(%error, "escrow.not-renewed"),
        };
        let vault = vault.vault();
        let to = vault.versions().current;
        let renewed = records.versions().and_then(|of| {
            let old = of.current < to;
            old.then(|| records.rotate_to(vault, to)).transpose()
        });
        match renewed {
            Ok(Some(count)) => tracing::info!(count, "escrow.renewed"),
            Ok(None) => {}
            Err(error) => tracing::error!(%error, "escrow.not-renewed"),
        }
    }
}

fn label(id: &ShareId) -> Result<BlobLabel, EscrowVaultError> {
    let label = format!("{KIND}:{id}").parse();
    label.map_err(|error: alknet_vault::LabelError| EscrowVaultError::Failed(error.to_string()))
}

impl EscrowVault for ShareRecords {
    fn put(&self, id: &ShareId, secret: &[u8]) -> Result<(), EscrowVaultError> {
        // Only the node may read the folder of the records.
        let vault = self.vault.as_ref().ok_or(EscrowVaultError::Absent)?;
        super::make_private_dir(&self.dir)
            .map_err(|error| EscrowVaultError::Failed(error.to_string()))?;
        let label = label(id)?;
        let sealed = vault
            .vault()
            .seal(&label, secret)
            .map_err(from_vault_error)?;
        // The records are opened after sealing, so that a locked vault leaves no file behind.
        let (_, records) = self.opened()?;
        records.put(&label, &sealed).map_err(from_records_error)
    }

    fn get(&self, id: &ShareId) -> Result<Zeroizing<Vec<u8>>, EscrowVaultError> {
        let (vault, records) = self.opened()?;
        let label = label(id)?;
        let sealed = records.get(&label).map_err(from_records_error)?;
        let secret = vault
            .vault()
            .open(&label, &sealed)
            .map_err(from_vault_error)?;
        Ok(Zeroizing::new(secret.expose().to_vec()))
    }

    fn remove(&self, id: &ShareId) -> Result<(), EscrowVaultError> {
        let there = self.dir.try_exists().map_err(|error| {
            let dir = self.dir.display();
            EscrowVaultError::Failed(format!("{dir} cannot be looked into ({error})"))
        })?;
        if !there {
            return Ok(());
        }
        let records = VaultCredentials::open(&self.dir).map_err(from_records_error)?;
        match records.remove(&label(id)?) {
            // The caller wants the share to be gone, so a missing one is a success.
            Ok(()) | Err(CredentialsError::NotFound(_)) => Ok(()),
            Err(error) => Err(from_records_error(error)),
        }
    }
}

fn from_vault_error(error: VaultError) -> EscrowVaultError {
    match error {
        VaultError::Locked => EscrowVaultError::Locked,
        other => EscrowVaultError::Failed(other.to_string()),
    }
}

fn from_records_error(error: CredentialsError) -> EscrowVaultError {
    EscrowVaultError::Failed(error.to_string())
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use alknet_core::PeerKey;
    use alknet_escrow::{EscrowError, KeyShare, ShareDeposit, ShareRequest};

    use super::*;

    fn share_request() -> ShareRequest {
        ShareRequest {
            key: PeerKey::Ed25519([1; 32]),
            peer: "kitchen-vault".parse().expect("a peer id"),
            address: None,
            now_s: None,
            now: Instant::now(),
        }
    }

    #[test]
    fn a_node_without_a_vault_keeps_no_share() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let share_registry = share_registry(dir.path(), None);
        assert!(problem(&share_registry).is_none());
        let deposit = ShareDeposit {
            share: KeyShare::new([7; 32]),
            vault: "v".to_owned(),
            from: Vec::new(),
            approve: false,
        };
        let refused = share_registry.deposit(&share_request(), &deposit);
        assert!(matches!(
            refused,
            Err(EscrowError::Safe(EscrowVaultError::Absent))
        ));
        assert!(!dir.path().join(DIR).exists());
    }

    #[test]
    fn a_share_that_may_still_be_there_is_not_said_to_be_gone() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let records = ShareRecords {
            vault: None,
            dir: dir.path().join("escrow/records"),
        };
        let id = ShareId::from_key(&share_request().key);
        assert_eq!(records.remove(&id), Ok(()));
        std::fs::write(dir.path().join("escrow"), "no folder").expect("writable");
        let refused = records.remove(&id);
        assert!(
            matches!(refused, Err(EscrowVaultError::Failed(_))),
            "{refused:?}"
        );
    }
}
