//! The cloud in the machine's life: its metadata service may have the node's document, and Azure
//! wants to know that the machine is ready. A helper asks. PID 1 stores its answer in memory, where
//! the sources of a configuration are read.

use std::net::Ipv4Addr;
use std::panic::{AssertUnwindSafe, catch_unwind};

use alknet_provisioning::{MetadataService, SourcePaths};

use super::{InitMachine, MachineEvent, panic_text};
use crate::{
    cloud::{CloudClient, CloudPurpose, CloudStep, MetadataResult},
    control::{LinkFacts, MachineDiagnostic},
    helper_process,
    helper_task::{HelperOutcome, HelperTask},
    vault::VaultWait,
};

/// The machine's side of its cloud.
#[derive(Debug)]
pub(super) struct MachineCloud {
    pub(super) client: CloudClient,
    /// Where the answers of metadata services are stored.
    pub(super) answers: SourcePaths,
    /// Whether a helper runs, for the cloud or for the vault. Their user and their control group
    /// are shared, so one runs at a time.
    pub(super) helper_is_running: bool,
    /// Whether the cloud wants to know that the machine is ready.
    pub(super) wants_report: bool,
}

impl Default for MachineCloud {
    /// A machine that runs on no cloud.
    fn default() -> Self {
        Self {
            client: CloudClient::default(),
            answers: SourcePaths::system(),
            helper_is_running: false,
            wants_report: false,
        }
    }
}

impl MachineCloud {
    /// The cloud that the firmware's tables name.
    pub(super) fn detect() -> Self {
        let service = MetadataService::detect(&SourcePaths::system());
        Self {
            wants_report: service == Some(MetadataService::Azure),
            ..Self::default()
        }
    }
}

impl InitMachine {
    /// Begins to ask the metadata service for the node's document.
    pub(super) fn ask_cloud(&mut self, service: MetadataService, now: u64) {
        if self.cloud.client.ask(service, now) {
            self.log_cloud(&format!(
                "asking the metadata service of {service} for a configuration"
            ));
        }
    }

    /// Ends a query that a configuration made needless, and starts the node if it
    /// waited for it.
    pub(super) fn finish_cloud(&mut self, now: u64) {
        let was_blocked = self.cloud.client.blocks_start();
        self.cloud.client.finish(!self.settings.is_default());
        self.facts.problems.cloud = self.cloud.client.problems();
        if was_blocked {
            self.start_unblocked(now);
        }
    }

    /// Starts the node if its data are open, unless it waits for the metadata service.
    pub(super) fn start_unblocked(&mut self, now: u64) {
        let is_open = self.waiting.is_none() && !self.opening && self.remake_from.is_none();
        let goes_down = self.shutdown.is_some() || self.reset.is_some();
        if is_open && !self.cloud.client.blocks_start() && !goes_down {
            self.supervisor.start(now);
        }
    }

    /// Does what is due at the cloud.
    pub(super) fn attend_cloud(&mut self, now: u64) {
        if self.shutdown.is_some() || self.reset.is_some() {
            return;
        }
        if !self.settings.is_default() {
            self.finish_cloud(now);
        }
        let interface = self.cloud_interface();
        match self.cloud.client.next(now, interface.as_deref()) {
            None => {}
            Some(CloudStep::GiveUp(service, problem)) => self.unanswered(service, problem, now),
            Some(CloudStep::Send(purpose, task)) => {
                self.cloud.helper_is_running = true;
                let why = "it failed; the log says why".to_owned();
                let lost = MachineEvent::CloudHelperExited(purpose, Err(why));
                self.blocking("a helper task at the cloud", lost, move || {
                    MachineEvent::CloudHelperExited(purpose, helper_outcome(&task))
                });
            }
        }
    }

    /// When something is due at the cloud, in ms after the kernel's start.
    pub(super) fn cloud_due(&self) -> Option<u64> {
        let is_quiet = self.shutdown.is_some() || self.reset.is_some();
        let can_send = self.cloud_interface().is_some();
        (!is_quiet)
            .then(|| self.cloud.client.deadline(can_send))
            .flatten()
    }

