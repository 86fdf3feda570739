//! A simulated user at a real terminal, who writes the words down and is asked for some of them.

use std::fs::File;
use std::io::{Read, Write};
use std::thread::{self, JoinHandle};

use alknet_vault::Entropy;
use nix::pty::openpty;

use crate::workstation::AdminWorkstation;

/// Starts the user at the workstation. Returns everything that was on the screen, after the
/// terminal is closed.
pub(crate) fn sit_down(workstation: &AdminWorkstation, remembers: bool) -> JoinHandle<String> {
    let pair = openpty(None, None).expect("a terminal");
    *workstation.terminal.borrow_mut() = Some(File::from(pair.slave));
    let mut screen = File::from(pair.master);
    thread::spawn(move || {
        let mut seen = String::new();
        let mut bytes = [0; 4096];
        // If no process holds the other end of a terminal, a read fails with an error.
        while let Ok(read @ 1..) = screen.read(&mut bytes) {
            seen.push_str(&String::from_utf8_lossy(&bytes[..read]));
            let answer = if seen.ends_with("asked back. ") {
                "\n".to_owned()
            } else if let Some(number) = asked(&seen) {
                let word = word(&seen, number).filter(|_| remembers);
                format!("{}\n", word.unwrap_or_else(|| "zoo".to_owned() + "oo"))
            } else {
                continue;
            };
            screen.write_all(answer.as_bytes()).expect("a keyboard");
        }
        seen
    })
}

/// The number of the word that the end of the screen asks for.
fn asked(seen: &str) -> Option<&str> {
    seen.strip_suffix(": ")?
        .rsplit_once("Word ")
        .map(|(_, number)| number)
}

/// The word after that number on the last sheet.
fn word(seen: &str, number: &str) -> Option<String> {
    let (_, sheet) = seen.rsplit_once("shown nowhere else.")?;
    let mut words = sheet.split_whitespace();
    words.find(|word| *word == number)?;
    words.next().map(str::to_owned)
}

fn sheet(seen: &str) -> Entropy {
    let words: Vec<_> = (1..=24)
        .map(|n| word(seen, &n.to_string()).expect("on it"))
        .collect();
    Entropy::parse(&words.join(" ")).expect("words")
}

#[test]
fn words_are_shown_once_confirmed_and_cleared() {
    let workstation = AdminWorkstation::new();
    let person = sit_down(&workstation, true);
    let said = workstation
        .run("--name edge-1 --out @seed", false)
        .expect("written");
    let seen = person.join().expect("the person");
    let words = sheet(&seen);
    assert_eq!(seen.matches("shown nowhere else").count(), 1);
    assert!(seen.ends_with("\x1b[H\x1b[2J\x1b[3J"));
    assert!(!said.contains(words.phrase().expose()));
    let loaded = workstation.boot_with(&workstation.path("seed"));
    assert_eq!(loaded.secrets.words.expect("words").entropy, words);
}

#[test]
fn an_owner_who_cannot_repeat_the_words_gets_no_seed() {
    let workstation = AdminWorkstation::new();
    let person = sit_down(&workstation, false);
    let ended = workstation.run("--name edge-1 --out @seed", false);
    let ended = ended.expect_err("the words were not confirmed");
    assert_eq!((ended.code(), ended.exit()), ("ABORTED", 130));
    let seen = person.join().expect("the person");
    assert_eq!(seen.matches("shown nowhere else").count(), 5);
    assert!(seen.ends_with("\x1b[H\x1b[2J\x1b[3J"));
    assert!(!workstation.path("seed").exists());
}
