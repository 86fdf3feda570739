//! The settings of a session on the node's side.

use std::sync::Arc;
use std::time::Duration;

use alknet_call::{NameSet, ScopedPeerEnv};
use alknet_core::{Capabilities, Identity};
use alknet_runtime::limits::out_of_range;
use alknet_runtime::{IsolateLimits, ModuleSet, ScriptFailure, SessionMode, SessionTimeSource};
use alknet_worker::Bytes32;
use serde_json::Value;
use tokio::sync::mpsc;

use crate::limits::{
    CALLS_MAX, EXTERNAL_BYTES_MAX, FUEL_MAX, GPU_MAX, WALL_MAX, WALL_MAX_ONE_SHOT,
};

/// The settings that decide what a session may do.
#[derive(Clone, Debug)]
pub struct SessionSpec {
    /// The identity that runs the session. Its scopes are the most that the session's calls may use.
    pub identity: Option<Arc<Identity>>,
    /// The grants of the session, limited to what the operation that opens it reaches.
    pub grants: SessionGrants,
    /// The capabilities, with secrets that the session does not see; normally those of the operation that opens it.
    pub capabilities: Capabilities,
    /// The limits of the session.
    pub limits: SessionLimits,
    /// The source of its time.
    pub clock: SessionTimeSource,
    /// The seed of its randomness; with a seed, `crypto.getRandomValues` follows it too.
    pub seed: Option<[u8; 32]>,
    /// Its modules.
    pub modules: ModuleSet,
    /// The module of a service, which may export `init` and `dispose`.
    pub main: Option<String>,
    /// How long it stays open.
    pub mode: SessionMode,
    /// Whether the built-in objects are frozen before any module runs.
    pub frozen: bool,
    /// Whether it has a worker of its own, so that no other session can end it.
    pub alone: bool,
    /// Whether it runs for others than `identity`, the owner of its code. All such sessions together have half of the
    /// owner's sessions, and workers of their own.
    pub lent: bool,
    /// The caller, if another identity's share of the node's memory pays for the session's values.
    pub payer: Option<Arc<Identity>>,
    /// The listener of its console, in addition to the log.
    pub console: Option<Console>,
}

impl SessionSpec {
    /// A session with `modules` that may call nothing, with default limits and real time.
    #[must_use]
    pub fn new(identity: Option<Arc<Identity>>, modules: ModuleSet) -> Self {
        Self {
            identity,
            grants: SessionGrants::default(),
            capabilities: Capabilities::default(),
            limits: SessionLimits::default(),
            clock: SessionTimeSource::System,
            seed: None,
            modules,
            main: None,
            mode: SessionMode::OneShot,
            frozen: false,
            alone: false,
            lent: false,
            payer: None,
            console: None,
        }
    }

    /// Refuses settings that no session may have.
    pub(crate) fn check(&self) -> Result<(), ScriptFailure> {
        let wall_max = match self.mode {
            SessionMode::OneShot => WALL_MAX_ONE_SHOT,
            _ => WALL_MAX,
        };
        let limits = &self.limits;
        let runtime = &limits.runtime;
        let fuel = 1..=FUEL_MAX;
        let in_flight = IsolateLimits::default().calls_in_flight;
        let is_external = runtime.external_bytes <= EXTERNAL_BYTES_MAX;
        let is_in_flight = runtime.calls_in_flight <= in_flight;
        let is_wall = !limits.wall.is_zero() && limits.wall <= wall_max;
        let is_gpu = !limits.gpu.is_zero() && limits.gpu <= GPU_MAX;
        let checks = [
            (fuel.contains(&runtime.fuel_ticks), "fuel_ticks", fuel),
            (is_external, "external_bytes", 0..=EXTERNAL_BYTES_MAX as u64),
            (runtime.calls <= CALLS_MAX, "calls", 0..=CALLS_MAX),
            (is_in_flight, "calls_in_flight", 0..=in_flight as u64),
            (is_wall, "wall_ms", 1..=wall_max.as_secs() * 1000),
            (is_gpu, "gpu_ms", 1..=GPU_MAX.as_secs() * 1000),
        ];
        match checks.into_iter().find(|(is_valid, ..)| !is_valid) {
            Some((_, field, range)) => Err(out_of_range(field, &range)),
            // The isolate knows the ranges of the others.
            None => runtime.clone().checked().map(drop),
        }
    }

    /// The bytes that the session may make its worker use.
    pub(crate) fn memory(&self) -> u64 {
        let limits = &self.limits.runtime;
        limits.heap_bytes.saturating_add(limits.external_bytes) as u64
    }

