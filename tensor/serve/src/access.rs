//! Access to stored files by scopes.
//!
//! A scope is `tensor:read:PREFIX` or `tensor:write:PREFIX`. A prefix is a path or whole segments
//! of its beginning; `tensor:read:*` is everything. A file without a path, or one that a peer names
//! by its id, has the path `id/HEX`.

use alknet_core::ScopeSet;

/// What a peer wants to do with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TensorAccess {
    /// `tensor:read:…`
    Read,
    /// `tensor:write:…`
    Write,
}

impl TensorAccess {
    const fn scope(self) -> &'static str {
        match self {
            Self::Read => "tensor:read:",
            Self::Write => "tensor:write:",
        }
    }
}

/// Whether `scopes` allow `deed` at a path.
#[must_use]
pub fn allows(scopes: &ScopeSet, deed: TensorAccess, path: &str) -> bool {
    let mut scope = format!("{}{path}", deed.scope());
    let least = deed.scope().len();
    // A scope for a folder covers what lies below it, so each prefix of whole segments is tried.
    loop {
        if scopes.allows(&scope) {
            return true;
        }
        match scope.rfind('/').filter(|at| *at > least) {
            Some(at) => scope.truncate(at),
            None => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_allowed_that_no_scope_says() {
        let set = |scopes: &[&str]| scopes.iter().collect::<ScopeSet>();
        let read = |scopes: &[&str], path| allows(&set(scopes), TensorAccess::Read, path);
        assert!(!read(&[], "a/b"));
        assert!(read(&["tensor:read:a"], "a/b/c"));
        assert!(read(&["tensor:read:a/b"], "a/b"));
        assert!(!read(&["tensor:read:a/b"], "a/bc"));
        assert!(!read(&["tensor:read:a/b"], "a"));
        assert!(!read(&["tensor:read:"], "a"));
        assert!(!read(&["tensor:write:a", "tensor:read"], "a"));
        for all in ["tensor:read:*", "tensor:*", "*"] {
            assert!(read(&[all], "a/b"), "{all}");
        }
        assert!(allows(
            &set(&["tensor:write:a"]),
            TensorAccess::Write,
            "a/x"
        ));
    }
}
