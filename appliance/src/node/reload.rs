//! The configuration of a running node. A document comes from the file, from SIGHUP or from
//! `config/apply`. The node applies all of it or none, and stores it for the next start.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use alknet_core::config::{
    ApplyError, ConfigApplyResult, ConfigChange, ConfigError, ConfigSource, ConfigWarning,
    DynamicConfig, NodeConfig, ReloadHandle,
};
use alknet_core::{PeerId, ScopeSet};
use alknet_init::control::MachineDiagnostic;
use arc_swap::ArcSwap;
use serde::Serialize;
use tokio::sync::watch;

use super::certificates::unprovable;
use super::config_store::ConfigStore;
use super::stored_files::StoredFiles;

/// Maximum number of identities of each kind in one line of the log.
const IDS_LOGGED_MAX: usize = 20;

/// The only way in which a document comes into force on a running node.
pub(crate) struct Reloader {
    handle: ReloadHandle,
    store: ConfigStore,
    /// Held from the check of a document until it is stored, and while the file is read: the stored
    /// document is the one in force.
    turn: tokio::sync::Mutex<SeenFile>,
    /// Problems of the file. Empty while the file is valid.
    problems: ArcSwap<Vec<MachineDiagnostic>>,
    /// The stored files that a document may name.
    files: OnceLock<StoredFiles>,
}

/// What the node knows about its file.
#[derive(Default)]
struct SeenFile {
    /// The content that was read last, or that was there when an operation brought a document: the
    /// document in force is no older than it. `None` before the first reading.
    content: Option<Vec<u8>>,
    /// Whether an operation brought the document in force, the document could not be kept, and the
    /// log does not say yet that the file is older.
    is_outdated: bool,
}

/// The result of applying a document, for the caller that sent it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ReloadOutcome {
    #[serde(flatten)]
    pub(crate) applied: ConfigApplyResult,
    /// Whether the next start uses the document, too.
    pub(crate) kept: bool,
    /// Why it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) kept_error: Option<String>,
    /// The file of this host that has the document now, or on a dry run would have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) kept_in: Option<PathBuf>,
    /// Whether the file said something else before. That text is not kept.
    pub(crate) replaced: bool,
}

impl Reloader {
    /// `problems` are those of the file that the node was started with.
    pub(crate) fn new(
        handle: ReloadHandle,
        store: ConfigStore,
        problems: Vec<MachineDiagnostic>,
    ) -> Self {
        Self {
            handle,
            store,
            turn: tokio::sync::Mutex::default(),
            problems: ArcSwap::from_pointee(problems),
            files: OnceLock::new(),
        }
    }

    /// Sets the stored files of this node. From now on, a document that names another file gets a
    /// warning.
    pub(crate) fn know_files(&self, files: StoredFiles) {
        self.files.get_or_init(|| files);
    }

    /// Applies a document, or on a dry run says what it would change.
    ///
    /// # Errors
    /// The document is refused, and nothing has changed.
    pub(crate) async fn apply(
        &self,
        change: &ConfigChange<'_>,
    ) -> Result<ReloadOutcome, ApplyError> {
        let mut seen = self.turn.lock().await;
        self.apply_in_turn(&mut seen, change).await
    }

