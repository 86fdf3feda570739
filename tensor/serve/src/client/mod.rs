//! The client: fetches files and verifies every byte that the server sends.

mod partial_download;
mod partial_fetch;
mod whole;

use std::io::Read;
use std::ops::Range;

use alknet_core::{CloseReason, Connection, RecvStream, SendStream, StreamCode, StreamError};
use alknet_objects::{ExpectedHashes, PAIR_BYTES, TreeStep, TreeSteps};
use alknet_tensor::{
    ContainerLimits, FileId, Hash, Meta, PREFIX_BYTES, TensorError, TensorErrorCode, header_len,
};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};
use thiserror::Error;
use tokio::io::{AsyncReadExt, BufReader};

use crate::error::excerpt;
use crate::limits::{BLOCK_BYTES, GROUP_BYTES};
use crate::part::TensorResponseHead;
use crate::path::TensorFileRef;
use crate::wire::{self, FrameReadError};

/// Why the client did not fetch or store something.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ClientError {
    /// A file of this computer cannot be read or written.
    #[error("{}", .0.what())]
    Local(TensorError),
    /// The server refused the request.
    #[error("{msg}")]
    Refused {
        /// The server's error code.
        code: String,
        /// The server's message.
        msg: String,
    },
    /// The connection or the stream ended.
    #[error("the transfer was cut: {0}; run it again to go on")]
    Stream(std::io::Error),
    /// The server sent something other than what the protocol or the hash requires.
    #[error("{}", .0.what())]
    Wrong(TensorError),
}

impl ClientError {
    /// The stable code.
    #[must_use]
    pub fn code(&self) -> &str {
        match self {
            Self::Local(error) | Self::Wrong(error) => error.code().as_str(),
            Self::Refused { code, .. } => code,
            Self::Stream(_) => TensorErrorCode::Io.as_str(),
        }
    }

    /// Why the connection ended, if the error is its end.
    #[must_use]
    pub fn close_reason(&self) -> Option<&CloseReason> {
        let Self::Stream(error) = self else {
            return None;
        };
        match error.get_ref()?.downcast_ref() {
            Some(StreamError::Closed(reason)) => Some(reason),
            _ => None,
        }
    }

    fn from_code(code: TensorErrorCode, what: impl Into<String>) -> Self {
        Self::Wrong(TensorError::new(code, what))
    }
}

impl From<StreamError> for ClientError {
    fn from(error: StreamError) -> Self {
        Self::Stream(error.into())
    }
}

fn local(what: impl std::fmt::Display) -> impl FnOnce(std::io::Error) -> ClientError {
    let what = what.to_string();
    move |error| ClientError::Local(TensorError::io(what, error))
}

/// The result of a fetch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PullResult {
    /// The id of the file that was written.
    pub id: FileId,
    /// The file's bytes.
    pub bytes: u64,
    /// Bytes of content that the server sent for it.
    pub fetched: u64,
}

/// Fetches and stores files over one connection. The callback `on_progress` gets the bytes that are
/// here and the bytes in all.
#[derive(Debug)]
pub struct TensorClient {
    connection: Connection,
    limits: ContainerLimits,
}

/// A header that the server sent.
struct FetchedHeader {
    bytes: Vec<u8>,
    meta: Meta,
    id: FileId,
}

#[derive(Deserialize)]
struct TensorResponse {
    ok: bool,
    #[serde(default)]
    code: String,
    #[serde(default)]
    msg: String,
}

impl TensorClient {
    /// Uses a connection that speaks [`ALPN`](crate::ALPN).
    #[must_use]
    pub fn new(connection: Connection) -> Self {
        Self {
            connection,
            limits: ContainerLimits::NETWORK,
        }
    }

