//! A person at a terminal is asked, asked again, made to wait and shown words once.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use alknet_test_support::eventually;
use alknet_vault::{SecretBytes, SecretStr};
use alknet_vault_cli::{OfflineVaultVerb, SecretPrompt, VaultCliError, run};
use clap::Parser;
use nix::pty::openpty;
use nix::sys::signal::Signal;
use nix::sys::termios::{LocalFlags, Termios, tcgetattr};

use crate::shell::{CHEAP, CommandFolder, WORDS};

#[derive(Parser)]
struct TypedCommandLine {
    #[command(subcommand)]
    verb: OfflineVaultVerb,
}

/// A person who types, and what they saw.
#[derive(Default)]
struct ScriptedTypist {
    types: VecDeque<String>,
    prompts: Vec<String>,
    notices: Vec<String>,
    waited: Vec<Duration>,
    /// Reads the words from what was shown, as on paper.
    confirms: Option<usize>,
    paper: Vec<String>,
}

impl ScriptedTypist {
    fn typing(lines: &[&str]) -> Self {
        let types = lines.iter().map(|line| (*line).to_owned()).collect();
        Self {
            types,
            ..Self::default()
        }
    }
}

impl SecretPrompt for ScriptedTypist {
    fn use_stdin(&mut self) {}

    fn is_person(&self) -> bool {
        true
    }

    fn secret(&mut self, what: &str) -> Result<SecretStr, VaultCliError> {
        self.prompts.push(what.to_owned());
        let position = what
            .strip_prefix("word ")
            .and_then(|number| number.parse::<usize>().ok());
        if let (Some(position), Some(_)) = (position, self.confirms) {
            return Ok(SecretStr::from(self.paper[position - 1].as_str()));
        }
        let typed = self.types.pop_front();
        typed
            .map(SecretStr::from_string)
            .ok_or_else(|| VaultCliError::Usage("nothing more".to_owned()))
    }

    fn line(&mut self, what: &str) -> Result<String, VaultCliError> {
        Ok(self.secret(what)?.expose().to_owned())
    }

    fn rest(&mut self, _: usize) -> Result<SecretBytes, VaultCliError> {
        Ok(SecretBytes::copy_of(b""))
    }

    fn tell(&mut self, what: &str) {
        self.notices.push(what.to_owned());
    }

    fn pause(&mut self, time: Duration) {
        self.waited.push(time);
    }
}

fn types(
    shell: &CommandFolder,
    line: &str,
    person: &mut ScriptedTypist,
) -> (Result<(), VaultCliError>, String) {
    let dir = shell.path("vault").to_string_lossy().into_owned();
    let words = ["vault"]
        .into_iter()
        .chain(line.split(' '))
        .chain(["--dir", &dir]);
    let arguments = TypedCommandLine::try_parse_from(words).expect("a line that can be read");
    let mut out = Vec::new();
    let ended = run(arguments.verb, false, &mut out, person);
    (ended, String::from_utf8(out).expect("text"))
}

#[test]
fn six_wrong_passphrases_take_longer_and_longer_and_the_right_one_still_opens() {
    let shell = CommandFolder::new();
    shell.with_vault();
    let mut lines = vec!["wrong"; 6];
    lines.push("right");
    let mut person = ScriptedTypist::typing(&lines);
    let (ended, _) = types(&shell, "key show ssh-host", &mut person);
    ended.expect("the seventh is right");
    assert_eq!(person.prompts.len(), 7);
    let seconds: Vec<_> = person
        .waited
        .iter()
        .map(|wait| wait.as_secs_f64().ceil())
        .collect();
    assert_eq!(seconds, [1.0, 2.0], "after the fifth and the sixth");
    let log = shell.good("audit show --dir vault", "");
    assert_eq!(log.matches("unlock_failed").count(), 6, "{log}");
    assert!(log.contains("unlocked"));
    // The command ends after so many wrong passphrases.
    let mut person = ScriptedTypist::typing(&["wrong"; 20]);
    let (ended, _) = types(&shell, "key show ssh-host", &mut person);
    assert!(matches!(ended, Err(VaultCliError::WrongPassphrase)));
    assert_eq!(person.prompts.len(), 10);
}

/// The words as they are shown, in their order.
fn shown(out: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut words = out.split_whitespace();
    while let Some(word) = words.next() {
        if word.parse::<usize>() == Ok(found.len() + 1) {
            found.extend(words.next().map(str::to_owned));
        }
    }
    found
}

#[test]
fn new_words_are_confirmed_before_there_is_a_vault() {
    let shell = CommandFolder::new();
    let init = format!("init {CHEAP}");
    // Passphrases that differ are asked again; then the words are not on paper.
    let mut person = ScriptedTypist::typing(&["", "one", "two", "one", "one", "x", "y", "z"]);
    let (ended, out) = types(&shell, &init, &mut person);
    assert!(matches!(ended, Err(VaultCliError::Denied(_))), "{ended:?}");
    assert_eq!(shown(&out).len(), 24, "{out}");
    assert!(!shell.path("vault/vault.a").exists());
    assert!(!out.contains("\x1b["));
}

/// A person who has what the program shows: it shares the buffer that the program writes to.
struct ScreenReadingTypist<'a> {
    person: ScriptedTypist,
    screen: &'a std::cell::RefCell<Vec<u8>>,
}