    async fn apply_in_turn(
        &self,
        seen: &mut SeenFile,
        change: &ConfigChange<'_>,
    ) -> Result<ReloadOutcome, ApplyError> {
        let mut applied = self.handle.apply(change)?;
        // A missing file is no reason to refuse the document: it may be stored after it.
        applied.warnings.extend(self.missing_files(change.document));
        applied
            .warnings
            .extend(certificate_warnings(change.document));
        let is_operation = matches!(change.source, ConfigSource::Operation(_));
        let before = is_operation.then(|| self.store.read()).flatten();
        let replaced = before.is_some_and(|it| it.is_ok_and(|it| it != change.document));
        // The administrator may be in another folder.
        let absolute = |file: PathBuf| std::path::absolute(&file).unwrap_or(file);
        if change.dry_run {
            return Ok(ReloadOutcome {
                applied,
                kept: false,
                kept_error: self.store.refusal().map(str::to_owned),
                kept_in: self.store.file().map(absolute),
                replaced,
            });
        }
        // The document is in force, so problems of an earlier one are over.
        self.problems.store(Arc::default());
        if applied.changed {
            audit(&change.source, &applied);
        }
        let kept = match change.source {
            ConfigSource::Operation(_) => self.store.save(change.document).await,
            // The copy that is there says the same. Each attempt to write it is an event in the directory that the watch
            // follows: one that fails would be the reason for the next.
            ConfigSource::File if !applied.changed => Ok(()),
            // The document came from the file, which is not written to.
            _ => self.store.keep_last_good(change.document),
        };
        self.compare(seen, change, kept.is_ok());
        if let Err(error) = &kept {
            tracing::warn!("the configuration in force is not kept: {error}");
        }
        let file = self.store.file().filter(|_| is_operation && kept.is_ok());
        Ok(ReloadOutcome {
            applied,
            kept: kept.is_ok(),
            kept_error: kept.err(),
            replaced: replaced && file.is_some(),
            kept_in: file.map(absolute),
        })
    }

    /// Remembers how the file compares to a document that has come into force.
    fn compare(&self, seen: &mut SeenFile, change: &ConfigChange<'_>, is_kept: bool) {
        seen.is_outdated = false;
        let is_operation = matches!(change.source, ConfigSource::Operation(_));
        if !is_operation || self.store.file().is_none() {
            return;
        }
        if is_kept {
            seen.content = Some(change.document.to_vec());
        } else if let Some(Ok(there)) = self.store.read() {
            // The attempt to keep the document raises events in the folder of the file, and so does whatever else is
            // written there. What is there now is older than the document.
            seen.is_outdated = there != change.document;
            seen.content = Some(there);
        }
    }

    /// Reads the file again, because something in its folder changed or an administrator sent a
    /// signal. After a change in the folder, the node does not use a file again that has the
    /// content that the node has seen: an operation may have brought a newer document. Errors in
    /// the file go to the log and to the node's problems, and the node keeps the configuration in
    /// force.
    pub(crate) async fn read_again(&self, source: ConfigSource) {
        // The lock is taken before the file is read: a document that an operation applies meanwhile
        // becomes the file, and an older copy would undo it.
        let mut seen = self.turn.lock().await;
        let Some(document) = self.store.read() else {
            tracing::warn!("{source}: this node reads no file; use 'alknet config apply'");
            return;
        };
        let document = match document {
            Ok(document) => document,
            Err(error) => return self.refused(&source, &[error]),
        };
        if source == ConfigSource::File && seen.content.as_ref() == Some(&document) {
            return self.pass_over(&mut seen, &document);
        }
        seen.content = Some(document.clone());
        let change = ConfigChange::of_owner(&document, source.clone());
        match self.apply_in_turn(&mut seen, &change).await {
            Err(ApplyError::Refused(errors)) => self.refused(&source, &errors),
            Err(error) => tracing::warn!("{error}"),
            // A change is logged where it is applied. Without this line an administrator who sends SIGHUP could not
            // tell that the signal arrived. After events of the directory nothing is logged: most are of other files.
            Ok(outcome) if source == ConfigSource::Signal && !outcome.applied.changed => {
                let file = self.store.file().unwrap_or_default();
                tracing::info!(
                    "{source}: {} was read again, and nothing changed",
                    file.display()
                );
            }
            Ok(_) => {}
        }
    }

    /// Leaves the configuration in force as it is, because the file has not changed. The file may
    /// have been unreadable meanwhile, so the problems are set again.
    fn pass_over(&self, seen: &mut SeenFile, document: &[u8]) {
        match NodeConfig::parse(document) {
            Err(errors) => self.refused(&ConfigSource::File, &errors),
            Ok(_) => self.problems.store(Arc::default()),
        }
        if std::mem::take(&mut seen.is_outdated) {
            let file = self.store.file().unwrap_or_default();
            tracing::warn!(
                "{} is older than the configuration in force, which could not be kept, and is not used: change it, or send SIGHUP to use it as it is",
                file.display()
            );
        }
    }

