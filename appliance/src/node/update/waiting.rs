//! The version that waits in the boot slot, by what PID 1 says of it.

use alknet_init::control::{MachineFacts, UpdateFacts};

use super::auto::BY;
use super::update_notes::is_stateless;

/// Whether the machine has staged by itself what waits.
pub(super) fn is_own(facts: &UpdateFacts) -> bool {
    let stager = facts.stager.as_ref();
    facts.state == "staged" && stager.is_some_and(|stager| stager.by == BY)
}

/// The version that waits: as PID 1 has staged it, or as the slot names it. The slot of a damaged program names no version,
/// or another one.
pub(super) fn waiting_version(facts: &UpdateFacts) -> Option<&str> {
    let staged = facts.staged_version.as_deref();
    let staged = staged.filter(|_| facts.state == "staged");
    staged.or(facts.other_version.as_deref())
}

/// Whether what waits is of a caller that may not start versions, or such that PID 1 does not start it: a stateless machine
/// forgets at its start what it has verified, and who staged it.
pub(super) fn is_replaceable(facts: &MachineFacts) -> bool {
    let update = &facts.update;
    match &update.stager {
        Some(stager) => stager.limited,
        None => is_stateless(facts) && update.state == "staged" && update.other_sha256.is_none(),
    }
}

#[cfg(test)]
mod tests {
    use alknet_init::control::UpdateStager;

    use super::*;

    fn facts(state: &str, version: Option<&str>, by: Option<&str>) -> UpdateFacts {
        UpdateFacts {
            state: state.to_owned(),
            other_version: version.map(str::to_owned),
            staged_version: by.map(|_| "1.1.0".to_owned()),
            stager: by.map(|by| UpdateStager {
                by: by.to_owned(),
                limited: by == "eve",
            }),
            ..UpdateFacts::default()
        }
    }

    /// A byte of the program's head has changed, so that it names another version, or none.
    #[test]
    fn a_damaged_program_is_still_the_one_that_the_node_has_staged() {
        for (state, version, by, expected) in [
            ("staged", Some("1.1.0"), Some(BY), (true, Some("1.1.0"))),
            ("staged", None, Some(BY), (true, Some("1.1.0"))),
            ("staged", Some("1.9.0"), Some(BY), (true, Some("1.1.0"))),
            ("staged", None, Some("eve"), (false, Some("1.1.0"))),
            ("staged", Some("1.2.0"), None, (false, Some("1.2.0"))),
            ("idle", None, None, (false, None)),
        ] {
            let facts = facts(state, version, by);
            let found = (is_own(&facts), waiting_version(&facts));
            assert_eq!(found, expected, "{facts:?}");
        }
    }

    #[test]
    fn a_version_of_an_unknown_caller_is_replaced_if_pid_1_would_not_start_it() {
        for (mode, sha256, by, expected) in [
            ("volatile", None, None, true),
            ("volatile", Some("a1"), None, false),
            ("mounted", None, None, false),
            ("volatile", None, Some("ada"), false),
            ("mounted", Some("a1"), Some("eve"), true),
        ] {
            let mut facts = MachineFacts {
                update: facts("staged", Some("1.1.0"), by),
                ..MachineFacts::default()
            };
            facts.data.mode = mode.to_owned();
            facts.update.other_sha256 = sha256.map(str::to_owned);
            assert_eq!(is_replaceable(&facts), expected, "{mode} {sha256:?} {by:?}");
        }
    }
}
