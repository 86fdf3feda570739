//! The configuration in the machine's life: read, put in force, stored.

use std::sync::Arc;

use alknet_core::config::NodeConfig;
use alknet_provisioning::ConsoleDocument;

use alknet_vault::slots::FirstBootPermissions;

use super::{InitMachine, MachineEvent};
use crate::{
    control::NodeMessage,
    data,
    settings::{self, NodeSettings},
};

/// How often PID 1 reads the sources of an invalid or missing configuration again, ms.
const REREAD_EVERY_MS: u64 = 3_000;

/// The part that reads the sources together with a pasted configuration.
const PASTING: &str = "pasted configuration";
/// The part that reads the sources again.
const READING: &str = "configuration";

/// Configurations that came while the machine ran: pasted at the console, or taken over by the
/// node. PID 1 stores each on the disk, where the next read of the sources finds it as if the
/// machine had been configured before.
#[derive(Debug, Default)]
pub(super) struct ConfigChanges {
    /// How many came since PID 1 started.
    count: u64,
    /// How many pasted ones are being read together with the sources.
    reading: u64,
}

impl ConfigChanges {
    /// Counts a pasted configuration, with which the sources are read.
    fn begin(&mut self) {
        self.count += 1;
        self.reading += 1;
    }

    /// Counts a configuration that the node took over.
    fn took(&mut self) {
        self.count += 1;
    }

    /// A read of the sources ended or failed.
    pub(super) fn end(&mut self) {
        self.reading = self.reading.saturating_sub(1);
    }

    fn are_read(&self) -> bool {
        self.reading > 0
    }
}

impl InitMachine {
    /// Puts these settings in force.
    pub(super) fn adopt(&mut self, settings: NodeSettings, now: u64) {
        self.timers.reread = settings.is_wanting().then_some(now + REREAD_EVERY_MS);
        for problem in settings
            .problems
            .iter()
            .filter(|one| !self.settings.problems.contains(one))
        {
            self.log
                .warn(format_args!("{}: {}", problem.code, problem.text));
        }
        self.facts.config_source.clone_from(&settings.source);
        self.facts.problems.config.clone_from(&settings.problems);
        let changed =
            settings.config != self.settings.config || settings.records != self.settings.records;
        let first = self.life == 0;
        if settings.is_settled() {
            self.conclude_configuration();
        }
        self.settings = settings;
        if changed || first {
            self.settings.apply();
            self.facts.hostname = self.settings.hostname().to_owned();
        }
        if changed {
            self.log
                .info("the configuration changed: the node is restarted with it");
            self.network.apply(&self.settings);
            if let Some(order) = self.supervisor.restart(now) {
                self.obey(order, now);
            }
        }
        self.finish_cloud(now);
    }

    /// Stores a document that the node took over for the next start, and gives its peers and tokens
    /// to a restarted node. PID 1 validates the document again: it trusts no other process with its
    /// own files.
    pub(super) fn keep_config(&mut self, n: u64, document: String) {
        let life = self.life;
        let config = match NodeConfig::parse(document.as_bytes()) {
            Ok(config) => config,
            Err(errors) => {
                let error = errors.first().map(ToString::to_string);
                return self.config_stored(life, n, Some(error.unwrap_or_default()));
            }
        };
        // A stored contradiction would close the machine at the next start.
        let contradiction = data::contradiction(&config, &self.facts.data);
        self.config_changes.took();
        // The document is in force whether it is stored or not: the node already runs with it.
        self.settings.take(config);
        if let Some(problem) = contradiction {
            return self.config_stored(life, n, Some(problem.text));
        }
        let Some(dir) = settings::data_dir(&self.facts.data.mode, &self.state_dir) else {
            let error = "there is no data partition: it holds until the machine restarts";
            return self.config_stored(life, n, Some(error.to_owned()));
        };
        if self.first_configuration_waits() {
            let error = "the vault is locked: it holds until the machine restarts";
            return self.config_stored(life, n, Some(error.to_owned()));
        }
        let error = Some("it failed; the log says why".to_owned());
        let failed = MachineEvent::Kept { life, n, error };
        self.blocking("keeping the configuration", failed, move || {
            let kept =
                alknet_provisioning::store_document(&dir.join("config"), document.as_bytes());
            let error = kept.err().map(|error| error.to_string());
            MachineEvent::Kept { life, n, error }
        });
    }

    pub(super) fn config_stored(&mut self, life: u64, n: u64, error: Option<String>) {
        match &error {
            None => {
                let source = alknet_provisioning::ConfigOrigin::Stored.to_string();
                self.settings.source.clone_from(&source);
                self.facts.config_source = source;
                self.conclude_configuration();
                self.log.info("the configuration was changed and is kept");
            }
            Some(error) => self.log.warn(format_args!(
                "the configuration was changed and is not kept: {error}"
            )),
        }
        // A node of another life did not ask, and would take the number for one of its own.
        if let Some(node) = self.node.as_ref().filter(|node| node.life() == life) {
            node.send(NodeMessage::ConfigKept { n, error });
        }
    }

