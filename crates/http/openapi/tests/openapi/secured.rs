//! TLS in front of servers that have none, with a certificate that only its key makes known.

use std::net::SocketAddr;

use alknet_core::PeerKey;
use tokio::net::{TcpListener, TcpStream};

use crate::certificate::acceptor;

/// TLS on a port of its own, and plain bytes to another behind it.
pub(crate) struct TlsFrontend {
    pub(crate) address: SocketAddr,
    pub(crate) pin: PeerKey,
}

impl TlsFrontend {
    pub(crate) async fn before(behind: SocketAddr) -> Self {
        let (acceptor, pin) = acceptor("stand-in.example", &["http/1.1"]);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let mut tls = acceptor.accept(stream).await?;
                    let mut plain = TcpStream::connect(behind).await?;
                    tokio::io::copy_bidirectional(&mut tls, &mut plain).await
                });
            }
        });
        Self { address, pin }
    }
}
