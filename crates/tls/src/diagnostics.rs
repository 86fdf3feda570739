//! The present diagnostics of a node's certificates, for the console and the health check.

use std::fmt;

use tokio::sync::watch;

/// A certificate file cannot be used; the node goes on serving the certificate before it.
pub const CERT_RELOAD_FAILED: &str = "tls-cert-reload-failed";
/// The certificate authority issued no certificate.
pub const ACME_FAILED: &str = "tls-acme-failed";
/// The clock is before the time of this program's build, so that the node orders no certificate.
pub const CLOCK_INSANE: &str = "clock-insane";

/// One diagnostic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeDiagnostic {
    /// Its code, one of the constants of this module.
    pub code: &'static str,
    /// The file or domain that it concerns.
    pub subject: String,
    /// What is wrong and what to do.
    pub text: String,
}

impl fmt::Display for NodeDiagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.code, self.subject, self.text)
    }
}

/// The present diagnostics: at most one for each code and subject.
#[derive(Debug, Default)]
pub struct NodeDiagnostics(watch::Sender<Vec<NodeDiagnostic>>);

impl NodeDiagnostics {
    /// All present diagnostics.
    #[must_use]
    pub fn list(&self) -> Vec<NodeDiagnostic> {
        self.0.borrow().clone()
    }

    /// Follows the list.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Vec<NodeDiagnostic>> {
        self.0.subscribe()
    }

    /// Adds or replaces a diagnostic, and logs it if it is new.
    pub fn set(&self, code: &'static str, subject: &str, text: String) {
        let new = NodeDiagnostic {
            code,
            subject: subject.to_owned(),
            text,
        };
        // The comparison and the change are one step, so that a diagnostic is logged once.
        self.0.send_if_modified(|list| {
            if list.contains(&new) {
                return false;
            }
            tracing::warn!("{new}");
            list.retain(|old| old.code != code || old.subject != subject);
            list.push(new);
            true
        });
    }

    /// Removes a diagnostic.
    pub fn clear(&self, code: &'static str, subject: &str) {
        self.0.send_if_modified(|list| {
            let before = list.len();
            list.retain(|old| old.code != code || old.subject != subject);
            list.len() < before
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_problem_per_name_and_subject() {
        let problems = NodeDiagnostics::default();
        let mut watch = problems.watch();
        problems.set(CERT_RELOAD_FAILED, "a", "one".into());
        problems.set(CERT_RELOAD_FAILED, "a", "two".into());
        problems.set(CERT_RELOAD_FAILED, "b", "one".into());
        assert_eq!(problems.list().len(), 2);
        assert_eq!(problems.list()[0].text, "two");
        watch.mark_unchanged();
        problems.set(CERT_RELOAD_FAILED, "b", "one".into());
        problems.clear(ACME_FAILED, "b");
        assert!(!watch.has_changed().expect("alive"));
        problems.clear(CERT_RELOAD_FAILED, "b");
        assert!(watch.has_changed().expect("alive"));
        assert_eq!(problems.list().len(), 1);
    }
}
