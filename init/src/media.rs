//! What a first boot takes from provisioning media before the machine can store anything.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use alknet_core::config::VaultSection;
use alknet_provisioning::{
    ConfigOrigin, ConsoleDocument, KernelMounter, MediaSecrets, MetadataService, ProvisioningError,
    PutSeedKeyError, SourcePaths, UpdatePrograms, load, load_console, programs, put_seed_key,
};
use alknet_vault::slots::{Alkv, SeedKey, SlotType};

use crate::update::StagingProgress;
use crate::vault::{UnlockPrompt, VaultMediaAccess, VaultWait};

/// Held while PID 1 mounts volumes, and while it reads or writes the boot partition itself.
static MEDIA: MediaLock = MediaLock::new();

/// The lock of the media, and what is known of the parts that want it.
#[derive(Debug)]
struct MediaLock {
    media: Mutex<()>,
    /// Never held while a thread waits for `media`.
    waiters: Mutex<MediaWaiters>,
}

/// Who wants the media. Both are behind one lock, so that a person who waits and a bundle that is staged always meet,
/// whichever comes first.
#[derive(Debug)]
struct MediaWaiters {
    /// Parts that wait for the media in [`alone`].
    persons: usize,
    /// The bundle that is being staged.
    bundle: Option<Arc<StagingProgress>>,
}

/// A part that waits for the media in [`alone`].
#[derive(Debug)]
struct WaitingPerson<'a>(&'a MediaLock);

/// A bundle that is being staged, until this is dropped. One bundle is staged at a time.
#[derive(Debug)]
pub(crate) struct RegisteredBundle<'a>(&'a MediaLock);

impl MediaLock {
    const fn new() -> Self {
        Self {
            media: Mutex::new(()),
            waiters: Mutex::new(MediaWaiters {
                persons: 0,
                bundle: None,
            }),
        }
    }

    fn alone(&self) -> MutexGuard<'_, ()> {
        match self.media.try_lock() {
            Ok(media) => return media,
            Err(TryLockError::Poisoned(error)) => return error.into_inner(),
            Err(TryLockError::WouldBlock) => {}
        }
        let _person = WaitingPerson::begin(self);
        self.in_turn()
    }

    fn in_turn(&self) -> MutexGuard<'_, ()> {
        // It guards no value that a panic could leave half changed.
        self.media.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn register(&self, progress: Arc<StagingProgress>) -> RegisteredBundle<'_> {
        let mut waiters = self.waiters();
        // The lock of the media is not fair: this thread could have it again before a person who waits wakes up.
        if waiters.persons > 0 {
            progress.give_up();
        }
        waiters.bundle = Some(progress);
        RegisteredBundle(self)
    }

    fn waiters(&self) -> MutexGuard<'_, MediaWaiters> {
        self.waiters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<'a> WaitingPerson<'a> {
    fn begin(lock: &'a MediaLock) -> Self {
        let mut waiters = lock.waiters();
        waiters.persons += 1;
        if let Some(bundle) = &waiters.bundle {
            bundle.give_up();
        }
        Self(lock)
    }
}

impl Drop for WaitingPerson<'_> {
    fn drop(&mut self) {
        self.0.waiters().persons -= 1;
    }
}

impl Drop for RegisteredBundle<'_> {
    fn drop(&mut self) {
        self.0.waiters().bundle = None;
    }
}

/// Waits until no other part of PID 1 uses the media. Two readers of one file system, of which one writes it past the
/// kernel, would damage it; the kernel refuses that as well, and the second one would fail. Do not call it twice on one
/// thread.
///
/// A bundle that is being staged is given up, and so is each one that begins meanwhile: its sender chooses how long it takes,
/// up to hours, and a person at the console may be waiting to open the vault or to take a slot away.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    MEDIA.alone()
}

/// Like [`alone`], after a bundle that is being staged: for the parts that look at the boot slots.
pub(crate) fn in_turn() -> MutexGuard<'static, ()> {
    MEDIA.in_turn()
}

