//! Stores the configuration of a running node for its next start: in a file of this host, or
//! through PID 1, which alone writes the appliance's.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use alknet_core::config::{CONFIG_BYTES_MAX, ConfigError, NodeConfig};
use alknet_init::control::InitMessage;
use nix::fcntl::OFlag;
use nix::unistd::getegid;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::writers::{OtherWriter, check_writers, own_user};

/// Maximum time for PID 1 to write a document.
const INIT_TIMEOUT: Duration = Duration::from_secs(10);
/// Why a node keeps no document, if it was started without a file.
const NO_FILE: &str =
    "this node was started without a configuration file: start it with --config FILE";
/// Maximum number of bytes to read of a document: as many as it may have, and one more to see that it is too long.
const DOCUMENT_READ_MAX: u64 = CONFIG_BYTES_MAX as u64 + 1;
/// Permissions of the last good copy, and of a configuration with a join string: its holder may join the hub.
const LAST_GOOD_MODE: u32 = 0o600;

/// Stores configuration documents.
pub(crate) struct ConfigStore(ConfigLocation);

enum ConfigLocation {
    File(PathBuf),
    Init(InitConfigStore),
    Nowhere,
}

impl ConfigStore {
    /// Stores in this file, with the last good document beside it.
    pub(crate) const fn file_at(path: PathBuf) -> Self {
        Self(ConfigLocation::File(path))
    }

    /// Stores through PID 1.
    pub(crate) fn init(to_init: mpsc::Sender<InitMessage>) -> Self {
        Self(ConfigLocation::Init(InitConfigStore {
            to_init,
            next: AtomicU64::new(1),
            waiting: Mutex::default(),
        }))
    }

    /// Stores nothing: every attempt fails.
    pub(crate) const fn nowhere() -> Self {
        Self(ConfigLocation::Nowhere)
    }

    /// Stores a document for the next start. The error says why it was not stored.
    pub(crate) async fn save(&self, document: &[u8]) -> Result<(), String> {
        match &self.0 {
            ConfigLocation::File(path) => {
                replace(path, document).and_then(|()| self.keep_last_good(document))
            }
            ConfigLocation::Init(init) => init.save(document).await,
            ConfigLocation::Nowhere => Err(NO_FILE.to_owned()),
        }
    }

    /// Why this node keeps no document at all. `None` if it has a place for one.
    pub(crate) fn refusal(&self) -> Option<&'static str> {
        matches!(self.0, ConfigLocation::Nowhere).then_some(NO_FILE)
    }

    /// Stores a copy of the document in force, for a start that finds the file damaged. PID 1 keeps
    /// a copy of its own, so that this does nothing there.
    pub(crate) fn keep_last_good(&self, document: &[u8]) -> Result<(), String> {
        let ConfigLocation::File(path) = &self.0 else {
            return Ok(());
        };
        check_folder(path)?;
        let path = last_good_of(path);
        // Most calls find the same content, and a write would wear the disk.
        if read_copy(&path).is_ok_and(|stored| stored == document) {
            return Ok(());
        }
        // A link there is replaced: the copy is this node's own, and has what only its owner may read.
        alknet_durable::replace(&path, document, LAST_GOOD_MODE)
            .map_err(|error| format!("{} cannot be written: {error}", path.display()))
    }

    /// Reads the file. Returns `None` if the node has no file of its own.
    pub(crate) fn read(&self) -> Option<Result<Vec<u8>, ConfigError>> {
        match &self.0 {
            ConfigLocation::File(path) => Some(read(path)),
            ConfigLocation::Init(_) | ConfigLocation::Nowhere => None,
        }
    }

    /// The path of the file, if the node has one.
    pub(crate) fn file(&self) -> Option<PathBuf> {
        match &self.0 {
            ConfigLocation::File(path) => Some(path.clone()),
            ConfigLocation::Init(_) | ConfigLocation::Nowhere => None,
        }
    }

    /// Passes PID 1's answer to the call that waits for it.
    pub(crate) fn answered(&self, n: u64, error: Option<String>) {
        if let ConfigLocation::Init(init) = &self.0
            && let Some(waiting) = init.waiting().remove(&n)
        {
            // The caller may have given up after [`INIT_TIMEOUT`], and its receiver is gone.
            waiting.send(error).ok();
        }
    }
}

