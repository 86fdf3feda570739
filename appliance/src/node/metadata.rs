//! What the helper of PID 1 does at a cloud: it asks the metadata service for the node's document,
//! and reports to Azure that the machine is ready.

use std::time::Duration;

use alknet_init::helper_task::{FetchedDocument, HelperOutcome, HelperRefusal};
use alknet_metadata::{MetadataAccess, MetadataError, fetch, report_ready};
use alknet_provisioning::MetadataService;

/// Asks the service with this key, for at most `ms` milliseconds.
pub(super) fn fetch_document(service: &str, interface: &str, ms: u64) -> HelperOutcome {
    let Some(service) = MetadataService::from_key(service) else {
        return HelperOutcome::refused(HelperRefusal::Denied, "PID 1 named no service");
    };
    match fetch(service, &access(interface, ms)) {
        Ok(document) => HelperOutcome::Fetched {
            document: document.map(FetchedDocument::new),
        },
        Err(error) => refusal(&error),
    }
}

/// Reports that the machine is ready, within `ms` milliseconds.
pub(super) fn report(interface: &str, ms: u64) -> HelperOutcome {
    match report_ready(&access(interface, ms)) {
        Ok(()) => HelperOutcome::Reported,
        Err(error) => refusal(&error),
    }
}

fn access(interface: &str, ms: u64) -> MetadataAccess {
    MetadataAccess::over(interface, Duration::from_millis(ms))
}

fn refusal(error: &MetadataError) -> HelperOutcome {
    let kind = match error.is_final() {
        true => HelperRefusal::Denied,
        false => HelperRefusal::Unreachable,
    };
    HelperOutcome::refused(kind, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_that_no_pid_1_gives_is_refused() {
        let outcome = fetch_document("elsewhere", "lo", 1);
        let refused = HelperOutcome::refused(HelperRefusal::Denied, "PID 1 named no service");
        assert_eq!(outcome, refused);
    }

    #[test]
    fn only_content_that_stays_the_same_ends_the_questions() {
        for (error, expected) in [
            (
                MetadataError::NotADocument("a script"),
                HelperRefusal::Denied,
            ),
            (MetadataError::Time, HelperRefusal::Unreachable),
            (MetadataError::Status(500), HelperRefusal::Unreachable),
        ] {
            match refusal(&error) {
                HelperOutcome::Refused { refusal, .. } => assert_eq!(refusal, expected),
                other => panic!("{other:?}"),
            }
        }
    }
}