    /// Whether the node has a place for the documents that administrators apply.
    pub(crate) fn keeps(&self) -> bool {
        self.store.refusal().is_none()
    }

    /// The configuration in force.
    pub(crate) fn current(&self) -> Arc<DynamicConfig> {
        self.handle.current()
    }

    /// The configuration that the node runs with while `current` is in force.
    pub(crate) fn running(&self, current: &DynamicConfig) -> NodeConfig {
        self.handle.running(current)
    }

    /// A receiver of the number of each configuration that comes into force.
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.handle.watch()
    }

    /// Path of the file whose changes are followed.
    pub(crate) fn file(&self) -> Option<PathBuf> {
        self.store.file()
    }

    /// The problems of the file.
    pub(crate) fn problems(&self) -> Arc<Vec<MachineDiagnostic>> {
        self.problems.load_full()
    }

    /// What says which scopes something on this node asks for.
    pub(crate) fn know_scopes(
        &self,
        scopes: impl Fn() -> BTreeSet<String> + Send + Sync + 'static,
    ) {
        self.handle.know_scopes(scopes);
    }

    /// A warning for each of these scopes that nothing on this node asks for. `id` names what has them.
    pub(crate) fn scope_warnings(&self, id: &PeerId, granted: &ScopeSet) -> Vec<ConfigWarning> {
        self.handle.scope_warnings(id.as_str(), granted)
    }

    /// Passes on PID 1's answer to a document that it was to store.
    pub(crate) fn config_stored(&self, n: u64, error: Option<String>) {
        self.store.answered(n, error);
    }

    /// Warnings about files that a document names and that are not stored. The document is applied
    /// anyway: the files may come after it.
    fn missing_files(&self, document: &[u8]) -> Vec<ConfigWarning> {
        match (self.files.get(), NodeConfig::parse(document)) {
            (Some(files), Ok(config)) => files.warnings(&config),
            _ => Vec::new(),
        }
    }

    fn refused(&self, source: &ConfigSource, errors: &[ConfigError]) {
        let name = self.store.file().unwrap_or_default();
        let problems = refusal(&name.display().to_string(), errors);
        // The watch reads the file after every event in its directory, even of another file, so a
        // repeated problem is not logged again. An administrator who sends SIGHUP gets the log
        // lines each time.
        if *source != ConfigSource::File || *self.problems() != problems {
            for problem in &problems {
                tracing::warn!("{}: {}; {}", problem.code, problem.text, problem.hint);
            }
        }
        self.problems.store(Arc::new(problems));
    }
}

impl fmt::Debug for Reloader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reloader")
            .field("handle", &self.handle)
            .finish_non_exhaustive()
    }
}

/// Warnings about what a document wants of a certificate authority and no node can prove. The document is applied
/// anyway: all else in it is correct.
fn certificate_warnings(document: &[u8]) -> Vec<ConfigWarning> {
    let config = NodeConfig::parse(document).unwrap_or_default();
    let found = unprovable(&config).into_iter();
    let warning = |error: ConfigError| ConfigWarning {
        what: format!("{}; {}", error.what, error.fix),
        id: error.path,
    };
    found.map(warning).collect()
}

/// The problems of a node that refuses its file `name`.
pub(crate) fn refusal(name: &str, errors: &[ConfigError]) -> Vec<MachineDiagnostic> {
    let refused = errors.iter().map(|error| MachineDiagnostic {
        code: "config-refused".to_owned(),
        text: format!("{name}: {}", error.summary()),
        hint: error.fix.clone(),
    });
    let instead = MachineDiagnostic {
        code: "config-last-good".to_owned(),
        text: "the node runs with the configuration before it".to_owned(),
        hint: format!("correct {name}; it is read again at once"),
    };
    refused.chain([instead]).collect()
}

