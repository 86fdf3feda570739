//! The vault of this machine: made at the first boot, opened by whatever may open it, and shared
//! with the node through memory that only the two processes map.
//!
//! ```text
//! Empty ──first boot──▶ Open ◀──a slot opens── Closed
//! Open ──lock──▶ Closed        Open ──lock hard──▶ Closed, and the node ends
//! ```
//!
//! Nothing here waits for a person: what only a person can give is a [`VaultWait`], which the machine's
//! loop asks for on the console, and the attempt is made again with what was given.

mod commands;
mod credentials;
mod dialog;
mod escrow;
mod events;
mod first_boot;
pub(crate) mod generations;
mod in_use;
mod open;
mod randomness;
mod tpm_unlock;
mod unlock_wait;
mod words;

use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use alknet_tpm::PcrChoice;
use alknet_vault::audit::SlotName;
use alknet_vault::slots::{
    Alkv, FirstBootPermissions, KeySlot, MasterKey, OpenAlkv, SlotId, SlotParams, SlotType, VaultId,
};
use alknet_vault::{AreaError, SecretArr, SecretStr, SeedArea, Vault, VaultError, VaultState};

use crate::control::{MachineDiagnostic, Tpm2Facts, VaultFacts};

#[cfg(test)]
pub(crate) use commands::CommandPrompt;
pub(crate) use commands::{
    CommandContext, CommandOutcome, CommandSession, LOCKED, PromptResponse, VaultCommand,
    VaultMediaAccess, add_program_slot, program_slots, remove_program_slots,
};
pub(crate) use credentials::{NodeCredentials as KeptCredentials, keep_credentials};
pub(crate) use dialog::{DialogStep, VaultDialog, positions};
pub(crate) use escrow::{EscrowClient, HelperPurpose};
pub(crate) use events::UnloggedEvents;
pub(crate) use first_boot::{FirstBoot, create};
pub(crate) use in_use::NotInUse;
pub(crate) use open::{conclude, open};
pub(crate) use randomness::wait_for_randomness;
pub(crate) use tpm_unlock::cover;
pub(crate) use unlock_wait::{UnlockCredentials, UnlockPrompt, VaultWait, WordsSource};
pub(crate) use words::{note_kept, note_reminder, settle as settle_words};

/// The vault, and what PID 1 knows of it.
#[derive(Debug)]
pub(crate) struct VaultHandle {
    area: Arc<SeedArea>,
    events: UnloggedEvents,
    escrow: EscrowClient,
    state: Mutex<VaultHandleState>,
}

/// How often the vault was locked from outside of an attempt to open it.
#[derive(Clone, Copy, Debug, Default)]
struct Locks {
    count: u64,
    /// The count when the current or last attempt began.
    at_attempt: u64,
}

#[derive(Debug, Default)]
struct VaultHandleState {
    locks: Locks,
    /// The vault that all of this is about.
    vault: Option<VaultId>,
    slots: Vec<SlotType>,
    tpm2: Vec<Tpm2Facts>,
    opened_by: Option<SlotName>,
    device: u32,
    /// Generation of the vault that opened, or that the console wrote since.
    generation: u64,
    /// Fingerprint of the vault that opened since this machine started. A lock keeps it.
    fingerprint: Option<SecretArr<32>>,
    known: bool,
    /// What its first boot still permits, once it was open.
    pending: Option<FirstBootPermissions>,
    /// The vault's master key, while it is open and its first boot is not over. See [`VaultHandle::settle`].
    master_key: Option<MasterKey>,
    /// Whether the console may show the words without proof, until this machine restarts or the vault is locked.
    shows_words: bool,
    /// Whether the console has reminded the owner. Once `shows_words` is withdrawn it stays so, whatever the vault
    /// permits.
    is_reminded: bool,
    words_kept: bool,
    /// New words that were not shown yet.
    words: Option<SecretStr>,
    /// The words as a file of age.
    words_age: Option<WordsAge>,
    attempts: alknet_vault::slots::Attempts,
    /// Slots whose refusal was recorded.
    refused: Vec<SlotName>,
    /// Changes that no TPM has counted.
    uncounted: Vec<MachineDiagnostic>,
}

impl VaultHandleState {
    /// Forgets the vault. Wrong attempts and locks count all the same.
    fn reset(&mut self) {
        *self = Self {
            // Otherwise another disk in the machine would end the wait after wrong attempts.
            attempts: self.attempts,
            locks: self.locks,
            ..Self::default()
        };
    }

    fn is_locked_meanwhile(&self) -> bool {
        self.locks.count != self.locks.at_attempt
    }

