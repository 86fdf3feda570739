//! Requests that are none, or ask for too much.

use super::*;

async fn refused(peer: &Connection, request: &[u8]) -> Option<u64> {
    let response = ask(peer, request).await;
    assert_eq!(response.bytes.len(), 0);
    response.code
}

/// The numbers of the encoding, seven bits in a byte.
fn number(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let low = (value & 0x7f) as u8;
        value >>= 7;
        bytes.push(low | u8::from(value > 0) << 7);
        if value == 0 {
            break bytes;
        }
    }
}

fn get_of(hash: ContentHash, body: &[Vec<u8>]) -> Vec<u8> {
    [&[0][..], hash.as_bytes(), &body.concat()].concat()
}

/// A million ranges in one request: more than a mebibyte of them, and as few bytes as they need.
#[tokio::test]
async fn a_million_ranges_are_refused() {
    let node = BlobNode::new().await;
    let hash = node.put("docs", "/a", &noise(5 * GROUP)).await;
    let peer = node.peer("ada", &["fs:read:docs"]);
    let million = vec![1; 2_000_000];
    let request = get_of(hash, &[number(1), number(0), number(2_000_000), million]);
    assert_eq!(refused(&peer, &request).await, Some(2));
    // As many contents.
    let contents: Vec<u8> = (0..1_000_000)
        .flat_map(|at| [1, 1, (at % 2) as u8])
        .collect();
    let request = get_of(hash, &[number(1_000_000), contents]);
    assert_eq!(refused(&peer, &request).await, Some(2));
    // As many as the node takes are served.
    let chunks = vec![1; 80];
    let request = get_of(
        hash,
        &[
            number(2),
            number(0),
            number(80),
            chunks,
            number(1),
            number(0),
        ],
    );
    assert_eq!(ask(&peer, &request).await.code, None);
    assert_eq!(ask(&peer, &get_all(hash)).await.code, None);
}

#[tokio::test]
async fn a_long_body_is_refused_before_its_end() {
    let node = BlobNode::new().await;
    let peer = node.peer("ada", &["fs:read:*", "fs:push:*"]);
    let (mut send, mut recv) = peer.open_bi().await.expect("a stream");
    // Two mebibytes, and no end of the request. The node stops reading, so that a write may fail.
    let mut piece = vec![0];
    for _ in 0..32 {
        drop(send.write_chunk(piece.into()).await);
        piece = vec![0x80; 64 << 10];
    }
    let response = tokio::time::timeout(hung(), response(&mut recv)).await;
    assert_eq!(response.expect("in time").code, Some(2));
}

#[tokio::test]
async fn pushes_and_requests_for_many_contents_are_refused() {
    let node = BlobNode::new().await;
    let hash = node.put("docs", "/a", &noise(300)).await;
    for scopes in [&["fs:read:docs"][..], &["*"]] {
        let peer = node.peer("ada", scopes);
        let body = [&hash.as_bytes()[..], &[2, 0, 1, 0, 1, 0]].concat();
        let push = [&[8, body.len() as u8][..], &body, &noise(300)].concat();
        assert_eq!(refused(&peer, &push).await, Some(1));
        let many = [&[9, 1][..], hash.as_bytes(), &[1, 0, 1, 0]].concat();
        assert_eq!(refused(&peer, &many).await, Some(1));
        for kind in [2, 7, 10, 255] {
            assert_eq!(refused(&peer, &[kind]).await, Some(1));
        }
    }
    let unchanged = noise(300);
    assert_eq!(node.bytes(hash).await, unchanged);
}

#[tokio::test]
async fn what_is_no_request_is_refused() {
    let node = BlobNode::new().await;
    let hash = node.put("docs", "/a", &noise(300)).await;
    let peer = node.peer("ada", &["fs:read:docs"]);
    let whole = get_all(hash);
    for request in [
        Vec::new(),
        whole[..20].to_vec(),
        [&whole[..], b"more"].concat(),
        get_of(hash, &[number(1), number(0), vec![2, 5, 0]]),
    ] {
        assert_eq!(refused(&peer, &request).await, Some(2), "{request:?}");
    }
    assert_eq!(ask(&peer, &whole).await.code, None);
}

/// A request that does not end takes its stream for a time only.
#[tokio::test]
async fn a_request_that_does_not_end_is_given_up() {
    let node = BlobNode::new().await;
    let options = BlobOptions {
        request_time: Duration::from_millis(20),
        ..BlobOptions::default()
    };
    let node = node.with_options(options);
    let peer = node.peer("ada", &["fs:read:docs"]);
    let (mut send, mut recv) = peer.open_bi().await.expect("a stream");
    send.write_chunk(vec![0, 1, 2].into()).await.expect("room");
    let response = tokio::time::timeout(hung(), response(&mut recv)).await;
    assert_eq!(response.expect("in time").code, Some(2));
}

/// A peer that takes nothing of a response takes its stream for a time only.
#[tokio::test]
async fn a_response_that_is_not_read_is_given_up() {
    let node = BlobNode::new().await;
    let hash = node.put("docs", "/a", &noise(200 * GROUP)).await;
    let options = BlobOptions {
        stalled_time: Duration::from_millis(20),
        ..BlobOptions::default()
    };
    let node = node.with_options(options);
    let peer = node.peer("ada", &["fs:read:docs"]);
    let (mut send, mut recv) = peer.open_bi().await.expect("a stream");
    send.write_chunk(get_all(hash).into()).await.expect("room");
    drop(send.finish());
    assert_eq!(stopped(&mut send).await, Some(2));
    let response = tokio::time::timeout(hung(), response(&mut recv)).await;
    let response = response.expect("in time");
    assert!(response.code == Some(2) && response.bytes.len() < 200 * GROUP);
}
