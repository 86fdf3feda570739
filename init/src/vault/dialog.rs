//! The console's questions to the user about the vault, and the steps that answers lead to. It has no clock and no
//! vault: answers come in, questions and steps come out.

mod command_line;
mod new_words;

use alknet_tpm::TpmPin;
use alknet_vault::{Entropy, SecretStr};
use zeroize::Zeroizing;

use self::command_line::{CommandLine, CommandStage};
use self::new_words::NewWords;
use super::commands::{CommandPrompt, PromptResponse, PromptText, VaultCommand};
use super::{UnlockPrompt, VaultWait, WordsSource};
use crate::console::{ConsoleId, ConsoleInput, ConsoleQuestion};

pub(crate) use self::new_words::positions;

/// What an answer leads to.
#[derive(Debug)]
pub(crate) enum DialogStep {
    /// The user drops the command under way.
    Drop,
    /// Another console has what the user asks for. The text is for the user.
    Elsewhere(&'static str),
    /// The user wants the machine as it was when it was new: everything on the data partition is lost.
    FactoryReset,
    /// An answer for the command under way.
    Given(PromptResponse),
    Lock {
        hard: bool,
    },
    /// The next question is ready.
    Next,
    /// Try the slots that need no typed input.
    Retry,
    /// Open the vault, or make it, with this.
    NewPassphrase(SecretStr),
    NewPin(SecretStr),
    Passphrase(SecretStr),
    Pin(SecretStr),
    Run(VaultCommand),
    Words(WordsSource),
    /// The user has written the words down.
    WordsKept,
}

/// What a console says whose user asks for words that another console shows.
const SHOWN_ELSEWHERE: &str = "the words of this node are shown at another console";

/// The conversations at the consoles.
///
/// Every console asks for what opens the vault, and takes the answer. All else belongs to one
/// console: the commands to the one where the user began them, so that a proof that is typed there
/// gives nothing to a person at another, and new words to the one where the user asked for them.
#[derive(Debug, Default)]
pub(crate) struct VaultDialog {
    unlock: UnlockQuestion,
    /// A note above the next question of `unlock`.
    note: String,
    /// Whether both a PIN and a passphrase help, so that Enter leads from one question to the other.
    other_way: bool,
    /// The console where the user has typed a part of what makes the vault. The rest is asked for
    /// there, and the new words are shown there.
    maker: Option<ConsoleId>,
    /// At most one for each console, and at most one of them is busy.
    commands: Vec<CommandLine>,
    /// Numbers the conversations about commands.
    begun: u64,
    /// The conversation whose command is being tried.
    tried: Option<u64>,
    new_words: Option<NewWords>,
}

/// What the vault waits for.
#[derive(Debug, Default)]
enum UnlockQuestion {
    NewPassphrase,
    /// The second time, at the console of the first.
    NewPassphraseAgain(ConsoleId, SecretStr),
    NewPin,
    /// The second time, at the console of the first.
    NewPinAgain(ConsoleId, SecretStr),
    #[default]
    Nothing,
    Passphrase,
    Pin,
    Words,
}

impl UnlockQuestion {
    /// Whether it is the question of `ask`. `other_way`: a user who chose the other question keeps it.
    fn is_for(&self, ask: UnlockPrompt, other_way: bool) -> bool {
        match ask {
            UnlockPrompt::Passphrase | UnlockPrompt::Pin
                if other_way && matches!(self, Self::Passphrase | Self::Pin) =>
            {
                true
            }
            UnlockPrompt::NewPin => matches!(self, Self::NewPin | Self::NewPinAgain(..)),
            UnlockPrompt::Pin => matches!(self, Self::Pin),
            UnlockPrompt::NewPassphrase => {
                matches!(self, Self::NewPassphrase | Self::NewPassphraseAgain(..))
            }
            UnlockPrompt::Nothing => matches!(self, Self::Nothing),
            UnlockPrompt::Passphrase => matches!(self, Self::Passphrase),
            UnlockPrompt::Words => matches!(self, Self::Words),
        }
    }
}

impl VaultDialog {
    /// Asks for what the vault waits for, or for nothing. A conversation about the same question goes on.
    pub(crate) fn wait_for(&mut self, waiting: Option<&VaultWait>) {
        self.other_way = waiting.is_some_and(|waiting| waiting.other_way);
        let Some(waiting) = waiting else {
            // A question of the attempt ends with it. Commands that users are typing do not.
            self.unlock = UnlockQuestion::Nothing;
            return;
        };
        self.new_words = None;
        let allows_commands = matches!(
            waiting.ask,
            UnlockPrompt::Nothing | UnlockPrompt::Passphrase | UnlockPrompt::Pin
        );
        // A command that is being tried ends with its try.
        self.commands.retain(|line| match line.stage {
            CommandStage::Running => true,
            CommandStage::Menu(_) | CommandStage::Reset => allows_commands,
            CommandStage::Shown(_) | CommandStage::Wanting(_) => false,
        });
        if !self.unlock.is_for(waiting.ask, self.other_way) {
            self.unlock = match waiting.ask {
                UnlockPrompt::NewPassphrase => UnlockQuestion::NewPassphrase,
                UnlockPrompt::NewPin => UnlockQuestion::NewPin,
                UnlockPrompt::Nothing => UnlockQuestion::Nothing,
                UnlockPrompt::Passphrase => UnlockQuestion::Passphrase,
                UnlockPrompt::Pin => UnlockQuestion::Pin,
                UnlockPrompt::Words => UnlockQuestion::Words,
            };
        }
        self.note.clone_from(&waiting.problem.text);
    }

