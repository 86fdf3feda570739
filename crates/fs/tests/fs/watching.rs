//! `fs/watch`: events in their order, resumed over restarts.

use serde_json::{Value, json};

use crate::scene::{FilesNode, base64, next};

#[tokio::test]
async fn events_come_in_order_and_only_of_what_is_watched() {
    let node = FilesNode::new();
    let admin = node.admin().await;
    admin
        .call("fs/bucket/create", json!({ "bucket": "other" }))
        .await;
    admin
        .call(
            "fs/branch/create",
            json!({ "bucket": "docs", "name": "draft" }),
        )
        .await;
    let mut events = admin
        .subscribe("fs/watch", json!({ "path": "docs:/a" }))
        .await;
    let begin = next(&mut events).await.output.value().clone();
    assert_eq!(begin["topic"], "watch.begin");
    for path in [
        "docs:/b",
        "other:/a/x",
        "docs@draft:/a/x",
        "docs:/a/one",
        "docs:/a/two",
    ] {
        admin.put(path, b"x").await;
    }
    admin
        .call("fs/delete", json!({ "path": "docs:/a", "recursive": true }))
        .await;
    let mut last = begin["id"].as_i64().expect("a number");
    let mut seen = Vec::new();
    while seen.last() != Some(&("fs.delete".to_owned(), "/a".to_owned())) {
        let event = next(&mut events).await;
        let value = event.output.value();
        let id = value["id"].as_i64().expect("a number");
        assert!(id > last, "{value}");
        let cursor = event.cursor.as_ref().expect("it has one");
        assert_eq!(cursor.value(), &json!(id));
        last = id;
        let text = |name: &str| value[name].as_str().expect("a text").to_owned();
        assert_eq!((&*text("bucket"), &*text("branch")), ("docs", "main"));
        seen.push((text("topic"), text("path")));
    }
    seen.retain(|(topic, _)| topic != "fs.mkdir");
    let seen: Vec<_> = seen
        .iter()
        .map(|(topic, path)| (&**topic, &**path))
        .collect();
    assert_eq!(
        seen,
        [
            ("fs.put", "/a/one"),
            ("fs.put", "/a/two"),
            ("fs.delete", "/a")
        ]
    );
}

#[tokio::test]
async fn a_watch_goes_on_behind_its_cursor_after_a_restart() {
    let node = FilesNode::new();
    let admin = node.admin().await;
    let watch = |cursor: Option<Value>| {
        let mut input = json!({ "path": "docs:/", "topics": ["fs.put"] });
        if let Some(cursor) = cursor {
            input["cursor"] = cursor;
        }
        input
    };
    let mut events = admin.subscribe("fs/watch", watch(None)).await;
    next(&mut events).await;
    let changes = |from: usize| {
        let all: Vec<_> = (from..from + 100)
            .map(|at| json!({ "op": "put", "path": format!("docs:/{at:04}"), "bytes": base64(b"x") }))
            .collect();
        json!({ "changes": all })
    };
    admin.call("fs/batch", changes(0)).await;
    let mut seen = Vec::new();
    let mut cursor = None;
    // The consumer is gone in the middle.
    for _ in 0..40 {
        let event = next(&mut events).await;
        seen.push(event.output.value()["path"].clone());
        cursor = event.cursor.map(|cursor| cursor.value().clone());
    }
    admin.call("fs/batch", changes(100)).await;
    let node = node.restarted().await;
    let admin = node.peer("root", &["fs:*"]);
    admin.call("fs/batch", changes(200)).await;
    let mut events = admin.subscribe("fs/watch", watch(cursor)).await;
    assert_eq!(
        next(&mut events).await.output.value()["topic"],
        "watch.begin"
    );
    while seen.len() < 300 {
        seen.push(next(&mut events).await.output.value()["path"].clone());
    }
    let expected: Vec<_> = (0..300).map(|at| json!(format!("/{at:04}"))).collect();
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn a_cursor_of_no_event_yet_is_a_gap() {
    let node = FilesNode::new();
    let admin = node.admin().await;
    let input = json!({ "path": "docs:/", "cursor": 1_000_000 });
    let ended = admin.broken("fs/watch", input).await;
    assert_eq!(ended.0, "GAP");
}

#[tokio::test]
async fn a_watch_ends_when_the_node_does() {
    let node = FilesNode::new();
    let admin = node.admin().await;
    let mut events = admin
        .subscribe("fs/watch", json!({ "path": "docs:/" }))
        .await;
    next(&mut events).await;
    node.service.shutdown().await;
    let end = futures_util::StreamExt::next(&mut events).await;
    let error = end.expect("an error").expect_err("it is over");
    assert_eq!(error.code.name(), "UNAVAILABLE");
    let stat = admin.code("fs/stat", json!({ "path": "docs:/" })).await;
    assert_eq!(stat.0, "UNAVAILABLE");
}

/// The consumer ends in the middle of what it gets, and the node restarts now and then.
#[tokio::test]
async fn ten_thousand_puts_come_once_to_a_consumer_that_ends_again_and_again() {
    const PUTS: usize = 10_000;
    const BATCH: usize = 1000;
    /// Events of a batch that the consumer leaves to the next one.
    const LEFT: usize = 70;
    let watch = |cursor: &Value| {
        let mut input = json!({ "path": "docs:/", "topics": ["fs.put"] });
        if !cursor.is_null() {
            input["cursor"] = cursor.clone();
        }
        input
    };
    let mut node = FilesNode::new();
    let mut admin = node.admin().await;
    let mut events = admin.subscribe("fs/watch", watch(&Value::Null)).await;
    let mut cursor = next(&mut events).await.output.value()["id"].clone();
    drop(events);
    let mut seen = Vec::new();
    for batch in 0..PUTS / BATCH {
        let numbers = batch * BATCH..(batch + 1) * BATCH;
        let changes: Vec<_> = numbers
            .map(|at| json!({ "op": "put", "path": format!("docs:/{at:05}"), "bytes": base64(b"x") }))
            .collect();
        admin.call("fs/batch", json!({ "changes": changes })).await;
        let mut events = admin.subscribe("fs/watch", watch(&cursor)).await;
        let begin = next(&mut events).await;
        assert_eq!(begin.output.value()["topic"], "watch.begin");
        let until = (batch + 1) * BATCH - LEFT;
        while seen.len() < until {
            let event = next(&mut events).await;
            let value = event.output.value();
            assert!(value["id"].as_i64() > cursor.as_i64(), "{value}");
            seen.push(value["path"].clone());
            cursor = value["id"].clone();
        }
        drop(events);
        if batch % 3 == 2 {
            node = node.restarted().await;
            admin = node.peer("root", &["fs:*"]);
        }
    }
    let mut events = admin.subscribe("fs/watch", watch(&cursor)).await;
    next(&mut events).await;
    while seen.len() < PUTS {
        seen.push(next(&mut events).await.output.value()["path"].clone());
    }
    let expected: Vec<_> = (0..PUTS).map(|at| json!(format!("/{at:05}"))).collect();
    assert!(seen == expected);
}
