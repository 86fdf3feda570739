//! How far a worker is walled in, and what is missing.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::Rights;

/// The sum of a worker's walls, as `runtime/stats` shows it. Ordered from weak to strong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConfinementLevel {
    /// A process of its own and little more: what it reaches is what its user reaches.
    ProcessOnly,
    /// The system call filter, the capabilities and the rights to gain any are as they should be,
    /// so that nothing outside can be opened, reached or signalled; another wall is missing.
    Partial,
    /// Every wall stands.
    Full,
}

/// One wall around a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Wall {
    /// It has no capability and cannot get one.
    Capabilities,
    /// cgroup: how much of the processors it gets.
    CgroupCpu,
    /// cgroup: how much memory it gets, shared memory and files included.
    CgroupMemory,
    /// cgroup: how many threads it may have.
    CgroupPids,
    /// Its root holds what was bound into it, and else nothing.
    EmptyRoot,
    /// System V and POSIX message objects of its own.
    IpcNamespace,
    /// A tree of mounts of its own.
    MountNamespace,
    /// A network of its own, with nothing in it.
    NetNamespace,
    /// No program it executes can have more rights than it.
    NoNewPrivileges,
    /// It sees no process but its own.
    PidNamespace,
    /// The list of system calls.
    Seccomp,
    /// It runs under no user that owns anything outside.
    UnprivilegedUser,
    /// A user namespace of its own.
    UserNamespace,
}

/// A wall that is not there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// Which one.
    pub wall: Wall,
    /// Why, in the words of the kernel or of this crate.
    pub why: String,
}

/// A level with its reasons.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    /// The sum.
    pub level: ConfinementLevel,
    /// What is missing for [`ConfinementLevel::Full`].
    pub gaps: Vec<Gap>,
}

impl Sandbox {
    /// Sums up. What may open files needs a root in which there are none of others.
    #[must_use]
    pub(crate) fn from_gaps(mut gaps: Vec<Gap>, rights: Rights) -> Self {
        gaps.sort_by_key(|gap| gap.wall);
        let missing = |wall| gaps.iter().any(|gap: &Gap| gap.wall == wall);
        let essential = [Wall::Capabilities, Wall::NoNewPrivileges, Wall::Seccomp];
        let level = if gaps.is_empty() {
            ConfinementLevel::Full
        } else if essential.into_iter().any(missing) || (rights.files && missing(Wall::EmptyRoot)) {
            ConfinementLevel::ProcessOnly
        } else {
            ConfinementLevel::Partial
        };
        Self { level, gaps }
    }
}

impl Gap {
    pub(crate) fn new(wall: Wall, why: impl fmt::Display) -> Self {
        Self {
            wall,
            why: why.to_string(),
        }
    }
}

impl ConfinementLevel {
    /// As it is shown.
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

    fn level(walls: &[Wall], rights: Rights) -> ConfinementLevel {
        let gaps = walls.iter().map(|wall| Gap::new(*wall, "test")).collect();
        Sandbox::from_gaps(gaps, rights).level
    }

    #[test]
    fn the_filter_decides_between_partial_and_nothing() {
        let js = WorkerRole::Js.rights(false);
        assert_eq!(level(&[], js), ConfinementLevel::Full);
        assert_eq!(level(&[Wall::CgroupMemory], js), ConfinementLevel::Partial);
        assert_eq!(
            level(&[Wall::EmptyRoot, Wall::PidNamespace], js),
            ConfinementLevel::Partial
        );
        assert_eq!(level(&[Wall::Seccomp], js), ConfinementLevel::ProcessOnly);
        assert!(
            ConfinementLevel::ProcessOnly < ConfinementLevel::Partial
                && ConfinementLevel::Partial < ConfinementLevel::Full
        );
    }

    #[test]
    fn what_opens_files_needs_a_root_of_its_own() {
        let git = WorkerRole::Git.rights(true);
        assert_eq!(
            level(&[Wall::EmptyRoot], git),
            ConfinementLevel::ProcessOnly
        );
        assert_eq!(level(&[Wall::CgroupPids], git), ConfinementLevel::Partial);
    }
}
