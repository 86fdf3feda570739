//! docs/start.md and the quick start of README.md, as a reader follows them: every command in
//! order, each in a shell in the reader's folder, and each with the output below it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use alknet_test_support::{ReservedPort, eventually, limited, skip};
use alknet_tests::{TestBench, binary};

/// The tutorial.
const START: &str = include_str!("../../../docs/start.md");

/// The page that has the quick start.
const README: &str = include_str!("../../../README.md");

/// The heading of the quick start.
const QUICK_START: &str = "## A node in ten seconds\n";

/// The ports on the pages. Each run uses free ones instead.
const PAGE_PORTS: [u16; 4] = [4433, 4434, 4435, 4436];

/// The beginning of a command that continues until Ctrl-C.
const SERVES: &str = "alknet serve ";

/// The pages' placeholder for a node's key, followed by the node's address.
const PLACEHOLDER: &str = "ed25519:…@";

/// Stands for any text in a line, or alone for any lines.
const ANYTHING: &str = "…";

/// Marks a block whose commands the reader repeats until they print the output below.
const AGAIN: &str = "again";

/// Reports whether the binary has a driver, without which it refuses shaders.
const PROBE: &str = "alknet call compute/info '{\"probe\":true}'";

/// The digest of FIPS 180-2, appendix B.1, in base64.
const DIGEST_OF_ABC: &str = "ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=";

/// Limit for one block, in which a node's first shader may be compiled.
const STEP_MAX: Duration = Duration::from_secs(120);

/// A block of commands, and the output that the page promises.
#[derive(Debug, PartialEq, Eq)]
struct PageStep {
    code: String,
    /// Without the mark, once is enough.
    is_again: bool,
    /// `None` if there is no output below.
    printed: Option<String>,
}

/// The shell blocks, each with the text block after it.
fn steps(page: &str) -> Vec<PageStep> {
    let mut steps: Vec<PageStep> = Vec::new();
    // Blocks have odd numbers.
    for block in page.split("\n```").skip(1).step_by(2) {
        let (info, code) = block.split_once('\n').expect("a block has lines");
        let mut info = info.split(' ');
        match info.next() {
            Some("sh") => steps.push(PageStep {
                code: code.to_owned(),
                is_again: info.next() == Some(AGAIN),
                printed: None,
            }),
            Some("text") => {
                let step = steps.last_mut().expect("output follows a command");
                assert_eq!(step.printed, None, "two outputs of {}", step.code);
                step.printed = Some(code.to_owned());
            }
            other => panic!("blocks are commands and outputs, and not {other:?}"),
        }
    }
    steps
}

/// Whether the lines are those that a page promises.
fn is_like(promised: &[&str], said: &[&str]) -> bool {
    match promised.split_first() {
        None => said.is_empty(),
        Some((line, rest)) if *line == ANYTHING => {
            (0..=said.len()).any(|passed| is_like(rest, &said[passed..]))
        }
        Some((line, rest)) => said
            .split_first()
            .is_some_and(|(first, after)| is_line_like(line, first) && is_like(rest, after)),
    }
}

fn is_line_like(promised: &str, said: &str) -> bool {
    let Some((before, after)) = promised.split_once(ANYTHING) else {
        return promised == said;
    };
    let Some(rest) = said.strip_prefix(before) else {
        return false;
    };
    let places = rest.char_indices().map(|(at, _)| at);
    let mut places = places.chain([rest.len()]);
    places.any(|at| is_line_like(after, &rest[at..]))
}

/// The computer of a reader: a home folder, the program on the search path, and nodes in other
/// terminals.
struct PageReader {
    bench: TestBench,
    ports: [ReservedPort; PAGE_PORTS.len()],
    /// Address of each serving node, by its port.
    targets: BTreeMap<String, String>,
    serving: Vec<Child>,
}

impl PageReader {
    fn new() -> Self {
        let bench = TestBench::new();
        for folder in ["bin", "work"] {
            fs::create_dir(bench.path().join(folder)).expect("the folder is ours");
        }
        let program = bench.path().join("bin/alknet");
        std::os::unix::fs::symlink(binary(), program).expect("the folder is ours");
        Self {
            bench,
            ports: ReservedPort::claim_all(),
            targets: BTreeMap::new(),
            serving: Vec::new(),
        }
    }

    /// A shell that runs this code in the reader's folder.
    fn shell(&self, mut command: Command, code: &str) -> Command {
        let path = std::env::var("PATH").expect("a search path");
        let programs = self.bench.path().join("bin");
        command
            .args(["-euo", "pipefail", "-c", code])
            .current_dir(self.work())
            .env_clear()
            .env("HOME", self.bench.path())
            .env("LANG", "C.UTF-8")
            .env("PATH", format!("{}:{path}", programs.display()))
            .stdin(Stdio::null());
        command
    }

    fn work(&self) -> PathBuf {
        self.bench.path().join("work")
    }

    /// The text of a page with this run's ports, and with the addresses of the serving nodes.
    fn own(&self, text: &str) -> String {
        let mut own = self.with_own_ports(text);
        for (port, target) in &self.targets {
            for host in ["127.0.0.1", "192.0.2.7"] {
                own = own.replace(&format!("{PLACEHOLDER}{host}:{port}"), target);
            }
        }
        own
    }

    /// Only whole numbers are ports.
    fn with_own_ports(&self, text: &str) -> String {
        let is_digit = |c: char| c.is_ascii_digit();
        let (mut own, mut rest) = (String::new(), text);
        while let Some(at) = rest.find(is_digit) {
            let (before, number) = rest.split_at(at);
            let end = number.find(|c: char| !is_digit(c)).unwrap_or(number.len());
            let (number, after) = number.split_at(end);
            let nth = PAGE_PORTS
                .iter()
                .position(|port| number == port.to_string());
            let number = nth.map_or_else(
                || number.to_owned(),
                |nth| self.ports[nth].number().to_string(),
            );
            own.extend([before, &number]);
            rest = after;
        }
        own + rest
    }

