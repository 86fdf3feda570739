//! Disk, network and clock in the machine's life.

use std::io;

use super::{HOUSEKEEP_EVERY_MS, InitMachine, MachineEvent, PART_PAUSE_MS};
use crate::{
    clock,
    control::MachineDiagnostic,
    data::{self, PreparedData},
    facts::ClockState,
    network::NetworkEvent,
    stage::{self, BootStageName, boot_ms},
};

impl InitMachine {
    pub(super) fn housekeep(&mut self, now: u64) {
        if now < self.timers.housekeep || self.shutdown.is_some() {
            return;
        }
        let Some(mut prepared) = self.prepared.take() else {
            return;
        };
        let note = now >= self.timers.note;
        if note {
            self.timers.note = now + clock::NOTE_EVERY.as_millis() as u64;
        }
        let as_before = MachineEvent::Housekept(Box::new(prepared.copied()));
        let breaks = std::mem::take(&mut self.breaks_housekeeping);
        self.blocking("housekeeping", as_before, move || {
            assert!(!breaks, "a fault was injected");
            data::refresh(&mut prepared);
            if note
                && prepared.state.mode == "mounted"
                && let Err(error) = clock::note(&prepared.state_dir)
                && !is_reported_by_data(error.kind())
            {
                tracing::warn!(%error, "the time is not noted for a start without a clock");
            }
            MachineEvent::Housekept(prepared)
        });
    }

    pub(super) fn housekept(&mut self, prepared: Box<PreparedData>) {
        // The interval counts from the end of a round, so a slow disk gets no new request at once.
        self.timers.housekeep = boot_ms() + HOUSEKEEP_EVERY_MS;
        self.facts.data = prepared.state.clone();
        self.facts.problems.data.clone_from(&prepared.problems);
        self.prepared = Some(prepared);
    }

    pub(super) fn start_network(&mut self, now: u64) {
        self.timers.network = None;
        self.facts.problems.network.clear();
        if let Err(error) = self.network.start(&self.settings) {
            self.log
                .error(format_args!("the network cannot be started: {error}"));
            self.facts.problems.network = vec![MachineDiagnostic {
                code: "network-failed".to_owned(),
                text: error.to_string(),
                hint: "it is tried again; see the log".to_owned(),
            }];
            self.timers.network = Some(now + PART_PAUSE_MS);
        }
    }

    pub(super) fn network_news(&mut self, news: NetworkEvent) {
        match news {
            NetworkEvent::Links { links, dns, ready } => {
                if ready {
                    stage::record_stage(&mut self.facts.stages, BootStageName::Network);
                }
                self.network_is(ready);
                self.facts.links = links;
                self.facts.dns = dns;
            }
            NetworkEvent::Log { level, message } => self.log.write(level, "net", message),
            NetworkEvent::Synced => self.facts.clock = ClockState::Sntp,
        }
    }
}

/// Whether the data's own problems already report this: a full or read-only disk.
fn is_reported_by_data(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{ReadOnlyFilesystem, StorageFull};
    matches!(kind, StorageFull | ReadOnlyFilesystem)
}
