//! Where heavy outputs are: outside every clone, shared by all clones, and safe to delete except
//! for the machine of `up`.

use std::env;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::owners::Users;

/// Folder in the cache with the content of the clone that builds: the [mirror](crate::mirror).
pub const MIRROR: &str = "workspace";

/// Cargo's target folder in the cache.
pub const TARGET: &str = "target";

/// Lock file of the build, in the cache's root because `cargo clean` deletes the target folder.
pub const BUILD_LOCK: &str = "build-lock";

/// File whose time is the newest that a source or an artefact of the build can have.
pub const BUILD_STAMP: &str = "build-stamp";

/// Lock file that every command holds while it runs. Pruning takes it exclusively.
pub const RUNNING_COMMANDS: &str = "running-commands";

/// Marks a cache folder. Its first line is from the Cache Directory Tagging Specification, so that
/// backup programs skip the folder.
const TAG: &str = "CACHEDIR.TAG";

/// How the tag begins. Cargo and others write tags too, so the second line says that this tag is
/// this project's.
const TAG_HEAD: &str = "Signature: 8a477f597d28d172789f06886806bc55\n# alknet: cargo xtask";

const TAG_TAIL: &str = " keeps its outputs here, and deletes them from here.\n";

/// Entries of a cache that the front has never opened: a part of an old cache, one of the test
/// machines, or one that the user prepared.
const OURS: [&str; 23] = [
    "bin",
    "binary",
    "fuzz",
    "gpu",
    "image",
    "kernel",
    "kvm",
    "logs",
    "lost+found",
    "machines",
    "peer",
    "qemu",
    "size",
    "soak",
    "sources",
    "times",
    "tools",
    "up",
    "vulkan",
    BUILD_LOCK,
    BUILD_STAMP,
    RUNNING_COMMANDS,
    TARGET,
];

/// The cache folder: `$ALKNET_CACHE`, else `$XDG_CACHE_HOME/alknet`, else `~/.cache/alknet`.
///
/// Returns an error text with the variables' names if none of them is set, or if the path is
/// relative.
pub fn folder() -> Result<PathBuf, String> {
    folder_from(|name| env::var_os(name).map(PathBuf::from))
}

