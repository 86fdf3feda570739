//! The result of preparing the data: where the state is stored, how full the disk is, and what is
//! wrong with it.

use std::{
    fs::{self, OpenOptions, Permissions},
    io,
    os::unix::fs::{OpenOptionsExt, PermissionsExt, fchown},
    path::{Path, PathBuf},
};

use alknet_vault::slots::OpenAlkv;
use nix::{
    fcntl::OFlag,
    sys::statvfs::{FsFlags, Statvfs, statvfs},
};

use super::{NODE_UID, problem};
use crate::{
    control::{DataState, MachineDiagnostic},
    vault::VaultWait,
};

/// The state directory of a stateless node.
const VOLATILE: &str = "/run/alknet";
/// Less free space than this counts as full, in bytes: the node must be able to write a
/// configuration and a key.
const FULL_BYTES: u64 = 4 << 20;
/// Fewer files than this that can still be created count as full as well, however much space is free: the same files
/// need an inode each, and so do the database's log and an update.
const FULL_FILES: u64 = 64;

/// Folders of the state directory: name, mode, and whether the node owns it. The node must not be
/// able to replace files of PID 1 by links.
const TREE: &[(&str, u32, bool)] = &[
    ("audit", 0o700, true),
    ("config", 0o755, false),
    ("identity", 0o700, true),
    ("log", 0o700, true),
    ("state", 0o700, true),
    ("tls", 0o700, true),
    ("update", 0o755, false),
];

/// The result of preparing the data.
#[derive(Debug)]
pub(crate) struct PreparedData {
    pub(crate) state_dir: PathBuf,
    pub(crate) state: DataState,
    pub(crate) problems: Vec<MachineDiagnostic>,
    /// Why nothing is open, so that nothing is served.
    pub(crate) waiting: Option<VaultWait>,
    /// The device of the vault.
    pub(crate) vault_at: Option<PathBuf>,
    /// The vault that opened the data. It is for the end of the first boot, and for its words,
    /// which a medium may still have. The caller drops it soon.
    pub(crate) vault: Option<OpenAlkv>,
}

impl PreparedData {
    /// A copy without the vault, for the case that work on the original panics.
    pub(crate) fn copied(&self) -> Self {
        Self {
            state_dir: self.state_dir.clone(),
            state: self.state.clone(),
            problems: self.problems.clone(),
            waiting: self.waiting.clone(),
            vault_at: self.vault_at.clone(),
            vault: None,
        }
    }

    /// Whether a data partition is mounted.
    pub(crate) fn is_mounted(&self) -> bool {
        ["mounted", "read-only"].contains(&self.state.mode.as_str())
    }
}

/// Updates sizes, and problems that come and go. Returns whether something changed that readers
/// need.
pub(crate) fn refresh(prepared: &mut PreparedData) -> bool {
    let Ok(stat) = statvfs(&prepared.state_dir) else {
        return false;
    };
    // A change of free space alone does not count, because it changes all the time.
    let before = (prepared.state.mode.clone(), prepared.problems.clone());
    let unit = stat.fragment_size();
    prepared.state.total_bytes = stat.blocks() * unit;
    prepared.state.free_bytes = stat.blocks_available() * unit;
    let mounted = prepared.state.mode == "mounted";
    // `errors=remount-ro`: the kernel makes it read-only at the first error.
    if mounted && stat.flags().contains(FsFlags::ST_RDONLY) {
        read_only(
            prepared,
            "the kernel found it damaged and stopped writing".to_owned(),
        );
    }
    prepared.problems.retain(|known| known.code != "data-full");
    let free = free_of_full(&stat).filter(|_| prepared.state.mode != "read-only");
    if let Some(free) = free {
        let (text, hint) = match mounted {
            true => (
                format!("{free} on the data disk"),
                "delete what is not needed, or enlarge the disk and reboot: it is grown by itself",
            ),
            // A stateless node keeps its state in memory.
            false => (
                format!("{free} in the memory that holds this node's state"),
                "delete what is not needed, or reboot: nothing of it is kept",
            ),
        };
        prepared.problems.push(problem("data-full", text, hint));
    }
    before != (prepared.state.mode.clone(), prepared.problems.clone())
}

/// What is left, if it is so little that the file system counts as full.
fn free_of_full(stat: &Statvfs) -> Option<String> {
    let bytes = stat.blocks_available() * stat.fragment_size();
    if bytes < FULL_BYTES {
        return Some(format!("{bytes} bytes are free"));
    }
    let files = stat.files_available();
    // A file system that makes inodes as it needs them has none in all.
    (stat.files() > 0 && files < FULL_FILES).then(|| format!("{files} more files can be created"))
}

