//! The node's health, for `/healthz`: degraded if a problem of the node, or of its machine, keeps
//! the node from serving.

use std::sync::{Arc, OnceLock};

use alknet_core::Clock;
use alknet_http::HealthSource;
use alknet_init::control::{MEMORY_SHORT, MachineDiagnostic};
use alknet_tls::{ACME_FAILED, CLOCK_INSANE, CertificateStore, CertificateSummary};
use arc_swap::ArcSwap;

use super::FAILED_LOGINS;
use super::facts::SharedFacts;
use super::file_store::FILES_NOT_SYNCED;
use super::join::HUB_REFUSES;
use super::node_key_rotation::NODE_KEY_WAITS;
use super::update::{UPDATE_AVAILABLE, UPDATE_FAILED, UPDATE_NOT_STARTED, UPDATES_BLOCKED};

/// Codes of problems that do not make a node degraded: the node serves, and its administrator has
/// something to do, here or at another node or server.
const HARMLESS: [&str; 24] = [
    CLOCK_INSANE,
    FAILED_LOGINS,
    FILES_NOT_SYNCED,
    NODE_KEY_WAITS,
    HUB_REFUSES,
    MEMORY_SHORT,
    UPDATE_AVAILABLE,
    UPDATE_FAILED,
    UPDATE_NOT_STARTED,
    UPDATES_BLOCKED,
    "credential-missing",
    "credential-unused",
    "data-kept",
    "disk-temperature",
    "import-failed",
    "mcp-tool-unknown",
    "nocloud-ignored",
    "provisioning-ignored",
    "ready-not-reported",
    "reset-uncounted",
    "scope-unknown",
    "secrets-left",
    "vault-uncounted",
    "words-unconfirmed",
];

/// The problems that the node sees. The cell is empty until the node has started.
pub(crate) type NodeDiagnosticSource =
    Arc<OnceLock<Box<dyn Fn() -> Vec<MachineDiagnostic> + Send + Sync>>>;

/// The node's problems as it last sent them to PID 1. PID 1 repeats them beside its own until the
/// node sends others.
pub(crate) type InitDiagnostics = Arc<ArcSwap<Vec<MachineDiagnostic>>>;

/// The sources of the answer to `/healthz`.
pub(crate) struct NodeHealth {
    /// The problems that the node found.
    pub(crate) own: NodeDiagnosticSource,
    /// The problems that PID 1 found.
    pub(crate) facts: SharedFacts,
    pub(crate) sent_problems: InitDiagnostics,
    pub(crate) certified: CertificateHealth,
}

/// The names that certificates are ordered for, and the certificates that are served for them.
pub(crate) struct CertificateHealth {
    pub(crate) names: Vec<String>,
    pub(crate) store: Arc<CertificateStore>,
    pub(crate) clock: Arc<dyn Clock>,
}

impl CertificateHealth {
    /// Whether each name has a certificate that has not expired.
    fn all(&self) -> bool {
        all_served(&self.names, &self.store.list(), self.clock.now_s())
    }
}

fn all_served(names: &[String], served: &[CertificateSummary], now_s: Option<u64>) -> bool {
    // Without a set clock, the node cannot say whether a certificate has expired, and counts it as
    // valid.
    let is_valid = |one: &&CertificateSummary| now_s.is_none_or(|now| now < one.not_after);
    let is_served = |name: &String| {
        let mut valid = served.iter().filter(is_valid);
        valid.any(|one| one.names.iter().any(|own| own.eq_ignore_ascii_case(name)))
    };
    names.iter().all(is_served)
}

impl HealthSource for NodeHealth {
    fn degraded(&self) -> Option<String> {
        // Before the node has started there is nothing to be degraded.
        let own = self.own.get().map(|problems| problems())?;
        let facts = self.facts.load();
        let sent_problems = self.sent_problems.load();
        let machine = facts
            .problems
            .iter()
            .filter(|one| !sent_problems.contains(one));
        let serious = own
            .iter()
            .chain(machine)
            .find(|one| self.is_serious(&one.code))?;
        // The answer has the code and not the text, because unknown peers may read it.
        Some(serious.code.clone())
    }
}

impl NodeHealth {
    fn is_serious(&self, code: &str) -> bool {
        match code {
            // While the authority is unreachable, clients are served as long as every certificate
            // is valid.
            ACME_FAILED => !self.certified.all(),
            _ => !HARMLESS.contains(&code),
        }
    }
}

#[cfg(test)]
mod tests {
    use alknet_core::SystemClock;
    use alknet_init::control::MachineFacts;
    use alknet_tls::CertificateSource;

    use super::*;