    /// Stores a file on the server, and makes `path` lead to it.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn put(
        &self,
        mut source: impl Read,
        path: Option<&str>,
        on_progress: &(dyn Fn(u64, u64) + Sync),
    ) -> Result<FileId, ClientError> {
        let mut header = Vec::with_capacity(PREFIX_BYTES as usize);
        let read = source.by_ref().take(PREFIX_BYTES).read_to_end(&mut header);
        read.map_err(local("read a header"))?;
        // Only a source that ends within the prefix has a known length.
        let source_len = match header.len() as u64 {
            PREFIX_BYTES => u64::MAX,
            len => len,
        };
        let len = header_len(&header, source_len, &self.limits).map_err(ClientError::Local)?;
        let read = source.by_ref().take(len).read_to_end(&mut header);
        read.map_err(local("read a header"))?;
        let text = header.get(PREFIX_BYTES as usize..).unwrap_or_default();
        let meta = Meta::of_header(text, &self.limits).map_err(ClientError::Local)?;
        let total = meta.file_len();
        let mut request = json!({ "v": 1, "want": "put" });
        if let Some(path) = path {
            request["path"] = path.into();
        }
        let (mut send, mut recv) = self.connection.open_bi().await?;
        wire::write(&mut send, &request).await?;
        // The server may refuse the upload before the whole header is sent, so the refusal is read
        // before the send error is reported.
        let mut done = header.len() as u64;
        let began = send.write_chunk(Bytes::from(header)).await;
        answer(&mut recv).await?;
        began?;
        let mut piece = vec![0; BLOCK_BYTES];
        loop {
            let read = source.read(&mut piece).map_err(local("read a file"))?;
            if read == 0 {
                break;
            }
            if send
                .write_chunk(Bytes::copy_from_slice(&piece[..read]))
                .await
                .is_err()
            {
                break;
            }
            done += read as u64;
            on_progress(done, total);
        }
        // If the server stopped the stream, its response says why.
        let _ = send.finish();
        let head = answer(&mut recv).await?;
        id_of(&head)
    }

    /// Fetches a part without its hash tree, at most `most` bytes.
    ///
    /// # Errors
    /// See [`ClientError`]; `E_LIMIT` if the part is longer.
    pub async fn raw(
        &self,
        src: &TensorFileRef,
        want: Value,
        most: u64,
    ) -> Result<Vec<u8>, ClientError> {
        let (head, mut recv) = self.fetch(src, want).await?;
        if head.len > most {
            let what = format!("{} bytes, {most} are taken", head.len);
            return Err(ClientError::from_code(TensorErrorCode::Limit, what));
        }
        let mut bytes = Vec::new();
        let read = (&mut recv).take(head.len).read_to_end(&mut bytes).await;
        read.map_err(ClientError::Stream)?;
        if (bytes.len() as u64) < head.len {
            let ended = std::io::ErrorKind::UnexpectedEof;
            return Err(ClientError::Stream(ended.into()));
        }
        Ok(bytes)
    }

    async fn header(&self, src: &TensorFileRef) -> Result<FetchedHeader, ClientError> {
        let most = self.limits.header_bytes + PREFIX_BYTES;
        let (head, mut recv) = self.fetch(src, json!({ "want": "header" })).await?;
        if head.len > most {
            let what = format!("a header of {} bytes", head.len);
            return Err(ClientError::from_code(TensorErrorCode::Limit, what));
        }
        let mut bytes = Vec::new();
        let read = (&mut recv).take(head.len).read_to_end(&mut bytes).await;
        read.map_err(ClientError::Stream)?;
        let len = header_len(&bytes, bytes.len() as u64, &self.limits);
        let len = len.map_err(ClientError::Wrong)?;
        let text = bytes.get(PREFIX_BYTES as usize..).unwrap_or_default();
        // The length in the prefix and the bytes of the response must agree, or the hash of the
        // header has no meaning.
        if text.len() as u64 != len {
            return Err(ClientError::from_code(
                TensorErrorCode::Header,
                "the header is not whole",
            ));
        }
        let meta = Meta::of_header(text, &self.limits).map_err(ClientError::Wrong)?;
        let id = match src {
            // The caller's own id decides; the server's word counts only where the caller named a
            // path.
            TensorFileRef::Id(id) => *id,
            TensorFileRef::Path(_) => id_of(&head)?,
        };
        Ok(FetchedHeader { bytes, meta, id })
    }

    async fn fetch(
        &self,
        src: &TensorFileRef,
        mut want: Value,
    ) -> Result<(TensorResponseHead, RecvStream), ClientError> {
        want["v"] = 1.into();
        want["src"] = match src {
            TensorFileRef::Id(id) => json!({ "id": id.to_string() }),
            TensorFileRef::Path(path) => json!({ "path": path.as_str() }),
        };
        let (mut send, mut recv) = self.connection.open_bi().await?;
        ask(&mut send, &want).await?;
        let head = answer(&mut recv).await?;
        Ok((head, recv))
    }
}