/// The result if nothing is open, so that nothing is served.
pub(super) fn locked(waiting: VaultWait, vault_at: Option<PathBuf>) -> PreparedData {
    let device = vault_at.as_ref().map(|path| path.display().to_string());
    PreparedData {
        state_dir: VOLATILE.into(),
        state: DataState {
            mode: "locked".to_owned(),
            device,
            detail: Some(waiting.problem.text.clone()),
            ..DataState::default()
        },
        problems: vec![waiting.problem.clone()],
        waiting: Some(waiting),
        vault_at,
        vault: None,
    }
}

/// The result for a node that is configured as stateless.
pub(super) fn stateless() -> PreparedData {
    PreparedData {
        waiting: None,
        vault_at: None,
        vault: None,
        state_dir: VOLATILE.into(),
        state: DataState {
            mode: "volatile".to_owned(),
            detail: Some("the node is configured to be stateless".to_owned()),
            ..DataState::default()
        },
        problems: Vec::new(),
    }
}

pub(super) fn read_only(prepared: &mut PreparedData, why: String) {
    prepared.state.mode = "read-only".to_owned();
    prepared.state.detail = Some(why.clone());
    // The start refuses a sealed file system with recorded errors, so the owner reads of it before.
    let hint = match prepared.state.cipher {
        Some(_) => {
            "repair it elsewhere with cryptsetup and e2fsck -f; until then nothing new is kept, and after a \
             restart the machine serves nothing"
        }
        None => "repair it elsewhere with e2fsck -f and reboot; until then nothing new is kept",
    };
    prepared.problems.push(problem(
        "data-damaged",
        format!("the data file system is read-only: {why}"),
        hint,
    ));
}

pub(super) fn make_tree(root: &Path) -> io::Result<()> {
    fs::create_dir_all(root)?;
    for (name, mode, node) in TREE {
        let path = root.join(name);
        match fs::create_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        // Neither the owner nor the mode of another folder changes: an attacker who writes to a plain partition can put a
        // link in the place of a folder.
        let mut options = OpenOptions::new();
        let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
        let folder = options.read(true).custom_flags(flags.bits()).open(&path)?;
        let owner = if *node { NODE_UID } else { 0 };
        // This happens at each start: an earlier version, or a repair elsewhere, may have left
        // other owners and modes.
        fchown(&folder, Some(owner), Some(owner))?;
        folder.set_permissions(Permissions::from_mode(*mode))?;
        // The node does not run yet. It could lock what a power cut left of a note, and PID 1 would wait for the lock. What
        // stays makes no start fail: the next write of that note says why.
        if !*node && let Err(error) = alknet_durable::remove_left(&path) {
            tracing::warn!(%error, "what a power cut left of new files stays");
        }
    }
    Ok(())
}

