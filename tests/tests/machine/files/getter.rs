//! A client made of the getter of iroh-blobs, which comes over QUIC through the node's one port.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use alknet_core::{Carriage, Connection, RecvStream, SendStream, StreamCode};
use alknet_endpoint::{EndpointDialer, Target};
use alknet_test_support::deadline;
use alknet_tests::tools::debugfs;
use alknet_tests::{CliRunner, MachineNode, eventually, patient_dialer};
use alknet_tls::NodeKey;
use iroh::endpoint::VarInt;
use iroh_blobs::Hash;
use iroh_blobs::get::fsm::{AtConnected, ConnectedNext};
use iroh_blobs::protocol::{ChunkRanges, ChunkRangesExt, GetRequest};
use iroh_blobs::util::{
    AsyncReadRecvStream, AsyncReadRecvStreamExtra, AsyncWriteSendStream, AsyncWriteSendStreamExtra,
};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::runtime::Runtime;
use tokio::time::{Instant, timeout};

use super::FilesClient;

/// Bytes that one hash of the tree covers, and chunks of the protocol in them.
const GROUP_BYTES: usize = 16 << 10;
const GROUP_CHUNKS: u64 = 16;

/// Bytes of the content: so many groups, the last of which is not full.
pub(super) const CONTENT_BYTES: usize = 63 * GROUP_BYTES + 700;
const GROUPS: usize = 64;

/// The group in which a byte is changed.
const DAMAGED: usize = 40;

/// Bytes of a block of the machine's file system.
const BLOCK_BYTES: usize = 4096;

/// Longest fetch.
const FETCHED_WITHIN: Duration = Duration::from_secs(60);

struct GetterRecv(RecvStream);

impl AsyncReadRecvStreamExtra for GetterRecv {
    fn inner(&mut self) -> &mut (impl AsyncRead + Unpin + Send) {
        &mut self.0
    }

    fn stop(&mut self, code: VarInt) -> io::Result<()> {
        self.0.stop(stream_code(code));
        Ok(())
    }

    fn id(&self) -> u64 {
        0
    }
}

/// Its drop ends the request, as that of a stream of iroh does.
struct GetterSend(SendStream);

impl Drop for GetterSend {
    fn drop(&mut self) {
        drop(self.0.finish());
    }
}

impl AsyncWriteSendStreamExtra for GetterSend {
    fn inner(&mut self) -> &mut (impl AsyncWrite + Unpin + Send) {
        &mut self.0
    }

