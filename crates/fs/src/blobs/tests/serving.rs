//! What a peer gets, and what it does not get.

use super::*;
use crate::limits::BLOB_STREAMS_MAX;

const KEY: PeerKey = PeerKey::Ed25519([7; 32]);

#[tokio::test]
async fn a_peer_gets_the_contents_of_its_buckets() {
    let node = BlobNode::new().await;
    let peer = node.peer("ada", &["fs:read:docs"]);
    for len in [0, 1, 700, GROUP, GROUP + 1, 50 * GROUP + 77] {
        let bytes = noise(len);
        let hash = node.put("docs", "/a", &bytes).await;
        let response = ask(&peer, &get_all(hash)).await;
        assert_eq!(response.code, None);
        let (sent, is_whole) = verified(&response.bytes, hash, &ChunkSelection::all());
        assert!(is_whole && sent == bytes, "{len}");
    }
}

#[tokio::test]
async fn parts_of_a_content_are_sent_alone() {
    let node = BlobNode::new().await;
    let peer = node.peer("ada", &["fs:read:*"]);
    let bytes = noise(50 * GROUP);
    let hash = node.put("docs", "/a", &bytes).await;
    for boundaries in [
        vec![16, 32],
        vec![3, 5, 100, 101],
        vec![u64::MAX],
        vec![700],
    ] {
        let selection = ChunkSelection::from_boundaries(boundaries).expect("in order");
        let response = ask(&peer, &get(hash, selection.clone())).await;
        let (sent, is_whole) = verified(&response.bytes, hash, &selection);
        assert!(is_whole, "{selection:?}");
        assert_eq!(sent.len() as u64, selection.bytes(bytes.len() as u64));
    }
    let nothing = ask(&peer, &get(hash, ChunkSelection::default())).await;
    let empty = BlobTestResponse {
        bytes: Vec::new(),
        code: None,
    };
    assert_eq!(nothing, empty);
}

/// A hash is no capability.
#[tokio::test]
async fn forbidden_and_unknown_answer_alike() {
    let node = BlobNode::new().await;
    let secret = node.put("secret", "/a", &noise(3 * GROUP)).await;
    let unknown = ContentHash::new([9; 32]);
    let eve = node.peer(
        "eve",
        &["fs:read:docs", "fs:write:secret", "fs:admin:secret"],
    );
    for request in [get_all as fn(ContentHash) -> Vec<u8>, observe] {
        let forbidden = ask(&eve, &request(secret)).await;
        assert_eq!(forbidden, ask(&eve, &request(unknown)).await);
        assert_eq!((forbidden.code, forbidden.bytes.len()), (Some(1), 0));
    }
    // Once a bucket of hers has it as well, it is hers.
    node.put("docs", "/mine", &noise(3 * GROUP)).await;
    assert_eq!(ask(&eve, &get_all(secret)).await.code, None);
}

#[tokio::test]
async fn a_right_that_is_gone_counts_for_the_next_request() {
    let node = BlobNode::new().await;
    let hash = node.put("docs", "/a", b"content").await;
    let (ours, theirs) = memory_pair(BLOBS_ALPN);
    let auth = AuthContext {
        identity: Some(identity("ada", &["fs:read:docs"])),
        key: None,
        alpn: BLOBS_ALPN.into(),
        sni: None,
        remote_addr: None,
        carriage: Carriage::Memory,
        early_data: false,
    };
    let server = theirs.clone();
    tokio::spawn(Arc::clone(&node.handler).handle(theirs, auth));
    assert_eq!(ask(&ours, &get_all(hash)).await.code, None);
    server
        .set_identity(identity("ada", &[]))
        .expect("the same peer");
    assert_eq!(ask(&ours, &get_all(hash)).await.code, Some(1));
}

#[tokio::test]
async fn a_damaged_content_breaks_off_before_the_damage() {
    let node = BlobNode::new().await;
    let bytes = noise(60 * GROUP);
    let hash = node.put("docs", "/a", &bytes).await;
    node.damage(hash, 40 * GROUP + 9);
    let peer = node.peer("ada", &["fs:read:docs"]);
    let response = ask(&peer, &get_all(hash)).await;
    assert_eq!(response.code, Some(3));
    let (sent, is_whole) = verified(&response.bytes, hash, &ChunkSelection::all());
    assert!(!is_whole && bytes.starts_with(&sent) && sent.len() <= 40 * GROUP);
    let size = bytes.len() as u64;
    assert_eq!(node.status(hash).await, ContentStatus::Bad { size });
    // From here on nothing of it is sent.
    let again = ask(&peer, &get_all(hash)).await;
    assert_eq!((again.code, again.bytes.len()), (Some(3), 0));
}

#[tokio::test]
async fn a_sequence_is_sent_with_what_it_lists() {
    let node = BlobNode::new().await;
    let contents = [noise(700), noise(3 * GROUP + 5), Vec::new()];
    let mut list = Vec::new();
    for (at, bytes) in contents.iter().enumerate() {
        let hash = node.put("docs", &format!("/{at}"), bytes).await;
        list.extend(hash.as_bytes());
    }
    let root = node.put("docs", "/list", &list).await;
    let peer = node.peer("ada", &["fs:read:docs"]);
    // Everything of the list and of what it lists: an open selection from the first content on.
    let mut request = vec![0];
    request.extend(root.as_bytes());
    request.extend([1, 0, 1, 0]);
    let response = ask(&peer, &request).await;
    assert_eq!(response.code, None);
    let all = ChunkSelection::all();
    let mut rest = &response.bytes[..];
    for bytes in [&list, &contents[0], &contents[1], &contents[2]] {
        let len = 8 + TreeSteps::encoded_len(bytes.len() as u64, &(0..bytes.len() as u64));
        let (part, behind) = rest.split_at(len as usize);
        rest = behind;
        let (sent, is_whole) = verified(part, hash_of(bytes), &all);
        assert!(is_whole && sent == *bytes);
    }
    assert!(rest.is_empty());
}