    /// What crashes of its workers count against. `None` for a REPL: each line is another text, and none of them is a
    /// part of the bundle.
    pub(crate) fn operation(&self, bundle: Bytes32) -> Option<Bytes32> {
        (self.mode != SessionMode::Repl).then_some(bundle)
    }

    /// The hash of the code, by which the node recognises code that crashes its workers.
    pub(crate) fn bundle(&self) -> [u8; 32] {
        let mut hash = blake3::Hasher::new();
        for (name, text, _) in self.modules.entries() {
            // The length separates the parts: otherwise a different division into parts could have the same hash.
            for part in [name, text] {
                hash.update(&(part.len() as u64).to_le_bytes());
                hash.update(part.as_bytes());
            }
        }
        *hash.finalize().as_bytes()
    }
}

/// The limits of a session: those that its isolate enforces, and those of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionLimits {
    /// The limits of the isolate.
    pub runtime: IsolateLimits,
    /// The wall-clock time of a call, including waiting.
    pub wall: Duration,
    /// The GPU time of a call.
    pub gpu: Duration,
}

impl Default for SessionLimits {
    fn default() -> Self {
        Self {
            runtime: IsolateLimits::default(),
            wall: Duration::from_secs(30),
            gpu: Duration::from_secs(10),
        }
    }
}

/// The operations that a session may call: by default, it may call nothing.
#[derive(Clone, Debug, Default)]
pub struct SessionGrants {
    /// The allowed operations.
    pub allow: Vec<SessionGrant>,
    /// The denied operations, which take precedence: names, or `fs/*` for all operations below.
    pub deny: NameSet,
}

impl SessionGrants {
    /// Allows these operations without further conditions: names, or `fs/*` for all operations below.
    pub fn to<S: AsRef<str>>(patterns: impl IntoIterator<Item = S>) -> Self {
        let allow = patterns.into_iter().map(|p| SessionGrant::to(p.as_ref()));
        Self {
            allow: allow.collect(),
            deny: NameSet::default(),
        }
    }

    /// The part of these names that `within` also reaches: everywhere, or on a peer that a call names.
    pub(crate) fn scope(&self, within: &ScopedPeerEnv) -> ScopedPeerEnv {
        let patterns = || self.allow.iter().map(|grant| grant.pattern.as_str());
        let like = |scope: ScopedPeerEnv| match within.leaves_internal() {
            true => scope.without_internal(),
            false => scope,
        };
        let covers = |scope| within.covers(&like(scope));
        let covered = patterns().filter(|pattern| covers(ScopedPeerEnv::new([*pattern])));
        // These are included because an operation that is imported here from a server can be reached on a peer only
        // through the scope for routing.
        let routed = patterns().filter(|pattern| {
            let there = ScopedPeerEnv::default().with_routing_to([*pattern]);
            covers(there)
        });
        like(ScopedPeerEnv::new(covered).with_routing_to(routed))
    }

    /// The first grant for an operation on this peer.
    pub(crate) fn find(
        &self,
        operation: &str,
        peer: Option<&str>,
    ) -> Option<(usize, &SessionGrant)> {
        // A denied operation stays denied, whatever grant matches it.
        if self.deny.contains(operation) {
            return None;
        }
        let matches = |grant: &SessionGrant| {
            let names: NameSet = [&grant.pattern].into_iter().collect();
            names.contains(operation) && grant.peer.takes(peer)
        };
        self.allow
            .iter()
            .enumerate()
            .find(|(_, grant)| matches(grant))
    }
}

/// A grant for one operation or namespace.
#[derive(Clone, Debug)]
pub struct SessionGrant {
    /// A name, or `fs/*` for all operations below.
    pub pattern: String,
    /// The peers that may run it.
    pub peer: PeerSelector,
    /// The JSON Schema that the input must match.
    pub constraint: Option<Value>,
    /// The most calls in the whole session.
    pub budget: Option<u32>,
}

impl SessionGrant {
    /// A grant without further conditions.
    #[must_use]
    pub fn to(pattern: &str) -> Self {
        Self {
            pattern: pattern.to_owned(),
            peer: PeerSelector::Any,
            constraint: None,
            budget: None,
        }
    }
}

/// The peers on which an operation may be called.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PeerSelector {
    /// Any peer that serves it.
    #[default]
    Any,
    /// Only this peer.
    Id(String),
    /// Only this node: the call names no peer.
    Local,
}

