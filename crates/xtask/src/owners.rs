//! Which users can change a folder: only this user and root, or others as well.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Root's user ID. Root can change every folder.
const ROOT: u32 = 0;

/// Write permission for all users, and for the group, in a file's mode.
const ALL_WRITE: u32 = 0o002;
const GROUP_WRITES: u32 = 0o020;

/// What cargo and rustup read in their working folder and every folder above it, regardless of its
/// owner. Cargo's settings name programs that it starts instead of the compiler, and rustup's name
/// a toolchain's folder.
const SETTINGS: [&str; 5] = [
    ".cargo",
    ".cargo/config",
    ".cargo/config.toml",
    "rust-toolchain",
    "rust-toolchain.toml",
];

/// This process's user, and the system's lists of users and groups.
#[derive(Clone, Debug)]
pub(crate) struct Users {
    pub(crate) own: u32,
    /// passwd(5).
    pub(crate) users: String,
    /// group(5).
    pub(crate) groups: String,
}

impl Users {
    pub(crate) fn of_system() -> io::Result<Self> {
        // If a list is missing, no group counts as private.
        let list = |path: &str| fs::read_to_string(path).unwrap_or_default();
        Ok(Self {
            // This file belongs to the process's user.
            own: fs::metadata("/proc/self")?.uid(),
            users: list("/etc/passwd"),
            groups: list("/etc/group"),
        })
    }

    /// Why a user other than this one and root can have changed a file or folder. `None` if none
    /// can.
    pub(crate) fn others_change(&self, about: &Metadata) -> Option<&'static str> {
        let (mode, owner) = (about.mode(), about.uid());
        if owner != self.own && owner != ROOT {
            Some("belongs to another user")
        } else if mode & ALL_WRITE != 0 {
            // The sticky bit prevents others from replacing files, but not from adding some.
            Some("can be written by all users")
        } else if mode & GROUP_WRITES != 0 && !self.is_private(about.gid()) {
            Some("can be written by its group")
        } else {
            None
        }
    }

    /// Whether this user alone is in the group. Debian makes a group with each user's name.
    fn is_private(&self, group: u32) -> bool {
        let users = self.users.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let (name, _) = (fields.next()?, fields.next()?);
            let numbers: (u32, u32) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
            Some((name, numbers))
        });
        let users: Vec<_> = users.collect();
        let own = users.iter().find(|(_, (user, _))| *user == self.own);
        let Some((own, _)) = own else {
            return false;
        };
        let mut others = users.iter().filter(|(_, (user, _))| *user != self.own);
        let mut groups = self.groups.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let (name, _) = (fields.next()?, fields.next()?);
            let number: u32 = fields.next()?.parse().ok()?;
            Some((name, number, fields.next()?))
        });
        let named = groups.find(|(_, number, _)| *number == group);
        !others.any(|(_, (_, first))| *first == group)
            && named.is_some_and(|(name, _, members)| {
                let mut members = members.split(',').filter(|member| !member.is_empty());
                name == *own && members.all(|member| member == *own)
            })
    }

    /// Refuses `folder`, a path without links, if another user can put or has put cargo settings
    /// into a folder above it. Folders that contain `clone` too are skipped: cargo has read their
    /// settings when it started this program in the clone, and does so at each command.
    pub(crate) fn keep_above(&self, folder: &Path, clone: &Path) -> io::Result<Result<(), String>> {
        let above = folder.ancestors().skip(1);
        // What is above the clone as well affects cargo in the clone in any case.
        for above in above.filter(|above| !clone.starts_with(above)) {
            // A link is not followed, because the path had none a moment ago.
            let about = fs::symlink_metadata(above)?;
            let why = match about.is_dir() {
                true => self.others_change(&about),
                false => Some("is no folder"),
            };
            if let Some(why) = why {
                return Ok(Err(format!("{} {why}", above.display())));
            }
            for name in SETTINGS {
                let file = above.join(name);
                let about = match fs::metadata(&file) {
                    Ok(about) => about,
                    Err(error) if is_absent(&error) => continue,
                    Err(error) => return Err(error),
                };
                if let Some(why) = self.others_change(&about) {
                    return Ok(Err(format!("{} {why}", file.display())));
                }
            }
        }
        Ok(Ok(()))
    }
}