fn folder_from(variable: impl Fn(&str) -> Option<PathBuf>) -> Result<PathBuf, String> {
    // An empty variable counts as not set.
    let set = |name: &str| variable(name).filter(|value| !value.as_os_str().is_empty());
    let folder = set("ALKNET_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|base| base.join("alknet")))
        .or_else(|| set("HOME").map(|home| home.join(".cache/alknet")))
        .ok_or_else(|| {
            "no place for heavy outputs: set HOME, XDG_CACHE_HOME or ALKNET_CACHE".to_owned()
        })?;
    // Each command runs in another folder, so a relative path would name another cache each time.
    if folder.is_relative() {
        return Err(format!(
            "the cache folder \"{}\" is relative: set ALKNET_CACHE to an absolute path",
            folder.display()
        ));
    }
    Ok(folder)
}

/// Whether the cache has a kernel and a Vulkan driver, of this tree or another.
#[must_use]
pub fn has_kernel_and_driver(cache: &Path) -> bool {
    // Each is in its own folder, which is moved there when it is finished.
    let any = |parent: &str, is_wanted: fn(&Path) -> bool| {
        let folders = fs::read_dir(cache.join(parent)).into_iter().flatten();
        folders.flatten().any(|folder| is_wanted(&folder.path()))
    };
    let is_driver = |folder: &Path| {
        let mut files = fs::read_dir(folder).into_iter().flatten().flatten();
        files.any(|file| file.path().extension().is_some_and(|end| end == "a"))
    };
    any("kernel", |folder| folder.join("bzImage").exists()) && any("vulkan", is_driver)
}

/// Whether [`open`] made or adopted `cache`. Only then may a command delete files in it.
#[must_use]
pub fn is_marked(cache: &Path) -> bool {
    let tag = cache.join(TAG);
    // A link may lead to another cache's tag, and the specification requires a regular file.
    let is_file = fs::symlink_metadata(&tag).is_ok_and(|data| data.is_file());
    is_file && fs::read(tag).is_ok_and(|text| text.starts_with(TAG_HEAD.as_bytes()))
}

/// `cache` with its symbolic links resolved. The part that does not exist yet stays as it is.
/// Commands use this path for everything they do with the cache.
pub fn resolve(cache: &Path) -> Result<PathBuf, String> {
    let mut missing = Vec::new();
    let mut there = cache;
    loop {
        let error = match fs::canonicalize(there) {
            Ok(real) => {
                return Ok(missing
                    .iter()
                    .rev()
                    .fold(real, |path, name| path.join(name)));
            }
            Err(error) => error,
        };
        let above = there.file_name().zip(there.parent());
        // Another error, such as an unreadable folder, says nothing about the folders above.
        let Some((name, above)) = above.filter(|_| error.kind() == io::ErrorKind::NotFound) else {
            return Err(io_error(cache, &error));
        };
        missing.push(name);
        there = above;
    }
}

fn io_error(cache: &Path, error: &io::Error) -> String {
    format!(
        "cannot use the cache {}: {error}; make it writable or set ALKNET_CACHE",
        cache.display()
    )
}

/// Makes and marks the cache, or refuses it. It is refused if the commands would overwrite or
/// delete files in it that they did not make, or start programs that other users may have put in it
/// or above it. `clone` is the clone that builds. Returns the cache's path as [`resolve`] does,
/// which is the path that was checked.
pub fn open(clone: &Path, cache: &Path) -> Result<PathBuf, String> {
    let users = Users::of_system().map_err(|error| io_error(cache, &error))?;
    open_for(&users, clone, cache)
}

fn open_for(users: &Users, clone: &Path, named: &Path) -> Result<PathBuf, String> {
    let io_error = |error: io::Error| io_error(named, &error);
    // Another user who can open a lock file could hold the lock for ever.
    let made = fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(named);
    made.map_err(io_error)?;
    let cache = fs::canonicalize(named).map_err(io_error)?;
    let clone = fs::canonicalize(clone).map_err(io_error)?;
    // Commands start programs from the cache.
    owned(&cache, users).map_err(io_error)??;
    keep_apart(&clone, &cache).map_err(io_error)??;
    let marked = is_marked(&cache);
    if !marked && let Some(found) = foreign(&cache).map_err(io_error)? {
        return Err(format!(
            "{} is not empty and was not made by alknet: move it away or set ALKNET_CACHE to another \
             folder",
            found.display()
        ));
    }
    let above = users.keep_above(&cache, &clone).map_err(io_error)?;
    above.map_err(|why| {
        format!(
            "the cache {} lies below a folder where another user can have put settings of cargo, which name programs \
             that it starts: {why}. Set ALKNET_CACHE to a folder below those that only you can write",
            cache.display()
        )
    })?;
    narrow(&cache).map_err(io_error)?;
    if !marked {
        fs::write(cache.join(TAG), format!("{TAG_HEAD}{TAG_TAIL}")).map_err(io_error)?;
    }
    Ok(cache)
}

/// Refuses a folder of another user, even of root, and one in which another user may have put
/// something.
fn owned(cache: &Path, users: &Users) -> io::Result<Result<(), String>> {
    let about = fs::symlink_metadata(cache)?;
    let foreign = (about.uid() != users.own).then_some("belongs to another user");
    let Some(why) = foreign.or_else(|| users.others_change(&about)) else {
        return Ok(Ok(()));
    };
    Ok(Err(format!(
        "the cache {} {why}, and commands start programs that lie there: set ALKNET_CACHE to a folder that only you \
         can write",
        cache.display()
    )))
}

/// Keeps other users out of a cache that was made before its mode was set. Its group keeps its read
/// access.
fn narrow(cache: &Path) -> io::Result<()> {
    let mode = fs::metadata(cache)?.mode();
    if mode & 0o027 == 0 {
        return Ok(());
    }
    fs::set_permissions(cache, fs::Permissions::from_mode(mode & 0o750))
}

/// Refuses a cache whose mirror is the clone, contains it, or is inside it. Neither path has links.
/// A cache in its own folder in the clone is accepted, because it is not copied.
fn keep_apart(clone: &Path, cache: &Path) -> io::Result<Result<(), String>> {
    let mirror = cache.join(MIRROR);
    let is_link = fs::symlink_metadata(&mirror).is_ok_and(|data| data.is_symlink());
    if is_link {
        return Ok(Err(format!(
            "{} is a symbolic link, and what it leads to would be overwritten: remove the link or set \
             ALKNET_CACHE to another folder",
            mirror.display()
        )));
    }
    // The mirror gets the clone's files only: everything else in it is removed.
    let overwritten = clone.starts_with(&mirror);
    let within =
        mirror.starts_with(clone) && (cache == clone || cache.starts_with(clone.join(".git")));
    if overwritten || within {
        return Ok(Err(format!(
            "the commands build in {}, which overlaps with the clone {}: set ALKNET_CACHE to another folder",
            mirror.display(),
            clone.display()
        )));
    }
    Ok(Ok(()))
}

/// What an unmarked folder contains that no command of this project put there.
fn foreign(cache: &Path) -> io::Result<Option<PathBuf>> {
    if used_by_commands(cache) {
        return Ok(None);
    }
    for entry in fs::read_dir(cache)? {
        let entry = entry?;
        let path = entry.path();
        let name = entry.file_name();
        let ours = if name == MIRROR {
            entry.file_type()?.is_dir() && fs::read_dir(&path)?.next().is_none()
        } else if name == TAG {
            // Another command is writing the tag at this moment.
            entry.metadata()?.len() == 0 || is_marked(cache)
        } else {
            OURS.iter().any(|known| name == *known)
        };
        if !ours {
            let found = if name == MIRROR {
                path
            } else {
                cache.to_owned()
            };
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// Whether there is a target folder that only this project's commands write to. Then the cache is
/// older than the tag, or lost it. A lock file proves nothing, because a command may have made it
/// in any folder.
fn used_by_commands(cache: &Path) -> bool {
    let lock = cache.join("target/alknet-lock");
    fs::symlink_metadata(lock).is_ok_and(|data| data.is_file())
        || cache.join("target/alknet-used").is_dir()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(pairs: &[(&str, &str)]) -> Result<PathBuf, String> {
        folder_from(|name| {
            pairs
                .iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| PathBuf::from(value))
        })
    }

    #[test]
    fn a_cache_that_others_can_write_is_refused_and_one_that_they_can_read_is_closed() {
        let base = tempfile::tempdir().expect("a folder of this test's own");
        let (clone, cache) = (base.path().join("clone"), base.path().join("cache"));
        fs::create_dir(&clone).expect("ours");
        let mode = |mode| {
            let permissions = fs::Permissions::from_mode(mode);
            fs::set_permissions(&cache, permissions).expect("ours");
        };
        open(&clone, &cache).expect("a new folder");
        mode(0o777);
        let error = open(&clone, &cache).expect_err("another user may have put programs there");
        assert!(error.contains("can be written by all users"), "{error}");
        // The user's own group, without other members, and a group with another member.
        let about = fs::metadata(&cache).expect("ours");
        let (user, group) = (about.uid(), about.gid());
        let users = |members: &str| Users {
            own: user,
            users: format!("me:x:{user}:{group}::/:/bin/sh\n"),
            groups: format!("me:x:{group}:{members}\n"),
        };
        mode(0o775);
        let error = open_for(&users("you"), &clone, &cache).expect_err("you can write there");
        assert!(error.contains("can be written by its group"), "{error}");
        open_for(&users(""), &clone, &cache).expect("it is ours");
        let seen = fs::metadata(&cache).expect("ours").mode() & 0o777;
        assert_eq!(seen, 0o750, "no other user can hold a lock in it");
        let other = Users {
            own: user + 1,
            ..users("")
        };
        let error = owned(&cache, &other).expect("it is there");
        assert!(
            error
                .expect_err("whose it is")
                .contains("belongs to another user")
        );
    }

    #[test]
    fn a_cache_is_known_by_the_path_without_links() {
        let folder = CacheTestFolder::new();
        fs::create_dir(folder.0.join("real")).expect("ours");
        std::os::unix::fs::symlink("real", folder.0.join("link")).expect("ours");
        let [named, real] = ["link/a/cache", "real/a/cache"].map(|path| folder.0.join(path));
        assert_eq!(resolve(&named), Ok(real.clone()), "before it is there");
        assert_eq!(open(&folder.0.join("clone"), &named), Ok(real.clone()));
        assert_eq!(resolve(&named), Ok(real));
        assert!(resolve(&folder.0.join("none/../cache")).is_err());
    }

    #[test]
    fn the_most_particular_variable_wins() {
        let all = [
            ("ALKNET_CACHE", "/a"),
            ("XDG_CACHE_HOME", "/x"),
            ("HOME", "/h"),
        ];
        assert_eq!(with(&all), Ok(PathBuf::from("/a")));
        assert_eq!(with(&all[1..]), Ok(PathBuf::from("/x/alknet")));
        assert_eq!(with(&all[2..]), Ok(PathBuf::from("/h/.cache/alknet")));
    }

    /// A folder for one test, with a clone and an empty cache.
    struct CacheTestFolder(PathBuf);

    impl CacheTestFolder {
        fn new() -> Self {
            let base = tempfile::tempdir()
                .expect("a folder of this test's own")
                .keep();
            fs::create_dir_all(base.join("clone/.git")).expect("ours");
            let base = fs::canonicalize(base).expect("it is there");
            fs::write(base.join("clone/.git/x"), "history").expect("ours");
            Self(base)
        }

        fn write(&self, file: &str) {
            let path = self.0.join(file);
            fs::create_dir_all(path.parent().expect("it lies in a folder")).expect("ours");
            fs::write(path, "years of work").expect("ours");
        }

        fn open(&self, cache: &str) -> Result<(), String> {
            open(&self.0.join("clone"), &self.0.join(cache)).map(drop)
        }
    }

    impl Drop for CacheTestFolder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_relative_cache_is_refused() {
        let text = with(&[("ALKNET_CACHE", "cache")]).expect_err("each command would have another");
        assert!(text.contains("relative"), "{text}");
    }

    #[test]
    fn a_new_cache_is_marked_and_opened_again() {
        let folder = CacheTestFolder::new();
        assert!(!is_marked(&folder.0.join("cache")));
        for _ in 0..2 {
            assert_eq!(folder.open("cache"), Ok(()));
            assert!(is_marked(&folder.0.join("cache")));
        }
        // A marked cache may contain anything, and the mirror is full after the first command.
        folder.write("cache/workspace/Cargo.toml");
        assert_eq!(folder.open("cache"), Ok(()));
        // Cargo writes this tag into its target folder.
        fs::create_dir(folder.0.join("target")).expect("ours");
        let others = "Signature: 8a477f597d28d172789f06886806bc55\n# created by cargo.\n";
        fs::write(folder.0.join("target").join(TAG), others).expect("ours");
        assert!(!is_marked(&folder.0.join("target")) && folder.open("target").is_err());
    }

    #[test]
    fn a_folder_with_files_of_others_is_refused_and_left_alone() {
        for file in ["workspace/thesis.txt", "letters/thesis.txt"] {
            let folder = CacheTestFolder::new();
            let file = format!("home/{file}");
            folder.write(&file);
            let text = folder.open("home").expect_err("these files are not ours");
            assert!(text.contains("was not made by alknet"), "{text}");
            assert!(folder.0.join(file).exists() && !folder.0.join("home").join(TAG).exists());
        }
    }

    /// A lock file that a command or another user left there does not make the folder a cache.
    #[test]
    fn a_lock_file_does_not_make_a_cache_of_a_home() {
        for lock in [RUNNING_COMMANDS, BUILD_LOCK] {
            let folder = CacheTestFolder::new();
            folder.write("home/workspace/thesis.txt");
            folder.write(&format!("home/{lock}"));
            let text = folder.open("home").expect_err("these files are not ours");
            assert!(text.contains("was not made by alknet"), "{text}");
        }
    }

    #[test]
    fn other_users_cannot_enter_a_new_cache() {
        let folder = CacheTestFolder::new();
        assert_eq!(folder.open("new/cache"), Ok(()));
        let mode = fs::metadata(folder.0.join("new/cache")).expect("it is there");
        assert_eq!(mode.permissions().mode() & 0o777, 0o700);
        // A mode that the user has set stays.
        fs::create_dir(folder.0.join("set")).expect("ours");
        fs::set_permissions(folder.0.join("set"), fs::Permissions::from_mode(0o750)).expect("ours");
        assert_eq!(folder.open("set"), Ok(()));
        let mode = fs::metadata(folder.0.join("set")).expect("it is there");
        assert_eq!(mode.permissions().mode() & 0o777, 0o750);
    }

    #[test]
    fn a_cache_that_overlaps_with_the_clone_is_refused() {
        let folder = CacheTestFolder::new();
        fs::create_dir_all(folder.0.join("build/workspace/.git")).expect("ours");
        folder.write("build/workspace/.git/x");
        folder.write("build/target/alknet-lock");
        let clone = folder.0.join("build/workspace");
        let text = open(&clone, &folder.0.join("build")).expect_err("the mirror is the clone");
        assert!(text.contains("overlaps"), "{text}");
        let below = clone.join("inner");
        fs::create_dir(&below).expect("ours");
        assert!(open(&below, &folder.0.join("build")).is_err());
        assert!(open(&folder.0.join("clone"), &folder.0.join("clone")).is_err());
        assert!(open(&folder.0.join("clone"), &folder.0.join("clone/.git/cache")).is_err());
        assert!(clone.join(".git/x").exists());
        // The two folders only have names that begin alike.
        assert_eq!(folder.open("clone-cache"), Ok(()));
        assert_eq!(folder.open("clone/.cache"), Ok(()));
    }

    #[test]
    fn a_mirror_that_leads_elsewhere_is_refused() {
        let folder = CacheTestFolder::new();
        folder.write("thesis/chapter.txt");
        folder.write("cache/target/alknet-lock");
        std::os::unix::fs::symlink("../thesis", folder.0.join("cache/workspace")).expect("ours");
        let text = folder
            .open("cache")
            .expect_err("it leads to files of others");
        assert!(text.contains("symbolic link"), "{text}");
    }

    #[test]
    fn a_cache_from_before_there_were_marks_goes_on() {
        let folder = CacheTestFolder::new();
        folder.write("one/workspace/Cargo.toml");
        folder.write("one/target/alknet-used/1");
        folder.write("two/workspace/Cargo.toml");
        folder.write("two/target/alknet-lock");
        // The machines of the tests write here without the front.
        folder.write("three/kvm/boot");
        folder.write("three/sources/linux.tar");
        for cache in ["one", "two", "three"] {
            assert_eq!(folder.open(cache), Ok(()));
            assert!(is_marked(&folder.0.join(cache)));
        }
    }

    #[test]
    fn an_empty_variable_counts_as_unset() {
        assert_eq!(
            with(&[("ALKNET_CACHE", ""), ("HOME", "/h")]),
            Ok(PathBuf::from("/h/.cache/alknet"))
        );
        assert!(with(&[]).is_err_and(|text| text.contains("ALKNET_CACHE")));
    }
}
