//! What a first boot takes from provisioning media before there is a place to keep anything.

use alknet_core::config::VaultSection;
use alknet_provisioning::{
    ConsoleDocument, KernelMounter, Paths, Programs, ProvisioningError, PutSeedKeyError, Secrets,
    Source, load, load_console, programs, put_seed_key,
};
use alknet_vault::slots::{Alkv, SeedKey, SlotType};

use crate::vault::{Ask, Sources, Waiting};

/// What the media say about the vault.
#[derive(Debug)]
pub(crate) struct Media {
    pub(crate) vault: VaultSection,
    /// Where that comes from.
    pub(crate) from: Source,
    /// The node keeps nothing, and makes a key at each start.
    pub(crate) stateless: bool,
    /// What the machine is called.
    pub(crate) name: Option<String>,
    pub(crate) secrets: Secrets,
}

impl Media {
    /// Reads every source, and what somebody pasted. Blocks on disks; not for PID 1's loop.
    pub(crate) fn read(pasted: Option<&ConsoleDocument>) -> Result<Self, Waiting> {
        let paths = paths();
        let loaded = match pasted {
            Some(pasted) => load_console(&paths, &KernelMounter, pasted.copied()),
            None => load(&paths),
        };
        // A vault that is made stays: not by a document that cannot be read as far as that.
        let vague = |text: &str| text.contains("vault") || text.contains("TOML");
        let refused = loaded.problems.iter().find(|problem| {
            problem.code == "provisioning-unreadable"
                || problem.code == "config-refused" && vague(&problem.text)
        });
        if let (true, Some(problem)) = (loaded.salvaged, refused) {
            return Err(Waiting::new(
                Ask::Nothing,
                "vault-waits",
                format!(
                    "no vault is made before the configuration is right: {}",
                    problem.text
                ),
                &problem.hint,
            ));
        }
        Ok(Self {
            vault: loaded.config.vault,
            from: loaded.source,
            stateless: loaded.config.node.stateless,
            name: loaded.config.node.name,
            secrets: loaded.secrets,
        })
    }

    /// The secrets for a vault that is there; nothing is read where none would help.
    pub(crate) fn secrets_for(vault: &Alkv) -> Secrets {
        let mut slots = vault.slots().iter();
        if slots.any(|slot| slot.kind() == SlotType::Provisioning) {
            load(&paths()).secrets
        } else {
            Secrets::default()
        }
    }
}

/// The media of this machine.
pub(crate) struct SystemSources;

impl Sources for SystemSources {
    fn secrets(&self) -> Secrets {
        load(&paths()).secrets
    }

    fn put(&self, key: &SeedKey, boot: bool) -> Result<Source, PutSeedKeyError> {
        put_seed_key(&paths(), &KernelMounter, key, boot)
    }

    fn programs(&self) -> Result<Programs, ProvisioningError> {
        programs(&paths(), &KernelMounter)
    }
}

fn paths() -> Paths {
    let paths = Paths::system();
    // What a volume is mounted on must exist.
    if let Err(error) = std::fs::create_dir_all(&paths.mount_point) {
        tracing::warn!(%error, path = %paths.mount_point.display(), "cannot be made");
    }
    paths
}