    fn describe(&mut self, alkv: &Alkv) {
        if self.vault != Some(alkv.uuid()) {
            // What the vault of one disk permits does not hold for that of another.
            self.reset();
        }
        self.vault = Some(alkv.uuid());
        self.known = true;
        self.slots = alkv.slots().iter().map(|slot| slot.kind()).collect();
        self.tpm2 = alkv.slots().iter().filter_map(tpm2_facts).collect();
        self.device = alkv.device().number();
    }
}

/// The words, encrypted to the recipients that the configuration names.
#[derive(Debug)]
struct WordsAge {
    text: String,
    stage: WordsAgeStage,
}

/// The place of a file of age with the words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WordsAgeStage {
    /// In memory only.
    Made,
    /// On the data partition. The console has not shown it yet.
    Written,
    /// On the data partition since earlier.
    Shown,
}

impl VaultHandle {
    /// An empty handle.
    ///
    /// # Errors
    /// The kernel gives no memory for it.
    pub(crate) fn new() -> Result<Self, AreaError> {
        Ok(Self {
            area: Arc::new(SeedArea::create()?),
            events: UnloggedEvents::default(),
            escrow: EscrowClient::default(),
            state: Mutex::default(),
        })
    }

    /// The memory, for the node. `None` while it is empty.
    pub(crate) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        let open = self.is_open();
        open.then(|| self.area.fd()).flatten()
    }

    pub(crate) fn is_open(&self) -> bool {
        matches!(self.vault().state(), VaultState::Unlocked { .. })
    }

    /// Whether there is a vault, and it is not open.
    pub(crate) fn is_locked(&self) -> bool {
        self.state().known && !self.is_open()
    }

    /// The vault of the node that has this memory.
    pub(crate) fn vault(&self) -> Vault {
        Vault::over(Arc::clone(&self.area), None)
    }

    pub(crate) fn events(&self) -> &UnloggedEvents {
        &self.events
    }

    /// What the vault wants of other nodes.
    pub(crate) fn escrow(&self) -> &EscrowClient {
        &self.escrow
    }

    /// Begins an attempt to open the vault, for the machine's loop. A lock from here on refuses what the attempt
    /// opens.
    pub(crate) fn begin_attempt(&self) {
        let locks = &mut self.state().locks;
        locks.at_attempt = locks.count;
    }

    /// Whether the vault was locked since the last attempt to open it began.
    pub(crate) fn was_locked_meanwhile(&self) -> bool {
        self.state().is_locked_meanwhile()
    }

    /// Takes the words in. Facts about a vault of other words do not hold for this one.
    ///
    /// # Errors
    /// The vault was locked since the attempt began, another vault is open, or this is an older copy.
    fn admit(&self, open: &OpenAlkv) -> Result<(), AdmitError> {
        if self.is_open() {
            self.check_in_use(open)?;
        }
        let fingerprint = Some(open.fingerprint()?);
        // The lock is held until the memory has the seed, so that locking the vault comes before that or after it.
        let mut state = self.state();
        if state.is_locked_meanwhile() {
            return Err(AdmitError::Locked);
        }
        self.escrow.clear();
        if state.fingerprint.is_some() && state.fingerprint != fingerprint {
            state.reset();
        }
        state.describe(open.alkv());
        state.generation = open.alkv().generation();
        state.fingerprint = fingerprint;
        state.opened_by = opening_slot(open);
        state.device = open.alkv().device().number();
        state.pending = Some(open.pending());
        state.shows_words = open.pending().words && !state.is_reminded && !state.words_kept;
        if self.is_open() {
            return Ok(());
        }
        // This precedes the seed: what the node derives depends on the device number.
        self.area.set_device(open.alkv().device())?;
        match self.vault().unlock(open.entropy(), open.passphrase()) {
            // A vault that was opened twice is open.
            Ok(_) | Err(VaultError::AlreadyUnlocked) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes the description of a vault that no slot has opened yet, to ask for what may open it. An attacker who
    /// writes to the disk can have written that description, so once a vault has opened here, the description
    /// counts no more, whatever id it has.
    pub(crate) fn note(&self, alkv: &Alkv) {
        let mut state = self.state();
        if state.fingerprint.is_none() {
            state.describe(alkv);
        }
    }

    /// Takes the description of the vault in use that this machine has just written. Only [`Self::admit`] puts a
    /// vault of other words in its place.
    fn is_now(&self, open: &OpenAlkv) {
        if self.check_words(open).is_err() {
            return;
        }
        let mut state = self.state();
        state.describe(open.alkv());
        state.generation = open.alkv().generation();
        // A command may have given the vault a new master key.
        if state.master_key.is_some() {
            state.master_key = Some(open.master_key());
        }
    }

    /// Forgets the seed. The node shares the memory, so it has no seed any more either. An attempt to open the
    /// vault that is under way brings none back.
    pub(crate) fn lock(&self) {
        let mut state = self.state();
        state.locks.count += 1;
        self.wipe(&mut state);
    }

    /// Like `lock`, at the end of an attempt that goes no further.
    pub(crate) fn close(&self) {
        self.wipe(&mut self.state());
    }

    fn wipe(&self, state: &mut VaultHandleState) {
        self.vault().lock();
        state.opened_by = None;
        state.master_key = None;
        // Another person may come to the console. When the vault opens again, it says whether it still permits
        // this, unless the owner has confirmed or was reminded.
        state.shows_words = false;
    }

    /// Forgets a vault that no longer exists. It was locked before.
    pub(crate) fn forget(&self) {
        let mut state = self.state();
        *state = VaultHandleState {
            locks: state.locks,
            ..VaultHandleState::default()
        };
    }

    /// Forgets new words that were not shown yet, and their file of age, which may be in memory only. Neither is
    /// for the next vault that opens, nor for what a medium named meanwhile.
    pub(crate) fn forget_words(&self) {
        let mut state = self.state();
        state.words = None;
        state.words_age = None;
    }

    /// Words that the console shows once.
    pub(crate) fn take_words(&self) -> Option<SecretStr> {
        self.state().words.take()
    }

    /// The words as a file of age, if it is on the disk and the console has not shown it yet.
    pub(crate) fn show_words_age(&self) -> Option<String> {
        let mut state = self.state();
        let age = state.words_age.as_mut()?;
        let is_new = age.stage == WordsAgeStage::Written;
        is_new.then(|| {
            age.stage = WordsAgeStage::Shown;
            age.text.clone()
        })
    }

    /// The owner has the words, by a record that is on the disk.
    pub(crate) fn words_are_kept(&self) {
        let mut state = self.state();
        state.words_kept = true;
        state.shows_words = false;
        state.words = None;
    }

    /// The console has reminded the owner of unconfirmed words. Words that it shows without proof stay visible
    /// until the vault is locked or the machine restarts, and not after.
    pub(crate) fn owner_was_reminded(&self) {
        self.state().is_reminded = true;
    }

    /// The console reminded the owner before this machine started.
    fn withhold_words(&self) {
        let mut state = self.state();
        state.is_reminded = true;
        state.shows_words = false;
    }

    /// Whether the console may show the words without proof: they are new, the owner has not confirmed them, and
    /// this machine has neither restarted nor locked the vault since it reminded the owner of that.
    pub(crate) fn shows_words(&self) -> bool {
        self.state().shows_words
    }

    /// What its first boot still permits. Nothing before it was open.
    pub(crate) fn pending(&self) -> FirstBootPermissions {
        self.state().pending.unwrap_or_default()
    }

    /// Takes the permissions of the vault on the disk, which has just opened or was changed as it opened. Until the
    /// first boot is over its master key is kept: if slots open by typing only, nothing else withdraws the
    /// permission to take a configuration from a medium when the first one is stored.
    pub(crate) fn settle(&self, open: &OpenAlkv) {
        let mut state = self.state();
        state.pending = Some(open.pending());
        state.master_key = lasts(open.pending()).then(|| open.master_key());
    }

    /// Stores the smaller permissions of the vault on the disk.
    pub(crate) fn set_pending(&self, pending: FirstBootPermissions) {
        let mut state = self.state();
        state.pending = Some(pending);
        if !lasts(pending) {
            state.master_key = None;
        }
    }

    #[cfg(test)]
    pub(crate) fn has_master_key(&self) -> bool {
        self.state().master_key.is_some()
    }

    /// Forgets the master key, because the machine goes down.
    pub(crate) fn forget_master_key(&self) {
        self.state().master_key = None;
    }

    /// Opens the vault on the disk by the master key of the vault in use, if that is kept and is its own.
    fn open_by_master_key(&self, alkv: &Alkv) -> Option<OpenAlkv> {
        let state = self.state();
        let key = state.master_key.as_ref()?;
        alkv.open_by_master_key(key).ok()
    }

    /// Whether the vault is sealed, was open, and says that the node was configured: then it takes no configuration
    /// from a medium. Before it was open that is unknown, and a medium may configure the network.
    pub(crate) fn is_configured(&self) -> bool {
        let pending = self.state().pending;
        self.is_sealed() && pending.is_some_and(|pending| !pending.configuration)
    }

    /// Whether only the words themselves would prove who the owner is, and the owner has not confirmed to have
    /// them.
    pub(crate) fn lacks_confirmation(&self) -> bool {
        let state = self.state();
        let is_typed =
            state.slots.contains(&SlotType::Passphrase) || state.tpm2.iter().any(|slot| slot.pin);
        let is_sealed = state.known && !state.slots.contains(&SlotType::None);
        is_sealed && !is_typed && !state.words_kept
    }

    /// What the console asks for to open the vault again.
    pub(crate) fn asks(&self) -> UnlockPrompt {
        let state = self.state();
        let pin = state.tpm2.iter().any(|slot| slot.pin);
        if pin {
            UnlockPrompt::Pin
        } else {
            UnlockPrompt::Passphrase
        }
    }

    /// Problems of changes that no TPM has counted, until one has.
    pub(crate) fn uncounted(&self) -> Vec<MachineDiagnostic> {
        self.state().uncounted.clone()
    }

    fn set_uncounted(&self, problems: Vec<MachineDiagnostic>) {
        self.state().uncounted = problems;
    }

    /// The slot that opened it.
    fn opened_by_slot(&self) -> Option<SlotId> {
        self.state().opened_by.map(|slot| slot.id)
    }

    /// What a person has to do at each start for the vault to open: `pin`, `passphrase`, or `medium` if only a medium
    /// opens it. `None` without a vault, and if it opens by itself.
    pub(crate) fn needs_person(&self) -> Option<&'static str> {
        let state = self.state();
        let has = |kind| state.slots.contains(&kind);
        let by_tpm = state.tpm2.iter().any(|slot| !slot.pin);
        if !state.known || by_tpm || has(SlotType::None) || has(SlotType::Kms) {
            return None;
        }
        if has(SlotType::Provisioning) {
            return Some("medium");
        }
        let pin = state.tpm2.iter().any(|slot| slot.pin);
        Some(if pin { "pin" } else { "passphrase" })
    }

    /// The type of the slot that opened the vault, and whether it needed a PIN. `None` while the vault is closed.
    pub(crate) fn opened_by(&self) -> Option<(SlotType, bool)> {
        let state = self.state();
        let by = state.opened_by?;
        let is_same = |slot: &&Tpm2Facts| slot.slot == by.id.number();
        let pin = state.tpm2.iter().find(is_same).is_some_and(|slot| slot.pin);
        Some((by.kind, pin))
    }

    /// Whether there is a vault that nothing beside it opens.
    pub(crate) fn is_sealed(&self) -> bool {
        let state = self.state();
        state.known && !state.slots.contains(&SlotType::None)
    }

    /// The facts for the console and the node.
    pub(crate) fn facts(&self) -> VaultFacts {
        let open = self.is_open();
        let state = self.state();
        let name = match (state.known, open) {
            (false, _) => "absent",
            (true, false) => "locked",
            (true, true) => "unlocked",
        };
        VaultFacts {
            state: name.to_owned(),
            slots: state
                .slots
                .iter()
                .map(|kind| kind.name().to_owned())
                .collect(),
            tpm2: state.tpm2.clone(),
            sealed: state.known && !state.slots.contains(&SlotType::None),
            opened_by: state.opened_by.map(|slot| slot.kind.name().to_owned()),
            device: state.device,
            words_kept: state.words_kept,
            words_age: state.words_age.as_ref().map(|age| age.text.clone()),
            memory: self.area.kind().name().to_owned(),
        }
    }

    fn state(&self) -> MutexGuard<'_, VaultHandleState> {
        // The lock guards plain values, which are whole after any panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a first boot still permits what only the master key withdraws.
fn lasts(pending: FirstBootPermissions) -> bool {
    pending.configuration || pending.partition
}

/// Why an opened vault is not taken into memory.
#[derive(Debug, thiserror::Error)]
enum AdmitError {
    #[error(transparent)]
    Area(#[from] AreaError),
    #[error("it was locked meanwhile")]
    Locked,
    #[error(transparent)]
    NotInUse(#[from] NotInUse),
    #[error(transparent)]
    Vault(#[from] VaultError),
}

fn opening_slot(open: &OpenAlkv) -> Option<SlotName> {
    let id = open.opened_by();
    let mut slots = open.alkv().slots().iter();
    let kind = slots.find(|slot| slot.id() == id)?.kind();
    Some(SlotName { kind, id })
}

/// The binding of a slot of type `tpm2`.
fn tpm2_facts(slot: &KeySlot) -> Option<Tpm2Facts> {
    let SlotParams::Tpm2(params) = slot.params() else {
        return None;
    };
    Some(Tpm2Facts {
        slot: slot.id().number(),
        pcrs: params.pcrs().to_vec(),
        pin: params.pin(),
        protection: PcrChoice::protection(params.pcrs()).to_owned(),
    })
}
