//! The requests of both wires.

use std::ops::Range;

use alknet_tensor::{FileId, TensorErrorCode};
use serde::Deserialize;
use serde_json::Value;

use crate::error::{ServeError, excerpt};
use crate::path::{StorePath, TensorFileRef};

/// The only version of requests.
const VERSION: u64 = 1;

/// A request that was parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TensorRequest {
    /// A part of a stored file.
    Fetch(Fetch),
    /// A file that follows; `path`, if there is one, is to lead to it.
    Put(Option<StorePath>),
}

/// A part of a stored file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetch {
    /// The file.
    pub src: TensorFileRef,
    /// The part.
    pub want: PartSelector,
    /// The encoding.
    pub encoding: PartEncoding,
}

/// Which part of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PartSelector {
    /// The header with its length prefix.
    Header,
    /// Bytes of the entry of this name, or of the whole file.
    Range(Option<String>, Range<u64>),
    /// Rows, records or items.
    Rows(String, Range<u64>),
    /// All of an entry.
    Tensor(String),
}

/// How bytes are sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PartEncoding {
    /// With the hashes that verify each group of 16 KiB.
    Bao16,
    /// Without hashes.
    #[default]
    Raw,
}

/// A file as a request names it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTensorFileRef {
    id: Option<String>,
    path: Option<String>,
}

/// The members of a request. The server refuses unknown members, because a peer that sends one
/// expects an effect of it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRequest {
    v: Option<u64>,
    src: Option<RawTensorFileRef>,
    want: String,
    name: Option<String>,
    rows: Option<[u64; 2]>,
    range: Option<[u64; 2]>,
    #[serde(default)]
    encoding: PartEncoding,
    path: Option<String>,
}

impl TensorRequest {
    /// Reads a request of the stream protocol.
    ///
    /// # Errors
    /// `E_JSON`, `E_VERSION`, `E_VALUE`.
    pub fn parse(text: &[u8]) -> Result<Self, ServeError> {
        let raw: RawRequest = serde_json::from_slice(text).map_err(|error| {
            ServeError::input(
                TensorErrorCode::Json,
                format!("request: {}", excerpt(error)),
            )
        })?;
        if raw.v != Some(VERSION) {
            let what = format!("a request of version {VERSION} says \"v\":{VERSION}");
            return Err(ServeError::input(TensorErrorCode::Version, what));
        }
        if raw.want != "put" {
            return raw.fetch().map(Self::Fetch);
        }
        // A member that `put` ignores would suggest to the peer that it had an effect.
        if raw.src.is_some() || raw.name.is_some() || raw.rows.is_some() || raw.range.is_some() {
            return Err(value("put takes a path alone"));
        }
        let path = raw.path.as_deref().map(StorePath::parse);
        Ok(Self::Put(path.transpose()?))
    }
}

impl Fetch {
    /// Reads the input of the operation.
    ///
    /// # Errors
    /// The errors of [`TensorRequest::parse`].
    pub fn from_value(value: &Value) -> Result<Self, ServeError> {
        let raw = RawRequest::deserialize(value).map_err(|error| {
            ServeError::input(
                TensorErrorCode::Json,
                format!("request: {}", excerpt(error)),
            )
        })?;
        raw.fetch()
    }
}

impl RawRequest {
    fn fetch(self) -> Result<Fetch, ServeError> {
        // Only `put` has a path outside of `src`.
        if self.path.is_some() {
            return Err(value("a path stands in src"));
        }
        let named = |what: &str, name: Option<String>| {
            name.ok_or_else(|| value(format!("{what} needs a name")))
        };
        let want = match (&*self.want, self.rows, self.range) {
            ("header", None, None) if self.name.is_none() => PartSelector::Header,
            ("tensor", None, None) => PartSelector::Tensor(named("tensor", self.name)?),
            ("rows", Some(rows), None) => {
                PartSelector::Rows(named("rows", self.name)?, range(rows)?)
            }
            ("range", None, Some(bytes)) => PartSelector::Range(self.name, range(bytes)?),
            _ => {
                let what = "want is header; tensor with name; rows with name and rows; range with \
                            range; or put";
                return Err(value(what));
            }
        };
        let src = self.src.ok_or_else(|| value("no src"))?;
        Ok(Fetch {
            src: src.read()?,
            want,
            encoding: self.encoding,
        })
    }
}

