//! The threads that read the file of names: an identity gets two of them at once.

use std::pin::pin;
use std::sync::{Arc, Mutex, mpsc};

use alknet_store::limits::READERS_PER_IDENTITY;
use serde_json::json;

use crate::scene::{FilesNode, hung};

/// The attack: all that one client asks for takes as long as it may.
#[tokio::test]
async fn the_long_reads_of_a_caller_delay_its_own_calls_alone() {
    let node = FilesNode::new();
    let root = node.admin().await;
    let ada = node.peer("ada", &["fs:read:docs"]);
    let lease = node.service.lease().await.expect("a store");
    let of_root = lease.reading_as("root");
    let (begun, has_begun) = mpsc::channel();
    let (go_on, may_go_on) = mpsc::channel::<()>();
    let may_go_on = Arc::new(Mutex::new(may_go_on));
    let long = (0..READERS_PER_IDENTITY).map(|_| {
        let (begun, may_go_on) = (begun.clone(), Arc::clone(&may_go_on));
        of_root.read(move |_| {
            begun.send(()).ok();
            // It ends with the sender.
            may_go_on.lock().expect("no panic").recv().ok();
            Ok(())
        })
    });
    let long: Vec<_> = long.collect();
    for _ in 0..READERS_PER_IDENTITY {
        has_begun.recv_timeout(hung()).expect("a read begins");
    }
    let stat = || json!({ "path": "docs:/" });
    let mut own = pin!(root.call("fs/stat", stat()));
    for _ in 0..20 {
        tokio::select! {
            biased;
            _ = &mut own => panic!("the caller has a third reader"),
            _ = ada.call("fs/stat", stat()) => {}
        }
    }
    drop(go_on);
    let own = tokio::time::timeout(hung(), own).await.expect("in time");
    assert_eq!(own["kind"], "directory");
    for read in long {
        read.await.expect("it ends");
    }
}
