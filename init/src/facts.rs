//! What PID 1 knows about the machine, kept by part and told as one.

use crate::{
    clock::ClockSource,
    control::{BootStage, DataState, LinkFacts, MachineFacts, Problem, VaultFacts},
};

/// Problems of one part each, so that a part replaces its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Problems {
    /// A part of PID 1 failed; first, since it is our mistake.
    pub(crate) internal: Vec<Problem>,
    pub(crate) node: Vec<Problem>,
    /// What the running node says is wrong.
    pub(crate) reported: Vec<Problem>,
    pub(crate) config: Vec<Problem>,
    pub(crate) data: Vec<Problem>,
    pub(crate) vault: Vec<Problem>,
    pub(crate) network: Vec<Problem>,
}

/// Most internal problems kept: a part that fails again and again says nothing new.
const INTERNAL_MAX: usize = 8;

impl Problems {
    /// Notes that a part of PID 1 failed and was passed over.
    pub(crate) fn internal(&mut self, text: String) {
        let known = self.internal.iter().any(|problem| problem.text == text);
        if !known && self.internal.len() < INTERNAL_MAX {
            self.internal.push(Problem {
                code: "internal-error".to_owned(),
                text,
                hint: "please report it with the log; the machine went on".to_owned(),
            });
        }
    }

    fn all(&self) -> Vec<Problem> {
        [
            &self.internal,
            &self.node,
            &self.reported,
            &self.config,
            &self.vault,
            &self.data,
            &self.network,
        ]
        .into_iter()
        .flatten()
        .cloned()
        .collect()
    }
}

/// Everything, by part.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    pub(crate) hostname: String,
    pub(crate) stages: Vec<BootStage>,
    pub(crate) data: DataState,
    pub(crate) vault: VaultFacts,
    pub(crate) links: Vec<LinkFacts>,
    pub(crate) dns: Vec<std::net::IpAddr>,
    pub(crate) clock: Clock,
    pub(crate) config_source: String,
    pub(crate) problems: Problems,
    pub(crate) node_restarts: u32,
    pub(crate) last_words: Option<String>,
    pub(crate) watchdog: Option<String>,
    pub(crate) fault_injection: bool,
}

/// Where the time is from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Clock {
    Local(ClockSource),
    Sntp,
    #[default]
    Unset,
}

impl Clock {
    const fn name(self) -> &'static str {
        match self {
            Self::Local(source) => source.name(),
            Self::Sntp => "sntp",
            Self::Unset => "unset",
        }
    }
}

impl Facts {
    /// As the node and the console get it.
    pub(crate) fn told(&self) -> MachineFacts {
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
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_mistakes_come_first_and_do_not_pile_up() {
        let mut facts = Facts::default();
        facts.problems.data.push(Problem {
            code: "data-missing".to_owned(),
            ..Problem::default()
        });
        for number in 0..100 {
            facts.problems.internal(format!("failure {}", number % 20));
        }
        let told = facts.told();
        assert_eq!(told.problems.len(), INTERNAL_MAX + 1);
        assert_eq!(told.problems[0].code, "internal-error");
        assert_eq!(told.problems[INTERNAL_MAX].code, "data-missing");
    }

    #[test]
    fn clocks_have_the_documented_names() {
        let names: Vec<_> = [
            Clock::Unset,
            Clock::Local(ClockSource::BuildTime),
            Clock::Local(ClockSource::Stored),
            Clock::Local(ClockSource::Rtc),
            Clock::Sntp,
        ]
        .map(Clock::name)
        .into();
        assert_eq!(names, ["unset", "build-time", "stored", "rtc", "sntp"]);
    }
}
