//! Reads bodies of requests completely. Their bytes are counted before they are stored, and a whole body must arrive
//! within a time limit.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use alknet_gateway::limits::BODY_AHEAD;
use alknet_gateway::{ApiError, Code, MemoryLease, RequestText};
use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http::StatusCode;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http_body::Body as _;

use crate::framing;

/// A shorter piece is copied: it is a part of the connection's read buffer, and would keep all of that.
const COPIED_BYTES: usize = 16 << 10;

/// The memory and time that the body of a request may use.
pub(crate) struct UploadAllowance {
    /// The lease that counts the bytes.
    pub(crate) lease: MemoryLease,
    /// The most bytes of the body.
    pub(crate) most: usize,
    /// The limit from the first byte to the last.
    pub(crate) time: Duration,
}

/// Reads a body of JSON.
///
/// # Errors
/// The body is not declared as JSON, is too long or too slow, breaks off, or memory is short.
pub(crate) async fn json(
    headers: &HeaderMap,
    body: &mut Body,
    allowance: UploadAllowance,
) -> Result<RequestText, ApiError> {
    if !is_json(headers) {
        return Err(ApiError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Code::InvalidInput,
            "send 'Content-Type: application/json'",
        ));
    }
    whole(headers, body, allowance).await
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers
        .get(CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok());
    let kind = kind.and_then(|kind| kind.split(';').next());
    kind.is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
}

/// Reads a body of any kind.
///
/// # Errors
/// The errors of [`json`].
pub(crate) async fn whole(
    headers: &HeaderMap,
    body: &mut Body,
    allowance: UploadAllowance,
) -> Result<RequestText, ApiError> {
    let declared = headers.get(CONTENT_LENGTH);
    let declared = declared.and_then(|declared| declared.to_str().ok()?.parse::<u64>().ok());
    if declared.is_some_and(|declared| declared > allowance.most as u64) {
        return Err(too_large(allowance.most));
    }
    let declared = declared.map(|declared| declared as usize);
    // A body that memory has no room for is refused at its head. A declared length alone reserves nothing.
    allowance.lease.could(declared.unwrap_or_default())?;
    let mut coming = PartialUpload {
        lease: allowance.lease,
        declared,
        counted: 0,
        first: None,
        more: BytesMut::new(),
    };
    let read = coming.read(body, allowance.most);
    let read = tokio::time::timeout(allowance.time, read).await;
    read.unwrap_or_else(|_| Err(slow()))?;
    Ok(coming.end())
}

/// A body as far as it has arrived.
struct PartialUpload {
    lease: MemoryLease,
    /// The declared length of the body.
    declared: Option<usize>,
    /// The bytes that are counted for the body.
    counted: usize,
    /// Most bodies arrive in one piece, which is not copied if it is long.
    first: Option<Bytes>,
    more: BytesMut,
}

impl PartialUpload {
    async fn read(&mut self, body: &mut Body, most: usize) -> Result<(), ApiError> {
        while !body.is_end_stream() {
            let frame = poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await;
            let Some(frame) = frame else { break };
            let frame = frame.map_err(|error| broken(&error))?;
            // Trailers are ignored.
            let Ok(data) = frame.into_data() else {
                continue;
            };
            self.add(data, most)?;
        }
        Ok(())
    }

    fn add(&mut self, data: Bytes, most: usize) -> Result<(), ApiError> {
        let had = self
            .first
            .as_ref()
            .map_or(0, Bytes::len)
            .max(self.more.len());
        let have = had + data.len();
        // A body without a declared length may still be too long.
        if have > most {
            return Err(too_large(most));
        }
        if had == 0 {
            self.count(self.due(have))?;
            self.first = Some(match have < COPIED_BYTES {
                true => Bytes::copy_from_slice(&data),
                false => data,
            });
            return Ok(());
        }
        self.count(self.due(have))?;
        if self.more.capacity() < have {
            self.move_to(self.capacity(have, most), had)?;
        }
        self.more.extend_from_slice(&data);
        Ok(())
    }

