//! Since when every client trusts the certificates of the node's names.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::ProbeFinding;

/// How long the node has to show a certificate that every client trusts before it tells clients to
/// insist on one: a mistake of the first day is found before it binds a client.
const TRUSTED_FOR_S: u64 = 24 * 60 * 60;
/// File of the history, below the folder of TLS files.
const FILE: &str = "trusted-since.json";

/// Since when every client trusts the certificate of each name, in seconds of Unix time. The
/// history is in a file, so that a restart does not begin the wait again.
#[derive(Debug)]
pub(super) struct TrustHistory {
    file: PathBuf,
    since: BTreeMap<String, u64>,
}

impl TrustHistory {
    /// Reads the history in `folder`. If the file cannot be read, the wait begins again, and
    /// nothing else is lost.
    pub(super) fn read(folder: &Path) -> Self {
        let file = folder.join(FILE);
        let stored = fs::read(&file).ok();
        let stored = stored.and_then(|text| serde_json::from_slice(&text).ok());
        Self {
            since: stored.unwrap_or_default(),
            file,
        }
    }

    /// Records the results of a round of probes. A name without a result keeps its time: a node
    /// that could not reach itself has learned nothing about its certificate.
    pub(super) fn note(&mut self, names: &[String], found: &[ProbeFinding], now_s: u64) {
        let mut since = BTreeMap::new();
        for name in names {
            let here = found.iter().filter(|one| one.name == *name);
            let trusted = here.filter_map(|one| one.trusted).max();
            // The clock may have been ahead when the time was recorded.
            let before = self.since.get(name).map(|since| (*since).min(now_s));
            let now = match trusted {
                Some(true) => Some(before.unwrap_or(now_s)),
                Some(false) => None,
                None => before,
            };
            since.extend(now.map(|now| (name.clone(), now)));
        }
        if since == self.since {
            return;
        }
        self.since = since;
        if let Err(error) = self.store() {
            let file = self.file.display();
            tracing::warn!("{file}: {error}; a restart begins the day of a certificate again");
        }
    }

    /// Names whose certificate every client has trusted for a day.
    pub(super) fn long_enough(&self, now_s: u64) -> Vec<String> {
        let old = |since: u64| now_s.saturating_sub(since) >= TRUSTED_FOR_S;
        let names = self.since.iter().filter(|(_, since)| old(**since));
        names.map(|(name, _)| name.clone()).collect()
    }

    fn store(&self) -> io::Result<()> {
        alknet_durable::replace(&self.file, &serde_json::to_vec(&self.since)?, 0o600)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::found;
    use super::*;

    const DAY_S: u64 = TRUSTED_FOR_S;

    #[test]
    fn a_day_of_trust_outlives_a_restart_and_no_doubt() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let read = || TrustHistory::read(dir.path());
        let names = ["a.example".to_owned(), "b.example".to_owned()];
        let mut trusted = read();
        let both = [found("a.example", Some(true)), found("b.example", None)];
        trusted.note(&names, &both, 1000);
        assert!(trusted.long_enough(1000 + DAY_S - 1).is_empty());
        assert_eq!(trusted.long_enough(1000 + DAY_S), ["a.example"]);

        let mut trusted = read();
        assert_eq!(trusted.long_enough(1000 + DAY_S), ["a.example"]);
        // A round without results does not end the time.
        trusted.note(&names, &[], 2000);
        trusted.note(&names, &both, 3000);
        assert_eq!(read().long_enough(1000 + DAY_S), ["a.example"]);
        // One of two addresses is enough.
        let one = [
            found("a.example", Some(false)),
            found("a.example", Some(true)),
        ];
        trusted.note(&names, &one, 4000);
        assert_eq!(trusted.long_enough(1000 + DAY_S), ["a.example"]);
        // A browser would refuse this certificate: the wait begins again.
        trusted.note(&names, &[found("a.example", Some(false))], 5000);
        trusted.note(&names, &both, 6000);
        assert!(trusted.long_enough(1000 + DAY_S).is_empty());
        assert_eq!(trusted.long_enough(6000 + DAY_S), ["a.example"]);
        // The node no longer has this name.
        trusted.note(&names[1..], &both, 7000);
        trusted.note(&names, &[], 8000);
        assert!(trusted.long_enough(9000 + DAY_S).is_empty());
    }

    #[test]
    fn a_clock_that_was_ahead_costs_no_more_than_a_day() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut trusted = TrustHistory::read(dir.path());
        let names = ["a.example".to_owned()];
        let now = [found("a.example", Some(true))];
        trusted.note(&names, &now, 1_000_000_000);
        trusted.note(&names, &now, 1000);
        assert!(trusted.long_enough(1000).is_empty());
        assert_eq!(trusted.long_enough(1000 + DAY_S), ["a.example"]);
    }

    #[test]
    fn an_unreadable_history_starts_empty() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        fs::write(dir.path().join(FILE), "{\"a.example\":-1}").expect("the folder is ours");
        assert!(
            TrustHistory::read(dir.path())
                .long_enough(u64::MAX)
                .is_empty()
        );
    }
}
