//! Listeners for what comes without TLS, where a handler wants one of its own.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};

use crate::sockets;

/// Pause after a connection could not be accepted.
const PAUSE: Duration = Duration::from_millis(100);

/// Takes TCP connections. Their server bounds how many there are, and for how long.
#[derive(Debug)]
pub struct PlainListener(TcpListener);

/// One for each address.
///
/// # Errors
/// The port is taken or not allowed on one of them.
pub fn plain_listeners(addresses: &[IpAddr], port: u16) -> io::Result<Vec<PlainListener>> {
    let bound = addresses.iter().map(|&ip| {
        let listener = sockets::listen(SocketAddr::new(ip, port), addresses)?;
        Ok(PlainListener(listener))
    });
    bound.collect()
}

impl PlainListener {
    /// Where it listens.
    ///
    /// # Errors
    /// The socket is gone.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    /// Hands every connection to `take`, for ever.
    pub async fn each(self, take: impl Fn(TcpStream) + Send) {
        loop {
            match self.0.accept().await {
                Ok((stream, _)) => {
                    if sockets::tune(&stream).is_ok() {
                        take(stream);
                    }
                }
                Err(error) => {
                    tracing::warn!("cannot accept plain connections: {error}");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}
