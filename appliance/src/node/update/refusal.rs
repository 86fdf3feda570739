//! The errors of update operations: what PID 1 refuses, and what does not reach it.

use alknet_call::{CallError, ErrorCode};
use serde::Serialize;
use serde_json::json;

use super::download::DownloadError;
use super::init_client::UpdateClientError;
use super::session::{StagingError, StagingOutcome};

/// Refusals of PID 1 that are about who may bring or start this version: its signatures, its age, its place in the order
/// of versions, and what its start needs.
const FORBIDDEN: [&str; 11] = [
    "below-floor",
    "downgrade",
    "expired",
    "left",
    "needs-person",
    "no-keys",
    "other-channel",
    "rollback",
    "signature",
    "threshold",
    "unverified",
];

/// Refusals that are about the bytes of the bundle, or the machine that it is for.
const INVALID: [&str; 7] = [
    "delta",
    "hash",
    "malformed",
    "other-machine",
    "too-large",
    "truncated",
    "unmet-needs",
];

/// Refusals of a channel's delta after which the whole program is taken: the delta does not fit, was damaged on its way, or
/// was left of an earlier release. All others are about the release or the machine.
const ABOUT_DELTA: [&str; 10] = [
    "delta",
    "expired",
    "hash",
    "malformed",
    "other-base",
    "other-library",
    "rollback",
    "signature",
    "threshold",
    "truncated",
];

/// Another request is under way.
const BUSY: &str = "busy";

/// Refusals of a start whose reason may pass without another request for this start.
const MAY_PASS: [&str; 5] = [BUSY, "disk", "locked", "no-slots", "too-often"];

/// Refusals of a start that end once the program is staged again: PID 1 then writes the slot, and what it notes of it.
const ENDED_BY_STAGING: [&str; 3] = ["other-staged", "slot-damaged", "unverified"];

/// A part of PID 1 failed.
const FAILED: &str = "failed";

/// Why a version that the machine has staged by itself does not start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct StartRefusal {
    /// The code of PID 1. `None` if it did not answer.
    pub(super) code: Option<String>,
    pub(super) text: String,
}

impl From<&CallError> for StartRefusal {
    fn from(error: &CallError) -> Self {
        Self {
            code: code_of(error).map(str::to_owned),
            text: error.message.clone(),
        }
    }
}

/// The error of a refusal. All other refusals are about the state of the machine, such as a disk that is full or an
/// update that is under way.
pub(super) fn refused(code: &str, text: &str) -> CallError {
    let kind = if FORBIDDEN.contains(&code) {
        ErrorCode::Forbidden
    } else if INVALID.contains(&code) {
        ErrorCode::InvalidInput
    } else if code == FAILED {
        ErrorCode::Internal
    } else {
        ErrorCode::Conflict
    };
    CallError::new(kind, text).with_details(json!({ "code": code, "text": text }))
}

/// Whether the whole program may be taken where a delta was refused so.
pub(super) fn is_about_delta(error: &CallError) -> bool {
    code_of(error).is_some_and(may_lie_in_delta)
}

/// Whether PID 1 has other work: it says so, or does not answer.
pub(super) fn is_busy(error: &CallError) -> bool {
    match code_of(error) {
        Some(code) => code == BUSY,
        None => matches!(error.code, ErrorCode::Timeout | ErrorCode::Unavailable),
    }
}

/// Whether a start that failed so is tried again if it was planned: PID 1 was busy, did not answer, or lacked something that
/// may come.
pub(super) fn may_pass(error: &CallError) -> bool {
    is_busy(error) || code_of(error).is_some_and(|code| MAY_PASS.contains(&code))
}

/// Whether a start that was refused so may succeed once its program is staged again.
pub(super) fn ends_by_staging(error: &CallError) -> bool {
    code_of(error).is_some_and(may_end_by_staging)
}

/// Whether a start that was refused with this code may succeed once its program is staged again.
pub(crate) fn may_end_by_staging(code: &str) -> bool {
    ENDED_BY_STAGING.contains(&code)
}

/// The code of a refusal.
fn code_of(error: &CallError) -> Option<&str> {
    error.details.as_ref().and_then(|it| it["code"].as_str())
}

/// Whether a refusal with this code may be about the delta alone, and not about its release or the machine.
pub(crate) fn may_lie_in_delta(code: &str) -> bool {
    ABOUT_DELTA.contains(&code)
}

impl From<UpdateClientError> for CallError {
    fn from(error: UpdateClientError) -> Self {
        let text = error.to_string();
        match error {
            // A hub leaves such a worker out.
            UpdateClientError::Absent => {
                Self::unavailable(text).with_details(json!({ "code": "host" }))
            }
            UpdateClientError::Broken => Self::unavailable(text),
            UpdateClientError::Late => Self::new(ErrorCode::Timeout, text),
        }
    }
}

impl From<StagingOutcome> for CallError {
    /// The error of an outcome that is no plan.
    fn from(outcome: StagingOutcome) -> Self {
        match outcome {
            StagingOutcome::Refused { code, text } => refused(&code, &text),
            outcome => Self::new(
                ErrorCode::Conflict,
                StagingError::Ended(Box::new(outcome)).to_string(),
            ),
        }
    }
}

