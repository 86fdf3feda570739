//! A static site: the files of one folder.
//!
//! A request cannot leave the folder, neither by `..` nor by a link. Files whose names begin with a dot are hidden,
//! and folders are not listed. Small files stay in memory as long as they do not change on disk.

mod file;
mod open_files;
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

use file::{FileEncodings, NotOpened, OpenSiteFile, SiteEntry, SiteFiles};
use range::ByteRange;

/// The seconds that a client waits before its next request for a file, if there is no memory or no open file for one more
/// now.
const BUSY_RETRY: HeaderValue = HeaderValue::from_static("1");

/// The type of a file of which nothing is known (RFC 9110 section 8.3).
const UNKNOWN_TYPE: HeaderValue = HeaderValue::from_static("application/octet-stream");

/// The page of a folder.
const INDEX: &str = "index.html";

/// The packed forms that may exist beside a file, the best first: the name of the coding (RFC 9110) and the suffix.
const PACKED: [(&str, &str); 3] = [("br", ".br"), ("zstd", ".zst"), ("gzip", ".gz")];

/// The files of a folder.
pub(crate) struct StaticSite {
    files: Arc<SiteFiles>,
}

impl StaticSite {
    /// At most `open_files_max` files are open for clients at once.
    pub(crate) fn new(folder: PathBuf, open_files_max: usize) -> Self {
        Self {
            files: Arc::new(SiteFiles::new(folder, open_files_max)),
        }
    }

    /// The file that a request names; `None` if it does not exist.
    ///
    /// The memory of the response counts against `lease`.
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
        match self.files.find(&name).await? {
            SiteEntry::Folder => (!folder).then(|| moved(path)),
            SiteEntry::File(forms) => self.file(&name, &forms, (&parts.headers, lease)).await,
        }
    }

    /// The first page, whatever path the request names.
    pub(crate) async fn first_page(&self, lease: MemoryLease) -> Option<Response<Body>> {
        let index = Path::new(INDEX);
        let headers = HeaderMap::new();
        match self.files.find(index).await? {
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
        let is_unknown = lease.is_of_unknown_peer();
        let mut form = self.form(name, forms, headers, is_unknown);
        if let Err(NotOpened::Changed) = form {
            // The form that the client can unpack may be gone, too.
            form = match self.files.find_current(name).await? {
                SiteEntry::Folder => return None,
                SiteEntry::File(forms) => self.form(name, &forms, headers, is_unknown),
            };
        }
        match form {
            Ok((found, head)) => Some(respond(found, head, headers, lease)),
            Err(NotOpened::Busy) => Some(busy()),
            Err(NotOpened::Changed) => None,
        }
    }

    /// The form of a file for the client and its headers, if the file is unchanged and may be opened.
    fn form(
        &self,
        name: &Path,
        forms: &FileEncodings,
        headers: &HeaderMap,
        is_unknown: bool,
    ) -> Result<(OpenSiteFile, HeaderMap), NotOpened> {
        let chosen = forms.choose(|coding| accepts(headers, coding));
        let (cached, coding) = chosen.ok_or(NotOpened::Changed)?;
        let found = self.files.open(cached, is_unknown)?;
        let mut head = HeaderMap::new();
        head.insert(CONTENT_TYPE, media_type(name));
        head.insert(ETAG, found.etag().clone());
        head.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        head.insert(CACHE_CONTROL, cache_control(name));
        if forms.varies() {
            head.insert(VARY, HeaderValue::from_static("accept-encoding"));
        }
        if let Some(coding) = coding {
            head.insert(CONTENT_ENCODING, HeaderValue::from_static(coding));
        }
        Ok((found, head))
    }
}

fn media_type(name: &Path) -> HeaderValue {
    let kind = mime_guess::from_path(name).first_or_octet_stream();
    let kind = if kind.type_() == "text" || kind.subtype() == "javascript" {
        format!("{kind}; charset=utf-8")
    } else {
        kind.to_string()
    };
    // The names of the table are ASCII.
    HeaderValue::from_str(&kind).unwrap_or(UNKNOWN_TYPE)
}

