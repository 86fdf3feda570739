//! Peers that do not keep to the protocol.

use std::fs;
use std::io::Cursor;
use std::time::Duration;

use alknet_core::{Connection, StreamCode};
use alknet_tensor::{ContainerWriter, Dtype};
use alknet_tensor_serve::limits::{REQUEST_BYTES, STREAMS, UPLOAD_MEMORY_PER_PEER};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::put::small;
use crate::scene::{StoreScene, answer, ask, fetch, file, hung, refused, say};

/// Sends these bytes, and reads what is said.
async fn send(connection: &Connection, bytes: &[u8]) -> Value {
    let (mut send, recv) = connection.open_bi().await.expect("connected");
    send.write_all(bytes).await.expect("taken");
    send.finish().expect("open");
    answer(recv).await.0
}

fn framed(text: &str) -> Vec<u8> {
    let mut frame = u32::try_from(text.len())
        .expect("short")
        .to_be_bytes()
        .to_vec();
    frame.extend(text.as_bytes());
    frame
}

#[tokio::test]
async fn every_bad_request_is_one_clear_error() {
    let (scene, _) = StoreScene::holding("a");
    let peer = scene.peer("eve", &["*"]);
    let long = u32::try_from(REQUEST_BYTES + 1)
        .expect("short")
        .to_be_bytes();
    for (bytes, code) in [
        (long.to_vec(), "E_LIMIT"),
        (u32::MAX.to_be_bytes().to_vec(), "E_LIMIT"),
        (framed(""), "E_JSON"),
        (framed("\u{0}"), "E_JSON"),
        (
            framed(r#"{"v":1,"want":"header","src":{"path":"a"},"more":1}"#),
            "E_JSON",
        ),
        (
            framed(r#"{"v":1,"want":"header","src":{"path":"a","id":"b"}}"#),
            "E_VALUE",
        ),
        (
            framed(r#"{"v":1,"want":"header","src":{"path":"../../etc/passwd"}}"#),
            "E_VALUE",
        ),
        (
            framed(r#"{"v":1,"want":"range","src":{"path":"a"},"range":[0,-1]}"#),
            "E_JSON",
        ),
        (
            framed(r#"{"v":1,"want":"range","src":{"path":"a"},"range":[0,1e30]}"#),
            "E_JSON",
        ),
        (framed(&"[".repeat(10_000)), "E_JSON"),
    ] {
        let said = send(&peer, &bytes).await;
        assert_eq!(said["code"], code, "{said}");
    }
    // The connection is as good as before.
    let request = json!({ "v": 1, "want": "header", "src": { "path": "a" } });
    assert_eq!(ask(&peer, &request).await.0["ok"], true);
}

#[tokio::test]
async fn streams_that_end_or_stop_leave_nothing() {
    let (scene, _) = StoreScene::holding("a");
    let peer = scene.peer("eve", &["*"]);
    for bytes in [&b""[..], b"\0", b"\0\0\0\x10{"] {
        let (mut send, mut recv) = peer.open_bi().await.expect("connected");
        send.write_all(bytes).await.expect("taken");
        send.finish().expect("open");
        let mut rest = Vec::new();
        assert!(recv.read_to_end(&mut rest).await.is_err() && rest.is_empty());
    }
    for _ in 0..2 * STREAMS {
        let request = json!({ "v": 1, "want": "tensor", "name": "large", "src": { "path": "a" } });
        let (head, mut recv) = ask(&peer, &request).await;
        assert_eq!(head["ok"], true, "{head}");
        recv.stop(StreamCode::Cancelled);
    }
    let request = json!({ "want": "tensor", "name": "none", "src": { "path": "a" } });
    assert_eq!(refused(&peer, request).await, "E_NOTFOUND");
}

#[tokio::test]
async fn slow_peers_are_not_waited_for() {
    let (scene, _) = StoreScene::holding("a");
    let scene = scene.impatient();
    let peer = scene.peer("eve", &["*"]);
    // A request that never comes.
    let (mut send, mut recv) = peer.open_bi().await.expect("connected");
    send.write_all(b"\0\0").await.expect("taken");
    let mut rest = Vec::new();
    assert!(recv.read_to_end(&mut rest).await.is_err());
    // A response that the client does not take.
    let request = json!({ "v": 1, "want": "tensor", "name": "large", "src": { "path": "a" } });
    let (_, mut recv) = ask(&peer, &request).await;
    // Reading no bytes takes none, and fails once the node has given up.
    let given_up = async {
        while AsyncReadExt::read(&mut recv, &mut []).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(hung(), given_up).await.expect("it gives up");
    let mut rest = Vec::new();
    assert!(recv.read_to_end(&mut rest).await.is_err());
    // Content that stops half-way.
    let (mut send, recv) = peer.open_bi().await.expect("connected");
    say(&mut send, br#"{"v":1,"want":"put","path":"b"}"#).await;
    let file = file();
    send.write_all(&file[..file.len() / 2])
        .await
        .expect("taken");
    let (go, mut recv) = answer(recv).await;
    assert_eq!(go["go"], true);
    let mut rest = Vec::new();
    assert!(recv.read_to_end(&mut rest).await.is_err());
    assert_eq!(scene.count("uploads"), 0);
}

#[tokio::test]
async fn requests_beyond_the_limit_are_refused_and_not_queued() {
    let (scene, _) = StoreScene::holding("a");
    let peer = scene.peer("eve", &["*"]);
    let request = json!({ "v": 1, "want": "tensor", "name": "large", "src": { "path": "a" } });
    let mut held = Vec::new();
    for _ in 0..STREAMS {
        let (head, recv) = ask(&peer, &request).await;
        assert_eq!(head["ok"], true);
        held.push(recv);
    }
    assert_eq!(ask(&peer, &request).await.0["code"], "E_BUSY");
    let other = scene.peer("ada", &["*"]);
    assert_eq!(ask(&other, &request).await.0["ok"], true);
}

/// Puts `bytes` with everything after the request as it is.
async fn put(peer: &Connection, bytes: &[u8]) -> Value {
    let (mut send, recv) = peer.open_bi().await.expect("connected");
    say(&mut send, br#"{"v":1,"want":"put","path":"x"}"#).await;
    // Where it is refused early, the rest is not taken.
    let _ = send.write_all(bytes).await;
    let _ = send.finish();
    let (said, recv) = answer(recv).await;
    if said["go"] == true {
        return answer(recv).await.0;
    }
    said
}

#[tokio::test]
async fn files_that_lie_are_not_stored() {
    let scene = StoreScene::new();
    let peer = scene.peer("eve", &["*"]);
    let good = small(100_000);
    let changed = |at: usize| {
        let mut file = good.clone();
        file[at] ^= 1;
        file
    };
    let longer = [&good[..], &[0]].concat();
    let huge = [&u64::MAX.to_le_bytes()[..], b"{}"].concat();
    let large =
        "{\"a\":{\"dtype\":\"U8\",\"shape\":[1000000000000],\"data_offsets\":[0,1000000000000]}}";
    let large = [&(large.len() as u64).to_le_bytes()[..], large.as_bytes()].concat();
    for (file, code) in [
        (&b""[..], "E_HEADER"),
        (&good[..7], "E_HEADER"),
        (&good[..100], "E_HEADER"),
        (&good[..good.len() - 1], "E_TILING"),
        (&longer[..], "E_TILING"),
        (&changed(good.len() - 1)[..], "E_HASH"),
        (&changed(9)[..], "E_JSON"),
        (&huge[..], "E_LIMIT"),
        (&large[..], "E_QUOTA"),
    ] {
        let said = put(&peer, file).await;
        assert_eq!(
            (&said["ok"], &said["code"]),
            (&json!(false), &json!(code)),
            "{said}"
        );
        assert_eq!((scene.count("objects"), scene.count("names")), (0, 0));
        assert_eq!(scene.count("uploads"), 0, "{code}");
    }
    let said = put(&peer, &good).await;
    assert_eq!(said["id"], blake3::hash(&good).to_hex().to_string());
}

/// Bytes that this process has read, from files as well as from pipes.
fn bytes_read() -> u64 {
    let counts = fs::read_to_string("/proc/self/io").expect("procfs");
    let read = counts.lines().find_map(|line| line.strip_prefix("rchar: "));
    read.expect("a count").parse().expect("a number")
}

/// Each request read the whole file, and went on after its reader was gone, on a thread of the pool for work that blocks.
/// The node wrote its changes of peers there as well.
#[test]
fn a_tree_is_made_once_for_many_readers() {
    const NAME: &str = "hostile::a_tree_is_made_once_for_many_readers";
    alknet_test_support::alone(NAME, || {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().build().expect("a runtime");
        runtime.block_on(many_readers_of_one_tree());
    });
}

async fn many_readers_of_one_tree() {
    const LEN: u64 = 64 << 20;
    let scene = StoreScene::new();
    scene.add("a", &small(LEN));
    let request = json!({ "v": 1, "want": "range", "name": "x", "range": [0, 1],
                          "encoding": "bao16", "src": { "path": "a" } });
    let before = bytes_read();
    let mut peers = Vec::new();
    for name in ["eve", "eve", "mallory"] {
        let peer = scene.peer(name, &["tensor:read:a"]);
        for _ in 0..STREAMS {
            let (mut send, mut recv) = peer.open_bi().await.expect("connected");
            say(&mut send, request.to_string().as_bytes()).await;
            send.finish().expect("open");
            // The reader gives the request up.
            recv.stop(StreamCode::Cancelled);
        }
        peers.push(peer);
    }
    // The last one waits for its turn behind all of them.
    let reader = scene.peer("ada", &["tensor:read:a"]);
    let (head, mut recv) = ask(&reader, &request).await;
    assert_eq!(head["ok"], true, "{head}");
    let mut part = Vec::new();
    recv.read_to_end(&mut part).await.expect("to the end");
    let read = bytes_read() - before;
    assert!(read < 2 * LEN, "{read} bytes were read for a tree of {LEN}");
}

/// Each stream kept up to 16 MiB of a header for two hours, and 1,024 of them took 16 GiB.
#[tokio::test]
async fn headers_that_do_not_end_are_bounded() {
    const ARRIVED: usize = 1 << 20;
    let scene = StoreScene::new();
    let mut streams = tokio::task::JoinSet::new();
    let mut eves = Vec::new();
    for _ in 0..2 {
        let eve = scene.peer("eve", &["*"]);
        for _ in 0..STREAMS {
            let (mut send, recv) = eve.open_bi().await.expect("connected");
            streams.spawn(async move {
                say(&mut send, br#"{"v":1,"want":"put","path":"x"}"#).await;
                let len = (16_u64 << 20) - 8;
                send.write_all(&len.to_le_bytes()).await.expect("taken");
                // A refused stream takes no more.
                let _ = send.write_all(&vec![b' '; ARRIVED]).await;
                let said = answer(recv).await.0;
                drop(send);
                said["code"].clone()
            });
        }
        eves.push(eve);
    }
    // Those that are not refused wait for the rest of their headers.
    let refused = 2 * STREAMS - UPLOAD_MEMORY_PER_PEER / ARRIVED;
    for _ in 0..refused {
        let code = timeout(hung(), streams.join_next()).await;
        let code = code.expect("a refusal").expect("a stream");
        assert_eq!(code.expect("an answer"), "E_BUSY");
    }
    // Others are not refused, and neither is eve when these streams have ended.
    let ada = scene.peer("ada", &["*"]);
    assert_eq!(put(&ada, &small(100_000)).await["ok"], true);
    streams.abort_all();
    while streams.join_next().await.is_some() {}
    let freed = async {
        loop {
            let said = put(&eves[0], &small(100_000)).await;
            if said["ok"] == true {
                break;
            }
            assert_eq!(said["code"], "E_BUSY", "{said}");
        }
    };
    timeout(hung(), freed)
        .await
        .expect("the memory is given back");
}

/// A reader of a file with 65,536 entries made the node keep a file for each.
#[tokio::test]
async fn short_entries_leave_no_trees() {
    const ENTRIES: usize = 200;
    let scene = StoreScene::new();
    let mut writer = ContainerWriter::new(Cursor::new(Vec::new()));
    // The last ones are a group and one byte more.
    for at in 0..ENTRIES {
        let len = [32, 16 << 10, (16 << 10) + 1][at * 3 / ENTRIES];
        let content = vec![at as u8; len].into();
        writer
            .flat(format!("t{at}"), Dtype::U8, &[len as u64], content)
            .expect("it fits");
    }
    let file = writer.finish().expect("memory").1.into_inner();
    scene.add("a", &file);
    let peer = scene.peer("eve", &["tensor:read:a"]);
    for at in 0..ENTRIES {
        let request = json!({ "want": "tensor", "name": format!("t{at}"), "encoding": "bao16",
                              "src": { "path": "a" } });
        let (head, bytes) = fetch(&peer, request).await;
        assert_eq!(
            (&head["ok"], &head["len"]),
            (&json!(true), &json!(bytes.len()))
        );
    }
    let longer = (0..ENTRIES).filter(|at| at * 3 / ENTRIES == 2).count();
    assert_eq!(scene.count("outboards"), longer);
}
