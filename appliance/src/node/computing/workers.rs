//! The processes that scripts and shaders run in.

use std::io;
use std::path::Path;

use alknet_compute::Settings;
use alknet_core::config::SandboxLevel;
use alknet_init::control::WORKERS_CGROUP;
use alknet_worker::{
    Config, Delegated, Executable, Level, Make, Role, RoleConfig, WorkerError, Workers,
};

/// Starts nothing but what watches over them: the first session of a role starts the first worker.
pub(super) fn start(settings: &Settings, minimum: SandboxLevel) -> Result<Workers, WorkerError> {
    let program = Make::new(|| crate::gpu::program().map_err(io::Error::other));
    let mut config = Config::this_executable();
    config.roles = vec![RoleConfig::new(Role::Js), alknet_compute::role(settings)];
    config.programs = vec![(Role::Gpu, Executable::Made(program))];
    config.cgroup = delegated();
    config.minimum = level(minimum);
    Workers::start(config)
}

/// Where PID 1 lets this node make groups. On an ordinary host there is no such place, and workers have
/// the walls that an ordinary user can put up.
fn delegated() -> Option<Delegated> {
    let path = Path::new(WORKERS_CGROUP);
    let path = path.is_dir().then(|| path.to_owned())?;
    Some(Delegated { path })
}

/// What the configuration asks for, as workers have it.
const fn level(minimum: SandboxLevel) -> Level {
    match minimum {
        SandboxLevel::ProcessOnly => Level::ProcessOnly,
        SandboxLevel::Partial => Level::Partial,
        SandboxLevel::Full => Level::Full,
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