/// Logs a change: its source, and the peers that it concerns. The log gets no secret of a key and
/// no token.
pub(super) fn audit(source: &ConfigSource, applied: &ConfigApplyResult) {
    let ids = |ids: &[String]| {
        let more = ids.len().saturating_sub(IDS_LOGGED_MAX);
        let mut text = ids[..ids.len() - more].join(",");
        if more > 0 {
            text.push_str(&format!(",+{more}"));
        }
        text
    };
    tracing::info!(
        generation = applied.generation,
        // An administrator pays in the log for the changes that it made, and for no others.
        by = source.author(),
        source = %source,
        added = ids(&applied.peers.added),
        changed = ids(&applied.peers.changed),
        removed = ids(&applied.peers.removed),
        restart_required = applied.restart_required.join(","),
        "config.apply"
    );
    for warning in applied.warnings.iter().take(IDS_LOGGED_MAX) {
        tracing::warn!(by = source.author(), "configuration: {warning}");
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;

    use alknet_core::{Identities, IdentityProvider, PeerKey, SystemClock};
    use alknet_test_support::deadline;

    use super::*;
    use crate::node::config_watch;

    fn peer(n: u8) -> String {
        format!(
            "[[peers]]\npeer_id = \"peer-{n}\"\nkeys = [\"{}\"]\n",
            PeerKey::Ed25519([n; 32])
        )
    }

    fn reloader(store: ConfigStore) -> (Reloader, Arc<Identities>) {
        let config = NodeConfig::default();
        let clock = Arc::new(SystemClock { built_s: 0 });
        let identities = Arc::new(Identities::new(config.entries(), clock));
        let handle = ReloadHandle::new(config, Arc::clone(&identities));
        (Reloader::new(handle, store, Vec::new()), identities)
    }

    fn knows(identities: &Identities, n: u8) -> bool {
        identities.by_key(&PeerKey::Ed25519([n; 32])).is_some()
    }

    #[tokio::test]
    async fn a_file_is_taken_refused_and_taken_again() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = dir.path().join("node.toml");
        let last_good = dir.path().join("node.last-good.toml");
        let write = |text: &str| std::fs::write(&file, text).expect("a writable directory");
        let (reloader, identities) = reloader(ConfigStore::file_at(file.clone()));

        write(&peer(1));
        reloader.read_again(ConfigSource::File).await;
        assert!(knows(&identities, 1) && reloader.problems().is_empty());
        let kept = std::fs::read_to_string(&last_good).expect("kept");
        assert_eq!(kept, peer(1));

        write("peers = 1");
        reloader.read_again(ConfigSource::File).await;
        assert!(knows(&identities, 1));
        let problems = reloader.problems();
        let codes: Vec<_> = problems.iter().map(|p| p.code.as_str()).collect();
        assert_eq!(codes, ["config-refused", "config-last-good"]);
        assert!(problems[0].text.contains("node.toml: line 1, peers"));
        let kept = std::fs::read_to_string(&last_good).expect("kept");
        assert_eq!(kept, peer(1));

        std::fs::remove_file(&file).expect("it is there");
        reloader.read_again(ConfigSource::Signal).await;
        assert!(knows(&identities, 1) && reloader.problems().len() == 2);

        write(&peer(2));
        reloader.read_again(ConfigSource::Signal).await;
        assert!(!knows(&identities, 1) && knows(&identities, 2));
        assert!(reloader.problems().is_empty());
        assert_eq!(reloader.current().source, ConfigSource::Signal);
    }

    /// The node reads the file and then watches its directory: a change between the two raises no
    /// event.
    #[tokio::test]
    async fn a_change_before_the_directory_is_watched_is_read() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = dir.path().join("node.toml");
        let (reloader, identities) = reloader(ConfigStore::file_at(file.clone()));
        std::fs::write(&file, peer(1)).expect("a writable directory");
        let reloader = Arc::new(reloader);
        let mut generation = reloader.watch();
        let following = tokio::spawn(config_watch::follow(Arc::clone(&reloader)));
        let read = generation.wait_for(|generation| *generation > 1);
        tokio::time::timeout(deadline(Duration::from_secs(60)), read)
            .await
            .expect("the file is read without an event")
            .expect("the reloader is there");
        assert!(knows(&identities, 1));
        following.abort();
    }

    /// Each attempt makes a file beside the copy, which the watch of the directory notices.
    #[tokio::test]
    async fn a_copy_that_cannot_be_written_is_not_tried_again_before_something_changes() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = dir.path().join("node.toml");
        let last_good = dir.path().join("node.last-good.toml");
        std::fs::create_dir(&last_good).expect("a writable directory");
        std::fs::write(&file, peer(1)).expect("a writable directory");
        let (reloader, _) = reloader(ConfigStore::file_at(file.clone()));
        reloader.read_again(ConfigSource::File).await;
        let inode = std::fs::metadata(dir.path()).expect("it is there");
        let before = inode.modified().expect("every file system has it");
        reloader.read_again(ConfigSource::File).await;
        let inode = std::fs::metadata(dir.path()).expect("it is there");
        assert_eq!(inode.modified().ok(), Some(before), "nothing was made here");
        // An administrator who asks gets another attempt.
        std::fs::remove_dir(&last_good).expect("it is empty");
        reloader.read_again(ConfigSource::Signal).await;
        assert_eq!(std::fs::read_to_string(&last_good).ok(), Some(peer(1)));
    }

    #[tokio::test]
    async fn what_an_operation_brings_becomes_the_file() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = dir.path().join("node.toml");
        let (reloader, identities) = reloader(ConfigStore::file_at(file.clone()));
        let document = peer(1);
        let source = ConfigSource::Operation("admin".to_owned());
        let mut change = ConfigChange::of_owner(document.as_bytes(), source);
        change.dry_run = true;
        let tried = reloader.apply(&change).await.expect("a correct document");
        assert!(!tried.kept && !file.exists() && !knows(&identities, 1));
        assert_eq!(
            (tried.kept_in.as_ref(), tried.replaced),
            (Some(&file), false)
        );
        change.dry_run = false;
        let done = reloader.apply(&change).await.expect("a correct document");
        assert!(done.kept && knows(&identities, 1));
        assert_eq!((done.kept_in.as_ref(), done.replaced), (Some(&file), false));
        assert_eq!(std::fs::read_to_string(&file).ok(), Some(document.clone()));
        let other = peer(2);
        change.document = other.as_bytes();
        change.dry_run = true;
        let tried = reloader.apply(&change).await.expect("a correct document");
        assert!(tried.replaced, "the file would lose its text");
        assert_eq!(std::fs::read_to_string(&file).ok(), Some(document.clone()));
        change.dry_run = false;
        let done = reloader.apply(&change).await.expect("a correct document");
        assert!(done.replaced);
        change.document = document.as_bytes();
        let done = reloader.apply(&change).await.expect("a correct document");
        assert_eq!((done.kept_in.as_ref(), done.replaced), (Some(&file), true));
        // The watch notices the node's own write to the file, which changes nothing.
        reloader.read_again(ConfigSource::File).await;
        assert_eq!(reloader.current().generation, 4);
    }

    /// The rest of the document is in force all the same.
    #[tokio::test]
    async fn an_order_that_could_only_fail_is_a_warning() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (reloader, identities) = reloader(ConfigStore::file_at(dir.path().join("node.toml")));
        let document = format!("{}[tls.acme]\ndomains = [\"*.a.example\"]\n", peer(1));
        let source = ConfigSource::Operation("admin".to_owned());
        let change = ConfigChange::of_owner(document.as_bytes(), source);
        let done = reloader.apply(&change).await.expect("a correct document");
        assert!(knows(&identities, 1));
        let warnings = done.applied.warnings.iter();
        let ids: Vec<_> = warnings.map(|warning| warning.id.as_str()).collect();
        assert_eq!(ids, ["tls.acme.domains[0]"]);
    }

    /// The operation removes a peer, and the folder is open to every user, so that the node keeps no
    /// document there. What changes in the folder then is another file.
    #[tokio::test]
    async fn a_document_that_is_not_kept_stays_until_the_file_changes() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = dir.path().join("node.toml");
        let write = |text: &str| std::fs::write(&file, text).expect("a writable directory");
        let (reloader, identities) = reloader(ConfigStore::file_at(file.clone()));
        write(&peer(1));
        let source = ConfigSource::Operation("admin".to_owned());
        let remove = async |document: &str| {
            let change = ConfigChange::of_owner(document.as_bytes(), source.clone());
            let done = reloader.apply(&change).await;
            assert!(!done.expect("a correct document").kept);
        };
        let mode = std::fs::Permissions::from_mode(0o1777);
        std::fs::set_permissions(dir.path(), mode).expect("our own folder");
        // Also where the watch has not read the file yet.
        for _ in 0..2 {
            remove(&peer(2)).await;
            reloader.read_again(ConfigSource::File).await;
            assert!(!knows(&identities, 1) && knows(&identities, 2));
            reloader.read_again(ConfigSource::Signal).await;
            assert!(knows(&identities, 1), "an administrator asked for the file");
        }
        remove(&peer(2)).await;
        write(&format!("{}# changed", peer(1)));
        reloader.read_again(ConfigSource::File).await;
        assert!(knows(&identities, 1), "the change is later");
    }

    /// A file that is gone for a moment, and comes back as it was, has no problem.
    #[tokio::test]
    async fn a_file_that_comes_back_has_the_problems_that_it_had() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = dir.path().join("node.toml");
        let (reloader, _) = reloader(ConfigStore::file_at(file.clone()));
        for (text, problems) in [(&*peer(1), 0), ("peers = 1", 2)] {
            for there in [true, false, true] {
                let count = match there {
                    true => {
                        std::fs::write(&file, text).expect("a writable directory");
                        problems
                    }
                    false => {
                        std::fs::remove_file(&file).expect("it is there");
                        2
                    }
                };
                reloader.read_again(ConfigSource::File).await;
                assert_eq!(reloader.problems().len(), count, "{text}: {there}");
            }
        }
    }

    /// A peer that an operation removes must not come back, even for a moment, because the file was
    /// read before.
    #[tokio::test]
    async fn a_file_that_is_read_beside_an_operation_takes_nothing_back() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = dir.path().join("node.toml");
        std::fs::write(&file, peer(1)).expect("a writable directory");
        let (reloader, identities) = reloader(ConfigStore::file_at(file.clone()));
        reloader.read_again(ConfigSource::File).await;
        // The operation is running: its document is in force, and then becomes the file.
        let mut turn = reloader.turn.lock().await;
        let mut again = std::pin::pin!(reloader.read_again(ConfigSource::File));
        assert!(futures_util::poll!(&mut again).is_pending());
        let document = peer(2);
        let source = ConfigSource::Operation("admin".to_owned());
        let change = ConfigChange::of_owner(document.as_bytes(), source);
        let done = reloader.apply_in_turn(&mut turn, &change).await;
        assert!(done.expect("a correct document").kept);
        let generation = reloader.current().generation;
        drop(turn);
        again.await;
        assert!(!knows(&identities, 1) && knows(&identities, 2));
        assert_eq!(reloader.current().generation, generation);
    }

    #[tokio::test]
    async fn a_node_without_a_file_says_that_nothing_is_kept() {
        let (reloader, identities) = reloader(ConfigStore::nowhere());
        let document = peer(1);
        let source = ConfigSource::Operation("admin".to_owned());
        let change = ConfigChange::of_owner(document.as_bytes(), source);
        let trial = ConfigChange {
            dry_run: true,
            ..change.clone()
        };
        let tried = reloader.apply(&trial).await;
        let tried = tried.expect("a correct document");
        assert!(tried.kept_error.is_some() && !knows(&identities, 1));
        let outcome = reloader.apply(&change).await;
        let outcome = outcome.expect("a correct document");
        assert!(!outcome.kept && outcome.kept_error.is_some() && knows(&identities, 1));
        assert!(!reloader.keeps());
        reloader.read_again(ConfigSource::Signal).await;
        assert!(knows(&identities, 1));
    }
}
