//! Limits of the page.

use std::time::Duration;

/// How long a link stays valid.
pub const TICKET_TIME: Duration = Duration::from_secs(60);
/// The most links that wait to be used.
pub const TICKETS_MAX: usize = 64;
/// How long a session lasts without a request.
pub const SESSION_IDLE: Duration = Duration::from_secs(30 * 60);
/// The longest time that a session lasts.
pub const SESSION_TIME: Duration = Duration::from_secs(12 * 3600);
/// The most sessions at once.
pub const SESSIONS_MAX: usize = 64;
/// The most sessions of one identity at once; a further one ends the session that was idle for the longest time.
pub const SESSIONS_PER_IDENTITY: usize = 8;
/// Bytes of a submitted form.
pub const FORM_BYTES_MAX: usize = 1024;
/// How often the node updates an open page; tests use a shorter interval.
pub const LIVE_EVERY: Duration = Duration::from_millis(if cfg!(test) { 10 } else { 5000 });
/// How often a sample is taken for the plots.
pub const SAMPLE_EVERY: Duration = Duration::from_secs(5);
/// The most samples for the plots: a quarter of an hour.
pub const SAMPLES_MAX: usize = 180;
/// The period whose calls decide whether many calls fail.
pub const FAILURES_WITHIN: Duration = Duration::from_secs(60);
/// The least number of failed calls in [`FAILURES_WITHIN`] that the page shows as many: fewer are a single client's
/// mistakes.
pub const FAILURES_MANY: f64 = 5.0;
/// The least part of all calls in that period that must have failed too, of 1.
pub const FAILURES_MANY_PART: f64 = 0.05;
/// How long samples are taken after a viewer last read the page.
pub const LOOKED_LATELY: Duration = Duration::from_secs(10 * 60);
/// How long the page waits for the output of one operation.
pub const ASK_TIME: Duration = Duration::from_secs(5);
/// The most rows of a table; the page states how many more there are.
pub const ROWS_MAX: usize = 200;
/// The records of the log that the page shows.
pub const LOG_LINES: usize = 60;
/// The most characters of one text that did not originate on this node.
pub const TEXT_CHARS_MAX: usize = 400;
