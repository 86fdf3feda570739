//! What a session is made of.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::clock::SessionTimeSource;
use crate::limits::IsolateLimits;
use crate::modules::ModuleSet;

/// How long a session lives and what its scripts may be.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub enum SessionMode {
    /// Modules of a frozen graph, no `eval`. A call whose promise nothing can settle any more fails.
    OneShot,
    /// As `OneShot`, but waits for further calls, which may settle what earlier ones wait for.
    Service,
    /// Lines that a person types: `eval` and `Function` exist.
    Repl,
}

/// The parts of the API that a session's grants switch on. What is not granted does not exist as a
/// global, so that a script can ask with `typeof`.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct GlobalGrants {
    /// `ops`: the session may call something, or register.
    pub ops: bool,
    /// `tensor`: it may call `tensor/open`.
    pub tensor: bool,
    /// `gpu`: it may call `compute/dispatch`.
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

/// Everything that decides what a session computes. Two sessions with an equal `IsolateSpec` (seed and
/// clock included) and equal replies give equal bytes and take equal fuel.
#[derive(Clone, Debug)]
pub struct IsolateSpec {
    /// What it may use.
    pub limits: IsolateLimits,
    /// Its time.
    pub clock: SessionTimeSource,
    /// Seed of `Math.random`; the system's generator seeds it when absent.
    pub seed: Option<[u8; 32]>,
    /// Whether `crypto.getRandomValues` comes from the seed too. Only for replays: what is seeded
    /// is no secret.
    pub seeded_crypto: bool,
    /// Its modules.
    pub modules: Arc<ModuleSet>,
    /// How long it lives.
    pub mode: SessionMode,
    /// Which globals it has.
    pub grants: GlobalGrants,
    /// Freeze the built-in objects before any module runs: for graphs of several owners.
    pub frozen: bool,
    /// Whether this is the engine of a test case; set by `ops.test` alone.
    pub(crate) testing: bool,
}

impl IsolateSpec {
    /// A session over `modules` with default limits, real time and a fresh seed.
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

    /// The same with a virtual clock and a seed for everything random, so that it can be replayed.
    #[must_use]
    pub fn deterministic(mut self, seed: [u8; 32], start_ms: i64) -> Self {
        self.seed = Some(seed);
        self.seeded_crypto = true;
        self.clock = SessionTimeSource::Virtual { start_ms };
        self
    }

    /// Whether replies reach the script in the order of their calls, whichever comes first.
    pub(crate) const fn ordered(&self) -> bool {
        matches!(self.clock, SessionTimeSource::Virtual { .. })
    }
}
