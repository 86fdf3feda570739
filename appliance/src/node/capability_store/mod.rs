//! What the operations of this node may do with its secrets: one capability for each credential of
//! the configuration. The node fills it while the vault is open, and hands it to the operations
//! that the configuration grants it to.
//!
//! No other module has both the vault and the operations. An operation gets its own entries. A
//! credential that cannot be used is one problem, and the others work.

mod local;
mod sealed;
mod secret;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use alknet_core::config::{CredentialConfig, NodeConfig};
use alknet_core::{
    Capabilities, Capability, CapabilityBackend, CapabilityError, CapabilityFiller, CapabilityGate,
    EncryptedData, capability,
};
use alknet_init::control::MachineDiagnostic;
use alknet_vault::{KeyPurpose, Vault, VaultError, VaultState};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use crate::credentials::{CredentialFolder, SealedFileVersion, uses};

use sealed::{DerivedSigner, OperationDataSealer};

pub(crate) use local::check_secret;

/// Prefix of the labels of records.
const KIND: &str = "cred";
/// How often the node checks whether PID 1 locked or opened the vault. Each use of a capability
/// checks by itself: this timer clears the bytes, or brings them back, between uses.
const NOTICE_EVERY: Duration = Duration::from_secs(1);

/// The capabilities of this node. Clones share them.
#[derive(Clone)]
pub(crate) struct CapabilityStore(Arc<CapabilityStoreInner>);

struct CapabilityStoreInner {
    vault: Option<Vault>,
    /// The folder of the secrets, on a node without a vault.
    folder: Option<CredentialFolder>,
    held: Vec<StoredCredential>,
    granted: BTreeMap<String, Capabilities>,
    seen: Mutex<CredentialFillState>,
    /// Number of times the folder was read.
    reads: watch::Sender<u64>,
}

/// One credential.
struct StoredCredential {
    config: CredentialConfig,
    /// The entries of the configuration that use it, for people.
    uses: Vec<String>,
    /// The sealed secret, and whether it came with the configuration.
    record: Option<(EncryptedData, bool)>,
    capability: Capability,
    filler: CapabilityFiller,
}

/// State of the last refresh.
#[derive(Default)]
struct CredentialFillState {
    /// The opening of the vault that the secrets came from, or `None` while they are empty.
    filled: Option<VaultState>,
    /// Names of the credentials that are in the folder.
    local: BTreeSet<String>,
    /// The file of the folder that was read last.
    read: Option<SealedFileVersion>,
    problems: Vec<MachineDiagnostic>,
}

impl CapabilityStore {
    /// Makes the capabilities that `config` declares. `records` are those that PID 1 keeps, for
    /// credentials without a record of their own.
    pub(crate) fn new(
        config: &NodeConfig,
        records: BTreeMap<String, EncryptedData>,
        vault: Option<&Vault>,
    ) -> Self {
        Self::build(config, records, vault, None)
    }

    /// Makes the capabilities that `config` declares, on a node without a vault. The secrets are in
    /// `folder`.
    pub(crate) fn of_folder(config: &NodeConfig, folder: CredentialFolder) -> Self {
        Self::build(config, BTreeMap::new(), None, Some(folder))
    }

    fn build(
        config: &NodeConfig,
        mut records: BTreeMap<String, EncryptedData>,
        vault: Option<&Vault>,
        folder: Option<CredentialFolder>,
    ) -> Self {
        let held: Vec<_> = config
            .credentials
            .iter()
            .map(|one| {
                let stored = records.remove(&one.name).map(|record| (record, false));
                let is_local = folder.is_some() && one.needs_secret();
                let (capability, filler) = capability(&one.name, one.kind, gate(vault, is_local));
                StoredCredential {
                    uses: uses(config, &one.name),
                    record: one.record.clone().map(|record| (record, true)).or(stored),
                    config: one.clone(),
                    capability,
                    filler,
                }
            })
            .collect();
        let find = |name: &String| held.iter().find(|one| one.config.name == *name);
        let granted = config.operations.iter().map(|operation| {
            let given = operation.capabilities.iter().filter_map(find);
            let given = Capabilities::new(given.map(|one| one.capability.clone()));
            (operation.name.clone(), given)
        });
        let capabilities = Self(Arc::new(CapabilityStoreInner {
            vault: vault.cloned(),
            folder,
            reads: watch::Sender::default(),
            granted: granted.collect(),
            held,
            seen: Mutex::default(),
        }));
        capabilities.refresh();
        capabilities.refresh_before_uses();
        capabilities
    }

