//! The log. Every record goes to standard error and into a bounded ring that `node/log` reads.

use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::hash::{BuildHasher, RandomState};
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use alknet_core::config::{LogConfig, LogLevel};
use alknet_init::control::LogRecord;
use alknet_init::text::cut_text;
use arc_swap::ArcSwap;
use jiff::Timestamp;
use tokio::sync::watch;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

use super::log_panic::{self, WithinLog};
use super::log_rate::{LogRates, RateDecision};
use super::log_ring::{LogRecords, RecordPayer};
use crate::cli::output::one_line;

/// Maximum size of the ring's text in bytes. Beyond it, [`LogRecords::push`] drops records.
pub(crate) const RING_BYTES_MAX: usize = 1 << 20;
/// Maximum length of a message in bytes. The log cuts the rest of a longer one.
const MESSAGE_BYTES_MAX: usize = 4 << 10;
/// Bytes of a line beside its message: level and target. With them a line is no longer than PID 1 reads at once.
const LINE_OVERHEAD_BYTES: usize = 96;

/// The bounded ring. Clones share it.
#[derive(Clone)]
pub(crate) struct NodeLogRing(Arc<SharedLogRing>);

struct SharedLogRing {
    records: Mutex<LogRecords>,
    /// Wakes the readers when a record arrives.
    came: watch::Sender<()>,
    tuning: ArcSwap<LogSettings>,
    /// Key of the hashes that replace addresses. Each start makes another one.
    hashes: RandomState,
}

/// Settings of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct LogSettings {
    level: Level,
    hash_addresses: bool,
}

impl NodeLogRing {
    /// An empty ring.
    pub(crate) fn new() -> Self {
        Self(Arc::new(SharedLogRing {
            records: Mutex::default(),
            came: watch::Sender::default(),
            tuning: ArcSwap::from_pointee(LogSettings {
                level: Level::INFO,
                hash_addresses: false,
            }),
            hashes: RandomState::new(),
        }))
    }

    /// Applies the settings of `config`. With `verbose`, the log shows every record.
    pub(crate) fn tune(&self, config: &LogConfig, verbose: bool) {
        let level = match config.level {
            _ if verbose => Level::DEBUG,
            LogLevel::Error => Level::ERROR,
            LogLevel::Warn => Level::WARN,
            LogLevel::Info => Level::INFO,
            LogLevel::Debug => Level::DEBUG,
        };
        let tuning = LogSettings {
            level,
            hash_addresses: config.hash_addresses,
        };
        let before = self.0.tuning.swap(Arc::new(tuning));
        if before.level != level {
            // `tracing` caches for each call site whether its records are wanted, so a new level
            // empties the cache.
            tracing::callsite::rebuild_interest_cache();
        }
    }

    /// The text that replaces an address. A reader cannot recover the address from it, but can
    /// compare two of them.
    fn hashed(&self, address: &str) -> String {
        let ip = address.parse::<SocketAddr>().map(|address| address.ip());
        let hash = match ip.or_else(|_| address.parse::<IpAddr>()) {
            Ok(ip) => self.0.hashes.hash_one(ip),
            Err(_) => self.0.hashes.hash_one(address),
        };
        format!("#{:08x}", hash >> 32)
    }

    /// Adds a record that another process sent. Its target is its payer.
    pub(crate) fn push(&self, record: LogRecord) {
        let payer = RecordPayer::Node(self.0.hashes.hash_one(&record.target));
        self.push_for(record, payer);
    }

    /// Adds a record. Other records give way to it, see [`LogRecords::push`].
    fn push_for(&self, mut record: LogRecord, payer: RecordPayer) {
        // The message may repeat what a peer sent, and one long record could push out all others.
        cut_text(&mut record.message, MESSAGE_BYTES_MAX);
        self.lock().push(record, payer);
        self.0.came.send_replace(());
    }

    /// A reader of the newest `last` records, which also reads every later one if it `follows`.
    pub(crate) fn read(&self, last: usize, follows: bool) -> LogReader {
        let came = self.0.came.subscribe();
        let records = self.lock();
        let skip = records.len().saturating_sub(last);
        let next = records.next();
        LogReader {
            ring: self.clone(),
            came,
            at: records.get(skip).map_or(next, |(number, _)| number),
            end: (!follows).then_some(next),
            owed: (records.len() - skip) as u64,
            seen: next,
        }
    }

