//! Short fields of WebDAV (RFC 4918 §10).

use std::time::Duration;

use alknet_store::limits::{LEASE_TIME_MIN, LOCK_TIME_MAX};
use alknet_store::{LockDepth, LockToken};
use http::HeaderMap;

use crate::dav::error::DavError;
use crate::dav::limits::LOCK_TIME_DEFAULT;
use crate::dav::target::{DavTarget, RequestOrigin, TargetEntry};

use super::{parse_digits, single};

/// How much of a tree a method is for (RFC 4918 §10.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DavDepth {
    /// The resource itself.
    Zero,
    /// The resource, and what it has directly in it.
    One,
    /// The resource, and everything below it.
    Infinity,
}

impl DavDepth {
    /// The field of a request, or infinity, which is the default of every method.
    ///
    /// # Errors
    /// The field has another value.
    pub fn from_headers(headers: &HeaderMap) -> Result<Self, DavError> {
        match single(headers, "depth")? {
            None => Ok(Self::Infinity),
            Some("0") => Ok(Self::Zero),
            Some("1") => Ok(Self::One),
            Some(text) if text.eq_ignore_ascii_case("infinity") => Ok(Self::Infinity),
            Some(_) => Err(DavError::header("depth", "not 0, 1 or infinity")),
        }
    }

    /// The depth of a PROPFIND.
    ///
    /// # Errors
    /// [`DavError::InfiniteDepth`]: it would read a whole tree (RFC 4918 §9.1).
    pub const fn of_propfind(self) -> Result<Self, DavError> {
        match self {
            // One request could read a million entries.
            Self::Infinity => Err(DavError::InfiniteDepth),
            finite => Ok(finite),
        }
    }

    /// The depth of a COPY: whether it takes the members of a collection along (RFC 4918 §9.8.3).
    ///
    /// # Errors
    /// The depth is 1.
    pub const fn is_copy_recursive(self) -> Result<bool, DavError> {
        match self {
            Self::Zero => Ok(false),
            Self::Infinity => Ok(true),
            Self::One => Err(DavError::header("depth", "not 0 or infinity")),
        }
    }

    /// Checks the depth of a DELETE or a MOVE, which are for whole trees (RFC 4918 §9.6.1 and §9.9.2). A file has nothing
    /// below it, and clients send any depth for it.
    ///
    /// # Errors
    /// The depth of a request for a collection is not infinity.
    pub const fn check_whole_tree(self, is_collection: bool) -> Result<(), DavError> {
        match self {
            Self::Zero | Self::One if is_collection => {
                Err(DavError::header("depth", "not infinity"))
            }
            _ => Ok(()),
        }
    }

    /// The depth of a lock (RFC 4918 §9.10.3).
    ///
    /// # Errors
    /// The depth is 1.
    pub const fn of_lock(self) -> Result<LockDepth, DavError> {
        match self {
            Self::Zero => Ok(LockDepth::Zero),
            Self::Infinity => Ok(LockDepth::Infinity),
            Self::One => Err(DavError::header("depth", "not 0 or infinity")),
        }
    }
}

/// The entry that a COPY or a MOVE makes (RFC 4918 §10.3).
///
/// # Errors
/// The field is missing or invalid, or leads to another server, out of the mount, or to a resource that is no entry.
pub fn destination(headers: &HeaderMap, origin: &RequestOrigin) -> Result<TargetEntry, DavError> {
    const FIELD: &str = "destination";
    let reference = single(headers, FIELD)?;
    let reference = reference.ok_or_else(|| DavError::header(FIELD, "it is missing"))?;
    match origin.resolve(reference, FIELD)? {
        DavTarget::Entry(entry) => Ok(entry),
        // Resources of the server's own are no place for a copy.
        _ => Err(DavError::OtherServer),
    }
}

/// Whether a COPY or a MOVE may replace what is at its destination (RFC 4918 §10.6).
///
/// # Errors
/// The field has another value than `T` and `F`.
pub fn is_overwrite_allowed(headers: &HeaderMap) -> Result<bool, DavError> {
    match single(headers, "overwrite")? {
        // Without the field the request replaces what is there, as the RFC has it.
        None | Some("T" | "t") => Ok(true),
        Some("F" | "f") => Ok(false),
        Some(_) => Err(DavError::header("overwrite", "not T or F")),
    }
}

/// How long a lock is to last: the first time of the field that this server understands (RFC 4918 §10.7), as near to it as
/// the store allows.
///
/// # Errors
/// The field is too long or occurs twice. A value that is not understood is the default.
pub fn lock_time(headers: &HeaderMap) -> Result<Duration, DavError> {
    let field = single(headers, "timeout")?.unwrap_or_default();
    let mut times = field.split(',').map(str::trim).filter_map(|text| {
        if text.eq_ignore_ascii_case("infinite") {
            return Some(Duration::MAX);
        }
        let (unit, seconds) = text.split_once('-')?;
        let seconds = unit.eq_ignore_ascii_case("second").then_some(seconds)?;
        parse_digits(seconds).map(Duration::from_secs)
    });
    let time = times.next().unwrap_or(LOCK_TIME_DEFAULT);
    // A lock without an end would outlive a client that never comes back.
    Ok(time.clamp(LEASE_TIME_MIN, LOCK_TIME_MAX))
}

