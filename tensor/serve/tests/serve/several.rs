//! Several streams of a connection: how many are asked for at once, and which is sent first.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Cursor};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};

use alknet_core::{
    BoxFuture, CloseCode, CloseReason, Connection, RecvStream, SendHalf, SendStream, StreamCode,
    StreamError, StreamSource,
};
use alknet_tensor::{ContainerLimits, ContainerReader, ContainerWriter, Dtype};
use alknet_tensor_serve::TensorClient;
use bytes::Bytes;
use serde_json::json;
use tokio::io::AsyncWrite;
use tokio::time::timeout;

use crate::scene::{StoreScene, at, fetch, hung};

type Pair = (SendStream, RecvStream);
type Priorities = Arc<Mutex<Vec<i32>>>;

/// The node's end of a connection. What it sends has its priorities written down, and streams reach
/// it in groups, the last of a group first, once all of them are open.
struct PriorityConnection {
    inner: Connection,
    priorities: Priorities,
    groups: tokio::sync::Mutex<StreamGroups>,
}

struct StreamGroups {
    sizes: VecDeque<usize>,
    open: Vec<Pair>,
    ready: Vec<Pair>,
}

impl PriorityConnection {
    /// In front of `inner`, with groups of these sizes; what comes after them comes one by one.
    fn connection(inner: Connection, priorities: Priorities, sizes: &[usize]) -> Connection {
        let info = inner.info().clone();
        let groups = StreamGroups {
            sizes: sizes.iter().copied().collect(),
            open: Vec::new(),
            ready: Vec::new(),
        };
        let groups = tokio::sync::Mutex::new(groups);
        let watched = Self {
            inner,
            priorities,
            groups,
        };
        Connection::from_source(Box::new(watched), info)
    }

    async fn next(&self) -> Result<Pair, StreamError> {
        let mut groups = self.groups.lock().await;
        if groups.ready.is_empty() {
            let size = groups.sizes.front().copied().unwrap_or(1);
            while groups.open.len() < size {
                let pair = self.inner.accept_bi().await?;
                groups.open.push(pair);
            }
            groups.sizes.pop_front();
            groups.ready = std::mem::take(&mut groups.open);
        }
        let (send, recv) = groups.ready.pop().expect("a group is not empty");
        let send = PrioritySend(send, Arc::clone(&self.priorities));
        Ok((SendStream::new(Box::new(send)), recv))
    }
}

impl StreamSource for PriorityConnection {
    fn accept_bi(&self) -> BoxFuture<'_, Result<Pair, StreamError>> {
        Box::pin(self.next())
    }

    fn open_bi(&self) -> BoxFuture<'_, Result<Pair, StreamError>> {
        Box::pin(self.inner.open_bi())
    }

    fn is_multi(&self) -> bool {
        true
    }

    fn close(&self, code: CloseCode, reason: &str) {
        self.inner.close(code, reason);
    }

    fn closed(&self) -> BoxFuture<'_, CloseReason> {
        Box::pin(self.inner.closed())
    }
}

struct PrioritySend(SendStream, Priorities);

impl AsyncWrite for PrioritySend {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

impl SendHalf for PrioritySend {
    fn poll_write_chunks(
        &mut self,
        cx: &mut Context<'_>,
        chunks: &mut [Bytes],
    ) -> Poll<Result<usize, StreamError>> {
        let written = ready!(Pin::new(&mut self.0).poll_write(cx, &chunks[0]))?;
        drop(chunks[0].split_to(written));
        Poll::Ready(Ok(written))
    }

    fn finish(&mut self) -> Result<(), StreamError> {
        self.0.finish()
    }

    fn reset(&mut self, code: StreamCode) {
        self.0.reset(code);
    }

    fn set_priority(&mut self, priority: i32) {
        self.1.lock().expect("no panic").push(priority);
        self.0.set_priority(priority);
    }

