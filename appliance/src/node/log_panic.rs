//! A panic as one record of the log.
//!
//! The standard library's hook prints a panic on several lines, and PID 1 reads each line of a node as a record of its
//! own: a text in a panic could forge records of any level.

use std::any::Any;
use std::cell::Cell;
use std::marker::PhantomData;
use std::panic::{self, PanicHookInfo};

/// Target of the records. It does not begin as the node's own targets do, so that the records have the rate of a
/// library: a client that finds a panic can cause it as often as it likes.
const PANIC_TARGET: &str = "panic";

thread_local! {
    /// Whether this thread is writing a record.
    static WITHIN_LOG: Cell<bool> = const { Cell::new(false) };
}

/// Marks that this thread is writing a record, until it is dropped.
pub(super) struct WithinLog(PhantomData<*const ()>);

impl WithinLog {
    pub(super) fn enter() -> Self {
        WITHIN_LOG.set(true);
        Self(PhantomData)
    }
}

impl Drop for WithinLog {
    fn drop(&mut self) {
        WITHIN_LOG.set(false);
    }
}

/// Makes each panic of this process one record of the log.
pub(super) fn record_panics() {
    panic::set_hook(Box::new(record));
}

fn record(info: &PanicHookInfo<'_>) {
    // The log panicked itself, and this thread may hold its locks: to write another record would wait for them for
    // ever.
    if WITHIN_LOG.get() {
        return;
    }
    let place = info.location().map(ToString::to_string);
    let place = place.unwrap_or_else(|| "an unknown place".to_owned());
    let text = text_of(info.payload());
    tracing::error!(target: PANIC_TARGET, "a thread panicked at {place}: {text}");
}

/// What the panic says. Only `panic_any` gives something else than a text.
fn text_of(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<&'static str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no text")
}

#[cfg(test)]
mod tests {
    use super::super::log::{self, LogEntry, NodeLogRing, StderrFormat};

    /// The second line would be a record of its own for PID 1, by which a node says that it is about to end.
    const FORGED: &str = "bad input: first\n<0>node: the vault is open";

    #[test]
    fn a_panic_is_one_record() {
        let name = "node::log_panic::tests::a_panic_is_one_record";
        alknet_test_support::alone(name, || {
            let ring = NodeLogRing::new();
            log::install(&ring, StderrFormat::Prefixed);
            let ended = std::thread::spawn(|| panic!("{FORGED}")).join();
            assert!(ended.is_err(), "it panicked");
            let mut reader = ring.read(usize::MAX, false);
            let first = futures_util::FutureExt::now_or_never(reader.next()).flatten();
            let Some(LogEntry::Record(record)) = first else {
                panic!("no record: {first:?}");
            };
            assert_eq!((&*record.level, &*record.target), ("error", "panic"));
            assert!(record.message.contains("log_panic.rs"), "{record:?}");
            assert!(
                record
                    .message
                    .ends_with("first\\u{a}<0>node: the vault is open"),
                "{record:?}"
            );
            let next = futures_util::FutureExt::now_or_never(reader.next());
            assert_eq!(next, Some(None), "it is one record");
        });
    }
}
