//! The errors of update operations: what PID 1 refuses, and what does not reach it.

use alknet_call::{CallError, ErrorCode};
use alknet_init::control::{RefusalCode, RefusalKind};
use serde::Serialize;
use serde_json::json;

use super::download::DownloadError;
use super::init_client::UpdateClientError;
use super::session::{StagingError, StagingOutcome};

/// Code of the error that PID 1 did not say in time what it made of a bundle. It is no `TIMEOUT`, after which a sender would
/// send its last piece again.
pub(super) const UNANSWERED: &str = "unanswered";

/// Refusals of a channel's delta after which the whole program is taken: the delta does not fit, was damaged on its way, or
/// was left of an earlier release. All others are about the release or the machine.
const ABOUT_DELTA: [RefusalCode; 10] = [
    RefusalCode::Delta,
    RefusalCode::Expired,
    RefusalCode::Hash,
    RefusalCode::Malformed,
    RefusalCode::OtherBase,
    RefusalCode::OtherLibrary,
    RefusalCode::Rollback,
    RefusalCode::Signature,
    RefusalCode::Threshold,
    RefusalCode::Truncated,
];

/// Refusals that are no judgement about a bundle: PID 1 has other work. It gives a bundle up for a person at the console.
const OTHER_WORK: [RefusalCode; 2] = [RefusalCode::Aborted, RefusalCode::Busy];

/// Refusals of a start whose reason may pass without another request for this start.
const MAY_PASS: [RefusalCode; 5] = [
    RefusalCode::Busy,
    RefusalCode::Disk,
    RefusalCode::Locked,
    RefusalCode::NoSlots,
    RefusalCode::TooOften,
];

/// Refusals of a start that end once the program is staged again: PID 1 then writes the slot, and what it notes of it.
const ENDED_BY_STAGING: [RefusalCode; 3] = [
    RefusalCode::OtherStaged,
    RefusalCode::SlotDamaged,
    RefusalCode::Unverified,
];

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

/// The error of a refusal. That of a code of another version is about the state of the machine, as most are.
pub(super) fn refused(code: &str, text: &str) -> CallError {
    let kind = RefusalCode::from_name(code).map(RefusalCode::kind);
    let error = match kind.unwrap_or(RefusalKind::Conflict) {
        RefusalKind::Conflict => ErrorCode::Conflict,
        RefusalKind::Forbidden => ErrorCode::Forbidden,
        RefusalKind::Internal => ErrorCode::Internal,
        RefusalKind::InvalidInput => ErrorCode::InvalidInput,
    };
    CallError::new(error, text).with_details(json!({ "code": code, "text": text }))
}

/// Whether the whole program may be taken where a delta was refused so.
pub(super) fn is_about_delta(error: &CallError) -> bool {
    code_of(error).is_some_and(may_lie_in_delta)
}

/// Whether PID 1 has other work: it says so, gives a bundle up for another user of the media, or does not answer.
pub(super) fn is_busy(error: &CallError) -> bool {
    match code_of(error) {
        Some(code) => code == UNANSWERED || is_among(&OTHER_WORK, code),
        None => matches!(error.code, ErrorCode::Timeout | ErrorCode::Unavailable),
    }
}

/// Whether PID 1 did not say in time what it made of a bundle that it had got.
pub(super) fn is_unanswered(error: &CallError) -> bool {
    code_of(error) == Some(UNANSWERED)
}

/// Whether a start that failed so is tried again if it was planned: PID 1 was busy, did not answer, or lacked something that
/// may come.
pub(super) fn may_pass(error: &CallError) -> bool {
    is_busy(error) || code_of(error).is_some_and(|code| is_among(&MAY_PASS, code))
}

/// Whether a version waits for the caller that staged it, so that the machine itself may not put another one in its place.
pub(super) fn waits_for_other(error: &CallError) -> bool {
    code_of(error) == Some(RefusalCode::OtherStaged.name())
}

