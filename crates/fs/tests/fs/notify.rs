//! Consumers and queues.

use serde_json::{Value, json};

use crate::scene::FilesNode;

#[tokio::test]
async fn a_consumer_gets_the_events_of_its_bucket_until_it_acknowledges_them() {
    let node = FilesNode::new();
    let admin = node.admin().await;
    admin
        .call("fs/bucket/create", json!({ "bucket": "other" }))
        .await;
    let consumer = json!({ "bucket": "docs", "consumer": "indexer" });
    let mut add = consumer.clone();
    add["start"] = json!("oldest");
    let added = admin.call("fs/notify/add", add).await;
    assert_eq!(added["consumer"], "indexer");
    admin.put("docs:/a", b"a").await;
    admin.put("other:/b", b"b").await;
    let page = admin.call("fs/notify/events", consumer.clone()).await;
    let events = page["events"].as_array().expect("a list");
    let buckets: Vec<_> = events.iter().map(|event| event["bucket"].clone()).collect();
    assert!(
        !buckets.is_empty() && buckets.iter().all(|it| it == "docs"),
        "{page}"
    );
    let mut ack = consumer.clone();
    ack["id"] = page["cursor"].clone();
    let (code, details) = admin.code("fs/notify/ack", ack.clone()).await;
    assert_eq!((&*code, &details["reason"]), ("CONFLICT", &json!("lease")));
    admin.call("fs/notify/claim", consumer.clone()).await;
    admin.call("fs/notify/ack", ack.clone()).await;
    let page = admin.call("fs/notify/events", consumer.clone()).await;
    assert_eq!((&page["events"], &page["end"]), (&json!([]), &json!(true)));
    // Another owner waits for the end of the lease, or until it is given back.
    let eve = node.peer("eve", &["fs:read:docs"]);
    assert_eq!(
        eve.code("fs/notify/claim", consumer.clone()).await.0,
        "BUSY"
    );
    admin.call("fs/notify/release", consumer.clone()).await;
    eve.call("fs/notify/claim", consumer.clone()).await;
    let mut reset = consumer.clone();
    reset["start"] = json!(1_000_000);
    assert_eq!(eve.code("fs/notify/reset", reset).await.0, "GAP");
    admin.call("fs/notify/remove", consumer.clone()).await;
    let gone = admin.code("fs/notify/events", consumer).await;
    assert_eq!(
        gone,
        ("NOT_FOUND".to_owned(), json!({ "object": "consumer" }))
    );
}

#[tokio::test]
async fn a_job_is_claimed_once_and_acknowledged_by_its_claim() {
    let node = FilesNode::new();
    let admin = node.admin().await;
    let queue = |more: Value| {
        let mut input = json!({ "bucket": "docs", "queue": "thumbnails" });
        for (name, value) in more.as_object().expect("members") {
            input[name] = value.clone();
        }
        input
    };
    let job = queue(json!({ "payload": "/a.png", "key": "a" }));
    let first = admin.call("fs/notify/queue/enqueue", job.clone()).await;
    let again = admin.call("fs/notify/queue/enqueue", job).await;
    assert_eq!(
        (&first["new"], &again["new"]),
        (&json!(true), &json!(false))
    );
    assert_eq!(first["id"], again["id"]);
    let claimed = admin.call("fs/notify/queue/claim", queue(json!({}))).await;
    let mut claim = claimed["jobs"][0].clone();
    assert_eq!(
        (&claim["payload"], &claim["key"]),
        (&json!("/a.png"), &json!("a"))
    );
    let none = admin.call("fs/notify/queue/claim", queue(json!({}))).await;
    assert_eq!(none["jobs"], json!([]));
    let members = claim.as_object_mut().expect("members");
    members.remove("payload");
    members.remove("key");
    let renewed = admin
        .call("fs/notify/queue/renew", queue(claim.clone()))
        .await;
    let retried = admin
        .call("fs/notify/queue/retry", queue(renewed.clone()))
        .await;
    assert_eq!(retried["dead"], false);
    let lost = admin.code("fs/notify/queue/ack", queue(renewed)).await;
    assert_eq!(lost.0, "CONFLICT");
    let usage = admin.call("fs/notify/queue/usage", queue(json!({}))).await;
    assert_eq!(
        (&usage["waiting"], &usage["claimed"]),
        (&json!(1), &json!(0))
    );
}

