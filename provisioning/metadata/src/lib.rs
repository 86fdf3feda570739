//! Asks a cloud's metadata service for the node's document, and reports to Azure that the machine
//! is ready. The child process that PID 1 starts calls this: PID 1 parses no response of a network.
//!
//! The services speak HTTP/1.1 at [`METADATA`] and [`WIRE_SERVER`], without names and without TLS.
//! The client here is for them alone. It follows no redirect, uses no proxy, resolves no name, and
//! bounds header, document and time. Every response is untrusted.
//!
//! [`fetch`] returns the bytes of the user data. They have to be an alknet document: the client
//! refuses compressed and cloud-init content, and never unpacks or runs anything.

mod error;
mod goal_state;
mod http;
mod service;
mod stream;

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::{Duration, Instant};

use zeroize::Zeroizing;

pub use error::MetadataError;
pub use goal_state::GoalState;
pub use http::{CHUNK_OVERHEAD_BYTES_MAX, HEAD_BYTES_MAX, MetadataResponse, ResponseParseError};
pub use service::{USER_DATA_BYTES_MAX, read_user_data};

use http::HttpRequest;
use stream::TimedStream;

/// Where every metadata service answers (RFC 3927).
pub const METADATA: SocketAddr =
    SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::new(169, 254, 169, 254), 80));
/// Where Azure takes the report that a machine is ready.
pub const WIRE_SERVER: SocketAddr =
    SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::new(168, 63, 129, 16), 80));
/// The pause before the client repeats a request that failed for now.
const PAUSE: Duration = Duration::from_millis(250);

/// How the services are reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetadataAccess {
    /// The card that the connections are bound to. `None` lets the kernel choose, for tests.
    pub interface: Option<String>,
    /// The metadata service.
    pub metadata: SocketAddr,
    /// Azure's wire server.
    pub wire_server: SocketAddr,
    /// When everything has to be over.
    pub until: Instant,
}

impl MetadataAccess {
    /// The services of the cloud, over one card, for this long.
    #[must_use]
    pub fn over(interface: &str, time: Duration) -> Self {
        Self {
            interface: Some(interface.to_owned()),
            metadata: METADATA,
            wire_server: WIRE_SERVER,
            until: Instant::now() + time,
        }
    }

    /// One request on a connection of its own.
    fn send_request(
        &self,
        to: SocketAddr,
        request: &HttpRequest<'_>,
    ) -> Result<MetadataResponse, MetadataError> {
        let mut stream = TimedStream::connect(to, self.interface.as_deref(), self.until)?;
        request.write(&to, &mut stream)?;
        MetadataResponse::receive(&mut stream, request.bytes_max)
    }

    /// Runs `attempt` again while it fails for now and there is time.
    fn repeat<T>(
        &self,
        attempt: impl Fn() -> Result<T, MetadataError>,
    ) -> Result<T, MetadataError> {
        loop {
            match attempt() {
                // A service may start a moment after the machine.
                Err(error) if error.is_for_now() && Instant::now() + PAUSE < self.until => {
                    std::thread::sleep(PAUSE);
                }
                outcome => return outcome,
            }
        }
    }
}

/// The user data that `service` has for this machine. `None` if it has none.
///
/// # Errors
/// See [`MetadataError`].
pub fn fetch(
    service: alknet_provisioning::MetadataService,
    access: &MetadataAccess,
) -> Result<Option<Zeroizing<Vec<u8>>>, MetadataError> {
    access.repeat(|| service::fetch_once(service, access))
}

/// Reports to Azure's wire server that this machine is ready.
///
/// # Errors
/// See [`MetadataError`].
pub fn report_ready(access: &MetadataAccess) -> Result<(), MetadataError> {
    access.repeat(|| goal_state::report_once(access))
}
