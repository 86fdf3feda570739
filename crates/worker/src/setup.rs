//! What the host tells a worker before anything else, and what the worker reports when its walls
//! stand. Neither travels once foreign input has.

use serde::{Deserialize, Serialize};

use crate::{Gap, WorkerError, WorkerRole};

/// Version of the protocol between host and worker. They are one executable, so that a difference
/// means that two builds were mixed.
pub(crate) const VERSION: u16 = 1;
/// Descriptor at which a worker finds its host.
pub(crate) const HOST_FD: i32 = 3;
/// Longest name of a bound folder, bytes.
const BIND_NAME_MAX: usize = 32;

/// The first frame, in the socket before the worker is started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Setup {
    pub(crate) version: u16,
    pub(crate) role: WorkerRole,
    pub(crate) namespaces: Namespaces,
    /// User to become once the mounts are made; where there is no user namespace to do that in.
    pub(crate) become_user: Option<u32>,
    pub(crate) binds: Vec<Bind>,
    pub(crate) heartbeat_ms: u64,
}

/// What the worker found when it walled itself in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfinementReport {
    /// What does not stand.
    pub gaps: Vec<Gap>,
}

/// Namespaces of a worker's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespaces {
    pub ipc: bool,
    pub mount: bool,
    pub net: bool,
    pub pid: bool,
    pub user: bool,
}

/// A folder of the host's that a worker sees in its otherwise empty root.
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
    /// The names are parts of paths in the worker's root.
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