/// The token of an UNLOCK (RFC 4918 §10.5). `None` for one that this server did not make.
///
/// # Errors
/// The field is missing, or is not a URI in angle brackets.
pub fn unlock_token(headers: &HeaderMap) -> Result<Option<LockToken>, DavError> {
    const FIELD: &str = "lock-token";
    let text = single(headers, FIELD)?;
    let text = text.ok_or_else(|| DavError::header(FIELD, "it is missing"))?;
    let token = text.strip_prefix('<').and_then(|it| it.strip_suffix('>'));
    let token = token.filter(|it| !it.is_empty() && !it.contains(['<', '>', ' ']));
    let token = token.ok_or_else(|| DavError::header(FIELD, "not a URI in angle brackets"))?;
    // Another server may have made the token: the lock is then not found, which is no fault of the form.
    Ok(token.parse().ok())
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        let fields = fields.iter().map(|(name, value)| {
            let value = HeaderValue::from_str(value).expect("a value");
            (HeaderName::from_static(name), value)
        });
        fields.collect()
    }

    #[test]
    fn a_depth_has_three_values() {
        for (value, expected) in [
            ("0", DavDepth::Zero),
            (" 1 ", DavDepth::One),
            ("infinity", DavDepth::Infinity),
            ("Infinity", DavDepth::Infinity),
        ] {
            let found = DavDepth::from_headers(&headers(&[("depth", value)]));
            assert_eq!(found, Ok(expected), "{value}");
        }
        assert_eq!(
            DavDepth::from_headers(&HeaderMap::new()),
            Ok(DavDepth::Infinity)
        );
        for value in ["", "2", "-1", "00", "1,noroot"] {
            let refused = DavDepth::from_headers(&headers(&[("depth", value)]));
            assert_eq!(refused.expect_err(value).status(), 400, "{value}");
        }
        let mut twice = headers(&[("depth", "0")]);
        twice.append("depth", HeaderValue::from_static("1"));
        assert!(DavDepth::from_headers(&twice).is_err());
    }

    #[test]
    fn methods_take_some_depths() {
        let infinite = DavDepth::Infinity.of_propfind().expect_err("refused");
        assert_eq!(infinite.status(), 403);
        let condition = infinite.condition().expect("a condition");
        assert_eq!(condition.name(), "propfind-finite-depth");
        assert_eq!(DavDepth::One.of_propfind(), Ok(DavDepth::One));
        assert_eq!(DavDepth::Zero.is_copy_recursive(), Ok(false));
        assert!(DavDepth::One.is_copy_recursive().is_err());
        assert_eq!(DavDepth::Infinity.of_lock(), Ok(LockDepth::Infinity));
        assert!(DavDepth::One.of_lock().is_err());
        assert!(DavDepth::Zero.check_whole_tree(true).is_err());
        assert!(DavDepth::Zero.check_whole_tree(false).is_ok());
    }

    #[test]
    fn a_destination_is_an_entry() {
        let origin = RequestOrigin::from_authority(&"node".parse().expect("an authority"));
        let origin = origin.expect("an origin");
        let found = destination(
            &headers(&[("destination", "https://node/fs/docs/a%20b")]),
            &origin,
        );
        let found = found.expect("an entry");
        assert_eq!(found.address.to_string(), "docs:/a b");
        for (value, status) in [
            ("/fs", 502),
            ("/fs/.blob/x", 502),
            ("https://x/fs/docs/a", 502),
            ("x", 400),
        ] {
            let refused = destination(&headers(&[("destination", value)]), &origin);
            assert_eq!(refused.expect_err(value).status(), status, "{value}");
        }
        let missing = destination(&HeaderMap::new(), &origin);
        assert_eq!(missing.expect_err("missing").status(), 400);
    }

    #[test]
    fn overwrite_is_a_letter() {
        let read = |value| is_overwrite_allowed(&headers(&[("overwrite", value)]));
        assert_eq!(is_overwrite_allowed(&HeaderMap::new()), Ok(true));
        assert_eq!(read("T"), Ok(true));
        assert_eq!(read("F"), Ok(false));
        assert!(read("false").is_err());
    }

    #[test]
    fn a_lock_lasts_as_long_as_the_store_allows() {
        let read = |value| lock_time(&headers(&[("timeout", value)]));
        for (value, expected) in [
            ("Second-60", Duration::from_secs(60)),
            ("Infinite, Second-4100000000", LOCK_TIME_MAX),
            ("Second-4100000000", LOCK_TIME_MAX),
            ("Second-99999999999999999999999", LOCK_TIME_MAX),
            ("Second-0", LEASE_TIME_MIN),
            ("Minute-1, second-90", Duration::from_secs(90)),
            ("Second-+5", LOCK_TIME_DEFAULT),
            ("", LOCK_TIME_DEFAULT),
        ] {
            assert_eq!(read(value), Ok(expected), "{value}");
        }
        assert_eq!(lock_time(&HeaderMap::new()), Ok(LOCK_TIME_DEFAULT));
    }

    #[test]
    fn a_token_stands_in_brackets() {
        let read = |value: &str| unlock_token(&headers(&[("lock-token", value)]));
        let text = "urn:uuid:00010203-0405-4607-8809-0a0b0c0d0e0f";
        let token = text.parse::<LockToken>().expect("a token");
        assert_eq!(read(&format!("<{text}>")), Ok(Some(token)));
        assert_eq!(read("<opaquelocktoken:x>"), Ok(None));
        for value in ["", text, "<>", "<a b>", "<a", "<a>>"] {
            assert!(read(value).is_err(), "{value}");
        }
        assert!(unlock_token(&HeaderMap::new()).is_err());
    }
}
