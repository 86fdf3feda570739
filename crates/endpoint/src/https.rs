//! HTTPS requests of the node itself, to its certificate authority: one request on one
//! connection, HTTP/1.1, everything bounded.

use std::sync::Arc;
use std::time::Duration;

use alknet_core::{BoxError, BoxFuture, Carriage};
use alknet_tls::acme::AcmeTransport;
use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri};
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::dial::Dialer;
use crate::error::DialError;
use crate::{Target, TargetError};

/// Everything from the dial to the last byte of the answer.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(60);

/// Longest answer: status line, headers, and body as it travels.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// Most headers of an answer.
const HEADERS_MAX: usize = 100;

/// The protocol, as ALPN has it.
const ALPN: &[u8] = b"http/1.1";

/// Sends requests to public HTTPS servers. Follows no redirects and keeps no cookies.
#[derive(Clone, Debug)]
pub struct HttpsClient(Arc<Dialer>);

impl HttpsClient {
    /// Dials with `dialer`, whose authorities the servers are checked against.
    #[must_use]
    pub fn new(dialer: Arc<Dialer>) -> Self {
        Self(dialer)
    }

    /// Sends one request, whose URI must be absolute, and returns the whole answer.
    ///
    /// # Errors
    /// The server cannot be reached or does not speak HTTP/1.1.
    pub async fn request(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpsError> {
        timeout(EXCHANGE_TIMEOUT, exchange(&self.0, request))
            .await
            .unwrap_or(Err(HttpsError::TimedOut))
    }
}

impl AcmeTransport for HttpsClient {
    fn send(
        &self,
        request: Request<Bytes>,
    ) -> BoxFuture<'static, Result<Response<Bytes>, BoxError>> {
        let client = self.clone();
        Box::pin(async move { Ok(client.request(request).await?) })
    }
}

/// Why there is no answer.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum HttpsError {
    /// What came is no HTTP/1.1.
    #[error("the server's answer is not HTTP/1.1: {0}")]
    Answer(&'static str),
    /// The server cannot be reached.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Io(#[from] std::io::Error),
    /// Longer than 1 MiB.
    #[error("the server's answer is longer than 1 MiB")]
    Long,
    /// No host and port.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// No answer in time.
    #[error("no answer within 60 s")]
    TimedOut,
    /// Not `https://host/…`.
    #[error("'{0}' is no https:// address")]
    Uri(Uri),
}

async fn exchange(dialer: &Dialer, request: Request<Bytes>) -> Result<Response<Bytes>, HttpsError> {
    let target = target(request.uri())?;
    let head = head(&request, &target.address());
    let connection = dialer.dial_over(Carriage::Tcp, &target, ALPN).await?;
    let (mut send, mut recv) = connection.accept_bi().await.map_err(std::io::Error::from)?;
    send.write_all(&head).await?;
    send.write_all(request.body()).await?;
    send.flush().await?;
    let mut answer = Vec::new();
    loop {
        let room = (ANSWER_BYTES_MAX + 1).saturating_sub(answer.len());
        let read = (&mut recv).take(room as u64).read_buf(&mut answer).await?;
        if answer.len() > ANSWER_BYTES_MAX {
            return Err(HttpsError::Long);
        }
        if let Some(done) = parse(&answer, request.method(), read == 0)? {
            return Ok(done);
        }
    }
}

fn target(uri: &Uri) -> Result<Target, HttpsError> {
    let wrong = || HttpsError::Uri(uri.clone());
    if uri.scheme_str() != Some("https") {
        return Err(wrong());
    }
    let host = uri.host().ok_or_else(wrong)?;
    Ok(format!("{host}:{}", uri.port_u16().unwrap_or(443)).parse()?)
}

fn head(request: &Request<Bytes>, host: &str) -> Vec<u8> {
    let path = request
        .uri()
        .path_and_query()
        .map_or("/", |path| path.as_str());
    let mut head = format!("{} {path} HTTP/1.1\r\n", request.method()).into_bytes();
    let mut line = |name: &str, value: &[u8]| {
        head.extend_from_slice(name.as_bytes());
        head.extend_from_slice(b": ");
        head.extend_from_slice(value);
        head.extend_from_slice(b"\r\n");
    };
    line("host", host.as_bytes());
    line("connection", b"close");
    line(
        "content-length",
        request.body().len().to_string().as_bytes(),
    );
    for (name, value) in request.headers() {
        if ![HOST, CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING].contains(name) {
            line(name.as_str(), value.as_bytes());
        }
    }
    head.extend_from_slice(b"\r\n");
    head
}

/// Reads the answer from its beginning, or `None` while it is incomplete; `ended` says that
/// nothing more comes.
fn parse(
    bytes: &[u8],
    method: &Method,
    ended: bool,
) -> Result<Option<Response<Bytes>>, HttpsError> {
    let mut rest = bytes;
    loop {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut parsed = httparse::Response::new(&mut headers);
        let wrong = |_| HttpsError::Answer("its head cannot be read");
        let httparse::Status::Complete(length) = parsed.parse(rest).map_err(wrong)? else {
            return incomplete(ended);
        };
        rest = &rest[length..];
        let code = parsed.code.and_then(|code| StatusCode::from_u16(code).ok());
        let status = code.ok_or(HttpsError::Answer("it has no status"))?;
        if status.is_informational() {
            continue;
        }
        let mut response = Response::new(());
        *response.status_mut() = status;
        for header in parsed.headers.iter() {
            let name = HeaderName::from_bytes(header.name.as_bytes());
            let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(header.value)) else {
                return Err(HttpsError::Answer("a header cannot be read"));
            };
            response.headers_mut().append(name, value);
        }
        let none = method == Method::HEAD || [204, 304].contains(&status.as_u16());
        let body = match none {
            true => Some(Bytes::new()),
            false => body(&response, rest, ended)?,
        };
        return Ok(body.map(|body| response.map(|()| body)));
    }
}

