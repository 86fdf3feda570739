use std::io::Cursor;

use proptest::prelude::*;

use super::*;

const BYTES_MAX: usize = 100;

/// A reader that gives one byte at a time.
struct ByteByByte<'a>(&'a [u8]);

impl Read for ByteByByte<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some((first, rest)) = self.0.split_first() else {
            return Ok(0);
        };
        buffer[0] = *first;
        self.0 = rest;
        Ok(1)
    }
}

fn receive(bytes: &[u8]) -> Result<MetadataResponse, ResponseParseError> {
    let response = |read: Result<MetadataResponse, MetadataError>| match read {
        Ok(response) => Ok(response),
        Err(MetadataError::Response(error)) => Err(error),
        Err(other) => panic!("{other}"),
    };
    let whole = response(MetadataResponse::receive(
        &mut Cursor::new(bytes),
        BYTES_MAX,
    ));
    let slow = response(MetadataResponse::receive(&mut ByteByByte(bytes), BYTES_MAX));
    assert_eq!(whole, slow, "the parts in which it comes change nothing");
    whole
}

fn body(response: &str) -> Result<String, ResponseParseError> {
    let response = receive(response.as_bytes())?;
    Ok(String::from_utf8_lossy(response.body()).into_owned())
}

#[test]
fn a_request_has_what_every_server_needs() {
    let request = HttpRequest {
        method: "PUT",
        path: "/latest/api/token",
        fields: &[("X-a", "b")],
        body: "",
        bytes_max: 0,
    };
    let mut sent = Vec::new();
    request.write(&crate::METADATA, &mut sent).expect("memory");
    let expected = "PUT /latest/api/token HTTP/1.1\r\nHost: 169.254.169.254\r\nUser-Agent: alknet\r\n\
                    Accept: */*\r\nConnection: close\r\nX-a: b\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(String::from_utf8(sent).expect("text"), expected);
}

#[test]
fn content_is_read_however_its_end_is_marked() {
    for response in [
        "HTTP/1.1 200 OK\r\n\r\nhello",
        "HTTP/1.0 200\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello and more",
        "HTTP/1.1 200 OK\r\ncontent-length:5\r\nContent-Encoding: identity\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n5 \r\nhello\r\n0\r\nTrailer: x\r\n\r\n",
    ] {
        assert_eq!(body(response).as_deref(), Ok("hello"), "{response}");
    }
    let empty = "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n";
    assert_eq!(body(empty).as_deref(), Ok(""));
}

#[test]
fn fields_are_found_by_their_names_in_lower_case() {
    let response = receive(b"HTTP/1.1 404 Not Found\r\nMetadata-Flavor: \t Google \r\n\r\n");
    let response = response.expect("a response");
    assert_eq!(response.status(), 404);
    assert_eq!(response.field("metadata-flavor"), Some("Google"));
    assert_eq!(response.field("server"), None);
}

#[test]
fn hostile_responses_are_refused() {
    use ResponseParseError::{BodyLong, Chunks, Encoded, End, Field, HeadLong, Length, StatusLine};
    let head = |fields: &str| format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\nhello");
    let chunked =
        |rest: &str| format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{rest}");
    let long_name = "x".repeat(HEAD_BYTES_MAX);
    let many = "a: b\r\n".repeat(FIELDS_MAX + 1);
    for (response, error) in [
        (String::new(), End),
        ("HTTP/1.1 200 OK\r\nA: b\r\n".to_owned(), End),
        ("HTTP/1.1 200 OK\n\nhello".to_owned(), End),
        ("SSH-2.0-OpenSSH_9.2\r\n\r\n".to_owned(), StatusLine),
        ("HTTP/2 200 OK\r\n\r\n".to_owned(), StatusLine),
        ("HTTP/1.1 +20 OK\r\n\r\n".to_owned(), StatusLine),
        ("HTTP/1.1 2000 OK\r\n\r\n".to_owned(), StatusLine),
        ("HTTP/1.1 100 Continue\r\n\r\n".to_owned(), StatusLine),
        (head("no colon"), Field),
        (head("a: b\r\n continued"), Field),
        (head("na me: b"), Field),
        (head("a: b\u{1b}[2J"), Field),
        (head(": b"), Field),
        (head(&format!("a: {long_name}")), HeadLong),
        (head(many.trim_end()), HeadLong),
        (head("Content-Length: 6"), End),
        (head("Content-Length: +5"), Length),
        (head("Content-Length: -1"), Length),
        (head("Content-Length: 99999999999999999999999"), Length),
        (head("Content-Length: 5\r\nContent-Length: 5"), Length),
        (
            head("Content-Length: 5\r\nTransfer-Encoding: chunked"),
            Length,
        ),
        (head("Content-Length: 101"), BodyLong(BYTES_MAX)),
        (head("Content-Encoding: gzip"), Encoded),
        (head("Transfer-Encoding: gzip"), Encoded),
        (
            head(&format!("A: b\r\n\r\n{}", "x".repeat(BYTES_MAX))),
            BodyLong(BYTES_MAX),
        ),
        (chunked(""), End),
        (chunked("5\r\nhel"), End),
        (chunked("5\r\nhello\r\n"), End),
        (chunked("+5\r\nhello\r\n0\r\n\r\n"), Chunks),
        (chunked("\r\n"), Chunks),
        (chunked("5\r\nhelloXX0\r\n\r\n"), Chunks),
        (chunked("65\r\n"), BodyLong(BYTES_MAX)),
        (chunked("ffffffffffffffff\r\n"), BodyLong(BYTES_MAX)),
        (chunked("fffffffffffffffff\r\n"), Chunks),
        (chunked(&"1;".repeat(CHUNK_OVERHEAD_BYTES_MAX)), Chunks),
    ] {
        assert_eq!(receive(response.as_bytes()), Err(error), "{response:.60}");
    }
}

#[test]
fn an_endless_response_ends_at_the_limits() {
    /// Sends the beginning and then the same byte for ever.
    struct EndlessResponse(Cursor<&'static [u8]>);
    impl Read for EndlessResponse {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            match self.0.read(buffer)? {
                0 => {
                    buffer.fill(b'a');
                    Ok(buffer.len())
                }
                read => Ok(read),
            }
        }
    }
    for (beginning, error) in [
        (&b"HTTP/1.1 200 OK\r\n"[..], ResponseParseError::HeadLong),
        (
            b"HTTP/1.1 200 OK\r\n\r\n",
            ResponseParseError::BodyLong(BYTES_MAX),
        ),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            ResponseParseError::Chunks,
        ),
    ] {
        let read =
            MetadataResponse::receive(&mut EndlessResponse(Cursor::new(beginning)), BYTES_MAX);
        match read {
            Err(MetadataError::Response(found)) => assert_eq!(found, error),
            other => panic!("{other:?}"),
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_are_answered(
        fields in "(Content-Length: [0-9]{1,3}|Transfer-Encoding: chunked|a: b|\r\n){0,5}",
        rest in prop::collection::vec(any::<u8>(), 0..80),
    ) {
        let mut response = format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n").into_bytes();
        response.extend(rest);
        let _ = receive(&response);
    }
}
