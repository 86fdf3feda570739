//! The tests that failed, told once more at the end: thousands of lines stand between where the
//! harness tells it and where somebody looks first.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Write};
use std::process::{Command, ExitStatus, Stdio};

/// Most lines told of what one test printed; its panic stands last.
const LINES_MAX: usize = 30;

/// A test that failed, and the end of what it printed.
#[derive(Debug, PartialEq)]
pub(crate) struct Failed {
    name: String,
    said: VecDeque<String>,
}

impl Failed {
    /// As it is told at the end.
    pub(crate) fn text(&self) -> String {
        let mut text = format!("FAILED: {}\n", self.name);
        for line in &self.said {
            text += &format!("    {line}\n");
        }
        text
    }
}

/// Reads what Rust's test harness writes, and keeps what it says of failures.
#[derive(Debug, Default)]
struct Reader {
    failed: Vec<Failed>,
    /// Whether lines belong to the failure told last.
    inside: bool,
}

impl Reader {
    fn line(&mut self, line: &str) {
        let name = line.strip_prefix("---- ");
        let name = name.and_then(|rest| rest.strip_suffix(" stdout ----"));
        if let Some(name) = name {
            self.inside = true;
            self.failed.push(Failed {
                name: name.to_owned(),
                said: VecDeque::new(),
            });
        } else if line == "failures:" || line.starts_with("test result: ") {
            self.inside = false;
        } else if self.inside
            && !line.is_empty()
            && let Some(Failed { said, .. }) = self.failed.last_mut()
        {
            if said.len() == LINES_MAX {
                said.pop_front();
            }
            said.push_back(line.to_owned());
        }
    }
}

/// Runs tests with their output on the terminal; how they ended, and which of them failed.
pub(crate) fn watch(command: &mut Command) -> io::Result<(ExitStatus, Vec<Failed>)> {
    watch_to(&mut io::stdout().lock(), command)
}

fn watch_to(out: &mut dyn Write, command: &mut Command) -> io::Result<(ExitStatus, Vec<Failed>)> {
    let mut child = command.stdout(Stdio::piped()).spawn()?;
    let mut reader = Reader::default();
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).split(b'\n') {
            let line = line?;
            out.write_all(&line)?;
            out.write_all(b"\n")?;
            reader.line(&String::from_utf8_lossy(&line));
        }
    }
    Ok((child.wait()?, reader.failed))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "\
test one ... ok
test two ... FAILED
test three::four ... FAILED

failures:

---- two stdout ----

thread 'two' panicked at src/lib.rs:1:
left is not right

---- three::four stdout ----
Error: none

failures:
    three::four
    two

test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s
";

    #[test]
    fn failures_are_kept_with_what_they_said() {
        let mut reader = Reader::default();
        OUTPUT.lines().for_each(|line| reader.line(line));
        let texts: Vec<String> = reader.failed.iter().map(Failed::text).collect();
        assert_eq!(
            texts,
            [
                "FAILED: two\n    thread 'two' panicked at src/lib.rs:1:\n    left is not right\n",
                "FAILED: three::four\n    Error: none\n",
            ]
        );
    }

    #[test]
    fn a_long_story_is_told_from_its_end() {
        let mut reader = Reader::default();
        reader.line("---- talks stdout ----");
        (0..100).for_each(|n| reader.line(&format!("line {n}")));
        let said = &reader.failed[0].said;
        assert_eq!(said.len(), LINES_MAX);
        assert_eq!(said.back().map(String::as_str), Some("line 99"));
    }

    #[test]
    fn the_status_comes_back() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo '---- a stdout ----'; echo no; exit 3"]);
        // Not the terminal: who watches these tests would take it for one that failed.
        let mut out = Vec::new();
        let (status, failed) = watch_to(&mut out, &mut command).expect("sh starts");
        assert_eq!(out, b"---- a stdout ----\nno\n");
        assert_eq!(status.code(), Some(3));
        assert_eq!(failed[0].text(), "FAILED: a\n    no\n");
    }
}
