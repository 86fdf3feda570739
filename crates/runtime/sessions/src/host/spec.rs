//! What a session is made of, on the node's side.

use std::sync::Arc;
use std::time::Duration;

use alknet_call::{NameSet, ScopedPeerEnv};
use alknet_core::{Capabilities, Identity};
use alknet_runtime::{
    IsolateLimits, ModuleSet, RuntimeCode, ScriptFailure, SessionMode, SessionTimeSource,
};
use alknet_worker::Bytes32;
use serde_json::Value;
use tokio::sync::mpsc;

use crate::limits::{
    CALLS_MAX, EXTERNAL_BYTES_MAX, FUEL_MAX, GPU_MAX, WALL_MAX, WALL_MAX_ONE_SHOT,
};

/// Everything that decides what a session may do.
#[derive(Clone, Debug)]
pub struct SessionSpec {
    /// Who runs it. Its scopes are the most that the session's calls may need.
    pub identity: Option<Arc<Identity>>,
    /// What it may call. Cut to what the operation that opens the session reaches.
    pub grants: SessionGrants,
    /// What it may do by secrets that it does not see: those of the operation that opens it, as a rule.
    pub capabilities: Capabilities,
    /// What it may use.
    pub limits: SessionLimits,
    /// Its time.
    pub clock: SessionTimeSource,
    /// Where its randomness comes from; with one, `crypto.getRandomValues` follows it, too.
    pub seed: Option<[u8; 32]>,
    /// Its modules.
    pub modules: ModuleSet,
    /// The module that a service is: it may export `init` and `dispose`.
    pub main: Option<String>,
    /// How long it lives.
    pub mode: SessionMode,
    /// Whether the built-in objects are frozen before any module runs.
    pub frozen: bool,
    /// Whether it shares its worker with no other session, so that nothing they do ends it.
    pub alone: bool,
    /// Whether it runs for others than `identity`, whose code it is: all such sessions have half of what that one may
    /// have, and workers of their own.
    pub lent: bool,
    /// Whose share of the node's memory its values take, where that is another's: who calls.
    pub payer: Option<Arc<Identity>>,
    /// Who follows its console, beside the log.
    pub console: Option<Console>,
}

impl SessionSpec {
    /// A session over `modules` that may call nothing, with default limits and real time.
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

    /// Refuses what no session may have.
    pub(crate) fn check(&self) -> Result<(), ScriptFailure> {
        self.limits.runtime.clone().checked()?;
        let wall_max = match self.mode {
            SessionMode::OneShot => WALL_MAX_ONE_SHOT,
            _ => WALL_MAX,
        };
        let limits = &self.limits;
        let wrong = [
            (limits.runtime.fuel_ticks <= FUEL_MAX, "fuel_ticks"),
            (
                limits.runtime.external_bytes <= EXTERNAL_BYTES_MAX,
                "external_bytes",
            ),
            (limits.runtime.calls <= CALLS_MAX, "calls"),
            (
                limits.runtime.calls_in_flight <= IsolateLimits::default().calls_in_flight,
                "calls_in_flight",
            ),
            (!limits.wall.is_zero() && limits.wall <= wall_max, "wall"),
            (!limits.gpu.is_zero() && limits.gpu <= GPU_MAX, "gpu"),
        ];
        match wrong.into_iter().find(|(fits, _)| !fits) {
            Some((_, field)) => {
                let text = format!("the limit {field} is out of its range");
                Err(ScriptFailure::new(RuntimeCode::Limit, text))
            }
            None => Ok(()),
        }
    }

    /// Bytes that it may make its worker hold.
    pub(crate) fn memory(&self) -> u64 {
        let limits = &self.limits.runtime;
        limits.heap_bytes.saturating_add(limits.external_bytes) as u64
    }

