//! Bodies of requests that are read whole: their bytes are counted before they are kept, and all of one has to
//! come within a time.

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

/// A piece that is shorter is copied: it is a part of what was read of the connection, and would keep all of that.
const COPIED_BYTES: usize = 16 << 10;

/// What the body of a request may take.
pub(crate) struct UploadAllowance {
    /// What its bytes count against.
    pub(crate) lease: MemoryLease,
    /// Bytes of the longest.
    pub(crate) most: usize,
    /// How long it may take from its first byte to its last.
    pub(crate) time: Duration,
}

/// Reads a body of JSON.
///
/// # Errors
/// It is not said to be JSON, too long, too slow, or breaks off; there is no memory for it now.
pub(crate) async fn json(
    headers: &HeaderMap,
    body: &mut Body,
    room: UploadAllowance,
) -> Result<RequestText, ApiError> {
    if !is_json(headers) {
        return Err(ApiError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Code::InvalidInput,
            "send 'Content-Type: application/json'",
        ));
    }
    whole(headers, body, room).await
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
/// As [`json`].
pub(crate) async fn whole(
    headers: &HeaderMap,
    body: &mut Body,
    room: UploadAllowance,
) -> Result<RequestText, ApiError> {
    let told = headers.get(CONTENT_LENGTH);
    let told = told.and_then(|told| told.to_str().ok()?.parse::<u64>().ok());
    if told.is_some_and(|told| told > room.most as u64) {
        return Err(too_large(room.most));
    }
    let told = told.map(|told| told as usize);
    // What has no room now, or never has, is not begun. Nothing is kept for what is only said to come.
    room.lease.could(told.unwrap_or_default())?;
    let mut coming = PartialUpload {
        lease: room.lease,
        told,
        counted: 0,
        first: None,
        more: BytesMut::new(),
    };
    let read = coming.read(body, room.most);
    let read = tokio::time::timeout(room.time, read).await;
    read.unwrap_or_else(|_| Err(slow()))?;
    Ok(coming.end())
}

/// A body as far as it has come.
struct PartialUpload {
    lease: MemoryLease,
    /// Bytes that are said to come.
    told: Option<usize>,
    /// Bytes that are counted for it.
    counted: usize,
    /// Most bodies come in one piece, which is not copied where it is long.
    first: Option<Bytes>,
    more: BytesMut,
}

impl PartialUpload {
    async fn read(&mut self, body: &mut Body, most: usize) -> Result<(), ApiError> {
        while !body.is_end_stream() {
            let frame = poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await;
            let Some(frame) = frame else { break };
            let frame = frame.map_err(|error| broken(&error))?;
            // Trailers say nothing here.
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

    /// Moves the `had` bytes that have come to a place of `capacity` bytes.
    fn move_to(&mut self, capacity: usize, had: usize) -> Result<(), ApiError> {
        if self.told.is_none() {
            self.count(capacity)?;
        }
        // The old place is there until the new one is filled. Where more is counted than has come, that is counted.
        let besides = (2 * had).saturating_sub(self.counted);
        self.lease.more(besides)?;
        let mut place = BytesMut::with_capacity(capacity);
        place.extend_from_slice(self.first.take().as_deref().unwrap_or(&self.more));
        self.more = place;
        self.lease.less(besides);
        Ok(())
    }

    /// Bytes of the place for a body of which `have` have come: twice as many, so that each byte is copied a few
    /// times at most, or all that are said to come once all of them are counted. A smaller place that is left is not
    /// the system's again at once: of many long bodies these would be as much memory as the bodies.
    fn capacity(&self, have: usize, most: usize) -> usize {
        match self.told.filter(|told| *told >= have) {
            Some(told) if told / BODY_AHEAD <= have => told,
            told => have.saturating_mul(2).min(told.unwrap_or(most)),
        }
    }

    /// Bytes that are counted once `have` have come: a multiple of them, up to what is said to come. Who sends nothing
    /// has nothing counted: lengths of many heads would take all that others may have. Of many long bodies that
    /// are sent at once, those without room are refused early: memory that they had is not the system's again at
    /// once.
    fn due(&self, have: usize) -> usize {
        let ahead = have.saturating_mul(BODY_AHEAD);
        self.told.map_or(have, |told| ahead.min(told).max(have))
    }

    /// Counts `bytes` in all.
    fn count(&mut self, bytes: usize) -> Result<(), ApiError> {
        let more = bytes.saturating_sub(self.counted);
        self.lease.more(more)?;
        self.counted += more;
        Ok(())
    }

    /// All of it. What was counted and did not come is given back.
    fn end(self) -> RequestText {
        let kept = match (&self.first, self.told) {
            (Some(first), _) => first.len(),
            (None, Some(_)) => self.more.len(),
            (None, None) => self.more.capacity(),
        };
        self.lease.less(self.counted.saturating_sub(kept));
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

/// The body does not come, or too slowly.
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
                told: None,
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
