//! The settings of a session.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::clock::SessionTimeSource;
use crate::limits::IsolateLimits;
use crate::modules::ModuleSet;

/// How long a session stays open, and what its scripts may be.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub enum SessionMode {
    /// Modules of a frozen graph, without `eval`. A call fails if nothing can settle its promise any more.
    OneShot,
    /// Like `OneShot`, but the session waits for further calls, which may settle the promises of earlier ones.
    Service,
    /// Lines that a person types: `eval` and `Function` exist.
    Repl,
}

/// The parts of the API that a session's grants enable. A part that is not granted does not exist as a global, so a
/// script can check with `typeof`.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct GlobalGrants {
    /// `ops`: the session may call or register operations.
    pub ops: bool,
    /// `tensor`: the session may call `tensor/open`.
    pub tensor: bool,
    /// `gpu`: the session may call `compute/dispatch`.
    pub gpu: bool,
}

impl Default for GlobalGrants {
    fn default() -> Self {
        Self {
            ops: true,
            tensor: false,
            gpu: false,
        }
    }
}

/// The settings that decide what a session computes. Two sessions with an equal `IsolateSpec` (including seed and
/// clock) and equal replies give equal bytes and take equal fuel.
#[derive(Clone, Debug)]
pub struct IsolateSpec {
    /// The limits.
    pub limits: IsolateLimits,
    /// The source of its time.
    pub clock: SessionTimeSource,
    /// The seed of `Math.random`; without it, the system's generator makes a seed.
    pub seed: Option<[u8; 32]>,
    /// Whether `crypto.getRandomValues` uses the seed too. This is only for replays, because seeded values are no
    /// secrets.
    pub seeded_crypto: bool,
    /// The modules.
    pub modules: Arc<ModuleSet>,
    /// How long it stays open.
    pub mode: SessionMode,
    /// The granted globals.
    pub grants: GlobalGrants,
    /// Whether the built-in objects are frozen before any module runs, for module graphs of several owners.
    pub frozen: bool,
    /// Whether this is the engine of a test case; only `ops.test` sets it.
    pub(crate) testing: bool,
}

impl IsolateSpec {
    /// A session with `modules`, default limits, real time and a fresh seed.
    #[must_use]
    pub fn new(modules: ModuleSet) -> Self {
        Self {
            limits: IsolateLimits::default(),
            clock: SessionTimeSource::System,
            seed: None,
            seeded_crypto: false,
            modules: Arc::new(modules),
            mode: SessionMode::OneShot,
            grants: GlobalGrants::default(),
            frozen: false,
            testing: false,
        }
    }

    /// Like `new`, with a virtual clock and a seed for all random values, so that it can be replayed.
    #[must_use]
    pub fn deterministic(mut self, seed: [u8; 32], start_ms: i64) -> Self {
        self.seed = Some(seed);
        self.seeded_crypto = true;
        self.clock = SessionTimeSource::Virtual { start_ms };
        self
    }

    /// Whether replies reach the script in the order of their calls, whichever arrives first.
    pub(crate) const fn ordered(&self) -> bool {
        matches!(self.clock, SessionTimeSource::Virtual { .. })
    }
}
