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

/// The connections for which there are files.
pub(crate) fn connections_max() -> u32 {
    let files = getrlimit(Resource::RLIMIT_NOFILE).map_or(USUAL, |(soft, _)| soft);
    connections_of(files)
}

fn connections_of(files: u64) -> u32 {
    let left = files - RESERVED.min(files / 2);
    u32::try_from(left).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_files_for_everything_else() {
        assert_eq!(connections_of(256), 128);
        assert_eq!(connections_of(1024), 512);
        assert_eq!(connections_of(WANTED), 15_872);
        assert_eq!(connections_of(u64::MAX), u32::MAX);
    }

    #[test]
    fn a_process_raises_its_limit_as_far_as_it_may() {
        raise();
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("every process has one");
        assert!(soft >= hard.min(WANTED), "{soft} of {hard}");
    }
}