    fn lock(&self) -> MutexGuard<'_, LogRecords> {
        // A panic while the lock was held may have left the queue half changed. A wrong record does
        // less harm than a node without its log.
        self.0
            .records
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for NodeLogRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeLogRing")
            .field("bytes", &self.lock().bytes())
            .finish()
    }
}

/// Reads the ring in place. Readers share the records that they have not read yet.
pub(crate) struct LogReader {
    ring: NodeLogRing,
    came: watch::Receiver<()>,
    /// Number of the record that the reader reads next.
    at: u64,
    /// Number of the record before which the reader ends.
    end: Option<u64>,
    /// How many records with numbers below `seen` it has not read yet, whether or not the ring
    /// still has them.
    owed: u64,
    seen: u64,
}

/// The next item of a reader.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum LogEntry {
    /// The ring dropped this many records before the reader read them.
    Lost(u64),
    /// The next record.
    Record(Arc<LogRecord>),
}

impl LogReader {
    /// The next item. Returns `None` after the last record, for a reader that does not follow.
    /// Cancel safe.
    pub(crate) async fn next(&mut self) -> Option<LogEntry> {
        loop {
            // The mark is cleared before the ring is read: a record that arrives in between sets it
            // again.
            self.came.mark_unchanged();
            if let Some(entry) = self.take() {
                return Some(entry);
            }
            if self.end.is_some() {
                return None;
            }
            // The sender lives as long as the ring, and the reader has a clone of the ring.
            self.came.changed().await.ok()?;
        }
    }

    /// Stops following: the reader ends after the records that the ring has now.
    pub(crate) fn stop(&mut self) {
        let next = self.ring.lock().next();
        self.end.get_or_insert(next);
    }

    /// The next item that the ring already has.
    fn take(&mut self) -> Option<LogEntry> {
        let records = self.ring.lock();
        let next = records.next();
        let until = self.end.map_or(next, |end| end.min(next));
        self.owed += until.saturating_sub(self.seen);
        self.seen = self.seen.max(until);
        let from = records.position(self.at);
        let present = (records.position(until) - from) as u64;
        if self.owed > present {
            let lost = self.owed - present;
            // The reader continues with the oldest record that is left, and shows that some are
            // missing.
            self.owed = present;
            return Some(LogEntry::Lost(lost));
        }
        if present == 0 {
            return None;
        }
        let (number, record) = records.get(from)?;
        let record = Arc::clone(record);
        self.at = number + 1;
        self.owed -= 1;
        Some(LogEntry::Record(record))
    }
}

/// Format of the lines on standard error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StderrFormat {
    /// For a person: time, level, target.
    Plain,
    /// For PID 1: each line begins with the kernel's `<level>`, by which PID 1 sorts it.
    Prefixed,
}

impl StderrFormat {
    /// A record as it is written, with its line end.
    fn line(self, record: &LogRecord) -> String {
        let LogRecord {
            level,
            target,
            message,
            ..
        } = record;
        match self {
            Self::Plain => {
                let time = record.time.as_deref().unwrap_or("-");
                format!("{time} {level:5} {target}: {message}\n")
            }
            Self::Prefixed => format!("<{}>{target}: {message}\n", kernel_level(level)),
        }
    }
}

/// Sends `tracing` events to the ring and to standard error. Call it once.
pub(crate) fn install(ring: &NodeLogRing, stderr: StderrFormat) {
    let layer = RingLayer {
        ring: ring.clone(),
        stderr,
        rates: LogRates::default(),
        clock: Instant::now,
    };
    let subscriber = tracing_subscriber::registry().with(layer);
    // A second call keeps the first subscriber, which the tests of one process share.
    if tracing::subscriber::set_global_default(subscriber).is_ok() {
        log_panic::record_panics();
    }
}

/// The `tracing` layer. It reads the time from the clock `C`.
struct RingLayer<C> {
    ring: NodeLogRing,
    stderr: StderrFormat,
    rates: LogRates,
    clock: C,
}

