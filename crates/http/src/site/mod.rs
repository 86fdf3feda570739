//! A static site: the files of one folder.
//!
//! Nothing outside the folder is reached, by no `..` and no link; files whose name begins with a dot
//! are not there, and folders are not listed. What is small is kept in memory as long as the file on
//! disk does not change.

mod file;
mod range;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use alknet_gateway::MemoryLease;
use axum::body::Body;
use http::header::{
    ACCEPT_ENCODING, ACCEPT_RANGES, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE,
    CONTENT_TYPE, ETAG, IF_NONE_MATCH, IF_RANGE, LOCATION, RANGE, RETRY_AFTER, VARY,
};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use percent_encoding::percent_decode_str;

use file::{FileEncodings, OpenSiteFile, SiteEntry, SiteFiles};
use range::ByteRange;

/// Seconds that a client waits before it asks for another file, when it has as many under way as it
/// may.
const BUSY_RETRY: HeaderValue = HeaderValue::from_static("1");

/// What a folder shows.
const INDEX: &str = "index.html";

/// Forms in which a file may lie beside itself, the best first: RFC 9110 names and endings.
const PACKED: [(&str, &str); 3] = [("br", ".br"), ("zstd", ".zst"), ("gzip", ".gz")];

/// The files of a folder.
pub(crate) struct StaticSite {
    files: Arc<SiteFiles>,
}

impl StaticSite {
    pub(crate) fn new(folder: PathBuf) -> Self {
        Self {
            files: Arc::new(SiteFiles::new(folder)),
        }
    }

    /// The file that a request asks for; `None` where it does not exist.
    ///
    /// What its answer holds counts against `lease`.
    pub(crate) async fn answer(&self, parts: &Parts, lease: MemoryLease) -> Option<Response<Body>> {
        if !matches!(parts.method, Method::GET | Method::HEAD) {
            return None;
        }
        let path = parts.uri.path();
        let mut name = inside(path)?;
        let folder = path.ends_with('/');
        if folder {
            name.push(INDEX);
        }
        match self.files.look(&name).await? {
            SiteEntry::Folder => (!folder).then(|| moved(path)),
            SiteEntry::File(forms) => self.file(&name, &forms, (&parts.headers, lease)).await,
        }
    }

    /// The first page, whatever was asked for.
    pub(crate) async fn first_page(&self, lease: MemoryLease) -> Option<Response<Body>> {
        let index = Path::new(INDEX);
        let headers = HeaderMap::new();
        match self.files.look(index).await? {
            SiteEntry::Folder => None,
            SiteEntry::File(forms) => self.file(index, &forms, (&headers, lease)).await,
        }
    }

    async fn file(
        &self,
        name: &Path,
        forms: &FileEncodings,
        (headers, lease): (&HeaderMap, MemoryLease),
    ) -> Option<Response<Body>> {
        if let Some((found, head)) = self.form(name, forms, headers) {
            return Some(respond(found, head, headers, lease));
        }
        // It changed since it was looked at, or the form that the client can unpack is gone.
        match self.files.look_again(name).await? {
            SiteEntry::Folder => None,
            SiteEntry::File(forms) => {
                let (found, head) = self.form(name, &forms, headers)?;
                Some(respond(found, head, headers, lease))
            }
        }
    }

    /// The form of a file that suits the client, if it still is what it was, and what is said of it.
    fn form(
        &self,
        name: &Path,
        forms: &FileEncodings,
        headers: &HeaderMap,
    ) -> Option<(OpenSiteFile, HeaderMap)> {
        let (kept, coding) = forms.choose(|coding| accepts(headers, coding))?;
        let found = self.files.open(kept)?;
        let mut head = HeaderMap::new();
        head.insert(CONTENT_TYPE, media_type(name)?);
        head.insert(ETAG, found.etag().clone());
        head.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        head.insert(CACHE_CONTROL, kept_for(name));
        if forms.varies() {
            head.insert(VARY, HeaderValue::from_static("accept-encoding"));
        }
        if let Some(coding) = coding {
            head.insert(CONTENT_ENCODING, HeaderValue::from_static(coding));
        }
        Some((found, head))
    }
}

fn media_type(name: &Path) -> Option<HeaderValue> {
    let kind = mime_guess::from_path(name).first_or_octet_stream();
    let kind = if kind.type_() == "text" || kind.subtype() == "javascript" {
        format!("{kind}; charset=utf-8")
    } else {
        kind.to_string()
    };
    HeaderValue::from_str(&kind).ok()
}

/// Pages may change at any time; what has a name of its own for each content, never does.
fn kept_for(name: &Path) -> HeaderValue {
    let page = name.extension().is_none_or(|kind| kind == "html");
    HeaderValue::from_static(if page {
        "no-cache"
    } else if is_hashed(name) {
        "public, max-age=31536000, immutable"
    } else {
        "public, max-age=3600"
    })
}

/// Whether a part of the name is the hash of the content, as bundlers write it: `app.3f9a1c02.js`.
fn is_hashed(name: &Path) -> bool {
    let name = name
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    name.split(['.', '-', '_']).any(|part| {
        part.len() >= 8
            && part.bytes().all(|b| b.is_ascii_hexdigit())
            && part.bytes().any(|b| b.is_ascii_digit())
    })
}

