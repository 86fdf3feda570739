//! The machine's consoles: what each of them asks, and what is answered at which.

use std::os::fd::OwnedFd;

use super::InitMachine;
use crate::{
    boot,
    console::{ConsoleId, ConsoleInput, InitConsole},
    vault::DialogStep,
};

/// How many vsock consoles there may be at once.
const CALLERS_MAX: usize = 4;

/// A console, and the id that its inputs have.
#[derive(Debug)]
pub(crate) struct MachineConsole {
    pub(crate) id: ConsoleId,
    pub(crate) console: InitConsole,
}

impl InitMachine {
    fn all_consoles(&self) -> impl Iterator<Item = &MachineConsole> {
        self.own_consoles.iter().chain(&self.callers)
    }

    /// The machine's own consoles and those of callers at the vsock.
    pub(super) fn consoles(&self) -> impl Iterator<Item = &InitConsole> {
        self.all_consoles().map(|one| &one.console)
    }

    /// Sets the question of each console.
    pub(super) fn ask_consoles(&self) {
        let busy = self.opening || self.working;
        for MachineConsole { id, console } in self.all_consoles() {
            // While an attempt runs, an answer would go to a question that may be over.
            console.ask(self.asking.question(*id).filter(|_| !busy));
        }
    }

    /// Ends what belonged to the console of a caller who hung up. It comes after the last input there.
    pub(super) fn console_gone(&mut self, gone: ConsoleId) {
        self.callers.retain(|one| one.id != gone);
        if self.asking.release(gone) {
            self.drop_command();
        }
        self.ask_again();
        self.vault_changed();
    }

    /// Gives a console to the owner of the hypervisor.
    pub(super) fn called(&mut self, fd: OwnedFd) {
        // The event of a hang-up may still be on its way.
        self.callers.retain(|one| one.console.is_open());
        if self.callers.len() >= CALLERS_MAX {
            self.log
                .warn("more callers at the vsock than there are places");
            return;
        }
        let (id, answers) = boot::listener(&self.events);
        match InitConsole::new(fd, answers) {
            Ok(console) => {
                console.update(self.facts.snapshot(), self.status.clone());
                self.callers.push(MachineConsole { id, console });
                self.ask_consoles();
            }
            Err(error) => self
                .log
                .warn(format_args!("a caller at the vsock: {error}")),
        }
    }

    /// Handles an input of the user at a console.
    pub(super) fn answered(&mut self, console: ConsoleId, input: ConsoleInput, now: u64) {
        if let ConsoleInput::Pasted(line) = input {
            return self.paste(&line);
        }
        match self.asking.answer(console, input) {
            DialogStep::Drop => self.drop_command(),
            DialogStep::Elsewhere(text) => self.say_at(console, text),
            DialogStep::Given(given) => self.given(given),
            DialogStep::Run(command) => self.command(command),
            DialogStep::FactoryReset => self.factory_reset(now),
            DialogStep::Lock { hard } => self.lock(hard, "a person at the console", now),
            DialogStep::Next => {}
            DialogStep::Retry => self.open(),
            DialogStep::NewPassphrase(passphrase) => {
                self.offer.new_passphrase = Some(passphrase);
                self.open_with_typed(now);
            }
            DialogStep::Passphrase(passphrase) => {
                self.offer.passphrase = Some(passphrase);
                self.open_with_secret();
            }
            DialogStep::NewPin(pin) => {
                self.offer.new_pin = Some(pin);
                self.open_with_typed(now);
            }
            DialogStep::Pin(pin) => {
                self.offer.pin = Some(pin);
                self.open_with_secret();
            }
            DialogStep::Words(words) => {
                self.offer.words = Some(words);
                self.open_with_typed(now);
            }
            DialogStep::WordsKept => {
                self.timers.words = None;
                self.note_words_kept();
            }
        }
        self.ask_again();
        self.vault_changed();
    }

    fn say_at(&self, id: ConsoleId, text: &str) {
        let mut all = self.all_consoles();
        if let Some(one) = all.find(|one| one.id == id) {
            one.console.say(format!("alknet: {text}"));
        }
    }
}
