//! Every limit of a session, as a constant with its unit and its reason.
//!
//! What a session may set is a field of [`IsolateLimits`]; what it may not is a constant. Each is listed in
//! `docs/scripts.md`, and a test hits each.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{RuntimeCode, ScriptFailure};

/// Poll points (jumps, calls; a plain loop has two a round) in one tick of fuel: the interval at which the engine asks.
pub const POLL_POINTS_PER_TICK: u64 = 10_000;
/// Most CPU time that one call can be given.
pub const CPU_MAX: Duration = Duration::from_secs(300);
/// Least heap a session works with: the globals alone take a good part of it.
pub const HEAP_BYTES_MIN: usize = 1 << 20;
/// Most heap a session can be given.
pub const HEAP_BYTES_MAX: usize = 1 << 30;
/// Least stack a session works with.
pub const STACK_BYTES_MIN: usize = 64 << 10;
/// Most stack a session can be given. The thread needs 128 KiB more, for the calls into Rust.
pub const STACK_BYTES_MAX: usize = 1 << 20;
/// Length of one module's source.
pub const SOURCE_BYTES: usize = 1 << 20;
/// Modules of one graph, the embedded ones aside.
pub const MODULES: usize = 256;
/// Jobs (promise reactions, microtasks) that one turn may run.
pub const JOBS_PER_TURN: u64 = 100_000;
/// Depth of a JSON value that crosses between a script and its host.
pub const JSON_DEPTH: usize = 64;
/// Size of a JSON value that crosses from a script, in memory ([`crate::weight`]); the text of one that
/// crosses to a script.
pub const JSON_BYTES: usize = 4 << 20;
/// Items of a subscription that the host sent and the script did not take yet.
pub const UNACKNOWLEDGED: usize = 16;
/// Timers that wait at the same time.
pub const TIMERS: usize = 1024;
/// Subscriptions open at the same time.
pub const SUBSCRIPTIONS: usize = 64;
/// Operations that one session registers.
pub const REGISTERED: usize = 256;
/// Cases of one `ops.test`.
pub const TEST_CASES: usize = 256;
/// Calls that a record keeps.
pub const RECORDED_MAX: usize = 1_000;
/// Bytes of all of them, as their JSON text is long, bytes as base64 included: half of what an answer
/// may be long, so that a script's own value finds room beside them.
pub const RECORDED_BYTES_MAX: usize = 512 << 10;
/// How many times as much memory as [`RECORDED_BYTES_MAX`] recorded values may take.
pub const RECORDED_MEMORY_FACTOR: usize = 8;
/// Imports, and places that make code of text, that a scan reports of one source.
pub const LOOKED: usize = 1_000;
/// Text that `console` may write within one second. A second of the node's clock also where the session's is virtual:
/// such a session says itself when its second is over.
pub const LOG_BYTES_PER_SECOND: usize = 64 << 10;
/// What a line of `console` counts beside its text, in bytes: an empty line is work for the node as well.
pub const LOG_LINE_EXTRA_BYTES: usize = 32;
/// Length of one line of `console`; the rest is cut.
pub const LOG_LINE_BYTES: usize = 8 << 10;
/// Random bytes of one `crypto.getRandomValues`, as browsers have it.
pub const RANDOM_BYTES: usize = 65_536;

/// What one session may use. Fuel and CPU time are per call, everything else per session.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct IsolateLimits {
    /// Ticks of [`POLL_POINTS_PER_TICK`] for a call. The same script on the same input always takes
    /// the same number.
    pub fuel_ticks: u64,
    /// CPU time of a call, of the thread that runs it.
    pub cpu: Duration,
    /// Bytes the engine may have allocated.
    pub heap_bytes: usize,
    /// Bytes outside the engine's heap that the script can see.
    pub external_bytes: usize,
    /// Depth of the stack, in bytes.
    pub stack_bytes: usize,
    /// Calls and subscriptions during the whole session.
    pub calls: u64,
    /// Calls not answered yet, and subscriptions waiting for an item.
    pub calls_in_flight: usize,
}

impl IsolateLimits {
    /// Refuses what is above a hard cap or too small to work with.
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
    /// [`RuntimeCode::Limit`], with the name of the field.
    pub fn checked(self) -> Result<Self, ScriptFailure> {
        let heap = (HEAP_BYTES_MIN..=HEAP_BYTES_MAX).contains(&self.heap_bytes);
        let stack = (STACK_BYTES_MIN..=STACK_BYTES_MAX).contains(&self.stack_bytes);
        let wrong = [
            (self.fuel_ticks > 0, "fuel_ticks"),
            (!self.cpu.is_zero() && self.cpu <= CPU_MAX, "cpu"),
            (heap, "heap_bytes"),
            (stack, "stack_bytes"),
        ];
        match wrong.into_iter().find(|(fits, _)| !fits) {
            Some((_, field)) => Err(ScriptFailure::new(
                RuntimeCode::Limit,
                format!("the limit {field} is out of its range"),
            )),
            None => Ok(self),
        }
    }
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
