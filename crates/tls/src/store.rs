//! The configured certificates of a node by name, which can change while connections live.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use rustls::sign::CertifiedKey;
use tokio::sync::watch;

use crate::pair::CertificatePair;

/// The source of a certificate. If several have one name, the first is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CertificateSource {
    /// The entry of `tls.files` with this index.
    File(usize),
    /// The certificate authority of `tls.acme`.
    Acme,
}

/// One served certificate, for status displays and metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateSummary {
    /// Its source.
    pub source: CertificateSource,
    /// Its names.
    pub names: Vec<String>,
    /// End of validity in seconds of Unix time.
    pub not_after: u64,
}

/// Certificates by name. Handshakes read it without a lock. The next handshake sees a change, and open connections
/// keep the certificate with which they began.
#[derive(Debug, Default)]
pub struct CertificateStore {
    by_name: ArcSwap<HashMap<String, Arc<CertifiedKey>>>,
    sources: Mutex<BTreeMap<CertificateSource, CertificatePair>>,
    changes: watch::Sender<u64>,
}

impl CertificateStore {
    /// Serves `pair` from now on in place of the previous pair of `source`.
    pub fn put(&self, source: CertificateSource, pair: CertificatePair) {
        self.change(|sources| {
            sources.insert(source, pair);
        });
    }

    /// Stops serving the pair of `source`.
    pub fn remove(&self, source: CertificateSource) {
        self.change(|sources| {
            sources.remove(&source);
        });
    }

    /// The last pair of `source`.
    #[must_use]
    pub fn pair(&self, source: CertificateSource) -> Option<CertificatePair> {
        self.lock().get(&source).cloned()
    }

    /// All served certificates.
    #[must_use]
    pub fn list(&self) -> Vec<CertificateSummary> {
        let summary = |(source, pair): (&CertificateSource, &CertificatePair)| CertificateSummary {
            source: *source,
            names: pair.names().to_vec(),
            not_after: pair.not_after(),
        };
        self.lock().iter().map(summary).collect()
    }

    /// Counts the changes.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// The certificate for a name: exactly that name first, then `*.` for its first label.
    pub(crate) fn find(&self, name: &str) -> Option<Arc<CertifiedKey>> {
        let name = name.to_ascii_lowercase();
        let table = self.by_name.load();
        if let Some(key) = table.get(&name) {
            return Some(Arc::clone(key));
        }
        // A wildcard stands for one label, the first one (RFC 9525 section 6.3).
        let (_first, parent) = name.split_once('.')?;
        table.get(&format!("*.{parent}")).cloned()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<CertificateSource, CertificatePair>> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut BTreeMap<CertificateSource, CertificatePair>)) {
        // The lock is held until the table is replaced: of two changes the later one's table stays.
        let mut sources = self.lock();
        change(&mut sources);
        let mut by_name = HashMap::new();
        // Sources are sorted, and the first one with a name keeps it.
        for pair in sources.values() {
            for name in pair.names() {
                by_name
                    .entry(name.clone())
                    .or_insert_with(|| Arc::clone(pair.certified()));
            }
        }
        self.by_name.store(Arc::new(by_name));
        self.changes.send_modify(|count| *count += 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pair::tests::PairTestCa;

    #[test]
    fn exact_names_then_wildcards_then_nothing() {
        let ca = PairTestCa::new("ca");
        let store = CertificateStore::default();
        let exact = ca.pair(&["www.example.org"]);
        let wild = ca.pair(&["*.example.org", "example.org"]);
        store.put(CertificateSource::File(1), exact.clone());
        store.put(CertificateSource::Acme, wild.clone());
        let is = |name: &str, pair: &CertificatePair| {
            let found = store.find(name).expect(name);
            Arc::ptr_eq(&found, pair.certified())
        };
        assert!(is("www.example.org", &exact));
        assert!(is("WWW.example.ORG", &exact));
        assert!(is("example.org", &wild));
        assert!(is("mail.example.org", &wild));
        for none in [
            "a.b.example.org",
            "org",
            "",
            "*.example.net",
            "xexample.org",
        ] {
            assert!(store.find(none).is_none(), "{none}");
        }
        // The first source wins a name that two have.
        let file = ca.pair(&["example.org"]);
        store.put(CertificateSource::File(0), file.clone());
        assert!(is("example.org", &file));
        store.remove(CertificateSource::File(0));
        assert!(is("example.org", &wild));
        store.remove(CertificateSource::Acme);
        assert!(store.find("example.org").is_none());
        assert_eq!(store.list().len(), 1);
    }
}