    /// The capabilities that each operation was granted, by the operation's name.
    pub(crate) fn granted(&self) -> &BTreeMap<String, Capabilities> {
        &self.0.granted
    }

    /// The capability of a credential of the configuration.
    pub(crate) fn capability(&self, name: &str) -> Option<Capability> {
        let found = self.0.held.iter().find(|one| one.config.name == name);
        found.map(|one| one.capability.clone())
    }

    /// Fills or empties every capability if the vault was opened or locked since the last call. A
    /// node without a vault reads its folder of credentials again, if it has one.
    pub(crate) fn refresh(&self) {
        if let Some(folder) = &self.0.folder {
            return self.read_folder(folder);
        }
        let mut seen = self.seen();
        let Some(vault) = &self.0.vault else {
            if seen.problems.is_empty() && !self.0.held.is_empty() {
                self.empty(CapabilityError::NoVault);
                let text =
                    "the configuration has credentials, and this node has no vault to open them";
                seen.problems.push(problem(text.to_owned()));
            }
            return;
        };
        vault.notice();
        let state = vault.state();
        if state == VaultState::Locked {
            // `take` makes this happen once for each lock: a further refresh finds the capabilities
            // empty.
            if seen.filled.take().is_some() {
                self.empty(CapabilityError::Locked);
            }
            return;
        }
        // A use of a capability while the vault was locked may have emptied it after the last fill.
        let emptied =
            |one: &StoredCredential| one.filler.vacancy() == Some(CapabilityError::Locked);
        if seen.filled == Some(state) && !self.0.held.iter().any(emptied) {
            return;
        }
        seen.filled = Some(state);
        seen.problems.clear();
        for one in &self.0.held {
            match one.power(vault) {
                Ok(power) => one.filler.fill(power),
                Err(CredentialRefusal { why, text }) => {
                    one.filler.empty(why);
                    // If the vault was locked meanwhile, the record is not at fault.
                    if why != CapabilityError::Locked {
                        let name = &one.config.name;
                        seen.problems
                            .push(problem(format!("credential {name}: {text}")));
                    }
                }
            }
        }
    }

    /// Refreshes from now on, in the background. Must run inside a runtime.
    pub(crate) fn follow(&self) {
        if self.0.held.is_empty() {
            return;
        }
        if let Some(folder) = &self.0.folder {
            tokio::spawn(self.clone().follow_folder(folder.clone()));
        }
        if self.0.vault.is_none() {
            return;
        }
        let capabilities = self.clone();
        tokio::spawn(async move {
            let mut ticks = interval(NOTICE_EVERY);
            // After the machine slept, one refresh is enough for all missed ticks.
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                capabilities.refresh();
            }
        });
    }

    /// The problems of credentials that cannot be used.
    pub(crate) fn problems(&self) -> Vec<MachineDiagnostic> {
        self.read_change();
        self.seen().problems.clone()
    }

    /// Names, kinds and states of the credentials, for administrators. It has nothing of the
    /// secrets.
    pub(crate) fn summaries(&self) -> Value {
        self.read_change();
        let local = self.seen().local.clone();
        let summary = |one: &StoredCredential| {
            // The folder is checked first: on a node without a vault, it wins over a sealed record
            // that the node cannot open.
            let origin = match &one.record {
                _ if local.contains(&one.config.name) => Some("node"),
                _ if !one.config.needs_secret() => Some("vault"),
                Some((_, true)) => Some("configuration"),
                Some((_, false)) => Some("node"),
                None => None,
            };
            let has = |given: &&Capabilities| given.get(&one.config.name).is_ok();
            let operations = self.0.granted.iter().filter(|(_, given)| has(given));
            let operations: Vec<_> = operations.map(|(name, _)| name).collect();
            json!({
                "name": one.config.name,
                "kind": one.config.kind,
                "origin": origin,
                "key_version": one.record.as_ref().map(|(record, _)| record.key_version),
                "state": one.filler.vacancy().map_or("ready", CapabilityError::reason),
                "operations": operations,
            })
        };
        self.0.held.iter().map(summary).collect()
    }

    fn empty(&self, why: CapabilityError) {
        for one in &self.0.held {
            one.filler.empty(why);
        }
    }

    fn seen(&self) -> MutexGuard<'_, CredentialFillState> {
        // Each step leaves the state whole, so a panic elsewhere does not make it wrong.
        self.0.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for CapabilityStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(&self.0.granted).finish()
    }
}

