//! PID 1's facts about the machine, stored by part and reported together.

use crate::{
    clock::ClockSource,
    control::{
        BootStage, DataState, LinkFacts, MachineDiagnostic, MachineFacts, StorageFacts,
        UpdateFacts, VaultFacts,
    },
};

/// Problems by part, so that each part replaces its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct DiagnosticsByPart {
    /// A part of PID 1 failed. These come first, because they are faults of this program.
    pub(crate) internal: Vec<MachineDiagnostic>,
    pub(crate) node: Vec<MachineDiagnostic>,
    /// Problems that the running node reports.
    pub(crate) reported: Vec<MachineDiagnostic>,
    pub(crate) config: Vec<MachineDiagnostic>,
    /// Problems with the services of the cloud on which the machine runs.
    pub(crate) cloud: Vec<MachineDiagnostic>,
    pub(crate) data: Vec<MachineDiagnostic>,
    pub(crate) vault: Vec<MachineDiagnostic>,
    pub(crate) network: Vec<MachineDiagnostic>,
    /// Problems with the boot slots, and the end of the last update.
    pub(crate) update: Vec<MachineDiagnostic>,
    /// Disks that fail, and programs that are damaged on them.
    pub(crate) storage: Vec<MachineDiagnostic>,
}

/// Maximum number of internal problems: a part that fails repeatedly reports nothing new.
const INTERNAL_MAX: usize = 8;

impl DiagnosticsByPart {
    /// Records that a part of PID 1 failed and was skipped.
    pub(crate) fn internal(&mut self, text: String) {
        let known = self.internal.iter().any(|problem| problem.text == text);
        if !known && self.internal.len() < INTERNAL_MAX {
            self.internal.push(MachineDiagnostic {
                code: "internal-error".to_owned(),
                text,
                hint: "please report it with the log; the machine went on".to_owned(),
            });
        }
    }

    fn all(&self) -> Vec<MachineDiagnostic> {
        self.iter().cloned().collect()
    }

    /// The codes of all problems.
    pub(crate) fn codes(&self) -> impl Iterator<Item = &str> {
        self.iter().map(|problem| problem.code.as_str())
    }

    fn iter(&self) -> impl Iterator<Item = &MachineDiagnostic> {
        [
            &self.internal,
            &self.node,
            &self.reported,
            &self.config,
            &self.cloud,
            &self.vault,
            &self.data,
            &self.network,
            &self.update,
            &self.storage,
        ]
        .into_iter()
        .flatten()
    }
}

/// All facts, by part.
#[derive(Debug, Default)]
pub(crate) struct InitFacts {
    pub(crate) hostname: String,
    pub(crate) stages: Vec<BootStage>,
    pub(crate) data: DataState,
    pub(crate) vault: VaultFacts,
    pub(crate) links: Vec<LinkFacts>,
    pub(crate) dns: Vec<std::net::IpAddr>,
    pub(crate) clock: ClockState,
    pub(crate) config_source: String,
    pub(crate) problems: DiagnosticsByPart,
    pub(crate) node_restarts: u32,
    pub(crate) last_words: Option<String>,
    pub(crate) watchdog: Option<String>,
    pub(crate) fault_injection: bool,
    pub(crate) update: UpdateFacts,
    pub(crate) storage: StorageFacts,
}

/// Source of the time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum ClockState {
    Local(ClockSource),
    Sntp,
    #[default]
    Unset,
}

impl ClockState {
    const fn name(self) -> &'static str {
        match self {
            Self::Local(source) => source.name(),
            Self::Sntp => "sntp",
            Self::Unset => "unset",
        }
    }
}

impl InitFacts {
    /// The facts in the form for the node and the console.
    pub(crate) fn snapshot(&self) -> MachineFacts {
        MachineFacts {
            hostname: self.hostname.clone(),
            boot_stages: self.stages.clone(),
            data: self.data.clone(),
            vault: self.vault.clone(),
            links: self.links.clone(),
            dns: self.dns.clone(),
            clock: self.clock.name().to_owned(),
            config_source: self.config_source.clone(),
            problems: self.problems.all(),
            node_restarts: self.node_restarts,
            last_words: self.last_words.clone(),
            watchdog: self.watchdog.clone(),
            fault_injection: self.fault_injection,
            update: self.update.clone(),
            storage: self.storage.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_mistakes_come_first_and_do_not_pile_up() {
        let mut facts = InitFacts::default();
        facts.problems.data.push(MachineDiagnostic {
            code: "data-missing".to_owned(),
            ..MachineDiagnostic::default()
        });
        for number in 0..100 {
            facts.problems.internal(format!("failure {}", number % 20));
        }
        let told = facts.snapshot();
        assert_eq!(told.problems.len(), INTERNAL_MAX + 1);
        assert_eq!(told.problems[0].code, "internal-error");
        assert_eq!(told.problems[INTERNAL_MAX].code, "data-missing");
    }

    #[test]
    fn clocks_have_the_documented_names() {
        let names: Vec<_> = [
            ClockState::Unset,
            ClockState::Local(ClockSource::BuildTime),
            ClockState::Local(ClockSource::Stored),
            ClockState::Local(ClockSource::Rtc),
            ClockState::Sntp,
        ]
        .map(ClockState::name)
        .into();
        assert_eq!(names, ["unset", "build-time", "stored", "rtc", "sntp"]);
    }
}
