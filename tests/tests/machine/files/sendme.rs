//! sendme, a client of iroh-blobs, which dials the node by its key at the port of iroh.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::Command;

use alknet_core::PeerKey;
use alknet_test_support::skipped;
use alknet_tests::tools::variable;
use alknet_tests::{CliRunner, MachineNode, run_with_input};
use alknet_tls::NodeKey;
use data_encoding::HEXLOWER;
use iroh::{EndpointAddr, EndpointId};
use iroh_blobs::ticket::BlobTicket;
use iroh_blobs::{BlobFormat, Hash};

use super::{FilesClient, IROH_PORT, namespace, noise};

/// Bytes that are written at once.
const PIECE_BYTES: usize = 1 << 20;

/// The name that the file gets.
const NAME: &str = "large.bin";

/// The node stores what `sendme send` would: the file, the list of the names, and the hashes of both. The ticket has the
/// hash of the last, the key of the node and its address, and no relay.
pub(super) fn fetches_a_file_from_the_port_of_iroh(
    files: &FilesClient,
    node: &MachineNode,
    peer: &CliRunner,
    bytes: usize,
) {
    let work = files.work("sendme");
    let large = work.join("sent.bin");
    write_file(&large, bytes);
    let mut curl = files.start_upload("blobs/large.bin", &large, &["--fail"]);
    let ended = curl.wait().expect("it is our child");
    assert!(ended.success(), "{ended}");
    let file = hash(files.curl("blobs/large.bin", &["--head"]).header("etag"));
    // A collection of iroh-blobs: a mark, the number of names, and each name behind its length (postcard).
    let counts = [1, NAME.len() as u8];
    let names = [&b"CollectionV0."[..], &counts, NAME.as_bytes()].concat();
    let names = hash(files.put("blobs/names", &names, &[]).header("etag"));
    let sequence = [&names.as_bytes()[..], &file.as_bytes()[..]].concat();
    let sequence = hash(files.put("blobs/sequence", &sequence, &[]).header("etag"));
    let ticket = BlobTicket::new(address(node), sequence, BlobFormat::HashSeq);

    let etc = work.join("etc");
    let got = work.join("got");
    for folder in [&etc, &got] {
        fs::create_dir(folder).expect("the folder is ours");
    }
    if let Some(why) = namespace::refusal(&etc, "true") {
        return skipped(
            "user namespaces",
            format!("sendme would ask name servers: {why}"),
        );
    }
    let receive = "exec \"$SENDME\" receive --relay disabled \"$TICKET\"";
    let script = format!("{}{receive}", namespace::NO_NAMES);
    let mut sendme = namespace::command(&etc, &script);
    sendme
        .env("SENDME", variable("ALKNET_TEST_SENDME"))
        .env("TICKET", ticket.to_string())
        .env("IROH_SECRET", secret(peer))
        .current_dir(&got);
    let said = run_with_input(sendme, "");
    assert_eq!(said.status, 0, "{said:?}");
    let mut compare = Command::new("cmp");
    compare.args([&large, &got.join(NAME)]);
    let said = run_with_input(compare, "");
    assert_eq!(said.status, 0, "{said:?}");
}

/// The key of a peer, as iroh takes it from the environment.
fn secret(peer: &CliRunner) -> String {
    let key = NodeKey::load_or_create(&peer.state().join("identity.key"));
    let (key, _) = key.expect("a key");
    HEXLOWER.encode(key.seed())
}

/// The node's address in iroh's form.
fn address(node: &MachineNode) -> EndpointAddr {
    let Ok(PeerKey::Ed25519(key)) = node.identity().parse() else {
        panic!("no Ed25519 key: {}", node.identity())
    };
    let id = EndpointId::from_bytes(&key).expect("a key");
    let place = node.vm().forward_of(IROH_PORT).expect("it is forwarded");
    EndpointAddr::new(id).with_ip_addr(place)
}

/// The hash in an entity tag.
fn hash(tag: Option<&str>) -> Hash {
    let hash = tag.and_then(|tag| tag.strip_prefix("\"b3-")?.strip_suffix('"'));
    let hash = hash.unwrap_or_else(|| panic!("no tag of a content: {tag:?}"));
    hash.parse().expect("64 hex digits")
}

/// Writes a file whose pieces differ.
fn write_file(path: &Path, bytes: usize) {
    let mut file = File::create(path).expect("the folder is ours");
    let mut piece = noise(PIECE_BYTES);
    for n in 0..bytes / PIECE_BYTES {
        piece[..8].copy_from_slice(&(n as u64).to_le_bytes());
        file.write_all(&piece).expect("there is room");
    }
}