/// Whether a start that was refused so may succeed once its program is staged again.
pub(super) fn ends_by_staging(error: &CallError) -> bool {
    code_of(error).is_some_and(may_end_by_staging)
}

/// Whether a start that was refused with this code may succeed once its program is staged again.
pub(crate) fn may_end_by_staging(code: &str) -> bool {
    is_among(&ENDED_BY_STAGING, code)
}

/// The code of a refusal.
fn code_of(error: &CallError) -> Option<&str> {
    error.details.as_ref().and_then(|it| it["code"].as_str())
}

/// Whether a refusal with this code may be about the delta alone, and not about its release or the machine.
pub(crate) fn may_lie_in_delta(code: &str) -> bool {
    is_among(&ABOUT_DELTA, code)
}

fn is_among(codes: &[RefusalCode], code: &str) -> bool {
    codes.iter().any(|it| it.name() == code)
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
            outcome => {
                let is_unanswered = matches!(outcome, StagingOutcome::Unanswered(_));
                let text = StagingError::Ended(Box::new(outcome)).to_string();
                let error = Self::new(ErrorCode::Conflict, text);
                match is_unanswered {
                    true => error.with_details(json!({ "code": UNANSWERED })),
                    false => error,
                }
            }
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
        // A bundle that PID 1 gave up for a person at the console was not judged. Its sender alone makes it silent.
        assert!(is_busy(&refused("aborted", "why")));
        assert!(!is_busy(&refused("silent", "why")));
        for (error, expected) in [
            (UpdateClientError::Broken, true),
            (UpdateClientError::Late, true),
            (UpdateClientError::Absent, false),
        ] {
            assert_eq!(may_pass(&error.into()), expected, "{error}");
        }
        let why = || "why".to_owned();
        for (outcome, expected) in [
            (StagingOutcome::Unanswered(why()), true),
            (StagingOutcome::GivenUp(why()), false),
        ] {
            assert_eq!(is_busy(&outcome.into()), expected);
        }
        assert!(!may_pass(&super::super::read::other_kind()));
    }

    /// The page has the error of each code, and a test of PID 1 compares the page with the list of codes.
    #[test]
    fn each_code_has_the_error_of_its_row() {
        for code in RefusalCode::ALL {
            let error = refused(code.name(), "why");
            assert_eq!(error.code.name(), code.kind().name(), "{}", code.name());
        }
    }

    /// What a machine does after a refused start follows from the code, and the page has a table of it.
    #[test]
    fn the_page_has_what_follows_from_a_refused_start() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/update-inside.md");
        let page = std::fs::read_to_string(page).expect("the page exists");
        let mut sections = page.split("\n### ");
        let section = sections.find(|it| it.starts_with("A start that PID 1 refuses\n"));
        let rows = section.expect("the section").lines();
        let rows = rows.filter(|row| row.starts_with("| `"));
        // The codes are quoted in the first column.
        let codes = |row: &str| -> Vec<String> {
            let cell = row.split('|').nth(1).expect("a column");
            let quoted = cell.split('`').skip(1).step_by(2);
            quoted.map(str::to_owned).collect()
        };
        let rows: Vec<_> = rows.map(codes).collect();
        let [staged_again, busy, pause] = rows.as_slice() else {
            panic!("three rows name codes: {rows:?}");
        };
        let names = |codes: &[RefusalCode]| -> Vec<_> {
            codes.iter().map(|code| code.name().to_owned()).collect()
        };
        assert_eq!(*staged_again, names(&ENDED_BY_STAGING));
        let may_pass = [busy.as_slice(), pause.as_slice()].concat();
        assert_eq!(may_pass, names(&MAY_PASS));
    }

    /// The page has the errors of the node itself beside their codes.
    #[test]
    fn the_page_has_the_errors_of_the_node() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/update.md");
        let page = std::fs::read_to_string(page).expect("the page exists");
        for error in [
            CallError::from(UpdateClientError::Absent),
            CallError::from(StagingError::Offset(7)),
            CallError::from(StagingOutcome::Unanswered(String::new())),
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