    /// A card with an IPv4 address, over which a helper may be sent now.
    fn cloud_interface(&self) -> Option<String> {
        let has_address = |link: &&LinkFacts| {
            let mut addresses = link.addresses.iter();
            link.up && addresses.any(|address| is_ipv4(address))
        };
        let link = self.facts.links.iter().find(has_address);
        link.filter(|_| !self.cloud.helper_is_running)
            .map(|link| link.name.clone())
    }

    /// Handles the return of a helper from the cloud.
    pub(super) fn on_helper_exit(
        &mut self,
        purpose: CloudPurpose,
        outcome: Result<HelperOutcome, String>,
        now: u64,
    ) {
        self.cloud.helper_is_running = false;
        match purpose {
            CloudPurpose::Document(service) => match self.cloud.client.answered(outcome, now) {
                None => {}
                Some(MetadataResult::Document(document)) => {
                    let bytes = document.expose();
                    let length = bytes.len();
                    self.log_cloud(&format!(
                        "the metadata service of {service} gave a document of {length} bytes"
                    ));
                    self.store_answer(service, bytes);
                    self.read_answer(now);
                }
                Some(MetadataResult::Nothing) => {
                    self.log_cloud(&format!(
                        "the metadata service of {service} has no document for this machine"
                    ));
                    self.store_answer(service, b"");
                    self.go_on(now);
                }
                Some(MetadataResult::Problem(problem)) => self.unanswered(service, problem, now),
            },
            CloudPurpose::Report => {
                if let Some(line) = self.cloud.client.reported(outcome, now) {
                    self.log.info(line);
                }
            }
        }
        self.facts.problems.cloud = self.cloud.client.problems();
    }

    /// Goes on without a document.
    fn unanswered(&mut self, service: MetadataService, problem: MachineDiagnostic, now: u64) {
        let known = &self.facts.problems.cloud;
        if !known.contains(&problem) {
            self.log
                .warn(format_args!("{}: {}", problem.code, problem.text));
        }
        self.store_answer(service, b"");
        self.facts.problems.cloud = self.cloud.client.problems();
        self.go_on(now);
    }

    /// From now on the service counts as asked, and the sources have its document.
    fn store_answer(&self, service: MetadataService, document: &[u8]) {
        // Memory is written here, which takes no time.
        if let Err(error) = service.store_answer(&self.cloud.answers, document) {
            self.log.error(format_args!("{error}"));
        }
    }

    /// Lets what waited for the answer go on.
    fn go_on(&mut self, now: u64) {
        if self.vault_waits_for_cloud() {
            // The next attempt makes the vault.
            self.timers.open = Some(now);
        } else {
            self.start_unblocked(now);
        }
    }

    /// Reads the sources, of which one has the document now.
    fn read_answer(&mut self, now: u64) {
        if self.vault_waits_for_cloud() {
            // Each attempt reads the sources.
            self.timers.open = Some(now);
        } else {
            self.timers.reread = Some(now);
        }
    }

    /// Whether the vault is made once the metadata service was asked.
    fn vault_waits_for_cloud(&self) -> bool {
        let asks = |wait: &VaultWait| wait.asks.is_some();
        self.waiting.as_ref().is_some_and(asks)
    }

    fn log_cloud(&self, text: &str) {
        self.log.info(text);
        for console in self.consoles() {
            console.say(format!("alknet: {text}"));
        }
    }
}

/// Runs a task in a helper. The task counts as over even after a panic.
pub(super) fn helper_outcome(task: &HelperTask) -> Result<HelperOutcome, String> {
    let outcome = catch_unwind(AssertUnwindSafe(|| helper_process::run(task)));
    let outcome = outcome.map_err(|payload| panic_text(&*payload));
    outcome.and_then(|run| run.map_err(|error| error.to_string()))
}

/// Whether an address with its prefix length is one of IPv4.
fn is_ipv4(address: &str) -> bool {
    let address = address.split('/').next().unwrap_or_default();
    address.parse::<Ipv4Addr>().is_ok()
}