/// The first name of the tree at which there is something else than a folder, such as a link.
pub(super) fn foreign_name(root: &Path) -> Option<&'static str> {
    let is_foreign = |name: &&str| {
        let found = fs::symlink_metadata(root.join(name));
        found.is_ok_and(|found| !found.is_dir())
    };
    TREE.iter().map(|(name, ..)| *name).find(is_foreign)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};
    use std::thread;

    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};

    use super::*;

    #[test]
    fn what_is_closed_says_why_and_what_is_stateless_is_no_problem() {
        let missing = problem("data-missing", "no disk".to_owned(), "attach one");
        let prepared = locked(VaultWait::from_diagnostic(missing), None);
        assert_eq!(prepared.state.mode, "locked");
        assert_eq!(prepared.state.detail.as_deref(), Some("no disk"));
        assert_eq!(prepared.problems[0].code, "data-missing");
        assert!(prepared.waiting.is_some_and(|waiting| waiting.retries));
        let prepared = stateless();
        assert_eq!(prepared.state.mode, "volatile");
        let why = "the node is configured to be stateless";
        assert_eq!(prepared.state.detail.as_deref(), Some(why));
        assert!(prepared.waiting.is_none() && prepared.problems.is_empty());
    }

    #[test]
    fn a_problem_that_ends_is_taken_back() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut prepared = PreparedData {
            state_dir: dir.path().into(),
            state: DataState {
                mode: "mounted".to_owned(),
                ..DataState::default()
            },
            problems: vec![problem("data-full", "0 bytes".to_owned(), "delete")],
            waiting: None,
            vault_at: None,
            vault: None,
        };
        assert!(
            refresh(&mut prepared),
            "the disk of this machine is not full"
        );
        assert!(prepared.problems.is_empty());
        assert!(prepared.state.total_bytes > 0);
        assert!(!refresh(&mut prepared));
    }

    /// Empty files leave all space free.
    #[test]
    fn a_disk_without_inodes_is_full() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let root = dir.path().to_owned();
        // The namespace of mounts is that of one thread, and ends with it.
        let seen = thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNS).expect("this test runs as root");
            let none = None::<&str>;
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(none, "/", none, private, none).expect("a namespace of this thread");
            let tmpfs = |flags, options: &str| {
                mount(none, &root, Some("tmpfs"), flags, Some(options)).expect("a file system");
            };
            tmpfs(MsFlags::empty(), "size=64m,nr_inodes=300");
            let mut prepared = stateless();
            prepared.state_dir.clone_from(&root);
            prepared.state.mode = "mounted".to_owned();
            assert!(!refresh(&mut prepared), "{:?}", prepared.problems);
            for at in 0..250 {
                fs::write(root.join(at.to_string()), "").expect("an inode is left");
            }
            assert!(refresh(&mut prepared));
            assert!(prepared.state.free_bytes > 32 << 20);
            let problem = prepared.problems.pop().expect("it is full");
            tmpfs(MsFlags::MS_REMOUNT, "size=64m,nr_inodes=3000");
            refresh(&mut prepared);
            (problem, prepared.problems)
        });
        let (problem, after) = seen.join().expect("its checks hold");
        assert_eq!(problem.code, "data-full");
        let said = "more files can be created on the data disk";
        assert!(problem.text.ends_with(said), "{}", problem.text);
        assert!(after.is_empty(), "{after:?}");
    }

    #[test]
    fn going_read_only_is_reported_once() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut prepared = stateless();
        prepared.state_dir = dir.path().into();
        read_only(&mut prepared, "1 errors are recorded in it".to_owned());
        assert_eq!(prepared.state.mode, "read-only");
        assert!(!refresh(&mut prepared));
        let [problem] = prepared.problems.as_slice() else {
            panic!("{:?}", prepared.problems);
        };
        let closes = "after a restart the machine serves nothing";
        assert!(!problem.hint.contains(closes), "{}", problem.hint);
        prepared.state.cipher = Some("aes-xts-plain64".to_owned());
        read_only(&mut prepared, "the kernel stopped writing".to_owned());
        let hint = &prepared.problems[1].hint;
        assert!(hint.contains(closes), "{hint}");
    }

    #[test]
    fn the_tree_is_made_and_made_again() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        for _ in 0..2 {
            make_tree(&dir.path().join("state")).expect("this test runs as root");
        }
        let identity = fs::metadata(dir.path().join("state/identity")).expect("made");
        assert_eq!(identity.permissions().mode() & 0o7777, 0o700);
        assert_eq!(identity.uid(), NODE_UID);
        let config = fs::metadata(dir.path().join("state/config")).expect("made");
        assert_eq!(config.uid(), 0);
    }

    /// The attack: a power cut leaves a part of a note that the node can open, and the node keeps its lock.
    #[test]
    fn what_power_cuts_left_of_notes_is_gone_before_the_node_runs() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let notes = TREE.iter().map(|(name, _, node)| {
            let folder = dir.path().join(name);
            (
                folder.join(".note.json.new"),
                folder.join("note.json"),
                node,
            )
        });
        let notes: Vec<_> = notes.collect();
        make_tree(dir.path()).expect("this test runs as root");
        for (left, note, _) in &notes {
            for path in [left, note] {
                fs::write(path, "").expect("writable");
            }
        }
        make_tree(dir.path()).expect("this test runs as root");
        for (left, note, is_of_node) in notes {
            // The node's own calls remove what is left in its folders.
            assert_eq!(left.exists(), *is_of_node, "{}", left.display());
            assert!(note.exists(), "{}", note.display());
        }
    }

    /// An attacker writes links to a plain partition: PID 1 would give a folder of the system to the node.
    #[test]
    fn the_tree_follows_no_link() {
        for (name, mode, _) in TREE {
            let dir = tempfile::tempdir().expect("a temporary directory");
            let [root, victim] = ["state", "victim"].map(|name| dir.path().join(name));
            for folder in [&root, &victim] {
                fs::create_dir(folder).expect("writable");
            }
            fs::set_permissions(&victim, Permissions::from_mode(0o751)).expect("ours");
            assert_ne!(*mode, 0o751);
            symlink(&victim, root.join(name)).expect("writable");
            make_tree(&root).expect_err(name);
            let metadata = fs::metadata(&victim).expect("it is there");
            assert_eq!((metadata.uid(), metadata.mode() & 0o7777), (0, 0o751));
            assert_eq!(foreign_name(&root), Some(*name));
            // A file is no folder either.
            fs::remove_file(root.join(name)).expect("ours");
            assert_eq!(foreign_name(&root), None);
            fs::write(root.join(name), "").expect("writable");
            make_tree(&root).expect_err(name);
            assert_eq!(foreign_name(&root), Some(*name));
        }
    }
}
