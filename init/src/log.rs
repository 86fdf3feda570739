//! The machine's log: a ring that is bounded in bytes. Every part of PID 1 and the node's standard
//! error write to it. The node, which streams it to callers, and the console read it.

use std::{
    collections::VecDeque,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::sync::watch;
use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    span,
};

use crate::{clock, control::LogRecord, stage::boot_ms, text::cut_text};

/// Bytes of text that the ring holds: some thousand lines, little beside 128 MiB of memory.
pub(crate) const RING_BYTES_MAX: usize = 256 * 1024;
/// Bytes of one message. A longer message is cut, so that one line cannot empty the ring.
pub(crate) const MESSAGE_BYTES_MAX: usize = 4 * 1024;
/// Bytes that a record costs besides its text.
const RECORD_BYTES_OVERHEAD: usize = 64;

/// Target of the lines of the node's standard error.
pub(crate) const TARGET_NODE: &str = "node";
/// Target of PID 1's own lines.
pub(crate) const TARGET_INIT: &str = "init";

/// The author of a record: PID 1, or the node of one life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LogAuthor {
    Init,
    Node(u64),
}

/// A bounded ring of records. Each record has a number, and numbers only grow.
#[derive(Debug, Default)]
pub(crate) struct InitLogRing {
    records: VecDeque<(LogAuthor, LogRecord)>,
    bytes: usize,
    next: u64,
}

impl InitLogRing {
    pub(crate) fn push(&mut self, author: LogAuthor, mut record: LogRecord) {
        cut_text(&mut record.message, MESSAGE_BYTES_MAX);
        self.bytes += cost(&record);
        self.records.push_back((author, record));
        self.next += 1;
        // The newest record always stays: alone it costs less than the whole ring.
        while self.bytes > RING_BYTES_MAX {
            let Some((_, oldest)) = self.records.pop_front() else {
                break;
            };
            self.bytes -= cost(&oldest);
        }
    }

    /// Number that the next record will get.
    pub(crate) const fn next(&self) -> u64 {
        self.next
    }

    /// Number of the oldest record still held.
    pub(crate) fn oldest(&self) -> u64 {
        self.next - self.records.len() as u64
    }

    /// Records numbered `from` and later that are still held.
    pub(crate) fn since(&self, from: u64) -> impl Iterator<Item = &(LogAuthor, LogRecord)> {
        let skip = usize::try_from(from.saturating_sub(self.oldest())).unwrap_or(usize::MAX);
        self.records.iter().skip(skip)
    }
}

fn cost(record: &LogRecord) -> usize {
    record.message.len() + record.target.len() + RECORD_BYTES_OVERHEAD
}

/// The ring, shared by every task and thread of PID 1.
#[derive(Clone, Debug, Default)]
pub(crate) struct InitLog {
    ring: Arc<Mutex<InitLogRing>>,
    next: Arc<watch::Sender<u64>>,
}

impl InitLog {
    pub(crate) fn error(&self, message: impl fmt::Display) {
        self.write("error", TARGET_INIT, message);
    }

    pub(crate) fn warn(&self, message: impl fmt::Display) {
        self.write("warn", TARGET_INIT, message);
    }

    pub(crate) fn info(&self, message: impl fmt::Display) {
        self.write("info", TARGET_INIT, message);
    }

    pub(crate) fn write(&self, level: &str, target: &str, message: impl fmt::Display) {
        self.write_as(LogAuthor::Init, level, target, message);
    }

    pub(crate) fn write_as(
        &self,
        author: LogAuthor,
        level: &str,
        target: &str,
        message: impl fmt::Display,
    ) {
        let record = LogRecord {
            boot_ms: boot_ms(),
            time: clock::rfc3339_now(),
            level: level.to_owned(),
            target: target.to_owned(),
            message: message.to_string(),
        };
        // The lock ends before the receivers wake, because they take the lock themselves.
        let next = {
            let mut ring = self.ring();
            ring.push(author, record);
            ring.next()
        };
        self.next.send_replace(next);
    }

    /// Locks the ring.
    pub(crate) fn ring(&self) -> MutexGuard<'_, InitLogRing> {
        // A panic in between leaves at worst a wrong byte count. A log that panics in turn would
        // hide the reason of the first panic.
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns a receiver of the number of the next record, which changes whenever a record is
    /// added.
    pub(crate) fn follow(&self) -> watch::Receiver<u64> {
        self.next.subscribe()
    }

    /// The last lines that the node of life `life` wrote, at most `lines_max`.
    pub(crate) fn last_of(&self, life: u64, lines_max: usize) -> Vec<String> {
        let ring = self.ring();
        let own = ring
            .records
            .iter()
            .rev()
            .filter(|(author, _)| *author == LogAuthor::Node(life));
        let mut lines: Vec<String> = own
            .take(lines_max)
            .map(|(_, record)| record.message.clone())
            .collect();
        lines.reverse();
        lines
    }
}

/// A `tracing` subscriber that writes the events of libraries into the ring.
#[derive(Debug)]
pub(crate) struct RingSubscriber {
    log: InitLog,
    spans: AtomicU64,
}