/// The claim of a job names no queue: a worker of one bucket must not end the job of another one.
#[tokio::test]
async fn a_claim_counts_in_its_own_queue_only() {
    let node = FilesNode::new();
    let admin = node.admin().await;
    admin
        .call("fs/bucket/create", json!({ "bucket": "other" }))
        .await;
    let job = json!({ "bucket": "docs", "queue": "q", "payload": "x" });
    admin.call("fs/notify/queue/enqueue", job).await;
    let claimed = json!({ "bucket": "docs", "queue": "q" });
    let claimed = admin.call("fs/notify/queue/claim", claimed).await;
    let job = &claimed["jobs"][0];
    let claim = |bucket: &str| {
        json!({ "bucket": bucket, "queue": "q", "id": job["id"], "tries": job["tries"],
                "lease_until_ms": job["lease_until_ms"] })
    };
    let eve = node.peer("eve", &["fs:write:other"]);
    for operation in ["ack", "renew", "retry"] {
        let operation = format!("fs/notify/queue/{operation}");
        assert_eq!(eve.code(&operation, claim("other")).await.0, "CONFLICT");
    }
    admin.call("fs/notify/queue/ack", claim("docs")).await;
}

/// Jobs lie in the file of names, and the right to write must not fill the disk beside the quota.
#[tokio::test]
async fn jobs_are_within_the_quota_of_their_bucket() {
    let node = FilesNode::new();
    let admin = node.admin().await;
    let small = json!({ "bucket": "small", "quota_bytes": 1 << 20 });
    admin.call("fs/bucket/create", small).await;
    let eve = node.peer("eve", &["fs:write:small"]);
    let payload = "x".repeat(64 << 10);
    let job = |queue: usize| json!({ "bucket": "small", "queue": format!("q{queue}"), "payload": payload });
    for number in 0..15 {
        eve.call("fs/notify/queue/enqueue", job(number)).await;
    }
    let (code, details) = eve.code("fs/notify/queue/enqueue", job(0)).await;
    assert_eq!(code, "QUOTA_EXCEEDED", "{details}");
    let usage = json!({ "bucket": "small" });
    let usage = admin.call("fs/bucket/usage", usage).await;
    let bytes = usage["bytes"].as_u64().expect("a number");
    assert!((15 << 16..=1 << 20).contains(&bytes), "{usage}");
    // Others have queues of their own, as many as eve has used up.
    let other = json!({ "bucket": "docs", "queue": "q", "payload": payload });
    admin.call("fs/notify/queue/enqueue", other).await;
}

/// The names of buckets are given again, and what lay in the queues of one is not for the owner of the next.
#[tokio::test]
async fn a_new_bucket_gets_nothing_of_a_deleted_one_with_its_name() {
    let node = FilesNode::new();
    let admin = node.admin().await;
    let secret = json!({ "bucket": "docs", "queue": "q", "payload": "secret", "key": "k" });
    let first = admin.call("fs/notify/queue/enqueue", secret.clone()).await;
    let consumer = json!({ "bucket": "docs", "consumer": "c", "start": "oldest" });
    admin.call("fs/notify/add", consumer.clone()).await;
    let docs = json!({ "bucket": "docs" });
    admin.call("fs/bucket/delete", docs.clone()).await;
    admin.call("fs/bucket/create", docs).await;
    let eve = node.peer("eve", &["fs:read:docs", "fs:write:docs"]);
    let queue = json!({ "bucket": "docs", "queue": "q" });
    let claimed = eve.call("fs/notify/queue/claim", queue.clone()).await;
    assert_eq!(claimed["jobs"], json!([]));
    let usage = eve.call("fs/notify/queue/usage", queue).await;
    assert_eq!(usage["waiting"], 0);
    let own = json!({ "bucket": "docs", "consumer": "c" });
    let gone = eve.code("fs/notify/events", own).await;
    assert_eq!(
        gone,
        ("NOT_FOUND".to_owned(), json!({ "object": "consumer" }))
    );
    // Its key is free as well.
    let again = eve.call("fs/notify/queue/enqueue", secret).await;
    assert_eq!(again["new"], true);
    assert_ne!(again["id"], first["id"]);
}
