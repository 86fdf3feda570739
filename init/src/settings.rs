//! The configuration of this boot, in the form that the rest of PID 1 uses.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use alknet_core::EncryptedData;
use alknet_core::config::{NodeConfig, Port80, VaultInit};
use alknet_provisioning::{
    ConfigOrigin, ConsoleDocument, KernelMounter, LoadedConfig, MetadataService, SourcePaths,
    erase, load, load_console, settle_credentials,
};
use alknet_vault::Entropy;

use crate::control::MachineDiagnostic;
use crate::media;
use crate::vault::{KeptCredentials, VaultHandle, keep_credentials};

/// Host name of a machine without a configured name.
const HOSTNAME_DEFAULT: &str = "alknet";
/// The port where clients expect plain HTTP.
const HTTP_PORT: u16 = 80;

/// The settings of this boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NodeSettings {
    pub(crate) config: NodeConfig,
    pub(crate) source: String,
    pub(crate) problems: Vec<MachineDiagnostic>,
    /// Sealed credentials that PID 1 hands to the node.
    pub(crate) records: BTreeMap<String, EncryptedData>,
    /// Whether one of the problems is an error and not a notice.
    invalid: bool,
    /// Whether only the administrators were taken, from a document that was refused.
    salvaged: bool,
    /// Whether this program refuses the stored document.
    refuses_stored: bool,
    /// Whether the configuration requests a vault from words that are there.
    brings_words: bool,
    /// Whether the configuration is on the disk, with everything that came with it.
    settled: bool,
    /// Whether the node is sealed and was configured before, and its configuration is gone.
    lost: bool,
    /// The metadata service that may have the configuration, while no source has one.
    asks: Option<MetadataService>,
    /// Problems that another read of the sources does not find: words that a medium still has, or
    /// that are not the vault's.
    lasting: Vec<MachineDiagnostic>,
    /// Problems of a pasted configuration, while no valid configuration is in force.
    pasted: Vec<MachineDiagnostic>,
}

impl NodeSettings {
    /// Reads every source. This blocks on disks, so PID 1's loop must not call it. `state_dir` is
    /// the data partition, if there is one. PID 1 stores credentials that a medium has, and erases
    /// them there. It also erases `words`, those of the vault that was just opened, wherever they
    /// still lie. Media with other words are problems.
    pub(crate) fn read(
        state_dir: Option<&Path>,
        vault: &VaultHandle,
        words: Option<&Entropy>,
        pasted: Option<ConsoleDocument>,
    ) -> Self {
        let paths = paths(state_dir, vault.is_sealed()).configured(vault.is_configured());
        Self::read_from(&paths, state_dir, vault, words, pasted)
    }

    fn read_from(
        paths: &SourcePaths,
        state_dir: Option<&Path>,
        vault: &VaultHandle,
        words: Option<&Entropy>,
        pasted: Option<ConsoleDocument>,
    ) -> Self {
        let loaded = {
            let _media = media::alone();
            match pasted {
                Some(pasted) => load_console(paths, &KernelMounter, pasted),
                None => load(paths),
            }
        };
        tracing::info!("configuration: {}", loaded.summary());
        let mut lasting = Vec::new();
        if let Some(words) = words {
            let locations = loaded.secrets.locations_of(words);
            let media = media::alone();
            lasting = erase(paths, &KernelMounter, &locations);
            drop(media);
            lasting.extend(loaded.secrets.conflicts_with(words));
        }
        let found = (
            loaded.secrets.credentials.as_slice(),
            loaded.takes_credentials,
        );
        let kept = keep_credentials(vault, state_dir, &loaded.config, found, paths);
        if let Some(dir) = paths.config_dir.as_ref().filter(|_| kept.settled) {
            // If the file is not written, the next start takes the same credentials once more.
            if let Err(error) = settle_credentials(dir) {
                tracing::warn!("{error}");
            }
        }
        let settled = kept.settled;
        let mut settings = Self::from_loaded(loaded, lasting, kept);
        // The medium is still needed while one of its credentials is not stored.
        settings.settled &= settled;
        // A machine that was never configured has lost nothing.
        settings.lost &= paths.is_configured;
        settings
    }