    /// Moves the `had` bytes that have arrived to a buffer of `capacity` bytes.
    fn move_to(&mut self, capacity: usize, had: usize) -> Result<(), ApiError> {
        if self.declared.is_none() {
            self.count(capacity)?;
        }
        // The old buffer exists until the new one is filled, so its bytes count too, except those that were counted
        // in advance.
        let uncounted = (2 * had).saturating_sub(self.counted);
        self.lease.more(uncounted)?;
        let mut buffer = BytesMut::with_capacity(capacity);
        buffer.extend_from_slice(self.first.take().as_deref().unwrap_or(&self.more));
        self.more = buffer;
        self.lease.less(uncounted);
        Ok(())
    }

    /// The capacity of the buffer for a body of which `have` bytes have arrived: twice as many, so that each byte is
    /// copied only a few times, or the declared length once all of it is counted. The system does not get the memory
    /// of a smaller buffer back at once, so for many long bodies those buffers would use as much memory as the
    /// bodies.
    fn capacity(&self, have: usize, most: usize) -> usize {
        match self.declared.filter(|declared| *declared >= have) {
            Some(declared) if declared / BODY_AHEAD <= have => declared,
            declared => have.saturating_mul(2).min(declared.unwrap_or(most)),
        }
    }

    /// The bytes that count once `have` bytes have arrived: a multiple of them, up to the declared length. A client
    /// that sends nothing counts nothing, because the declared lengths of many requests could use up what other
    /// callers may have. Of many long bodies that arrive at once, those without room are refused early, because the
    /// system does not get their memory back at once.
    fn due(&self, have: usize) -> usize {
        let ahead = have.saturating_mul(BODY_AHEAD);
        self.declared
            .map_or(have, |declared| ahead.min(declared).max(have))
    }

    /// Raises the counted bytes to `bytes`.
    fn count(&mut self, bytes: usize) -> Result<(), ApiError> {
        let more = bytes.saturating_sub(self.counted);
        self.lease.more(more)?;
        self.counted += more;
        Ok(())
    }

    /// The whole body. Bytes that were counted but did not arrive are released.
    fn end(self) -> RequestText {
        let allocated = match (&self.first, self.declared) {
            (Some(first), _) => first.len(),
            (None, Some(_)) => self.more.len(),
            (None, None) => self.more.capacity(),
        };
        self.lease.less(self.counted.saturating_sub(allocated));
        RequestText {
            text: self.first.unwrap_or_else(|| self.more.freeze()),
            lease: Some(Arc::new(self.lease)),
        }
    }
}

fn too_large(max: usize) -> ApiError {
    let message = format!("the body has more than {max} bytes");
    ApiError::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        Code::PayloadTooLarge,
        message,
    )
}

fn broken(error: &axum::Error) -> ApiError {
    if framing::is_slow(error) {
        return slow();
    }
    ApiError::malformed("", format!("the body breaks off: {error}"))
}

/// The error for a body that does not arrive, or arrives too slowly.
pub(crate) fn slow() -> ApiError {
    ApiError::new(
        StatusCode::REQUEST_TIMEOUT,
        Code::Timeout,
        "the body comes too slowly",
    )
}

#[cfg(test)]
mod tests {
    use std::sync::Weak;

    use alknet_gateway::Gateway;

    use super::*;

    /// What was read of a connection at once, as long as something of it is kept.
    struct ReadBuffer(Arc<[u8; 64 << 10]>);

    impl AsRef<[u8]> for ReadBuffer {
        fn as_ref(&self) -> &[u8] {
            &*self.0
        }
    }

    fn read() -> (Bytes, Weak<[u8; 64 << 10]>) {
        let bytes = Arc::new([b' '; 64 << 10]);
        let kept = Arc::downgrade(&bytes);
        (Bytes::from_owner(ReadBuffer(bytes)), kept)
    }

    #[test]
    fn a_short_piece_does_not_keep_what_it_was_read_with() {
        for (piece, keeps) in [(1, false), (COPIED_BYTES - 1, false), (COPIED_BYTES, true)] {
            let gateway = Gateway::default();
            let mut coming = PartialUpload {
                lease: gateway.lease_of(&gateway.account(None, None)),
                declared: None,
                counted: 0,
                first: None,
                more: BytesMut::new(),
            };
            let (read, kept) = read();
            coming.add(read.slice(..piece), 1 << 20).expect("room");
            drop(read);
            assert_eq!(kept.upgrade().is_some(), keeps, "{piece}");
            let body = coming.end();
            assert_eq!(body.text.len(), piece);
            drop(body);
            assert_eq!(gateway.bytes(), 0);
        }
    }
}