    /// Does one step, and returns the commands' output.
    fn follow(&mut self, step: &PageStep) -> String {
        if step.code.starts_with(SERVES) {
            return self.serve(step);
        }
        let code = self.own(&step.code);
        let promised = step.printed.as_deref().map(|text| self.own(text));
        let run = || {
            // On a terminal both outputs are mixed.
            let mut shell = self.shell(limited(STEP_MAX, "bash"), &format!("exec 2>&1\n{code}"));
            let output = shell.output().expect("there is a bash");
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            let promised = promised.as_deref().unwrap_or(ANYTHING);
            let is_done = output.status.success() && is_promised(promised, &said);
            (is_done, said)
        };
        if step.is_again {
            return eventually(&format!("the output of {code}"), STEP_MAX, || match run() {
                (true, said) => Ok(said),
                (false, said) => Err(said),
            });
        }
        let (is_done, said) = run();
        let promised = promised.as_deref().unwrap_or("(whatever comes of success)");
        assert!(
            is_done,
            "the commands\n{code}\nprinted\n{said}\nand the page says\n{promised}"
        );
        said
    }

    /// Starts a node in a separate terminal, and waits until it reports that it serves.
    fn serve(&mut self, step: &PageStep) -> String {
        let code = self.own(&step.code);
        let name = format!("terminal-{}", self.serving.len());
        let [said, log] = ["said", "log"].map(|end| self.work().join(format!("{name}.{end}")));
        let mut shell = self.shell(Command::new("bash"), &format!("exec {code}"));
        shell.stdout(File::create(&said).expect("the folder is ours"));
        shell.stderr(File::create(&log).expect("the folder is ours"));
        self.serving.push(shell.spawn().expect("there is a bash"));
        let promised = step
            .printed
            .as_deref()
            .expect("a node says where it serves");
        let promised = self.own(promised);
        let said = eventually(&format!("the output of {code}"), STEP_MAX, || {
            let said = fs::read_to_string(&said).unwrap_or_default();
            let log = fs::read_to_string(&log).unwrap_or_default();
            match is_promised(&promised, &said) {
                true => Ok(said),
                false => Err(format!("it printed {said}\nand logged {log}")),
            }
        });
        let target = said.lines().find_map(|line| line.strip_prefix("serving "));
        let target = target.expect("it says so").to_owned();
        let (_, port) = target.rsplit_once(':').expect("an address has a port");
        self.targets.insert(port.to_owned(), target.clone());
        said
    }
}

impl Drop for PageReader {
    fn drop(&mut self) {
        for node in &mut self.serving {
            // The shell became the node.
            node.kill().ok();
            node.wait().ok();
        }
    }
}

fn is_promised(promised: &str, said: &str) -> bool {
    let [promised, said] = [promised, said].map(|text| text.lines().collect::<Vec<_>>());
    is_like(&promised, &said)
}

/// A file that the reader's steps created.
fn has_file(reader: &PageReader, name: impl AsRef<Path>) -> bool {
    reader.work().join(name).exists()
}

#[test]
fn the_tutorial_leads_to_two_workers_behind_a_hub() {
    let mut reader = PageReader::new();
    let mut steps = steps(START);
    assert!(steps.len() > 12, "{} steps", steps.len());
    for step in &mut steps {
        // A block without an output prints nothing.
        step.printed.get_or_insert_default();
        reader.follow(step);
    }
    assert_eq!(reader.serving.len(), 4, "a node, a hub and two workers");
    assert!(has_file(&reader, "hello.ts") && has_file(&reader, "kitchen/serve.json"));
}

#[test]
fn the_quick_start_of_the_readme_runs_as_written() {
    let (_, page) = README.split_once(QUICK_START).expect("the quick start");
    let page = page.split("\n## ").next().expect("it has an end");
    let steps = steps(page);
    let (serves, others) = steps.split_first().expect("the page has steps");
    let mut reader = PageReader::new();
    reader.follow(serves);
    let probe = reader.follow(&PageStep {
        code: PROBE.to_owned(),
        is_again: false,
        printed: None,
    });
    if probe.contains("\"state\": \"none\"") {
        skip!("Vulkan adapter", "{probe}");
    }
    let said = others.iter().map(|step| reader.follow(step));
    let said = said.collect::<String>();
    assert!(said.contains(DIGEST_OF_ABC), "{said}");
    assert!(
        said.contains("\"request_id\""),
        "curl got no answer: {said}"
    );
    assert!(said.contains("* edge-1  ed25519:"), "{said}");
}

#[test]
fn outputs_are_compared_line_by_line() {
    for (promised, said) in [
        ("a\nb", "a\nb"),
        ("a …\nb", "a 1 2\nb"),
        ("{\n…\n  x\n…\n}", "{\n  x\n  y\n}"),
        ("a…b…c", "a1b2c"),
        ("…", ""),
        ("", ""),
    ] {
        assert!(is_promised(promised, said), "{promised:?} {said:?}");
    }
    for (promised, said) in [
        ("a\nb", "a"),
        ("a", "a\nb"),
        ("", "error"),
        ("a …", "a"),
        ("a…b…c", "a1c2b"),
        ("{\n…\n  x\n}", "{\n  x\n  y\n}"),
    ] {
        assert!(!is_promised(promised, said), "{promised:?} {said:?}");
    }
}
