//! The commands of docs/image.md that start machines, each as a reader types it at a terminal.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Stdio};
use std::time::Duration;

use alknet_qemu::FIRMWARE_VARIABLE;
use alknet_test_support::limited;
use alknet_tests::{BuiltImageFolder, READY, TestBench};

use super::forms::{run_commands, shell_blocks};

const PAGE: &str = include_str!("../../../docs/image.md");
/// The section with the commands, and the folder of firmware that they name.
const SECTION: &str = "\n## Boot them\n";
const FIRMWARE: &str = "/usr/share/OVMF/";
/// How a command begins that starts a machine.
const QEMU: &str = "qemu-system-x86_64 ";

/// What the machines of the page print, in its order: those without a data disk say so, and the disk is one node by UEFI
/// and by a BIOS.
const SAID: [&str; 5] = [NO_DATA, NO_DATA, READY, READY, NO_DATA];
const NO_DATA: &str = "alknet: problem data-missing: ";
/// Longest life of a machine. Nothing here shortens the start of its emulated processor.
const LIVES_FOR: Duration = Duration::from_secs(300);
/// The keys by which a reader ends QEMU at a terminal: Ctrl-A and x.
const QUIT: &[u8] = b"\x01x";

#[test]
fn the_machines_of_the_page_of_images_start() {
    let bench = TestBench::new();
    let (_, section) = PAGE.split_once(SECTION).expect("the section");
    let [block] = shell_blocks(section)[..1] else {
        panic!("the section has no commands");
    };
    let image = format!("{}/", BuiltImageFolder::get().folder().display());
    let mut commands = block.replace("\\\n", "").replace("out/", &image);
    if let Some(folder) = std::env::var_os(FIRMWARE_VARIABLE) {
        let folder = format!("{}/", folder.display());
        commands = commands.replace(FIRMWARE, &folder);
    }
    let mut said = SAID.iter();
    let mut nodes = Vec::new();
    for command in commands.lines().filter(|line| !line.is_empty()) {
        if command.starts_with(QEMU) {
            let text = said.next().expect("a line for each machine");
            let line = PageMachine::start(&bench, command).wait_line(text);
            nodes.extend((*text == READY).then(|| identity(&line)));
        } else {
            run_commands(bench.path(), command);
        }
    }
    assert_eq!(said.next(), None, "the page has fewer machines");
    assert_eq!(nodes[0], nodes[1], "the disk is another node by a BIOS");
}

/// The key in the line of a node that serves.
fn identity(line: &str) -> String {
    let mut words = line.split_whitespace();
    let identity = words.find(|word| word.starts_with("ed25519:"));
    identity.expect("the line has the key").to_owned()
}

/// QEMU, with the test at its terminal. It ends on drop.
struct PageMachine {
    shell: Child,
    keys: ChildStdin,
}

impl PageMachine {
    fn start(bench: &TestBench, command: &str) -> Self {
        let mut shell = limited(LIVES_FOR, "bash");
        shell.args(["-c", &format!("exec {command}")]);
        shell.current_dir(bench.path());
        let piped = shell.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut shell = piped.spawn().expect("every system has bash");
        let keys = shell.stdin.take().expect("it was asked for above");
        Self { shell, keys }
    }

    /// Waits until the machine prints a line with this text.
    fn wait_line(&mut self, text: &str) -> String {
        let output = self.shell.stdout.take().expect("one wait");
        let mut seen = Vec::new();
        // Firmware prints bytes that are no text.
        for line in BufReader::new(output).split(b'\n') {
            let line = String::from_utf8_lossy(&line.expect("a pipe")).into_owned();
            if line.contains(text) {
                return line;
            }
            seen.push(line);
        }
        panic!("QEMU ended before it printed {text:?}: {seen:#?}");
    }
}

impl Drop for PageMachine {
    fn drop(&mut self) {
        // It may have ended, and then `wait` says so.
        drop(self.keys.write_all(QUIT));
        drop(self.shell.wait());
    }
}
