//! The errors of the operations: those of the store, with the codes of the call protocol.

use alknet_call::{CallError, ErrorCode, ErrorDef};
use alknet_core::PeerId;
use alknet_store::{ContentHash, InvalidPath, MergeConflict, StoreError, StoreErrorCode};
use serde_json::{Value, json};
use thiserror::Error;

use crate::limits::{CONFLICTS_SHOWN_BYTES, CONFLICTS_SHOWN_MAX};
use crate::rights::FsRight;

/// How long a caller waits before it asks a busy store again, in milliseconds.
const BUSY_RETRY_MS: u64 = 100;

/// Error code of `fs/repair`.
pub(crate) const NO_COPY: &str = "NO_COPY";

/// Why an operation refuses a call.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FsError {
    /// An error of the call protocol.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The caller sees the bucket, and lacks this right in it.
    #[error("the caller may not {0} the bucket; it needs the scope '{prefix}BUCKET'", prefix = .0.prefix())]
    Forbidden(FsRight),
    /// The caller lacks this right for all buckets.
    #[error("the caller may not {0} every bucket; it needs the scope '{prefix}*'", prefix = .0.prefix())]
    ForbiddenEverywhere(FsRight),
    /// The input has the form of the schema, and makes no sense.
    #[error("{0}")]
    Input(String),
    /// A repair found no good copy of the file of names.
    #[error(
        "no copy of the file of names is good; {rejected} are damaged; begin_again makes an empty store"
    )]
    NoCopy {
        /// Copies that are damaged.
        rejected: usize,
    },
    /// The store refuses the call.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A content is on peers only, and none of those that were asked sent it.
    #[error("the content {hash} is not on this node")]
    Unavailable {
        /// The content.
        hash: ContentHash,
        /// The peers, each with what it did. Callers without a right to their names get these from no conversion.
        tried: Vec<(PeerId, &'static str)>,
    },
    /// The store is not open.
    #[error("the files of this node are not served at present; its problems in node/info say why")]
    Unserved,
}

impl FsError {
    /// An input that makes no sense, with one line that says why.
    pub(crate) fn input(text: impl Into<String>) -> Self {
        Self::Input(text.into())
    }

    /// What the log says of it: the kind of the error, and no name of a file.
    pub(crate) fn logged(&self) -> String {
        match self {
            Self::Store(error) => logged_error(error),
            Self::Call(error) => error.code.name().to_owned(),
            // The text may have what the caller sent.
            Self::Input(_) => "an input makes no sense".to_owned(),
            // As of the same error of the store: its hash says which file it is.
            Self::Unavailable { .. } => StoreErrorCode::ContentUnavailable.name().to_owned(),
            Self::Forbidden(_)
            | Self::ForbiddenEverywhere(_)
            | Self::NoCopy { .. }
            | Self::Unserved => self.to_string(),
        }
    }

    /// Whether a content is on peers only.
    pub(crate) const fn is_unavailable(&self) -> bool {
        matches!(
            self,
            Self::Store(StoreError::ContentUnavailable { .. }) | Self::Unavailable { .. }
        )
    }

    /// Whether a content is on peers only, or damaged or lost here, so that a peer may send it.
    pub(crate) const fn lacks_content(&self) -> bool {
        matches!(self, Self::Store(error) if is_lack_of_content(error))
    }
}

/// The same of an error of the store.
pub(crate) const fn is_lack_of_content(error: &StoreError) -> bool {
    matches!(
        error,
        StoreError::ContentUnavailable { .. } | StoreError::ContentMissing { .. }
    )
}

impl From<InvalidPath> for FsError {
    fn from(invalid: InvalidPath) -> Self {
        Self::Store(invalid.into())
    }
}

impl From<FsError> for CallError {
    fn from(error: FsError) -> Self {
        let text = error.to_string();
        match error {
            FsError::Call(error) => error,
            FsError::Forbidden(_) | FsError::ForbiddenEverywhere(_) => {
                Self::new(ErrorCode::Forbidden, text)
            }
            FsError::Input(_) => Self::invalid_input(text),
            FsError::NoCopy { rejected } => {
                Self::operation(NO_COPY, text).with_details(json!({ "rejected": rejected }))
            }
            FsError::Store(error) => of_store(&error),
            FsError::Unavailable { hash, tried } => of_unavailable(hash, &tried, false),
            FsError::Unserved => Self::unavailable(text),
        }
    }
}