impl<S, C> Layer<S> for RingLayer<C>
where
    S: Subscriber,
    C: Fn() -> Instant + 'static,
{
    fn enabled(&self, metadata: &tracing::Metadata<'_>, _: Context<'_, S>) -> bool {
        let ours = metadata.target().starts_with("alknet");
        let level = self.ring.0.tuning.load().level;
        // Libraries log details at these levels that do not help an administrator.
        *metadata.level() <= if ours { level } else { level.min(Level::WARN) }
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let _within = WithinLog::enter();
        let at = (self.clock)();
        let decision = self.rates.count(event, at);
        for other in self.rates.overdue(at) {
            let text = format!(
                "records of the last minutes were left out left_out={}",
                other.left_out
            );
            let payer = RecordPayer::Node(self.ring.0.hashes.hash_one(other.target));
            self.write("warn", other.target, text, payer);
        }
        let RateDecision::Keep { left_out } = decision else {
            return;
        };
        let hash = self.ring.0.tuning.load().hash_addresses;
        let mut text = LogText {
            hash_addresses: hash.then_some(&self.ring),
            message: String::new(),
            fields: String::new(),
        };
        event.record(&mut text);
        if left_out > 0 {
            // Writing to a `String` does not fail.
            write!(text.fields, " left_out={left_out}").ok();
        }
        let metadata = event.metadata();
        let level = metadata.level().as_str().to_ascii_lowercase();
        let payer = RecordPayer::from_event(event, &self.ring.0.hashes);
        self.write(&level, metadata.target(), text.finish(), payer);
    }
}

impl<C> RingLayer<C> {
    fn write(&self, level: &str, module: &str, mut message: String, payer: RecordPayer) {
        // Before it is printed: PID 1 cuts longer lines into pieces. What a client or a server sent may be in it.
        cut_text(&mut message, MESSAGE_BYTES_MAX - LINE_OVERHEAD_BYTES);
        let record = LogRecord {
            boot_ms: boot_ms(),
            time: now(),
            level: level.to_owned(),
            target: target(module).to_owned(),
            message,
        };
        self.print(&record);
        self.ring.push_for(record, payer);
    }

    fn print(&self, record: &LogRecord) {
        let line = self.stderr.line(record);
        // The result is dropped: without standard error there is nowhere to report the error.
        std::io::stderr().write_all(line.as_bytes()).ok();
    }
}

/// The target for readers of the log: `endpoint` for `alknet_endpoint::admission`.
fn target(target: &str) -> &str {
    let target = target.strip_prefix("alknet_").unwrap_or(target);
    target.split("::").next().unwrap_or(target)
}

fn kernel_level(level: &str) -> u8 {
    match level {
        "error" => 3,
        "warn" => 4,
        "info" => 6,
        _ => 7,
    }
}

/// Formats the message and its fields as `message key=value …`.
struct LogText<'a> {
    hash_addresses: Option<&'a NodeLogRing>,
    message: String,
    fields: String,
}

impl LogText<'_> {
    fn finish(mut self) -> String {
        self.message.push_str(&self.fields);
        // A peer's text must not begin a line of its own, move a terminal's cursor or reverse a
        // line.
        match one_line(&self.message) {
            Cow::Borrowed(_) => self.message,
            Cow::Owned(shown) => shown,
        }
    }
}

impl Visit for LogText<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a `String` does not fail.
        let written = match (field.name(), self.hash_addresses) {
            ("message", _) => write!(self.message, "{value:?}"),
            (name @ "addr", Some(ring)) => {
                write!(
                    self.fields,
                    " {name}={}",
                    ring.hashed(&format!("{value:?}"))
                )
            }
            (name, _) => write!(self.fields, " {name}={value:?}"),
        };
        debug_assert!(written.is_ok());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.message.push_str(value),
            name => {
                self.fields.push(' ');
                self.fields.push_str(name);
                self.fields.push('=');
                self.fields.push_str(value);
            }
        }
    }
}

