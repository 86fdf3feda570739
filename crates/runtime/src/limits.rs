//! All limits of a session, as constants with a unit and a reason.
//!
//! Limits that a session may set are fields of [`IsolateLimits`]; the others are constants. `docs/scripts.md` lists
//! them all, and a test reaches each.

use std::ops::RangeInclusive;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{RuntimeCode, ScriptFailure};

/// Poll points in one tick of fuel, which is the interval of the engine's checks. Jumps and calls are poll points; a
/// plain loop has two per round.
pub const POLL_POINTS_PER_TICK: u64 = 10_000;
/// The most CPU time for one call.
pub const CPU_MAX: Duration = Duration::from_secs(300);
/// The smallest heap with which a session works: the globals alone take a large part of it.
pub const HEAP_BYTES_MIN: usize = 1 << 20;
/// The largest heap for a session.
pub const HEAP_BYTES_MAX: usize = 1 << 30;
/// The smallest stack with which a session works.
pub const STACK_BYTES_MIN: usize = 64 << 10;
/// The largest stack for a session. The thread needs 128 KiB more for calls into Rust.
pub const STACK_BYTES_MAX: usize = 1 << 20;
/// The length of one module's source.
pub const SOURCE_BYTES: usize = 1 << 20;
/// Modules of one graph, without the embedded ones.
pub const MODULES: usize = 256;
/// Jobs (promise reactions and microtasks) that one turn may run.
pub const JOBS_PER_TURN: u64 = 100_000;
/// The depth of a JSON value between a script and its host.
pub const JSON_DEPTH: usize = 64;
/// The size in memory of a JSON value from a script ([`crate::weight`]), and the length of the text of one for a
/// script.
pub const JSON_BYTES: usize = 4 << 20;
/// Different names of members in a JSON value for a script that share one of 65,536 places in the engine's table of
/// names. The engine compares a name with all others of its place, and nothing interrupts it. Of 300,000 common names,
/// no place has more than twenty.
pub const NAMES_ALIKE_MAX: usize = 256;
/// Items of a subscription that the host sent and the script did not take yet.
pub const UNACKNOWLEDGED: usize = 16;
/// Timers that wait at the same time.
pub const TIMERS: usize = 1024;
/// Subscriptions that are open at the same time.
pub const SUBSCRIPTIONS: usize = 64;
/// Operations that one session may register.
pub const REGISTERED: usize = 256;
/// Cases of one `ops.test`.
pub const TEST_CASES: usize = 256;
/// Calls in a record.
pub const RECORDED_MAX: usize = 1_000;
/// Bytes of all recorded calls as JSON text, with bytes in base64: half of the longest answer, so that a script's own
/// value fits beside them.
pub const RECORDED_BYTES_MAX: usize = 512 << 10;
/// The memory of recorded values, as a multiple of [`RECORDED_BYTES_MAX`].
pub const RECORDED_MEMORY_FACTOR: usize = 8;
/// Imports, and places that make code of text, that a scan of one source reports.
pub const LOOKED: usize = 1_000;
/// Text that `console` may write within one second. A second of the node's clock also where the session's is virtual:
/// such a session says itself when its second is over.
pub const LOG_BYTES_PER_SECOND: usize = 64 << 10;
/// What a line of `console` counts beside its text, in bytes: an empty line is work for the node as well.
pub const LOG_LINE_EXTRA_BYTES: usize = 32;
/// The length of one line of `console`; the rest is cut.
pub const LOG_LINE_BYTES: usize = 8 << 10;
/// Random bytes of one `crypto.getRandomValues`, as in browsers.
pub const RANDOM_BYTES: usize = 65_536;

/// The limits of one session. Fuel and CPU time are for each call, and all others for the session.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct IsolateLimits {
    /// The fuel of a call, in units of [`POLL_POINTS_PER_TICK`]. The same script with the same input always uses the
    /// same fuel.
    pub fuel_ticks: u64,
    /// The CPU time of a call, on the thread that runs it.
    pub cpu: Duration,
    /// Bytes that the engine may allocate.
    pub heap_bytes: usize,
    /// Bytes outside the engine's heap that the script can see.
    pub external_bytes: usize,
    /// The depth of the stack, in bytes.
    pub stack_bytes: usize,
    /// Calls and subscriptions during the whole session.
    pub calls: u64,
    /// Calls without an answer yet, and subscriptions that wait for an item.
    pub calls_in_flight: usize,
}

impl IsolateLimits {
    /// Refuses limits that are above a hard cap, or too small to work with.
    ///
    /// ```
    /// use alknet_runtime::IsolateLimits;
    ///
    /// assert!(IsolateLimits::default().checked().is_ok());
    /// let no_fuel = IsolateLimits {
    ///     fuel_ticks: 0,
    ///     ..IsolateLimits::default()
    /// };
    /// assert!(no_fuel.checked().is_err());
    /// ```
    ///
    /// # Errors
    /// [`RuntimeCode::Limit`] with the name of the limit and its range, as [`out_of_range`] gives them.
    pub fn checked(self) -> Result<Self, ScriptFailure> {
        let heap = HEAP_BYTES_MIN as u64..=HEAP_BYTES_MAX as u64;
        let stack = STACK_BYTES_MIN as u64..=STACK_BYTES_MAX as u64;
        let cpu = !self.cpu.is_zero() && self.cpu <= CPU_MAX;
        let is_heap = heap.contains(&(self.heap_bytes as u64));
        let is_stack = stack.contains(&(self.stack_bytes as u64));
        let checks = [
            (self.fuel_ticks > 0, "fuel_ticks", 1..=u64::MAX),
            (cpu, "cpu_ms", 1..=CPU_MAX.as_secs() * 1000),
            (is_heap, "heap_bytes", heap),
            (is_stack, "stack_bytes", stack),
        ];
        match checks.into_iter().find(|(is_valid, ..)| !is_valid) {
            Some((_, field, range)) => Err(out_of_range(field, &range)),
            None => Ok(self),
        }
    }
}

/// The refusal of a limit outside of its range. `field` is the name that the input of `runtime/eval` has for it, where
/// times are in milliseconds.
#[must_use]
pub fn out_of_range(field: &str, range: &RangeInclusive<u64>) -> ScriptFailure {
    let least = range.start();
    let text = match *range.end() {
        u64::MAX => format!("{least} at least"),
        most => format!("{least} to {most}"),
    };
    ScriptFailure::new(
        RuntimeCode::Limit,
        format!("the limit {field} is out of its range: {text}"),
    )
}

impl Default for IsolateLimits {
    fn default() -> Self {
        Self {
            fuel_ticks: 5_000,
            cpu: Duration::from_secs(5),
            heap_bytes: 64 << 20,
            external_bytes: 256 << 20,
            stack_bytes: 256 << 10,
            calls: 1_000,
            calls_in_flight: 64,
        }
    }
}
