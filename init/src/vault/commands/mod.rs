//! What somebody at the console can do to the vault while the machine runs.
//!
//! Nothing here waits for a person. A [`Session`] tries its [`Command`] with what was typed so far; what
//! only a person can give is a [`Want`], which the console asks for, and the command is tried again with
//! the answer. The vault's master key is not kept anywhere: whatever changes the vault opens it once
//! more, by what needs nobody or by a passphrase, and the session lets it go when it ends.

mod audit;
mod command;
mod opening;
mod owed;
mod proof;
mod rekey;
mod slots;
mod wanting;

use std::path::Path;

use alknet_provisioning::{Programs, ProvisioningError, PutSeedKeyError, Secrets, Source};
use alknet_tpm::TpmError;
use alknet_vault::audit::{Event, Exported, SlotName};
use alknet_vault::slots::{Alkv, Consent, OpenAlkv, SeedKey, Slot, SlotError, SlotId};
use alknet_vault::{Reason, SecretArr, SecretStr, VaultError};

use super::newest::Ledger;
use super::{Keeper, by_tpm};
use crate::{data, log::Log, tpm};

pub(crate) use command::{COMMANDS, Command};
pub(crate) use wanting::{Given, Wanting};

/// Why a command does nothing that needs an open vault.
pub(crate) const LOCKED: &str = "the vault is locked; open it first";

/// What lies on media.
pub(crate) trait Sources {
    /// Everything secret that they hold.
    fn secrets(&self) -> Secrets;

    /// Puts a key on one that can be written; on the boot partition only if `boot` says so.
    fn put(&self, key: &SeedKey, boot: bool) -> Result<Source, PutSeedKeyError>;

    /// The program that firmware starts, and the one that is to be started next.
    fn programs(&self) -> Result<Programs, ProvisioningError>;
}

/// Where a command works.
pub(crate) struct Place<'a> {
    /// The folder of the vault's log, whose files are the node's.
    pub(crate) audit: &'a Path,
    /// The device of the sealed partition.
    pub(crate) device: &'a Path,
    pub(crate) keeper: &'a Keeper,
    pub(crate) log: &'a Log,
    /// Where the node's state is kept.
    pub(crate) state_dir: &'a Path,
    pub(crate) sources: &'a dyn Sources,
}

impl Place<'_> {
    fn ledger(&self) -> Ledger<'_> {
        Ledger {
            device: self.device,
            keeper: self.keeper,
            log: self.log,
            state_dir: self.state_dir,
        }
    }
}

/// What only somebody at the console can give.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Want {
    /// That one word, after reading what it leads to.
    Confirmation {
        lines: Vec<String>,
        word: &'static str,
    },
    /// That the words of the node are at hand.
    Consent,
    /// A new passphrase, twice.
    NewPassphrase,
    /// A new PIN, twice.
    NewPin,
    /// The passphrase of any slot.
    Passphrase,
    /// The recovery word at this place, counted from 1.
    Word(usize),
    /// The passphrase of this slot, or nothing; `or_lose`: which then is lost.
    PassphraseOf { id: SlotId, or_lose: bool },
    /// The PIN of a slot.
    Pin,
    /// The PIN of this slot, or nothing; `or_lose`: which then is lost.
    PinOf { id: SlotId, or_lose: bool },
    /// The share of the key that another node has. Nobody types it.
    Share,
}

/// What came of trying a command.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// It is done; this is to be read.
    Done(Vec<String>),
    /// It is not, and will not be; why.
    Refused(String),
    /// It waits for somebody; the text says what was wrong with what they typed.
    Wants(Want, String),
    /// The words, for the eyes of whoever asked.
    Words(SecretStr),
}

/// Why a command went no further.
enum Halt {
    Refused(String),
    Wants(Want, String),
}

type Attempt<T> = Result<T, Halt>;

impl Halt {
    fn refused(why: impl std::fmt::Display) -> Self {
        Self::Refused(why.to_string())
    }

    fn wants(want: Want) -> Self {
        Self::Wants(want, String::new())
    }
}

impl From<SlotError> for Halt {
    fn from(error: SlotError) -> Self {
        match error {
            SlotError::LastInteractive(_) => Self::wants(Want::Consent),
            other => Self::refused(other),
        }
    }
}

