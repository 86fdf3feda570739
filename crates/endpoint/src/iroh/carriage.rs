//! Iroh connections as core's carriage.

use iroh::endpoint::PathId;

use crate::quic::quic_carriage;

quic_carriage!(iroh::endpoint);

async fn write_chunks(stream: &mut Sending, chunks: &mut [Bytes]) -> Result<usize, WriteError> {
    let all = chunks.len();
    let mut rest = &mut *chunks;
    let bytes = stream.write_many_chunks(&mut rest).await?;
    let taken = all - rest.len();
    // The library only skips the chunks that it has written whole.
    chunks[..taken].fill(Bytes::new());
    Ok(bytes)
}

async fn read_chunk(stream: &mut Receiving, max: usize) -> Result<Option<Bytes>, ReadError> {
    stream.read_chunk(max).await
}

/// Does nothing: the library fixes the size for the life of a connection.
fn set_send_window(_connection: &Connection, _bytes: u32) {}

fn rtt(connection: &Connection) -> Option<Duration> {
    connection.rtt(PathId::ZERO)
}
