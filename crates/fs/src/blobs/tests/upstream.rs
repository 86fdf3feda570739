//! The tests that iroh-blobs 0.104 has of its own provider, and which of ours stands for each. Those that fit this store and
//! had no counterpart here follow below, written for the stock getter.

use std::collections::HashSet;

use iroh_blobs::get::fsm::{AtStartRoot, ConnectedNext, EndBlobNext};
use iroh_blobs::protocol::{ChunkRanges, ChunkRangesExt, ChunkRangesSeq, GetRequest};

use super::stock::{StockReader, begin, fetched, stock};
use super::*;

/// Whether a test of the library fits a store that is not its own.
enum ProviderTestFit {
    /// This test of ours shows the same.
    Fits(&'static str),
    /// Why it does not.
    Unfit(&'static str),
}

use ProviderTestFit::{Fits, Unfit};

const IN_PARTS: &str = "the node serves no content of which it has only parts, and says of such a one that nothing is here: \
                        a_peer_learns_what_is_here";
const OWN_STORE: &str = "it calls the library's own store, without a request of a peer";
const MANY: &str = "the node refuses requests for many contents: pushes_and_requests_for_many_contents_are_refused";
const PUSHES: &str =
    "the node takes no contents over this protocol: a_pushed_content_does_not_come_here";
const GETTER: &str = "it is of the getter, or of what the getter stores";

/// File of the library, test, and what stands for it here. Those of two kinds of stores of the library are one row.
const PROVIDER_TESTS: [(&str, &str, ProviderTestFit); 42] = [
    (
        "tests",
        "two_nodes_get_blobs",
        Fits("contents_of_every_size_come_over_one_connection"),
    ),
    ("tests", "get_blob_store_write_error", Unfit(GETTER)),
    (
        "tests",
        "two_nodes_observe",
        Unfit(
            "the node describes what it has once for each request, and a peer asks again: a stream that waits for news would \
             take one of its 64 requests",
        ),
    ),
    ("tests", "two_nodes_get_many", Unfit(MANY)),
    ("tests", "two_nodes_push_blobs", Unfit(PUSHES)),
    (
        "tests",
        "two_nodes_push_rejected_default",
        Fits("a_pushed_content_does_not_come_here"),
    ),
    (
        "tests",
        "two_nodes_push_rejected_readonly",
        Fits("a_pushed_content_does_not_come_here"),
    ),
    (
        "tests",
        "empty_hash_is_complete",
        Unfit("a content of no bytes is here if a bucket has it, as any other one"),
    ),
    (
        "tests",
        "two_nodes_hash_seq",
        Fits("a_whole_sequence_comes_in_one_request"),
    ),
    ("tests", "two_nodes_hash_seq_progress", Unfit(GETTER)),
    (
        "tests",
        "node_serve_hash_seq",
        Fits("the_stock_getter_gets_a_sequence"),
    ),
    (
        "tests",
        "node_serve_blobs",
        Fits("contents_of_every_size_come_over_one_connection"),
    ),
    (
        "tests",
        "node_smoke",
        Fits("a_getter_learns_a_size_and_leaves"),
    ),
    ("tests", "test_export_chunk", Unfit(OWN_STORE)),
    (
        "tests",
        "export_ranges_smoke",
        Fits("the_stock_getter_gets_any_ranges"),
    ),
    ("tests", "add_stream_source_error", Unfit(OWN_STORE)),
    (
        "tests",
        "mem_export_ranges_shutdown_mid_export",
        Unfit(OWN_STORE),
    ),
    (
        "tests",
        "mem_export_bao_shutdown_mid_export",
        Fits("a_response_of_a_store_that_closes_does_not_look_whole"),
    ),
    ("provider", "missing_hashseq_chunk", Unfit(IN_PARTS)),
    (
        "provider",
        "incomplete_blob_is_not_local_failure",
        Unfit(IN_PARTS),
    ),
    (
        "provider",
        "event_handler_failure_is_local",
        Unfit("the node has no handlers of events: its policy is its own"),
    ),
    (
        "provider",
        "get_local_failure",
        Fits("a_getter_that_hangs_up_ends_its_request_alone"),
    ),
    (
        "hashseq",
        "lazy_hash_seq",
        Fits("one_content_of_a_long_sequence_comes_alone"),
    ),
    ("protocol", "chunk_ranges_ext", Unfit(GETTER)),
    ("protocol", "get_request_builder", Unfit(GETTER)),
    ("protocol", "get_many_request_builder", Unfit(MANY)),
    (
        "protocol",
        "request_wire_format",
        Fits("requests_are_read_as_they_are_written"),
    ),
    (
        "protocol",
        "request_type_size",
        Fits("other_requests_are_refused_by_their_first_byte"),
    ),
    (
        "protocol/range_spec",
        "range_spec_wire_format",
        Fits("the_stock_getter_gets_any_ranges"),
    ),
    (
        "protocol/range_spec",
        "range_spec_seq_wire_format",
        Fits("one_content_of_a_long_sequence_comes_alone"),
    ),
    (
        "protocol/range_spec",
        "range_spec_rejects_invalid",
        Fits("rules_of_the_encoding_are_kept"),
    ),
    (
        "protocol/range_spec",
        "range_spec_seq_rejects_invalid",
        Fits("rules_of_the_encoding_are_kept"),
    ),
    (
        "protocol/range_spec",
        "range_spec_seq_roundtrip_cases",
        Fits("requests_are_read_as_they_are_written"),
    ),
    (
        "protocol/range_spec",
        "range_spec_seq_canonical",
        Fits("rules_of_the_encoding_are_kept"),
    ),
    (
        "protocol/range_spec",
        "range_spec_roundtrip",
        Fits("the_stock_getter_gets_any_ranges"),
    ),
    (
        "protocol/range_spec",
        "range_spec_seq_roundtrip",
        Fits("requests_are_read_as_they_are_written"),
    ),
    (
        "protocol/range_spec",
        "range_spec_seq_bytes_roundtrip",
        Fits("requests_are_read_as_they_are_written"),
    ),
    ("api/remote", "test_observe_partial", Unfit(IN_PARTS)),
    ("api/remote", "test_local_info", Unfit(GETTER)),
    ("api/downloader", "downloader_get_smoke", Unfit(GETTER)),
    ("api/downloader", "downloader_get_many_smoke", Unfit(MANY)),
    (
        "store/gc",
        "gc_check_deletion",
        Unfit(
            "what a collection leaves is a matter of names: alknet-store has its own tests of it",
        ),
    ),
];

/// The files with the tests that stand for those of the library.
const SOURCES: [&str; 5] = [
    include_str!("../wire.rs"),
    include_str!("requests.rs"),
    include_str!("serving.rs"),
    include_str!("stock.rs"),
    include_str!("upstream.rs"),
];

/// Bytes of contents that a store may keep in different ways: none, one chunk, a group and one byte less and more, and
/// outboards of many pairs.
const SIZES: [usize; 8] = [0, 1, 1024, GROUP - 1, GROUP, GROUP + 1, 1 << 20, 8 << 20];

#[test]
fn what_stands_for_a_test_of_the_library_exists() {
    let mut seen = HashSet::new();
    for (file, test, fit) in PROVIDER_TESTS {
        assert!(seen.insert((file, test)), "{file}: {test} is there twice");
        match fit {
            Fits(own) => {
                let head = format!("fn {own}()");
                assert!(
                    SOURCES.iter().any(|it| it.contains(&head)),
                    "{file}: {test}: {own}"
                );
            }
            Unfit(reason) => assert!(!reason.is_empty(), "{file}: {test}"),
        }
    }
}

/// Begins a request whose first content is that of its own hash.
async fn begin_root(connection: &Connection, request: GetRequest) -> AtStartRoot<StockReader> {
    match begin(connection, request).await {
        ConnectedNext::StartRoot(root) => root,
        other => panic!("{other:?}"),
    }
}

/// Stores a content of each size.
async fn put_sizes(node: &BlobNode) -> Vec<ContentHash> {
    let mut hashes = Vec::new();
    for size in SIZES {
        hashes.push(node.put("docs", &format!("/{size}"), &noise(size)).await);
    }
    hashes
}

#[tokio::test]
async fn contents_of_every_size_come_over_one_connection() {
    let node = BlobNode::new().await;
    let hashes = put_sizes(&node).await;
    let peer = node.peer("ada", &["fs:read:docs"]);
    // Twice, because the first read of a content opens what the second one finds open.
    for _ in 0..2 {
        for (size, hash) in SIZES.into_iter().zip(&hashes) {
            let bytes = fetched(&peer, GetRequest::blob(stock(*hash))).await;
            assert!(bytes == noise(size), "{size}");
        }
    }
}

/// The length comes first, and a getter that wants no more of a response may go.
#[tokio::test]
async fn a_getter_learns_a_size_and_leaves() {
    let node = BlobNode::new().await;
    let hashes = put_sizes(&node).await;
    let peer = node.peer("ada", &["fs:read:docs"]);
    for (size, hash) in SIZES.into_iter().zip(hashes) {
        let of_size = ChunkRangesSeq::from_ranges([ChunkRanges::last_chunk()]);
        let request = GetRequest::new(stock(hash), of_size);
        let begun = begin_root(&peer, request.clone()).await.next().next().await;
        let (content, announced) = begun.expect("the length is sent");
        assert_eq!(announced, size as u64);
        content.finish().next().await.expect("it may leave");
        // The same with the proof: the last chunk is there, and what came before it is not.
        let (content, proven) = begin_root(&peer, request)
            .await
            .next()
            .next()
            .await
            .expect("the length is sent");
        assert_eq!(proven, size as u64);
        let read = content.concatenate_into_vec().await;
        let (_, last) = read.expect("the proof is right");
        assert!(noise(size).ends_with(&last) && last.len() <= 1024, "{size}");
    }
}

#[tokio::test]
async fn a_whole_sequence_comes_in_one_request() {
    let node = BlobNode::new().await;
    let hashes = put_sizes(&node).await;
    let list: Vec<u8> = hashes.iter().flat_map(|hash| *hash.as_bytes()).collect();
    let root = node.put("docs", "/list", &list).await;
    let peer = node.peer("ada", &["fs:read:docs"]);
    let begun = begin_root(&peer, GetRequest::all(stock(root))).await;
    let (mut end, bytes) = begun.next().concatenate_into_vec().await.expect("whole");
    assert!(bytes == list);
    for (size, hash) in SIZES.into_iter().zip(hashes) {
        let EndBlobNext::MoreChildren(child) = end.next() else {
            panic!("the request has no end");
        };
        let read = child.next(stock(hash)).concatenate_into_vec().await;
        let (next, bytes) = read.expect("whole");
        assert!(bytes == noise(size), "{size}");
        end = next;
    }
    // The list ends, and with it the response: of a further content not even the length comes.
    let EndBlobNext::MoreChildren(behind) = end.next() else {
        panic!("the request has no end");
    };
    assert!(behind.next(stock(root)).next().await.is_err());
}

/// Hashes of a list of many chunks are read one by one, wherever they stand.
#[tokio::test]
async fn one_content_of_a_long_sequence_comes_alone() {
    const LISTED: usize = 1000;
    let node = BlobNode::new().await;
    let bytes = noise(3 * GROUP + 5);
    let hash = node.put("docs", "/a", &bytes).await;
    // At the start, at both ends of a chunk of the list, and last.
    let positions = [0, 95, 96, 127, 128, LISTED - 1];
    let listed = |at: usize| match positions.contains(&at) {
        true => hash,
        false => hash_of(&at.to_le_bytes()),
    };
    let list: Vec<u8> = (0..LISTED).flat_map(|at| *listed(at).as_bytes()).collect();
    let root = node.put("docs", "/list", &list).await;
    let peer = node.peer("ada", &["fs:read:docs"]);
    let alone = |at: usize| {
        // The list itself is not asked for either.
        let none = std::iter::repeat_n(ChunkRanges::empty(), 1 + at);
        let ranges = ChunkRangesSeq::from_ranges(none.chain([ChunkRanges::all()]));
        GetRequest::new(stock(root), ranges)
    };
    for at in positions {
        let ConnectedNext::StartChild(child) = begin(&peer, alone(at)).await else {
            panic!("the list is not asked for");
        };
        let read = child.next(stock(hash)).concatenate_into_vec().await;
        let (_, fetched) = read.expect("whole");
        assert!(fetched == bytes, "{at}");
    }
    // One that is not here, and one behind the end of the list.
    for at in [500, LISTED] {
        let ConnectedNext::StartChild(child) = begin(&peer, alone(at)).await else {
            panic!("the list is not asked for");
        };
        assert!(child.next(stock(hash)).next().await.is_err(), "{at}");
    }
}

#[tokio::test]
async fn a_getter_that_hangs_up_ends_its_request_alone() {
    let node = BlobNode::new().await;
    let bytes = noise(16 << 20);
    let hash = node.put("docs", "/a", &bytes).await;
    let peer = node.peer("ada", &["fs:read:docs"]);
    for _ in 0..3 {
        let begun = begin_root(&peer, GetRequest::blob(stock(hash))).await;
        let (content, _) = begun.next().next().await.expect("the length is sent");
        drop(content);
    }
    assert!(fetched(&peer, GetRequest::blob(stock(hash))).await == bytes);
    // Nor does the node take the content for a damaged one.
    let size = bytes.len() as u64;
    assert_eq!(node.status(hash).await, ContentStatus::Complete { size });
}

#[tokio::test]
async fn a_response_of_a_store_that_closes_does_not_look_whole() {
    let node = BlobNode::new().await;
    let bytes = noise(16 << 20);
    let hash = node.put("docs", "/a", &bytes).await;
    let peer = node.peer("ada", &["fs:read:docs"]);
    let begun = begin_root(&peer, GetRequest::blob(stock(hash))).await;
    let (content, _) = begun.next().next().await.expect("the length is sent");
    node.service.shutdown().await;
    // All of it may be on its way by then.
    let read = content.concatenate_into_vec().await;
    let is_whole = read.map_or(true, |(_, read)| read == bytes);
    assert!(is_whole, "a part looks like the whole");
}

#[tokio::test]
async fn a_pushed_content_does_not_come_here() {
    let node = BlobNode::new().await;
    let bytes = noise(64 << 10);
    let hash = hash_of(&bytes);
    for scopes in [&["fs:write:docs"][..], &["fs:push:docs"], &["fs:*"], &["*"]] {
        let peer = node.peer("ada", scopes);
        // All of one content, in the form of a request behind its length.
        let body = [&hash.as_bytes()[..], &[2, 0, 1, 0, 1, 0]].concat();
        let size = (bytes.len() as u64).to_le_bytes();
        let push = [&[8, body.len() as u8][..], &body, &size, &bytes].concat();
        let response = ask(&peer, &push).await;
        assert_eq!((response.code, response.bytes.len()), (Some(1), 0));
        assert_eq!(node.status(hash).await, ContentStatus::Missing);
    }
}