    /// Whether PID 1 must not store a first configuration now. In a locked sealed vault PID 1
    /// cannot withdraw the permission to take another one. An attacker's medium would then have
    /// that permission once the stored configuration is damaged.
    fn first_configuration_waits(&self) -> bool {
        let vault = &self.vault;
        vault.is_locked() && vault.is_sealed() && vault.pending().configuration
    }

    /// The node has a configuration from now on, whatever happens to the file.
    fn conclude_configuration(&mut self) {
        self.conclude(FirstBootPermissions {
            configuration: true,
            ..FirstBootPermissions::default()
        });
    }

    /// If the failed part of PID 1 read the sources, PID 1 reads them again.
    pub(super) fn configuration_failed(&mut self, part: &str, now: u64) {
        if part == PASTING {
            self.config_changes.end();
        }
        if part == READING {
            self.timers.reread = Some(now + REREAD_EVERY_MS);
        }
    }

    pub(super) fn reread(&mut self, now: u64) {
        if self.shutdown.is_some() || self.timers.reread.is_none_or(|at| now < at) {
            return;
        }
        // Staging has the boot partition for itself for as long as a bundle takes.
        let is_staging = self.update.is_staging();
        if self.config_changes.are_read() || self.first_configuration_waits() || is_staging {
            self.timers.reread = Some(now + REREAD_EVERY_MS);
            return;
        }
        self.timers.reread = None;
        if self.facts.data.mode == "locked" {
            // Each attempt to open the data reads the sources.
            return;
        }
        let config_changes = self.config_changes.count;
        let data = settings::data_dir(&self.facts.data.mode, &self.state_dir);
        let vault = Arc::clone(&self.vault);
        self.blocking(READING, MachineEvent::Tick, move || {
            let settings = NodeSettings::read(data.as_deref(), &vault, None, None);
            MachineEvent::Settings {
                config_changes,
                settings: Box::new(settings),
            }
        });
    }

    /// The sources were read again. `config_changes` is the count of configurations when that
    /// began.
    pub(super) fn reread_is_done(
        &mut self,
        config_changes: u64,
        mut settings: NodeSettings,
        now: u64,
    ) {
        if config_changes != self.config_changes.count {
            // A configuration that came since then may have been stored before the sources were
            // read, or after. The result of the read does not replace it, and is not in force
            // before it: words that come with a configuration replace the vault of a machine that
            // had none.
            if self.settings.is_wanting() && self.remake_from.is_none() {
                self.timers.reread = Some(now + REREAD_EVERY_MS);
            }
            return;
        }
        settings.carry(&self.settings);
        self.adopt(settings, now);
    }

    /// The user pasted a configuration, or the rest of one.
    pub(super) fn paste(&mut self, line: &str) {
        let document = match ConsoleDocument::parse(line) {
            Ok(document) => document,
            Err(error) => return self.say_of_pasted(&error.to_string()),
        };
        if self.shutdown.is_some() || self.opening {
            return self.say_of_pasted("the machine is busy; paste it again in a moment");
        }
        if self.facts.data.mode == "locked" {
            // The vault that is to be made may wait for just this.
            self.say_of_pasted("it is looked at with the next attempt to open the vault");
            self.offer.pasted = Some(document);
            return self.open();
        }
        if self.first_configuration_waits() {
            return self.say_of_pasted("the vault is locked; open it, and paste this again");
        }
        self.config_changes.begin();
        let data = settings::data_dir(&self.facts.data.mode, &self.state_dir);
        let vault = Arc::clone(&self.vault);
        self.blocking(PASTING, MachineEvent::Tick, move || {
            let pasted = Some(document.copied());
            let settings = NodeSettings::read(data.as_deref(), &vault, None, pasted);
            MachineEvent::Pasted(Box::new((settings, document)))
        });
    }

    /// PID 1 read all sources together with the pasted document.
    pub(super) fn pasted(
        &mut self,
        mut settings: NodeSettings,
        document: ConsoleDocument,
        now: u64,
    ) {
        self.config_changes.end();
        if settings.is_pasted() {
            if settings.brings_words() {
                let Some(why) = self.keeps_its_vault() else {
                    self.say_of_pasted("its words replace those that this machine made for itself");
                    return self.begin_remake(document, now);
                };
                self.say_of_pasted(&format!("it is in force, but not its words: {why}"));
            } else {
                self.say_of_pasted("it is in force");
            }
            settings.carry(&self.settings);
            return self.adopt(settings, now);
        }
        let mut kept = self.settings.clone();
        let wrong = kept.refuse_pasted(&settings);
        if wrong.is_empty() {
            self.say_of_pasted("it is known already, and changes nothing");
        }
        for problem in &wrong {
            self.say_of_pasted(&format!("{} ({})", problem.text, problem.hint));
        }
        self.adopt(kept, now);
    }

    fn say_of_pasted(&self, text: &str) {
        self.log
            .info(format_args!("a configuration was pasted: {text}"));
        for console in self.consoles() {
            console.say(format!("alknet: pasted configuration: {text}"));
        }
    }
}
