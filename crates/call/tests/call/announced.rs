//! A peer's announcement costs nothing; only the bytes that it sends do.

use crate::common::*;
use alknet_call::FrameReader;
use alknet_call::limits::{FRAME_BYTES_MAX, PeerLimits};
use alknet_core::{Carriage, StreamError};
use bytes::Bytes;

/// Resident bytes of this process.
fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages = text.split(' ').nth(1).and_then(|n| n.parse::<usize>().ok());
    pages.expect("a number") * 4096
}

/// The length field of a frame of 64 MiB.
const ANNOUNCED: Bytes = Bytes::from_static(&[4, 0, 0, 0]);

#[test]
fn a_frame_of_64_mib_that_never_comes_costs_less_than_1_mib() {
    let name = "announced::a_frame_of_64_mib_that_never_comes_costs_less_than_1_mib";
    alknet_test_support::alone(name, measure);
}

#[tokio::main(flavor = "current_thread")]
async fn measure() {
    let limits = PeerLimits {
        frame_bytes: FRAME_BYTES_MAX,
        ..PeerLimits::AUTHENTICATED
    };
    let node = CallTestNode::with_limits(limits);
    // Reserved memory that the process has not touched is not resident: the frame tests count it.
    let mut frames = FrameReader::new();
    frames.push(ANNOUNCED);
    frames.push(Bytes::from_static(b"{"));
    assert_eq!(frames.next_frame(FRAME_BYTES_MAX), Ok(None));
    let held = frames.held_bytes();
    assert!((1..1 << 20).contains(&held), "{held} bytes are held");
    // The measurement begins after the cost of the connection itself.
    drop(RawPeer::new(node.serve(Carriage::Memory, None).0).await);
    for who in [None, Some(identity("peer", &[]))] {
        let before = resident();
        let mut peers = Vec::new();
        for _ in 0..64 {
            let (dialled, _served) = node.serve(Carriage::Memory, who.clone());
            let mut peer = RawPeer::new(dialled).await;
            peer.send_bytes(ANNOUNCED).await;
            if who.is_none() {
                let end = soon(peer.recv.read_chunk(9)).await;
                assert!(matches!(end, Err(StreamError::Reset(5))), "{end:?}");
            } else {
                peer.send_bytes(Bytes::from_static(b"{")).await;
                let mut again = RawPeer::new(peer.connection.clone()).await;
                again.request("1", "/test/echo", 1.into()).await;
                again.event().await;
            }
            peers.push(peer);
        }
        let grown = resident().saturating_sub(before) / peers.len();
        assert!(grown < 1 << 20, "{grown} bytes for each");
    }
}
