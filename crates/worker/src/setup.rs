//! The first message of the host, and the worker's report once its sandbox is set up. Both travel before any foreign
//! input.

use serde::{Deserialize, Serialize};

use crate::{ConfinementGap, WorkerError, WorkerRole};

/// Version of the protocol between host and worker. They are one executable, so that a difference means that two
/// builds were mixed.
pub(crate) const VERSION: u16 = 1;
/// Exit status of a worker that cannot take what its host sends.
pub(crate) const UNDELIVERED_STATUS: i32 = 76;
/// Descriptor of the host's socket in a worker.
pub(crate) const HOST_FD: i32 = 3;
/// Longest name of a bound folder, in bytes.
const BIND_NAME_MAX: usize = 32;

/// The first frame, which the host writes into the socket before it starts the worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Setup {
    pub(crate) version: u16,
    pub(crate) role: WorkerRole,
    pub(crate) namespaces: Namespaces,
    /// The user to become once the mounts are made, if there is no user namespace for that.
    pub(crate) become_user: Option<u32>,
    pub(crate) binds: Vec<Bind>,
    pub(crate) heartbeat_ms: u64,
}

/// The report of a worker on its own confinement.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfinementReport {
    /// The layers of the sandbox that are not in place.
    pub gaps: Vec<ConfinementGap>,
}

/// The namespaces that a worker has of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespaces {
    pub ipc: bool,
    pub mount: bool,
    pub net: bool,
    pub pid: bool,
    pub user: bool,
}

/// A folder of the host that a worker has in its otherwise empty root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bind {
    /// Absolute path on the host.
    pub source: String,
    /// Name below the worker's root: one plain name.
    pub name: String,
    /// Whether it may be written.
    pub writable: bool,
}

impl Bind {
    /// Checks the names, which are parts of paths in the worker's root.
    pub(crate) fn check(&self) -> Result<(), WorkerError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        let sound = !self.name.is_empty()
            && self.name.len() <= BIND_NAME_MAX
            && self.name.chars().all(plain)
            && self.source.starts_with('/')
            && !self.source.contains('\0');
        if !sound {
            return Err(WorkerError::BindName(self.name.chars().take(64).collect()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_names_are_bound() {
        let bind = |source: &str, name: &str| Bind {
            source: source.to_owned(),
            name: name.to_owned(),
            writable: false,
        };
        assert!(bind("/data/git/a", "objects").check().is_ok());
        for (source, name) in [
            ("/data", ""),
            ("/data", ".."),
            ("/data", "a/b"),
            ("/data", "a\0"),
            ("data", "a"),
            ("/da\0ta", "a"),
            ("/data", &"n".repeat(BIND_NAME_MAX + 1)),
        ] {
            assert!(bind(source, name).check().is_err(), "{source:?} {name:?}");
        }
    }
}
