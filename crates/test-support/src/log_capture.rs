//! Captures the log of the code under test, for tests to check.
//!
//! A subscriber of one thread alone misses lines now and then: `tracing-core` remembers for the whole process whether
//! a call site logs at all, and while there is one subscriber, it asks only the thread that comes by first. So there
//! is one subscriber for the process, which passes each line to the listener of the thread that logs it.

use std::cell::RefCell;
use std::fmt::Debug;
use std::rc::Rc;
use std::sync::Once;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber, span};

thread_local! {
    static LINES: RefCell<Option<Rc<RefCell<Vec<CapturedLine>>>>> = const { RefCell::new(None) };
}

/// One line of the log.
#[derive(Clone, Debug)]
pub struct CapturedLine {
    pub target: &'static str,
    pub level: Level,
    /// The fields in their order. The message is one of them.
    pub fields: Vec<(&'static str, String)>,
}

impl CapturedLine {
    /// The field `name`.
    pub fn field(&self, name: &str) -> Option<&str> {
        let found = self.fields.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| value.as_str())
    }

    /// The message, without the other fields.
    pub fn message(&self) -> &str {
        self.field("message").unwrap_or_default()
    }
}

impl Visit for CapturedLine {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.fields.push((field.name(), value.to_owned()));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.fields.push((field.name(), format!("{value:?}")));
    }
}

/// Every line that this thread logs, from [`LogCapture::listen`] on until this is dropped.
#[derive(Debug)]
pub struct LogCapture(Rc<RefCell<Vec<CapturedLine>>>);

impl LogCapture {
    /// # Panics
    ///
    /// Where this thread has a listener already, or the process has another subscriber.
    pub fn listen() -> Self {
        static INSTALLED: Once = Once::new();
        INSTALLED.call_once(|| {
            let installed = tracing::subscriber::set_global_default(CaptureSubscriber);
            installed.expect("the process has no other subscriber");
        });
        let lines = Rc::default();
        let before = LINES.replace(Some(Rc::clone(&lines)));
        assert!(before.is_none(), "this thread is listened to already");
        Self(lines)
    }

    /// Takes the logged lines that `wanted` selects and drops the rest.
    pub fn take(&self, wanted: impl Fn(&CapturedLine) -> bool) -> Vec<CapturedLine> {
        let lines = self.0.take();
        lines.into_iter().filter(wanted).collect()
    }
}

impl Drop for LogCapture {
    fn drop(&mut self) {
        LINES.take();
    }
}

struct CaptureSubscriber;

impl Subscriber for CaptureSubscriber {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        // An ending thread has no listener any more.
        let lines = LINES.try_with(|lines| lines.borrow().clone());
        let Some(lines) = lines.ok().flatten() else {
            return;
        };
        let mut line = CapturedLine {
            target: event.metadata().target(),
            level: *event.metadata().level(),
            fields: Vec::new(),
        };
        event.record(&mut line);
        lines.borrow_mut().push(line);
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn say(what: &str) {
        tracing::info!(target: "here", %what, "said");
    }

    #[test]
    fn a_thread_sees_its_own_records_whichever_was_first() {
        let capture = LogCapture::listen();
        let other = thread::spawn(|| say("elsewhere"));
        other.join().expect("it ends");
        say("here");
        let lines = capture.take(|line| line.target == "here");
        assert_eq!(lines.len(), 1, "{lines:?}");
        let line = &lines[0];
        assert_eq!(line.level, Level::INFO);
        assert_eq!(line.message(), "said");
        assert_eq!(line.field("what"), Some("here"));
        assert!(capture.take(|_| true).is_empty(), "each is taken once");
        drop(capture);
        say("to no reader");
        assert!(LogCapture::listen().take(|_| true).is_empty());
    }
}
