//! A peer that is removed, and the tickets that it was given before. Here it is a second administrator, who alone may
//! follow something.

use std::time::Duration;

use alknet_test_support::deadline;
use alknet_tests::raw::{H1, Raw};
use alknet_tests::{Bench, Web};
use alknet_tls::NodeKey;
use serde_json::json;
use tokio::task::block_in_place;

/// For so long a stream may go on whose peer is gone: less than what passes until rights are looked at again by
/// themselves.
const AT_ONCE: Duration = Duration::from_secs(15);

/// By its key, over HTTP and without a token.
async fn ticket(web: &Web, key: &NodeKey) -> String {
    let mut peer = Raw::open_as(&web.target(), H1, key.clone()).await;
    let call = r#"{"operation":"/node/log","input":{"follow":true,"last":1}}"#;
    let head = format!(
        "POST /subscribe HTTP/1.1\r\nHost: localhost\r\nPrefer: respond-async\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{call}",
        call.len()
    );
    assert!(peer.say(head.as_bytes()).await);
    let told = peer.hear_until("}", deadline(AT_ONCE)).await;
    assert!(told.starts_with("HTTP/1.1 201 "), "{told}");
    let url = told
        .split('"')
        .find(|part| part.starts_with("/subscribe/t/"));
    url.unwrap_or_else(|| panic!("no address: {told}"))
        .to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_peer_reads_nothing_more_by_its_tickets() {
    let bench = Bench::new();
    let key = NodeKey::generate().expect("the system has entropy");
    let admin = bench.admin().identity();
    let both = format!("[node]\nadmin_keys = [\"{admin}\", \"{}\"]\n", key.public());
    let web = Web::start(&bench, &both);
    let (used, kept) = (ticket(&web, &key).await, ticket(&web, &key).await);
    // Anybody's connection: the address is all that is asked for.
    let mut reader = Raw::open(&web.target(), H1).await;
    let asks = format!("GET {used} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert!(reader.say(asks.as_bytes()).await);
    let begins = reader.hear_until("event: data", deadline(AT_ONCE)).await;
    assert!(begins.starts_with("HTTP/1.1 200 "), "{begins}");

    let without = json!({ "document": format!("node.admin_keys = [\"{admin}\"]\n") });
    block_in_place(|| web.node.call("config/apply", &without));
    let ends = reader.hear_until("event: error", deadline(AT_ONCE)).await;
    let (_, error) = ends.split_once("event: error").expect("it was heard");
    let error = match error.contains('}') {
        true => error.to_owned(),
        false => reader.hear_until("}", deadline(AT_ONCE)).await,
    };
    assert!(error.contains("\"UNAUTHENTICATED\""), "{error}");

    let refused = block_in_place(|| web.curl(&kept, &[]));
    assert_eq!(
        (refused.status, refused.code().as_str()),
        (401, "UNAUTHENTICATED")
    );
}
