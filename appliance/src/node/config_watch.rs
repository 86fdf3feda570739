//! Follows the configuration's file. It watches the file's directory, and so sees a file that is
//! renamed into place as well as one that is written to. The folder of credentials is watched in
//! the same way.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use alknet_core::config::ConfigSource;
use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, timeout, timeout_at};

use super::config_store::folder_of;
use super::reload::Reloader;

/// How long a directory has to be quiet before the file is read: an editor makes several changes
/// for one save.
const QUIET: Duration = Duration::from_millis(200);
/// After this long the file is read even though the directory is not quiet.
const PATIENCE: Duration = Duration::from_secs(2);
/// Size of the buffer for events. Their content is discarded.
const EVENTS_BYTES: usize = 4096;

/// Reads the file again whenever its directory changes, and once at the beginning: the node read it
/// before the directory was watched, and a change made between the two raises no event. Returns
/// when the watch fails.
pub(crate) async fn follow(reloader: Arc<Reloader>) {
    let Some(file) = reloader.file() else {
        return;
    };
    let error = match DirectoryWatch::start(&file) {
        Ok(watch) => loop {
            reloader.read_again(ConfigSource::File).await;
            if let Err(error) = watch.changed().await {
                break error;
            }
        },
        Err(error) => error,
    };
    tracing::warn!(
        "changes of {} are not noticed ({error}): send SIGHUP after a change",
        file.display()
    );
}

/// A watch on the directory of a file.
pub(super) struct DirectoryWatch(AsyncFd<OwnedFd>);

impl DirectoryWatch {
    /// Watches the directory of `file`, which must exist.
    pub(super) fn start(file: &Path) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let what = AddWatchFlags::IN_CLOSE_WRITE
            // Editors write a new file and rename it over the old one, which raises an event for
            // the folder only.
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_ONLYDIR;
        inotify.add_watch(folder_of(file), what)?;
        let events: OwnedFd = inotify.into();
        // SAFETY: `AsyncFd` owns the descriptor and lends it to no other code. The descriptor stays
        // open and the same until both are dropped together.
        Ok(Self(unsafe { AsyncFd::register(events) }?))
    }

    /// Resolves after a change, once the directory is quiet again.
    pub(super) async fn changed(&self) -> io::Result<()> {
        self.changed_within(QUIET, PATIENCE).await
    }

    /// Like `changed`, with other durations than [`QUIET`] and [`PATIENCE`].
    async fn changed_within(&self, quiet: Duration, patience: Duration) -> io::Result<()> {
        self.next().await?;
        let at_last = Instant::now() + patience;
        let is_quiet = async {
            // A program that writes the file piece by piece gets time to finish.
            while let Ok(more) = timeout(quiet, self.next()).await {
                more?;
            }
            Ok::<_, io::Error>(())
        };
        // If writes never pause, the file is read after the patience is over.
        timeout_at(at_last, is_quiet).await.unwrap_or(Ok(()))
    }

    async fn next(&self) -> io::Result<()> {
        let mut events = [0; EVENTS_BYTES];
        loop {
            let mut ready = self.0.readable().await?;
            let read = ready.try_io(|fd| {
                nix::unistd::read(fd.get_ref(), &mut events).map_err(|error| match error {
                    Errno::EAGAIN => io::ErrorKind::WouldBlock.into(),
                    other => io::Error::from(other),
                })
            });
            if let Ok(read) = read {
                return read.map(drop);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use alknet_test_support::deadline;
    use tokio::time::sleep;

    use super::*;

    /// If the watch fails, this test hangs.
    #[tokio::test]
    async fn writing_renaming_and_linking_are_seen() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = dir.path().join("node.toml");
        let other = dir.path().join("other");
        let watch = DirectoryWatch::start(&file).expect("a directory that is there");
        std::fs::write(&file, "a").expect("a writable directory");
        watch.changed().await.expect("events");
        std::fs::write(&other, "b").expect("a writable directory");
        watch.changed().await.expect("events");
        std::fs::rename(&other, &file).expect("a writable directory");
        watch.changed().await.expect("events");
        std::os::unix::fs::symlink(&file, &other).expect("a writable directory");
        watch.changed().await.expect("events");
    }

    #[tokio::test]
    async fn it_waits_for_quiet_and_not_for_ever() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = dir.path().join("node.toml");
        let watch = DirectoryWatch::start(&file).expect("a directory that is there");
        let write = || std::fs::write(&file, "a").expect("a writable directory");
        let last = Cell::new(Instant::now());
        let writes = async {
            for _ in 0..8 {
                last.set(Instant::now());
                write();
                sleep(Duration::from_millis(50)).await;
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            // The watch is polled first: on a busy machine a write may be late, and its event has
            // then not happened yet.
            biased;
            seen = watch.changed() => seen.expect("events"),
            () = writes => unreachable!("it waits at its end"),
        }
        assert!(last.get().elapsed() >= QUIET, "it is written to still");
        let hour = Duration::from_secs(3600);
        let moment = Duration::from_millis(100);
        let begun = Instant::now();
        write();
        let seen = timeout(
            deadline(Duration::from_secs(60)),
            watch.changed_within(hour, moment),
        );
        seen.await
            .expect("it is read although it is not quiet")
            .expect("events");
        assert!(begun.elapsed() >= moment, "an editor has a moment");
    }

    #[tokio::test]
    async fn a_folder_that_is_not_there_is_not_followed() {
        assert!(DirectoryWatch::start(Path::new("/no/such/directory/node.toml")).is_err());
    }
}
