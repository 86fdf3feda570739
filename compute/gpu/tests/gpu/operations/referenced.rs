//! Stored tensors that requests refer to are copied for the node's account.

use std::fs::File;
use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use alknet_call::{CallError, Ctx};
use alknet_compute::{ComputeSettings, ReferencedTensor, TensorReferences};
use alknet_core::{BoxFuture, CloseCode};
use alknet_test_support::{deadline, eventually};
use alknet_worker::RevocableMemfd;
use serde_json::{Value, json};

use super::node::{GpuTestCaller, GpuTestNode, LONG, binary, codes, patient};

/// Bytes of a stored tensor that is not short.
const BYTES: usize = 8 << 20;

/// Bytes of one that is copied at once, also where the store is slow.
const SHORT: usize = 1 << 10;

/// Room for all copies that leaves room for one of [`BYTES`], beside short ones.
const ROOM_FOR_ONE: u64 = BYTES as u64 / 2 * 3;

/// A store whose tensors are copied once it is opened.
#[derive(Default)]
struct SlowStore {
    found: AtomicUsize,
    begun: AtomicUsize,
    is_open: Mutex<bool>,
    opened: Condvar,
    /// A descriptor of each copy, such as a worker gets that gives none back.
    files: Mutex<Vec<File>>,
}

impl SlowStore {
    fn open(&self) {
        *self.is_open.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.opened.notify_all();
    }

    fn copy(&self, bytes: usize) -> Result<RevocableMemfd, CallError> {
        self.begun.fetch_add(1, Ordering::SeqCst);
        if bytes > SHORT {
            let is_open = self.is_open.lock().unwrap_or_else(PoisonError::into_inner);
            let waited = self.opened.wait_while(is_open, |is_open| !*is_open);
            drop(waited.unwrap_or_else(PoisonError::into_inner));
        }
        let copied = RevocableMemfd::written(|memory| memory.write_all(&vec![7; bytes]));
        let copied = copied.map_err(|error| CallError::internal(error.to_string()))?;
        let kept = copied.hand_over().expect("a descriptor");
        self.kept_files().push(kept.into());
        Ok(copied)
    }

    fn kept_files(&self) -> MutexGuard<'_, Vec<File>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Opens the store also where the test fails: threads wait for it.
struct OpenAtTheEnd<'store>(&'store SlowStore);

impl Drop for OpenAtTheEnd<'_> {
    fn drop(&mut self) {
        self.0.open();
    }
}

/// The store, as requests see it.
struct SlowReferences(Arc<SlowStore>);

impl TensorReferences for SlowReferences {
    fn find(
        &self,
        _ctx: &Ctx,
        reference: &str,
    ) -> BoxFuture<'static, Result<ReferencedTensor, CallError>> {
        let store = Arc::clone(&self.0);
        let (_, bytes) = reference.split_once('#').expect("a tensor's name");
        let bytes = bytes.parse().expect("its bytes");
        Box::pin(async move {
            store.found.fetch_add(1, Ordering::SeqCst);
            Ok(ReferencedTensor {
                dtype: "F32".to_owned(),
                shape: vec![bytes as u64 / 4],
                copy: Box::new(move || store.copy(bytes)),
            })
        })
    }
}

fn node(store: &Arc<SlowStore>, change: impl FnOnce(&mut ComputeSettings)) -> GpuTestNode {
    let mut settings = patient();
    settings.referenced_bytes = ROOM_FOR_ONE;
    change(&mut settings);
    GpuTestNode::with_references(settings, Arc::new(SlowReferences(Arc::clone(store))))
}

fn reference(bytes: usize) -> Value {
    json!({ "ref": format!("alknet-tensor://node/id#{bytes}") })
}

fn create(bytes: usize) -> Value {
    json!({ "dtype": "F32", "shape": [bytes / 4], "from": reference(bytes) })
}

