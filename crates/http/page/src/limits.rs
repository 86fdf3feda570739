//! Bounds of the page.

use std::time::Duration;

/// How long a link can be used.
pub const TICKET_TIME: Duration = Duration::from_secs(60);
/// Links that wait to be used.
pub const TICKETS_MAX: usize = 64;
/// How long a session lasts without a request.
pub const SESSION_IDLE: Duration = Duration::from_secs(30 * 60);
/// How long a session lasts at most.
pub const SESSION_TIME: Duration = Duration::from_secs(12 * 3600);
/// Sessions at once.
pub const SESSIONS_MAX: usize = 64;
/// Sessions of one identity at once; another ends the one that was idle for the longest time.
pub const SESSIONS_PER_IDENTITY: usize = 8;
/// Bytes of a submitted form.
pub const FORM_BYTES_MAX: usize = 1024;
/// How often an open page is brought up to date; tests do not wait for it.
pub const LIVE_EVERY: Duration = Duration::from_millis(if cfg!(test) { 10 } else { 5000 });
/// How often numbers are taken down for the plots.
pub const SAMPLE_EVERY: Duration = Duration::from_secs(5);
/// Numbers that are kept for the plots: a quarter of an hour.
pub const SAMPLES_MAX: usize = 180;
/// The time whose calls say whether many fail.
pub const FAILURES_WITHIN: Duration = Duration::from_secs(60);
/// So many calls have to fail in [`FAILURES_WITHIN`] before the page calls them many: fewer are a single client's
/// mistakes.
pub const FAILURES_MANY: f64 = 5.0;
/// And so large a part of all calls in that time, of 1.
pub const FAILURES_MANY_PART: f64 = 0.05;
/// Numbers are taken down for so long after a viewer last looked.
pub const LOOKED_LATELY: Duration = Duration::from_secs(10 * 60);
/// How long the page waits for what one operation answers.
pub const ASK_TIME: Duration = Duration::from_secs(5);
/// Rows of a table; more are counted.
pub const ROWS_MAX: usize = 200;
/// Records of the log that are shown.
pub const LOG_LINES: usize = 60;
/// Characters of one text that did not originate on this node.
pub const TEXT_CHARS_MAX: usize = 400;
