//! The getter of iroh-blobs against the handler: what it verifies is what was stored, whatever it asks for.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use iroh::endpoint::VarInt;
use iroh_blobs::Hash;
use iroh_blobs::get::fsm::{
    AtClosing, AtConnected, AtEndBlob, ConnectedNext, DecodeError, EndBlobNext,
};
use iroh_blobs::protocol::{ChunkRanges, ChunkRangesExt, ChunkRangesSeq, GetRequest};
use iroh_blobs::util::{
    AsyncReadRecvStream, AsyncReadRecvStreamExtra, AsyncWriteSendStream, AsyncWriteSendStreamExtra,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::*;

#[derive(Debug)]
pub(super) struct StockRecv {
    stream: RecvStream,
    /// How many bytes come before the one that is changed.
    before_change: Option<usize>,
}

impl AsyncRead for StockRecv {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let filled = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        let read = &mut buf.filled_mut()[filled..];
        if let Some(before) = self.before_change {
            self.before_change = match read.get_mut(before) {
                Some(byte) => {
                    *byte ^= 1;
                    None
                }
                None => Some(before - read.len()),
            };
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncReadRecvStreamExtra for StockRecv {
    fn inner(&mut self) -> &mut (impl AsyncRead + Unpin + Send) {
        self
    }

    fn stop(&mut self, code: VarInt) -> io::Result<()> {
        let code = u32::try_from(code.into_inner()).expect("a code of the protocol");
        self.stream.stop(alknet_core::StreamCode::Foreign(code));
        Ok(())
    }

    fn id(&self) -> u64 {
        0
    }
}

/// Its drop ends the request, as that of a stream of iroh does.
struct StockSend(SendStream);

impl Drop for StockSend {
    fn drop(&mut self) {
        drop(self.0.finish());
    }
}

impl AsyncWriteSendStreamExtra for StockSend {
    fn inner(&mut self) -> &mut (impl AsyncWrite + Unpin + Send) {
        &mut self.0
    }

    fn reset(&mut self, code: VarInt) -> io::Result<()> {
        let code = u32::try_from(code.into_inner()).expect("a code of the protocol");
        self.0.reset(alknet_core::StreamCode::Foreign(code));
        Ok(())
    }

    async fn stopped(&mut self) -> io::Result<Option<VarInt>> {
        let code = self.0.stopped().await?;
        Ok(code.map(|code| VarInt::from_u64(code).expect("a code of QUIC")))
    }

    fn id(&self) -> u64 {
        0
    }
}

pub(super) type StockReader = AsyncReadRecvStream<StockRecv>;

/// Sends a request as the stock getter does.
pub(super) async fn begin(
    connection: &Connection,
    request: GetRequest,
) -> ConnectedNext<StockReader> {
    begin_changed(connection, request, None).await
}

/// The same, and changes the byte of the response that comes behind so many others.
async fn begin_changed(
    connection: &Connection,
    request: GetRequest,
    before_change: Option<usize>,
) -> ConnectedNext<StockReader> {
    let (send, stream) = connection.open_bi().await.expect("a stream");
    let reader = AsyncReadRecvStream::new(StockRecv {
        stream,
        before_change,
    });
    let writer = AsyncWriteSendStream::new(StockSend(send));
    let connected = AtConnected::new(Instant::now(), reader, writer, request, Default::default());
    connected.next().await.expect("it is sent")
}

fn closing(end: AtEndBlob<StockReader>) -> AtClosing<StockReader> {
    match end.next() {
        EndBlobNext::Closing(closing) => closing,
        EndBlobNext::MoreChildren(_) => panic!("one content was asked for"),
    }
}

/// The bytes that the stock getter verified.
pub(super) async fn fetched(connection: &Connection, request: GetRequest) -> Vec<u8> {
    match begin(connection, request).await {
        ConnectedNext::StartRoot(root) => {
            let read = root.next().concatenate_into_vec().await;
            let (end, bytes) = read.expect("it is whole");
            closing(end).next().await.expect("nothing comes behind it");
            bytes
        }
        other => panic!("{other:?}"),
    }
}

pub(super) fn stock(hash: ContentHash) -> Hash {
    Hash::from_bytes(*hash.as_bytes())
}

#[tokio::test]
async fn the_stock_getter_gets_whole_contents() {
    let node = BlobNode::new().await;
    let peer = node.peer("ada", &["fs:read:docs"]);
    for len in [0, 1, 1024, 5000, GROUP, GROUP + 1, 100 * GROUP + 3] {
        let bytes = noise(len);
        let hash = node.put("docs", "/a", &bytes).await;
        let fetched = fetched(&peer, GetRequest::blob(stock(hash))).await;
        assert!(fetched == bytes, "{len}");
    }
}

/// Ranges that begin and end within groups, proofs of the size, and ranges behind the end.
#[tokio::test]
async fn the_stock_getter_gets_any_ranges() {
    let node = BlobNode::new().await;
    let peer = node.peer("ada", &["fs:read:docs"]);
    for len in [1, 3000, GROUP, 2 * GROUP + 1, 20 * GROUP + 700] {
        let bytes = noise(len);
        let hash = node.put("docs", "/a", &bytes).await;
        let size = len as u64;
        let chunks = size.div_ceil(1024);
        for (ranges, expected) in [
            (ChunkRanges::last_chunk(), (chunks - 1) * 1024..size),
            (ChunkRanges::chunk(0), 0..size.min(1024)),
            (ChunkRanges::bytes(0..size), 0..size),
            (
                ChunkRanges::bytes(..size / 2),
                0..(size / 2).div_ceil(1024) * 1024,
            ),
            (ChunkRanges::chunks(chunks / 3..), chunks / 3 * 1024..size),
            (
                ChunkRanges::chunks(chunks / 3..chunks / 3 + 2),
                chunks / 3 * 1024..(chunks / 3 + 2) * 1024,
            ),
            (
                ChunkRanges::chunks(chunks + 5..chunks + 6),
                (chunks - 1) * 1024..size,
            ),
        ] {
            let is_nothing = ranges.is_empty();
            let request = GetRequest::blob_ranges(stock(hash), ranges.clone());
            let expected = expected.start as usize..expected.end.min(size) as usize;
            match is_nothing {
                true => assert!(expected.is_empty()),
                false => {
                    let fetched = fetched(&peer, request).await;
                    assert!(fetched == bytes[expected], "{ranges:?} of {len}");
                }
            }
        }
        // Several ranges in one request.
        let several =
            ChunkRanges::chunks(0..1) | ChunkRanges::chunks(2..5) | ChunkRanges::chunks(17..40);
        let request = GetRequest::blob_ranges(stock(hash), several);
        let fetched = fetched(&peer, request).await;
        assert!(!fetched.is_empty() && fetched.len() <= len);
    }
}

#[tokio::test]
async fn the_stock_getter_gets_a_sequence() {
    let node = BlobNode::new().await;
    let peer = node.peer("ada", &["fs:read:docs"]);
    let contents = [noise(700), noise(3 * GROUP + 5)];
    let mut list = Vec::new();
    for (at, bytes) in contents.iter().enumerate() {
        list.extend(node.put("docs", &format!("/{at}"), bytes).await.as_bytes());
    }
    let root = node.put("docs", "/list", &list).await;
    // First the list, and the sizes of what it lists.
    let request = GetRequest::new(stock(root), ChunkRangesSeq::verified_child_sizes());
    let ConnectedNext::StartRoot(start) = begin(&peer, request).await else {
        panic!("the list comes first");
    };
    let (mut end, bytes) = start.next().concatenate_into_vec().await.expect("whole");
    assert!(bytes == list);
    for expected in &contents {
        let EndBlobNext::MoreChildren(child) = end.next() else {
            panic!("the request is open");
        };
        let child = child.next(stock(hash_of(expected))).next().await;
        let (content, size) = child.expect("it is sent");
        assert_eq!(size, expected.len() as u64);
        let (next, last) = content.concatenate_into_vec().await.expect("whole");
        assert!(expected.ends_with(&last) && last.len() <= 1024);
        end = next;
    }
    // Then one of them alone.
    let second = ChunkRangesSeq::from_ranges([
        ChunkRanges::empty(),
        ChunkRanges::empty(),
        ChunkRanges::all(),
    ]);
    let ConnectedNext::StartChild(child) = begin(&peer, GetRequest::new(stock(root), second)).await
    else {
        panic!("the list is not asked for");
    };
    let child = child.next(stock(hash_of(&contents[1])));
    let (end, bytes) = child.concatenate_into_vec().await.expect("whole");
    assert!(bytes == contents[1]);
    closing(end).next().await.expect("nothing comes behind it");
}

#[tokio::test]
async fn the_stock_getter_is_refused_and_stops_at_damage() {
    let node = BlobNode::new().await;
    let bytes = noise(40 * GROUP);
    let secret = node.put("secret", "/a", &bytes).await;
    let hash = node.put("docs", "/a", &noise(41 * GROUP)).await;
    node.damage(hash, 30 * GROUP);
    let peer = node.peer("eve", &["fs:read:docs"]);
    for hash in [secret, hash] {
        let ConnectedNext::StartRoot(root) = begin(&peer, GetRequest::blob(stock(hash))).await
        else {
            panic!("a content was asked for");
        };
        assert!(root.next().concatenate_into_vec().await.is_err());
    }
}

/// The getter names the first chunk of the group with the byte.
#[tokio::test]
async fn the_stock_getter_finds_the_group_of_a_byte_that_was_changed_on_its_way() {
    let node = BlobNode::new().await;
    let hash = node.put("docs", "/a", &noise(4 * GROUP)).await;
    let peer = node.peer("ada", &["fs:read:docs"]);
    // First come the length and the root's pair of hashes. Each half of the content has a pair before its two groups.
    let half = 64 + 2 * GROUP;
    for (group, behind) in [
        (0, 8 + 128),
        (1, 8 + 128 + GROUP),
        (2, 8 + 128 + half),
        (3, 8 + 128 + half + GROUP),
    ] {
        let request = GetRequest::blob(stock(hash));
        let begun = begin_changed(&peer, request, Some(behind + 77)).await;
        let ConnectedNext::StartRoot(root) = begun else {
            panic!("the content was asked for");
        };
        let read = root.next().concatenate_into_vec().await;
        let error = read.expect_err("a byte is another one");
        let DecodeError::LeafHashMismatch { num, .. } = error else {
            panic!("{group}: {error:?}");
        };
        assert_eq!(num.0, group * 16);
    }
}