impl SecretPrompt for ScreenReadingTypist<'_> {
    fn use_stdin(&mut self) {}

    fn is_person(&self) -> bool {
        true
    }

    fn secret(&mut self, what: &str) -> Result<SecretStr, VaultCliError> {
        if what.starts_with("word ") {
            let text = String::from_utf8(self.screen.borrow().clone()).expect("text");
            self.person.paper = shown(&text);
            self.person.confirms = Some(3);
        }
        self.person.secret(what)
    }

    fn line(&mut self, what: &str) -> Result<String, VaultCliError> {
        self.person.line(what)
    }

    fn rest(&mut self, most: usize) -> Result<SecretBytes, VaultCliError> {
        self.person.rest(most)
    }

    fn tell(&mut self, what: &str) {
        self.person.tell(what);
    }

    fn pause(&mut self, time: Duration) {
        self.person.pause(time);
    }
}

struct SharedScreen<'a>(&'a std::cell::RefCell<Vec<u8>>);

impl std::io::Write for SharedScreen<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.borrow_mut().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn three_of_the_words_are_asked_and_the_screen_is_cleared() {
    let shell = CommandFolder::new();
    let dir = shell.path("vault").to_string_lossy().into_owned();
    let line = format!("vault init {CHEAP} --dir {dir}");
    let arguments = TypedCommandLine::try_parse_from(line.split(' ')).expect("a line");
    let screen = std::cell::RefCell::default();
    let mut paper = ScreenReadingTypist {
        person: ScriptedTypist::typing(&["one", "one"]),
        screen: &screen,
    };
    run(
        arguments.verb,
        false,
        &mut SharedScreen(&screen),
        &mut paper,
    )
    .expect("made");
    let words = paper
        .person
        .prompts
        .iter()
        .filter(|what| what.starts_with("word "));
    assert_eq!(words.count(), 3);
    assert!(
        paper
            .person
            .notices
            .iter()
            .any(|text| text.contains("\x1b[3J"))
    );
    // What was shown makes the same node.
    let phrase = paper.person.paper.join(" ");
    let node = shell.good("key show node-identity --mnemonic-stdin", &phrase);
    let text = String::from_utf8(screen.into_inner()).expect("text");
    assert!(text.contains(node.trim()), "{text}");
}

#[test]
fn a_typed_word_may_be_corrected() {
    let shell = CommandFolder::new();
    let wrong = WORDS.replace("about", "abuot");
    let mut person = ScriptedTypist::typing(&[&wrong, WORDS]);
    let (ended, _) = types(&shell, "import --slot none", &mut person);
    ended.expect("made");
    assert!(
        person
            .notices
            .iter()
            .any(|text| text.contains("word 12") && text.contains("about"))
    );
}

/// Reads from a terminal until `end` was seen.
fn until(terminal: &mut File, end: &str) -> String {
    let mut seen = Vec::new();
    let mut byte = [0];
    while !String::from_utf8_lossy(&seen).contains(end) {
        match terminal.read(&mut byte) {
            Ok(1) => seen.push(byte[0]),
            _ => break,
        }
    }
    String::from_utf8_lossy(&seen).into_owned()
}

/// Waits until a terminal does not show what is typed.
fn quiet(terminal: &OwnedFd) {
    let limit = Duration::from_secs(60);
    eventually("the terminal hides what is typed", limit, || {
        let now = tcgetattr(terminal).expect("a terminal");
        !now.local_flags.contains(LocalFlags::ECHO)
    });
}

/// The command at a terminal of its own, where it asks for the passphrase.
struct PassphrasePrompt {
    child: Child,
    keyboard: File,
    terminal: OwnedFd,
    /// How the terminal was before.
    before: Termios,
    seen: String,
}

fn asked(shell: &CommandFolder) -> PassphrasePrompt {
    let pty = openpty(None, None).expect("a terminal");
    let before = tcgetattr(&pty.slave).expect("a terminal");
    let side = || Stdio::from(pty.slave.try_clone().expect("a descriptor"));
    let child = Command::new(env!("CARGO_BIN_EXE_alknet-vault-tool"))
        .args(["key", "show", "node-identity", "--dir", "vault"])
        .current_dir(shell.path(""))
        .stdin(side())
        .stderr(side())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut keyboard = File::from(pty.master);
    let seen = until(&mut keyboard, "passphrase: ");
    quiet(&pty.slave);
    PassphrasePrompt {
        child,
        keyboard,
        terminal: pty.slave,
        before,
        seen,
    }
}

#[test]
fn a_terminal_does_not_show_what_is_typed() {
    let shell = CommandFolder::new();
    shell.with_vault();
    let PassphrasePrompt {
        child,
        mut keyboard,
        terminal,
        mut seen,
        ..
    } = asked(&shell);
    keyboard.write_all(b"wrong\n").expect("typed");
    seen += &until(&mut keyboard, "wrong passphrase");
    seen += &until(&mut keyboard, "passphrase: ");
    quiet(&terminal);
    keyboard.write_all(b"right\n").expect("typed");
    drop(terminal);
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success());
    assert_eq!(output.stdout.len(), 65);
    seen += &until(&mut keyboard, "nothing more");
    assert!(
        !seen.contains("right") && !seen.contains("wrong\r"),
        "{seen:?}"
    );
}

#[test]
fn ctrl_c_at_a_hidden_question_leaves_the_terminal_as_it_was() {
    let shell = CommandFolder::new();
    shell.with_vault();
    let mut asked = asked(&shell);
    asked.keyboard.write_all(b"righ\x03").expect("typed");
    let ended = asked.child.wait().expect("it ends");
    // Where the tests run with the signal ignored, the command ignores it too, and counts the
    // question as not answered.
    let ended_so = ended.signal() == Some(Signal::SIGINT as i32) || ended.code() == Some(4);
    assert!(ended_so, "{ended:?}");
    let after = tcgetattr(&asked.terminal).expect("a terminal");
    assert_eq!(after.local_flags, asked.before.local_flags);
    assert_eq!(after.control_chars, asked.before.control_chars);
}