    fn from_loaded(
        loaded: LoadedConfig,
        lasting: Vec<alknet_provisioning::SourceDiagnostic>,
        kept: KeptCredentials,
    ) -> Self {
        let problem = |problem: alknet_provisioning::SourceDiagnostic| MachineDiagnostic {
            code: problem.code.to_owned(),
            text: problem.text,
            hint: problem.hint,
        };
        let lasting: Vec<MachineDiagnostic> = lasting.into_iter().map(problem).collect();
        let invalid = loaded.problems.iter().any(|problem| !problem.is_notice());
        let problems = loaded.problems.into_iter().map(problem);
        let brings_words = loaded.secrets.words.is_some();
        let brings_words = brings_words && loaded.config.vault.init == VaultInit::Provisioned;
        let has_admins = !loaded.config.node.admin_keys.is_empty();
        let lost = loaded.source == ConfigOrigin::Default || loaded.salvaged && !has_admins;
        Self {
            settled: loaded.is_stored,
            lost,
            asks: loaded.asks,
            config: loaded.config,
            source: loaded.source.to_string(),
            problems: problems
                .chain(lasting.iter().cloned())
                .chain(kept.problems)
                .collect(),
            records: kept.records,
            invalid,
            salvaged: loaded.salvaged,
            refuses_stored: loaded.refuses_stored,
            brings_words,
            lasting,
            pasted: Vec::new(),
        }
    }

    /// Adds to a new read the problems that only an earlier read could find.
    pub(crate) fn carry(&mut self, before: &Self) {
        self.lasting.clone_from(&before.lasting);
        if self.is_wanting() {
            self.pasted.clone_from(&before.pasted);
        }
        let carried = self.lasting.iter().chain(&self.pasted);
        self.problems.extend(carried.cloned());
    }

    /// Whether this machine has no configuration yet.
    pub(crate) fn is_default(&self) -> bool {
        self.source == ConfigOrigin::Default.to_string()
    }

    /// Whether the machine has a configuration, and takes all of it.
    pub(crate) fn is_taken(&self) -> bool {
        !self.is_default() && !self.salvaged && !self.refuses_stored
    }

    /// The metadata service that may have the configuration, while no source has one.
    pub(crate) fn asks(&self) -> Option<MetadataService> {
        self.asks
    }

    /// Whether the configuration is on the disk, with everything that came with it, so that no
    /// medium is needed any more.
    pub(crate) fn is_settled(&self) -> bool {
        self.settled
    }

    /// Whether the node is sealed and was configured before, and its configuration is gone.
    pub(crate) fn is_lost(&self) -> bool {
        self.lost
    }

    /// Whether the configuration requests a vault from words that are there.
    pub(crate) fn brings_words(&self) -> bool {
        self.brings_words
    }

    /// Whether a pasted configuration is in force.
    pub(crate) fn is_pasted(&self) -> bool {
        self.source == ConfigOrigin::Console.to_string() && !self.salvaged
    }

    /// Whether the machine takes all of its configuration, and finds it again at its next start. One that a person
    /// pasted into a machine without data ends with this start.
    pub(crate) fn is_taken_for_good(&self) -> bool {
        self.is_taken() && (self.settled || !self.is_pasted())
    }

    /// The problems of a pasted document, which is not used. `read` is the result of reading it.
    pub(crate) fn refuse_pasted(&mut self, read: &Self) -> Vec<MachineDiagnostic> {
        let known = |one: &&MachineDiagnostic| {
            // The pasted document does not cause problems that the sources have without it.
            !self.problems.contains(one) && one.code != "config-salvaged"
        };
        let invalid: Vec<MachineDiagnostic> = read.problems.iter().filter(known).cloned().collect();
        if self.is_wanting() {
            self.problems.retain(|one| !self.pasted.contains(one));
            self.problems.extend(invalid.iter().cloned());
            self.pasted.clone_from(&invalid);
        }
        invalid
    }

    /// Whether it is worth reading the sources again: one is invalid, or no source has one, so that
    /// no client may do anything.
    pub(crate) fn is_wanting(&self) -> bool {
        self.invalid || self.is_default()
    }

    /// The running node took over `config`, and a restarted one gets its peers. Settings that
    /// cannot change while the machine runs stay as they are.
    pub(crate) fn take(&mut self, config: NodeConfig) {
        self.config = config.running_as(&self.config);
    }

    pub(crate) fn hostname(&self) -> &str {
        self.config.node.name.as_deref().unwrap_or(HOSTNAME_DEFAULT)
    }

