//! A program by other authors that sends its standard input, and prints what it receives.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdout, Command, Stdio};

use serde_json::Value;

/// The bytes with which every event begins.
const START: &[u8] = br#"{"type""#;

/// A running program. It ends when its input ends, or when this value is dropped.
pub(crate) struct InteractiveProgram {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl InteractiveProgram {
    pub(crate) fn start(mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("timeout is part of every Debian");
        let output = BufReader::new(child.stdout.take().expect("it was asked for above"));
        Self { child, output }
    }

    /// Reads the program's output up to and including a line with `needle`.
    pub(crate) fn until(&mut self, needle: &str) -> String {
        let mut seen = String::new();
        while !seen.contains(needle) {
            let mut line = Vec::new();
            let read = self.output.read_until(b'\n', &mut line).expect("a pipe");
            assert_ne!(read, 0, "it ended before {needle:?}:\n{seen}");
            seen.push_str(&String::from_utf8_lossy(&line));
        }
        seen
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        let stdin = self.child.stdin.as_mut().expect("it was asked for above");
        stdin.write_all(bytes).expect("the program reads");
        stdin.flush().expect("the program reads");
    }

    /// The next event: the part of the program's output that is JSON.
    pub(crate) fn event(&mut self) -> Value {
        let mut seen = Vec::new();
        let mut byte = [0];
        loop {
            self.output.read_exact(&mut byte).unwrap_or_else(|error| {
                panic!("{error} after {:?}", String::from_utf8_lossy(&seen));
            });
            seen.push(byte[0]);
            // The length before the JSON can contain any byte, including a brace.
            let start = seen.windows(START.len()).position(|w| w == START);
            let json = start.map(|at| &seen[at..]);
            if let Some(value) = json.and_then(|json| serde_json::from_slice(json).ok()) {
                return value;
            }
        }
    }
}

impl Drop for InteractiveProgram {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
