//! Who may read and write what: an identity may do only what its scopes say.
//!
//! A scope is `tensor:read:PREFIX` or `tensor:write:PREFIX`. A prefix is a path or whole segments of
//! its beginning; `tensor:read:*` is everything. A file without a path, or asked for by its id, has
//! the path `id/HEX`.

use alknet_core::ScopeSet;

/// What is to be done.
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

/// Whether `scopes` allow the deed to a path.
#[must_use]
pub fn allows(scopes: &ScopeSet, deed: TensorAccess, path: &str) -> bool {
    let mut scope = format!("{}{path}", deed.scope());
    let least = deed.scope().len();
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
