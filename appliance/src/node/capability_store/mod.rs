//! What the operations of this node may do with its secrets: one capability for each credential of the
//! configuration, filled while the vault is open, and handed to the operations that were given it.
//!
//! This is the only place that has the vault and operations at once. An operation gets its own entries;
//! a credential that cannot be used is one problem, and the others work.

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

/// Kind of the labels of records.
const KIND: &str = "cred";
/// How often the node asks the vault whether the other process locked or opened it. A use of a capability asks by
/// itself: this timer clears the bytes, or brings them back, between uses.
const NOTICE_EVERY: Duration = Duration::from_secs(1);

/// The capabilities of this node. Clones are the same.
#[derive(Clone)]
pub(crate) struct CapabilityStore(Arc<CapabilityStoreInner>);

struct CapabilityStoreInner {
    vault: Option<Vault>,
    /// Where the secrets of a node without a vault are.
    folder: Option<CredentialFolder>,
    held: Vec<StoredCredential>,
    granted: BTreeMap<String, Capabilities>,
    seen: Mutex<CredentialFillState>,
    /// How often the folder was read.
    reads: watch::Sender<u64>,
}

/// One credential.
struct StoredCredential {
    config: CredentialConfig,
    /// What of the configuration uses it, for people.
    uses: Vec<String>,
    /// The sealed secret, and whether it is the configuration's.
    record: Option<(EncryptedData, bool)>,
    capability: Capability,
    filler: CapabilityFiller,
}

/// What was last done.
#[derive(Default)]
struct CredentialFillState {
    /// Of which opening of the vault the secrets are; none while there are none.
    filled: Option<VaultState>,
    /// Names of the credentials that the folder has.
    local: BTreeSet<String>,
    /// The file of the folder that was read last.
    read: Option<SealedFileVersion>,
    problems: Vec<MachineDiagnostic>,
}

impl CapabilityStore {
    /// What `config` wants. `records` are the ones that PID 1 keeps, for credentials without a record of
    /// their own.
    pub(crate) fn new(
        config: &NodeConfig,
        records: BTreeMap<String, EncryptedData>,
        vault: Option<&Vault>,
    ) -> Self {
        Self::build(config, records, vault, None)
    }

    /// What `config` wants, on a node without a vault: the secrets are in `folder`.
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
                let kept = records.remove(&one.name).map(|record| (record, false));
                let is_local = folder.is_some() && one.needs_secret();
                let (capability, filler) = capability(&one.name, one.kind, gate(vault, is_local));
                StoredCredential {
                    uses: uses(config, &one.name),
                    record: one.record.clone().map(|record| (record, true)).or(kept),
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
        let powers = Self(Arc::new(CapabilityStoreInner {
            vault: vault.cloned(),
            folder,
            reads: watch::Sender::default(),
            granted: granted.collect(),
            held,
            seen: Mutex::default(),
        }));
        powers.refresh();
        powers.refresh_before_uses();
        powers
    }

    /// What each operation was given, by its name.
    pub(crate) fn granted(&self) -> &BTreeMap<String, Capabilities> {
        &self.0.granted
    }

    /// What stands for a credential of the configuration.
    pub(crate) fn capability(&self, name: &str) -> Option<Capability> {
        let found = self.0.held.iter().find(|one| one.config.name == name);
        found.map(|one| one.capability.clone())
    }

    /// Fills or empties everything, where the vault was opened or locked since. Without a vault it reads the folder of
    /// credentials again, if the node has one.
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
            // Once: capabilities that are empty already are not emptied at each look.
            if seen.filled.take().is_some() {
                self.empty(CapabilityError::Locked);
            }
            return;
        }
        // A use while the vault was locked may have emptied a capability that was filled since.
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
                    // A vault that was locked meanwhile is no fault of the record's.
                    if why != CapabilityError::Locked {
                        let name = &one.config.name;
                        seen.problems
                            .push(problem(format!("credential {name}: {text}")));
                    }
                }
            }
        }
    }

    /// Does so from now on. Must run inside a runtime.
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
        let powers = self.clone();
        tokio::spawn(async move {
            let mut ticks = interval(NOTICE_EVERY);
            // After the machine slept, one look is enough.
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                powers.refresh();
            }
        });
    }

    /// Credentials that cannot be used.
    pub(crate) fn problems(&self) -> Vec<MachineDiagnostic> {
        self.read_change();
        self.seen().problems.clone()
    }

    /// Names, kinds and state, for administrators: nothing of what they are.
    pub(crate) fn summaries(&self) -> Value {
        self.read_change();
        let local = self.seen().local.clone();
        let told = |one: &StoredCredential| {
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
        self.0.held.iter().map(told).collect()
    }

    fn empty(&self, why: CapabilityError) {
        for one in &self.0.held {
            one.filler.empty(why);
        }
    }

    fn seen(&self) -> MutexGuard<'_, CredentialFillState> {
        // Each step leaves it whole.
        self.0.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for CapabilityStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(&self.0.granted).finish()
    }
}

/// Why a credential is not there.
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
            let signer = vault.signer(signer).map_err(|error| of_vault(&error))?;
            return Ok(CapabilityBackend::Signer(Box::new(DerivedSigner(signer))));
        }
        let Some((record, _)) = &self.record else {
            return Err(CredentialRefusal {
                why: CapabilityError::Missing,
                text: "it has no record, and no medium brought it".to_owned(),
            });
        };
        let opened = sealed::open(vault, &format!("{KIND}:{name}"), record);
        let opened = opened.map_err(|error| of_vault(&error))?;
        let power = secret::power(&self.config, opened.expose());
        power.map_err(CredentialRefusal::unusable)
    }
}

fn of_vault(error: &VaultError) -> CredentialRefusal {
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

/// A gate that is open while the vault is; without a vault it stays closed, unless the secret is a `local` one.
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
