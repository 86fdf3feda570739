//! Bodies of requests and responses.

use alknet_core::{BoxError, MountBody};
use bytes::{Bytes, BytesMut};
use futures_util::stream;
use http::StatusCode;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};

use crate::dav::DavError;
use crate::dav::limits::XML_BODY_BYTES_MAX;

use super::DavFiles;
use super::call::run_blocking;
use super::failure::DavFailure;
use super::right::MountRight;

/// A body that is made piece by piece, as fast as the client reads.
pub(super) trait BodySource: Send + 'static {
    /// The next piece; `None` at the end. Blocks. After an error the response breaks off.
    fn next_piece(&mut self) -> Result<Option<Bytes>, DavFailure>;
}

/// The body that a source makes for as long as its caller has the right to it.
pub(super) fn pulled<F: DavFiles>(source: impl BodySource, right: MountRight<F>) -> MountBody {
    let pieces = stream::try_unfold((source, right), |(mut source, mut right)| async move {
        let next = run_blocking(move || {
            // Before the piece, which the caller must not get without the right.
            right.check_if_due()?;
            let piece = source.next_piece()?;
            right.note_bytes(piece.as_ref().map_or(0, Bytes::len));
            Ok((piece, (source, right)))
        });
        // A response that has begun can only break off, which tells the client that it is incomplete.
        let broken = |failure: DavFailure| BoxError::from(format!("{failure:?}"));
        let (piece, rest) = next.await.map_err(broken)?;
        Ok::<_, BoxError>(piece.map(|piece| (Frame::data(piece), rest)))
    });
    MountBody::new(StreamBody::new(pieces))
}

/// Whether a request has a body. Over HTTP/3, and in chunks, a request says only at its end that it has none.
pub(super) async fn has_content(mut body: MountBody) -> Result<bool, DavFailure> {
    while let Some(frame) = body.frame().await {
        // The client broke off, or was too slow.
        let frame = frame.map_err(|_| DavFailure::Status(StatusCode::BAD_REQUEST))?;
        if frame.data_ref().is_some_and(|data| !data.is_empty()) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Reads and parses the XML body of a request, after the caller's right was asked.
pub(super) async fn parse_xml<T: Send + 'static>(
    body: MountBody,
    parse: fn(&[u8]) -> Result<T, DavError>,
) -> Result<T, DavFailure> {
    let read = read_xml(body).await?;
    // A body at the limit takes milliseconds, in which a thread of the runtime would serve no other connection.
    run_blocking(move || Ok(parse(&read)?)).await
}

/// The whole XML body of a request.
async fn read_xml(mut body: MountBody) -> Result<Vec<u8>, DavFailure> {
    let mut read = BytesMut::new();
    while let Some(frame) = body.frame().await {
        // The client broke off, or was too slow.
        let frame = frame.map_err(|_| DavFailure::Status(StatusCode::BAD_REQUEST))?;
        if let Ok(data) = frame.into_data() {
            if read.len() + data.len() > XML_BODY_BYTES_MAX {
                return Err(DavError::BodyTooLarge {
                    limit: XML_BODY_BYTES_MAX,
                }
                .into());
            }
            read.extend_from_slice(&data);
        }
    }
    Ok(read.into())
}
