//! The worker processes that run scripts and shaders.

use std::io;
use std::path::Path;

use alknet_compute::ComputeSettings;
use alknet_core::config::SandboxLevel;
use alknet_init::control::WORKERS_CGROUP;
use alknet_worker::{
    ConfinementLevel, DelegatedCgroup, Executable, ProgramMaker, RoleConfig, WorkerError,
    WorkerRole, Workers, WorkersConfig,
};

/// Starts the supervision of workers. The first session of a role starts the first worker.
pub(super) fn start(
    settings: &ComputeSettings,
    minimum: SandboxLevel,
) -> Result<Workers, WorkerError> {
    let program = ProgramMaker::new(|| crate::gpu::program().map_err(io::Error::other));
    let mut config = WorkersConfig::this_executable();
    config.roles = vec![
        RoleConfig::new(WorkerRole::Js),
        alknet_compute::role(settings),
    ];
    config.programs = vec![(WorkerRole::Gpu, Executable::Made(program))];
    config.cgroup = delegated();
    config.minimum = level(minimum);
    Workers::start(config)
}

/// The cgroup in which PID 1 lets this node make groups. An ordinary host has none, and its workers
/// have the confinement that an ordinary user can set up.
fn delegated() -> Option<DelegatedCgroup> {
    let path = Path::new(WORKERS_CGROUP);
    let path = path.is_dir().then(|| path.to_owned())?;
    Some(DelegatedCgroup { path })
}

/// The configured minimum, as the worker crate's type.
pub(super) const fn level(minimum: SandboxLevel) -> ConfinementLevel {
    match minimum {
        SandboxLevel::ProcessOnly => ConfinementLevel::ProcessOnly,
        SandboxLevel::Partial => ConfinementLevel::Partial,
        SandboxLevel::Full => ConfinementLevel::Full,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_have_one_name() {
        for minimum in SandboxLevel::ALL {
            assert_eq!(level(minimum).name(), minimum.name());
        }
    }
}
