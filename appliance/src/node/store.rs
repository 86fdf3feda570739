//! The file of identities that are made while the node runs: where it is, and its problems.

use std::path::Path;

use alknet_core::StoredIdentities;
use alknet_identity_store::{IdentityDb, IdentityStoreDiagnostic};
use alknet_init::control::MachineDiagnostic;

/// The file below the state directory. Its folder is made with the node's key.
const FILE: &str = "identity/identity.db";

/// Opens the file. Problems go to the log here, and stay among the node's problems as long as they
/// last.
pub(crate) fn open(state_dir: &Path) -> (IdentityDb, StoredIdentities) {
    let (db, stored) = IdentityDb::open(&state_dir.join(FILE));
    for problem in problems(&db) {
        tracing::warn!("{}: {}; {}", problem.code, problem.text, problem.hint);
    }
    (db, stored)
}

/// The present problems of the file.
pub(crate) fn problems(db: &IdentityDb) -> Vec<MachineDiagnostic> {
    db.diagnostics().iter().map(problem).collect()
}

fn problem(diagnostic: &IdentityStoreDiagnostic) -> MachineDiagnostic {
    let (code, hint) = match diagnostic {
        IdentityStoreDiagnostic::Aside(path) => (
            "identity-store-damaged",
            format!(
                "its peers and tokens are unknown: enrol them again, or put a good copy in place \
                 of identity.db and restart; then delete {} and what belongs to it",
                path.display()
            ),
        ),
        IdentityStoreDiagnostic::Newer(_) => (
            "identity-store-newer",
            "enrolled peers are not let in: start the newer program again".to_owned(),
        ),
        IdentityStoreDiagnostic::Rows { .. } => (
            "identity-store-rows",
            "they are not let in: enrol them again under the same names".to_owned(),
        ),
        IdentityStoreDiagnostic::Log(_) => (
            "identity-store-write",
            "make room on the disk, or replace it: until then damage to the disk can undo the change"
                .to_owned(),
        ),
        IdentityStoreDiagnostic::Write(_) => (
            "identity-store-write",
            "make room on the disk, or replace it; then try the change again".to_owned(),
        ),
        _ => (
            "identity-store-unusable",
            "enrolled peers are not let in and none can be added: correct it and restart the node"
                .to_owned(),
        ),
    };
    MachineDiagnostic {
        code: code.to_owned(),
        text: diagnostic.to_string(),
        hint,
    }
}