    fn reset(&mut self, code: VarInt) -> io::Result<()> {
        self.0.reset(stream_code(code));
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

fn stream_code(code: VarInt) -> StreamCode {
    let code = u32::try_from(code.into_inner()).expect("a code of the protocol");
    StreamCode::Foreign(code)
}

/// The connection lasts as long as its dialer.
async fn connect(node: &MachineNode, peer: &CliRunner) -> (EndpointDialer, Connection) {
    let (key, _) = NodeKey::load_or_create(&peer.state().join("identity.key")).expect("a key");
    let dialer = patient_dialer(Some(key));
    let target: Target = node.target().parse().expect("the node's own target");
    let dialled = dialer.dial_over(Carriage::Quic, &target, iroh_blobs::ALPN);
    let connection = dialled.await.expect("the peer is known");
    (dialer, connection)
}

/// The bytes of these groups of a content. `None` if the getter did not verify all of them.
async fn fetch(connection: &Connection, hash: &str, groups: Range<usize>) -> Option<Vec<u8>> {
    let hash: Hash = hash.parse().expect("64 hex digits");
    let chunk = |group: usize| group as u64 * GROUP_CHUNKS;
    let chunks = ChunkRanges::chunks(chunk(groups.start)..chunk(groups.end));
    let request = GetRequest::blob_ranges(hash, chunks);
    let fetching = async {
        let (send, recv) = connection.open_bi().await.expect("a stream");
        let reader = AsyncReadRecvStream::new(GetterRecv(recv));
        let writer = AsyncWriteSendStream::new(GetterSend(send));
        let now = Instant::now();
        let connected = AtConnected::new(now, reader, writer, request, Default::default());
        let ConnectedNext::StartRoot(root) = connected.next().await.expect("it is sent") else {
            panic!("the content was asked for")
        };
        let read = root.next().concatenate_into_vec().await;
        read.ok().map(|(_, bytes)| bytes)
    };
    let fetched = timeout(deadline(FETCHED_WITHIN), fetching).await;
    fetched.expect("the node answers")
}

/// The bytes of these groups.
fn part(content: &[u8], groups: Range<usize>) -> &[u8] {
    let end = content.len().min(groups.end * GROUP_BYTES);
    &content[groups.start * GROUP_BYTES..end]
}

/// Stores the content over HTTP, and returns its hash.
pub(super) fn store(files: &FilesClient, content: &[u8]) -> String {
    let stored = files.put("blobs/content.bin", content, &[]);
    let tag = stored.header("etag").unwrap_or_default();
    let hash = tag
        .strip_prefix("\"b3-")
        .and_then(|it| it.strip_suffix('"'));
    let hash = hash.unwrap_or_else(|| panic!("{}: {}", stored.status, stored.text()));
    hash.to_owned()
}

pub(super) fn fetches_a_content_through_the_one_port(
    node: &MachineNode,
    peer: &CliRunner,
    hash: &str,
    content: &[u8],
) {
    let runtime = Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let (_dialer, connection) = connect(node, peer).await;
        for groups in [0..GROUPS, 0..1, 17..19, 63..64] {
            let fetched = fetch(&connection, hash, groups.clone()).await;
            assert!(fetched.as_deref() == Some(part(content, groups)));
        }
        // The hash of nothing that the node has.
        assert_eq!(fetch(&connection, &"0".repeat(64), 0..1).await, None);
    });
}

/// Changes one byte of the content on the disk of a machine that is switched off.
pub(super) fn damage(disk: &Path, hash: &str) {
    let at = DAMAGED * GROUP_BYTES + 5000;
    let object = format!("state/fs/content/objects/{}/{hash}", &hash[..2]);
    let said = debugfs(disk, &format!("bmap {object} {}", at / BLOCK_BYTES));
    let block = said.lines().find_map(|line| line.trim().parse().ok());
    let block: u64 = block.unwrap_or_else(|| panic!("{object} has no block: {said}"));
    assert_ne!(block, 0, "{object}: {said}");
    let at = block * BLOCK_BYTES as u64 + (at % BLOCK_BYTES) as u64;
    let disk = File::options().read(true).write(true).open(disk);
    let disk = disk.expect("the disk is ours");
    let mut byte = [0];
    disk.read_exact_at(&mut byte, at).expect("within the disk");
    byte[0] ^= 1;
    disk.write_all_at(&byte, at).expect("within the disk");
}

/// The client gets and verifies each group beside the damaged one, and nothing of that.
pub(super) fn gets_everything_but_the_damaged_group(
    node: &MachineNode,
    peer: &CliRunner,
    hash: &str,
    content: &[u8],
) {
    let runtime = Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let (_dialer, connection) = connect(node, peer).await;
        for groups in [0..DAMAGED, DAMAGED + 1..GROUPS] {
            let fetched = fetch(&connection, hash, groups.clone()).await;
            assert!(fetched.as_deref() == Some(part(content, groups)));
        }
        for groups in [DAMAGED..DAMAGED + 1, 0..GROUPS] {
            assert_eq!(fetch(&connection, hash, groups).await, None);
        }
    });
    eventually("the node knows of the damage", || {
        let known = node.call("fs/blob/status", &json!({ "hash": hash }));
        (known["status"] == "bad").then_some(())
    });
}
