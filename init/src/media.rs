//! What a first boot takes from provisioning media before the machine can store anything.

use std::sync::{Mutex, MutexGuard, PoisonError};

use alknet_core::config::VaultSection;
use alknet_provisioning::{
    ConfigOrigin, ConsoleDocument, KernelMounter, MediaSecrets, MetadataService, ProvisioningError,
    PutSeedKeyError, SourcePaths, UpdatePrograms, load, load_console, programs, put_seed_key,
};
use alknet_vault::slots::{Alkv, SeedKey, SlotType};

use crate::vault::{UnlockPrompt, VaultMediaAccess, VaultWait};

/// Held while PID 1 mounts volumes, and while it reads or writes the boot partition itself.
static MEDIA: Mutex<()> = Mutex::new(());

/// Waits until no other part of PID 1 uses the media. Two readers of one file system, of which one writes it past the
/// kernel, would damage it; the kernel refuses that as well, and the second one would fail. Do not call it twice on one
/// thread.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    // It guards no value that a panic could leave half changed.
    MEDIA.lock().unwrap_or_else(PoisonError::into_inner)
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
