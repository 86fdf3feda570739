//! The body of LOCK (RFC 4918 §9.10 and §14.11).

use alknet_store::limits::LOCK_NOTE_BYTES_MAX;

use crate::dav::error::DavError;

use super::parse_root;

/// What a LOCK asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LockBody {
    /// A new lock.
    New(LockInfo),
    /// More time for the lock whose token is in the `If` header (RFC 4918 §9.10.2).
    Refresh,
}

/// A lock to be taken. It is a write lock, and exclusive: the store has no others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockInfo {
    /// How the client describes the owner: the element `owner` as XML, or nothing. At most
    /// [`LOCK_NOTE_BYTES_MAX`] bytes.
    pub owner: String,
}

impl LockBody {
    /// Parses the body. An empty one refreshes.
    ///
    /// # Errors
    /// The body is no XML within the limits, or not that of a LOCK; or the lock is a shared one.
    pub fn parse(body: &[u8]) -> Result<Self, DavError> {
        if body.is_empty() {
            return Ok(Self::Refresh);
        }
        let root = parse_root(body, "lockinfo")?;
        let part = |name: &'static str, reason: &'static str| {
            root.dav_element(name)
                .ok_or(DavError::UnexpectedBody(reason))
        };
        let scope = part("lockscope", "it has no scope")?;
        let kind = part("locktype", "it has no type")?;
        if kind.dav_element("write").is_none() {
            return Err(DavError::UnexpectedBody(
                "its type is not that of a write lock",
            ));
        }
        match (scope.dav_element("exclusive"), scope.dav_element("shared")) {
            (Some(_), None) => {}
            (None, Some(_)) => return Err(DavError::SharedLock),
            _ => {
                return Err(DavError::UnexpectedBody(
                    "its scope is not exclusive or shared",
                ));
            }
        }
        let owner = root.dav_element("owner");
        let owner = match owner {
            Some(owner) => owner.to_short_fragment(LOCK_NOTE_BYTES_MAX),
            None => Some(String::new()),
        };
        let owner = owner.ok_or(DavError::TooMany {
            what: "bytes in the owner",
            limit: LOCK_NOTE_BYTES_MAX,
        })?;
        Ok(Self::New(LockInfo { owner }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(content: &str) -> Result<LockBody, DavError> {
        let body = format!("<D:lockinfo xmlns:D='DAV:'>{content}</D:lockinfo>");
        LockBody::parse(body.as_bytes())
    }

    const WRITE: &str = "<D:locktype><D:write/></D:locktype>";
    const EXCLUSIVE: &str = "<D:lockscope><D:exclusive/></D:lockscope>";

    #[test]
    fn a_lock_and_its_owner_are_read() {
        assert_eq!(LockBody::parse(b""), Ok(LockBody::Refresh));
        let bare = parse(&format!("{WRITE}{EXCLUSIVE}"));
        let owner = String::new();
        assert_eq!(bare, Ok(LockBody::New(LockInfo { owner })));
        let owned =
            format!("{EXCLUSIVE}{WRITE}<D:owner><D:href>mailto:a@b</D:href> x&amp;y</D:owner>");
        let owner = "<owner xmlns=\"DAV:\"><href>mailto:a@b</href> x&amp;y</owner>".to_owned();
        assert_eq!(parse(&owned), Ok(LockBody::New(LockInfo { owner })));
    }

    #[test]
    fn other_locks_are_refused() {
        let shared = format!("{WRITE}<D:lockscope><D:shared/></D:lockscope>");
        assert_eq!(parse(&shared), Err(DavError::SharedLock));
        let long = "x".repeat(LOCK_NOTE_BYTES_MAX);
        let long = format!("{WRITE}{EXCLUSIVE}<D:owner>{long}</D:owner>");
        assert_eq!(parse(&long).expect_err("too long").status(), 413);
        for content in [
            "",
            WRITE,
            EXCLUSIVE,
            "<D:locktype/><D:lockscope><D:exclusive/></D:lockscope>",
            "<D:locktype><D:write/></D:locktype><D:lockscope/>",
        ] {
            assert_eq!(
                parse(content).expect_err(content).status(),
                400,
                "{content}"
            );
        }
    }
}
