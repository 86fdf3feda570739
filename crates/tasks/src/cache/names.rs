//! The forms of the names that the commands give to entries of the cache.
//!
//! Pruning removes no entry with another name: a cache may be in a folder whose owner has `bin` or
//! `tools` there.

use super::candidates::CandidateKind;
use crate::digest::{is_hex, is_key};

/// Digits of a source's folder, SHA-256.
const SOURCE_DIGITS: usize = 64;

/// Prefixes of the compiler's front, and of a copy that is being made.
const FRONT: &str = "rustc-for-";
const FRESH_FRONT: &str = "fresh-";

/// Prefix of a temporary folder of a program.
const TEMPORARY: &str = ".tmp";

/// Number of random letters and digits at the end of a temporary folder's name.
const RANDOM: usize = 6;

/// Whether the commands write entries of this name where candidates of this kind are.
pub(super) fn is_ours(kind: CandidateKind, name: &str) -> bool {
    match kind {
        CandidateKind::Front => {
            let front = name.strip_prefix(FRONT);
            let process = name.strip_prefix(FRESH_FRONT);
            front.is_some_and(is_key) || process.is_some_and(is_number)
        }
        CandidateKind::Source => is_hex(name, SOURCE_DIGITS),
        CandidateKind::Driver => is_named(name, is_key),
        // Former versions named some tools by their versions alone.
        CandidateKind::Tool => is_named(name, |end| is_key(end) || is_version(end)),
        _ => is_key(name),
    }
}

/// Whether a command makes scratch folders of this name: `kernel-build-aB3dE6`.
pub(super) fn is_scratch(name: &str) -> bool {
    is_named(name, is_random)
}

/// Whether a program makes temporary folders of this name: `.tmpaB3dE6`.
pub(super) fn is_temporary(name: &str) -> bool {
    name.strip_prefix(TEMPORARY).is_some_and(is_random)
}

/// Whether there is a text before the last hyphen, and `end` accepts the text behind it.
fn is_named(name: &str, end: impl Fn(&str) -> bool) -> bool {
    let parts = name.rsplit_once('-');
    parts.is_some_and(|(name, last)| !name.is_empty() && end(last))
}

/// Whether this is a version in cargo's form, `1.2.3`.
fn is_version(text: &str) -> bool {
    text.split('.').count() == 3 && text.split('.').all(is_number)
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn is_random(text: &str) -> bool {
    text.len() == RANDOM && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use xtask::rustc;

    use super::*;
    use crate::digest;
    use crate::scratch::ScratchFolder;

    fn name(path: &Path) -> String {
        let name = path.file_name().expect("a name");
        name.to_string_lossy().into_owned()
    }

    #[test]
    fn what_the_commands_write_is_ours() {
        let front = name(&rustc::path(Path::new("/cache")));
        assert!(is_ours(CandidateKind::Front, &front), "{front}");
        assert!(is_ours(CandidateKind::Front, "fresh-4711"));
        let key = digest::key([&b"input"[..]]);
        for kind in [
            CandidateKind::Binary,
            CandidateKind::Gpu,
            CandidateKind::Image,
            CandidateKind::Kernel,
        ] {
            assert!(is_ours(kind, &key), "{kind:?}");
        }
        assert!(is_ours(CandidateKind::Driver, &format!("llvmpipe-{key}")));
        let installed = format!("cargo-deny-0.20.2-{key}");
        for tool in [&*format!("axe-core-{key}"), &installed, "cargo-deny-0.20.2"] {
            assert!(is_ours(CandidateKind::Tool, tool), "{tool}");
        }
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        let hash = digest::of_file(file.path()).expect("readable");
        assert!(is_ours(CandidateKind::Source, &hash));
        let folder = tempfile::tempdir().expect("a temporary folder");
        let scratch = ScratchFolder::new(folder.path(), "kernel-build-").expect("writable");
        assert!(is_scratch(&name(scratch.path())));
        let temporary = tempfile::tempdir_in(folder.path()).expect("writable");
        assert!(is_temporary(&name(temporary.path())));
    }

    #[test]
    fn what_a_user_keeps_beside_it_is_not() {
        for front in ["backup.sh", "rustc-for-me", "fresh-start", "fresh-"] {
            assert!(!is_ours(CandidateKind::Front, front), "{front}");
        }
        for folder in ["mine", "v6.1", "0123456789ABCDEF", "0123456789abcde", ""] {
            assert!(!is_ours(CandidateKind::Kernel, folder), "{folder}");
            assert!(!is_ours(CandidateKind::Source, folder), "{folder}");
        }
        for tool in ["mine", "-0.20.2", "tool-1", "tool-1.2.x", "tool-latest"] {
            assert!(!is_ours(CandidateKind::Tool, tool), "{tool}");
        }
        assert!(!is_scratch("projects") && !is_scratch("my-project"));
        assert!(!is_temporary(".tmp") && !is_temporary(".tmp-files"));
    }
}
