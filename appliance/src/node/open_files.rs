//! The files that the node may have open at once. Each connection over TCP is one of them.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// The limit that the node sets where it may. It has room for every connection that the endpoint accepts.
const WANTED: u64 = 16_384;

/// Files that no connection of a client gets: those of handshakes, the state directory, workers, and the node's calls to
/// itself.
const RESERVED: u64 = 512;

/// The limit with which Linux begins, which counts where it cannot be read.
const USUAL: u64 = 1024;

/// Raises the limit of this process. On a machine, PID 1 has done so.
pub(crate) fn raise() {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return;
    };
    // A process that may not raise it has fewer connections.
    setrlimit(Resource::RLIMIT_NOFILE, soft.max(hard.min(WANTED)), hard).ok();
}

/// What the files of this process permit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileLimits {
    pub(crate) connections: u32,
    /// TCP handshakes at once: half of the files that no connection gets.
    pub(crate) handshakes: u32,
}

impl FileLimits {
    pub(crate) fn now() -> Self {
        let files = getrlimit(Resource::RLIMIT_NOFILE).map_or(USUAL, |(soft, _)| soft);
        Self::of_files(files)
    }

    fn of_files(files: u64) -> Self {
        let reserved = RESERVED.min(files / 2);
        Self {
            connections: u32::try_from(files - reserved).unwrap_or(u32::MAX),
            handshakes: u32::try_from(reserved / 2).unwrap_or(u32::MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_files_for_everything_else() {
        for (files, connections, handshakes) in [
            (300, 150, 75),
            (1024, 512, 256),
            (WANTED, 15_872, 256),
            (u64::MAX, u32::MAX, 256),
        ] {
            let expected = FileLimits {
                connections,
                handshakes,
            };
            assert_eq!(FileLimits::of_files(files), expected);
        }
    }

    #[test]
    fn a_process_raises_its_limit_as_far_as_it_may() {
        raise();
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("every process has one");
        assert!(soft >= hard.min(WANTED), "{soft} of {hard}");
    }
}
