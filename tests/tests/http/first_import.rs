//! Follows docs/imports-first.md from beginning to end: writes its files, runs its commands, and
//! compares their output with the page.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use alknet_test_support::ReservedPort;
use alknet_tests::tools::variable;
use alknet_tests::{TestBench, binary, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const PAGE: &str = include_str!("../../../docs/imports-first.md");

/// The end of a command that continues while the next ones run.
const OWN_TERMINAL: &str = "# in a terminal of its own";
/// The text before the exit code of a command that does not end with 0.
const EXIT_CODE: &str = "# exit code ";
/// Ports on the page, which the test replaces by free ones: of the node, of the API and of the
/// tools.
const PORTS: [&str; 3] = ["4433", "8787", "8788"];
/// Commands of the page, by how they are run.
const COMMANDS: (usize, usize) = (15, 4);

/// A block of the page, between fences.
struct PageBlock {
    /// `sh`, or the language of a file and its name.
    info: &'static str,
    body: String,
}

/// A folder in which a reader follows the page.
struct FirstImportReader {
    bench: TestBench,
    /// The node, and the other servers.
    running: Vec<(bool, Child)>,
}

/// The blocks of the page, with these numbers instead of its ports.
fn blocks(ports: [u16; 3]) -> Vec<PageBlock> {
    let mut blocks = Vec::new();
    let mut parts = PAGE.split("\n```");
    parts.next();
    // Splitting gives each block a part, and the text after it another.
    while let Some(block) = parts.next() {
        let (info, body) = block.split_once('\n').unwrap_or((block, ""));
        let mut body = format!("{body}\n");
        for (port, number) in PORTS.iter().zip(ports) {
            body = body.replace(port, &number.to_string());
        }
        blocks.push(PageBlock { info, body });
        parts.next();
    }
    blocks
}

/// Whether a line matches the page's, where `…` matches anything.
fn fits(expected: &str, line: &str) -> bool {
    let mut parts: Vec<&str> = expected.split('…').collect();
    let last = parts.pop().unwrap_or_default();
    let Some((first, between)) = parts.split_first() else {
        return line == last;
    };
    let Some(mut rest) = line.strip_prefix(first) else {
        return false;
    };
    for part in between {
        match rest.split_once(part) {
            Some((_, behind)) => rest = behind,
            None => return false,
        }
    }
    rest.ends_with(last)
}

/// Whether the lines of `expected` are among those of `said`, in this order.
fn says(said: &str, expected: &str) -> bool {
    let mut lines = said.lines().map(str::trim_end);
    let mut wanted = expected.lines();
    wanted.all(|line| lines.any(|it| fits(line, it)))
}

impl FirstImportReader {
    fn new() -> Self {
        let bench = TestBench::new();
        for folder in ["bin", "home", "work"] {
            fs::create_dir(bench.path().join(folder)).expect("the folder is ours");
        }
        symlink(binary(), bench.path().join("bin/alknet")).expect("the folder is ours");
        Self {
            bench,
            running: Vec::new(),
        }
    }

    fn work(&self) -> PathBuf {
        self.bench.path().join("work")
    }

    /// A shell with these commands, as on a computer without any set-up of alknet.
    fn shell(&self, commands: &str) -> Command {
        let path = std::env::var("PATH").unwrap_or_default();
        let bin = self.bench.path().join("bin");
        let mut shell = Command::new("sh");
        shell
            .args(["-e", "-c", commands])
            .current_dir(self.work())
            .env("PATH", format!("{}:{path}", bin.display()))
            .env("HOME", self.bench.path().join("home"))
            .env("PYTHONPATH", variable("ALKNET_TEST_MCP_PYTHON"))
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env_remove("XDG_STATE_HOME")
            .stdin(Stdio::null());
        shell
    }

    /// Writes a file of the page, or appends to it.
    fn save(&self, name: &str, body: &str) {
        let mut options = OpenOptions::new();
        let file = options.create(true).append(true);
        let file = file.open(self.work().join(name));
        let written = file.and_then(|mut file| file.write_all(body.as_bytes()));
        written.unwrap_or_else(|error| panic!("{name}: {error}"));
    }

    /// Starts a command that continues. A second node replaces the first one, which ends as by
    /// Ctrl-C.
    fn start(&mut self, command: &str) {
        let is_node = command.starts_with("alknet serve");
        if is_node {
            let all = self.running.drain(..);
            let (nodes, others): (Vec<_>, Vec<_>) = all.partition(|(is_node, _)| *is_node);
            self.running = others;
            for (_, mut node) in nodes {
                let pid = Pid::from_raw(node.id().cast_signed());
                kill(pid, Signal::SIGINT).expect("it runs");
                let ended = node.wait().expect("it is our child");
                assert!(ended.success(), "{ended:?}");
            }
        }
        // The program replaces the shell, so that a signal reaches it.
        let mut shell = self.shell(&format!("exec {command}"));
        let child = shell.stdout(Stdio::null()).spawn();
        self.running
            .push((is_node, child.expect("there is a shell")));
    }

    /// Runs commands until they print the page's output, because a server of the page may not serve
    /// yet.
    fn run(&self, commands: &str, expected: &str) {
        let code = commands.split_once(EXIT_CODE).map(|(_, rest)| rest);
        let code = code.and_then(|rest| rest.split(':').next());
        let code = code.map_or(0, |code| code.trim().parse().expect("a number"));
        eventually(commands, || {
            let output = self.shell(commands).output().expect("there is a shell");
            let said = [output.stdout, output.stderr].concat();
            let said = String::from_utf8_lossy(&said);
            let is_right = output.status.code() == Some(code) && says(&said, expected);
            if !is_right {
                println!("{commands}{:?}: {said}", output.status);
            }
            is_right.then_some(())
        });
    }
}

impl Drop for FirstImportReader {
    fn drop(&mut self) {
        for (_, child) in &mut self.running {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[test]
fn every_command_of_the_page_does_what_the_page_says() {
    let reserved = ReservedPort::claim_all::<3>();
    let ports = reserved.each_ref().map(ReservedPort::number);
    let blocks = blocks(ports);
    let mut reader = FirstImportReader::new();
    let (mut run, mut started) = (0, 0);
    for (at, block) in blocks.iter().enumerate() {
        match (block.info, block.info.split_once(' ')) {
            ("sh", _) => match block.body.split_once(OWN_TERMINAL) {
                Some((command, rest)) => {
                    assert_eq!(rest.trim(), "", "one command in a terminal of its own");
                    reader.start(command.trim());
                    started += 1;
                }
                None => {
                    let next = blocks.get(at + 1).filter(|next| next.info == "text");
                    reader.run(&block.body, next.map_or("", |next| &next.body));
                    run += 1;
                }
            },
            // It was compared with the output of the commands before it.
            ("text", _) => {}
            (_, Some((_, name))) => reader.save(name, &block.body),
            (info, None) => panic!("a block {info:?} that is neither run nor saved"),
        }
    }
    assert_eq!((run, started), COMMANDS);
}

#[test]
fn lines_of_the_page_are_found_with_what_it_leaves_out() {
    for (expected, line, is_same) in [
        ("ok", "ok", true),
        ("ok", "not ok", false),
        ("set … by …", "set 1 by 2", true),
        ("set … by …", "set 1", false),
        ("…{\"a\":1}…", "x{\"a\":1}", true),
        ("…end", "the end.", false),
    ] {
        assert_eq!(fits(expected, line), is_same, "{expected}: {line}");
    }
    assert!(says("a\nb\nc", "a\nc") && says("a", ""));
    assert!(!says("c\na", "a\nc"));
}