    /// Shows new `words`, and asks for the words at `positions`: at the console where the user typed
    /// what made the vault, else at the first one where a user asks for them.
    pub(crate) fn show(&mut self, words: SecretStr, positions: Vec<usize>) {
        self.note.clear();
        self.new_words = Some(NewWords::new(words, positions, self.maker.take()));
    }

    /// Forgets which console has typed for a new vault: what was typed there is forgotten, or the
    /// vault is made.
    pub(crate) fn forget_maker(&mut self) {
        self.maker = None;
    }

    /// Notes that the machine tries the command under way: with an answer, or with what another node
    /// gave while the console asked.
    pub(crate) fn try_begins(&mut self) {
        self.tried = self.under_way().map(|line| {
            line.stage = CommandStage::Running;
            line.number
        });
    }

    /// Whether the conversation still waits for the try that has ended.
    pub(crate) fn try_ended(&mut self) -> bool {
        let tried = self.tried.take();
        tried.is_some() && self.under_way().map(|line| line.number) == tried
    }

    /// The conversation with a command that is not over.
    fn under_way(&mut self) -> Option<&mut CommandLine> {
        let mut lines = self.commands.iter_mut();
        lines.find(|line| matches!(line.stage, CommandStage::Running | CommandStage::Wanting(_)))
    }

    fn set_result(&mut self, stage: CommandStage) {
        if let Some(line) = self.under_way() {
            line.stage = stage;
        }
    }

    /// Shows words to the user who asked for them, until the user ends that.
    pub(crate) fn reveal(&mut self, words: SecretStr) {
        self.set_result(CommandStage::Shown(words));
    }

    /// Asks for what the command waits for.
    pub(crate) fn want(&mut self, want: CommandPrompt, note: String) {
        self.set_result(CommandStage::Wanting(PromptText::new(want, note)));
    }

    /// Shows the result of the command, and asks for the next.
    pub(crate) fn tell(&mut self, lines: Vec<String>) {
        self.set_result(CommandStage::Menu(lines));
    }

    /// Whether a command is under way at a console, or its private result is shown.
    pub(crate) fn has_command(&self) -> bool {
        self.commands.iter().any(CommandLine::is_busy)
    }

    /// Whether the consoles ask for nothing that opens or makes the vault.
    pub(crate) fn is_idle(&self) -> bool {
        matches!(self.unlock, UnlockQuestion::Nothing)
    }

    /// Forgets words that were not written down.
    pub(crate) fn forget_words(&mut self) {
        self.new_words = None;
    }

    /// Ends the command under way, and forgets words that it shows.
    pub(crate) fn end_command(&mut self) {
        self.commands.retain(|line| !line.is_busy());
    }

    /// Ends what only one console may show: commands, and new words.
    pub(crate) fn end_private(&mut self) {
        self.commands.clear();
        self.new_words = None;
    }

    /// Ends the conversations, and forgets words that were shown.
    pub(crate) fn end(&mut self) {
        self.end_private();
        self.maker = None;
        self.note.clear();
        self.unlock = UnlockQuestion::Nothing;
    }

    /// Takes what belongs to a console that is gone from it. New words are for the next console
    /// that asks. Returns whether a command under way has ended.
    pub(crate) fn release(&mut self, gone: ConsoleId) -> bool {
        self.maker = self.maker.filter(|console| *console != gone);
        if let Some(words) = &mut self.new_words {
            words.console = words.console.filter(|console| *console != gone);
        }
        let had_command = self.has_command();
        self.commands.retain(|line| line.console != gone);
        had_command && !self.has_command()
    }

    fn command_of(&mut self, console: ConsoleId) -> Option<&mut CommandLine> {
        let mut lines = self.commands.iter_mut();
        lines.find(|line| line.console == console)
    }

    /// Whether `console` asks for what opens or makes the vault. Once a user has typed a part of
    /// what makes it, only that console asks for the rest.
    fn asks_unlock(&self, console: ConsoleId) -> bool {
        matches!(
            self.unlock,
            UnlockQuestion::Nothing | UnlockQuestion::Passphrase | UnlockQuestion::Pin
        ) || self.maker.is_none_or(|maker| maker == console)
    }

