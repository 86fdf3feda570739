//! Disk, network and clock in the machine's life.

use std::io;

use super::{Event, HOUSEKEEP_EVERY_MS, Machine, PART_PAUSE_MS};
use crate::{
    clock,
    control::Problem,
    data::{self, Prepared},
    facts::Clock,
    network::News,
    stage::{self, Stage, boot_ms},
};

impl Machine {
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
        let as_before = Event::Housekept(Box::new(prepared.copied()));
        let breaks = std::mem::take(&mut self.breaks_housekeeping);
        self.blocking("housekeeping", as_before, move || {
            assert!(!breaks, "a fault was injected");
            data::refresh(&mut prepared);
            if note
                && prepared.state.mode == "mounted"
                && let Err(error) = clock::note(&prepared.state_dir)
                && !is_told_with_the_data(error.kind())
            {
                tracing::warn!(%error, "the time is not noted for a start without a clock");
            }
            Event::Housekept(prepared)
        });
    }

    pub(super) fn housekept(&mut self, prepared: Box<Prepared>) {
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
            self.facts.problems.network = vec![Problem {
                code: "network-failed".to_owned(),
                text: error.to_string(),
                hint: "it is tried again; see the log".to_owned(),
            }];
            self.timers.network = Some(now + PART_PAUSE_MS);
        }
    }

    pub(super) fn network_news(&mut self, news: News) {
        match news {
            News::Links { links, dns, ready } => {
                if ready {
                    stage::reach(&mut self.facts.stages, Stage::Network);
                }
                self.network_is(ready);
                self.facts.links = links;
                self.facts.dns = dns;
            }
            News::Log { level, message } => self.log.write(level, "net", message),
            News::Synced => self.facts.clock = Clock::Sntp,
        }
    }
}

/// Of a full or read-only disk the data's own problems tell.
fn is_told_with_the_data(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{ReadOnlyFilesystem, StorageFull};
    matches!(kind, StorageFull | ReadOnlyFilesystem)
}
