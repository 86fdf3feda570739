//! A TCP connection that is bound to one card and ends at one moment.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::MetadataError;

/// A connection whose reads and writes all end at the same moment: a server that sends byte by byte
/// gets no more time.
#[derive(Debug)]
pub(crate) struct TimedStream {
    stream: TcpStream,
    until: Instant,
}

impl TimedStream {
    pub(crate) fn connect(
        to: SocketAddr,
        interface: Option<&str>,
        until: Instant,
    ) -> Result<Self, MetadataError> {
        let left = time_left(until).map_err(MetadataError::from_io)?;
        let connect = || {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
            if let Some(interface) = interface {
                // Another card may lead to another network, where an attacker can have the address.
                socket.bind_device(Some(interface.as_bytes()))?;
            }
            socket.connect_timeout(&SockAddr::from(to), left)?;
            Ok(TcpStream::from(socket))
        };
        let stream = connect().map_err(|error: io::Error| match error.kind() {
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => MetadataError::Time,
            _ => MetadataError::Connect(error),
        })?;
        Ok(Self { stream, until })
    }
}

fn time_left(until: Instant) -> io::Result<Duration> {
    let left = until.saturating_duration_since(Instant::now());
    // A timeout of zero would mean none.
    (!left.is_zero())
        .then_some(left)
        .ok_or_else(|| io::ErrorKind::TimedOut.into())
}

impl Read for TimedStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(time_left(self.until)?))?;
        self.stream.read(buffer)
    }
}

impl Write for TimedStream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.stream
            .set_write_timeout(Some(time_left(self.until)?))?;
        self.stream.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}
