//! Errors of files: what was asked for, what was wrong with it, and what to do.

use alknet_call::{CallError, ErrorCode};
use serde_json::Value;

use crate::cli::call::call_error;
use crate::cli::node_caller::is_unknown_operation;
use crate::cli::query::text;
use crate::cli::{CommandError, CommandExit, output};

/// Conflicts of a merge that a person reads.
const CONFLICTS_SHOWN_MAX: usize = 20;

/// What a request is about, for its errors.
#[derive(Clone, Copy, Debug)]
pub(super) struct FilesSubject<'a> {
    /// The address, the bucket, the branch or the snapshot, as the user wrote it.
    pub(super) what: &'a str,
    /// Whether a program reads the error. It gets the details, which a person reads as a sentence.
    pub(super) json: bool,
}

impl<'a> FilesSubject<'a> {
    pub(super) const fn new(what: &'a str, json: bool) -> Self {
        Self { what, json }
    }

    /// The error of a node, for the person at the keyboard.
    pub(super) fn error(&self, operation: &str, error: CallError) -> CommandError {
        if is_unknown_operation(&error, operation) {
            let text = format!(
                "the node has no operation '{operation}' for you: it is an earlier version, or it does not know your key; \
                 'alknet ops list' lists the operations that you may call"
            );
            return CommandError::new(CommandExit::Failed, error.code.name(), text);
        }
        let advice = advice(&error);
        let conflicts = conflicts(&error);
        let bucket = self.bucket();
        let mut failure = call_error(error);
        if failure.exit == CommandExit::Denied && !bucket.is_empty() {
            // The node names the scope with a word in the place of the bucket.
            let scope = format!(":{}'", output::one_line(bucket));
            failure.message = failure.message.replace(":BUCKET'", &scope);
        }
        failure.message = format!("{}: {}{advice}", self.what, failure.message);
        failure.further = conflicts;
        if !self.json {
            failure.details = None;
        }
        failure
    }

    fn bucket(&self) -> &str {
        self.what.split(['@', '#', ':']).next().unwrap_or_default()
    }
}

/// The error of a node that breaks the protocol.
pub(super) fn broken(what: &str, why: &str) -> CommandError {
    let text = format!("{what}: {why}");
    CommandError::new(CommandExit::Failed, ErrorCode::InvalidOutput.name(), text)
}

/// Whether an error says that something of this kind does not exist.
pub(super) fn lacks(error: &CallError, object: &str) -> bool {
    error.code == ErrorCode::NotFound && detail(error, "object") == object
}

fn detail<'e>(error: &'e CallError, name: &str) -> &'e str {
    let details = error.details.as_ref();
    details.map_or("", |details| text(&details[name]))
}

/// What a user can do, as the end of a sentence; empty where the error says it itself.
fn advice(error: &CallError) -> String {
    let said = match error.code.name() {
        "NOT_FOUND" => match detail(error, "object") {
            "branch" => "; 'alknet fs branch list' lists the branches of the bucket",
            "bucket" => "; 'alknet fs bucket list' lists the buckets in which you have a right",
            "entry" => "; 'alknet fs ls' lists a directory, and 'alknet fs log' what was deleted",
            "share" => "; 'alknet fs share list' lists the shares of the bucket",
            "snapshot" => "; 'alknet fs snapshot list' lists the snapshots of the bucket",
            _ => "",
        },
        "CONFLICT" => return advice_on_conflict(error),
        "BUSY" => "; try again",
        "CONTENT_MISSING" => "; put the file again, or restore an earlier version",
        "EXISTS" => "; --force replaces a file",
        "INVALID_PATH" => "; an address is BUCKET[@BRANCH][#SEQ]:/PATH",
        "IS_DIR" => {
            "; 'alknet fs get' fetches a directory, and 'alknet fs rm --recursive' deletes one"
        }
        "NOT_EMPTY"
            if error
                .details
                .as_ref()
                .is_some_and(|it| it["path"].is_string()) =>
        {
            "; --recursive deletes everything below it"
        }
        "NOT_EMPTY" => "; --force deletes them as well",
        "NO_SPACE" => "; delete files or buckets: deletions are still taken",
        "QUOTA_EXCEEDED" => match detail(error, "resource") {
            "open write sessions" | "staged bytes" => {
                "; an upload that broke off counts for an hour after its last piece"
            }
            _ => {
                "; 'alknet fs quota' shows the use, in which former versions count until their retention is over"
            }
        },
        _ => "",
    };
    said.to_owned()
}

