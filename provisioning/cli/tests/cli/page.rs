//! The commands in docs/provisioning.md work as it says, in the order of the page and in one folder. A user at a
//! terminal writes down the words that a command makes.

use std::fs;

use crate::person::sit_down;
use crate::workstation::{AdminWorkstation, tool};

/// Options whose value is a path.
const PATHS: [&str; 4] = ["--config", "--out", "--words-file", "--words-out"];

/// How the page begins a command of this program.
const VERB: &str = "alknet provision ";

const RECIPIENT: &str = "age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj";

/// What the terminal shows above new words.
const SHEET: &str = "shown nowhere else";

/// What each command of `alknet provision` writes, in the order of the page. A name without an ending is a folder.
const WRITTEN: [&str; 9] = [
    "seed.iso",
    "seed.img",
    "boot",
    "qemu",
    "strings",
    "",
    "far-away.iso",
    "",
    "second.iso",
];

/// The lines of all blocks of the page whose commands a test runs, without their comments.
fn commands(page: &str) -> Vec<&str> {
    let blocks = page.split("```sh\n").skip(1);
    let blocks = blocks.filter_map(|rest| rest.split("```").next());
    let lines = blocks.flat_map(str::lines);
    let lines = lines.filter_map(|line| line.split(" #").next());
    lines.map(str::trim).collect()
}

/// A command line with the paths in the workstation's folder.
fn in_folder(command: &str) -> String {
    let mut before = "";
    let words = command.split_whitespace().map(|word| {
        let is_path = PATHS.contains(&before);
        before = word;
        match is_path {
            true => format!("@{word}"),
            false => word.to_owned(),
        }
    });
    words.collect::<Vec<_>>().join(" ")
}

/// Runs a command of the page, which writes `name` unless it is empty. Returns whether the user was shown new words.
fn provision(workstation: &AdminWorkstation, options: &str, name: &str) -> bool {
    let line = in_folder(&options.replace("age1…", RECIPIENT));
    let person = sit_down(workstation, true);
    let ended = workstation.run(&line, false);
    assert!(ended.is_ok(), "{options}: {ended:?}");
    // A command that makes no words leaves the terminal alone, and the user leaves, too.
    drop(workstation.terminal.take());
    let screen = person.join().expect("the user");
    assert_eq!(line.contains("--out"), !name.is_empty(), "{options}");
    assert!(workstation.path(name).exists(), "{options}");
    screen.contains(SHEET)
}

#[test]
fn the_commands_of_the_page_work() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/provisioning.md");
    let page = fs::read_to_string(page).expect("the page exists");
    let workstation = AdminWorkstation::new();
    fs::write(workstation.path("node.toml"), "[node]\nname = \"edge-1\"\n").expect("writable");
    let commands = commands(&page);
    let is_ours = |line: &&&str| line.starts_with(VERB);
    let ours = commands.iter().filter(is_ours).count();
    assert_eq!(ours, WRITTEN.len(), "{commands:?}");
    let mut written = WRITTEN.into_iter();
    let mut sheets = 0;
    for command in commands {
        match command.strip_prefix(VERB) {
            Some(options) => {
                let name = written.next().expect("as many as the page has");
                sheets += usize::from(provision(&workstation, options, name));
            }
            None => {
                let folder = workstation.dir.path().display();
                let here = format!("cd '{folder}' && {command}");
                tool("bash", &["-euo", "pipefail", "-c", &here]);
            }
        }
    }
    assert_eq!(sheets, 4, "commands without words of their own");
    for made in ["seed.iso", "seed.img"] {
        let loaded = workstation.boot_with(&workstation.path(made));
        // Other tools have written over these volumes, with the document alone.
        assert_eq!(loaded.config.node.name.as_deref(), Some("edge-1"), "{made}");
        assert!(loaded.secrets.words.is_none(), "{made}");
    }
    let document = fs::read_to_string(workstation.path("boot/alknet.toml"));
    assert!(document.expect("it was written").contains("edge-1"));
}