    /// The lowest port that the node binds. A process that may bind a port may also bind those
    /// above it.
    fn lowest_port(&self) -> u16 {
        let config = &self.config;
        let plain = (config.http.port80 != Port80::Off).then_some(HTTP_PORT);
        let iroh = config.iroh.port.filter(|_| config.iroh.enabled);
        let more = plain.into_iter().chain(iroh);
        more.fold(config.listen.port, u16::min)
    }

    /// Sets the host name, and the ports that the node may bind, in the kernel.
    pub(crate) fn apply(&self) {
        if let Err(error) = nix::unistd::sethostname(self.hostname()) {
            tracing::warn!(%error, name = self.hostname(), "the host name cannot be set");
        }
        crate::mount::allow_port(self.lowest_port());
    }
}

fn paths(state_dir: Option<&Path>, is_sealed: bool) -> SourcePaths {
    let mut paths = SourcePaths::system().sealed(is_sealed);
    if let Some(state_dir) = state_dir {
        paths = paths.with_config_dir(state_dir.join("config"));
    }
    // The mount point of a volume without a data partition must exist.
    if let Err(error) = std::fs::create_dir_all(&paths.mount_point) {
        tracing::warn!(%error, path = %paths.mount_point.display(), "cannot be made");
    }
    paths
}