fn advice_on_conflict(error: &CallError) -> String {
    match detail(error, "reason") {
        "precondition" => match detail(error, "hash") {
            "" => ": there is no file now, and nothing was changed".to_owned(),
            hash => format!(
                ": its hash is {hash} now, and nothing was changed; fetch that version, and try again with its hash"
            ),
        },
        "merge" => {
            ": nothing was changed; --strategy ours, theirs, latest or keep-both decides them"
                .to_owned()
        }
        "locked" => "; another client has locked it: try again later".to_owned(),
        "size" => {
            ": the file changed while it was read; the node has the version of before".to_owned()
        }
        _ => String::new(),
    }
}

/// The paths of a merge that conflict.
fn conflicts(error: &CallError) -> Vec<String> {
    let details = error.details.as_ref();
    let rows = details.and_then(|it| it["conflicts"].as_array());
    let rows = rows.map_or(&[][..], Vec::as_slice);
    let line = |row: &Value| format!("  {}: {}", text(&row["path"]), text(&row["kind"]));
    let shown = rows.iter().take(CONFLICTS_SHOWN_MAX);
    let mut lines: Vec<_> = shown.map(line).collect();
    let total = details.and_then(|it| it["total"].as_u64());
    let more = total.unwrap_or_default().saturating_sub(lines.len() as u64);
    if more > 0 && !lines.is_empty() {
        lines.push(format!("  and {more} more"));
    }
    lines
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn said(code: &str, message: &str, details: Value) -> CommandError {
        let error = CallError::new(ErrorCode::from_name(code), message).with_details(details);
        FilesSubject::new("docs@draft:/a", false).error("fs/stat", error)
    }

    #[test]
    fn an_error_is_one_sentence_with_what_to_do() {
        let missing = said(
            "NOT_FOUND",
            "the bucket does not exist",
            json!({ "object": "bucket" }),
        );
        assert_eq!(
            missing.to_string(),
            "NOT_FOUND: docs@draft:/a: the bucket does not exist; 'alknet fs bucket list' lists the buckets in which you \
             have a right"
        );
        let hash = "ab".repeat(32);
        let lost = said(
            "CONFLICT",
            "the entry is not in the state that the request expects",
            json!({ "reason": "precondition", "hash": hash }),
        );
        assert_eq!(lost.exit, CommandExit::Failed);
        assert!(lost.message.contains(&format!("its hash is {hash} now")));
        assert_eq!(lost.details, None);
        let full = said(
            "QUOTA_EXCEEDED",
            "the quota of 10 bytes is exceeded: 9 are used",
            json!({ "resource": "bytes", "limit": 10, "used": 9 }),
        );
        assert!(full.message.ends_with("until their retention is over"));
    }

    #[test]
    fn a_program_gets_the_details() {
        let error = CallError::new(ErrorCode::Conflict, "no").with_details(json!({ "a": 1 }));
        let failure = FilesSubject::new("docs:/a", true).error("fs/put", error);
        assert_eq!(failure.details, Some(Box::new(json!({ "a": 1 }))));
    }

    #[test]
    fn a_refusal_names_the_scope_for_the_bucket() {
        let error = CallError::new(
            ErrorCode::Forbidden,
            "the caller may not write to the bucket; it needs the scope 'fs:write:BUCKET'",
        );
        let failure = FilesSubject::new("docs@draft#3:/a", false).error("fs/put", error);
        assert_eq!(failure.exit, CommandExit::Denied);
        assert!(
            failure.message.ends_with("the scope 'fs:write:docs'"),
            "{failure}"
        );
    }

    #[test]
    fn conflicts_of_a_merge_are_lines_of_their_own() {
        let row = |n: usize| json!({ "path": format!("/{n}"), "kind": "both-changed" });
        let rows: Vec<_> = (0..CONFLICTS_SHOWN_MAX + 5).map(row).collect();
        let details = json!({ "reason": "merge", "total": 40, "conflicts": rows });
        let failure = said("CONFLICT", "40 paths conflict", details);
        assert_eq!(failure.further.len(), CONFLICTS_SHOWN_MAX + 1);
        assert_eq!(failure.further[0], "  /0: both-changed");
        assert_eq!(failure.further[CONFLICTS_SHOWN_MAX], "  and 20 more");
    }

    #[test]
    fn a_node_without_files_has_an_error_of_its_own() {
        let error = CallError::not_found("fs/stat");
        let failure = FilesSubject::new("docs:/a", false).error("fs/stat", error);
        assert!(failure.message.contains("no operation 'fs/stat' for you"));
    }
}
