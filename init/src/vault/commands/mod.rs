//! What a user at the console can do to the vault while the machine runs.
//!
//! No code here waits for a person. A [`CommandSession`] tries its [`VaultCommand`] with what the
//! user has typed so far. If it needs more, it returns a [`CommandPrompt`]: the console asks for
//! it, and the session tries the command again with the answer. No variable outlives the session
//! with the vault's master key: each change opens the vault once more, by an unattended slot or by
//! a passphrase, and the session drops the key when it ends.

mod audit;
mod command;
mod opening;
mod owed;
mod program_slots;
mod prompt;
mod proof;
mod rekey;
mod slots;

use std::path::Path;

use alknet_provisioning::{
    ConfigOrigin, MediaSecrets, ProvisioningError, PutSeedKeyError, UpdatePrograms,
};
use alknet_tpm::TpmError;
use alknet_vault::audit::{AuditEvent, ExportedSecret, SlotName};
use alknet_vault::slots::{Alkv, Consent, KeySlot, OpenAlkv, SeedKey, SlotError, SlotId};
use alknet_vault::{ExportReason, SecretArr, SecretStr, VaultError};

use super::generations::GenerationLedger;
use super::{VaultHandle, tpm_unlock};
use crate::{data, log::InitLog, tpm};

pub(crate) use command::{COMMANDS, VaultCommand};
pub(crate) use program_slots::{add_program_slot, program_slots, remove_program_slots};
pub(crate) use prompt::{PromptResponse, PromptText};

/// The reason for refusing a command that needs an open vault.
pub(crate) const LOCKED: &str = "the vault is locked; open it first";

/// Access to media.
pub(crate) trait VaultMediaAccess {
    /// All secrets on the media.
    fn secrets(&self) -> MediaSecrets;

    /// Writes a key to a writable medium. It takes the boot partition only if `boot` is true.
    fn put(&self, key: &SeedKey, boot: bool) -> Result<ConfigOrigin, PutSeedKeyError>;

    /// The program that firmware starts, and the one that is to be started next.
    fn programs(&self) -> Result<UpdatePrograms, ProvisioningError>;
}

/// The surroundings of a command.
pub(crate) struct CommandContext<'a> {
    /// The folder of the vault's log, whose files are the node's.
    pub(crate) audit: &'a Path,
    /// The device of the sealed partition.
    pub(crate) device: &'a Path,
    pub(crate) vault: &'a VaultHandle,
    pub(crate) log: &'a InitLog,
    /// The folder with the node's state.
    pub(crate) state_dir: &'a Path,
    pub(crate) sources: &'a dyn VaultMediaAccess,
}

impl CommandContext<'_> {
    fn ledger(&self) -> GenerationLedger<'_> {
        GenerationLedger {
            device: self.device,
            vault: self.vault,
            log: self.log,
            state_dir: self.state_dir,
        }
    }
}

/// What only a user at the console can give.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum CommandPrompt {
    /// One word that the user types after reading what it leads to.
    Confirmation {
        lines: Vec<String>,
        word: &'static str,
    },
    /// The confirmation that the user has the words of the node at hand.
    Consent,
    /// A new passphrase, typed twice.
    NewPassphrase,
    /// A new PIN, typed twice.
    NewPin,
    /// The passphrase of any slot.
    Passphrase,
    /// The recovery word at this place, counted from 1.
    Word(usize),
    /// The passphrase of this slot, or nothing. `or_lose`: without it, the slot is lost.
    PassphraseOf { id: SlotId, or_lose: bool },
    /// The PIN of a slot.
    Pin,
    /// The PIN of this slot, or nothing. `or_lose`: without it, the slot is lost.
    PinOf { id: SlotId, or_lose: bool },
    /// The share of the key that another node has. A helper fetches it, and the user types nothing.
    Share,
}

/// The result of trying a command.
#[derive(Debug)]
pub(crate) enum CommandOutcome {
    /// The command is done. The user reads these lines.
    Done(Vec<String>),
    /// The command is refused, with the reason.
    Refused(String),
    /// The command waits for the user. The text says what was invalid in the last input.
    Wants(CommandPrompt, String),
    /// The words, for the user who asked to see them.
    Words(SecretStr),
}

/// Why a command did not finish.
enum NeedInput {
    Refused(String),
    Wants(CommandPrompt, String),
}

type Attempt<T> = Result<T, NeedInput>;