impl PeerSelector {
    fn takes(&self, named: Option<&str>) -> bool {
        match self {
            Self::Any => true,
            Self::Id(id) => named == Some(id.as_str()),
            Self::Local => named.is_none(),
        }
    }
}

/// The listener of a session's console. Lines that it does not take in time are only in the log.
pub type Console = mpsc::Sender<SessionConsoleLine>;

/// A line of a session's console.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionConsoleLine {
    /// The level of the line.
    pub level: alknet_runtime::ConsoleLevel,
    /// The text without the end of the line.
    pub text: String,
}

#[cfg(test)]
mod tests {
    use alknet_runtime::RuntimeCode;

    use super::*;

    #[test]
    fn grants_are_what_both_sides_allow() {
        let grants = SessionGrants {
            deny: ["fs/secret"].into_iter().collect(),
            ..SessionGrants::to(["fs/*", "node/info", "vault/read"])
        };
        let within = ScopedPeerEnv::new(["fs/*", "node/*"]);
        let scope = grants.scope(&within);
        assert!(scope.reaches("fs/read", None) && scope.reaches("node/info", None));
        assert!(!scope.reaches("vault/read", None) && !scope.reaches("node/other", None));
        assert!(grants.find("fs/read", None).is_some());
        assert!(grants.find("fs/secret", None).is_none());
        assert!(grants.find("other/read", None).is_none());
        // What is granted, a session reaches on peers as well, by the scope for the way.
        let routing = within.clone().with_routing();
        let granted = ["fs/*", "node/info", "vault/read"];
        let expected = ScopedPeerEnv::new(["fs/*", "node/info"]).with_routing_to(granted);
        assert_eq!(grants.scope(&routing), expected);
        assert!(within.covers(&scope) && routing.covers(&expected));
        let guarded = routing.without_internal();
        assert_eq!(grants.scope(&guarded), expected.without_internal());
        let mut pinned = SessionGrant::to("a/b");
        pinned.peer = PeerSelector::Local;
        let grants = SessionGrants {
            allow: vec![pinned],
            deny: NameSet::default(),
        };
        assert!(grants.find("a/b", None).is_some() && grants.find("a/b", Some("w")).is_none());
    }

    #[test]
    fn limits_have_hard_caps() {
        let refused = |change: fn(&mut SessionSpec)| {
            let mut spec = SessionSpec::new(None, ModuleSet::new());
            change(&mut spec);
            spec.check().err().map(|failure| failure.code)
        };
        assert_eq!(refused(|_| {}), None);
        assert_eq!(refused(|s| s.limits.wall = WALL_MAX_ONE_SHOT), None);
        for wrong in [
            (|s| s.limits.wall = WALL_MAX_ONE_SHOT * 2) as fn(&mut SessionSpec),
            |s| s.limits.wall = Duration::ZERO,
            |s| s.limits.gpu = GPU_MAX * 2,
            |s| s.limits.runtime.fuel_ticks = FUEL_MAX + 1,
            |s| s.limits.runtime.heap_bytes = usize::MAX,
            |s| s.limits.runtime.external_bytes = usize::MAX,
            |s| s.limits.runtime.calls_in_flight = 65,
            |s| s.limits.runtime.calls = CALLS_MAX + 1,
        ] {
            assert_eq!(refused(wrong), Some(RuntimeCode::Limit));
        }
        let service = |s: &mut SessionSpec| {
            s.mode = SessionMode::Service;
            s.limits.wall = WALL_MAX;
        };
        assert_eq!(refused(service), None);
    }

    /// The input of `runtime/eval` has these names, and times in milliseconds.
    #[test]
    fn a_refused_limit_is_named_as_callers_write_it() {
        for (change, expected) in [
            (
                (|s| s.limits.wall = WALL_MAX_ONE_SHOT * 2) as fn(&mut SessionSpec),
                "wall_ms is out of its range: 1 to 3600000",
            ),
            (
                |s| s.limits.runtime.cpu = Duration::from_secs(301),
                "cpu_ms is out of its range: 1 to 300000",
            ),
            (
                |s| s.limits.runtime.fuel_ticks = 0,
                "fuel_ticks is out of its range: 1 to 10000000",
            ),
        ] {
            let mut spec = SessionSpec::new(None, ModuleSet::new());
            change(&mut spec);
            let failure = spec.check().expect_err(expected);
            assert_eq!(failure.message, format!("the limit {expected}"));
        }
    }
}
