//! Stored tensors that requests refer to are copied for the node's account.

use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

use alknet_call::{CallError, Ctx};
use alknet_compute::{Referenced, References};
use alknet_core::{BoxFuture, CloseCode};
use alknet_test_support::eventually;
use alknet_worker::Sealed;
use serde_json::{Value, json};

use super::node::{LONG, Node, Person, patient};

/// Bytes of each stored tensor.
const BYTES: usize = 1 << 20;

/// A store whose tensors are copied once it is opened.
#[derive(Default)]
struct SlowStore {
    found: AtomicUsize,
    begun: AtomicUsize,
    is_open: Mutex<bool>,
    opened: Condvar,
}

impl SlowStore {
    fn open(&self) {
        *self.is_open.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.opened.notify_all();
    }

    fn copy(&self) -> Result<Sealed, CallError> {
        self.begun.fetch_add(1, Ordering::SeqCst);
        let is_open = self.is_open.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.opened.wait_while(is_open, |is_open| !*is_open);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
        let copied = Sealed::written(|memory| memory.write_all(&[7; BYTES]));
        copied.map_err(|error| CallError::internal(error.to_string()))
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

impl References for SlowReferences {
    fn find(
        &self,
        _ctx: &Ctx,
        _reference: &str,
    ) -> BoxFuture<'static, Result<Referenced, CallError>> {
        let store = Arc::clone(&self.0);
        Box::pin(async move {
            store.found.fetch_add(1, Ordering::SeqCst);
            Ok(Referenced {
                dtype: "U8".to_owned(),
                shape: vec![BYTES as u64],
                copy: Box::new(move || store.copy()),
            })
        })
    }
}

fn create() -> Value {
    json!({ "dtype": "U8", "shape": [BYTES], "from": { "ref": "alknet-tensor://node/id#name" } })
}

#[test]
fn stored_tensors_are_copied_in_turn_and_where_there_is_room() {
    let store = Arc::<SlowStore>::default();
    let mut settings = patient();
    settings.referenced_bytes = BYTES as u64 + 1;
    let node = Node::with_references(settings, Arc::new(SlowReferences(Arc::clone(&store))));
    let counts = || {
        let [found, begun] = [&store.found, &store.begun].map(|count| count.load(Ordering::SeqCst));
        (found, begun)
    };
    thread::scope(|scope| {
        let opens = OpenAtTheEnd(&store);
        let ask = |person: Person| {
            scope.spawn(move || {
                let made = person.try_ask("tensor/create", &create());
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
    let reference = json!({ "ref": "alknet-tensor://node/id#name" });
    let two = json!({ "data": reference, "offsets": reference });
    let too_large = ("TENSOR_TOO_LARGE".to_owned(), "E_TOO_LARGE".to_owned());
    let person = node.person("first");
    assert_eq!(person.refused("compute/sha256", &two), too_large);
    assert_eq!(counts(), (5, 3));
    person.ask("tensor/create", &create());
}