/// The code on the wire: three codes of the store are the protocol's own, and the others are declared in upper case.
pub(crate) fn wire_code(code: StoreErrorCode) -> ErrorCode {
    match code {
        StoreErrorCode::NotFound => ErrorCode::NotFound,
        StoreErrorCode::Denied => ErrorCode::Forbidden,
        StoreErrorCode::Conflict => ErrorCode::Conflict,
        StoreErrorCode::Internal => ErrorCode::Internal,
        code => ErrorCode::from_name(&code.name().to_ascii_uppercase()),
    }
}

/// The declarations of those codes that are not the protocol's own.
pub(crate) fn declared(codes: &[StoreErrorCode]) -> Vec<ErrorDef> {
    let own = codes.iter().copied();
    // The registry refuses an operation that declares a code of the protocol.
    let own = own.filter(|code| ErrorCode::may_declare(wire_code(*code).name()));
    own.map(|code| ErrorDef {
        code: wire_code(code).name().to_owned(),
        description: description(code).to_owned(),
        schema: json!({ "type": "object" }),
        http_status: Some(code.http_status()),
    })
    .collect()
}

const fn description(code: StoreErrorCode) -> &'static str {
    match code {
        StoreErrorCode::Busy => "The store has too much to do; try again.",
        StoreErrorCode::ContentMissing => {
            "The content is damaged or lost; store it again, or fetch it from a peer."
        }
        StoreErrorCode::ContentUnavailable => {
            "The content is on peers only, and none sends it: details.tried has what each did."
        }
        StoreErrorCode::Exists => "The name is taken; details.object says by what.",
        StoreErrorCode::Gap => {
            "Events behind the cursor are gone: list again, then go on behind details.last."
        }
        StoreErrorCode::InvalidPath => "A path or a name breaks the rule in details.rule.",
        StoreErrorCode::IsDir => "The entry is a directory.",
        StoreErrorCode::NoSpace => "The disk is full; deletions are still taken.",
        StoreErrorCode::NotDir => "A component of the path is not a directory.",
        StoreErrorCode::NotEmpty => {
            "The directory has entries, or the branch has children or snapshots."
        }
        StoreErrorCode::QuotaExceeded => {
            "A quota is used up: details has resource, limit and used."
        }
        StoreErrorCode::ReadOnly => "The bucket, the branch or the version takes no changes.",
        StoreErrorCode::TooLarge => "The request is above details.limit.",
        _ => "The store refuses the call.",
    }
}

/// What the log says of an error of the store: why the store failed, and of all other errors the code alone, because the
/// text of some has a path.
pub(crate) fn logged_error(error: &StoreError) -> String {
    match error {
        // What the system and the database say is about the files of the store.
        StoreError::ContentFolder(_)
        | StoreError::ContentMissing { .. }
        | StoreError::Damaged(_)
        | StoreError::Database(_)
        | StoreError::FileSystem(_) => error.to_string(),
        // The text is that of a panic, which may have anything. The record of the panic itself says where it was.
        StoreError::Panicked(_) => "a job of the store panicked".to_owned(),
        other => other.code().name().to_owned(),
    }
}

fn of_store(error: &StoreError) -> CallError {
    let code = error.code();
    let wire = wire_code(code);
    if code == StoreErrorCode::Internal {
        // The text may have paths of this node and words of the database, which are for the administrator.
        tracing::error!("the store of files failed: {}", logged_error(error));
        return CallError::new(
            wire,
            "the store of files failed; the log of the node says how",
        );
    }
    let mut call = CallError::new(wire, error.to_string());
    if let Some(details) = details(error) {
        call = call.with_details(details);
    }
    match code {
        StoreErrorCode::Busy => CallError {
            retryable: true,
            ..call.with_retry_after_ms(BUSY_RETRY_MS)
        },
        // A peer that has the content may come back.
        StoreErrorCode::ContentUnavailable => CallError {
            retryable: true,
            ..call
        },
        _ => call,
    }
}

