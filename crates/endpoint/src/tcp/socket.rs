//! The socket under TLS.
//!
//! The TLS library hands over a list of records even where there is only one, and uses the system call for lists.
//! That costs a quarter of a microsecond more than the call for a single piece, which nearly every response is.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// A TCP socket that sends a single piece with the system call for one.
#[derive(Debug)]
pub(crate) struct Socket(TcpStream);

impl Socket {
    pub(crate) fn new(tcp: TcpStream) -> Self {
        Self(tcp)
    }

    pub(crate) fn tcp(&self) -> &TcpStream {
        &self.0
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let tcp = Pin::new(&mut self.0);
        match parts {
            [one] => tcp.poll_write(cx, one),
            parts => tcp.poll_write_vectored(cx, parts),
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn pieces_arrive_in_order_however_many_there_are() -> io::Result<()> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let mut to = TcpStream::connect(listener.local_addr()?).await?;
        let (from, _) = listener.accept().await?;
        let mut socket = Socket::new(from);
        for parts in [&["one"][..], &["", "two"], &["th", "", "ree"]] {
            let parts: Vec<_> = parts
                .iter()
                .map(|part| IoSlice::new(part.as_bytes()))
                .collect();
            let all: usize = parts.iter().map(|part| part.len()).sum();
            assert_eq!(socket.write_vectored(&parts).await?, all);
        }
        socket.shutdown().await?;
        let mut received = String::new();
        to.read_to_string(&mut received).await?;
        assert_eq!(received, "onetwothree");
        Ok(())
    }
}
