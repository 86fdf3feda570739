//! Certificates from files, which the node reads again when the files change.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use crate::diagnostics::{CERT_RELOAD_FAILED, NodeDiagnostics};
use crate::pair::{CertificateFiles, CertificatePair};
use crate::store::{CertificateSource, CertificateStore};

/// Pause between checks of the files. A check costs two system calls for a pair, and finds every way of replacing a
/// file: overwriting, renaming, and the symbolic links of other tools.
pub const FILES_INTERVAL: Duration = Duration::from_secs(5);

/// Keeps the certificates of `tls.files` up to date in a store.
#[derive(Debug)]
pub struct FileWatcher {
    entries: Vec<WatchedCertificate>,
    store: Arc<CertificateStore>,
    problems: Arc<NodeDiagnostics>,
}

#[derive(Debug)]
struct WatchedCertificate {
    files: CertificateFiles,
    seen: Option<[Stamp; 2]>,
}

/// The values that change with a file: device, inode, size and change time. `None`: no such file.
type Stamp = Option<(u64, u64, u64, i64, i64)>;

impl FileWatcher {
    /// Reads every pair once. A pair that cannot be used is reported, and read again when one of its files changes.
    #[must_use]
    pub fn new(
        files: Vec<CertificateFiles>,
        store: Arc<CertificateStore>,
        problems: Arc<NodeDiagnostics>,
    ) -> Self {
        let entries = files
            .into_iter()
            .map(|files| WatchedCertificate { files, seen: None })
            .collect();
        let mut watcher = Self {
            entries,
            store,
            problems,
        };
        watcher.check();
        watcher
    }

    /// Reads the pairs that changed since the last check. Returns how many certificates were replaced.
    pub fn check(&mut self) -> usize {
        let mut replaced = 0;
        for (index, entry) in self.entries.iter_mut().enumerate() {
            // The stamps are taken before the files are read: a change meanwhile is found by the next check.
            let now = [stamp(&entry.files.chain), stamp(&entry.files.key)];
            if entry.seen == Some(now) {
                continue;
            }
            // The stamp is stored also if the pair is invalid, so that it is reported once and not with every check.
            entry.seen = Some(now);
            let subject = entry.files.chain.display().to_string();
            match CertificatePair::load(&entry.files) {
                Ok(pair) => {
                    tracing::info!("serving {subject} for {}", pair.names().join(", "));
                    self.store.put(CertificateSource::File(index), pair);
                    self.problems.clear(CERT_RELOAD_FAILED, &subject);
                    replaced += 1;
                }
                Err(error) => {
                    let served = match self.store.pair(CertificateSource::File(index)) {
                        Some(_) => "the certificate before it is still served",
                        None => "nothing is served for it",
                    };
                    let text = format!("{error} ({served})");
                    self.problems.set(CERT_RELOAD_FAILED, &subject, text);
                }
            }
        }
        replaced
    }

    /// Checks every `period` without end.
    pub async fn run(mut self, period: Duration) {
        let mut ticks = interval(period);
        // After a long sleep of the machine one check is enough.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.check();
        }
    }
}

fn stamp(path: &Path) -> Stamp {
    let meta = std::fs::metadata(path).ok()?;
    Some((
        meta.dev(),
        meta.ino(),
        meta.len(),
        // This is not the modification time, which programs that copy files set to the original's.
        meta.ctime(),
        meta.ctime_nsec(),
    ))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{OpenOptionsExt, symlink};

    use super::*;
    use crate::pair::tests::PairTestCa;

    fn write(path: &Path, text: &str) {
        use std::io::Write;
        let _ = fs::remove_file(path);
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .expect("create");
        file.write_all(text.as_bytes()).expect("write");
    }

    #[test]
    fn a_bad_pair_keeps_the_old_one_and_is_reported() {
        let dir = tempfile::tempdir().expect("a directory");
        let ca = PairTestCa::new("ca");
        let files = CertificateFiles {
            chain: dir.path().join("chain.pem"),
            key: dir.path().join("key.pem"),
        };
        let store = Arc::new(CertificateStore::default());
        let problems = Arc::new(NodeDiagnostics::default());
        let mut watcher = FileWatcher::new(
            vec![files.clone()],
            Arc::clone(&store),
            Arc::clone(&problems),
        );
        assert_eq!(problems.list()[0].code, CERT_RELOAD_FAILED);
        assert!(problems.list()[0].text.contains("nothing is served"));

        let (chain, key) = ca.issue(&["one.example"]);
        write(&files.chain, &chain);
        write(&files.key, &key);
        assert_eq!(watcher.check(), 1);
        assert_eq!(watcher.check(), 0, "nothing changed");
        assert_eq!(problems.list(), []);
        let first = store.find("one.example").expect("served");

        let (chain, key) = ca.issue(&["two.example"]);
        write(&files.chain, &chain);
        assert_eq!(watcher.check(), 0);
        let problem = &problems.list()[0];
        assert!(problem.text.contains("does not fit"), "{problem}");
        assert!(problem.text.contains("still served"), "{problem}");
        let served = store.find("one.example").expect("still served");
        assert!(Arc::ptr_eq(&first, &served));

        write(&files.key, &key);
        assert_eq!(watcher.check(), 1);
        assert_eq!(problems.list(), []);
        assert!(store.find("one.example").is_none());
        assert!(store.find("two.example").is_some());

        // Some tools change a symbolic link and leave the files.
        let (chain, key) = ca.issue(&["three.example"]);
        write(&dir.path().join("chain3"), &chain);
        write(&dir.path().join("key3"), &key);
        for (link, to) in [(&files.chain, "chain3"), (&files.key, "key3")] {
            fs::remove_file(link).expect("remove");
            symlink(to, link).expect("link");
        }
        assert_eq!(watcher.check(), 1);
        assert!(store.find("three.example").is_some());
        fs::remove_file(&files.chain).expect("remove");
        watcher.check();
        assert!(store.find("three.example").is_some(), "kept");
        assert_eq!(problems.list().len(), 1);
    }
}
