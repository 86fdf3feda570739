//! Which users beside this process's own user and root can write a file or folder.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

/// The user that can write every file in any case.
const ROOT: u32 = 0;
/// Write permission of the group, in a file's mode.
const GROUP_WRITES: u32 = 0o020;
/// Write permission of all users, in a file's mode.
const EVERYONE_WRITES: u32 = 0o002;

/// The users beside the process's own user and root who can write a file or folder. Where several can, it is the first
/// of these: the owner, every user, the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OtherWriter {
    /// The owner, a user with this id.
    Owner(u32),
    /// The members of its group, which has this id.
    Group(u32),
    /// Every user of this computer.
    Everyone,
}

/// Judges by owner and mode whether a user other than `us` and root can write the file or folder that `about` is of.
/// Root's own files pass, because root can write all files of `us` in any case.
///
/// - The sticky bit changes nothing. In a folder such as `/tmp` it keeps other users from replacing a file, and not
///   from adding links and files.
/// - The members of the group are not looked up: a list of users in the network may have more of them. Hence the
///   private group of one user is named as [`OtherWriter::Group`] as well, and the caller
///   decides about it. An entry of an access control list that lets another user write is part of the group's bits
///   (acl(5)).
/// - The folders above are not judged. A user who can write one of them can put another folder in this one's place,
///   and its owner is then that user, or the folder is one that only `us` and root write.
///
/// # Errors
/// Another user can write it.
pub(crate) fn check_writers(about: &Metadata, us: u32) -> Result<(), OtherWriter> {
    let (owner, mode) = (about.uid(), about.mode());
    if owner != us && owner != ROOT {
        Err(OtherWriter::Owner(owner))
    } else if mode & EVERYONE_WRITES != 0 {
        Err(OtherWriter::Everyone)
    } else if mode & GROUP_WRITES != 0 {
        Err(OtherWriter::Group(about.gid()))
    } else {
        Ok(())
    }
}

/// The user of this process.
pub(crate) fn own_user() -> u32 {
    nix::unistd::geteuid().as_raw()
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn owner_and_mode_say_which_other_users_can_write() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let judged = |mode: u32, us: u32| {
            fs::set_permissions(dir.path(), Permissions::from_mode(mode)).expect("ours");
            check_writers(&fs::metadata(dir.path()).expect("there"), us)
        };
        let us = own_user();
        for mode in [0o700, 0o755, 0o1755, 0o2755] {
            assert_eq!(judged(mode, us), Ok(()), "{mode:o}");
        }
        for mode in [0o770, 0o775, 0o2775] {
            let judged = judged(mode, us);
            assert!(
                matches!(judged, Err(OtherWriter::Group(_))),
                "{mode:o}: {judged:?}"
            );
        }
        // As `/tmp` is: the sticky bit lets every user add files.
        for mode in [0o702, 0o777, 0o1777] {
            assert_eq!(judged(mode, us), Err(OtherWriter::Everyone), "{mode:o}");
        }
        // For another user than the owner; a folder of root's passes for every user.
        let other = match us {
            ROOT => Ok(()),
            owner => Err(OtherWriter::Owner(owner)),
        };
        assert_eq!(judged(0o700, us + 1), other);
    }
}
