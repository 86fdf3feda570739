//! Shares that other nodes of the owner keep: which of them the vault waits for, the results of
//! requests, and the keys that they make. It has no process and no clock: helper tasks go out,
//! outcomes come in.
//!
//! An attempt to open or to make the vault never waits for a network. It registers here what it
//! wants, the machine's loop sends a child for it meanwhile, and the next attempt finds what the
//! child brought. So a user can type at the console all the time.

mod source;

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use alknet_core::config::VaultKms;
use alknet_vault::SecretArr;
use alknet_vault::slots::{Kek, KmsParams, VaultId};

use super::{UnlockPrompt, VaultWait};
use crate::helper_task::{HelperOutcome, HelperRefusal, HelperTask, HexSecret};

/// Longest name that a peer may have: the name of the machine and the suffix below.
const NAME_CHARS_MAX: usize = 63;
/// Suffix of the key's name at the other node: the machine's own key may be a peer there as well.
const NAME_END: &str = "-vault";

/// What the vault wants of other nodes. See the module.
#[derive(Default)]
pub(crate) struct EscrowClient(Mutex<EscrowState>);

#[derive(Default)]
struct EscrowState {
    network: bool,
    /// Whether a helper runs.
    busy: bool,
    /// The share of a vault that is about to be made.
    deposit: Option<EscrowDeposit>,
    /// Shares of the slots of the vault that is to be opened.
    releases: Vec<EscrowRelease>,
}

/// A share that another node takes before the vault is made. It stays the same until then: the
/// other node takes it once.
struct EscrowDeposit {
    wanted: VaultKms,
    name: Option<String>,
    vault: VaultId,
    client: SecretArr<32>,
    half: SecretArr<32>,
    share: SecretArr<32>,
    done: Option<KmsParams>,
    progress: ExchangeProgress,
}

/// A share that helpers ask for.
struct EscrowRelease {
    params: KmsParams,
    share: Option<SecretArr<32>>,
    progress: ExchangeProgress,
}

/// The progress of the requests.
#[derive(Default)]
struct ExchangeProgress {
    /// The earliest time of the next request, in ms after the kernel's start.
    at: u64,
    /// The result of the last attempt.
    last: Option<String>,
    /// Whether the other node answered and refused.
    refused: bool,
}

/// The purpose of a helper task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum HelperPurpose {
    Deposit(VaultId),
    Release(String),
}

impl EscrowClient {
    /// The network went up or down. Returns whether that changed.
    pub(crate) fn set_network(&self, up: bool) -> bool {
        let mut state = self.state();
        std::mem::replace(&mut state.network, up) != up
    }

    /// Forgets all requests: the vault is open.
    pub(crate) fn clear(&self) {
        let mut state = self.state();
        state.deposit = None;
        state.releases.clear();
    }

    /// The slot of a vault that is about to be made, once the other node has its share. Until then,
    /// what the vault waits for.
    pub(crate) fn deposited(
        &self,
        wanted: &VaultKms,
        name: Option<&str>,
        seed: Option<VaultId>,
    ) -> Result<(VaultId, KmsParams, Kek), VaultWait> {
        let mut state = self.state();
        let network = state.network;
        // Another configuration names another node, and the key of a medium names another vault.
        let other = |deposit: &mut EscrowDeposit| {
            deposit.wanted != *wanted || seed.is_some_and(|seed| seed != deposit.vault)
        };
        state.deposit.take_if(other);
        let deposit = match &mut state.deposit {
            Some(deposit) => deposit,
            none => none.insert(EscrowDeposit::new(wanted, name, seed).map_err(no_key)?),
        };
        match &deposit.done {
            Some(params) => {
                let kek = params.kek(&deposit.share, deposit.vault);
                Ok((deposit.vault, params.clone(), kek))
            }
            None => {
                let text = format!(
                    "the node that is to keep a share: {}",
                    deposit.progress.text(network)
                );
                let hint = "let this machine in there, with 'alknet hub invite' or 'alknet hub approve'; it \
                            is tried again by itself";
                Err(VaultWait::new(
                    UnlockPrompt::Nothing,
                    "vault-waits",
                    text,
                    hint,
                ))
            }
        }
    }

    /// The next helper task, if one is due.
    pub(crate) fn next(&self, now: u64) -> Option<(HelperPurpose, HelperTask)> {
        let mut state = self.state();
        // One child at a time: its control group and its user are shared.
        if state.busy || !state.network {
            return None;
        }
        let task = state.due(now)?;
        state.busy = true;
        Some(task)
    }

    /// When the next task is due, in ms after the kernel's start.
    pub(crate) fn deadline(&self) -> Option<u64> {
        let state = self.state();
        if state.busy || !state.network {
            return None;
        }
        state.progresses().map(|progress| progress.at).min()
    }