/// The error of a content that none of these peers sent, with what each of them did. Their names are among the details only
/// if the caller exchanges contents with them.
pub(crate) fn of_unavailable(
    hash: ContentHash,
    tried: &[(PeerId, &'static str)],
    has_names: bool,
) -> CallError {
    let shown = tried.iter().map(|(peer, outcome)| match has_names {
        true => json!({ "peer": peer.as_str(), "outcome": outcome }),
        false => json!({ "outcome": outcome }),
    });
    let shown: Vec<_> = shown.collect();
    let details = json!({ "hash": hash.to_string(), "tried": shown });
    of_store(&StoreError::ContentUnavailable { hash }).with_details(details)
}

/// Facts for programs.
fn details(error: &StoreError) -> Option<Value> {
    Some(match error {
        StoreError::NotFound(object) | StoreError::Exists(object) => {
            let object = object.to_string();
            // Programs compare the noun alone.
            json!({ "object": object.strip_prefix("the ").unwrap_or(&object) })
        }
        StoreError::NotDirectory { path }
        | StoreError::IsDirectory { path }
        | StoreError::NotEmpty { path } => json!({ "path": path }),
        StoreError::BranchInUse {
            children,
            snapshots,
        } => json!({ "children": children, "snapshots": snapshots }),
        StoreError::PreconditionFailed { current } => json!({
            "reason": "precondition",
            "hash": current.map(|hash| hash.to_string()),
        }),
        StoreError::MergeConflicts { total, conflicts } => json!({
            "reason": "merge",
            "total": total,
            "conflicts": shown_conflicts(conflicts),
        }),
        StoreError::SizeMismatch { known, given } => {
            json!({ "reason": "size", "known": known, "given": given })
        }
        StoreError::LeaseLost => json!({ "reason": "lease" }),
        StoreError::Leased { until_ms } => json!({ "reason": "leased", "until_ms": until_ms }),
        StoreError::Locked { path } => json!({ "reason": "locked", "path": path }),
        StoreError::QuotaExceeded {
            resource,
            limit,
            used,
        } => json!({ "resource": resource.to_string(), "limit": limit, "used": used }),
        StoreError::ContentMissing { hash } => json!({ "hash": hash.to_string() }),
        // The store itself asks no peer.
        StoreError::ContentUnavailable { hash } => json!({ "hash": hash.to_string(), "tried": [] }),
        StoreError::TooLarge { unit, limit } => json!({ "unit": unit, "limit": limit }),
        StoreError::InvalidPath(invalid) => json!({ "rule": invalid.rule.name() }),
        StoreError::EventGap { pruned, last } => json!({ "pruned": pruned, "last": last }),
        _ => return None,
    })
}

/// The first conflicts, as many as an error can have.
pub(crate) fn shown_conflicts(conflicts: &[MergeConflict]) -> Vec<Value> {
    let mut bytes = 0;
    let first = conflicts.iter().take(CONFLICTS_SHOWN_MAX);
    // A path has up to 4 KiB, so that the number of rows alone would not bound the answer.
    let first = first.take_while(|conflict| {
        bytes += conflict.path.as_str().len();
        bytes <= CONFLICTS_SHOWN_BYTES
    });
    first
        .map(|it| json!({ "path": it.path.as_str(), "kind": it.kind.name() }))
        .collect()
}

#[cfg(test)]
mod tests {
    use alknet_store::{PathRule, StoreObject};

    use super::*;

    /// The table of the brief.
    #[test]
    fn codes_are_in_upper_case_with_the_status_of_the_table() {
        let all = [
            (StoreErrorCode::Exists, "EXISTS", 409),
            (StoreErrorCode::NotDir, "NOT_DIR", 409),
            (StoreErrorCode::IsDir, "IS_DIR", 409),
            (StoreErrorCode::NotEmpty, "NOT_EMPTY", 409),
            (StoreErrorCode::QuotaExceeded, "QUOTA_EXCEEDED", 507),
            (StoreErrorCode::NoSpace, "NO_SPACE", 507),
            (StoreErrorCode::TooLarge, "TOO_LARGE", 413),
            (StoreErrorCode::InvalidPath, "INVALID_PATH", 400),
            (
                StoreErrorCode::ContentUnavailable,
                "CONTENT_UNAVAILABLE",
                504,
            ),
            (StoreErrorCode::ContentMissing, "CONTENT_MISSING", 500),
            (StoreErrorCode::Busy, "BUSY", 503),
            (StoreErrorCode::ReadOnly, "READ_ONLY", 405),
            (StoreErrorCode::Gap, "GAP", 410),
        ];
        for (code, name, status) in all {
            let defs = declared(&[code]);
            let found: Vec<_> = defs.iter().map(|it| (&*it.code, it.http_status)).collect();
            assert_eq!(found, [(name, Some(status))]);
        }
        for (code, wire) in [
            (StoreErrorCode::NotFound, ErrorCode::NotFound),
            (StoreErrorCode::Denied, ErrorCode::Forbidden),
            (StoreErrorCode::Conflict, ErrorCode::Conflict),
            (StoreErrorCode::Internal, ErrorCode::Internal),
        ] {
            assert_eq!(wire_code(code), wire);
            assert!(declared(&[code]).is_empty());
        }
    }

    #[test]
    fn errors_of_the_system_tell_callers_nothing_of_it() {
        for error in [
            StoreError::FileSystem("/data/state/fs/fs.db: no such file".to_owned()),
            StoreError::Database("/data/state/fs/fs.db".to_owned()),
            StoreError::ContentFolder("/data/state/fs/content".to_owned()),
            StoreError::Damaged("/data/state/fs/fs.db".to_owned()),
        ] {
            let call = CallError::from(FsError::from(error));
            assert_eq!(call.code, ErrorCode::Internal);
            assert!(!call.message.contains("/data"), "{call}");
            assert_eq!(call.details, None);
        }
    }

    #[test]
    fn errors_are_logged_without_names_of_files() {
        let path = || "/secret".to_owned();
        for error in [
            StoreError::NotDirectory { path: path() },
            StoreError::IsDirectory { path: path() },
            StoreError::NotEmpty { path: path() },
            StoreError::Locked { path: path() },
            StoreError::Panicked(path()),
        ] {
            let logged = FsError::from(error).logged();
            assert!(!logged.contains("secret"), "{logged}");
        }
        let logged = FsError::input("no /secret").logged();
        assert!(!logged.contains("secret"), "{logged}");
        let failed = FsError::from(StoreError::Database("disk I/O error".to_owned()));
        assert!(failed.logged().contains("disk I/O error"));
    }

    #[test]
    fn details_say_what_a_program_needs() {
        let details = |error: StoreError| {
            let call = CallError::from(FsError::from(error));
            *call.details.expect("it has some")
        };
        let gap = details(StoreError::EventGap { pruned: 3, last: 9 });
        assert_eq!(gap, json!({ "pruned": 3, "last": 9 }));
        let rule = details(StoreError::InvalidPath(PathRule::DotDot.into()));
        assert_eq!(rule, json!({ "rule": PathRule::DotDot.name() }));
        let missing = details(StoreError::NotFound(StoreObject::Bucket));
        assert_eq!(missing, json!({ "object": "bucket" }));
        let failed = details(StoreError::PreconditionFailed { current: None });
        assert_eq!(failed, json!({ "reason": "precondition", "hash": null }));
        let hash = ContentHash::EMPTY;
        let elsewhere = details(StoreError::ContentUnavailable { hash });
        assert_eq!(elsewhere, json!({ "hash": hash.to_string(), "tried": [] }));
        let busy = CallError::from(FsError::from(StoreError::Busy("full")));
        assert_eq!(
            (busy.retryable, busy.retry_after_ms),
            (true, Some(BUSY_RETRY_MS))
        );
    }

    /// Whatever turns the error into that of a call: the names of peers are in it only by a function of its own.
    #[test]
    fn a_content_that_no_peer_sent_names_none_of_them() {
        let (hash, peer) = (
            ContentHash::EMPTY,
            "bob".parse::<PeerId>().expect("a peer id"),
        );
        let tried = vec![(peer, "no content")];
        let shown = of_unavailable(hash, &tried, true);
        let error = CallError::from(FsError::Unavailable { hash, tried });
        assert_eq!((&error.code, error.retryable), (&shown.code, true));
        let text = error.details.expect("it has some").to_string();
        assert!(
            text.contains("no content") && !text.contains("bob"),
            "{text}"
        );
        let text = shown.details.expect("it has some").to_string();
        assert!(
            text.contains("no content") && text.contains("bob"),
            "{text}"
        );
    }

    #[test]
    fn an_error_lists_as_many_conflicts_as_it_can_hold() {
        let conflict = |length: usize| MergeConflict {
            path: format!("/{}", "a/".repeat(20) + &"a".repeat(length))
                .parse()
                .expect("a path"),
            kind: alknet_store::ConflictKind::BothChanged,
        };
        let many = vec![conflict(1); CONFLICTS_SHOWN_MAX + 1];
        assert_eq!(shown_conflicts(&many).len(), CONFLICTS_SHOWN_MAX);
        let long = vec![conflict(250); CONFLICTS_SHOWN_MAX];
        assert!(shown_conflicts(&long).len() < CONFLICTS_SHOWN_MAX);
    }
}