/// Whether the file does not exist, or its folder is a file.
fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt, chown};

    use super::*;

    /// "nobody" on every Debian.
    const NOBODY: u32 = 65_534;

    fn users(own: u32, groups: &str) -> Users {
        Users {
            own,
            users: "root:x:0:0::/root:/bin/sh\nme:x:1000:1000::/home/me:/bin/sh\n\
                    you:x:1001:50::/home/you:/bin/sh\n"
                .to_owned(),
            groups: groups.to_owned(),
        }
    }

    #[test]
    fn a_group_of_the_users_own_has_no_other_member() {
        assert!(users(1000, "me:x:1000:\n").is_private(1000));
        assert!(users(1000, "me:x:1000:me\n").is_private(1000));
        assert!(users(0, "root:x:0:\n").is_private(0));
        for groups in [
            "me:x:1000:you\n",
            "me:x:1000:me,you\n",
            "staff:x:1000:\n",
            "",
        ] {
            assert!(!users(1000, groups).is_private(1000), "{groups}");
        }
        // It is another user's first group.
        assert!(!users(1000, "me:x:50:\n").is_private(50));
        assert!(
            !users(1002, "me:x:1000:\n").is_private(1000),
            "no such user"
        );
    }

    #[test]
    fn a_folder_above_that_others_can_write_is_refused_and_one_above_the_clone_is_not() {
        let base = tempfile::tempdir().expect("a folder of this test's own");
        let base = fs::canonicalize(base.path()).expect("it is there");
        let cache = base.join("open/cache");
        fs::create_dir_all(&cache).expect("ours");
        let users = Users::of_system().expect("Linux says whose process this is");
        // `elsewhere` is beside the open folder, `beside` in it.
        let [elsewhere, beside] = ["clone", "open/clone"].map(|name| base.join(name));
        let judged = |clone: &Path| users.keep_above(&cache, clone).expect("readable");
        let permissions = Permissions::from_mode(0o755);
        fs::set_permissions(base.join("open"), permissions).expect("ours");
        assert_eq!(judged(&elsewhere), Ok(()));
        for mode in [0o777, 0o1777] {
            let permissions = Permissions::from_mode(mode);
            fs::set_permissions(base.join("open"), permissions).expect("ours");
            let refused = judged(&elsewhere).expect_err("settings may be put there at any time");
            assert!(refused.contains("can be written by all users"), "{refused}");
            assert_eq!(judged(&beside), Ok(()));
        }
    }

    #[test]
    fn settings_above_that_another_user_owns_are_refused() {
        let base = tempfile::tempdir().expect("a folder of this test's own");
        let base = fs::canonicalize(base.path()).expect("it is there");
        let cache = base.join("above/cache");
        fs::create_dir_all(&cache).expect("ours");
        fs::create_dir(base.join("above/.cargo")).expect("ours");
        let set = |path: &Path, mode| {
            fs::set_permissions(path, Permissions::from_mode(mode)).expect("ours");
        };
        set(&base.join("above"), 0o755);
        set(&base.join("above/.cargo"), 0o755);
        let users = Users::of_system().expect("Linux says whose process this is");
        let judged = || {
            users
                .keep_above(&cache, &base.join("clone"))
                .expect("readable")
        };
        for name in ["above/.cargo/config.toml", "above/rust-toolchain.toml"] {
            let file = base.join(name);
            fs::write(&file, "").expect("ours");
            set(&file, 0o644);
            assert_eq!(judged(), Ok(()), "this user's own");
            set(&file, 0o666);
            let refused = judged().expect_err("others can write it");
            assert!(
                refused.contains(name) && refused.contains("by all users"),
                "{refused}"
            );
            set(&file, 0o644);
            if chown(&file, Some(NOBODY), None).is_err() {
                alknet_test_support::skipped("root", "a file is given to another user");
            } else {
                let refused = judged().expect_err("another user wrote it");
                assert!(refused.contains("belongs to another user"), "{refused}");
            }
            fs::remove_file(&file).expect("it lies in a folder of ours");
        }
    }
}