    /// What crashes of its workers count against. `None` for a REPL: each line is another text, and none of them is a
    /// part of the bundle.
    pub(crate) fn operation(&self, bundle: Bytes32) -> Option<Bytes32> {
        (self.mode != SessionMode::Repl).then_some(bundle)
    }

    /// Identifies what runs, so that what crashes its workers is known by it.
    pub(crate) fn bundle(&self) -> [u8; 32] {
        let mut hash = blake3::Hasher::new();
        for (name, text, _) in self.modules.entries() {
            // With its length: otherwise parts could be cut in another place and give the same.
            for part in [name, text] {
                hash.update(&(part.len() as u64).to_le_bytes());
                hash.update(part.as_bytes());
            }
        }
        *hash.finalize().as_bytes()
    }
}

/// What a session may use: what its isolate enforces, and what the host does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionLimits {
    /// Of the isolate.
    pub runtime: IsolateLimits,
    /// Of a call, by the clock on the wall, waiting included.
    pub wall: Duration,
    /// Of a call, on the GPU.
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

/// What a session may call: nothing, unless something is allowed.
#[derive(Clone, Debug, Default)]
pub struct SessionGrants {
    /// What it may call.
    pub allow: Vec<SessionGrant>,
    /// What it may not, whatever is allowed: names, or `fs/*` for everything below.
    pub deny: NameSet,
}

impl SessionGrants {
    /// May call these, without further conditions: names, or `fs/*` for everything below.
    pub fn to<S: AsRef<str>>(patterns: impl IntoIterator<Item = S>) -> Self {
        let allow = patterns.into_iter().map(|p| SessionGrant::to(p.as_ref()));
        Self {
            allow: allow.collect(),
            deny: NameSet::default(),
        }
    }

    /// The names that `within` reaches as well: everywhere, or on a peer that a call names.
    pub(crate) fn scope(&self, within: &ScopedPeerEnv) -> ScopedPeerEnv {
        let patterns = || self.allow.iter().map(|grant| grant.pattern.as_str());
        let kept = patterns().filter(|pattern| within.covers(&ScopedPeerEnv::new([*pattern])));
        // Also those: what is imported here from a server is reached on a peer by the scope for the way alone.
        let routed = patterns().filter(|pattern| {
            let there = ScopedPeerEnv::default().with_routing_to([*pattern]);
            within.covers(&there)
        });
        ScopedPeerEnv::new(kept).with_routing_to(routed)
    }

    /// The first grant for an operation at this place.
    pub(crate) fn find(
        &self,
        operation: &str,
        peer: Option<&str>,
    ) -> Option<(usize, &SessionGrant)> {
        if self.deny.contains(operation) {
            return None;
        }
        let fits = |grant: &SessionGrant| {
            let names: NameSet = [&grant.pattern].into_iter().collect();
            names.contains(operation) && grant.peer.takes(peer)
        };
        self.allow.iter().enumerate().find(|(_, grant)| fits(grant))
    }
}

/// One thing that a session may call.
#[derive(Clone, Debug)]
pub struct SessionGrant {
    /// A name, or `fs/*` for everything below.
    pub pattern: String,
    /// Peer that runs it.
    pub peer: PeerSelector,
    /// JSON Schema that the input has to fit.
    pub constraint: Option<Value>,
    /// How often, in the whole session.
    pub budget: Option<u32>,
}

impl SessionGrant {
    /// Without further conditions.
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

/// Where an operation may be called.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PeerSelector {
    /// Wherever it is served.
    #[default]
    Any,
    /// On this peer only.
    Id(String),
    /// On this node only: the call names no peer.
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

/// Who follows a session's console. What it does not take in time is in the log only.
pub type Console = mpsc::Sender<SessionConsoleLine>;

/// A line of a session's console.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionConsoleLine {
    /// How bad.
    pub level: alknet_runtime::ConsoleLevel,
    /// Without the end of the line.
    pub text: String,
}

#[cfg(test)]
mod tests {
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
}
