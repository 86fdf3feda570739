//! The access log. It has one line for each request, which is written when the response is complete or the client has
//! disconnected. It contains no query, no body and no secret.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use alknet_core::Identity;
use alknet_gateway::RequestId;
use http::header::CONTENT_LENGTH;
use http::{Method, Request, Response, StatusCode};
use http_body::Body;

use crate::routes::TICKET;

/// Target of the lines for requests with an identity.
const ACCESS_TARGET: &str = "alknet_access";
/// Target of the lines for requests without an identity. An unknown client makes as many as it likes, so the log counts
/// them by their network.
pub const UNKNOWN_ACCESS_TARGET: &str = "alknet_access::unknown";

/// The logged status of a request whose client disconnected before the end. The node never sends this code.
const GONE: u16 = 499;

/// The characters of a path that the log shows.
const PATH_CHARS: usize = 256;

/// The longest method that the log shows; the methods in use have at most seven letters.
const METHOD_BYTES: usize = 16;

/// The operations of one batch that the log names.
const NAMED_MAX: usize = 8;

/// The longest name of an operation that the log shows.
const NAME_BYTES: usize = 128;

/// The text for an absent value.
const NOTHING: &str = "-";

/// The text after these paths is a secret until it is used.
const TICKETS: [&str; 3] = [TICKET, "/status/enter/", "/status/act/"];

/// Behind it comes the name of a bucket, and then the names of its files.
const FILES: &str = "/fs/";

/// The prefixes of tokens, for clients that put a token into a path.
const TOKENS: [&str; 2] = ["alk_", "als_"];

/// The log entry of one request. It is written when this is dropped.
pub(crate) struct AccessLogEntry {
    id: RequestId,
    remote: Option<SocketAddr>,
    method: Method,
    path: String,
    alpn: &'static str,
    began: Instant,
    ended: Option<Instant>,
    who: Option<Arc<Identity>>,
    operation: Option<String>,
    status: Option<StatusCode>,
    /// The length of the response's body, if it is known.
    length: Option<u64>,
    bytes: u64,
    whole: bool,
}

impl AccessLogEntry {
    /// Begins the entry of a request over a connection of this protocol.
    pub(crate) fn begin<B>(
        request: &Request<B>,
        remote: Option<SocketAddr>,
        alpn: &'static str,
        began: Instant,
    ) -> Self {
        Self {
            id: RequestId::next(),
            remote,
            method: request.method().clone(),
            path: shown(request.uri().path()),
            alpn,
            began,
            ended: None,
            who: None,
            operation: None,
            status: None,
            length: None,
            bytes: 0,
            whole: false,
        }
    }

    /// The request's id.
    pub(crate) fn id(&self) -> RequestId {
        self.id
    }

    /// When the request began.
    pub(crate) fn began(&self) -> Instant {
        self.began
    }

    /// Sets the caller's identity.
    pub(crate) fn set_caller(&mut self, who: &Arc<Identity>) {
        // The request's own identity, which is set first, precedes that of its ticket's maker.
        self.who.get_or_insert_with(|| Arc::clone(who));
    }

    /// Sets the operations. The caller chose their names, so the log shows only those that have the form of a name.
    pub(crate) fn calls<'a>(&mut self, operations: impl IntoIterator<Item = &'a str>) {
        self.operation.get_or_insert_with(|| names(operations));
    }

    /// Sets the response, whose body will follow.
    pub(crate) fn set_response<B: Body>(&mut self, response: &Response<B>) {
        let declared = response.headers().get(CONTENT_LENGTH);
        let declared = declared.and_then(|declared| declared.to_str().ok()?.parse().ok());
        self.length = declared.or_else(|| response.body().size_hint().exact());
        self.status = Some(response.status());
    }

    /// Adds sent bytes of the body.
    pub(crate) fn sent(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
    }

    /// Marks the response as complete.
    pub(crate) fn end(&mut self) {
        self.whole = true;
    }

    /// Sets the end of the request; otherwise it ends when this is dropped.
    pub(crate) fn ended(&mut self, now: Instant) {
        self.ended = Some(now);
    }

    fn status(&self) -> u16 {
        // A body whose bytes were all sent is complete, even if it was not polled to its end.
        let whole = self.whole || self.length == Some(self.bytes);
        match self.status {
            Some(status) if whole => status.as_u16(),
            _ => GONE,
        }
    }
}

impl Drop for AccessLogEntry {
    fn drop(&mut self) {
        let method = self.method.as_str();
        let ended = self.ended.unwrap_or_else(Instant::now);
        let time = ended.saturating_duration_since(self.began);
        macro_rules! line {
            ($target:ident) => {
                tracing::info!(
                    target: $target,
                    id = self.id.as_str(),
                    addr = self.remote.map(tracing::field::display),
                    who = self.who.as_ref().map_or(NOTHING, |who| who.id.as_str()),
                    // A valid method is ASCII (RFC 9110 section 9.1), so it can be cut at any byte.
                    // `get` returns `None` for a method that is shorter.
                    method = method.get(..METHOD_BYTES).unwrap_or(method),
                    path = self.path.as_str(),
                    status = self.status(),
                    bytes = self.bytes,
                    ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX),
                    alpn = self.alpn,
                    operation = self.operation.as_deref(),
                    "http.request",
                )
            };
        }
        match self.who {
            Some(_) => line!(ACCESS_TARGET),
            None => line!(UNKNOWN_ACCESS_TARGET),
        }
    }
}

