//! The commands about the vault at one console.

use alknet_vault::SecretStr;
use zeroize::Zeroizing;

use super::DialogStep;
use super::new_words::table;
use crate::console::{ConsoleId, ConsoleQuestion};
use crate::vault::commands::{COMMANDS, PromptText, VaultCommand};

/// What a console says that may run no command now.
pub(super) const IN_USE: &str = "the vault's commands are in use at another console";

/// The conversation about commands at one console. Its prompts, and what a proof at it leads to,
/// go to this console only.
#[derive(Debug)]
pub(super) struct CommandLine {
    pub(super) console: ConsoleId,
    /// Tells this conversation from an earlier one at the same console.
    pub(super) number: u64,
    pub(super) stage: CommandStage,
    /// A note above the next question.
    note: String,
}

#[derive(Debug)]
pub(super) enum CommandStage {
    /// The list of commands, or the lines of the last command if there was one.
    Menu(Vec<String>),
    Reset,
    /// The machine tries the command.
    Running,
    /// The words of the vault, for a user who asked to see them.
    Shown(SecretStr),
    Wanting(PromptText),
}

impl CommandLine {
    pub(super) fn new(console: ConsoleId, number: u64) -> Self {
        Self {
            console,
            number,
            stage: CommandStage::Menu(Vec::new()),
            note: String::new(),
        }
    }

    /// Whether it has a command under way, or the result of a proof.
    pub(super) fn is_busy(&self) -> bool {
        !matches!(self.stage, CommandStage::Menu(_) | CommandStage::Reset)
    }

    /// The present question.
    pub(super) fn question(&self) -> Option<ConsoleQuestion> {
        let note = Some(self.note.as_str()).filter(|note| !note.is_empty());
        let note = note.into_iter();
        Some(match &self.stage {
            CommandStage::Menu(said) if said.is_empty() => {
                ConsoleQuestion::shown("vault").with_lines(note.chain(COMMANDS))
            }
            CommandStage::Menu(said) => ConsoleQuestion::shown("vault")
                .with_lines(note.chain(said.iter().map(String::as_str))),
            CommandStage::Reset => ConsoleQuestion::shown("type RESET to go on").with_lines([
                "Everything on the data partition, the vault and its keys included, is lost for ever.",
                "The words, if you have them, make the same node again. Ctrl-C goes back.",
            ]),
            CommandStage::Running => return None,
            CommandStage::Shown(words) => {
                let notice = "These words are this node. Only you may see them.".to_owned();
                let lines = [notice, String::new()].into_iter().chain(table(words));
                ConsoleQuestion::shown("Enter wipes them")
                    .with_lines(lines)
                    .private()
            }
            CommandStage::Wanting(wanting) => wanting.question(),
        })
    }

    /// Handles a line. Returns `None` if the conversation is over. `is_free`: no other console has
    /// a command under way.
    pub(super) fn answer(&mut self, line: &Zeroizing<String>, is_free: bool) -> Option<DialogStep> {
        self.note.clear();
        match &mut self.stage {
            CommandStage::Menu(_) => return self.choose(line, is_free),
            CommandStage::Reset if line.as_str() == "RESET" => {
                return Some(DialogStep::FactoryReset);
            }
            CommandStage::Reset => self.stage = CommandStage::Menu(Vec::new()),
            CommandStage::Running => {}
            CommandStage::Shown(_) => return None,
            CommandStage::Wanting(wanting) => {
                if let Some(given) = wanting.answer(line) {
                    self.stage = CommandStage::Running;
                    return Some(DialogStep::Given(given));
                }
            }
        }
        Some(DialogStep::Next)
    }

    /// Takes a command. An empty line ends the conversation.
    fn choose(&mut self, line: &Zeroizing<String>, is_free: bool) -> Option<DialogStep> {
        if line.trim().is_empty() {
            return None;
        }
        Some(match VaultCommand::parse(line) {
            Ok(VaultCommand::FactoryReset) => {
                self.stage = CommandStage::Reset;
                DialogStep::Next
            }
            // It needs no proof and takes nothing from its owner, so no other console delays it.
            Ok(VaultCommand::Lock { hard }) => DialogStep::Lock { hard },
            Ok(_) if !is_free => self.refuse(IN_USE.to_owned()),
            Ok(command) => {
                self.stage = CommandStage::Running;
                DialogStep::Run(command)
            }
            Err(error) => self.refuse(error),
        })
    }

    fn refuse(&mut self, why: String) -> DialogStep {
        self.note = why;
        self.stage = CommandStage::Menu(Vec::new());
        DialogStep::Next
    }
}
