//! Frames of the protocol: a length of 32 bits, most significant byte first, and JSON.

use alknet_core::{RecvStream, SendStream, StreamError};
use bytes::Bytes;
use serde_json::Value;
use tokio::io::AsyncReadExt;

use crate::limits::REQUEST_BYTES;

/// Why a frame was not read.
#[derive(Debug)]
pub(crate) enum FrameReadError {
    /// The frame states a length above the limit.
    Long(usize),
    /// The stream ended or failed.
    Gone(std::io::Error),
}

/// Reads a frame.
pub(crate) async fn read(recv: &mut RecvStream) -> Result<Vec<u8>, FrameReadError> {
    let len = recv.read_u32().await.map_err(FrameReadError::Gone)?;
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    // The limit is checked before memory for the frame is allocated.
    if len > REQUEST_BYTES {
        return Err(FrameReadError::Long(len));
    }
    let mut text = vec![0; len];
    recv.read_exact(&mut text)
        .await
        .map_err(FrameReadError::Gone)?;
    Ok(text)
}

/// Writes a frame.
pub(crate) async fn write(send: &mut SendStream, value: &Value) -> Result<(), StreamError> {
    let text = value.to_string();
    // The frames of this side are short, so the cast keeps the length.
    let mut frame = (text.len() as u32).to_be_bytes().to_vec();
    frame.extend(text.into_bytes());
    send.write_chunk(Bytes::from(frame)).await
}
