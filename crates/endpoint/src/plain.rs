//! TCP listeners without TLS, for handlers that need one of their own.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};

use crate::sockets;

/// Pause after a failure to accept a connection.
const PAUSE: Duration = Duration::from_millis(100);

/// Accepts TCP connections. The server that uses it bounds their number and their time.
#[derive(Debug)]
pub struct PlainListener(TcpListener);

/// Binds one listener for each address.
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
    /// The address of the socket.
    ///
    /// # Errors
    /// The socket is gone.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    /// Accepts connections for ever, and hands each to `take`.
    pub async fn each(self, take: impl Fn(TcpStream) + Send) {
        loop {
            match self.0.accept().await {
                Ok((stream, _)) => {
                    // Setting the options fails for a client that has gone already.
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
