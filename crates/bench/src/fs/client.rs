//! The client that loads every server of files over HTTP.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, HOST};
use http::{Method, Request, Response};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;

use crate::call::measure::failed;
use crate::http::{BenchHttpClient, BenchHttpVersion};
use alknet_tasks::failure::Result;

/// Bytes of the block that a long content repeats.
const BLOCK_BYTES: usize = 256 << 10;

/// A block of bytes without a pattern that a server could make use of.
pub(super) fn noise() -> Bytes {
    let mut block = vec![0; BLOCK_BYTES];
    blake3::Hasher::new().finalize_xof().fill(&mut block);
    block.into()
}

/// Where a server has the files.
#[derive(Clone, Debug)]
pub(super) struct DavRoot {
    pub(super) address: SocketAddr,
    /// What stands before each path.
    pub(super) prefix: &'static str,
    /// What opens it.
    pub(super) token: Option<String>,
}

/// The content of a request: first some bytes, then a block as often as needed.
pub(super) struct UploadBody {
    first: Option<Bytes>,
    block: Bytes,
    left: u64,
}

impl UploadBody {
    pub(super) const fn empty() -> Self {
        Self {
            first: None,
            block: Bytes::new(),
            left: 0,
        }
    }

    pub(super) const fn short(bytes: Bytes) -> Self {
        Self {
            left: bytes.len() as u64,
            first: Some(bytes),
            block: Bytes::new(),
        }
    }

    /// So many bytes that begin with a number: no server has had them before.
    pub(super) fn long(number: u64, bytes: u64, block: &Bytes) -> Self {
        Self {
            first: Some(Bytes::copy_from_slice(&number.to_le_bytes())),
            block: block.clone(),
            left: bytes,
        }
    }

    /// The same bytes for a file.
    pub(super) fn pieces(mut self) -> impl Iterator<Item = Bytes> {
        std::iter::from_fn(move || self.next_piece())
    }

    fn next_piece(&mut self) -> Option<Bytes> {
        let mut piece = self.first.take().unwrap_or_else(|| self.block.clone());
        piece.truncate(usize::try_from(self.left).unwrap_or(usize::MAX));
        self.left -= piece.len() as u64;
        (!piece.is_empty()).then_some(piece)
    }
}

impl Body for UploadBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Bytes>, Infallible>>> {
        let piece = self.next_piece();
        Poll::Ready(piece.map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

/// A connection of HTTP/1.1 to a server of files.
pub(super) struct DavClient {
    sender: http1::SendRequest<UploadBody>,
    root: DavRoot,
}

impl DavClient {
    pub(super) async fn open(root: DavRoot) -> Result<Self> {
        let stream = BenchHttpClient::tls(root.address, BenchHttpVersion::H1).await?;
        let made = http1::handshake(TokioIo::new(stream)).await;
        let (sender, connection) = made.map_err(failed("HTTP/1.1"))?;
        tokio::spawn(connection);
        Ok(Self { sender, root })
    }

    /// Makes a collection. Its path ends with a slash.
    pub(super) async fn make_collection(&mut self, path: &str) -> Result<()> {
        let method = Method::from_bytes(b"MKCOL").map_err(failed("asking"))?;
        let answer = self.send(method, path, UploadBody::empty()).await?;
        drain(answer).await.map(drop)
    }

    /// Stores a file, and waits for the answer.
    pub(super) async fn put(&mut self, path: &str, content: UploadBody) -> Result<()> {
        let answer = self.send(Method::PUT, path, content).await?;
        drain(answer).await.map(drop)
    }

    /// Reads a file to its end. Returns its bytes.
    pub(super) async fn get(&mut self, path: &str) -> Result<u64> {
        drain(self.begin_get(path).await?).await
    }

    /// Asks for a file, and reads nothing of its content yet.
    pub(super) async fn begin_get(&mut self, path: &str) -> Result<Response<Incoming>> {
        self.send(Method::GET, path, UploadBody::empty()).await
    }

    async fn send(
        &mut self,
        method: Method,
        path: &str,
        content: UploadBody,
    ) -> Result<Response<Incoming>> {
        let asked = format!("{method} {path}");
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.root.prefix))
            .header(HOST, self.root.address.to_string())
            .header(ACCEPT, "application/json");
        if let Some(token) = &self.root.token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request.body(content).map_err(failed("asking"))?;
        self.sender.ready().await.map_err(failed("asking"))?;
        let answer = self.sender.send_request(request).await;
        let answer = answer.map_err(failed("asking"))?;
        // A refusal would be quicker than the work.
        match answer.status().is_success() {
            true => Ok(answer),
            false => Err(failed("asking")(format!("{asked}: {}", answer.status()))),
        }
    }
}

async fn drain(answer: Response<Incoming>) -> Result<u64> {
    let (mut body, mut bytes) = (answer.into_body(), 0);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(failed("reading"))?;
        bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_content_has_its_length_and_differs_by_its_number() {
        let block = Bytes::from_static(b"0123456789");
        let content = |number| {
            UploadBody::long(number, 25, &block)
                .pieces()
                .collect::<Vec<_>>()
                .concat()
        };
        assert_eq!(content(1).len(), 25);
        assert_eq!(content(1)[8..], *b"01234567890123456");
        assert_ne!(content(1), content(2));
        let body = UploadBody::long(1, 25, &block);
        assert_eq!(body.size_hint().exact(), Some(25));
        assert_eq!(UploadBody::empty().pieces().count(), 0);
        let short = UploadBody::short(Bytes::from_static(b"short"));
        assert_eq!(
            short.pieces().collect::<Vec<_>>(),
            [Bytes::from_static(b"short")]
        );
    }
}