/// The name below the folder that a path stands for; `None` for one that no file here has.
fn inside(path: &str) -> Option<PathBuf> {
    let decoded = percent_decode_str(path).decode_utf8().ok()?;
    // No name has a NUL, and browsers take a backslash for a slash (the URL standard).
    if decoded.bytes().any(|b| b == 0 || b == b'\\') {
        return None;
    }
    let mut name = PathBuf::new();
    for part in decoded.split('/').filter(|part| !part.is_empty()) {
        if part.starts_with('.') {
            return None;
        }
        name.push(part);
    }
    Some(name)
}

/// A folder's own page is below it.
fn moved(path: &str) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::PERMANENT_REDIRECT;
    // One slash at the beginning: two would name another host.
    let path = format!("/{}/", path.trim_start_matches('/'));
    if let Ok(to) = HeaderValue::from_str(&path) {
        response.headers_mut().insert(LOCATION, to);
    }
    response
}

fn accepts(headers: &HeaderMap, coding: &str) -> bool {
    let mut said = headers.get_all(ACCEPT_ENCODING).iter();
    said.any(|value| {
        let value = value.to_str().unwrap_or_default();
        value.split(',').any(|one| {
            let mut parts = one.split(';').map(str::trim);
            let named = parts
                .next()
                .is_some_and(|name| name.eq_ignore_ascii_case(coding));
            // A weight of zero means that it is not acceptable (RFC 9110 section 12.4.2).
            let refused = parts.any(|q| {
                let weight = q.strip_prefix("q=").and_then(|q| q.parse::<f32>().ok());
                weight == Some(0.0)
            });
            named && !refused
        })
    })
}

fn respond(
    found: OpenSiteFile,
    mut head: HeaderMap,
    asked: &HeaderMap,
    lease: MemoryLease,
) -> Response<Body> {
    let etag = found.etag().to_str().unwrap_or_default().to_owned();
    let text = |name| asked.get(name).and_then(|value| value.to_str().ok());
    let mut response = Response::new(Body::empty());
    let known = text(IF_NONE_MATCH).is_some_and(|known| {
        known.split(',').any(|one| {
            let one = one.trim();
            // If-None-Match compares weakly (RFC 9110 section 13.1.2).
            one == "*" || one.strip_prefix("W/").unwrap_or(one) == etag
        })
    });
    if known {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        // A 304 has only what the client's copy may have to update (RFC 9110 section 15.4.5).
        head.remove(CONTENT_TYPE);
        *response.headers_mut() = head;
        return response;
    }
    let whole = found.len();
    // If-Range compares strongly (RFC 9110 section 13.1.5). A date equals no tag, and gives all of the file.
    let current = text(IF_RANGE).is_none_or(|version| version == etag);
    let wanted = text(RANGE).filter(|_| current);
    let range = match wanted.map_or(ByteRange::All, |wanted| range::parse(wanted, whole)) {
        ByteRange::All => 0..whole,
        ByteRange::Part(range) => {
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            let told = format!("bytes {}-{}/{whole}", range.start, range.end - 1);
            if let Ok(told) = HeaderValue::from_str(&told) {
                head.insert(CONTENT_RANGE, told);
            }
            range
        }
        ByteRange::Beyond => {
            *response.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
            // How long the file is, so that the client can ask again (RFC 9110 section 15.5.17).
            if let Ok(told) = HeaderValue::from_str(&format!("bytes */{whole}")) {
                head.insert(CONTENT_RANGE, told);
            }
            *response.headers_mut() = head;
            return response;
        }
    };
    let len = range.end - range.start;
    match found.body(range, lease) {
        Ok(body) => {
            head.insert(CONTENT_LENGTH, len.into());
            *response.headers_mut() = head;
            *response.body_mut() = body;
        }
        Err(_) => {
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            response.headers_mut().insert(RETRY_AFTER, BUSY_RETRY);
        }
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_outside_and_nothing_hidden_has_a_path() {
        for path in [
            "/../x",
            "/%2e%2e/x",
            "/.git/config",
            "/a/%2Egit",
            "/a%00",
            "/a%5cb",
            "/%ff",
        ] {
            assert_eq!(inside(path), None, "{path}");
        }
        assert_eq!(inside("/a//b.txt"), Some("a/b.txt".into()));
        assert_eq!(inside("/"), Some(PathBuf::new()));
        assert_eq!(inside("/%C3%A4"), Some("ä".into()));
    }

    #[test]
    fn a_folder_never_moves_to_another_host() {
        let response = moved("//evil.example");
        assert_eq!(response.headers()[LOCATION], "/evil.example/");
    }

    #[test]
    fn hashed_names_are_kept_for_ever() {
        for (name, hashed) in [
            ("app.3f9a1c02.js", true),
            ("index-0a1b2c3d4e.css", true),
            ("deadbeef.js", false),
            ("photo.jpg", false),
            ("v1.2.3.js", false),
        ] {
            assert_eq!(is_hashed(Path::new(name)), hashed, "{name}");
        }
    }

    #[test]
    fn codings_are_accepted_by_name_and_weight() {
        let headers = |text: &'static str| {
            HeaderMap::from_iter([(ACCEPT_ENCODING, HeaderValue::from_static(text))])
        };
        assert!(accepts(&headers("gzip, br;q=0.5"), "br"));
        assert!(!accepts(&headers("gzip, br;q=0"), "br"));
        assert!(!accepts(&headers("gzip"), "zstd"));
    }
}