/// Registers a bundle, before its thread uses the media for the first time. A part that waits in [`alone`], now or before the
/// returned value is dropped, gives the bundle up.
pub(crate) fn register_bundle(progress: Arc<StagingProgress>) -> RegisteredBundle<'static> {
    MEDIA.register(progress)
}

/// What the media say about the vault.
#[derive(Debug)]
pub(crate) struct VaultMedia {
    pub(crate) vault: VaultSection,
    /// The source of that configuration.
    pub(crate) from: ConfigOrigin,
    /// The node stores nothing, and makes a key at each start.
    pub(crate) stateless: bool,
    /// The name of the machine.
    pub(crate) name: Option<String>,
    pub(crate) secrets: MediaSecrets,
}

impl VaultMedia {
    /// Reads every source, and the configuration that the user pasted. This blocks on disks, so PID
    /// 1's loop must not call it.
    pub(crate) fn read(pasted: Option<&ConsoleDocument>) -> Result<Self, VaultWait> {
        Self::load(pasted).map(|(media, _)| media)
    }

    /// Like `read`, for a first boot. If no source has a configuration, and a metadata service may have
    /// one, it is asked first: a vault that is made stays.
    pub(crate) fn read_first(pasted: Option<&ConsoleDocument>) -> Result<Self, VaultWait> {
        match Self::load(pasted)? {
            (_, Some(service)) => Err(VaultWait::for_cloud(service)),
            (media, None) => Ok(media),
        }
    }

    fn load(
        pasted: Option<&ConsoleDocument>,
    ) -> Result<(Self, Option<MetadataService>), VaultWait> {
        let paths = paths();
        let _media = alone();
        let loaded = match pasted {
            Some(pasted) => load_console(&paths, &KernelMounter, pasted.copied()),
            None => load(&paths),
        };
        // A vault that is made stays, so no unreadable part of a document may decide how it is
        // made.
        let vague = |text: &str| text.contains("vault") || text.contains("TOML");
        let refused = loaded.problems.iter().find(|problem| {
            problem.code == "provisioning-unreadable"
                || problem.code == "config-refused" && vague(&problem.text)
        });
        if let (true, Some(problem)) = (loaded.salvaged, refused) {
            return Err(VaultWait::new(
                UnlockPrompt::Nothing,
                "vault-waits",
                format!(
                    "no vault is made before the configuration is right: {}",
                    problem.text
                ),
                &problem.hint,
            ));
        }
        let media = Self {
            vault: loaded.config.vault,
            from: loaded.source,
            stateless: loaded.config.node.stateless,
            name: loaded.config.node.name,
            secrets: loaded.secrets,
        };
        Ok((media, loaded.asks))
    }

    /// The secrets for an existing vault. PID 1 reads no medium if none would help.
    pub(crate) fn secrets_for(vault: &Alkv) -> MediaSecrets {
        let mut slots = vault.slots().iter();
        // Reading media mounts volumes, which takes seconds on slow drives.
        if slots.any(|slot| slot.kind() == SlotType::Provisioning) {
            let _media = alone();
            load(&paths()).secrets
        } else {
            MediaSecrets::default()
        }
    }
}

/// The media of this machine.
pub(crate) struct SystemSources;

impl VaultMediaAccess for SystemSources {
    fn secrets(&self) -> MediaSecrets {
        let _media = alone();
        load(&paths()).secrets
    }

    fn put(&self, key: &SeedKey, boot: bool) -> Result<ConfigOrigin, PutSeedKeyError> {
        let _media = alone();
        put_seed_key(&paths(), &KernelMounter, key, boot)
    }

    fn programs(&self) -> Result<UpdatePrograms, ProvisioningError> {
        let _media = alone();
        programs(&paths(), &KernelMounter)
    }
}

