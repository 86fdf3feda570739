//! The times at which the boot reached its stages.

use crate::control::BootStage;

/// Names of the stages, in the order in which the boot reaches them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BootStageName {
    Init,
    Mounts,
    Data,
    Config,
    Network,
    NodeStart,
    Ready,
}

impl BootStageName {
    /// Every name, in the order of the boot.
    pub(crate) const NAMES: [&str; 7] = [
        Self::Init.name(),
        Self::Mounts.name(),
        Self::Data.name(),
        Self::Config.name(),
        Self::Network.name(),
        Self::NodeStart.name(),
        Self::Ready.name(),
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Init => "init",
            Self::Mounts => "mounts",
            Self::Data => "data",
            Self::Config => "config",
            Self::Network => "network",
            Self::NodeStart => "node-start",
            Self::Ready => "ready",
        }
    }
}

/// Records a stage the first time the boot reaches it.
pub(crate) fn record_stage(stages: &mut Vec<BootStage>, stage: BootStageName) {
    if stages.iter().all(|known| known.name != stage.name()) {
        stages.push(BootStage {
            name: stage.name().to_owned(),
            at_ms: boot_ms(),
        });
    }
}

/// Milliseconds since the kernel started, time asleep included.
pub(crate) fn boot_ms() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME)
        .unwrap_or_else(|_| nix::sys::time::TimeSpec::new(0, 0));
    let seconds = u64::try_from(now.tv_sec()).unwrap_or(0);
    let millis = u64::try_from(now.tv_nsec() / 1_000_000).unwrap_or(0);
    seconds * 1000 + millis
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_is_noted_once_and_in_order() {
        let mut stages = Vec::new();
        for stage in [
            BootStageName::Init,
            BootStageName::Mounts,
            BootStageName::Init,
            BootStageName::Ready,
        ] {
            record_stage(&mut stages, stage);
        }
        let names: Vec<_> = stages.iter().map(|stage| stage.name.as_str()).collect();
        assert_eq!(names, ["init", "mounts", "ready"]);
        assert!(stages[0].at_ms <= stages[2].at_ms);
    }
}
