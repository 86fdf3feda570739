//! The vault of this machine: made at the first boot, opened by whatever may open it, and shared
//! with the node through memory that only the two processes map.
//!
//! ```text
//! Empty ──first boot──▶ Open ◀──a slot opens── Closed
//! Open ──lock──▶ Closed        Open ──lock hard──▶ Closed, and the node ends
//! ```
//!
//! Nothing here waits for a person: what only a person can give is a [`Waiting`], which the machine's
//! loop asks for on the console, and the attempt is made again with what was given.

mod asking;
mod escrow;
mod events;
mod first;
mod open;
mod randomness;

use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use alknet_vault::slots::{Alkv, OpenAlkv, SlotType};
use alknet_vault::{Area, AreaError, Entropy, SecretStr, Vault, VaultError, VaultState};

use crate::control::{Problem, VaultFacts};

pub(crate) use asking::{Asking, Step, places};
pub(crate) use escrow::{Escrow, For};
pub(crate) use events::Events;
pub(crate) use first::{First, create};
pub(crate) use open::open;
pub(crate) use randomness::wait_for_randomness;

/// What only somebody else can give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    /// A passphrase for the vault that is to be made.
    NewPassphrase,
    /// Nothing that can be typed: a medium, a corrected configuration.
    Nothing,
    /// The passphrase of the vault.
    Passphrase,
    /// The words of an earlier node, or none.
    Words,
}

/// Why the vault is not open yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Waiting {
    /// What would help.
    pub(crate) ask: Ask,
    /// The same for those who only look.
    pub(crate) problem: Problem,
    /// Something may come by itself: a medium, a corrected configuration.
    pub(crate) retries: bool,
}

impl Waiting {
    pub(crate) fn new(ask: Ask, code: &str, text: impl Into<String>, hint: &str) -> Self {
        Self {
            ask,
            retries: ask == Ask::Nothing,
            problem: Problem {
                code: code.to_owned(),
                text: text.into(),
                hint: hint.to_owned(),
            },
        }
    }

    /// Only somebody at the machine can change it.
    pub(crate) fn for_good(self) -> Self {
        Self {
            retries: false,
            ..self
        }
    }
}

/// What somebody typed, for one attempt.
#[derive(Debug, Default)]
pub(crate) struct Offer {
    pub(crate) passphrase: Option<SecretStr>,
    pub(crate) new_passphrase: Option<SecretStr>,
    pub(crate) words: Option<Words>,
}

/// Which words the vault is to be made of.
#[derive(Debug)]
pub(crate) enum Words {
    /// New ones.
    Make,
    /// These.
    These(Entropy),
}

/// The vault, and what PID 1 knows of it.
#[derive(Debug)]
pub(crate) struct Keeper {
    area: Arc<Area>,
    events: Events,
    escrow: Escrow,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    slots: Vec<SlotType>,
    opened_by: Option<SlotType>,
    device: u32,
    known: bool,
    words_kept: bool,
    /// Words that nobody has seen yet.
    words: Option<SecretStr>,
    /// The words as a file of age.
    words_age: Option<String>,
    attempts: alknet_vault::slots::Attempts,
    /// Slots whose refusal was written down.
    refused: Vec<alknet_vault::audit::SlotName>,
}

impl Keeper {
    /// With nothing in it.
    ///
    /// # Errors
    /// The kernel gives no memory for it.
    pub(crate) fn new() -> Result<Self, AreaError> {
        Ok(Self {
            area: Arc::new(Area::create()?),
            events: Events::default(),
            escrow: Escrow::default(),
            state: Mutex::default(),
        })
    }

    /// The memory, for the node; none while there is nothing in it.
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

    /// The vault of the node that the memory is of.
    pub(crate) fn vault(&self) -> Vault {
        Vault::over(Arc::clone(&self.area), None)
    }

    pub(crate) fn events(&self) -> &Events {
        &self.events
    }

    /// What is wanted of other nodes.
    pub(crate) fn escrow(&self) -> &Escrow {
        &self.escrow
    }

    /// Takes the words in.
    fn admit(&self, open: &OpenAlkv) -> Result<(), AdmitError> {
        self.escrow.clear();
        self.note(open.alkv());
        let mut state = self.state();
        state.opened_by = slot_type(open);
        state.device = open.alkv().device().number();
        drop(state);
        if self.is_open() {
            return Ok(());
        }
        self.area.set_device(open.alkv().device())?;
        match self.vault().unlock(open.entropy(), open.passphrase()) {
            // Opened twice is open.
            Ok(_) | Err(VaultError::AlreadyUnlocked) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// What is known of it without opening it.
    fn note(&self, alkv: &Alkv) {
        let mut state = self.state();
        state.known = true;
        state.slots = alkv.slots().iter().map(|slot| slot.kind()).collect();
        state.device = alkv.device().number();
    }

    /// Forgets the seed. The node, which shares it, has none any more either.
    pub(crate) fn lock(&self) {
        self.vault().lock();
        self.state().opened_by = None;
    }

    /// Words to be shown once.
    pub(crate) fn take_words(&self) -> Option<SecretStr> {
        self.state().words.take()
    }

    /// The words as a file of age, if the configuration names somebody who may read it.
    pub(crate) fn words_age(&self) -> Option<String> {
        self.state().words_age.clone()
    }

    /// The same, from the disk.
    pub(crate) fn recall_words_age(&self, text: String) {
        self.state().words_age = Some(text);
    }

    /// Somebody has the words.
    pub(crate) fn words_are_kept(&self) {
        let mut state = self.state();
        state.words_kept = true;
        state.words = None;
    }

    /// Whether there is a vault that nothing beside it opens.
    pub(crate) fn is_sealed(&self) -> bool {
        let state = self.state();
        state.known && !state.slots.contains(&SlotType::None)
    }

    /// For the console and the node.
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
            sealed: state.known && !state.slots.contains(&SlotType::None),
            opened_by: state.opened_by.map(|kind| kind.name().to_owned()),
            device: state.device,
            words_kept: state.words_kept,
            words_age: state.words_age.clone(),
            memory: self.area.kind().name().to_owned(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Plain values: whole after any panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why an opened vault has no place in memory.
#[derive(Debug, thiserror::Error)]
enum AdmitError {
    #[error(transparent)]
    Area(#[from] AreaError),
    #[error(transparent)]
    Vault(#[from] VaultError),
}

fn slot_type(open: &OpenAlkv) -> Option<SlotType> {
    let mut slots = open.alkv().slots().iter();
    let opened = slots.find(|slot| slot.id() == open.opened_by())?;
    Some(opened.kind())
}