/// The data partition's folder, if the state directory is on the data partition.
pub(crate) fn data_dir(mode: &str, state_dir: &Path) -> Option<PathBuf> {
    ["mounted", "read-only"]
        .contains(&mode)
        .then(|| state_dir.to_owned())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Sources of a machine, all below this folder.
    pub(crate) fn paths_below(root: &Path) -> SourcePaths {
        let mut paths = SourcePaths::system();
        paths.fw_cfg = root.join("fw_cfg");
        paths.block_class = root.join("block");
        paths.dev = root.join("dev");
        paths.dmi = root.join("dmi");
        paths.efi = root.join("efi");
        paths.command_line = root.join("cmdline");
        paths.mount_point = root.join("mount");
        paths
    }

    pub(crate) fn settings(code: Option<&str>) -> NodeSettings {
        let problems = code.into_iter().map(|code| MachineDiagnostic {
            code: code.to_owned(),
            ..MachineDiagnostic::default()
        });
        NodeSettings {
            config: NodeConfig::default(),
            source: ConfigOrigin::FwCfg.to_string(),
            problems: problems.collect(),
            records: BTreeMap::new(),
            invalid: code.is_some(),
            salvaged: false,
            refuses_stored: false,
            brings_words: false,
            settled: false,
            lost: false,
            asks: None,
            lasting: Vec::new(),
            pasted: Vec::new(),
        }
    }

    /// Settings of a machine without a configuration, whose cloud may have one.
    pub(crate) fn of_cloud(asks: Option<MetadataService>) -> NodeSettings {
        NodeSettings {
            source: ConfigOrigin::Default.to_string(),
            asks,
            ..settings(None)
        }
    }

    /// Settings of a configuration from `source` that brings words.
    pub(crate) fn with_words(source: ConfigOrigin) -> NodeSettings {
        NodeSettings {
            source: source.to_string(),
            brings_words: true,
            ..settings(None)
        }
    }

    #[test]
    fn a_machine_without_a_name_has_one() {
        let mut named = settings(None);
        assert_eq!(named.hostname(), "alknet");
        named.config.node.name = Some("box".to_owned());
        assert_eq!(named.hostname(), "box");
    }

    #[test]
    fn the_node_may_bind_every_port_that_is_configured() {
        let mut settings = settings(None);
        settings.config.listen.port = 443;
        settings.config.iroh.port = Some(99);
        assert_eq!(settings.lowest_port(), 443, "iroh is not served");
        settings.config.iroh.enabled = true;
        assert_eq!(settings.lowest_port(), 99);
        settings.config.http.port80 = Port80::Acme;
        assert_eq!(settings.lowest_port(), 80);
        settings.config.listen.port = 53;
        assert_eq!(settings.lowest_port(), 53);
    }

    #[test]
    fn only_a_wrong_or_missing_configuration_is_read_again() {
        let mut missing = settings(None);
        assert!(!missing.is_wanting());
        missing.source = ConfigOrigin::Default.to_string();
        assert!(missing.is_wanting());
        assert!(settings(Some("config-refused")).is_wanting());
        let mut notice = settings(Some("nocloud-ignored"));
        notice.invalid = false;
        assert!(!notice.is_wanting());
    }

    #[test]
    fn a_configuration_is_taken_only_as_a_whole() {
        assert!(settings(None).is_taken());
        let salvaged = NodeSettings {
            salvaged: true,
            ..settings(None)
        };
        let of_an_older_medium = NodeSettings {
            refuses_stored: true,
            ..settings(None)
        };
        for other in [salvaged, of_an_older_medium, of_cloud(None)] {
            assert!(!other.is_taken(), "{other:?}");
        }
        let mut pasted = settings(None);
        assert!(pasted.is_taken_for_good());
        pasted.source = ConfigOrigin::Console.to_string();
        assert!(pasted.is_taken() && !pasted.is_taken_for_good());
        pasted.settled = true;
        assert!(pasted.is_taken_for_good());
    }

    #[test]
    fn a_restarted_node_gets_the_people_and_the_machine_stays() {
        let mut running = settings(None);
        running.config.listen.port = 4433;
        let mut taken = NodeConfig::default();
        taken.node.name = Some("other".to_owned());
        taken.node.admin_keys = vec!["a key".to_owned()];
        running.take(taken);
        assert_eq!(
            (running.config.listen.port, running.hostname()),
            (4433, "alknet")
        );
        assert_eq!(running.config.node.admin_keys, ["a key"]);
    }

    #[test]
    fn a_finding_of_one_look_is_reported_until_a_valid_value_counts() {
        let of = |code: &str| MachineDiagnostic {
            code: code.to_owned(),
            ..MachineDiagnostic::default()
        };
        let mut now = settings(None);
        now.source = ConfigOrigin::Default.to_string();
        now.lasting = vec![of("secrets-left")];
        let mut read = settings(Some("config-refused"));
        read.problems.push(of("config-salvaged"));
        assert_eq!(now.refuse_pasted(&read), [of("config-refused")]);
        assert_eq!(now.problems, [of("config-refused")]);
        // The next read of the sources finds neither.
        let mut later = settings(None);
        later.source = ConfigOrigin::Default.to_string();
        later.carry(&now);
        assert_eq!(later.problems, [of("secrets-left"), of("config-refused")]);
        let mut right = settings(None);
        right.carry(&later);
        assert_eq!(right.problems, [of("secrets-left")]);
    }

    /// An attacker's medium was in the machine at its first start, and the owner's was not there
    /// yet. PID 1 makes the vault from the attacker's words, and the owner's medium comes later.
    #[test]
    fn foreign_words_are_reported_at_each_start_with_their_medium() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let at = |name: &str| root.path().join(name);
        let paths = paths_below(root.path());
        let [owners, forged] =
            [7, 8].map(|byte| Entropy::from_bytes(&[byte; 32]).expect("32 bytes"));
        std::fs::create_dir_all(at("fw_cfg/words")).expect("a new folder");
        let phrase = owners.phrase();
        std::fs::write(at("fw_cfg/words/raw"), phrase.expose()).expect("a new file");
        let vault_handle = VaultHandle::new().expect("memory");
        let start = |vault: &Entropy| {
            NodeSettings::read_from(&paths, None, &vault_handle, Some(vault), None)
        };
        let reported = |settings: &NodeSettings| -> Vec<(String, String)> {
            let problems = settings.problems.iter();
            problems
                .map(|one| (one.code.clone(), one.text.clone()))
                .collect()
        };
        let conflict = (
            "provisioning-conflict".to_owned(),
            "fw_cfg: words that are not those of this node's vault".to_owned(),
        );
        let started = start(&forged);
        assert_eq!(reported(&started), std::slice::from_ref(&conflict));
        // A later read, which does not know the vault's words, removes no problem.
        let mut later = NodeSettings::read_from(&paths, None, &vault_handle, None, None);
        assert!(reported(&later).is_empty());
        later.carry(&started);
        assert_eq!(reported(&later), [conflict]);

        let right = start(&owners);
        let codes = right.problems.iter().map(|one| one.code.as_str());
        assert_eq!(codes.collect::<Vec<_>>(), ["secrets-left"]);
    }

    #[test]
    fn memory_is_no_place_to_keep_a_configuration() {
        assert_eq!(data_dir("volatile", Path::new("/run/alknet")), None);
        assert_eq!(
            data_dir("mounted", Path::new("/data")),
            Some("/data".into())
        );
    }
}