/// The document of the copy beside `file`, unless another user can have written it.
pub(crate) fn read_last_good(file: &Path) -> Option<Vec<u8>> {
    check_folder(file).ok()?;
    read_copy(&last_good_of(file)).ok()
}

/// Reads a copy, which this program wrote as a regular file. What another user put in its place is neither followed nor
/// waited for, and no more of it is read than a document may have.
fn read_copy(path: &Path) -> io::Result<Vec<u8>> {
    let mut options = File::options();
    options.read(true);
    // A FIFO without a writer would hold the open, and a link may lead to a device without an end (open(2)).
    options.custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits());
    let file = options.open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut document = Vec::new();
    file.take(DOCUMENT_READ_MAX).read_to_end(&mut document)?;
    Ok(document)
}

/// Refuses to keep anything beside `file` in a folder where another user can put links and files: root would write
/// wherever that user's link leads, and read that user's document as its own.
///
/// A folder that the node's own group may write passes: it is the private group of a user whose umask is 0002, or the
/// one by which a node may write in a folder of root's. A member of another group could lead a node of root's to a
/// file that only root may write.
fn check_folder(file: &Path) -> Result<(), String> {
    let folder = folder_of(file);
    let about = fs::metadata(folder)
        .map_err(|error| format!("{} cannot be read: {error}", folder.display()))?;
    let us = own_user();
    let why = match check_writers(&about, us) {
        Ok(()) => return Ok(()),
        Err(OtherWriter::Group(group)) if group == getegid().as_raw() => return Ok(()),
        Err(OtherWriter::Group(group)) => format!("can be written by the members of group {group}"),
        Err(OtherWriter::Owner(owner)) => format!("belongs to user {owner}"),
        Err(OtherWriter::Everyone) => "can be written by every user".to_owned(),
    };
    Err(format!(
        "{} {why}, and a node of user {us} keeps nothing there: move the configuration to a folder of its own",
        folder.display()
    ))
}

/// The copy beside `path`: `node.last-good.toml` of `node.toml`.
fn last_good_of(path: &Path) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{stem}.last-good.toml"))
}

/// The folder that a file is in. The parent of a bare name is empty, and no folder has an empty
/// name: such a file is in the process's current folder.
pub(crate) fn folder_of(file: &Path) -> &Path {
    let parent = file.parent().filter(|it| !it.as_os_str().is_empty());
    parent.unwrap_or_else(|| Path::new("."))
}

/// Reads a document, at most [`DOCUMENT_READ_MAX`] bytes of it.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, ConfigError> {
    let mut document = Vec::new();
    File::open(path)
        .and_then(|file| file.take(DOCUMENT_READ_MAX).read_to_end(&mut document))
        .map(|_| document)
        .map_err(|error| ConfigError {
            path: String::new(),
            line: None,
            what: format!("the file cannot be read: {error}"),
            fix: "check that it is there and who may read it".to_owned(),
        })
}

/// Puts the configuration in place whole, with the rights of the one before it. Only its owner may read a join string.
fn replace(path: &Path, content: &[u8]) -> Result<(), String> {
    check_folder(path)?;
    // A link stays one: the file that it leads to is replaced.
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    check_folder(&target)?;
    let found = fs::metadata(&target).map(|found| found.permissions().mode() & 0o777);
    let mode = match (found, has_join_string(content)) {
        (Ok(mode), true) => mode & LAST_GOOD_MODE,
        (Ok(mode), false) => mode,
        (Err(_), _) => LAST_GOOD_MODE,
    };
    alknet_durable::replace(&target, content, mode)
        .map_err(|error| format!("{} cannot be written: {error}", path.display()))
}

fn has_join_string(document: &[u8]) -> bool {
    NodeConfig::parse(document).is_ok_and(|config| {
        let kms = config.vault.kms.as_ref();
        config.join.iter().any(|join| join.code.is_some())
            || kms.is_some_and(|it| it.code.is_some())
    })
}