/// A path in the form of the log: one word, without secrets and without names of files.
fn shown(path: &str) -> String {
    let path = without_files(path);
    if let Some(before) = TICKETS.iter().find(|before| path.starts_with(**before)) {
        return (*before).to_owned();
    }
    // Nearly all paths need no change.
    if path.len() <= PATH_CHARS && path.bytes().all(|b| b.is_ascii_graphic()) && !has_token(path) {
        return path.to_owned();
    }
    let plain = |c: char| if c.is_ascii_graphic() { c } else { '_' };
    let one_word = |path: &str| path.chars().take(PATH_CHARS).map(plain).collect();
    if !has_token(path) {
        return one_word(path);
    }
    let parts = path.split('/').map(|part| token(part).unwrap_or(part));
    one_word(&parts.collect::<Vec<_>>().join("/"))
}

/// The path without the names of files, which say what people work on.
fn without_files(path: &str) -> &str {
    let rest = path.strip_prefix(FILES).unwrap_or_default();
    // An encoded character is no part of a bucket's name, and may be a slash.
    match rest.find(['/', '%']) {
        Some(end) => &path[..=FILES.len() + end],
        None => path,
    }
}

/// Whether a part of the path is a token.
fn has_token(path: &str) -> bool {
    // Every request runs this check, so it does not search the whole text for the prefixes.
    let mut parts = memchr::memchr_iter(b'/', path.as_bytes()).map(|at| at + 1);
    token(path).is_some() || parts.any(|at| token(&path[at..]).is_some())
}

/// The prefix of the token, if this is a token.
fn token(part: &str) -> Option<&'static str> {
    TOKENS.into_iter().find(|token| part.starts_with(token))
}

/// The names of operations, with a placeholder for texts that cannot be a name.
fn names<'a>(operations: impl IntoIterator<Item = &'a str>) -> String {
    let mut operations = operations.into_iter();
    let mut text = String::new();
    for operation in operations.by_ref().take(NAMED_MAX) {
        if !text.is_empty() {
            text.push(',');
        }
        let name = operation.strip_prefix('/').unwrap_or(operation);
        text.push_str(if is_name(name) { name } else { NOTHING });
    }
    let more = operations.count();
    if more > 0 {
        text.push_str(&format!(",+{more}"));
    }
    text
}

fn is_name(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'/');
    text.len() <= NAME_BYTES && text.contains('/') && text.bytes().all(plain) && !has_token(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(path: &str) -> AccessLogEntry {
        let request = Request::get(path).body(()).expect("a request");
        AccessLogEntry::begin(&request, None, "h2", Instant::now())
    }

    #[test]
    fn paths_are_one_word_and_open_nothing() {
        let long = format!("/{}", "a".repeat(2 * PATH_CHARS));
        for (path, is) in [
            ("/call", "/call"),
            ("/call?token=secret", "/call"),
            ("/subscribe/t/secret", "/subscribe/t/"),
            ("/status/enter/secret", "/status/enter/"),
            ("/status/act/secret", "/status/act/"),
            ("/x/alk_abcd0123_secret/y", "/x/alk_/y"),
            ("/als_abcd0123_secret", "/als_"),
            ("/\u{fc}ber", "/_ber"),
            ("/walk_the_dog.html", "/walk_the_dog.html"),
            ("/fs/docs", "/fs/docs"),
            ("/fs/docs/", "/fs/docs/"),
            ("/fs/docs/case-7/letter.txt", "/fs/docs/"),
            ("/fs/docs@draft%23secret", "/fs/docs@draft%"),
            ("/fs//docs/secret", "/fs//"),
            ("/files/docs/page.html", "/files/docs/page.html"),
            (long.as_str(), &long[..PATH_CHARS]),
        ] {
            assert_eq!(line(path).path, is, "{path}");
        }
    }

    #[test]
    fn only_names_are_named() {
        for (operations, is) in [
            (vec!["/node/info"], "node/info"),
            (vec!["node/info", "/a/b"], "node/info,a/b"),
            (vec!["a b status=200"], "-"),
            (vec!["secret"], "-"),
            (vec!["/a/alk_abcd0123_secret"], "-"),
            (vec!["a/b"; 10], "a/b,a/b,a/b,a/b,a/b,a/b,a/b,a/b,+2"),
        ] {
            assert_eq!(names(operations.iter().copied()), is, "{operations:?}");
        }
    }

    #[test]
    fn an_answer_read_in_part_counts_as_abandoned() {
        let answer = Response::new(http_body_util::Full::new(bytes::Bytes::from_static(b"abc")));
        let mut line = line("/");
        assert_eq!(line.status(), GONE, "there was none");
        line.set_response(&answer);
        assert_eq!(line.status(), GONE, "nothing of it went");
        line.sent(3);
        assert_eq!(line.status(), 200);
        let mut endless = self::line("/");
        endless.set_response(&Response::new(axum::body::Body::from_stream(
            futures_util::stream::pending::<Result<bytes::Bytes, std::io::Error>>(),
        )));
        endless.sent(9);
        assert_eq!(endless.status(), GONE);
        endless.end();
        assert_eq!(endless.status(), 200);
    }
}
