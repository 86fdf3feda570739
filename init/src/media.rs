//! What a first boot takes from provisioning media before there is a place to keep anything.

use alknet_core::config::VaultSection;
use alknet_provisioning::{KernelMounter, Paths, Secrets, erase, load};
use alknet_vault::slots::{Alkv, SlotType};

use crate::control::Problem;
use crate::log::Log;
use crate::vault::{Ask, Waiting};

/// What the media say about the vault.
#[derive(Debug)]
pub(crate) struct Media {
    pub(crate) vault: VaultSection,
    /// What the machine is called.
    pub(crate) name: Option<String>,
    pub(crate) secrets: Secrets,
}

impl Media {
    /// Reads every source. Blocks on disks; not for PID 1's loop.
    pub(crate) fn read() -> Result<Self, Waiting> {
        let paths = paths();
        let loaded = load(&paths);
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

    /// The words are in the vault, which is on the disk: no medium needs them any more. What cannot be
    /// overwritten is said.
    pub(crate) fn erase(&self, log: &Log) -> Vec<Problem> {
        let places = self.secrets.words.as_ref().map(|words| &words.places);
        let Some(places) = places else {
            return Vec::new();
        };
        let left = erase(&paths(), &KernelMounter, places);
        for problem in &left {
            log.warn(format_args!("{}: {}", problem.code, problem.text));
        }
        left.into_iter()
            .map(|problem| Problem {
                code: problem.code.to_owned(),
                text: problem.text,
                hint: problem.hint,
            })
            .collect()
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
