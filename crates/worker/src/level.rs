//! The levels of confinement, and the layers of the sandbox that may be missing.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::Rights;

/// The sum of the layers of a worker's sandbox, as `runtime/stats` shows it. Ordered from weak to strong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConfinementLevel {
    /// A process of its own and little more: it can reach all that its user can reach.
    ProcessOnly,
    /// The system call filter stands, and the worker has no capabilities and no right to gain any, so that it can
    /// open, reach or signal nothing outside. Another layer is missing.
    Partial,
    /// Every layer is in place.
    Full,
}

/// One layer of the sandbox around a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum SandboxLayer {
    /// It has no capability and cannot get one.
    Capabilities,
    /// cgroup: limit of its processor share.
    CgroupCpu,
    /// cgroup: limit of its memory, with shared memory and files.
    CgroupMemory,
    /// cgroup: limit of its threads.
    CgroupPids,
    /// Its root holds only what was bound into it.
    EmptyRoot,
    /// System V and POSIX message objects of its own.
    IpcNamespace,
    /// A mount tree of its own.
    MountNamespace,
    /// An empty network namespace of its own.
    NetNamespace,
    /// No program that it executes can have more rights than it.
    NoNewPrivileges,
    /// It sees only its own processes.
    PidNamespace,
    /// The list of system calls.
    Seccomp,
    /// It runs as a user that owns nothing outside.
    UnprivilegedUser,
    /// A user namespace of its own.
    UserNamespace,
}

/// A layer that is not in place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfinementGap {
    /// The layer.
    pub layer: SandboxLayer,
    /// The reason, in the words of the kernel or of this crate.
    pub why: String,
}

/// A level with its reasons.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    /// The level.
    pub level: ConfinementLevel,
    /// The layers that are missing for [`ConfinementLevel::Full`].
    pub gaps: Vec<ConfinementGap>,
}

impl Sandbox {
    /// Computes the level. A worker that may open files needs a root that has only its own.
    #[must_use]
    pub(crate) fn from_gaps(mut gaps: Vec<ConfinementGap>, rights: Rights) -> Self {
        gaps.sort_by_key(|gap| gap.layer);
        let missing = |layer| gaps.iter().any(|gap: &ConfinementGap| gap.layer == layer);
        let essential = [
            SandboxLayer::Capabilities,
            SandboxLayer::NoNewPrivileges,
            SandboxLayer::Seccomp,
        ];
        let level = if gaps.is_empty() {
            ConfinementLevel::Full
        } else if essential.into_iter().any(missing)
            || (rights.files && missing(SandboxLayer::EmptyRoot))
        {
            ConfinementLevel::ProcessOnly
        } else {
            ConfinementLevel::Partial
        };
        Self { level, gaps }
    }
}

impl ConfinementGap {
    pub(crate) fn new(layer: SandboxLayer, why: impl fmt::Display) -> Self {
        Self {
            layer,
            why: why.to_string(),
        }
    }
}

impl ConfinementLevel {
    /// The name for people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Partial => "partial",
            Self::ProcessOnly => "process-only",
        }
    }
}

impl fmt::Display for ConfinementLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::WorkerRole;

    fn level(layers: &[SandboxLayer], rights: Rights) -> ConfinementLevel {
        let gaps = layers
            .iter()
            .map(|layer| ConfinementGap::new(*layer, "test"))
            .collect();
        Sandbox::from_gaps(gaps, rights).level
    }

    #[test]
    fn the_filter_decides_between_partial_and_nothing() {
        let js = WorkerRole::Js.rights(false);
        assert_eq!(level(&[], js), ConfinementLevel::Full);
        assert_eq!(
            level(&[SandboxLayer::CgroupMemory], js),
            ConfinementLevel::Partial
        );
        assert_eq!(
            level(&[SandboxLayer::EmptyRoot, SandboxLayer::PidNamespace], js),
            ConfinementLevel::Partial
        );
        assert_eq!(
            level(&[SandboxLayer::Seccomp], js),
            ConfinementLevel::ProcessOnly
        );
        assert!(
            ConfinementLevel::ProcessOnly < ConfinementLevel::Partial
                && ConfinementLevel::Partial < ConfinementLevel::Full
        );
    }

    #[test]
    fn what_opens_files_needs_a_root_of_its_own() {
        let git = WorkerRole::Git.rights(true);
        assert_eq!(
            level(&[SandboxLayer::EmptyRoot], git),
            ConfinementLevel::ProcessOnly
        );
        assert_eq!(
            level(&[SandboxLayer::CgroupPids], git),
            ConfinementLevel::Partial
        );
    }
}
