//! QUIC connections as core's carriage.

mod carriage;
mod connection_ids;
mod datagram_splitter;

use quinn::{MtuDiscoveryConfig, TransportConfig};

pub(crate) use carriage::quic_carriage;
pub(crate) use connection_ids::ConnectionIdIssuer;
pub(crate) use datagram_splitter::DatagramSplitter;

quic_carriage!(quinn);

/// Silence after which a connection ends.
pub(crate) const IDLE: Duration = Duration::from_secs(45);

/// Time between the pings of a dialler.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Transport settings with `budget` from the start, but with `window_bytes` as the connection's first window. The
/// other settings are the same for both sides.
pub(crate) fn transport(
    budget: StreamBudget,
    window_bytes: u32,
    dialled: bool,
) -> Arc<TransportConfig> {
    let mut config = TransportConfig::default();
    let idle = VarInt::from_u32(u32::try_from(IDLE.as_millis()).unwrap_or(u32::MAX));
    config
        .max_concurrent_bidi_streams(budget.bidi_streams.into())
        .max_concurrent_uni_streams(budget.uni_streams.into())
        .stream_receive_window(budget.stream_window_bytes.into())
        .receive_window(window_bytes.into())
        .send_window(budget.send_window_bytes.into())
        .max_idle_timeout(Some(idle.into()))
        .mtu_discovery_config(Some(MtuDiscoveryConfig::default()))
        // No protocol here uses datagrams. With a buffer for them a peer could fill memory that the node never reads.
        .datagram_receive_buffer_size(None)
        // One side's ping restarts the idle timers of both (RFC 9000 section 10.1).
        .keep_alive_interval(dialled.then_some(KEEP_ALIVE));
    Arc::new(config)
}

async fn write_chunks(stream: &mut Sending, chunks: &mut [Bytes]) -> Result<usize, WriteError> {
    Ok(stream.write_chunks(chunks).await?.bytes)
}

async fn read_chunk(stream: &mut Receiving, max: usize) -> Result<Option<Bytes>, ReadError> {
    Ok(stream.read_chunk(max, true).await?.map(|chunk| chunk.bytes))
}

fn set_send_window(connection: &Connection, bytes: u32) {
    connection.set_send_window(bytes.into());
}

fn rtt(connection: &Connection) -> Option<Duration> {
    Some(connection.rtt())
}