impl From<StagingError> for CallError {
    fn from(error: StagingError) -> Self {
        let text = error.to_string();
        match error {
            StagingError::Busy => {
                Self::new(ErrorCode::Conflict, text).with_details(json!({ "code": "busy" }))
            }
            StagingError::Ended(outcome) => (*outcome).into(),
            StagingError::Init(error) => error.into(),
            StagingError::NoSession => Self::new(ErrorCode::NotFound, text),
            StagingError::Offset(offset) => Self::new(ErrorCode::Conflict, text)
                .with_details(json!({ "code": "offset", "offset": offset })),
            StagingError::Size(_) | StagingError::TooMuch(_) => Self::invalid_input(text),
        }
    }
}

impl From<DownloadError> for CallError {
    fn from(error: DownloadError) -> Self {
        let text = error.to_string();
        let code = match error {
            DownloadError::Address(_) => ErrorCode::InvalidInput,
            _ => ErrorCode::Unavailable,
        };
        Self::new(code, text).with_details(json!({ "code": "download" }))
    }
}

#[cfg(test)]
mod tests {
    use super::super::read::no_channel;
    use super::*;

    #[test]
    fn each_refusal_is_an_error_that_fits() {
        for (code, kind) in [
            ("signature", ErrorCode::Forbidden),
            ("below-floor", ErrorCode::Forbidden),
            ("truncated", ErrorCode::InvalidInput),
            ("full", ErrorCode::Conflict),
            ("failed", ErrorCode::Internal),
            ("a-code-of-a-later-version", ErrorCode::Conflict),
        ] {
            let error = refused(code, "why");
            assert_eq!(error.code, kind, "{code}");
            assert_eq!(error.message, "why");
            let details = error.details.expect("details");
            assert_eq!(*details, json!({ "code": code, "text": "why" }));
        }
    }

    #[test]
    fn what_a_delta_is_refused_for_is_no_reason_to_refuse_the_program() {
        for (code, expected) in [
            ("delta", true),
            ("other-base", true),
            ("other-library", true),
            ("hash", true),
            ("rollback", true),
            ("signature", true),
            ("other-machine", false),
            ("unmet-needs", false),
            ("left", false),
            ("full", false),
        ] {
            let error = refused(code, "why");
            assert_eq!(is_about_delta(&error), expected, "{code}");
        }
        assert!(!is_about_delta(&CallError::invalid_input("why")));
    }

    #[test]
    fn a_planned_start_is_tried_again_after_a_reason_that_may_pass() {
        for (code, expected) in [
            ("busy", true),
            ("locked", true),
            ("no-slots", true),
            ("below-floor", false),
            ("failed", false),
            ("not-staged", false),
            ("other-staged", false),
            ("unverified", false),
        ] {
            assert_eq!(may_pass(&refused(code, "why")), expected, "{code}");
            assert_eq!(is_busy(&refused(code, "why")), code == "busy", "{code}");
        }
        for (error, expected) in [
            (UpdateClientError::Broken, true),
            (UpdateClientError::Late, true),
            (UpdateClientError::Absent, false),
        ] {
            assert_eq!(may_pass(&error.into()), expected, "{error}");
        }
        assert!(!may_pass(&super::super::read::other_kind()));
    }

    /// The page has each refusal beside its error. A test of PID 1 compares the page with the codes that PID 1 has, so a
    /// list of the node has no code that PID 1 does not know.
    #[test]
    fn the_page_has_the_errors_of_refusals() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/update.md");
        let page = std::fs::read_to_string(page).expect("the page exists");
        let section = page
            .split("\n## ")
            .find(|it| it.starts_with("What the machine refuses\n"));
        let rows = section
            .expect("the section")
            .lines()
            .filter(|row| row.starts_with("| `"));
        let mut seen = Vec::new();
        for row in rows {
            let cells: Vec<_> = row
                .split('|')
                .map(|cell| cell.trim().trim_matches('`'))
                .collect();
            let (code, error) = (cells[1], cells[2]);
            assert_eq!(refused(code, "").code.name(), error, "{code}");
            seen.push(code.to_owned());
        }
        let known = FORBIDDEN.iter().chain(&INVALID).chain(&ABOUT_DELTA);
        let of_starts = MAY_PASS.iter().chain(&ENDED_BY_STAGING);
        let known = known.chain(of_starts).chain([&FAILED]);
        for code in known {
            assert!(
                seen.iter().any(|it| it == code),
                "{code} is not on the page"
            );
        }
        assert!(seen.is_sorted() && seen.len() > 20, "{seen:?}");
    }

    /// The page has the errors of the node itself beside their codes.
    #[test]
    fn the_page_has_the_errors_of_the_node() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/update.md");
        let page = std::fs::read_to_string(page).expect("the page exists");
        for error in [
            CallError::from(UpdateClientError::Absent),
            CallError::from(StagingError::Offset(7)),
            no_channel(),
        ] {
            let details = error.details.expect("details");
            let code = details["code"].as_str().expect("a text");
            let row = format!("| `{code}` | `{}` |", error.code.name());
            assert!(page.contains(&row), "{row}");
        }
    }

    #[test]
    fn a_wrong_offset_names_the_right_one() {
        let error = CallError::from(StagingError::Offset(7));
        assert_eq!(error.code, ErrorCode::Conflict);
        assert_eq!(error.details.expect("details")["offset"], 7);
        let host = CallError::from(UpdateClientError::Absent);
        assert_eq!(host.code, ErrorCode::Unavailable);
        assert!(
            host.message.contains("A node on a host"),
            "{}",
            host.message
        );
    }
}