    /// The present question at a console.
    pub(crate) fn question(&self, console: ConsoleId) -> Option<ConsoleQuestion> {
        if let Some(line) = self.commands.iter().find(|line| line.console == console) {
            return line.question();
        }
        let words = self.new_words.as_ref();
        if let Some(question) = words.and_then(|words| words.question(console)) {
            return Some(question);
        }
        if !self.asks_unlock(console) {
            return None;
        }
        self.unlock_question(console)
    }

    fn unlock_question(&self, console: ConsoleId) -> Option<ConsoleQuestion> {
        let note = [self.note.as_str()]
            .into_iter()
            .filter(|note| !note.is_empty());
        Some(match &self.unlock {
            UnlockQuestion::Nothing => return None,
            UnlockQuestion::Passphrase if self.other_way => {
                ConsoleQuestion::secret("passphrase of the vault, or Enter for the PIN")
                    .with_lines(note)
            }
            UnlockQuestion::Passphrase => ConsoleQuestion::secret(
                "passphrase of the vault, or Enter where it opens by itself",
            )
            .with_lines(note),
            UnlockQuestion::Pin if self.other_way => {
                ConsoleQuestion::secret("PIN of the TPM, or Enter for the passphrase")
                    .with_lines(note)
            }
            UnlockQuestion::Pin => ConsoleQuestion::secret("PIN of the TPM").with_lines(note),
            UnlockQuestion::NewPassphraseAgain(first, _)
            | UnlockQuestion::NewPinAgain(first, _)
                if *first == console =>
            {
                ConsoleQuestion::secret("the same again")
            }
            UnlockQuestion::NewPin | UnlockQuestion::NewPinAgain(..) => {
                let notice = "This machine's vault is about to be made. The PIN is asked at every boot; \
                            the TPM counts wrong ones.";
                ConsoleQuestion::secret("new PIN of the TPM").with_lines(note.chain([notice]))
            }
            UnlockQuestion::NewPassphrase | UnlockQuestion::NewPassphraseAgain(..) => {
                let notice = "This machine's vault is about to be made. Its passphrase is asked at every boot.";
                ConsoleQuestion::secret("new passphrase").with_lines(note.chain([notice]))
            }
            UnlockQuestion::Words => {
                let notice = "The words of an earlier node bring it back here, all on one line.";
                ConsoleQuestion::shown("the words, or Enter for new ones")
                    .with_lines(note.chain([notice]))
            }
        })
    }

    /// Handles an input at a console.
    pub(crate) fn answer(&mut self, console: ConsoleId, input: ConsoleInput) -> DialogStep {
        match input {
            ConsoleInput::Begin => self.begin(console),
            ConsoleInput::Cancel => self.cancel(console),
            ConsoleInput::Look => self.show_new_words(console),
            // The machine handles it before it comes here.
            ConsoleInput::Pasted(_) => DialogStep::Next,
            ConsoleInput::Line(line) => self.line(console, &line),
        }
    }

    /// Begins a conversation about commands. A user who has forgotten what opens the vault may want
    /// to reset the machine.
    fn begin(&mut self, console: ConsoleId) -> DialogStep {
        let allows_commands = matches!(
            self.unlock,
            UnlockQuestion::Nothing | UnlockQuestion::Passphrase | UnlockQuestion::Pin
        );
        if allows_commands && self.command_of(console).is_none() {
            self.begun += 1;
            self.commands.push(CommandLine::new(console, self.begun));
        }
        DialogStep::Next
    }

    /// Shows the new words at the first console that asks for them.
    fn show_new_words(&mut self, console: ConsoleId) -> DialogStep {
        let Some(words) = &mut self.new_words else {
            return DialogStep::Next;
        };
        match *words.console.get_or_insert(console) == console {
            true => DialogStep::Next,
            false => DialogStep::Elsewhere(SHOWN_ELSEWHERE),
        }
    }

    fn cancel(&mut self, console: ConsoleId) -> DialogStep {
        // The console asks for what opens or makes the vault until it is answered.
        let Some(line) = self.command_of(console) else {
            return DialogStep::Next;
        };
        let step = match line.stage {
            // The machine cannot stop a try.
            CommandStage::Running => return DialogStep::Next,
            CommandStage::Wanting(_) => DialogStep::Drop,
            CommandStage::Menu(_) | CommandStage::Reset | CommandStage::Shown(_) => {
                DialogStep::Next
            }
        };
        self.commands.retain(|line| line.console != console);
        step
    }

