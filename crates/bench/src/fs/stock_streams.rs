//! Streams of our connections in the form that iroh-blobs takes, for its getter and for its provider.

use std::io;
use std::sync::{Mutex, PoisonError};

use alknet_core::{RecvStream, SendStream, StreamCode};
use iroh::endpoint::VarInt;
use iroh_blobs::util::{
    AsyncReadRecvStream, AsyncReadRecvStreamExtra, AsyncWriteSendStream, AsyncWriteSendStreamExtra,
};
use tokio::io::{AsyncRead, AsyncWrite};

/// What iroh-blobs reads from and writes to.
pub(super) type StockStreams = (
    AsyncReadRecvStream<BlobPeerRecv>,
    AsyncWriteSendStream<BlobPeerSend>,
);

/// Wraps both halves of a stream.
pub(super) fn stock_streams(send: SendStream, recv: RecvStream) -> StockStreams {
    (
        AsyncReadRecvStream::new(BlobPeerRecv(ShareableHalf::new(recv))),
        AsyncWriteSendStream::new(BlobPeerSend(ShareableHalf::new(send))),
    )
}

/// A half of a stream that threads may share references to, as the provider does. The lock is never taken: each use has the
/// only reference.
#[derive(Debug)]
struct ShareableHalf<T>(Mutex<T>);

impl<T> ShareableHalf<T> {
    const fn new(half: T) -> Self {
        Self(Mutex::new(half))
    }

    fn half_mut(&mut self) -> &mut T {
        self.0.get_mut().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
pub(super) struct BlobPeerRecv(ShareableHalf<RecvStream>);

impl AsyncReadRecvStreamExtra for BlobPeerRecv {
    fn inner(&mut self) -> &mut (impl AsyncRead + Unpin + Send) {
        self.0.half_mut()
    }

    fn stop(&mut self, code: VarInt) -> io::Result<()> {
        self.0.half_mut().stop(foreign(code)?);
        Ok(())
    }

    fn id(&self) -> u64 {
        0
    }
}

/// Its drop ends the request or the response, as that of a stream of iroh does.
#[derive(Debug)]
pub(super) struct BlobPeerSend(ShareableHalf<SendStream>);

impl Drop for BlobPeerSend {
    fn drop(&mut self) {
        // A peer that is gone reads no end.
        drop(self.0.half_mut().finish());
    }
}

impl AsyncWriteSendStreamExtra for BlobPeerSend {
    fn inner(&mut self) -> &mut (impl AsyncWrite + Unpin + Send) {
        self.0.half_mut()
    }

    fn reset(&mut self, code: VarInt) -> io::Result<()> {
        self.0.half_mut().reset(foreign(code)?);
        Ok(())
    }

    async fn stopped(&mut self) -> io::Result<Option<VarInt>> {
        let code = self.0.half_mut().stopped().await?;
        code.map(VarInt::from_u64)
            .transpose()
            .map_err(io::Error::other)
    }

    fn id(&self) -> u64 {
        0
    }
}

fn foreign(code: VarInt) -> io::Result<StreamCode> {
    let code = u32::try_from(code.into_inner()).map_err(io::Error::other)?;
    Ok(StreamCode::Foreign(code))
}