impl From<VaultError> for Halt {
    fn from(error: VaultError) -> Self {
        match error {
            VaultError::Slot(error) => error.into(),
            other => Self::refused(other),
        }
    }
}

/// What was typed for a command so far.
#[derive(Default)]
struct Typed {
    confirmed: bool,
    has_words: bool,
    new: Option<SecretStr>,
    /// SHA-256 of the program that was shown.
    next: Option<[u8; 32]>,
    opening: Option<SecretStr>,
    pin: Option<SecretStr>,
    of_slots: Vec<OfSlot>,
    /// The words that were asked for were right.
    proved_words: bool,
    word: Option<SecretStr>,
    /// Words that were typed and not judged yet.
    words: Vec<SecretStr>,
}

/// What was typed for one slot.
struct OfSlot {
    id: SlotId,
    /// Passphrase or PIN; nothing where somebody has none.
    secret: Option<SecretStr>,
    /// It opened the slot.
    is_right: bool,
}

/// A command under way.
pub(crate) struct Session {
    command: Command,
    typed: Typed,
    /// The vault, once something opened it.
    open: Option<OpenAlkv>,
    /// It waits for another node.
    waits: bool,
    /// Nobody wants to wait for those.
    without_shares: bool,
    /// What they gave.
    shares: Vec<(SlotId, SecretArr<32>)>,
}

/// Never what was typed.
impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Session({:?}, ..)", self.command)
    }
}

impl Session {
    pub(crate) fn new(command: Command) -> Self {
        Self {
            command,
            typed: Typed::default(),
            open: None,
            waits: false,
            without_shares: false,
            shares: Vec::new(),
        }
    }

    /// Whether it waits for what another node has.
    pub(crate) fn waits_for_share(&self) -> bool {
        self.waits
    }

    /// Whether it is for a vault that is open only.
    pub(crate) fn needs_open(&self) -> bool {
        self.command.needs_open()
    }

    /// Takes what was asked for.
    pub(crate) fn give(&mut self, given: Given) {
        match given {
            Given::Confirmed => self.typed.confirmed = true,
            Given::HasWords => self.typed.has_words = true,
            Given::NewPassphrase(new) | Given::NewPin(new) => self.typed.new = Some(new),
            Given::Passphrase(typed) => self.typed.opening = Some(typed),
            Given::Pin(typed) => self.typed.pin = Some(typed),
            Given::WithoutShares => self.without_shares = true,
            Given::Word(word) => self.typed.word = Some(word),
            Given::OfSlot(id, secret) => {
                self.typed.of_slots.retain(|known| known.id != id);
                self.typed.of_slots.push(OfSlot {
                    id,
                    secret,
                    is_right: false,
                });
            }
        }
    }

    /// Tries the command. Blocks on disks, on Argon2id and while wrong passphrases wait.
    pub(crate) fn run(&mut self, place: &Place<'_>) -> Outcome {
        let outcome = self.attempt(place);
        self.waits = matches!(outcome, Outcome::Wants(Want::Share, _));
        outcome
    }

    fn attempt(&mut self, place: &Place<'_>) -> Outcome {
        if self.command.needs_open() && !place.keeper.is_open() {
            return Outcome::Refused(LOCKED.to_owned());
        }
        let done = match self.command {
            Command::Audit { until } => audit::show(place, until),
            Command::Passwd => self.passwd(place),
            Command::Rekey => self.rekey(place),
            Command::SlotAdd(kind) => self.slot_add(place, kind),
            Command::SlotAddNext => self.slot_add_next(place),
            Command::SlotAddPin => self.slot_add_pin(place),
            Command::SlotRemove(id) => self.slot_remove(place, id),
            Command::SlotRenew(id) => self.slot_renew(place, id),
            Command::SlotTest(id) => self.slot_test(place, id),
            Command::Slots => list(place),
            Command::Status => status(place),
            Command::TpmForget => self.tpm_forget(place),
            Command::Words => return self.words(place).unwrap_or_else(Outcome::from),
            // The machine does these itself.
            Command::FactoryReset | Command::Lock { .. } => Ok(Vec::new()),
        };
        done.map_or_else(Outcome::from, Outcome::Done)
    }

