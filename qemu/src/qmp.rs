//! QEMU's machine protocol: commands, answers and events, one JSON object per line.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Value, json};

use alknet_test_support::deadline;

use crate::error::{Error, Result};

/// How long QEMU may take for an answer. Its monitor shares a lock with the guest's processor, so a
/// busy host delays it. A minute without an answer is a hang.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// An event that QEMU sent.
#[derive(Clone, Debug, PartialEq)]
pub struct QmpEvent {
    /// `SHUTDOWN`, `RESET`, `WATCHDOG`, `GUEST_PANICKED` …
    pub name: String,
    /// The event's data.
    pub data: Value,
}

/// A connection to one QEMU.
#[derive(Debug)]
pub struct Qmp {
    shared: Arc<QmpShared>,
    writer: Mutex<QmpWriter>,
}

impl Qmp {
    /// Takes over `stream`, in which QEMU's greeting comes first, and leaves negotiation mode.
    pub fn connect(stream: UnixStream) -> Result<Self> {
        let reader = stream
            .try_clone()
            .map_err(Error::io("sharing the control connection"))?;
        let shared = Arc::new(QmpShared::default());
        let theirs = shared.clone();
        std::thread::Builder::new()
            .name("qmp".to_owned())
            .spawn(move || theirs.follow(reader))
            .map_err(Error::io("starting the thread of the control connection"))?;
        let qmp = Self {
            shared,
            writer: Mutex::new(QmpWriter { stream, next_id: 0 }),
        };
        // QEMU takes no other command before this one (QEMU, docs/interop/qmp-spec).
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Runs one command and returns its answer.
    pub fn execute(&self, command: &str, arguments: Value) -> Result<Value> {
        let id = self.send(command, arguments)?;
        let answer = self
            .shared
            // Answers are found by number, because two threads may wait for their own answers at a
            // time.
            .wait(deadline(ANSWER_LIMIT), |log| log.answers.remove(&id));
        match answer {
            Some(QmpReply::Return(value)) => Ok(value),
            Some(QmpReply::Error { class, desc }) => Err(Error::Qmp {
                command: command.to_owned(),
                class,
                description: desc,
            }),
            None if self.closed() => Err(lost(command, "QEMU closed it")),
            None => Err(lost(command, "no answer within a minute")),
        }
    }

    /// Runs a command of the human monitor and returns its output.
    pub fn human(&self, command_line: &str) -> Result<String> {
        let answer = self.execute(
            "human-monitor-command",
            json!({ "command-line": command_line }),
        )?;
        Ok(answer.as_str().unwrap_or_default().to_owned())
    }

    /// Every event so far, oldest first.
    pub fn events(&self) -> Vec<QmpEvent> {
        self.shared.lock().events.clone()
    }

    /// Waits until more than `seen` events named `name` came. Returns the newest, or `None` after
    /// the limit or at the end of QEMU.
    pub fn wait_event(&self, name: &str, seen: usize, limit: Duration) -> Option<QmpEvent> {
        self.shared.wait(limit, |log| {
            log.events
                .iter()
                .filter(|event| event.name == name)
                .nth(seen)
                .cloned()
        })
    }

    /// Waits for the end of a migration, out of this machine or into it, and returns how it ended:
    /// `completed` or `failed`. `None` as with [`wait_event`](Self::wait_event).
    pub(crate) fn wait_migrated(&self, limit: Duration) -> Option<String> {
        self.shared.wait(limit, |log| {
            let events = log.events.iter();
            let mut ends = events
                .filter(|event| event.name == "MIGRATION")
                .filter_map(|event| event.data["status"].as_str())
                .filter(|status| matches!(*status, "completed" | "failed" | "cancelled"));
            ends.next_back().map(str::to_owned)
        })
    }

    /// Waits until QEMU closes the connection, which it does when it ends.
    pub fn wait_closed(&self, limit: Duration) -> bool {
        self.shared
            .wait(limit, |log| log.closed.then_some(()))
            .is_some()
    }

    fn closed(&self) -> bool {
        self.shared.lock().closed
    }

    fn send(&self, command: &str, arguments: Value) -> Result<u64> {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        writer.next_id += 1;
        let id = writer.next_id;
        let line = format!(
            "{}\n",
            json!({ "execute": command, "arguments": arguments, "id": id })
        );
        let written = writer.stream.write_all(line.as_bytes());
        written.map_err(|error| lost(command, &error.to_string()))?;
        Ok(id)
    }
}

fn lost(command: &str, reason: &str) -> Error {
    Error::QmpLost {
        command: command.to_owned(),
        reason: reason.to_owned(),
    }
}

#[derive(Debug)]
struct QmpWriter {
    stream: UnixStream,
    next_id: u64,
}

#[derive(Debug, Default)]
struct QmpShared {
    log: Mutex<QmpLog>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct QmpLog {
    answers: BTreeMap<u64, QmpReply>,
    events: Vec<QmpEvent>,
    closed: bool,
}

#[derive(Debug, PartialEq)]
enum QmpReply {
    Error { class: String, desc: String },
    Return(Value),
}

impl QmpShared {
    fn lock(&self) -> MutexGuard<'_, QmpLog> {
        // Each change of the log is one push or insert, so the log is whole after a panic.
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `ready` returns something, the connection closes or the time is over.
    fn wait<T>(
        &self,
        limit: Duration,
        mut ready: impl FnMut(&mut QmpLog) -> Option<T>,
    ) -> Option<T> {
        let deadline = Instant::now() + limit;
        let mut log = self.lock();
        loop {
            if let Some(value) = ready(&mut log) {
                return Some(value);
            }
            let left = deadline.checked_duration_since(Instant::now());
            // The end is checked after the log, because an answer may be the last thing that QEMU
            // sent.
            let left = left.filter(|_| !log.closed)?;
            log = self
                .changed
                .wait_timeout(log, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    fn follow(&self, stream: UnixStream) {
        for line in BufReader::new(stream).lines().map_while(io::Result::ok) {
            self.take(&line);
        }
        self.lock().closed = true;
        self.changed.notify_all();
    }

    fn take(&self, line: &str) {
        match serde_json::from_str(line) {
            Ok(QmpMessage::Return { id, value }) => self.answer(id, QmpReply::Return(value)),
            Ok(QmpMessage::Error {
                id,
                error: QmpError { class, desc },
            }) => {
                self.answer(id, QmpReply::Error { class, desc });
            }
            Ok(QmpMessage::Event { event: name, data }) => {
                self.lock().events.push(QmpEvent { name, data })
            }
            Ok(QmpMessage::Greeting { .. }) => {}
            // A line that cannot be parsed answers no command, and the rest of the connection is
            // still good.
            Err(error) => tracing::warn!(%error, line, "QEMU said something that is not QMP"),
        }
        self.changed.notify_all();
    }

    fn answer(&self, id: u64, answer: QmpReply) {
        self.lock().answers.insert(id, answer);
    }
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum QmpMessage {
    Return {
        id: u64,
        #[serde(rename = "return")]
        value: Value,
    },
    Error {
        id: u64,
        error: QmpError,
    },
    Event {
        event: String,
        #[serde(default)]
        data: Value,
    },
    Greeting {
        #[serde(rename = "QMP")]
        _qmp: Value,
    },
}

#[derive(Debug, Deserialize)]
struct QmpError {
    class: String,
    desc: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A QEMU that greets, accepts the capabilities and then answers with `lines`, one per command.
    fn scripted(lines: &'static [&'static str]) -> Result<Qmp> {
        let (ours, mut theirs) = UnixStream::pair().expect("a socket pair can be made");
        std::thread::spawn(move || {
            let mut commands = BufReader::new(theirs.try_clone()?);
            theirs.write_all(b"{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n")?;
            for line in std::iter::once(&"{\"return\": {}, \"id\": 1}").chain(lines) {
                let mut command = String::new();
                commands.read_line(&mut command)?;
                writeln!(theirs, "{line}")?;
            }
            io::Result::Ok(())
        });
        Qmp::connect(ours)
    }

    #[test]
    fn answers_find_their_commands_and_events_are_kept() {
        let qmp = scripted(&[
            "{\"event\": \"RESET\", \"data\": {\"guest\": true}}\n{\"return\": \"ok\", \"id\": 2}",
        ])
        .expect("the script greets");
        assert_eq!(qmp.human("info status").expect("the script answers"), "ok");
        let event = qmp
            .wait_event("RESET", 0, Duration::from_secs(60))
            .expect("it was sent");
        assert_eq!(event.data["guest"], true);
        assert_eq!(qmp.wait_event("RESET", 1, Duration::ZERO), None);
        assert!(qmp.wait_closed(Duration::from_secs(60)));
    }

    #[test]
    fn an_error_is_an_error() {
        let qmp = scripted(&[
            "{\"error\": {\"class\": \"DeviceNotFound\", \"desc\": \"no net9\"}, \"id\": 2}",
        ])
        .expect("the script greets");
        let error = qmp
            .execute("set_link", json!({}))
            .expect_err("the script refuses");
        assert!(
            matches!(&error, Error::Qmp { class, .. } if class == "DeviceNotFound"),
            "{error}"
        );
    }

    #[test]
    fn invalid_lines_are_skipped_and_the_end_is_reported() {
        let qmp = scripted(&["}{"]).expect("the script greets");
        let error = qmp.execute("stop", json!({})).expect_err("no answer comes");
        assert!(matches!(error, Error::QmpLost { .. }), "{error}");
    }
}
