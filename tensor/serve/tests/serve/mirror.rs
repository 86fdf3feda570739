//! The files of a store over HTTP.

use std::convert::Infallible;
use std::sync::Arc;

use alknet_core::{BoxError, HttpMount, MountBody, MountCaller};
use alknet_tensor_serve::Mirror;
use bytes::Bytes;
use http::{HeaderMap, Method, Request};
use http_body_util::{BodyExt, Empty};
use serde_json::Value;

use crate::changes::scribble;
use crate::scene::{StoreScene, file, hung, identity};

struct MirrorResponse {
    status: u16,
    headers: HeaderMap,
    body: Vec<u8>,
    /// Whether the body came to its end.
    whole: bool,
}

impl MirrorResponse {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    fn error(&self) -> Value {
        let said: Value = serde_json::from_slice(&self.body).expect("JSON");
        said["error"].clone()
    }
}

/// Asks as an identity with these scopes, or without an identity.
async fn ask(
    scene: &StoreScene,
    scopes: Option<&[&str]>,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
) -> MirrorResponse {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let nothing = Empty::<Bytes>::new();
    let nothing = nothing.map_err(|never: Infallible| -> BoxError { match never {} });
    let request = request.body(MountBody::new(nothing)).expect("a request");
    let caller = MountCaller {
        identity: scopes.map(|scopes| identity("ada", scopes)),
        request_id: "r1".into(),
        ..MountCaller::default()
    };
    let mirror = Arc::new(Mirror::new(Arc::clone(&scene.store)));
    let (head, mut body) = mirror.respond(request, caller).await.into_parts();
    let mut bytes = Vec::new();
    let read = async {
        loop {
            match body.frame().await {
                None => return true,
                Some(Ok(frame)) => bytes.extend(frame.into_data().expect("no trailers")),
                Some(Err(_)) => return false,
            }
        }
    };
    let whole = tokio::time::timeout(hung(), read).await.expect("in time");
    MirrorResponse {
        status: head.status.as_u16(),
        headers: head.headers,
        body: bytes,
        whole,
    }
}

async fn get(scene: &StoreScene, path: &str, headers: &[(&str, &str)]) -> MirrorResponse {
    let scopes = ["tensor:read:models"];
    ask(scene, Some(&scopes), Method::GET, path, headers).await
}

#[tokio::test]
async fn files_come_whole_and_in_parts() {
    let (scene, id) = StoreScene::holding("models/a");
    let file = file();
    let len = file.len();
    let by_id = format!("/tensor/{id}");
    let tag = format!("\"{id}\"");
    for path in [&*by_id, "/tensor/models/a"] {
        let told = get(&scene, path, &[]).await;
        assert!(told.status == 200 && told.whole && told.body == file);
        assert_eq!(told.header("etag"), Some(&*tag));
        assert_eq!(told.header("accept-ranges"), Some("bytes"));
        assert_eq!(told.header("content-length"), Some(&*len.to_string()));
        assert_eq!(told.header("cache-control"), Some("private, no-cache"));
    }
    // At the ends of groups and blocks, beside them and across them.
    for (first, last) in [
        (0, 0),
        (0, 7),
        (8, 16_383),
        (16_383, 16_384),
        (16_384, 32_767),
        (5, 262_143),
        (5, 262_144),
        (262_145, 900_000),
        (len - 1, len - 1),
        (len - 20_000, len - 1),
    ] {
        let range = format!("bytes={first}-{last}");
        let told = get(&scene, &by_id, &[("range", &range)]).await;
        assert!(told.status == 206 && told.whole, "{range}");
        assert!(told.body == file[first..=last], "{range}");
        let said = format!("bytes {first}-{last}/{len}");
        assert_eq!(told.header("content-range"), Some(&*said));
        assert_eq!(told.header("etag"), Some(&*tag));
    }
    let told = get(&scene, &by_id, &[("range", "bytes=0-1,5-6")]).await;
    assert!(told.status == 200 && told.body == file);
    let behind = format!("bytes={len}-");
    let told = get(&scene, &by_id, &[("range", &behind)]).await;
    assert_eq!(told.status, 416);
    let said = format!("bytes */{len}");
    assert_eq!(told.header("content-range"), Some(&*said));

    let known = get(&scene, &by_id, &[("if-none-match", &tag)]).await;
    assert!(known.status == 304 && known.body.is_empty());
    assert_eq!(known.header("etag"), Some(&*tag));
    let other = [("if-match", "\"other\"")];
    assert_eq!(get(&scene, &by_id, &other).await.status, 412);
    let other = [("if-range", "\"other\""), ("range", "bytes=0-7")];
    assert_eq!(get(&scene, &by_id, &other).await.status, 200);
    let everything: [&str; 1] = ["*"];
    let everything = Some(&everything[..]);
    let range = [("range", "bytes=0-7")];
    let told = ask(&scene, everything, Method::HEAD, &by_id, &range).await;
    assert!(told.status == 200 && told.body.is_empty());
    assert_eq!(told.header("content-length"), Some(&*len.to_string()));
    let told = ask(&scene, everything, Method::PUT, &by_id, &[]).await;
    assert_eq!(
        (told.status, told.header("allow")),
        (405, Some("GET, HEAD"))
    );
}