    fn line(&mut self, console: ConsoleId, line: &Zeroizing<String>) -> DialogStep {
        let mut others = self.commands.iter().filter(|one| one.console != console);
        let is_free = !others.any(CommandLine::is_busy);
        if let Some(command) = self.command_of(console) {
            let step = command.answer(line, is_free);
            if matches!(
                step,
                None | Some(DialogStep::FactoryReset | DialogStep::Lock { .. })
            ) {
                self.commands.retain(|line| line.console != console);
            }
            return step.unwrap_or(DialogStep::Next);
        }
        match &mut self.new_words {
            Some(words) if words.console == Some(console) => {
                if !words.check(line) {
                    return DialogStep::Next;
                }
                self.new_words = None;
                return DialogStep::WordsKept;
            }
            // This line came before the question whether to show them.
            Some(words) if words.console.is_none() => return DialogStep::Next,
            _ => {}
        }
        if !self.asks_unlock(console) {
            return DialogStep::Next;
        }
        self.note.clear();
        let step = self.unlock_line(console, line);
        if matches!(
            step,
            DialogStep::NewPassphrase(_) | DialogStep::NewPin(_) | DialogStep::Words(_)
        ) {
            self.maker = Some(console);
        }
        step
    }

    fn unlock_line(&mut self, console: ConsoleId, line: &Zeroizing<String>) -> DialogStep {
        match std::mem::take(&mut self.unlock) {
            UnlockQuestion::Nothing => DialogStep::Next,
            UnlockQuestion::Passphrase if line.is_empty() => {
                self.unlock = match self.other_way {
                    true => UnlockQuestion::Pin,
                    false => UnlockQuestion::Passphrase,
                };
                // Enter alone: a slot that needs no input may open by now, for example by a medium that was
                // attached.
                DialogStep::Retry
            }
            UnlockQuestion::Passphrase => {
                self.unlock = UnlockQuestion::Passphrase;
                DialogStep::Passphrase(secret(line))
            }
            UnlockQuestion::Pin if line.is_empty() && self.other_way => {
                self.unlock = UnlockQuestion::Passphrase;
                DialogStep::Next
            }
            UnlockQuestion::Pin => {
                self.unlock = UnlockQuestion::Pin;
                match line.is_empty() {
                    true => DialogStep::Retry,
                    false => self.pin(line).map_or(DialogStep::Next, DialogStep::Pin),
                }
            }
            UnlockQuestion::NewPinAgain(by, first) if by == console => {
                if first.expose() == line.as_str() {
                    return DialogStep::NewPin(first);
                }
                self.differ(UnlockQuestion::NewPin)
            }
            // At another console this is the first time that it is typed.
            UnlockQuestion::NewPin | UnlockQuestion::NewPinAgain(..) => {
                self.unlock = match self.pin(line) {
                    Some(pin) => UnlockQuestion::NewPinAgain(console, pin),
                    None => UnlockQuestion::NewPin,
                };
                DialogStep::Next
            }
            UnlockQuestion::NewPassphraseAgain(by, first) if by == console => {
                if first.expose() == line.as_str() {
                    return DialogStep::NewPassphrase(first);
                }
                self.differ(UnlockQuestion::NewPassphrase)
            }
            UnlockQuestion::NewPassphrase | UnlockQuestion::NewPassphraseAgain(..) => {
                self.new_passphrase(console, line)
            }
            UnlockQuestion::Words => self.words(line),
        }
    }

    fn new_passphrase(&mut self, console: ConsoleId, line: &Zeroizing<String>) -> DialogStep {
        self.unlock = if line.is_empty() {
            self.note = "an empty passphrase protects nothing".to_owned();
            UnlockQuestion::NewPassphrase
        } else {
            UnlockQuestion::NewPassphraseAgain(console, secret(line))
        };
        DialogStep::Next
    }

    fn differ(&mut self, again: UnlockQuestion) -> DialogStep {
        self.note = "the two differ".to_owned();
        self.unlock = again;
        DialogStep::Next
    }

    /// Checks that a TPM can have this PIN. An impossible PIN costs no attempt.
    fn pin(&mut self, line: &Zeroizing<String>) -> Option<SecretStr> {
        match TpmPin::new(secret(line)) {
            Ok(_) => Some(secret(line)),
            Err(error) => {
                self.note = error.to_string();
                None
            }
        }
    }

    fn words(&mut self, line: &Zeroizing<String>) -> DialogStep {
        if line.trim().is_empty() {
            return DialogStep::Words(WordsSource::Make);
        }
        match Entropy::parse(line) {
            Ok(words) => DialogStep::Words(WordsSource::These(words)),
            Err(error) => {
                self.note = error.to_string();
                self.unlock = UnlockQuestion::Words;
                DialogStep::Next
            }
        }
    }
}

fn secret(line: &Zeroizing<String>) -> SecretStr {
    SecretStr::from(line.as_str())
}

#[cfg(test)]
mod tests;
