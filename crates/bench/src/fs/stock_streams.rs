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
        AsyncReadRecvStream::new(BlobPeerRecv(Mutex::new(recv))),
        AsyncWriteSendStream::new(BlobPeerSend(Mutex::new(send))),
    )
}

/// The half of a stream that several threads may refer to, as iroh-blobs asks for. Only one has it: it is never locked.
type SharedHalf<H> = Mutex<H>;

fn half<H>(shared: &mut SharedHalf<H>) -> &mut H {
    shared.get_mut().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug)]
pub(super) struct BlobPeerRecv(SharedHalf<RecvStream>);

impl AsyncReadRecvStreamExtra for BlobPeerRecv {
    fn inner(&mut self) -> &mut (impl AsyncRead + Unpin + Send) {
        half(&mut self.0)
    }

    fn stop(&mut self, code: VarInt) -> io::Result<()> {
        half(&mut self.0).stop(foreign(code)?);
        Ok(())
    }

    fn id(&self) -> u64 {
        0
    }
}

/// Its drop ends the request or the response, as that of a stream of iroh does.
#[derive(Debug)]
pub(super) struct BlobPeerSend(SharedHalf<SendStream>);

impl Drop for BlobPeerSend {
    fn drop(&mut self) {
        // A peer that is gone reads no end.
        drop(half(&mut self.0).finish());
    }
}

impl AsyncWriteSendStreamExtra for BlobPeerSend {
    fn inner(&mut self) -> &mut (impl AsyncWrite + Unpin + Send) {
        half(&mut self.0)
    }

    fn reset(&mut self, code: VarInt) -> io::Result<()> {
        half(&mut self.0).reset(foreign(code)?);
        Ok(())
    }

    async fn stopped(&mut self) -> io::Result<Option<VarInt>> {
        let code = half(&mut self.0).stopped().await?;
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
