//! The configuration of this boot, as the rest of PID 1 wants it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use alknet_core::EncryptedData;
use alknet_core::config::NodeConfig;
use alknet_provisioning::{Paths, Source};

use crate::control::Problem;
use crate::vault::{Keeper, keep_credentials};

/// Host name of a machine that was not given one.
const HOSTNAME_DEFAULT: &str = "alknet";

/// What was configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) config: NodeConfig,
    pub(crate) source: String,
    pub(crate) problems: Vec<Problem>,
    /// Credentials that are kept for the node, sealed.
    pub(crate) records: BTreeMap<String, EncryptedData>,
    /// One of them holds something up.
    wrong: bool,
}

impl Settings {
    /// Reads every source. Blocks on disks; not for PID 1's loop. `state_dir` is the data
    /// partition, if there is one. Credentials that a medium has are kept, and erased there.
    pub(crate) fn read(state_dir: Option<&Path>, keeper: &Keeper) -> Self {
        let mut paths = Paths::system().sealed(keeper.is_sealed());
        if let Some(state_dir) = state_dir {
            paths = paths.with_config_dir(state_dir.join("config"));
        }
        // What a volume without a data partition is mounted on must exist.
        if let Err(error) = std::fs::create_dir_all(&paths.mount_point) {
            tracing::warn!(%error, path = %paths.mount_point.display(), "cannot be made");
        }
        let loaded = alknet_provisioning::load(&paths);
        tracing::debug!("configuration: {}", loaded.summary());
        let wrong = loaded.problems.iter().any(|problem| !problem.is_notice());
        let found = &loaded.secrets.credentials;
        let kept = keep_credentials(keeper, state_dir, &loaded.config, found, &paths);
        let problems = loaded.problems.into_iter().map(|problem| Problem {
            code: problem.code.to_owned(),
            text: problem.text,
            hint: problem.hint,
        });
        Self {
            config: loaded.config,
            source: loaded.source.to_string(),
            problems: problems.chain(kept.problems).collect(),
            records: kept.records,
            wrong,
        }
    }

    /// Whether it is worth reading the sources again: one was found wrong, or there was none, so
    /// that nobody may do anything.
    pub(crate) fn is_wanting(&self) -> bool {
        self.wrong || self.source == Source::Default.to_string()
    }

    /// The running node took `config`: a restarted one gets its people. What cannot change while
    /// the machine runs stays as it is.
    pub(crate) fn take(&mut self, config: NodeConfig) {
        self.config = config.running_as(&self.config);
    }

    pub(crate) fn hostname(&self) -> &str {
        self.config.node.name.as_deref().unwrap_or(HOSTNAME_DEFAULT)
    }

    /// Makes the kernel know the host name and the port that the node may bind.
    pub(crate) fn apply(&self) {
        if let Err(error) = nix::unistd::sethostname(self.hostname()) {
            tracing::warn!(%error, name = self.hostname(), "the host name cannot be set");
        }
        crate::mount::allow_port(self.config.listen.port);
    }
}

/// The data partition's folder of a state directory, if that is what it is.
pub(crate) fn data_dir(mode: &str, state_dir: &Path) -> Option<PathBuf> {
    ["mounted", "read-only"]
        .contains(&mode)
        .then(|| state_dir.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(code: Option<&str>) -> Settings {
        let problems = code.into_iter().map(|code| Problem {
            code: code.to_owned(),
            ..Problem::default()
        });
        Settings {
            config: NodeConfig::default(),
            source: Source::FwCfg.to_string(),
            problems: problems.collect(),
            records: BTreeMap::new(),
            wrong: code.is_some(),
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
    fn only_a_wrong_or_missing_configuration_is_read_again() {
        let mut missing = settings(None);
        assert!(!missing.is_wanting());
        missing.source = Source::Default.to_string();
        assert!(missing.is_wanting());
        assert!(settings(Some("config-refused")).is_wanting());
        let mut notice = settings(Some("nocloud-ignored"));
        notice.wrong = false;
        assert!(!notice.is_wanting());
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
    fn memory_is_no_place_to_keep_a_configuration() {
        assert_eq!(data_dir("volatile", Path::new("/run/alknet")), None);
        assert_eq!(
            data_dir("mounted", Path::new("/data")),
            Some("/data".into())
        );
    }
}