fn paths() -> SourcePaths {
    let paths = SourcePaths::system();
    // The mount point of a volume must exist.
    if let Err(error) = std::fs::create_dir_all(&paths.mount_point) {
        tracing::warn!(%error, path = %paths.mount_point.display(), "cannot be made");
    }
    paths
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read, Write};
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc::{Receiver, channel};
    use std::thread;
    use std::time::{Duration, Instant};

    use alknet_test_support::deadline;

    use super::*;
    use crate::update::BundleFrameReader;

    /// A bundle of which a client sends a part of the first header, and nothing more for as long as it may. The client has
    /// the other end.
    fn silent_bundle(
        progress: &Arc<StagingProgress>,
    ) -> (UnixStream, BundleFrameReader<UnixStream>) {
        let (mut node, input) = UnixStream::pair().expect("a pair");
        let time_out = Duration::from_millis(20);
        input.set_read_timeout(Some(time_out)).expect("a limit");
        node.write_all(&[0, 0, 2, 0, 7, 7]).expect("room");
        let frames = BundleFrameReader::new(input, 9000, Arc::clone(progress));
        (node, frames.with_silence(Duration::from_secs(3600)))
    }

    /// How the staging of a bundle ends that is not whole. It says when it has the media.
    fn staging_end(lock: &MediaLock, mut frames: impl Read, begun: impl FnOnce()) -> ErrorKind {
        let media = lock.in_turn();
        begun();
        let ended = frames.read_to_end(&mut Vec::new());
        drop(media);
        ended.expect_err("it is not whole").kind()
    }

    /// A person at the console asks for the media, and says when they are there.
    fn ask(lock: &'static MediaLock) -> Receiver<()> {
        let (has, is_there) = channel();
        thread::spawn(move || {
            drop(lock.alone());
            // The test may have failed meanwhile.
            has.send(()).ok();
        });
        is_there
    }

    fn require_media(is_there: &Receiver<()>) {
        let waited = is_there.recv_timeout(deadline(Duration::from_secs(10)));
        waited.expect("the client decides when a person gets the media");
    }

    #[test]
    fn a_bundle_that_does_not_arrive_keeps_no_person_from_the_media() {
        static LOCK: MediaLock = MediaLock::new();
        let progress = Arc::new(StagingProgress::default());
        let (_node, frames) = silent_bundle(&progress);
        let (begins, has_begun) = channel();
        let bundle = LOCK.register(Arc::clone(&progress));
        let thread = thread::spawn(move || {
            let ended = staging_end(&LOCK, frames, || begins.send(()).expect("the test waits"));
            drop(bundle);
            ended
        });
        has_begun.recv().expect("it begins");
        require_media(&ask(&LOCK));
        let ended = thread.join().expect("no panic");
        assert_eq!(ended, ErrorKind::ConnectionAborted);
        assert!(progress.is_given_up());
    }

    /// The thread that stages has the media several times, for the notes before a bundle and for the bundle itself. A person
    /// asks for them during the first time, and the thread is faster each time.
    #[test]
    fn a_bundle_that_begins_while_a_person_waits_for_the_media_is_given_up() {
        static LOCK: MediaLock = MediaLock::new();
        let held = LOCK.in_turn();
        let is_there = ask(&LOCK);
        let limit = Instant::now() + deadline(Duration::from_secs(10));
        while LOCK.waiters().persons == 0 {
            assert!(Instant::now() < limit, "no person waits");
            thread::yield_now();
        }
        let progress = Arc::new(StagingProgress::default());
        let (_node, frames) = silent_bundle(&progress);
        let bundle = LOCK.register(Arc::clone(&progress));
        assert!(progress.is_given_up(), "the person waits for its end");
        drop(held);
        let ended = staging_end(&LOCK, frames, || {});
        assert_eq!(ended, ErrorKind::ConnectionAborted);
        drop(bundle);
        require_media(&is_there);
        // The person has the media, and the next bundle is staged.
        let next = Arc::new(StagingProgress::default());
        let bundle = LOCK.register(Arc::clone(&next));
        assert_eq!(LOCK.waiters().persons, 0);
        assert!(!next.is_given_up());
        drop(bundle);
        assert!(LOCK.waiters().bundle.is_none());
    }
}