impl NeedInput {
    fn refused(why: impl std::fmt::Display) -> Self {
        Self::Refused(why.to_string())
    }

    fn wants(want: CommandPrompt) -> Self {
        Self::Wants(want, String::new())
    }
}

impl From<SlotError> for NeedInput {
    fn from(error: SlotError) -> Self {
        match error {
            SlotError::LastInteractive(_) => Self::wants(CommandPrompt::Consent),
            other => Self::refused(other),
        }
    }
}

impl From<VaultError> for NeedInput {
    fn from(error: VaultError) -> Self {
        match error {
            VaultError::Slot(error) => error.into(),
            other => Self::refused(other),
        }
    }
}

/// What the user has typed for a command so far.
#[derive(Default)]
struct CommandInput {
    confirmed: bool,
    has_words: bool,
    new: Option<SecretStr>,
    /// SHA-256 of the program that the console showed.
    next: Option<[u8; 32]>,
    opening: Option<SecretStr>,
    pin: Option<SecretStr>,
    of_slots: Vec<SlotInput>,
    /// Whether the requested words were right.
    proved_words: bool,
    word: Option<SecretStr>,
    /// Words that the user typed and PID 1 has not judged yet.
    words: Vec<SecretStr>,
}

/// What the user typed for one slot.
struct SlotInput {
    id: SlotId,
    /// Passphrase or PIN. `None` if the user has none.
    secret: Option<SecretStr>,
    /// Whether it opened the slot.
    is_right: bool,
}

/// A command under way.
pub(crate) struct CommandSession {
    command: VaultCommand,
    typed: CommandInput,
    /// The vault, once something opened it.
    open: Option<OpenAlkv>,
    /// Whether the command waits for another node.
    waits: bool,
    /// Whether the user goes on without those shares.
    without_shares: bool,
    /// The shares that other nodes gave.
    shares: Vec<(SlotId, SecretArr<32>)>,
}

/// Does not show what the user typed.
impl std::fmt::Debug for CommandSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CommandSession({:?}, ..)", self.command)
    }
}

impl CommandSession {
    pub(crate) fn new(command: VaultCommand) -> Self {
        Self {
            command,
            typed: CommandInput::default(),
            open: None,
            waits: false,
            without_shares: false,
            shares: Vec::new(),
        }
    }

    /// Whether the command waits for the share of another node.
    pub(crate) fn waits_for_share(&self) -> bool {
        self.waits
    }

    /// Whether the command needs an open vault.
    pub(crate) fn needs_open(&self) -> bool {
        self.command.needs_open()
    }

    /// Stores an answer of the user.
    pub(crate) fn give(&mut self, given: PromptResponse) {
        match given {
            PromptResponse::Confirmed => self.typed.confirmed = true,
            PromptResponse::HasWords => self.typed.has_words = true,
            PromptResponse::NewPassphrase(new) | PromptResponse::NewPin(new) => {
                self.typed.new = Some(new)
            }
            PromptResponse::Passphrase(typed) => self.typed.opening = Some(typed),
            PromptResponse::Pin(typed) => self.typed.pin = Some(typed),
            PromptResponse::WithoutShares => self.without_shares = true,
            PromptResponse::Word(word) => self.typed.word = Some(word),
            PromptResponse::OfSlot(id, secret) => {
                // The last input for a slot counts.
                self.typed.of_slots.retain(|known| known.id != id);
                self.typed.of_slots.push(SlotInput {
                    id,
                    secret,
                    is_right: false,
                });
            }
        }
    }

    /// Tries the command. Blocks on disks, on Argon2id and while wrong passphrases wait.
    pub(crate) fn run(&mut self, place: &CommandContext<'_>) -> CommandOutcome {
        let outcome = self.attempt(place);
        self.waits = matches!(outcome, CommandOutcome::Wants(CommandPrompt::Share, _));
        outcome
    }