    fn poll_stopped(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<u64>, StreamError>> {
        self.0.poll_stopped(cx)
    }
}

/// A container of these tensors, each with a byte of its own all over.
fn tensors(lens: &[(String, u64)]) -> Vec<u8> {
    let mut writer = ContainerWriter::new(Cursor::new(Vec::new()));
    for (at, (name, len)) in lens.iter().enumerate() {
        let added = writer.flat(name.as_str(), Dtype::U8, &[*len], content(at, *len).into());
        added.expect("it fits");
    }
    writer.finish().expect("memory").1.into_inner()
}

fn content(at: usize, len: u64) -> Vec<u8> {
    vec![at as u8 + 1; len as usize]
}

#[tokio::test]
async fn a_tensor_goes_before_those_behind_it_in_the_order() {
    let (scene, _) = StoreScene::holding("a");
    let priorities = Priorities::default();
    let peer = scene.peer_through("ada", &["tensor:read:a"], |theirs| {
        PriorityConnection::connection(theirs, Arc::clone(&priorities), &[])
    });
    for mut want in [
        json!({ "want": "tensor", "name": "names" }),
        json!({ "want": "range", "name": "names.__off__", "range": [0, 8] }),
        json!({ "want": "range", "name": "points", "range": [0, 8], "encoding": "bao16" }),
        json!({ "want": "rows", "name": "small", "rows": [1, 2] }),
        json!({ "want": "tensor", "name": "large" }),
        json!({ "want": "header" }),
    ] {
        want["src"] = json!({ "path": "a" });
        let (said, _) = fetch(&peer, want).await;
        assert_eq!(said["ok"], true, "{said}");
    }
    // As they lie in the file: large, small, points, names.
    let asked = priorities.lock().expect("no panic").clone();
    assert_eq!(asked, [-3, -3, -2, -1, 0, 0]);
}

#[tokio::test]
async fn short_tensors_are_fetched_sixteen_at_once() {
    let scene = StoreScene::new();
    let mut lens: Vec<(String, u64)> = (0..20).map(|at| (format!("s{at}"), 2000 + at)).collect();
    lens.push(("long".to_owned(), 100_000));
    lens.push(("none".to_owned(), 0));
    scene.add("a", &tensors(&lens));
    // A client that asked for fewer at once would wait for an answer that waits for the others.
    let groups = [1, 16, 4, 1, 1];
    let peer = scene.peer_through("ada", &["tensor:read:a"], |theirs| {
        PriorityConnection::connection(theirs, Priorities::default(), &groups)
    });
    let target = scene.path("some.mt");
    let last = AtomicU64::new(0);
    let told = |done, _| assert!(last.swap(done, Ordering::Relaxed) <= done);
    let client = TensorClient::new(peer);
    let (src, all) = (at("a"), |_: &str| true);
    let pulling = client.pull_some(&src, &target, &all, &told);
    let pulled = timeout(hung(), pulling)
        .await
        .expect("sixteen are asked for");
    let total: u64 = lens.iter().map(|(_, len)| len).sum();
    assert_eq!(pulled.expect("served").fetched, total);
    assert_eq!(last.load(Ordering::Relaxed), total);
    let reader = ContainerReader::open(
        File::open(&target).expect("made"),
        &ContainerLimits::default(),
    );
    let reader = reader.expect("good");
    for (at, (name, len)) in lens.iter().enumerate() {
        let view = reader.view(name).expect("there");
        assert!(view.bytes() == content(at, *len), "{name}");
    }
}

/// One without a byte lies between what is here and what is not.
#[tokio::test]
async fn a_cut_behind_an_empty_tensor_is_gone_on_from() {
    let scene = StoreScene::new();
    let lens = [("short", 20_000), ("none", 0), ("long", 1_000_000)];
    let lens = lens.map(|(name, len)| (name.to_owned(), len));
    scene.add("a", &tensors(&lens));
    let target = scene.path("some.mt");
    let (src, all) = (at("a"), |_: &str| true);
    let connection = scene.peer("ada", &["tensor:read:a"]);
    let cut = connection.clone();
    let told = |done, _| {
        if done > 400_000 {
            cut.close(CloseCode::Normal, "cut");
        }
    };
    let client = TensorClient::new(connection);
    let error = client.pull_some(&src, &target, &all, &told).await;
    assert_eq!(error.expect_err("it was cut").code(), "E_IO");
    let client = scene.client(&["tensor:read:a"]);
    let pulled = client.pull_some(&src, &target, &all, &|_, _| {}).await;
    let pulled = pulled.expect("it goes on");
    assert!(pulled.fetched < 700_000, "{pulled:?}");
    let reader = ContainerReader::open(
        File::open(&target).expect("made"),
        &ContainerLimits::default(),
    );
    assert_eq!(reader.expect("good").names().count(), 3);
}
