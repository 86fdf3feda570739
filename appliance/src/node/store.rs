//! The file of what is made while the node runs: where it lies, and what is wrong with it.

use std::path::Path;

use alknet_core::Stored;
use alknet_identity_store::{IdentityDb, Trouble};
use alknet_init::control::Problem;

/// The file below the state directory; its folder is made with the node's key.
const FILE: &str = "identity/identity.db";

/// Opens it. Whatever is wrong is said in the log here, and among the node's problems as long as it
/// lasts.
pub(crate) fn open(state_dir: &Path) -> (IdentityDb, Stored) {
    let (db, stored) = IdentityDb::open(&state_dir.join(FILE));
    for problem in problems(&db) {
        tracing::warn!("{}: {}; {}", problem.code, problem.text, problem.hint);
    }
    (db, stored)
}

/// What is wrong with it now.
pub(crate) fn problems(db: &IdentityDb) -> Vec<Problem> {
    db.troubles().iter().map(problem).collect()
}

fn problem(trouble: &Trouble) -> Problem {
    let (code, hint) = match trouble {
        Trouble::Aside(path) => (
            "identity-store-damaged",
            format!(
                "its peers and tokens are strangers: enrol them again, or put a good copy in place \
                 of identity.db and restart; then delete {} and what belongs to it",
                path.display()
            ),
        ),
        Trouble::Newer(_) => (
            "identity-store-newer",
            "enrolled peers are not let in: start the newer program again".to_owned(),
        ),
        Trouble::Rows { .. } => (
            "identity-store-rows",
            "they are not let in: enrol them again under the same names".to_owned(),
        ),
        Trouble::Log(_) => (
            "identity-store-write",
            "make room on the disk, or replace it: until then damage to the disk can undo the change"
                .to_owned(),
        ),
        Trouble::Write(_) => (
            "identity-store-write",
            "make room on the disk, or replace it; then try the change again".to_owned(),
        ),
        _ => (
            "identity-store-unusable",
            "enrolled peers are not let in and none can be added: correct it and restart the node"
                .to_owned(),
        ),
    };
    Problem {
        code: code.to_owned(),
        text: trouble.to_string(),
        hint,
    }
}
