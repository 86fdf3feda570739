//! What the console says about the version that runs and its boot slots.

use crate::control::UpdateFacts;

/// The lines of the field `Version`. `None` on a machine without boot slots.
pub(super) fn version_lines(facts: &UpdateFacts) -> Option<Vec<String>> {
    let slot = facts.slot.as_deref()?;
    let is_trial = !facts.gate.is_empty();
    let state = if is_trial { ", on trial" } else { "" };
    let mut lines = vec![format!("{}, boot slot {slot}{state}", facts.version)];
    if is_trial {
        lines.push(format!("it waits for {}", facts.gate.join("; ")));
    }
    let other = facts.other_version.as_deref().unwrap_or("another version");
    match facts.state.as_str() {
        "staged" => lines.push(format!("{other} is staged: 'alknet update NODE' starts it")),
        "pending" => lines.push(format!("{other} starts next, on trial")),
        _ => {}
    }
    if let Some((taken, announced)) = facts.staging {
        let percent = taken.saturating_mul(100) / announced.max(1);
        lines.push(format!("an update arrives: {}%", percent.min(100)));
    }
    if let Some((written, whole)) = facts.writing {
        let percent = written.saturating_mul(100) / whole.max(1);
        lines.push(format!("its program is written: {}%", percent.min(100)));
    }
    if let Some(last) = facts
        .last
        .as_ref()
        .filter(|last| last.outcome != "confirmed")
    {
        let text = match last.outcome.as_str() {
            "failed" => format!("{} failed its trial: {}", last.version, last.reason),
            _ => format!("{} was rolled back", last.version),
        };
        lines.push(text);
    }
    Some(lines)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::UpdateOutcome;

    fn facts(state: &str) -> UpdateFacts {
        UpdateFacts {
            state: state.to_owned(),
            version: "1.0.0".to_owned(),
            slot: Some("a".to_owned()),
            other_version: Some("1.1.0".to_owned()),
            ..UpdateFacts::default()
        }
    }

    #[test]
    fn a_machine_without_boot_slots_has_no_line() {
        assert_eq!(version_lines(&UpdateFacts::default()), None);
    }

    #[test]
    fn each_state_of_an_update_is_a_line() {
        let lines = |facts: &UpdateFacts| version_lines(facts).expect("it has slots").join("|");
        assert_eq!(lines(&facts("good")), "1.0.0, boot slot a");
        assert_eq!(
            lines(&facts("staged")),
            "1.0.0, boot slot a|1.1.0 is staged: 'alknet update NODE' starts it"
        );
        assert_eq!(
            lines(&facts("pending")),
            "1.0.0, boot slot a|1.1.0 starts next, on trial"
        );
        let mut trial = facts("trial");
        trial.gate = vec!["the vault".to_owned(), "the node".to_owned()];
        assert_eq!(
            lines(&trial),
            "1.0.0, boot slot a, on trial|it waits for the vault; the node"
        );
        let mut staging = facts("idle");
        staging.staging = Some((50, 200));
        assert_eq!(lines(&staging), "1.0.0, boot slot a|an update arrives: 25%");
        staging.staging = Some((0, 0));
        assert!(lines(&staging).ends_with(": 0%"));
        staging.writing = Some((30, 40));
        assert!(lines(&staging).ends_with("|its program is written: 75%"));
    }

    #[test]
    fn the_end_of_the_last_update_is_named_unless_it_was_good() {
        let mut ended = facts("failed");
        for (outcome, line) in [
            ("failed", Some("1.1.0 failed its trial: it stopped")),
            ("rolled-back", Some("1.1.0 was rolled back")),
            ("confirmed", None),
        ] {
            ended.last = Some(UpdateOutcome {
                version: "1.1.0".to_owned(),
                outcome: outcome.to_owned(),
                reason: "it stopped".to_owned(),
                ..UpdateOutcome::default()
            });
            let lines = version_lines(&ended).expect("it has slots");
            assert_eq!(lines.get(1).map(String::as_str), line, "{outcome}");
        }
    }
}