async fn ask(send: &mut SendStream, request: &Value) -> Result<(), ClientError> {
    wire::write(send, request).await?;
    Ok(send.finish()?)
}

/// Reads the head of the response.
async fn answer(recv: &mut RecvStream) -> Result<TensorResponseHead, ClientError> {
    let text = wire::read(recv).await.map_err(|unread| match unread {
        FrameReadError::Long(len) => {
            ClientError::from_code(TensorErrorCode::Limit, format!("an answer of {len} bytes"))
        }
        FrameReadError::Gone(error) => ClientError::Stream(error),
    })?;
    let odd = |error: serde_json::Error| {
        ClientError::from_code(TensorErrorCode::Json, format!("answer: {}", excerpt(error)))
    };
    let answer: TensorResponse = serde_json::from_slice(&text).map_err(odd)?;
    if !answer.ok {
        let (code, msg) = (excerpt(answer.code), excerpt(answer.msg));
        return Err(ClientError::Refused { code, msg });
    }
    // The response to an upload has no length, so the head is read with defaults.
    serde_json::from_slice(&text).map_err(odd)
}

/// Reads an encoded part. `write` gets a group only once its hash is verified.
async fn proven(
    recv: RecvStream,
    root: &Hash,
    len: u64,
    part: &Range<u64>,
    mut write: impl FnMut(u64, &[u8]) -> Result<(), ClientError>,
) -> Result<(), ClientError> {
    // Hash pairs are short and read one at a time, so reads are buffered.
    let mut recv = BufReader::with_capacity(BLOCK_BYTES, recv);
    let mut expected = ExpectedHashes::root(root);
    let mut bytes = vec![0; GROUP_BYTES as usize];
    for step in TreeSteps::new(len, part) {
        let good = match step {
            TreeStep::Pair {
                root, left, right, ..
            } => {
                let mut pair = [0; PAIR_BYTES];
                recv.read_exact(&mut pair)
                    .await
                    .map_err(ClientError::Stream)?;
                expected.pair(&pair, (root, left, right))
            }
            TreeStep::Group { start, len, root } => {
                let group = &mut bytes[..len];
                recv.read_exact(group).await.map_err(ClientError::Stream)?;
                let good = expected.group(start, group, root);
                if good {
                    write(start, group)?;
                }
                good
            }
        };
        if !good {
            recv.get_mut().stop(StreamCode::Protocol);
            let what = "bytes came that the hash does not vouch for";
            return Err(ClientError::from_code(TensorErrorCode::Hash, what));
        }
    }
    Ok(())
}

fn expect_size(head: &TensorResponseHead, len: u64) -> Result<(), ClientError> {
    match head.size {
        Some(size) if size == len => Ok(()),
        size => {
            let what = format!("{size:?} bytes are offered, the header says {len}");
            Err(ClientError::from_code(TensorErrorCode::Shape, what))
        }
    }
}

fn id_of(head: &TensorResponseHead) -> Result<FileId, ClientError> {
    let id = head.id.as_deref().unwrap_or_default();
    id.parse().map_err(ClientError::Wrong)
}