    fn attempt(&mut self, place: &CommandContext<'_>) -> CommandOutcome {
        if self.command.needs_open() && !place.vault.is_open() {
            return CommandOutcome::Refused(LOCKED.to_owned());
        }
        let done = match self.command {
            VaultCommand::Audit { until } => audit::show(place, until),
            VaultCommand::Rekey => self.rekey(place),
            VaultCommand::SlotAdd(kind) => self.slot_add(place, kind),
            VaultCommand::SlotAddNext => self.slot_add_next(place),
            VaultCommand::SlotAddPin => self.slot_add_pin(place),
            VaultCommand::SlotList => list(place),
            VaultCommand::SlotRemove(id) => self.slot_remove(place, id),
            VaultCommand::SlotRenew(id) => self.slot_renew(place, id),
            VaultCommand::SlotSet => self.slot_set(place),
            VaultCommand::SlotTest(id) => self.slot_test(place, id),
            VaultCommand::Status => status(place),
            VaultCommand::TpmForget => self.tpm_forget(place),
            VaultCommand::Words => return self.words(place).unwrap_or_else(CommandOutcome::from),
            // The machine runs these commands itself.
            VaultCommand::FactoryReset | VaultCommand::Lock { .. } => Ok(Vec::new()),
        };
        done.map_or_else(CommandOutcome::from, CommandOutcome::Done)
    }

    /// The words, after the user has proved once more the right to see them.
    fn words(&mut self, place: &CommandContext<'_>) -> Attempt<CommandOutcome> {
        let open = if has_typed(&on_disk(place)?) {
            self.opened_by_typing(place)?
        } else {
            self.opened(place)?
        };
        // The list on the disk is not authenticated: the vault that opened decides.
        if has_typed(open.alkv()) {
            self.opened_by_typing(place)?;
        } else {
            self.authorised(place)?;
            self.confirmed(
                &[
                    "A reader of the words has this node: its keys, for ever, and its data.",
                    "They are shown on this console until Enter is pressed.",
                ],
                "SHOW",
            )?;
        }
        let words = self.opened(place)?.entropy().phrase();
        place.vault.events().add(AuditEvent::Exported {
            what: ExportedSecret::Phrase,
            reason: ExportReason::Console,
        });
        place
            .log
            .warn("the words of this node are shown at the console");
        Ok(CommandOutcome::Words(words))
    }

    fn confirmed<T: AsRef<str>>(&self, lines: &[T], word: &'static str) -> Attempt<()> {
        if self.typed.confirmed {
            return Ok(());
        }
        let lines = lines.iter().map(|line| line.as_ref().to_owned()).collect();
        Err(NeedInput::wants(CommandPrompt::Confirmation {
            lines,
            word,
        }))
    }

    fn consent(&self) -> Consent {
        if self.typed.has_words {
            Consent::HaveTheWords
        } else {
            Consent::None
        }
    }
}

impl From<NeedInput> for CommandOutcome {
    fn from(halt: NeedInput) -> Self {
        match halt {
            NeedInput::Refused(why) => Self::Refused(why),
            NeedInput::Wants(want, why) => Self::Wants(want, why),
        }
    }
}

/// The vault as the disk has it. Nothing in it is trusted before a slot opened.
fn on_disk(place: &CommandContext<'_>) -> Attempt<Alkv> {
    let found = data::copies(place.device).load()?;
    Ok(found.ok_or(SlotError::Nothing)?.newest)
}

/// Writes both copies of a changed vault.
fn save(place: &CommandContext<'_>, open: &OpenAlkv) -> Attempt<()> {
    data::copies(place.device).save(open)?;
    place.ledger().note(open);
    Ok(())
}

fn find(alkv: &Alkv, id: SlotId) -> Attempt<KeySlot> {
    let slot = alkv.slots().iter().find(|slot| slot.id() == id);
    Ok(slot.cloned().ok_or(SlotError::NoSuchSlot(id))?)
}

fn name(slot: &KeySlot) -> SlotName {
    SlotName {
        kind: slot.kind(),
        id: slot.id(),
    }
}

fn has_passphrase(alkv: &Alkv) -> bool {
    alkv.slots().iter().any(|slot| !slot.kind().is_unattended())
}

fn has_pin(alkv: &Alkv) -> bool {
    alkv.slots().iter().any(tpm_unlock::wants_pin)
}

/// Whether a typed passphrase or PIN can open it.
fn has_typed(alkv: &Alkv) -> bool {
    has_passphrase(alkv) || has_pin(alkv)
}

fn list(place: &CommandContext<'_>) -> Attempt<Vec<String>> {
    Ok(slots::lines(&on_disk(place)?, place.vault.opened_by_slot()))
}

fn status(place: &CommandContext<'_>) -> Attempt<Vec<String>> {
    let alkv = on_disk(place)?;
    let facts = place.vault.facts();
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
        lines.push("UNSEALED: a copy of the disk has the keys".to_owned());
    }
    Ok(lines)
}

#[cfg(test)]
mod tests;