struct InitConfigStore {
    to_init: mpsc::Sender<InitMessage>,
    next: AtomicU64,
    waiting: Mutex<HashMap<u64, oneshot::Sender<Option<String>>>>,
}

impl InitConfigStore {
    async fn save(&self, document: &[u8]) -> Result<(), String> {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        // The entry is there before the request is sent, because PID 1 may answer at once.
        self.waiting().insert(n, answer);
        let document = String::from_utf8_lossy(document).into_owned();
        let sent = self.to_init.send(InitMessage::KeepConfig { n, document });
        let answered = async {
            sent.await.ok()?;
            answered.await.ok()
        };
        let answer = timeout(INIT_TIMEOUT, answered).await;
        // After a timeout the entry would otherwise stay for as long as the node runs.
        self.waiting().remove(&n);
        match answer {
            Ok(Some(None)) => Ok(()),
            Ok(Some(Some(error))) => Err(error),
            Ok(None) | Err(_) => Err("PID 1 does not answer".to_owned()),
        }
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<u64, oneshot::Sender<Option<String>>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn the_last_good_document_lies_beside_the_file() {
        for (file, beside) in [
            (
                "/data/config/config.toml",
                "/data/config/config.last-good.toml",
            ),
            ("node", "node.last-good.toml"),
        ] {
            assert_eq!(last_good_of(Path::new(file)), Path::new(beside));
        }
    }

    #[test]
    fn a_bare_name_is_in_the_folder_of_the_process() {
        assert_eq!(folder_of(Path::new("node.toml")), Path::new("."));
        assert_eq!(folder_of(Path::new("./node.toml")), Path::new("."));
        assert_eq!(folder_of(Path::new("/etc/node.toml")), Path::new("/etc"));
        // The node reads documents relative to this folder.
        assert!(folder_of(Path::new("node.toml")).canonicalize().is_ok());
    }

    #[test]
    fn a_replaced_file_keeps_its_rights_and_its_link() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (file, link) = (dir.path().join("a.toml"), dir.path().join("b.toml"));
        fs::write(&file, "old").expect("a writable directory");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).expect("our own file");
        std::os::unix::fs::symlink(&file, &link).expect("a writable directory");
        replace(&link, b"new").expect("a writable directory");
        assert_eq!(fs::read(&file).ok().as_deref(), Some(&b"new"[..]));
        assert!(fs::symlink_metadata(&link).is_ok_and(|found| found.is_symlink()));
        let mode = fs::metadata(&file)
            .expect("it is there")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o640);
        assert_eq!(fs::read_dir(dir.path()).expect("a directory").count(), 2);
    }

    #[test]
    fn a_file_with_a_join_string_is_its_owner_s_alone() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = dir.path().join("a.toml");
        let code = "[[join]]\ncode = \"alkjoin1_AAAA-_09\"\n";
        for (content, expected) in [("# no secret\n", 0o644), (code, 0o600)] {
            fs::write(&file, "old").expect("a writable directory");
            fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("our own file");
            replace(&file, content.as_bytes()).expect("a writable directory");
            let mode = fs::metadata(&file).expect("it is there").mode();
            assert_eq!(mode & 0o777, expected, "{content}");
        }
    }

    /// A link at the place of the copy leads to a file that is not this node's to write.
    #[test]
    fn the_copy_takes_the_place_of_a_link() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (file, other) = (dir.path().join("node.toml"), dir.path().join("other"));
        fs::write(&other, "untouched").expect("a writable directory");
        std::os::unix::fs::symlink(&other, last_good_of(&file)).expect("a writable directory");
        let config_store = ConfigStore::file_at(file.clone());
        config_store
            .keep_last_good(b"good")
            .expect("the folder is ours");
        assert_eq!(
            fs::read_to_string(&other).ok().as_deref(),
            Some("untouched")
        );
        let copy = fs::symlink_metadata(last_good_of(&file)).expect("it is there");
        assert!(copy.is_file() && copy.mode() & 0o777 == LAST_GOOD_MODE);
        assert_eq!(read_last_good(&file).as_deref(), Some(&b"good"[..]));
    }

    /// A reader that follows the link waits for a writer, or reads zeros without an end.
    #[test]
    fn what_is_no_file_is_neither_read_nor_waited_for_in_the_place_of_the_copy() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = dir.path().join("node.toml");
        let copy = last_good_of(&file);
        let pipe = dir.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("a writable directory");
        let config_store = ConfigStore::file_at(file.clone());
        for place in ["/dev/zero", "a pipe", "a link to a pipe"] {
            match place {
                "a pipe" => fs::rename(&pipe, &copy).expect("a writable directory"),
                "a link to a pipe" => {
                    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU)
                        .expect("a writable directory");
                    std::os::unix::fs::symlink(&pipe, &copy).expect("a writable directory");
                }
                device => std::os::unix::fs::symlink(device, &copy).expect("a writable directory"),
            }
            assert_eq!(read_last_good(&file), None, "{place}");
            config_store
                .keep_last_good(b"good")
                .expect("the folder is ours");
            assert_eq!(read_last_good(&file).as_deref(), Some(&b"good"[..]));
            fs::remove_file(&copy).expect("our own file");
        }
    }

    #[test]
    fn nothing_is_kept_where_every_user_may_write() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = dir.path().join("node.toml");
        fs::write(last_good_of(&file), "planted").expect("a writable directory");
        let mode = fs::Permissions::from_mode(0o1777);
        fs::set_permissions(dir.path(), mode).expect("our own folder");
        let config_store = ConfigStore::file_at(file.clone());
        let refused = config_store
            .keep_last_good(b"good")
            .expect_err("every user may");
        assert!(refused.contains("every user"), "{refused}");
        assert!(replace(&file, b"good").is_err() && !file.exists());
        assert_eq!(read_last_good(&file), None);
    }

    #[test]
    fn nothing_is_kept_where_another_group_may_write() {
        /// A group that no process here has.
        const OTHER: u32 = 65_533;
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = dir.path().join("node.toml");
        if !nix::unistd::geteuid().is_root() {
            alknet_test_support::skip!("root", "no folder can be given to another group");
        }
        std::os::unix::fs::chown(dir.path(), None, Some(OTHER)).expect("root may");
        for mode in [0o770, 0o775, 0o2775] {
            let mode = fs::Permissions::from_mode(mode);
            fs::set_permissions(dir.path(), mode).expect("our own folder");
            let config_store = ConfigStore::file_at(file.clone());
            let refused = config_store
                .keep_last_good(b"good")
                .expect_err("members may");
            assert!(refused.contains("members of group 65533"), "{refused}");
            assert!(replace(&file, b"good").is_err() && !file.exists());
        }
    }

    #[test]
    fn a_document_is_kept_where_the_node_s_own_group_may_write() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = dir.path().join("node.toml");
        let mode = fs::Permissions::from_mode(0o775);
        fs::set_permissions(dir.path(), mode).expect("our own folder");
        let config_store = ConfigStore::file_at(file.clone());
        assert_eq!(config_store.keep_last_good(b"good"), Ok(()));
        assert_eq!(read_last_good(&file).as_deref(), Some(&b"good"[..]));
    }

    #[tokio::test]
    async fn pid_1_keeps_and_says_so_or_why_not() {
        let (to_init, mut asked) = mpsc::channel(4);
        let store = ConfigStore::init(to_init);
        for error in [None, Some("the disk is full".to_owned())] {
            let answer = async {
                match asked.recv().await {
                    Some(InitMessage::KeepConfig { n, document }) => {
                        assert_eq!(document, "# mine");
                        store.answered(n, error.clone());
                        store.answered(n, None);
                    }
                    other => panic!("{other:?}"),
                }
            };
            let (kept, ()) = tokio::join!(store.save(b"# mine"), answer);
            assert_eq!(kept.err(), error);
        }
        drop(asked);
        assert!(store.save(b"").await.is_err());
    }
}