#[tokio::test]
async fn forbidden_and_absent_are_one_answer() {
    let (scene, id) = StoreScene::holding("models/a");
    let by_id = format!("/tensor/{id}");
    let absent = format!("/tensor/{}", "0".repeat(64));
    let (all, other): (&[&str], &[&str]) = (&["*"], &["tensor:read:other"]);
    let writer: &[&str] = &["tensor:write:models"];
    let conditions: [&[(&str, &str)]; 3] =
        [&[], &[("range", "bytes=0-7")], &[("if-none-match", "*")]];
    let mut said = Vec::new();
    for (scopes, path) in [
        (None, &*by_id),
        (None, &*absent),
        (None, "/tensor/models/a"),
        (Some(other), &*by_id),
        (Some(other), "/tensor/models/a"),
        (Some(writer), "/tensor/models/a"),
        (Some(all), &*absent),
        (Some(all), "/tensor/models/none"),
        (Some(all), "/tensor"),
        (Some(all), "/tensor/"),
        (Some(all), "/tensor/models/../models/a"),
        (Some(all), "/tensor/models%2fa"),
    ] {
        for headers in conditions {
            let told = ask(&scene, scopes, Method::GET, path, headers).await;
            assert_eq!(told.status, 404, "{path}");
            said.push((told.body, format!("{:?}", told.headers)));
        }
    }
    said.dedup();
    assert_eq!(said.len(), 1, "{said:?}");
    // By its id, for an identity that may read a path of it.
    assert_eq!(get(&scene, &by_id, &[]).await.status, 200);
}

#[tokio::test]
async fn bytes_with_a_wrong_hash_reach_no_client() {
    let (scene, id) = StoreScene::holding("models/a");
    let path = format!("/tensor/{id}");
    let file = file();
    let middle = file.len() / 2;
    // The tree of the file as it was is kept.
    assert_eq!(
        get(&scene, &path, &[("range", "bytes=0-7")]).await.status,
        206
    );
    scribble(&scene, id, middle as u64, file[middle] ^ 1);
    let told = get(&scene, &path, &[]).await;
    assert!(told.status == 200 && !told.whole);
    assert!(!told.body.is_empty() && told.body.len() <= middle);
    assert!(told.body == file[..told.body.len()]);
    let hit = format!("bytes={middle}-");
    let told = get(&scene, &path, &[("range", &hit)]).await;
    assert!(told.status == 206 && !told.whole && told.body.is_empty());
    // What is not damaged is still there.
    let beside = format!("bytes={}-", middle + 16_384);
    let told = get(&scene, &path, &[("range", &beside)]).await;
    assert!(told.whole && told.body == file[middle + 16_384..]);

    // Without the tree, the mirror cannot say which of the bytes are good.
    let trees = scene.path("store/outboards");
    std::fs::remove_dir_all(&trees).expect("there");
    std::fs::create_dir(&trees).expect("ours");
    let told = get(&scene, &path, &[("range", "bytes=0-7")]).await;
    assert_eq!(told.status, 500);
    let error = told.error();
    assert_eq!(error["code"], "TENSOR_INVALID");
    assert_eq!(error["details"]["code"], "E_HASH");
    assert_eq!(error["request_id"], "r1");
}