/// Milliseconds since the kernel started.
pub(crate) fn boot_ms() -> u64 {
    use nix::time::{ClockId, clock_gettime};
    // This clock goes on while the machine sleeps (clock_gettime(2)).
    let since = clock_gettime(ClockId::CLOCK_BOOTTIME).map(std::time::Duration::from);
    since.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

/// The wall clock in RFC 3339. Returns `None` if it shows a time before the program was built.
pub(crate) fn now() -> Option<String> {
    let now = Timestamp::now();
    // A time before the build is that of a clock that was never set.
    let sane = u64::try_from(now.as_second()).is_ok_and(|now| now >= alknet_init::BUILD_TIME_S);
    sane.then(|| format!("{now:.3}"))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::super::log_rate::{LIBRARY_RECORDS_MAX, RATE_PERIOD};
    use super::*;

    /// The records that a reader gets without waiting.
    fn there(reader: &mut LogReader) -> Vec<LogEntry> {
        std::iter::from_fn(|| reader.take()).collect()
    }

    fn past(ring: &NodeLogRing, last: usize) -> Vec<Arc<LogRecord>> {
        let record = |entry| match entry {
            LogEntry::Record(record) => record,
            LogEntry::Lost(lost) => panic!("{lost} records were lost"),
        };
        let entries = there(&mut ring.read(last, false));
        entries.into_iter().map(record).collect()
    }

    fn record(message: &str) -> LogRecord {
        LogRecord {
            boot_ms: 1,
            time: None,
            level: "info".to_owned(),
            target: "test".to_owned(),
            message: message.to_owned(),
        }
    }

    /// PID 1 reads that much of a line at once: the rest would be a line of its own.
    #[test]
    fn a_line_is_no_longer_than_pid_1_reads_at_once() {
        let ring = NodeLogRing::new();
        let layer = RingLayer {
            ring: ring.clone(),
            stderr: StderrFormat::Prefixed,
            rates: LogRates::default(),
            clock: Instant::now,
        };
        for length in [MESSAGE_BYTES_MAX - 20, MESSAGE_BYTES_MAX, 1 << 20] {
            let text = "é".repeat(length / 2);
            layer.write("warn", "alknet_sessions::host", text, RecordPayer::Node(1));
        }
        let records = past(&ring, usize::MAX);
        assert_eq!(records.len(), 3);
        for record in records {
            let line = StderrFormat::Prefixed.line(&record);
            assert!(line.len() <= MESSAGE_BYTES_MAX, "{}", line.len());
            assert!(line.ends_with("…\n") && line.starts_with("<4>sessions: é"));
        }
    }

    #[test]
    fn the_ring_stays_within_its_bytes() {
        let ring = NodeLogRing::new();
        for n in 0..20_000 {
            ring.push(record(&format!("{n} {}", "x".repeat(200))));
        }
        let records = past(&ring, usize::MAX);
        let kept = |it: &Arc<LogRecord>| it.message.len() + it.target.len();
        let text: usize = records.iter().map(kept).sum();
        assert!(
            (RING_BYTES_MAX / 2..=RING_BYTES_MAX).contains(&text),
            "{text} bytes of text"
        );
        assert!(ring.lock().bytes() <= RING_BYTES_MAX);
        assert!(
            records
                .last()
                .is_some_and(|r| r.message.starts_with("19999 "))
        );
    }

    #[test]
    fn a_long_message_is_cut_at_a_character() {
        let ring = NodeLogRing::new();
        ring.push(record(&"ä".repeat(MESSAGE_BYTES_MAX)));
        let records = past(&ring, 1);
        assert!(records[0].message.ends_with('…') && records[0].message.len() <= MESSAGE_BYTES_MAX);
    }

    #[test]
    fn no_record_looks_like_two() {
        let text = LogText {
            hash_addresses: None,
            message: "the peer said: bye\n2026 info node: all is well\x1b[2J\u{202e} ä".to_owned(),
            fields: String::new(),
        };
        let shown = "the peer said: bye\\u{a}2026 info node: all is well\\u{1b}[2J\\u{202e} ä";
        assert_eq!(text.finish(), shown);
    }

    #[test]
    fn hashed_addresses_tell_one_from_another_and_not_which() {
        let ring = NodeLogRing::new();
        let hash = ring.hashed("192.0.2.1:443");
        assert_eq!(hash, ring.hashed("192.0.2.1:50000"));
        assert_eq!(hash, ring.hashed("192.0.2.1"));
        assert_ne!(hash, ring.hashed("192.0.2.2:443"));
        assert!(hash.len() == 9 && !hash.contains('.'));
        assert_ne!(
            hash,
            NodeLogRing::new().hashed("192.0.2.1"),
            "another start"
        );
    }

    /// Target of the test records that stand for a library's.
    const LIBRARY: &str = "a_library";

    /// The records of the library that the ring has: first, one call site logs one record more than
    /// its limit within a minute. A minute later, `later` logs.
    fn kept_of_library(later: impl FnOnce(&dyn Fn())) -> Vec<String> {
        let ring = NodeLogRing::new();
        let (start, periods) = (Instant::now(), Arc::new(AtomicU32::new(0)));
        let passed = Arc::clone(&periods);
        let layer = RingLayer {
            ring: ring.clone(),
            stderr: StderrFormat::Plain,
            rates: LogRates::default(),
            clock: move || start + RATE_PERIOD * passed.load(Ordering::Relaxed),
        };
        let says = || tracing::warn!(target: LIBRARY, "refused");
        let subscriber = tracing_subscriber::registry().with(layer);
        tracing::subscriber::with_default(subscriber, || {
            for _ in 0..=LIBRARY_RECORDS_MAX {
                says();
            }
            periods.store(1, Ordering::Relaxed);
            later(&says);
        });
        let records = past(&ring, usize::MAX);
        let of_library = records.iter().filter(|record| record.target == LIBRARY);
        of_library.map(|record| record.message.clone()).collect()
    }

    #[test]
    fn records_of_a_library_are_counted_before_they_reach_the_ring() {
        let mut expected = vec!["refused".to_owned(); LIBRARY_RECORDS_MAX as usize];
        let kept = kept_of_library(|says| says());
        expected.push("refused left_out=1".to_owned());
        assert_eq!(kept, expected);
        let elsewhere = kept_of_library(|_| tracing::warn!("of the node"));
        expected.pop();
        expected.push("records of the last minutes were left out left_out=1".to_owned());
        assert_eq!(elsewhere, expected);
    }

    fn entry(message: &str) -> LogEntry {
        LogEntry::Record(Arc::new(record(message)))
    }

    /// A record in the middle gives way to those of a payer that has less.
    #[test]
    fn a_reader_learns_of_records_that_are_missing_between_others() {
        let ring = NodeLogRing::new();
        let long = "x".repeat(MESSAGE_BYTES_MAX);
        let push = |text: &str, payer| ring.push_for(record(text), RecordPayer::Other(payer));
        push("kept", 1);
        let mut reader = ring.read(1, true);
        let fills = RING_BYTES_MAX / MESSAGE_BYTES_MAX;
        for _ in 0..2 * fills {
            push(&long, 2);
        }
        let entries = there(&mut reader);
        let there_is = ring.lock().len() as u64;
        let lost = ring.lock().next() - there_is;
        assert!(entries.contains(&LogEntry::Lost(lost)));
        assert!(entries.contains(&entry("kept")));
        assert_eq!(entries.len() as u64 - 1 + lost, 2 * fills as u64 + 1);
        // What was missing when a reader began is no loss of its own.
        assert_eq!(past(&ring, usize::MAX).len(), ring.lock().len());
    }

    #[tokio::test]
    async fn followers_get_the_past_once_and_then_the_present() {
        let ring = NodeLogRing::new();
        ring.push(record("a"));
        ring.push(record("b"));
        let (mut ends, mut follows) = (ring.read(1, false), ring.read(1, true));
        ring.push(record("c"));
        assert_eq!(ends.next().await, Some(entry("b")));
        assert_eq!(ends.next().await, None, "what came later is not the past");
        assert_eq!(follows.next().await, Some(entry("b")));
        assert_eq!(follows.next().await, Some(entry("c")));
        let next = tokio::spawn(async move { follows.next().await });
        tokio::task::yield_now().await;
        assert!(!next.is_finished());
        ring.push(record("d"));
        assert_eq!(next.await.expect("no panic"), Some(entry("d")));
        let mut follows = ring.read(0, true);
        ring.push(record("e"));
        follows.stop();
        ring.push(record("f"));
        assert_eq!(follows.next().await, Some(entry("e")));
        assert_eq!(follows.next().await, None, "it follows no longer");
    }

    #[test]
    fn readers_share_the_records_and_learn_how_many_they_lost() {
        let ring = NodeLogRing::new();
        let long = "x".repeat(MESSAGE_BYTES_MAX);
        ring.push(record(&long));
        ring.push(record("b"));
        let mut readers: Vec<_> = (0..64).map(|n| ring.read(2, n % 2 == 0)).collect();
        // The reader has the ring's own record, and no copy of it.
        let kept = ring.lock().get(0).map(|(_, record)| Arc::downgrade(record));
        let kept = kept.expect("a record");
        assert_eq!(kept.strong_count(), 1);
        let fills = RING_BYTES_MAX / MESSAGE_BYTES_MAX + 2;
        for _ in 0..fills {
            ring.push(record(&long));
        }
        assert_eq!(kept.strong_count(), 0, "it is dropped");
        let there_is = ring.lock().len();
        let dropped = ring.lock().next() - there_is as u64;
        for (n, reader) in readers.iter_mut().enumerate() {
            let follows = n % 2 == 0;
            let mut entries = there(reader).into_iter();
            let lost = if follows { dropped } else { 2 };
            assert_eq!(entries.next(), Some(LogEntry::Lost(lost)), "{n}");
            assert_eq!(entries.count(), if follows { there_is } else { 0 }, "{n}");
        }
    }
}
