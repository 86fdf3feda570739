//! The files that the node may have open at once. Each connection over TCP is one of them, and each file of the site
//! that a client has not read to its end.

use alknet_http::limits::SITE_OPEN_FILES_MAX;
use alknet_init::OPEN_FILES_MAX;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Files that no connection of a client and no file of the site gets: those of handshakes, the state directory, workers,
/// and the node's calls to itself.
const RESERVED: u64 = 512;

/// One file in this many of those beside [`RESERVED`] is for the site, up to [`SITE_OPEN_FILES_MAX`].
const SITE_PART: u64 = 4;

/// The limit with which Linux begins, which counts where it cannot be read.
const USUAL: u64 = 1024;

/// Raises the limit of this process. On a machine, PID 1 has done so.
pub(crate) fn raise() {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return;
    };
    // A process that may not raise it has fewer connections.
    setrlimit(
        Resource::RLIMIT_NOFILE,
        soft.max(hard.min(OPEN_FILES_MAX)),
        hard,
    )
    .ok();
}

/// What the files of this process permit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileLimits {
    pub(crate) connections: u32,
    /// Files of the site that are open for clients at once.
    pub(crate) site: usize,
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
        let clients = files - reserved;
        let site = (clients / SITE_PART).min(SITE_OPEN_FILES_MAX as u64);
        Self {
            connections: u32::try_from(clients - site).unwrap_or(u32::MAX),
            site: usize::try_from(site).unwrap_or(SITE_OPEN_FILES_MAX),
            handshakes: u32::try_from(reserved / 2).unwrap_or(u32::MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_files_for_everything_else() {
        for (files, connections, site, handshakes) in [
            (300, 113, 37, 75),
            (1024, 384, 128, 256),
            (OPEN_FILES_MAX, 13_824, 2048, 256),
            (u64::MAX, u32::MAX, 2048, 256),
        ] {
            let expected = FileLimits {
                connections,
                site,
                handshakes,
            };
            assert_eq!(FileLimits::of_files(files), expected);
        }
    }

    #[test]
    fn a_process_raises_its_limit_as_far_as_it_may() {
        raise();
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("every process has one");
        assert!(soft >= hard.min(OPEN_FILES_MAX), "{soft} of {hard}");
    }
}
