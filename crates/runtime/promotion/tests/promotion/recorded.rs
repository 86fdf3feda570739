//! Fixtures made of real calls.

use alknet_runtime::{CallRecorder, OpError, REDACTED, SecretMarks};
use serde_json::json;

use crate::support::*;

const SOURCE: &str = "export const run = async (pin) => {
    const { door } = await ops.call('door/open', { pin });
    try { await ops.call('none/such', 1) } catch {}
    const items = [];
    try {
        for await (const item of ops.subscribe('some/items', null)) items.push(item);
    } catch (error) { items.push(error.code) }
    const { pixels } = await ops.call('image/get', {});
    return { door, items, pixels: [...new Uint8Array(pixels)] };
};";

/// What a session recorded is what a proposal is tested with, and no secret is in it.
#[tokio::test]
async fn recorded_calls_are_what_a_proposal_is_tested_with() {
    let secret =
        json!({ "properties": { "pin": { "x-secret": true }, "token": { "x-secret": true } } });
    let door = SecretMarks::from_schemas(&secret, &secret, []);
    let open = || Some(SecretMarks::default());
    let record = CallRecorder::default();
    let noted = record.begin("door/open", &json!({ "pin": "1234" }), Some(door));
    noted.answered(&json!({ "token": "t-1", "door": true }), None);
    let none = record.begin("none/such", &json!(1), None);
    none.failed(&OpError::new("NOT_FOUND", "no such operation"));
    let items = record.begin("some/items", &json!(null), open());
    items.yielded(&json!(0), None);
    items.yielded(&json!(1), None);
    items.failed(&OpError::new("UNAVAILABLE", "the way is gone"));
    let image = record.begin("image/get", &json!({}), open());
    image.answered(
        &json!({ "pixels": { "$bin": [1, 3] } }),
        Some(&[9, 1, 2, 3]),
    );
    let recorded = record.end();
    assert_eq!(recorded.left_out, 0);
    let calls = serde_json::to_value(&recorded.calls).expect("JSON");
    let text = calls.to_string();
    assert!(!text.contains("1234") && !text.contains("t-1"), "{text}");

    let folder = folder();
    let node = PromotionNode::start(folder.path(), live()).await;
    let answer = json!({ "door": true, "items": [0, 1, "UNAVAILABLE"], "pixels": [1, 2, 3] });
    let draft = DraftBundle::new("a", SOURCE)
        .uses(&["door/open", "image/get", "none/such", "some/items"])
        .test(json!({ "input": REDACTED, "calls": calls, "expect": { "output": answer } }));
    let proposed = node
        .propose("ada", &draft.sign())
        .await
        .expect("it replays");
    assert_eq!(proposed["report"]["passed"], true);
}