    /// A helper task is over. Returns whether another attempt to open or make the vault is worth
    /// it.
    pub(crate) fn came(
        &self,
        of: &HelperPurpose,
        outcome: Result<HelperOutcome, String>,
        now: u64,
    ) -> bool {
        let mut state = self.state();
        state.busy = false;
        let outcome =
            outcome.unwrap_or_else(|why| HelperOutcome::refused(HelperRefusal::Unreachable, why));
        match of {
            HelperPurpose::Deposit(vault) => {
                let deposit = state.deposit.as_mut();
                deposit
                    // The configuration may have changed while the child ran.
                    .filter(|deposit| deposit.vault == *vault)
                    .is_some_and(|deposit| deposit.came(outcome, now))
            }
            HelperPurpose::Release(key) => {
                let mut releases = state.releases.iter_mut();
                releases
                    .find(|release| release.params.key() == key)
                    .is_some_and(|release| release.came(outcome, now))
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, EscrowState> {
        // The lock guards plain values, which are whole after any panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Does not show any content.
impl fmt::Debug for EscrowClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EscrowClient(..)")
    }
}

impl EscrowState {
    /// The progress of everything that is still wanted.
    fn progresses(&self) -> impl Iterator<Item = &ExchangeProgress> {
        let deposit = self.deposit.iter().filter(|deposit| deposit.done.is_none());
        let releases = self
            .releases
            .iter()
            .filter(|release| release.share.is_none());
        deposit
            .map(|deposit| &deposit.progress)
            .chain(releases.map(|release| &release.progress))
    }

    fn due(&self, now: u64) -> Option<(HelperPurpose, HelperTask)> {
        let is_due = |progress: &ExchangeProgress| now >= progress.at;
        let deposit = self
            .deposit
            .iter()
            .find(|it| it.done.is_none() && is_due(&it.progress));
        if let Some(deposit) = deposit {
            return Some((HelperPurpose::Deposit(deposit.vault), deposit.task()));
        }
        // The one that waited for the longest time, so that several nodes take turns.
        let due = |it: &&EscrowRelease| it.share.is_none() && is_due(&it.progress);
        let release = self
            .releases
            .iter()
            .filter(due)
            .min_by_key(|it| it.progress.at)?;
        let key = release.params.key().to_owned();
        Some((HelperPurpose::Release(key), release.task()))
    }
}

impl ExchangeProgress {
    fn text(&self, network: bool) -> &str {
        match &self.last {
            Some(last) => last,
            None if network => "it is being asked",
            None => "the network is not up yet",
        }
    }

    fn failed(&mut self, refusal: HelperRefusal, text: String, now: u64) {
        self.at = now + refusal.pause_ms();
        self.refused |= matches!(refusal, HelperRefusal::Denied);
        self.last = Some(text);
    }
}

impl EscrowDeposit {
    fn new(wanted: &VaultKms, name: Option<&str>, vault: Option<VaultId>) -> Result<Self, String> {
        let random = || {
            let mut bytes = zeroize::Zeroizing::new([0; 32]);
            getrandom::fill(&mut *bytes).map_err(|error| error.to_string())?;
            Ok::<_, String>(SecretArr::copy_of(&bytes))
        };
        let vault = match vault {
            Some(vault) => vault,
            None => VaultId::generate().map_err(|error| error.to_string())?,
        };
        Ok(Self {
            wanted: wanted.clone(),
            name: name.map(peer_name),
            vault,
            client: random()?,
            half: random()?,
            share: random()?,
            done: None,
            progress: ExchangeProgress::default(),
        })
    }

    fn task(&self) -> HelperTask {
        HelperTask::Deposit {
            code: self.wanted.code.clone(),
            node: self.wanted.node.clone(),
            name: self.name.clone(),
            client: HexSecret::copy_of(self.client.expose()),
            share: HexSecret::copy_of(self.share.expose()),
            vault: self.vault.to_string(),
            from: self.wanted.from.clone(),
            approve: self.wanted.approve,
        }
    }

    fn came(&mut self, outcome: HelperOutcome, now: u64) -> bool {
        match outcome {
            HelperOutcome::Deposited {
                peer,
                addresses,
                id,
            } => {
                let (client, half) = (*self.client.expose(), *self.half.expose());
                match KmsParams::new(peer, addresses, id, client, half) {
                    Ok(params) => {
                        self.done = Some(params);
                        return true;
                    }
                    Err(error) => {
                        let text = format!("what the child brought is no slot: {error}");
                        self.progress.failed(HelperRefusal::Unreachable, text, now);
                    }
                }
            }
            HelperOutcome::Refused { refusal, text } => self.progress.failed(refusal, text, now),
            HelperOutcome::Fetched { .. }
            | HelperOutcome::Released { .. }
            | HelperOutcome::Reported => {
                let text = "the child brought what it was not asked for".to_owned();
                self.progress.failed(HelperRefusal::Unreachable, text, now);
            }
        }
        false
    }
}

impl EscrowRelease {
    fn task(&self) -> HelperTask {
        HelperTask::Release {
            peer: self.params.peer().to_owned(),
            addresses: self.params.addresses().to_vec(),
            id: self.params.key().to_owned(),
            client: HexSecret::copy_of(self.params.client()),
        }
    }

    fn came(&mut self, outcome: HelperOutcome, now: u64) -> bool {
        match outcome {
            HelperOutcome::Released { share } => {
                self.share = Some(SecretArr::copy_of(share.expose()));
                // If it does not open the slot, helpers do not ask for it again at once.
                self.progress.at = now + HelperRefusal::Denied.pause_ms();
                return true;
            }
            HelperOutcome::Refused { refusal, text } => self.progress.failed(refusal, text, now),
            HelperOutcome::Deposited { .. }
            | HelperOutcome::Fetched { .. }
            | HelperOutcome::Reported => {
                let text = "the child brought what it was not asked for".to_owned();
                self.progress.failed(HelperRefusal::Unreachable, text, now);
            }
        }
        false
    }
}

/// A name that no other peer of the node is likely to have.
fn peer_name(machine: &str) -> String {
    let room = NAME_CHARS_MAX - NAME_END.len();
    // Counted in characters: cut within one, the name would be no UTF-8.
    let name: String = machine.chars().take(room).collect();
    format!("{name}{NAME_END}")
}

fn no_key(why: String) -> VaultWait {
    let hint = "it is tried again; see the log";
    let text = format!("no key can be made for the node that is to keep a share: {why}");
    VaultWait::new(UnlockPrompt::Nothing, "vault-waits", text, hint)
}

#[cfg(test)]
mod tests;