impl RingSubscriber {
    pub(crate) const fn new(log: InitLog) -> Self {
        Self {
            log,
            spans: AtomicU64::new(1),
        }
    }
}

impl Subscriber for RingSubscriber {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::INFO
    }

    fn max_level_hint(&self) -> Option<tracing::level_filters::LevelFilter> {
        // With this hint, disabled events cost nothing where they are made.
        Some(tracing::level_filters::LevelFilter::INFO)
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        // The log does not show spans. An id must not be zero.
        span::Id::from_u64(self.spans.fetch_add(1, Ordering::Relaxed).max(1))
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = FieldFormatter::default();
        event.record(&mut line);
        let metadata = event.metadata();
        self.log.write(
            level_name(*metadata.level()),
            short_target(metadata.target()),
            line.0,
        );
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

fn level_name(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        _ => "debug",
    }
}

/// Shortens a target for readers: `alknet_init_net::dhcp4` becomes `net`.
fn short_target(target: &str) -> &str {
    match target.split("::").next().unwrap_or(target) {
        "alknet_init_net" => "net",
        "alknet_init" => TARGET_INIT,
        "alknet_provisioning" => "config",
        other => other,
    }
}

/// Formats an event: the message first, then each field as `key=value`.
#[derive(Default)]
struct FieldFormatter(String);

impl Visit for FieldFormatter {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        use fmt::Write;
        let outcome = if field.name() == "message" {
            // `tracing` visits fields in the order of their declaration, so the message may come
            // last.
            let rest = std::mem::take(&mut self.0);
            write!(self.0, "{value:?}{rest}")
        } else {
            write!(self.0, " {}={value:?}", field.name())
        };
        debug_assert!(outcome.is_ok(), "writing to a String does not fail");
    }
}

/// Splits the syslog priority off a line of the node's standard error, `<4>text`.
pub(crate) fn split_priority(line: &str) -> (&'static str, &str) {
    // sd-daemon(3): the digits are the priority. A line without a priority is the program's own
    // text.
    let Some((priority, rest)) = line
        .strip_prefix('<')
        .and_then(|rest| rest.split_once('>'))
        .and_then(|(digits, rest)| Some((digits.parse::<u8>().ok()?, rest)))
    else {
        return ("info", line);
    };
    let level = match priority {
        0..=3 => "error",
        4 => "warn",
        5..=6 => "info",
        _ => "debug",
    };
    (level, rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(message: &str) -> LogRecord {
        LogRecord {
            boot_ms: 1,
            time: None,
            level: "info".to_owned(),
            target: "init".to_owned(),
            message: message.to_owned(),
        }
    }

    #[test]
    fn the_ring_forgets_the_oldest_and_keeps_counting() {
        let mut ring = InitLogRing::default();
        let line = "x".repeat(1000);
        for _ in 0..1000 {
            ring.push(LogAuthor::Init, record(&line));
        }
        assert!(ring.bytes <= RING_BYTES_MAX);
        assert_eq!(ring.next(), 1000);
        assert!(ring.since(0).count() < 300);
        assert_eq!(ring.since(999).count(), 1);
        assert_eq!(ring.since(1000).count(), 0);
        assert_eq!(ring.since(u64::MAX).count(), 0);
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let mut ring = InitLogRing::default();
        ring.push(LogAuthor::Init, record(&"é".repeat(MESSAGE_BYTES_MAX)));
        let kept = &ring.since(0).next().expect("one record").1.message;
        assert!(kept.len() <= MESSAGE_BYTES_MAX);
        assert!(kept.ends_with('…'));
    }

    #[test]
    fn last_words_are_those_of_one_life() {
        let log = InitLog::default();
        for (life, line) in [(1, "a"), (2, "b"), (1, "c"), (1, "d")] {
            log.write_as(LogAuthor::Node(life), "info", TARGET_NODE, line);
        }
        assert_eq!(log.last_of(1, 2), ["c", "d"]);
        assert!(log.last_of(3, 2).is_empty());
    }

    #[test]
    fn priorities_are_split_off_only_where_they_are() {
        assert_eq!(split_priority("<3>boom"), ("error", "boom"));
        assert_eq!(split_priority("<4>hm"), ("warn", "hm"));
        assert_eq!(split_priority("<7>detail"), ("debug", "detail"));
        for plain in ["plain", "<>x", "<999>x", "<a>x", "<3", ""] {
            assert_eq!(split_priority(plain), ("info", plain));
        }
    }

    #[test]
    fn tracing_events_reach_the_ring() {
        let log = InitLog::default();
        let subscriber = RingSubscriber::new(log.clone());
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(card = "eth0", "no carrier");
            tracing::debug!("unseen");
        });
        let ring = log.ring();
        let records: Vec<_> = ring.since(0).collect();
        assert_eq!(records.len(), 1);
        let (_, record) = records[0];
        assert_eq!(record.level, "warn");
        assert_eq!(record.target, "init");
        assert_eq!(record.message, "no carrier card=\"eth0\"");
    }
}
