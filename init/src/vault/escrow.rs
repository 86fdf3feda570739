//! Shares that other nodes of the owner keep: which of them the vault waits for, what came of asking,
//! and the keys that they make. No process and no clock: errands go out, outcomes come in.
//!
//! An attempt to open or to make the vault never waits for a network. It says what it wants here, the
//! machine's loop sends a child for it meanwhile, and the next attempt finds what it brought. So
//! somebody at the console can type all the time.

mod source;

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use alknet_core::config::VaultKms;
use alknet_vault::SecretArr;
use alknet_vault::slots::{Kek, KmsParams, VaultId};

use super::{Ask, Waiting};
use crate::errand::{Errand, Hidden, Outcome, Refusal};

/// Longest name that a peer may have; the name of the machine and the end of it below.
const NAME_CHARS_MAX: usize = 63;
/// What the slot's key is called at the other node: the machine's own key may be a peer there as well.
const NAME_END: &str = "-vault";

/// What is wanted of other nodes. See the module.
#[derive(Default)]
pub(crate) struct Escrow(Mutex<State>);

#[derive(Default)]
struct State {
    network: bool,
    /// An errand is out.
    busy: bool,
    /// The share of a vault that is about to be made.
    deposit: Option<Deposit>,
    /// Shares of the slots of the vault that is to be opened.
    releases: Vec<Release>,
}

/// A share that is left with another node before the vault is made. It stays the same until then: the
/// other node takes it once.
struct Deposit {
    wanted: VaultKms,
    name: Option<String>,
    vault: VaultId,
    client: SecretArr<32>,
    half: SecretArr<32>,
    share: SecretArr<32>,
    done: Option<KmsParams>,
    course: Course,
}

/// A share that is asked for.
struct Release {
    params: KmsParams,
    share: Option<SecretArr<32>>,
    course: Course,
}

/// How asking went so far.
#[derive(Default)]
struct Course {
    /// Not before, in ms after the kernel's start.
    at: u64,
    /// What the last attempt came to.
    last: Option<String>,
    /// The other node answered, and did not want to.
    refused: bool,
}

/// What an errand is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum For {
    Deposit(VaultId),
    Release(String),
}

impl Escrow {
    /// The network is up, or not any more. Returns whether that changed.
    pub(crate) fn set_network(&self, up: bool) -> bool {
        let mut state = self.state();
        std::mem::replace(&mut state.network, up) != up
    }

    /// Nothing is wanted any more: the vault is open.
    pub(crate) fn clear(&self) {
        let mut state = self.state();
        state.deposit = None;
        state.releases.clear();
    }

    /// The slot of a vault that is about to be made, once the other node has its share; until then, what
    /// is waited for.
    pub(crate) fn deposited(
        &self,
        wanted: &VaultKms,
        name: Option<&str>,
        seed: Option<VaultId>,
    ) -> Result<(VaultId, KmsParams, Kek), Waiting> {
        let mut state = self.state();
        let network = state.network;
        // Another configuration is another node, and the key of a medium names another vault.
        let other = |deposit: &mut Deposit| {
            deposit.wanted != *wanted || seed.is_some_and(|seed| seed != deposit.vault)
        };
        state.deposit.take_if(other);
        let deposit = match &mut state.deposit {
            Some(deposit) => deposit,
            none => none.insert(Deposit::new(wanted, name, seed).map_err(no_key)?),
        };
        match &deposit.done {
            Some(params) => {
                let kek = params.kek(&deposit.share, deposit.vault);
                Ok((deposit.vault, params.clone(), kek))
            }
            None => {
                let text = format!(
                    "the node that is to keep a share: {}",
                    deposit.course.text(network)
                );
                let hint = "let this machine in there, with 'alknet hub invite' or 'alknet hub approve'; it \
                            is tried again by itself";
                Err(Waiting::new(Ask::Nothing, "vault-waits", text, hint))
            }
        }
    }

    /// What to go for now, if anything.
    pub(crate) fn next(&self, now: u64) -> Option<(For, Errand)> {
        let mut state = self.state();
        if state.busy || !state.network {
            return None;
        }
        let errand = state.due(now)?;
        state.busy = true;
        Some(errand)
    }

    /// When there will be something to go for, in ms after the kernel's start.
    pub(crate) fn deadline(&self) -> Option<u64> {
        let state = self.state();
        if state.busy || !state.network {
            return None;
        }
        state.courses().map(|course| course.at).min()
    }