/// A list gives no right to what it lists.
#[tokio::test]
async fn a_sequence_gives_no_right() {
    let node = BlobNode::new().await;
    let secret = node.put("secret", "/a", b"secret").await;
    let lists = [secret, ContentHash::new([9; 32])];
    let mut responses = Vec::new();
    for (at, listed) in lists.iter().enumerate() {
        let root = node.put("docs", &format!("/{at}"), listed.as_bytes()).await;
        let mut request = vec![0];
        request.extend(root.as_bytes());
        // Only of what is listed.
        request.extend([1, 1, 1, 0]);
        let eve = node.peer("eve", &["fs:read:docs"]);
        responses.push(ask(&eve, &request).await);
    }
    assert_eq!(responses[0], responses[1]);
    assert_eq!((responses[0].code, responses[0].bytes.len()), (Some(1), 0));
}

#[tokio::test]
async fn a_content_that_is_no_list_lists_nothing() {
    let node = BlobNode::new().await;
    let root = node.put("docs", "/a", b"no list").await;
    let peer = node.peer("ada", &["fs:read:docs"]);
    let mut request = vec![0];
    request.extend(root.as_bytes());
    request.extend([1, 1, 1, 0]);
    assert_eq!(ask(&peer, &request).await.code, Some(3));
}

#[tokio::test]
async fn a_peer_learns_what_is_here() {
    let node = BlobNode::new().await;
    let here = node.put("docs", "/here", &noise(300)).await;
    let wanted = node.want("docs", "/wanted", &noise(301)).await;
    let peer = node.peer("ada", &["fs:read:docs"]);
    // Length, size (300 and 301 in two bytes each), and one open range or none.
    let response = ask(&peer, &observe(here)).await;
    assert_eq!(response.bytes, [4, 0xac, 2, 1, 0]);
    let response = ask(&peer, &observe(wanted)).await;
    assert_eq!(response.bytes, [3, 0xad, 2, 0]);
    // It is the peer's to know that it is wanted, and there is nothing to send.
    assert_eq!(ask(&peer, &get_all(wanted)).await.code, Some(3));
}

#[tokio::test]
async fn a_share_lets_one_key_have_one_content() {
    let node = BlobNode::new().await;
    let bytes = noise(3 * GROUP);
    let hash = node.put("secret", "/a", &bytes).await;
    let other = node.put("secret", "/b", b"other").await;
    // Without a share the connection ends at once.
    let (_stays, served) = node.outsider(KEY);
    let ended = served.await.expect("no panic");
    assert!(
        matches!(ended, Err(HandlerError::AuthRequired)),
        "{ended:?}"
    );
    node.share("secret", hash, KEY, Some(bytes.len() as u64 + 1024))
        .await;
    let (outsider, _served) = node.outsider(KEY);
    let response = ask(&outsider, &get_all(hash)).await;
    assert_eq!(response.code, None);
    let (sent, _) = verified(&response.bytes, hash, &ChunkSelection::all());
    assert!(sent == bytes);
    // Its bytes are used up but for one chunk; other contents are as unknown as one that does not exist.
    assert_eq!(ask(&outsider, &get_all(hash)).await.code, Some(1));
    let chunk = ChunkSelection::from_boundaries(vec![0, 1]).expect("in order");
    assert_eq!(ask(&outsider, &get(hash, chunk)).await.code, None);
    assert_eq!(ask(&outsider, &get_all(other)).await.code, Some(1));
    let (_stays, served) = node.outsider(PeerKey::Ed25519([8; 32]));
    let ended = served.await.expect("no panic");
    assert!(
        matches!(ended, Err(HandlerError::AuthRequired)),
        "{ended:?}"
    );
}

/// A client without an identity makes no store on a node whose files were never used.
#[tokio::test]
async fn an_outsider_makes_no_store() {
    let dir = tempfile::tempdir().expect("writable");
    let folder = dir.path().join("fs");
    let service = FsService::new(&folder, FileStoreOptions::default());
    let handler = Arc::new(BlobHandler::new(&service, BlobOptions::default()));
    let node = BlobNode {
        service,
        handler,
        dir,
    };
    for key in [None, Some(KEY)] {
        let (_stays, served) = node.connect(None, key);
        let ended = served.await.expect("no panic");
        assert!(
            matches!(ended, Err(HandlerError::AuthRequired)),
            "{ended:?}"
        );
    }
    assert!(!folder.exists());
}

#[tokio::test]
async fn one_request_too_many_is_refused_at_once() {
    let node = BlobNode::new().await;
    let hash = node.put("docs", "/a", &noise(60 * GROUP)).await;
    let peer = node.peer("ada", &["fs:read:docs"]);
    // Each waits for the rest of its request.
    let mut open = Vec::new();
    for _ in 0..BLOB_STREAMS_MAX {
        let (mut send, recv) = peer.open_bi().await.expect("a stream");
        send.write_chunk(vec![0].into()).await.expect("room");
        open.push((send, recv));
    }
    let refused = ask(&peer, &get_all(hash)).await;
    assert_eq!((refused.code, refused.bytes.len()), (Some(2), 0));
    for (mut send, mut recv) in open {
        send.write_chunk(get_all(hash).split_off(1).into())
            .await
            .expect("room");
        drop(send.finish());
        assert_eq!(response(&mut recv).await.code, None);
    }
    assert_eq!(ask(&peer, &get_all(hash)).await.code, None);
}