    fn problem(code: &str) -> MachineDiagnostic {
        MachineDiagnostic {
            code: code.to_owned(),
            text: format!("{code} happened"),
            hint: String::new(),
        }
    }

    fn problems(codes: &[&str]) -> Vec<MachineDiagnostic> {
        codes.iter().map(|code| problem(code)).collect()
    }

    /// The health of a node that found `own`, sent `sent_problems` to PID 1, and got `machine` from
    /// it.
    fn condition(own: &[&str], sent_problems: &[&str], machine: &[&str]) -> NodeHealth {
        let own = problems(own);
        let store_problems = NodeDiagnosticSource::default();
        store_problems.get_or_init(|| Box::new(move || own.clone()));
        let facts = MachineFacts {
            problems: problems(machine),
            ..MachineFacts::default()
        };
        NodeHealth {
            own: store_problems,
            facts: Arc::new(ArcSwap::from_pointee(facts)),
            sent_problems: Arc::new(ArcSwap::from_pointee(problems(sent_problems))),
            certified: CertificateHealth {
                names: vec!["a.example".to_owned()],
                store: Arc::default(),
                clock: Arc::new(SystemClock { built_s: 0 }),
            },
        }
    }

    fn said(own: &[&str], sent_problems: &[&str], machine: &[&str]) -> Option<String> {
        condition(own, sent_problems, machine).degraded()
    }

    #[test]
    fn what_the_node_and_what_the_machine_found_counts() {
        assert_eq!(said(&[], &[], &[]), None);
        let files = "tls-cert-reload-failed";
        assert_eq!(said(&[files], &[], &[]).as_deref(), Some(files));
        for code in ["data-full", "data-damaged", "tpm-not-closed"] {
            assert_eq!(said(&[], &[], &[code]).as_deref(), Some(code));
            let both = said(&["import-failed"], &[], &["words-unconfirmed", code]);
            assert_eq!(both.as_deref(), Some(code));
        }
    }

    /// The test writes the codes out: a code that is missing from the list would not be tested.
    #[test]
    fn what_has_time_or_is_the_fault_of_others_does_not() {
        for code in [
            "clock-insane",
            "credential-unused",
            "data-kept",
            "failed-logins",
            "files-not-synced",
            "hub-refuses",
            "import-failed",
            "memory-short",
            "nocloud-ignored",
            "node-key-waits",
            "provisioning-ignored",
            "reset-uncounted",
            "secrets-left",
            "update-available",
            "update-failed",
            "update-not-started",
            "updates-blocked",
            "vault-uncounted",
            "words-unconfirmed",
        ] {
            assert_eq!(said(&[code], &[], &[code]), None);
        }
    }

    /// PID 1 repeats the problems that the node sent it, and these may be over meanwhile.
    #[test]
    fn what_the_node_said_itself_is_not_taken_for_the_machine_s() {
        let store = "identity-store-write";
        assert_eq!(said(&[], &[store], &[store]), None);
        assert_eq!(said(&[store], &[store], &[store]).as_deref(), Some(store));
        let full = said(&[], &[store], &[store, "data-full"]);
        assert_eq!(full.as_deref(), Some("data-full"));
    }

    #[test]
    fn nothing_is_wrong_before_there_is_a_node() {
        let mut early = condition(&[], &[], &["data-full"]);
        early.own = NodeDiagnosticSource::default();
        assert_eq!(early.degraded(), None);
    }

    #[test]
    fn an_authority_that_fails_counts_once_no_valid_certificate_is_served() {
        assert_eq!(said(&[ACME_FAILED], &[], &[]).as_deref(), Some(ACME_FAILED));
        let mut unnamed = condition(&[ACME_FAILED], &[], &[]);
        unnamed.certified.names.clear();
        assert_eq!(unnamed.degraded(), None);

        let names = ["a.example", "b.example"].map(str::to_owned);
        let one = |source, names: &[&str]| CertificateSummary {
            source,
            names: names.iter().map(|&name| name.to_owned()).collect(),
            not_after: 1_000,
        };
        let both = [one(CertificateSource::Acme, &["a.example", "B.example"])];
        assert!(all_served(&names, &both, Some(999)));
        assert!(!all_served(&names, &both, Some(1_000)), "it expired");
        assert!(all_served(&names, &both, None), "who knows");
        let (of_file, of_acme) = (
            one(CertificateSource::File(0), &["b.example"]),
            one(CertificateSource::Acme, &["a.example"]),
        );
        let alone = std::slice::from_ref(&of_acme);
        assert!(!all_served(&names, alone, Some(1)));
        assert!(all_served(&names, &[of_file, of_acme], Some(1)));
        assert!(!all_served(&names, &[], None));
    }
}