#[test]
fn stored_tensors_are_copied_in_turn_and_where_there_is_room() {
    let store = Arc::<SlowStore>::default();
    let node = node(&store, |_| {});
    let counts = || {
        let [found, begun] = [&store.found, &store.begun].map(|count| count.load(Ordering::SeqCst));
        (found, begun)
    };
    thread::scope(|scope| {
        let opens = OpenAtTheEnd(&store);
        let ask = |person: GpuTestCaller| {
            scope.spawn(move || {
                let made = person.try_ask("tensor/create", &create(BYTES));
                made.map(|made| made.value()["handle"].is_string())
            })
        };
        let leaving = node.person("first");
        let connection = leaving.0.clone();
        let left = ask(leaving);
        eventually("one is copied", LONG, || counts() == (1, 1));
        // Another identity waits for room, and the next request of the first for its turn.
        let waiting = ["second", "first"].map(|name| ask(node.person(name)));
        eventually("another one was found", LONG, || counts() == (2, 1));
        // What is copied for a caller that gave up has its room until it is copied.
        connection.close(CloseCode::Normal, "done");
        assert!(left.join().expect("it ends").is_err());
        eventually("the next one has its turn", LONG, || counts().0 == 3);
        node.person("third").ask("compute/info", &json!({}));
        assert_eq!(counts(), (3, 1), "there is no room yet");
        drop(opens);
        for asked in waiting {
            let made = asked.join().expect("it is answered");
            assert!(made.expect("a tensor"), "no handle");
        }
    });
    assert_eq!(counts(), (3, 3));

    // More than there is room for is not copied at all.
    let two = json!({ "a": reference(BYTES), "b": reference(BYTES), "variant": "host" });
    let too_large = ("TENSOR_TOO_LARGE".to_owned(), "E_TOO_LARGE".to_owned());
    let person = node.person("first");
    assert_eq!(person.refused("compute/matmul", &two), too_large);
    assert_eq!(counts(), (5, 3));
    person.ask("tensor/create", &create(BYTES));
}

#[test]
fn one_identity_that_has_all_room_for_copies_that_it_may_leaves_others_theirs() {
    let store = Arc::<SlowStore>::default();
    let node = node(&store, |settings| settings.referenced_wait = Duration::ZERO);
    thread::scope(|scope| {
        let _opens = OpenAtTheEnd(&store);
        let first = node.person("first");
        let holds = scope.spawn(move || first.try_ask("tensor/create", &create(BYTES)));
        eventually("it has the room", LONG, || {
            store.begun.load(Ordering::SeqCst) == 1
        });
        let second = node.person("second");
        // A short one is copied beside it, and one that is not comes again later.
        second.ask("tensor/create", &create(SHORT));
        let refused = second.try_ask("tensor/create", &create(BYTES));
        let refused = refused.expect_err("no room");
        let busy = ("OVERLOADED".to_owned(), "E_BUSY".to_owned());
        assert_eq!(codes(&refused), busy);
        assert!(refused.retryable && refused.retry_after_ms.is_some());
        second.ask("tensor/create", &create(SHORT));
        store.open();
        let made = holds.join().expect("it is answered");
        made.expect("a tensor");
        second.ask("tensor/create", &create(BYTES));
    });
}

/// Over every element of the tensor at once, for longer than any request may take.
fn endless(bytes: usize) -> Value {
    let view = |rows: usize, columns: usize| json!({ "shape": [rows, columns], "strides": [0, 0] });
    json!({
        "a": reference(bytes), "b": reference(bytes), "variant": "host",
        "a_view": view(4096, 1 << 20), "b_view": view(1 << 20, 4096),
    })
}

#[test]
fn a_request_that_computes_without_end_has_its_copies_as_long_as_its_time_on_the_gpu() {
    let store = Arc::<SlowStore>::default();
    store.open();
    let node = node(&store, |settings| {
        settings.gpu_time = deadline(Duration::from_secs(2));
    });
    let (first, second) = (node.person("first"), node.person("second"));
    let timed_out = ("TIMEOUT".to_owned(), "E_GPU_TIMEOUT".to_owned());
    // Its caller would wait for longer, and its worker does not look at being stopped.
    assert_eq!(
        first.refused("compute/matmul", &endless(BYTES / 2)),
        timed_out
    );
    second.ask("tensor/create", &create(BYTES));
}

#[test]
fn copies_are_taken_back_from_a_worker_that_keeps_their_descriptors() {
    const TIMES: usize = 8;
    let store = Arc::<SlowStore>::default();
    store.open();
    let node = node(&store, |_| {});
    let person = node.person("taken-over");
    for count in 1..=TIMES {
        let made = person.ask("tensor/create", &create(BYTES));
        let last = json!({ "handle": made.value()["handle"], "rows": [BYTES / 4 - 1, BYTES / 4] });
        let read = person.ask("tensor/read", &last);
        assert_eq!(binary(&read, &read.value()["bytes"]), [7; 4]);
        person.ask("tensor/drop", &json!({ "handle": last["handle"] }));
        assert_eq!(store.kept_files().len(), count);
        // By then there is room for another one.
        let lengths = store.kept_files().iter().map(length).sum::<u64>();
        assert_eq!(lengths, 0, "after {count}");
    }
}

fn length(file: &File) -> u64 {
    file.metadata().expect("a file").len()
}
