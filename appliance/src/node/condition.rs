//! How the node is, for `/healthz`: red for what is wrong with this node, or with the machine under it, and keeps it
//! from what it is there for.

use std::sync::{Arc, OnceLock};

use alknet_core::Clock;
use alknet_http::HealthSource;
use alknet_init::control::MachineDiagnostic;
use alknet_tls::{ACME_FAILED, CLOCK_INSANE, CertificateStore, CertificateSummary};
use arc_swap::ArcSwap;

use super::FAILED_LOGINS;
use super::facts::SharedFacts;
use super::join::HUB_REFUSES;
use super::key_rotation::NODE_KEY_WAITS;
use super::memory::MEMORY_SHORT;

/// Codes of problems that do not make a node degraded: it serves, and its administrator has something to do, here or at
/// another node or server.
const HARMLESS: [&str; 16] = [
    CLOCK_INSANE,
    FAILED_LOGINS,
    NODE_KEY_WAITS,
    HUB_REFUSES,
    MEMORY_SHORT,
    "credential-missing",
    "credential-unused",
    "import-failed",
    "mcp-tool-unknown",
    "nocloud-ignored",
    "provisioning-ignored",
    "reset-uncounted",
    "scope-unknown",
    "secrets-left",
    "vault-uncounted",
    "words-unconfirmed",
];

/// What is wrong, as the node sees it, once there is a node.
pub(crate) type NodeProblemSource =
    Arc<OnceLock<Box<dyn Fn() -> Vec<MachineDiagnostic> + Send + Sync>>>;

/// The node's problems as PID 1 last heard them. PID 1 repeats them beside its own until the node sends others.
pub(crate) type InitProblems = Arc<ArcSwap<Vec<MachineDiagnostic>>>;

/// What `/healthz` is answered by.
pub(crate) struct NodeHealth {
    /// What the node found.
    pub(crate) own: NodeProblemSource,
    /// What PID 1 found.
    pub(crate) facts: SharedFacts,
    pub(crate) told: InitProblems,
    pub(crate) certified: CertificateHealth,
}

/// The names that certificates are ordered for, and what is served for them.
pub(crate) struct CertificateHealth {
    pub(crate) names: Vec<String>,
    pub(crate) store: Arc<CertificateStore>,
    pub(crate) clock: Arc<dyn Clock>,
}

impl CertificateHealth {
    /// Whether each name has a certificate whose time is not over.
    fn all(&self) -> bool {
        all_served(&self.names, &self.store.list(), self.clock.now_s())
    }
}

fn all_served(names: &[String], served: &[CertificateSummary], now_s: Option<u64>) -> bool {
    // A clock that is wrong says nothing about the end of one.
    let is_valid = |one: &&CertificateSummary| now_s.is_none_or(|now| now < one.not_after);
    let is_served = |name: &String| {
        let mut valid = served.iter().filter(is_valid);
        valid.any(|one| one.names.iter().any(|own| own.eq_ignore_ascii_case(name)))
    };
    names.iter().all(is_served)
}

impl HealthSource for NodeHealth {
    fn degraded(&self) -> Option<String> {
        let own = self.own.get().map(|problems| problems())?;
        let facts = self.facts.load();
        let told = self.told.load();
        let machine = facts.problems.iter().filter(|one| !told.contains(one));
        let serious = own
            .iter()
            .chain(machine)
            .find(|one| self.is_serious(&one.code))?;
        // The code alone, without its text: unknown peers may ask as well.
        Some(serious.code.clone())
    }
}

impl NodeHealth {
    fn is_serious(&self, code: &str) -> bool {
        match code {
            // An authority that is away takes nothing from those who are served.
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

    /// Of a node that found `own`, told PID 1 `told`, and heard of `machine`.
    fn condition(own: &[&str], told: &[&str], machine: &[&str]) -> NodeHealth {
        let own = problems(own);
        let store_problems = NodeProblemSource::default();
        store_problems.get_or_init(|| Box::new(move || own.clone()));
        let facts = MachineFacts {
            problems: problems(machine),
            ..MachineFacts::default()
        };
        NodeHealth {
            own: store_problems,
            facts: Arc::new(ArcSwap::from_pointee(facts)),
            told: Arc::new(ArcSwap::from_pointee(problems(told))),
            certified: CertificateHealth {
                names: vec!["a.example".to_owned()],
                store: Arc::default(),
                clock: Arc::new(SystemClock { built_s: 0 }),
            },
        }
    }

    fn said(own: &[&str], told: &[&str], machine: &[&str]) -> Option<String> {
        condition(own, told, machine).degraded()
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

    /// The codes are written out: a code that is missing from the list would not be looked at.
    #[test]
    fn what_has_time_or_is_the_fault_of_others_does_not() {
        for code in [
            "clock-insane",
            "credential-unused",
            "failed-logins",
            "hub-refuses",
            "import-failed",
            "memory-short",
            "nocloud-ignored",
            "node-key-waits",
            "provisioning-ignored",
            "reset-uncounted",
            "secrets-left",
            "vault-uncounted",
            "words-unconfirmed",
        ] {
            assert_eq!(said(&[code], &[], &[code]), None);
        }
    }

    /// PID 1 repeats the problems that the node sent it, which may be over meanwhile.
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
        early.own = NodeProblemSource::default();
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
