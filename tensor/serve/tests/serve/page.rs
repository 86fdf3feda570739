//! The requests that docs/tensor-store.md shows are answered.

use alknet_core::ScopeSet;
use alknet_tensor_serve::{TensorAccess, allows};
use serde_json::Value;

use crate::scene::{StoreScene, ask};

fn page() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/tensor-store.md");
    std::fs::read_to_string(path).expect("the page exists")
}

#[tokio::test]
async fn the_requests_of_the_page_are_answered() {
    let (scene, _) = StoreScene::holding("models/bert");
    let peer = scene.peer("ada", &["tensor:read:models"]);
    let page = page();
    let block = page
        .split("```json\n")
        .nth(1)
        .and_then(|rest| rest.split("```").next());
    let requests: Vec<Value> = block
        .expect("a block of requests")
        .lines()
        .map(|line| serde_json::from_str(line).expect(line))
        .collect();
    assert_eq!(requests.len(), 6);
    for request in requests {
        let (said, _) = ask(&peer, &request).await;
        assert_eq!(said["ok"], true, "{request}: {said}");
    }
}

#[test]
fn the_limits_of_the_page_are_those_of_the_code() {
    use alknet_tensor_serve::limits::*;
    let page = page();
    for said in [
        format!("| {} KiB |", REQUEST_BYTES >> 10),
        format!("| {STREAMS}, then `E_BUSY` |"),
        format!("| {} GiB; a response", IN_FLIGHT_BYTES >> 30),
        format!("two blocks of {} KiB", BLOCK_BYTES >> 10),
        format!("arrive | {} s |", REQUEST_TIME.as_secs()),
        format!("puts | {} s |", STALLED_TIME.as_secs()),
        format!(
            "| {UPLOADS_PER_PEER}; {UPLOADS}; {} min |",
            UPLOAD_IDLE.as_secs() / 60
        ),
        format!("number | {} GiB |", STORE_BYTES >> 30),
        format!("65,536; {PATH_BYTES} and {PATH_SEGMENTS} |"),
        format!("| {OPEN_FILES}, of {} MiB", OPEN_HEADER_BYTES >> 20),
    ] {
        assert!(page.contains(&said), "{said}");
    }
    assert_eq!(PATHS, 65_536);
}

#[test]
fn the_scopes_of_the_page_allow_what_it_says() {
    let read = |scope: &str, path: &str| {
        let scopes: ScopeSet = [scope].iter().collect();
        allows(&scopes, TensorAccess::Read, path)
    };
    assert!(read("tensor:read:models", "models/bert"));
    assert!(!read("tensor:read:models/bert", "models"));
    assert!(read("tensor:read:id", &format!("id/{}", "0".repeat(64))));
    assert!(read("tensor:read:*", "x"));
}
