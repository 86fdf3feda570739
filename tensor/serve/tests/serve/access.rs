//! A peer reads and writes only what a scope says.

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use crate::scene::{StoreScene, answer, ask, file, identity, refused};

fn header(src: Value) -> Value {
    json!({ "v": 1, "want": "header", "src": src })
}

#[tokio::test]
async fn a_forbidden_and_an_absent_file_get_the_same_answer() {
    let (scene, id) = StoreScene::holding("models/a");
    let peer = scene.peer("eve", &["tensor:read:other", "tensor:write:models"]);
    let mut said = Vec::new();
    for src in [
        json!({ "path": "models/a" }),
        json!({ "path": "models/none" }),
        json!({ "path": "other/none" }),
        json!({ "id": id.to_string() }),
        json!({ "id": "00".repeat(32) }),
    ] {
        said.push(ask(&peer, &header(src)).await.0.to_string());
    }
    said.dedup();
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].contains("E_NOTFOUND"));
    let unknown_peer = scene.peer("nobody", &[]);
    let request = json!({ "want": "header", "src": { "path": "models/a" } });
    assert_eq!(refused(&unknown_peer, request).await, "E_NOTFOUND");
}

#[tokio::test]
async fn an_id_is_as_good_as_a_path_that_leads_to_it() {
    let (scene, id) = StoreScene::holding("models/a");
    let by_id = header(json!({ "id": id.to_string() }));
    let exact = format!("tensor:read:id/{id}");
    for scopes in [
        ["tensor:read:models"],
        ["tensor:read:id"],
        [exact.as_str()],
        ["*"],
    ] {
        let peer = scene.peer("ada", &scopes);
        assert_eq!(ask(&peer, &by_id).await.0["ok"], true, "{scopes:?}");
    }
    // The path leads elsewhere now.
    scene.add("models/a", &other());
    let peer = scene.peer("ada", &["tensor:read:models"]);
    assert_eq!(ask(&peer, &by_id).await.0["code"], "E_NOTFOUND");
}

/// A stream that is open when the rights change has asked for nothing yet.
#[tokio::test]
async fn a_request_is_allowed_by_the_rights_of_when_it_is_there() {
    let (scene, _) = StoreScene::holding("models/a");
    let mut served = None;
    let peer = scene.peer_through("ada", &["tensor:read:models"], |end| {
        served = Some(end.clone());
        end
    });
    let request = header(json!({ "path": "models/a" }));
    let text = request.to_string();
    let len = u32::try_from(text.len()).expect("short").to_be_bytes();
    let (mut send, recv) = peer.open_bi().await.expect("connected");
    send.write_all(&len).await.expect("taken");
    // Streams are taken in order: when the second is answered, the first is there.
    assert_eq!(ask(&peer, &request).await.0["ok"], true);
    let served = served.expect("it has its end");
    let less = identity("ada", &["tensor:read:other"]);
    served.set_identity(less).expect("the same peer");
    send.write_all(text.as_bytes()).await.expect("taken");
    assert_eq!(answer(recv).await.0["code"], "E_NOTFOUND");
}

#[tokio::test]
async fn writing_needs_a_scope_of_its_own() {
    let scene = StoreScene::new();
    let file = file();
    for (scopes, path, good) in [
        (["tensor:read:*"], Some("a"), false),
        (["tensor:write:b"], Some("a"), false),
        (["tensor:write:a"], None, false),
        (["tensor:write:a"], Some("a/b"), true),
        (["tensor:write:id"], None, true),
    ] {
        let put = scene
            .client(&scopes)
            .put(file.as_slice(), path, &|_, _| {})
            .await;
        match put {
            Ok(id) => assert!(good && id.0 == blake3::hash(&file), "{scopes:?}"),
            Err(error) => assert!(!good && error.code() == "E_NOTFOUND", "{scopes:?} {error}"),
        }
    }
}

fn other() -> Vec<u8> {
    let mut writer = alknet_tensor::ContainerWriter::new(std::io::Cursor::new(Vec::new()));
    let added = writer.flat("x", alknet_tensor::Dtype::U8, &[1], vec![1].into());
    added.expect("it fits");
    writer.finish().expect("memory").1.into_inner()
}
