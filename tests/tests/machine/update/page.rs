//! The commands of docs/update.md, for an administrator whose nodes have the names of the page.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use alknet_qemu::Vm;
use alknet_test_support::limited;
use alknet_tests::{TestBench, binary};

use super::LIMIT;
use crate::forms::shell_blocks;

/// The verbs below `alknet update`, which start no version.
const VERBS: [&str; 4] = ["cancel", "confirm", "log", "status"];
/// Options of `alknet update` with which it starts no version.
const STARTS_NOTHING: [&str; 2] = ["--dry-run", "--stage"];
/// Longest run of one block.
const BLOCK_WITHIN: Duration = Duration::from_secs(600);

/// The first line of each block of a page for a shell.
pub(super) fn first_lines(page: &'static str) -> Vec<&'static str> {
    let blocks = shell_blocks(page).into_iter();
    blocks.filter_map(|block| block.lines().next()).collect()
}

/// The computer of a bench's administrator, who follows a page.
pub(super) struct UpdatePageReader {
    page: &'static str,
    home: PathBuf,
    /// Each text of the page with what the administrator writes in its place.
    values: Vec<(&'static str, String)>,
}

impl UpdatePageReader {
    /// The bundle of the page is this file.
    pub(super) fn new(bench: &TestBench, page: &'static str, bundle: &Path) -> Self {
        let home = bench.path().join("reader");
        fs::create_dir(&home).expect("the folder is ours");
        // Where the command line looks for its keys without being asked to look elsewhere.
        let state = home.join("alknet");
        let linked = symlink(bench.admin().state(), state)
            .and_then(|()| symlink(bundle, home.join("bundle.tar")));
        linked.expect("the folder is ours");
        Self {
            page,
            home,
            values: Vec::new(),
        }
    }

    /// Writes `value` wherever the page has `written`.
    pub(super) fn put(&mut self, written: &'static str, value: String) {
        self.values.push((written, value));
    }

    /// Gives a node a name of the page.
    pub(super) fn add_node(&self, name: &str, target: &str) {
        self.prepare(&format!("alknet node add {name} {target}"));
    }

    /// Runs a command of another page, which this one needs, or a form of a command that the page only describes. Returns
    /// what it printed.
    pub(super) fn prepare(&self, command: &str) -> String {
        let (done, said) = self.run(command);
        assert!(done, "{command}: {said}");
        said
    }

    /// Runs the block of the page whose first line begins with `begin`, agrees where a command asks, and returns what the
    /// commands printed.
    #[track_caller]
    pub(super) fn follow(&self, begin: &str, vm: &Vm) -> String {
        let blocks = shell_blocks(self.page);
        let block = blocks.into_iter().find(|block| block.starts_with(begin));
        let block = block.unwrap_or_else(|| panic!("the page has no commands {begin:?}"));
        let commands: Vec<_> = block.lines().map(agreed).collect();
        let commands = self
            .values
            .iter()
            .fold(commands.join("\n"), |commands, (written, value)| {
                commands.replace(written, value)
            });
        let (done, said) = self.run(&commands);
        assert!(done, "{commands}\nsaid {said}\n{}", vm.report());
        said
    }

    /// Whether all of these commands succeeded, and what they printed.
    fn run(&self, commands: &str) -> (bool, String) {
        let log = self.home.join("said.log");
        let output = File::create(&log).expect("the folder is ours");
        let errors = output.try_clone().expect("an open file");
        let program = binary();
        let commands = format!("alknet() {{ '{}' \"$@\"; }}\n{commands}", program.display());
        let mut shell = limited(BLOCK_WITHIN, "bash");
        shell
            .args(["-euo", "pipefail", "-c", &commands])
            .env("HOME", &self.home)
            .env("XDG_STATE_HOME", &self.home)
            .current_dir(&self.home)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors);
        let status = shell.status().expect("every system has bash");
        let said = fs::read_to_string(&log).expect("just written");
        (status.success(), said)
    }
}

/// A line of a block, without its comment. Without a terminal, a command that asks needs a word for it, and a slow machine
/// more time.
fn agreed(line: &str) -> String {
    let command = line.split(" # ").next().unwrap_or_default().trim_end();
    let words: Vec<_> = command.split_whitespace().collect();
    let asks = match words[..] {
        ["alknet", "rollback", ..] => true,
        ["alknet", "update", first, ..] => {
            !VERBS.contains(&first) && !words.iter().any(|word| STARTS_NOTHING.contains(word))
        }
        _ => false,
    };
    match asks {
        true => format!("{command} --yes --limit {LIMIT}"),
        false => command.to_owned(),
    }
}

#[test]
fn update_page_is_followed_with_a_word_where_a_command_asks() {
    let said = format!("--yes --limit {LIMIT}");
    for (line, expected) in [
        (
            "alknet update a b.tar   # c",
            format!("alknet update a b.tar {said}"),
        ),
        ("alknet rollback a", format!("alknet rollback a {said}")),
        (
            "alknet update a b.tar --dry-run",
            "alknet update a b.tar --dry-run".to_owned(),
        ),
        (
            "alknet update status a  # c",
            "alknet update status a".to_owned(),
        ),
    ] {
        assert_eq!(agreed(line), expected);
    }
}
