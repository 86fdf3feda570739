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
static MEDIA: Mutex<()> = Mutex::new(());

/// The bundle whose staging has the media, or waits for them.
static STAGING: Mutex<Option<Arc<StagingProgress>>> = Mutex::new(None);

/// Waits until no other part of PID 1 uses the media. Two readers of one file system, of which one writes it past the
/// kernel, would damage it; the kernel refuses that as well, and the second one would fail. Do not call it twice on one
/// thread.
///
/// A bundle that is being staged is given up: its sender chooses how long it takes, up to hours, and a person at the console
/// may be waiting to open the vault or to take a slot away.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    match MEDIA.try_lock() {
        Ok(media) => return media,
        Err(TryLockError::Poisoned(error)) => return error.into_inner(),
        Err(TryLockError::WouldBlock) => {}
    }
    if let Some(staging) = &*staging() {
        staging.give_up();
    }
    in_turn()
}

/// The same, after a bundle that is being staged: for the parts that look at the boot slots.
pub(crate) fn in_turn() -> MutexGuard<'static, ()> {
    // It guards no value that a panic could leave half changed.
    MEDIA.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The media while a bundle is staged. A part that calls [`alone`] gives up the bundle of this `progress`.
pub(crate) fn for_staging(progress: Arc<StagingProgress>) -> StagingMedia {
    // This comes first: a part that finds the media taken has to find the bundle as well.
    *staging() = Some(progress);
    StagingMedia { _media: in_turn() }
}

/// The media of [`for_staging`]. One bundle is staged at a time.
pub(crate) struct StagingMedia {
    _media: MutexGuard<'static, ()>,
}

impl Drop for StagingMedia {
    fn drop(&mut self) {
        *staging() = None;
    }
}

fn staging() -> MutexGuard<'static, Option<Arc<StagingProgress>>> {
    STAGING.lock().unwrap_or_else(PoisonError::into_inner)
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
    use std::sync::mpsc::channel;
    use std::thread;
    use std::time::Duration;

    use alknet_test_support::deadline;

    use super::*;
    use crate::update::BundleFrameReader;

    /// A client sends a part of a bundle's first header, and nothing more for as long as it may.
    #[test]
    fn a_bundle_that_does_not_arrive_keeps_no_person_from_the_media() {
        let (mut node, input) = UnixStream::pair().expect("a pair");
        let look = Duration::from_millis(20);
        input.set_read_timeout(Some(look)).expect("a limit");
        node.write_all(&[0, 0, 2, 0, 7, 7]).expect("room");
        let progress = Arc::new(StagingProgress::default());
        let frames = BundleFrameReader::new(input, 9000, Arc::clone(&progress));
        let mut frames = frames.with_silence(Duration::from_secs(3600));
        let (begins, has_begun) = channel();
        let thread = thread::spawn(move || {
            let media = for_staging(frames.progress());
            begins.send(()).expect("the test waits");
            let ended = frames.read_to_end(&mut Vec::new());
            drop(media);
            ended.expect_err("it is not whole").kind()
        });
        has_begun.recv().expect("it begins");
        let (has, is_there) = channel();
        thread::spawn(move || {
            drop(alone());
            // The test may have failed meanwhile.
            has.send(()).ok();
        });
        let waited = is_there.recv_timeout(deadline(Duration::from_secs(10)));
        waited.expect("the client decides when a person gets the media");
        assert_eq!(
            thread.join().expect("no panic"),
            ErrorKind::ConnectionAborted
        );
        assert!(progress.is_given_up());
    }
}