fn incomplete<T>(ended: bool) -> Result<Option<T>, HttpsError> {
    if ended {
        return Err(HttpsError::Answer("it ends too early"));
    }
    Ok(None)
}

/// The body (RFC 9112 section 6.3), or `None` while it is incomplete.
fn body(head: &Response<()>, bytes: &[u8], ended: bool) -> Result<Option<Bytes>, HttpsError> {
    let headers = head.headers();
    if let Some(coding) = headers.get(TRANSFER_ENCODING) {
        if !coding.as_bytes().eq_ignore_ascii_case(b"chunked") {
            return Err(HttpsError::Answer("its transfer coding is not known"));
        }
        return match chunked(bytes)? {
            None => incomplete(ended),
            done => Ok(done),
        };
    }
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let Some(length) = lengths.next() else {
        return Ok(ended.then(|| Bytes::copy_from_slice(bytes)));
    };
    let number = |text: &str| {
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse::<usize>().ok().filter(|_| digits)
    };
    let length = length.to_str().ok().and_then(number);
    match length {
        Some(length) if lengths.next().is_none() => match bytes.get(..length) {
            Some(body) => Ok(Some(Bytes::copy_from_slice(body))),
            None => incomplete(ended),
        },
        _ => Err(HttpsError::Answer("its length cannot be read")),
    }
}

/// The chunks put together (RFC 9112 section 7.1). Trailers are left unread.
fn chunked(mut bytes: &[u8]) -> Result<Option<Bytes>, HttpsError> {
    let mut body = Vec::new();
    loop {
        let wrong = |_| HttpsError::Answer("a chunk cannot be read");
        let httparse::Status::Complete((start, size)) =
            httparse::parse_chunk_size(bytes).map_err(wrong)?
        else {
            return Ok(None);
        };
        if size == 0 {
            return Ok(Some(body.into()));
        }
        let size = usize::try_from(size).map_err(|_| HttpsError::Long)?;
        let Some((chunk, rest)) = bytes[start..].split_at_checked(size) else {
            return Ok(None);
        };
        body.extend_from_slice(chunk);
        let Some((end, rest)) = rest.split_at_checked(2) else {
            return Ok(None);
        };
        if end != b"\r\n" {
            return Err(HttpsError::Answer("a chunk has no end"));
        }
        bytes = rest;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn get(text: &str, ended: bool) -> Result<Option<Response<Bytes>>, HttpsError> {
        parse(text.as_bytes(), &Method::GET, ended)
    }

    #[test]
    fn bodies_of_every_framing() {
        for text in [
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\n\r\n",
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello",
        ] {
            // The last line end of a chunked body may come late; everything else is waited for.
            let last = text.len() - if text.contains("chunked") { 2 } else { 0 };
            for end in 0..last {
                assert!(
                    get(&text[..end], false).expect("waits").is_none(),
                    "{text} {end}"
                );
                assert!(get(&text[..end], true).is_err(), "{text} {end}");
            }
            let answer = get(text, false).expect(text).expect(text);
            assert_eq!(answer.body(), "hello");
        }
        let open = "HTTP/1.1 200 OK\r\n\r\nhello";
        assert!(get(open, false).expect("waits").is_none());
        assert_eq!(
            get(open, true).expect("read").expect("whole").body(),
            "hello"
        );
        let head = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nReplay-Nonce: n\r\n\r\n";
        let answer = parse(head.as_bytes(), &Method::HEAD, false).expect("read");
        assert_eq!(answer.expect("whole").headers()["replay-nonce"], "n");
        let empty = "HTTP/1.1 204 No Content\r\n\r\n";
        assert_eq!(get(empty, false).expect("read").expect("whole").body(), "");
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in [
            "SSH-2.0-x\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc",
        ] {
            assert!(get(bad, false).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_request_is_what_was_asked() {
        let request = Request::builder()
            .method(Method::POST)
            .uri("https://ca.example:14000/dir?x=1")
            .header("content-type", "application/jose+json")
            .header("host", "elsewhere")
            .body(Bytes::from_static(b"{}"))
            .expect("a request");
        let target = target(request.uri()).expect("a target");
        let head = head(&request, &target.address());
        assert_eq!(
            String::from_utf8(head).expect("text"),
            "POST /dir?x=1 HTTP/1.1\r\nhost: ca.example:14000\r\nconnection: close\r\n\
             content-length: 2\r\ncontent-type: application/jose+json\r\n\r\n"
        );
        for bad in ["http://ca.example/", "/dir", "ftp://x/"] {
            assert!(
                super::target(&bad.parse().expect("a URI")).is_err(),
                "{bad}"
            );
        }
        let v6: Uri = "https://[::1]:9/".parse().expect("a URI");
        assert_eq!(super::target(&v6).expect("a target").address(), "[::1]:9");
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), ended: bool) {
            let _ = parse(&bytes, &Method::GET, ended);
            let _ = chunked(&bytes);
            let headed = [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", &bytes[..]].concat();
            let _ = parse(&headed, &Method::GET, ended);
        }
    }
}
