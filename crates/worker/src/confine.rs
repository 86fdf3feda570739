//! The walls that a worker puts up around itself, before it reads anything foreign.
//!
//! Namespaces, user, resource limits and cgroup are there already: the host gave them at the start.
//! A wall that the kernel does not allow is a [`Gap`] in the report, never a reason to stop: whether
//! the rest is enough is the host's to decide.

mod filter;
mod privileges;
mod root;

use crate::setup::Setup;
use crate::{Gap, Rights, Wall};

/// Before the warm-up: mounts, user, privileges.
pub(crate) fn wall_in(setup: &Setup) -> Vec<Gap> {
    let mut gaps = Vec::new();
    if setup.namespaces.mount {
        if let Err(failed) = root::empty(&setup.binds) {
            gaps.push(Gap::new(Wall::EmptyRoot, failed));
        }
    } else {
        gaps.push(Gap::new(Wall::EmptyRoot, "there is no mount namespace"));
    }
    privileges::drop_all(setup.become_user, &mut gaps);
    gaps
}

/// After the warm-up, for every thread: no system call but those on the list.
pub(crate) fn close_system_calls(rights: Rights) -> Result<(), Gap> {
    filter::install(rights).map_err(|why| Gap::new(Wall::Seccomp, why))
}
