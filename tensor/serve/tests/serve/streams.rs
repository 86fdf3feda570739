//! Every part that can be asked for.

use alknet_tensor::{ContainerLimits, ContainerReader, Dtype};
use serde_json::json;

use crate::scene::{LARGE, StoreScene, fetch, file, large, refused};

#[tokio::test]
async fn parts_are_what_they_say() {
    let (scene, id) = StoreScene::holding("models/a");
    let file = file();
    let peer = scene.peer("ada", &["tensor:read:models"]);
    let src = json!({ "path": "models/a" });

    let (head, header) = fetch(&peer, json!({ "src": src, "want": "header" })).await;
    let reader = ContainerReader::open(file.as_slice(), &ContainerLimits::default()).expect("good");
    assert_eq!(head["len"], reader.meta().data_start());
    assert_eq!(head["id"], id.to_string());
    let hash = blake3::hash(&header).to_hex().to_string();
    assert_eq!(
        (&head["header_b3"], &head["b3"]),
        (&json!(hash), &json!(hash))
    );
    assert!(header == file[..header.len()]);

    let (head, bytes) = fetch(
        &peer,
        json!({ "src": src, "want": "tensor", "name": "large" }),
    )
    .await;
    assert!(bytes == large());
    assert_eq!(head["shape"], json!([LARGE]));
    assert_eq!(head["dtype"], "U8");
    assert_eq!(head["b3"], blake3::hash(&bytes).to_hex().to_string());

    let rows = json!({ "src": src, "want": "rows", "name": "small", "rows": [1, 2] });
    let (head, bytes) = fetch(&peer, rows).await;
    assert_eq!((bytes, &head["shape"]), (vec![4, 5, 6], &json!([1, 3])));
    let records = json!({ "src": src, "want": "rows", "name": "points", "rows": [0, 1] });
    assert_eq!(fetch(&peer, records).await.1, [0; 8]);

    // Offsets first, counted from the first item that was asked for.
    let items = json!({ "src": src, "want": "rows", "name": "names", "rows": [1, 3] });
    let (head, bytes) = fetch(&peer, items).await;
    let mut expected = [0_u64, 0, 5].map(u64::to_le_bytes).concat();
    expected.extend(b"three");
    assert_eq!((bytes, &head["shape"]), (expected, &json!([2])));

    let range = json!({ "src": src, "want": "range", "range": [8, 20] });
    assert_eq!(fetch(&peer, range).await.1, file[8..20]);
    let range = json!({ "src": src, "want": "range", "name": "large", "range": [7, 7] });
    assert!(fetch(&peer, range).await.1.is_empty());
    let offsets = json!({ "src": src, "want": "tensor", "name": "names.__off__" });
    assert_eq!(fetch(&peer, offsets).await.1.len(), 32);
}

#[tokio::test]
async fn what_is_not_there_is_said() {
    let (scene, _) = StoreScene::holding("a");
    let peer = scene.peer("ada", &["tensor:read:*"]);
    let src = json!({ "path": "a" });
    let ask = |want| {
        let mut request: serde_json::Value = want;
        request["src"] = src.clone();
        refused(&peer, request)
    };
    assert_eq!(
        ask(json!({ "want": "tensor", "name": "other" })).await,
        "E_NOTFOUND"
    );
    assert_eq!(
        ask(json!({ "want": "tensor", "name": "__pad__.0" })).await,
        "E_NOTFOUND"
    );
    let rows = json!({ "want": "rows", "name": "small", "rows": [1, 3] });
    assert_eq!(ask(rows).await, "E_SHAPE");
    let rows = json!({ "want": "rows", "name": "names", "rows": [3, 4] });
    assert_eq!(ask(rows).await, "E_SHAPE");
    let range = json!({ "want": "range", "range": [0, u64::MAX] });
    assert_eq!(ask(range).await, "E_SHAPE");
    let range = json!({ "want": "range", "name": "small", "range": [0, 7] });
    assert_eq!(ask(range).await, "E_SHAPE");
    let items = json!({ "want": "rows", "name": "names", "rows": [0, 1], "encoding": "bao16" });
    assert_eq!(ask(items).await, "E_VALUE");
}

/// A file of the stock package is served as it is, proven by hashes made here.
#[tokio::test]
async fn plain_files_are_served_too() {
    let scene = StoreScene::new();
    let mut writer = alknet_tensor::ContainerWriter::plain(std::io::Cursor::new(Vec::new()));
    writer
        .flat("w", Dtype::U8, &[40_000], vec![7; 40_000].into())
        .expect("it fits");
    let plain = writer.finish().expect("memory").1.into_inner();
    scene.add("plain", &plain);
    let client = scene.client(&["tensor:read:plain"]);
    let target = scene.path("out.mt");
    let keep = |name: &str| name == "w";
    let pulled = client
        .pull_some(&crate::scene::at("plain"), &target, &keep, &|_, _| {})
        .await;
    assert_eq!(pulled.expect("served").fetched, 40_000);
    let reader = ContainerReader::open(
        std::fs::File::open(target).expect("made"),
        &ContainerLimits::default(),
    );
    let reader = reader.expect("good");
    assert_eq!(reader.view("w").expect("there").bytes(), [7; 40_000]);
}
