//! The kinds of workers, and the rights of each.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::WorkerError;

/// The kind of a worker, which decides the system calls that are left to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum WorkerRole {
    /// Packs of a repository: counting, writing, receiving.
    #[serde(rename = "git")]
    Git,
    /// Compiled shaders and host kernels.
    #[serde(rename = "gpu")]
    Gpu,
    /// Isolates that run scripts.
    #[serde(rename = "js")]
    Js,
    /// Both, for code that is trusted.
    #[serde(rename = "js+gpu")]
    JsGpu,
}

/// The rights of a role's system call filter beyond the common set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rights {
    /// Whether memory may be made executable.
    pub exec_memory: bool,
    /// Whether paths may be opened: only what is bound into the worker's own root exists there.
    pub files: bool,
    /// Whether threads may be started after the filter is installed.
    pub threads: bool,
}

impl WorkerRole {
    /// Every role, by name.
    pub const ALL: [Self; 4] = [Self::Git, Self::Gpu, Self::Js, Self::JsGpu];

    /// The name on the command line: `alknet worker --role NAME`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Git => "git",
            Self::Gpu => "gpu",
            Self::Js => "js",
            Self::JsGpu => "js+gpu",
        }
    }

    /// The rights of the role; `binds`: whether folders are bound into its root.
    ///
    /// ```
    /// use alknet_worker::WorkerRole;
    ///
    /// let script = WorkerRole::Js.rights(false);
    /// assert!(!script.exec_memory && !script.files && !script.threads);
    /// ```
    #[must_use]
    pub const fn rights(self, binds: bool) -> Rights {
        let runs_generated_code = matches!(self, Self::Gpu | Self::JsGpu);
        Rights {
            exec_memory: runs_generated_code,
            files: binds && self.may_have_binds(),
            threads: runs_generated_code || matches!(self, Self::Git),
        }
    }

    /// Whether folders may be bound into the root of such a worker.
    #[must_use]
    pub const fn may_have_binds(self) -> bool {
        !matches!(self, Self::Js)
    }

    /// Whether its memory may be in huge pages, which pays only for large arrays of numbers. Many workers with little
    /// memory each would hold several times what they use.
    pub(crate) const fn wants_huge_pages(self) -> bool {
        matches!(self, Self::Gpu | Self::JsGpu)
    }

    /// Whether it reports when the GPU works for a call.
    pub(crate) const fn uses_gpu(self) -> bool {
        matches!(self, Self::Gpu | Self::JsGpu)
    }

    /// Whether a call counts as GPU time from its start, until the worker reports otherwise.
    pub(crate) const fn is_gpu_only(self) -> bool {
        matches!(self, Self::Gpu)
    }
}

impl fmt::Display for WorkerRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for WorkerRole {
    type Err = WorkerError;

    fn from_str(name: &str) -> Result<Self, WorkerError> {
        let known = Self::ALL.into_iter().find(|role| role.name() == name);
        known.ok_or_else(|| WorkerError::NoSuchRole(name.chars().take(32).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_are_read_as_they_are_written() {
        for role in WorkerRole::ALL {
            assert_eq!(
                role.name().parse::<WorkerRole>().expect("its own name"),
                role
            );
        }
        assert!("".parse::<WorkerRole>().is_err());
        assert!("js+git".parse::<WorkerRole>().is_err());
    }

    #[test]
    fn what_holds_foreign_source_gets_no_executable_memory() {
        for binds in [false, true] {
            assert!(!WorkerRole::Js.rights(binds).exec_memory);
            assert!(!WorkerRole::Js.rights(binds).threads);
            assert!(!WorkerRole::Js.rights(binds).files);
            assert!(!WorkerRole::Git.rights(binds).exec_memory);
            assert!(WorkerRole::Gpu.rights(binds).exec_memory);
        }
    }
}
