//! The confinement that a worker puts around itself before it reads any foreign input.
//!
//! The host has set namespaces, user, resource limits and cgroup at the start. A layer of the sandbox that the kernel
//! does not allow is a [`ConfinementGap`] in the report, and does not stop the worker: the host decides whether the other
//! layers are enough.

mod filter;
mod privileges;
mod root;

use crate::setup::Setup;
use crate::{ConfinementGap, Rights, SandboxLayer};

/// The layers before the warm-up: mounts, user, privileges.
pub(crate) fn enter(setup: &Setup) -> Vec<ConfinementGap> {
    let mut gaps = Vec::new();
    if setup.namespaces.mount {
        if let Err(failed) = root::empty(&setup.binds) {
            gaps.push(ConfinementGap::new(SandboxLayer::EmptyRoot, failed));
        }
    } else {
        gaps.push(ConfinementGap::new(
            SandboxLayer::EmptyRoot,
            "there is no mount namespace",
        ));
    }
    // The mounts come first: they need capabilities that this drops.
    privileges::drop_all(setup.become_user, &mut gaps);
    gaps
}

/// The layer after the warm-up, for every thread: no system call but those on the list.
pub(crate) fn close_system_calls(rights: Rights) -> Result<(), ConfinementGap> {
    filter::install(rights).map_err(|why| ConfinementGap::new(SandboxLayer::Seccomp, why))
}
