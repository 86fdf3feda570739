//! Two consoles of one machine: what is typed and shown at one is not for the other.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use alknet_test_support::deadline;
use nix::pty::openpty;
use tokio::io::AsyncReadExt;

use super::*;
use crate::console::InitConsole;
use crate::vault::CommandPrompt;

const WORDS: &str = "abandon ability able about above absent";

/// The other end of a console's terminal.
struct Terminal {
    id: ConsoleId,
    console: InitConsole,
    keyboard: File,
    screen: tokio::fs::File,
    seen: String,
}

impl Terminal {
    /// Adds a console to the machine.
    fn attach(machine: &mut InitMachine) -> Self {
        let pty = openpty(None, None).expect("a pseudo-terminal");
        let master = File::from(pty.master);
        let (id, answers) = crate::boot::listener(&machine.events);
        let console = InitConsole::new(pty.slave, answers).expect("a terminal");
        machine.own_consoles.push(MachineConsole {
            id,
            console: console.clone(),
        });
        Self {
            id,
            console,
            keyboard: master.try_clone().expect("a descriptor"),
            screen: tokio::fs::File::from_std(master),
            seen: String::new(),
        }
    }

    fn types(&mut self, keys: &str) {
        self.keyboard
            .write_all(keys.as_bytes())
            .expect("a terminal");
    }

    /// Reads until the terminal shows `wanted`.
    async fn shows(&mut self, wanted: &str) {
        let mut chunk = vec![0; 4096];
        while !self.seen.contains(wanted) {
            let limit = deadline(Duration::from_secs(20));
            let read = tokio::time::timeout(limit, self.screen.read(&mut chunk)).await;
            let read = read.unwrap_or_else(|_| panic!("no {wanted:?} in {:?}", self.seen));
            let read = read.expect("the console lives");
            self.seen.push_str(&String::from_utf8_lossy(&chunk[..read]));
        }
    }

    /// Everything that it has shown until now: a line comes behind all that was asked before.
    async fn everything(&mut self) -> &str {
        self.console.say("alknet: the end of this test");
        self.shows("the end of this test").await;
        &self.seen
    }
}

fn line(text: &str) -> ConsoleInput {
    ConsoleInput::Line(Zeroizing::new(text.to_owned()))
}

/// A machine with two consoles, the second of which is live.
async fn two_consoles() -> (
    InitMachine,
    mpsc::Receiver<MachineEvent>,
    Terminal,
    Terminal,
) {
    let (events, arriving) = mpsc::channel(EVENTS_MAX);
    let mut machine = InitMachine {
        events,
        ..machine()
    };
    // The test must not change the settings of the host.
    machine.life = 1;
    let owner = Terminal::attach(&mut machine);
    let mut other = Terminal::attach(&mut machine);
    other.types(" ");
    other.shows("q leave").await;
    (machine, arriving, owner, other)
}

/// Types a command at a console. Its try, which a thread makes, gives `outcome`.
fn command(machine: &mut InitMachine, at: ConsoleId, text: &str, outcome: CommandOutcome) {
    machine.asking.answer(at, ConsoleInput::Begin);
    machine.asking.answer(at, line(text));
    tried(machine, text, outcome);
}

fn tried(machine: &mut InitMachine, text: &str, outcome: CommandOutcome) {
    machine.asking.try_begins();
    let command = VaultCommand::parse(text).expect("a command");
    machine.commanded(CommandSession::new(command), outcome, 0);
}

/// A person at one console makes it live and goes, and sees later what the owner asks for at another.
#[tokio::test]
async fn words_that_the_owner_asks_for_are_shown_at_no_other_console() {
    let (mut machine, _arriving, mut owner, mut other) = two_consoles().await;
    owner.types(" ");
    owner.shows("q leave").await;
    let words = CommandOutcome::Words(SecretStr::from(WORDS));
    command(&mut machine, owner.id, "words show", words);
    owner.shows("ability").await;
    // An empty line would wipe them.
    machine.answered(other.id, line(""), 0);
    machine.answered(other.id, ConsoleInput::Cancel, 0);
    assert!(machine.timers.session.is_some());
    let seen = other.everything().await;
    assert!(!seen.contains("ability"), "{seen}");
    machine.answered(owner.id, line(""), 0);
    assert!(machine.asking.question(owner.id).is_none());
    assert_eq!(machine.timers.session, None);
}

/// A keyboard that types by itself waits until the owner has given a proof at another console.
#[tokio::test]
async fn what_is_typed_at_another_console_answers_no_prompt_behind_a_proof() {
    for text in ["slot add passphrase", "slot set", "rekey"] {
        let (mut machine, _arriving, owner, mut other) = two_consoles().await;
        let wants = |prompt| CommandOutcome::Wants(prompt, String::new());
        command(
            &mut machine,
            owner.id,
            text,
            wants(CommandPrompt::NewPassphrase),
        );
        for _ in 0..2 {
            machine.answered(other.id, line("x"), 0);
        }
        assert!(machine.session.is_some(), "{text}: the other answered it");
        assert!(machine.asking.question(owner.id).is_some());
        // A command there neither takes the proof nor ends what it is for.
        machine.answered(other.id, ConsoleInput::Begin, 0);
        machine.answered(other.id, line(text), 0);
        assert!(machine.session.is_some(), "{text}: the other ended it");
        other.shows("in use at another console").await;
        let seen = other.everything().await;
        assert!(!seen.contains("new passphrase"), "{text}: {seen}");
    }
}

#[tokio::test]
async fn new_words_are_shown_where_a_key_was_pressed_for_them() {
    let (mut machine, mut arriving, mut owner, mut other) = two_consoles().await;
    machine.asking.show(SecretStr::from(WORDS), vec![2]);
    machine.vault_changed();
    other.shows("Enter shows them here").await;
    owner.types("\r");
    handle(&mut machine, &mut arriving, 1).await;
    owner.shows("ability").await;
    machine.answered(other.id, ConsoleInput::Look, 0);
    machine.answered(other.id, line("ability"), 0);
    assert!(machine.asking.question(owner.id).is_some());
    other.shows("are shown at another console").await;
    let seen = other.everything().await;
    assert!(!seen.contains("ability"), "{seen}");
}

#[tokio::test]
async fn a_caller_who_hangs_up_leaves_new_words_to_the_next_who_asks() {
    let (mut machine, mut arriving, owner, _other) = two_consoles().await;
    let (caller, theirs) = UnixStream::pair().expect("a pair of sockets");
    machine.called(OwnedFd::from(theirs));
    let id = machine.callers[0].id;
    machine.asking.show(SecretStr::from(WORDS), vec![2]);
    machine.answered(id, ConsoleInput::Look, 0);
    assert!(machine.asking.question(id).is_some());
    assert!(machine.asking.question(owner.id).is_none());
    drop(caller);
    handle(&mut machine, &mut arriving, 1).await;
    assert!(machine.callers.is_empty());
    assert!(
        machine.asking.question(owner.id).is_some(),
        "they are offered"
    );
}

/// A screen keeps its picture through a restart.
#[tokio::test]
async fn words_do_not_stay_on_a_console_of_a_vault_that_is_locked() {
    let (mut machine, _arriving, mut owner, _other) = two_consoles().await;
    owner.types(" ");
    owner.shows("q leave").await;
    let words = CommandOutcome::Words(SecretStr::from(WORDS));
    command(&mut machine, owner.id, "words show", words);
    owner.shows("ability").await;
    owner.seen.clear();
    machine.lock(false, "an administrator", 0);
    owner.shows("\u{1b}[3J").await;
}
