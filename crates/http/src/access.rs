//! The access log: one line for each request, once its answer is away or its client has gone. It holds no query, no
//! body and nothing that opens anything.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use alknet_core::Identity;
use alknet_gateway::RequestId;
use http::header::CONTENT_LENGTH;
use http::{Method, Request, Response, StatusCode};
use http_body::Body;

use crate::routes::TICKET;

/// In the place of a status: the client went away before the end. The code is never sent.
const GONE: u16 = 499;

/// Characters of a path that are shown.
const PATH_CHARS: usize = 256;

/// Longest method that is shown; those that exist have seven letters at most.
const METHOD_BYTES: usize = 16;

/// Operations of one batch that are named.
const NAMED_MAX: usize = 8;

/// Longest name of an operation that is shown.
const NAME_BYTES: usize = 128;

/// Where there is nothing to say.
const NOTHING: &str = "-";

/// What comes behind these is a secret as long as it was not used.
const TICKETS: [&str; 3] = [TICKET, "/status/enter/", "/status/act/"];

/// What tokens begin with, for those who put one into a path.
const TOKENS: [&str; 2] = ["alk_", "als_"];

/// What is said of one request. It is said when this is dropped.
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
    /// Bytes that the answer's body has, where that is known.
    length: Option<u64>,
    bytes: u64,
    whole: bool,
}

impl AccessLogEntry {
    /// Of a request that came over a connection of this protocol.
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

    /// What the request is called.
    pub(crate) fn id(&self) -> RequestId {
        self.id
    }

    /// When it began.
    pub(crate) fn began(&self) -> Instant {
        self.began
    }

    /// Who asks.
    pub(crate) fn asked_by(&mut self, who: &Arc<Identity>) {
        self.who.get_or_insert_with(|| Arc::clone(who));
    }

    /// What is called. The names are the caller's words: only what looks like a name is shown.
    pub(crate) fn calls<'a>(&mut self, operations: impl IntoIterator<Item = &'a str>) {
        self.operation.get_or_insert_with(|| names(operations));
    }

    /// The answer is there, and its body is on its way.
    pub(crate) fn answered<B: Body>(&mut self, response: &Response<B>) {
        let told = response.headers().get(CONTENT_LENGTH);
        let told = told.and_then(|told| told.to_str().ok()?.parse().ok());
        self.length = told.or_else(|| response.body().size_hint().exact());
        self.status = Some(response.status());
    }

    /// So many bytes of the body went.
    pub(crate) fn sent(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
    }

    /// There is no more of the answer.
    pub(crate) fn end(&mut self) {
        self.whole = true;
    }

    /// When it was over, if not when this is dropped.
    pub(crate) fn ended(&mut self, now: Instant) {
        self.ended = Some(now);
    }

    fn status(&self) -> u16 {
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
        tracing::info!(
            target: "alknet_access",
            id = self.id.as_str(),
            addr = self.remote.map(tracing::field::display),
            who = self.who.as_ref().map_or(NOTHING, |who| who.id.as_str()),
            // A method is ASCII (RFC 9110 section 9.1), and may be cut anywhere; a shorter one has no such part.
            method = method.get(..METHOD_BYTES).unwrap_or(method),
            path = self.path.as_str(),
            status = self.status(),
            bytes = self.bytes,
            ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX),
            alpn = self.alpn,
            operation = self.operation.as_deref(),
            "http.request",
        );
    }
}

/// A path as the log shows it: one word, without what opens something.
fn shown(path: &str) -> String {
    if let Some(before) = TICKETS.iter().find(|before| path.starts_with(**before)) {
        return (*before).to_owned();
    }
    // Nearly all are.
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

/// Whether a part of the path is a token.
fn has_token(path: &str) -> bool {
    // Without a search: this is looked at for every request.
    let mut parts = memchr::memchr_iter(b'/', path.as_bytes()).map(|at| at + 1);
    token(path).is_some() || parts.any(|at| token(&path[at..]).is_some())
}

/// What a token begins with, where this is one.
fn token(part: &str) -> Option<&'static str> {
    TOKENS.into_iter().find(|token| part.starts_with(token))
}

/// Names, or what stands for one that no operation can have.
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
        line.answered(&answer);
        assert_eq!(line.status(), GONE, "nothing of it went");
        line.sent(3);
        assert_eq!(line.status(), 200);
        let mut endless = self::line("/");
        endless.answered(&Response::new(axum::body::Body::from_stream(
            futures_util::stream::pending::<Result<bytes::Bytes, std::io::Error>>(),
        )));
        endless.sent(9);
        assert_eq!(endless.status(), GONE);
        endless.end();
        assert_eq!(endless.status(), 200);
    }
}