impl RawTensorFileRef {
    fn read(self) -> Result<TensorFileRef, ServeError> {
        // With both, it would be open which one the peer means.
        match (self.id, self.path) {
            (Some(id), None) => id
                .parse::<FileId>()
                .map(TensorFileRef::Id)
                .map_err(ServeError::Input),
            (None, Some(path)) => StorePath::parse(&path).map(TensorFileRef::Path),
            _ => Err(value("src is {\"id\"} or {\"path\"}")),
        }
    }
}

impl TensorFileRef {
    /// Reads the `src` of a request: `{"id": …}` or `{"path": …}`.
    ///
    /// # Errors
    /// `E_VALUE`, and `E_LIMIT` for a path that is too long.
    pub fn from_value(src: &Value) -> Result<Self, ServeError> {
        let raw = RawTensorFileRef::deserialize(src);
        raw.map_err(|error| value(format!("src: {}", excerpt(error))))?
            .read()
    }
}

fn range([start, end]: [u64; 2]) -> Result<Range<u64>, ServeError> {
    match start <= end {
        true => Ok(start..end),
        false => {
            let what = format!("{start} to {end} goes backwards");
            Err(ServeError::input(TensorErrorCode::Shape, what))
        }
    }
}

fn value(what: impl Into<String>) -> ServeError {
    ServeError::input(TensorErrorCode::Value, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> &'static str {
        TensorRequest::parse(text.as_bytes())
            .expect_err(text)
            .code()
    }

    #[test]
    fn requests_are_understood() {
        let text = br#"{"v":1,"src":{"path":"a/b"},"want":"rows","name":"w","rows":[1,3],"encoding":"bao16"}"#;
        let TensorRequest::Fetch(fetch) = TensorRequest::parse(text).expect("good") else {
            panic!("it is no put");
        };
        assert_eq!(fetch.want, PartSelector::Rows("w".to_owned(), 1..3));
        assert_eq!(fetch.encoding, PartEncoding::Bao16);
        assert_eq!(fetch.src.scope_path(), "a/b");
        let put = TensorRequest::parse(br#"{"v":1,"want":"put","path":"a"}"#).expect("good");
        assert!(matches!(put, TensorRequest::Put(Some(path)) if path.as_str() == "a"));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        assert_eq!(refused(""), "E_JSON");
        assert_eq!(
            refused(r#"{"v":1,"want":"header","src":{"path":"a"},"x":1}"#),
            "E_JSON"
        );
        assert_eq!(refused(r#"{"v":1,"v":1,"want":"put"}"#), "E_JSON");
        let odd = format!("{{\"{}\\n\u{7f}\":1}}", "x".repeat(1000));
        let error = TensorRequest::parse(odd.as_bytes()).expect_err("no such member");
        let text = error.to_string();
        assert!(
            text.len() < 300 && !text.contains(char::is_control),
            "{text}"
        );
        assert_eq!(refused(r#"{"v":2,"want":"put"}"#), "E_VERSION");
        assert_eq!(refused(r#"{"want":"put"}"#), "E_VERSION");
        for bad in [
            r#"{"v":1,"want":"all","src":{"path":"a"}}"#,
            r#"{"v":1,"want":"header"}"#,
            r#"{"v":1,"want":"header","src":{}}"#,
            r#"{"v":1,"want":"header","src":{"path":"../a"}}"#,
            r#"{"v":1,"want":"header","src":{"path":"a"},"name":"w"}"#,
            r#"{"v":1,"want":"tensor","src":{"path":"a"}}"#,
            r#"{"v":1,"want":"rows","src":{"path":"a"},"name":"w"}"#,
            r#"{"v":1,"want":"put","src":{"path":"a"}}"#,
            r#"{"v":1,"want":"header","src":{"path":"a"},"path":"a"}"#,
        ] {
            assert_eq!(refused(bad), "E_VALUE", "{bad}");
        }
        let id = r#"{"v":1,"want":"header","src":{"id":"00"}}"#;
        assert_eq!(refused(id), "E_HASH");
        let back = r#"{"v":1,"want":"range","src":{"path":"a"},"range":[2,1]}"#;
        assert_eq!(refused(back), "E_SHAPE");
    }
}