    /// An errand is over. Returns whether another attempt to open or make the vault is worth it.
    pub(crate) fn came(&self, of: &For, outcome: Result<Outcome, String>, now: u64) -> bool {
        let mut state = self.state();
        state.busy = false;
        let outcome = outcome.unwrap_or_else(|why| Outcome::refused(Refusal::Unreachable, why));
        match of {
            For::Deposit(vault) => {
                let deposit = state.deposit.as_mut();
                deposit
                    .filter(|deposit| deposit.vault == *vault)
                    .is_some_and(|deposit| deposit.came(outcome, now))
            }
            For::Release(key) => {
                let mut releases = state.releases.iter_mut();
                releases
                    .find(|release| release.params.key() == key)
                    .is_some_and(|release| release.came(outcome, now))
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Plain values: whole after any panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Never what is in it.
impl fmt::Debug for Escrow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Escrow(..)")
    }
}

impl State {
    /// The course of everything that is still wanted.
    fn courses(&self) -> impl Iterator<Item = &Course> {
        let deposit = self.deposit.iter().filter(|deposit| deposit.done.is_none());
        let releases = self
            .releases
            .iter()
            .filter(|release| release.share.is_none());
        deposit
            .map(|deposit| &deposit.course)
            .chain(releases.map(|release| &release.course))
    }

    fn due(&self, now: u64) -> Option<(For, Errand)> {
        let wanted = |course: &Course| now >= course.at;
        let deposit = self
            .deposit
            .iter()
            .find(|it| it.done.is_none() && wanted(&it.course));
        if let Some(deposit) = deposit {
            return Some((For::Deposit(deposit.vault), deposit.errand()));
        }
        // The one that was left alone for the longest time: several nodes take turns.
        let due = |it: &&Release| it.share.is_none() && wanted(&it.course);
        let release = self
            .releases
            .iter()
            .filter(due)
            .min_by_key(|it| it.course.at)?;
        let key = release.params.key().to_owned();
        Some((For::Release(key), release.errand()))
    }
}

impl Course {
    fn text(&self, network: bool) -> &str {
        match &self.last {
            Some(last) => last,
            None if network => "it is being asked",
            None => "the network is not up yet",
        }
    }

    fn failed(&mut self, refusal: Refusal, text: String, now: u64) {
        self.at = now + refusal.pause_ms();
        self.refused |= matches!(refusal, Refusal::Denied);
        self.last = Some(text);
    }
}

impl Deposit {
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
            course: Course::default(),
        })
    }

    fn errand(&self) -> Errand {
        Errand::Deposit {
            code: self.wanted.code.clone(),
            node: self.wanted.node.clone(),
            name: self.name.clone(),
            client: Hidden::copy_of(self.client.expose()),
            share: Hidden::copy_of(self.share.expose()),
            vault: self.vault.to_string(),
            from: self.wanted.from.clone(),
            approve: self.wanted.approve,
        }
    }

    fn came(&mut self, outcome: Outcome, now: u64) -> bool {
        match outcome {
            Outcome::Deposited {
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
                        self.course.failed(Refusal::Unreachable, text, now);
                    }
                }
            }
            Outcome::Refused { refusal, text } => self.course.failed(refusal, text, now),
            Outcome::Released { .. } => {
                let text = "the child brought what nobody asked for".to_owned();
                self.course.failed(Refusal::Unreachable, text, now);
            }
        }
        false
    }
}

impl Release {
    fn errand(&self) -> Errand {
        Errand::Release {
            peer: self.params.peer().to_owned(),
            addresses: self.params.addresses().to_vec(),
            id: self.params.key().to_owned(),
            client: Hidden::copy_of(self.params.client()),
        }
    }

    fn came(&mut self, outcome: Outcome, now: u64) -> bool {
        match outcome {
            Outcome::Released { share } => {
                self.share = Some(SecretArr::copy_of(share.expose()));
                // Should it not open the slot, it is not asked for again at once.
                self.course.at = now + Refusal::Denied.pause_ms();
                return true;
            }
            Outcome::Refused { refusal, text } => self.course.failed(refusal, text, now),
            Outcome::Deposited { .. } => {
                let text = "the child brought what nobody asked for".to_owned();
                self.course.failed(Refusal::Unreachable, text, now);
            }
        }
        false
    }
}

/// A name that no other peer of the node is likely to have.
fn peer_name(machine: &str) -> String {
    let room = NAME_CHARS_MAX - NAME_END.len();
    let name: String = machine.chars().take(room).collect();
    format!("{name}{NAME_END}")
}

fn no_key(why: String) -> Waiting {
    let hint = "it is tried again; see the log";
    let text = format!("no key can be made for the node that is to keep a share: {why}");
    Waiting::new(Ask::Nothing, "vault-waits", text, hint)
}

#[cfg(test)]
mod tests;