    /// The words, after whoever asks showed once more that they may.
    fn words(&mut self, place: &Place<'_>) -> Attempt<Outcome> {
        let open = if has_typed(&on_disk(place)?) {
            self.opened_by_typing(place)?
        } else {
            self.opened(place)?
        };
        if has_typed(open.alkv()) {
            self.opened_by_typing(place)?;
        } else {
            self.authorised(place)?;
            self.confirmed(
                &[
                    "Whoever reads the words has this node: its keys, for ever, and its data.",
                    "They are shown on this console until Enter is pressed.",
                ],
                "SHOW",
            )?;
        }
        let words = self.opened(place)?.entropy().phrase();
        place.keeper.events().add(Event::Exported {
            what: Exported::Phrase,
            reason: Reason::Console,
        });
        place
            .log
            .warn("the words of this node are shown at the console");
        Ok(Outcome::Words(words))
    }

    fn confirmed<T: AsRef<str>>(&self, lines: &[T], word: &'static str) -> Attempt<()> {
        if self.typed.confirmed {
            return Ok(());
        }
        let lines = lines.iter().map(|line| line.as_ref().to_owned()).collect();
        Err(Halt::wants(Want::Confirmation { lines, word }))
    }

    fn consent(&self) -> Consent {
        if self.typed.has_words {
            Consent::HaveTheWords
        } else {
            Consent::None
        }
    }
}

impl From<Halt> for Outcome {
    fn from(halt: Halt) -> Self {
        match halt {
            Halt::Refused(why) => Self::Refused(why),
            Halt::Wants(want, why) => Self::Wants(want, why),
        }
    }
}

/// The vault as the disk has it: nothing there is believed before a slot opened.
fn on_disk(place: &Place<'_>) -> Attempt<Alkv> {
    let found = data::copies(place.device).load()?;
    Ok(found.ok_or(SlotError::Nothing)?.newest)
}

/// Writes a changed vault, both copies.
fn save(place: &Place<'_>, open: &OpenAlkv) -> Attempt<()> {
    data::copies(place.device).save(open)?;
    place.ledger().note(open);
    Ok(())
}

fn find(alkv: &Alkv, id: SlotId) -> Attempt<Slot> {
    let slot = alkv.slots().iter().find(|slot| slot.id() == id);
    Ok(slot.cloned().ok_or(SlotError::NoSuchSlot(id))?)
}

fn name(slot: &Slot) -> SlotName {
    SlotName {
        kind: slot.kind(),
        id: slot.id(),
    }
}

fn has_passphrase(alkv: &Alkv) -> bool {
    alkv.slots().iter().any(|slot| !slot.kind().is_unattended())
}

fn has_pin(alkv: &Alkv) -> bool {
    alkv.slots().iter().any(by_tpm::wants_pin)
}

/// Whether somebody can type what opens it.
fn has_typed(alkv: &Alkv) -> bool {
    has_passphrase(alkv) || has_pin(alkv)
}

fn list(place: &Place<'_>) -> Attempt<Vec<String>> {
    Ok(slots::lines(
        &on_disk(place)?,
        place.keeper.opened_by_slot(),
    ))
}

fn status(place: &Place<'_>) -> Attempt<Vec<String>> {
    let alkv = on_disk(place)?;
    let facts = place.keeper.facts();
    let mut lines = vec![
        format!("vault       {}", alkv.uuid()),
        format!("state       {}", facts.state),
        format!("device      {}", alkv.device()),
        format!("generation  {}", alkv.generation()),
        format!("seed in     {}", facts.memory),
    ];
    let kept = if facts.words_kept { "yes" } else { "no" };
    lines.push(format!("words kept  {kept}"));
    lines.push(format!("slots       {}", alkv.slots().len()));
    match tpm::storage_key() {
        Ok(key) => lines.push(format!("alknet.tpm={key}")),
        Err(TpmError::Absent) => {}
        Err(error) => lines.push(format!("TPM         {error}")),
    }
    if !alkv.is_sealed() {
        lines.push("UNSEALED: whoever copies the disk has the keys".to_owned());
    }
    Ok(lines)
}

#[cfg(test)]
mod tests;