/// Why a credential has no usable secret.
struct CredentialRefusal {
    why: CapabilityError,
    text: String,
}

impl CredentialRefusal {
    fn unusable(text: impl Into<String>) -> Self {
        Self {
            why: CapabilityError::Unusable,
            text: text.into(),
        }
    }
}

impl StoredCredential {
    fn power(&self, vault: &Vault) -> Result<CapabilityBackend, CredentialRefusal> {
        let name = &self.config.name;
        if !self.config.needs_secret() {
            let Some(purpose) = &self.config.purpose else {
                return Ok(CapabilityBackend::Aead(Box::new(OperationDataSealer::new(
                    vault, name,
                ))));
            };
            let signer = purpose
                .parse::<KeyPurpose>()
                .ok()
                .filter(|purpose| matches!(purpose, KeyPurpose::DnsZone { .. }))
                .ok_or_else(|| CredentialRefusal::unusable("its key is handed to no operation"))?;
            let signer = vault
                .signer(signer)
                .map_err(|error| from_vault_error(&error))?;
            return Ok(CapabilityBackend::Signer(Box::new(DerivedSigner(signer))));
        }
        let Some((record, _)) = &self.record else {
            return Err(CredentialRefusal {
                why: CapabilityError::Missing,
                text: "it has no record, and no medium brought it".to_owned(),
            });
        };
        let opened = sealed::open(vault, &format!("{KIND}:{name}"), record);
        let opened = opened.map_err(|error| from_vault_error(&error))?;
        let power = secret::power(&self.config, opened.expose());
        power.map_err(CredentialRefusal::unusable)
    }
}

fn from_vault_error(error: &VaultError) -> CredentialRefusal {
    let text = match error {
        VaultError::Locked => {
            return CredentialRefusal {
                why: CapabilityError::Locked,
                text: String::new(),
            };
        }
        VaultError::Decrypt => {
            "its record does not open: it was changed, or sealed under another name or by other words"
                .to_owned()
        }
        VaultError::UnknownVersion(version) => {
            format!("its record has the key version {version}, which vault.min_version forbids")
        }
        other => other.to_string(),
    };
    CredentialRefusal::unusable(text)
}

/// A gate that is open while the vault is open. A node without a vault has a closed gate, except
/// for secrets of the folder (`local`).
fn gate(vault: Option<&Vault>, local: bool) -> CapabilityGate {
    if local {
        return Arc::new(|| true);
    }
    let vault = vault.cloned();
    Arc::new(move || {
        let state = vault.as_ref().map(Vault::state);
        state.is_some_and(|state| state != VaultState::Locked)
    })
}

fn problem(text: String) -> MachineDiagnostic {
    let hint = "seal it again ('alknet vault record add --print cred:NAME') and apply it; everything else works";
    tracing::warn!("credential-unusable: {text}");
    MachineDiagnostic {
        code: "credential-unusable".to_owned(),
        text,
        hint: hint.to_owned(),
    }
}

#[cfg(test)]
mod tests;
