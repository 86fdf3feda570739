//! The rights that a worker gives up for good.

use rustix::fs::{Gid, Uid};
use rustix::io::Errno;
use rustix::process::{
    DumpableBehavior, Signal, getuid, set_dumpable_behavior, set_parent_process_death_signal,
};
use rustix::thread::{
    CapabilitiesSecureBits, CapabilitySet, CapabilitySets, capabilities,
    clear_ambient_capability_set, no_new_privs, remove_capability_from_bounding_set,
    set_capabilities, set_capabilities_secure_bits, set_no_new_privs, set_thread_groups,
    set_thread_res_gid, set_thread_res_uid,
};

use crate::{ConfinementGap, SandboxLayer};

/// Number of bits in a set of capabilities.
const CAPABILITY_BITS: u32 = u64::BITS;
const NONE: CapabilitySets = CapabilitySets {
    effective: CapabilitySet::empty(),
    permitted: CapabilitySet::empty(),
    inheritable: CapabilitySet::empty(),
};

/// Drops all rights. The report follows from what is left and not from the success of each step: an ordinary user may
/// not drop what it does not have.
pub(crate) fn drop_all(become_user: Option<u32>, gaps: &mut Vec<ConfinementGap>) {
    // This comes first: after the change of users the process has no right to it any more.
    drop_bounding_set();
    if let Some(id) = become_user
        && let Err(errno) = become_other(id)
    {
        gaps.push(ConfinementGap::new(SandboxLayer::UnprivilegedUser, errno));
    }
    drop_capabilities();
    match capabilities(None) {
        Ok(NONE) => {}
        Ok(left) => gaps.push(ConfinementGap::new(
            SandboxLayer::Capabilities,
            format!("{left:?} are left"),
        )),
        Err(errno) => gaps.push(ConfinementGap::new(SandboxLayer::Capabilities, errno)),
    }
    if let Err(errno) = set_no_new_privs(true).and_then(|()| match no_new_privs() {
        Ok(true) => Ok(()),
        Ok(false) => Err(Errno::NOTSUP),
        Err(errno) => Err(errno),
    }) {
        gaps.push(ConfinementGap::new(SandboxLayer::NoNewPrivileges, errno));
    }
    // The kernel refuses neither of these: it knows both values, and they need no right. Neither other workers of the
    // same user nor a core file may expose the memory (prctl(2), PR_SET_DUMPABLE).
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    // The change of users has cleared this signal (prctl(2), PR_SET_PDEATHSIG).
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
}

/// Changes the user where there is no user namespace. Only a process that is root itself has to do this.
fn become_other(id: u32) -> Result<(), Errno> {
    if !getuid().is_root() {
        return Err(Errno::PERM);
    }
    let (user, group) = (Uid::from_raw(id), Gid::from_raw(id));
    // The groups go first, while the process has the right to change them.
    set_thread_groups(&[])?;
    set_thread_res_gid(group, group, group)?;
    set_thread_res_uid(user, user, user)
}

/// Drops the bits up to the first one that the kernel does not know, or none if the process lacks the right.
fn drop_bounding_set() {
    for bit in 0..CAPABILITY_BITS {
        let one = CapabilitySet::from_bits_retain(1 << bit);
        if remove_capability_from_bounding_set(one).is_err() {
            break;
        }
    }
}

fn drop_capabilities() {
    // Each call may fail where there is nothing to drop. The caller reads what is left.
    let _ = clear_ambient_capability_set();
    // With these bits root inside a user namespace regains no capability (capabilities(7)).
    let locked = CapabilitiesSecureBits::NO_ROOT
        | CapabilitiesSecureBits::NO_ROOT_LOCKED
        | CapabilitiesSecureBits::NO_SETUID_FIXUP
        | CapabilitiesSecureBits::NO_SETUID_FIXUP_LOCKED
        | CapabilitiesSecureBits::KEEP_CAPS_LOCKED
        | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE
        | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE_LOCKED;
    let _ = set_capabilities_secure_bits(locked);
    let _ = set_capabilities(None, NONE);
}