/// The cache policy of a file. A page may change at any time, but a file with a hash in its name never does.
fn cache_control(name: &Path) -> HeaderValue {
    let page = name.extension().is_none_or(|kind| kind == "html");
    HeaderValue::from_static(if page {
        "no-cache"
    } else if is_hashed(name) {
        "public, max-age=31536000, immutable"
    } else {
        "public, max-age=3600"
    })
}

/// Whether a part of the name is a hash of the content, as bundlers write it: `app.3f9a1c02.js`.
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

/// The name below the folder for a path; `None` if no file can have it.
fn inside(path: &str) -> Option<PathBuf> {
    let decoded = percent_decode_str(path).decode_utf8().ok()?;
    // No name contains a NUL, and browsers treat a backslash as a slash (the URL standard).
    if decoded.bytes().any(|b| b == 0 || b == b'\\') {
        return None;
    }
    let mut name = PathBuf::new();
    for part in decoded.split('/').filter(|part| !part.is_empty()) {
        // This also excludes `.` and `..`.
        if part.starts_with('.') {
            return None;
        }
        name.push(part);
    }
    Some(name)
}

/// Redirects from a folder's path without a slash to its page.
fn moved(path: &str) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::PERMANENT_REDIRECT;
    // The path begins with one slash: two would name another host.
    let path = format!("/{}/", path.trim_start_matches('/'));
    if let Ok(to) = HeaderValue::from_str(&path) {
        response.headers_mut().insert(LOCATION, to);
    }
    response
}

fn accepts(headers: &HeaderMap, coding: &str) -> bool {
    let mut values = headers.get_all(ACCEPT_ENCODING).iter();
    values.any(|value| {
        let value = value.to_str().unwrap_or_default();
        value.split(',').any(|one| {
            let mut parts = one.split(';').map(str::trim);
            let named = parts
                .next()
                .is_some_and(|name| name.eq_ignore_ascii_case(coding));
            // A weight of zero means that the client does not accept the coding (RFC 9110 section 12.4.2).
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
    request_headers: &HeaderMap,
    lease: MemoryLease,
) -> Response<Body> {
    let etag = found.etag().to_str().unwrap_or_default().to_owned();
    let text = |name| {
        request_headers
            .get(name)
            .and_then(|value| value.to_str().ok())
    };
    let mut response = Response::new(Body::empty());
    let known = text(IF_NONE_MATCH).is_some_and(|known| {
        known.split(',').any(|one| {
            let one = one.trim();
            // If-None-Match uses the weak comparison (RFC 9110 section 13.1.2).
            one == "*" || one.strip_prefix("W/").unwrap_or(one) == etag
        })
    });
    if known {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        // A 304 has only the fields that may update the client's copy (RFC 9110 section 15.4.5).
        head.remove(CONTENT_TYPE);
        *response.headers_mut() = head;
        return response;
    }
    let whole = found.len();
    // If-Range uses the strong comparison (RFC 9110 section 13.1.5). A date never equals a tag, so it leads to the
    // whole file.
    let current = text(IF_RANGE).is_none_or(|version| version == etag);
    let wanted = text(RANGE).filter(|_| current);
    let range = match wanted.map_or(ByteRange::All, |wanted| range::parse(wanted, whole)) {
        ByteRange::All => 0..whole,
        ByteRange::Part(range) => {
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            let content_range = format!("bytes {}-{}/{whole}", range.start, range.end - 1);
            if let Ok(content_range) = HeaderValue::from_str(&content_range) {
                head.insert(CONTENT_RANGE, content_range);
            }
            range
        }
        ByteRange::Beyond => {
            *response.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
            // The response states the length of the file, so that the client can correct its request (RFC 9110
            // section 15.5.17).
            if let Ok(content_range) = HeaderValue::from_str(&format!("bytes */{whole}")) {
                head.insert(CONTENT_RANGE, content_range);
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
        // Only a lack of memory leads here.
        Err(_) => response = busy(),
    }
    response
}

/// The response while the node has no memory or no open file for one more.
fn busy() -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    response.headers_mut().insert(RETRY_AFTER, BUSY_RETRY);
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
