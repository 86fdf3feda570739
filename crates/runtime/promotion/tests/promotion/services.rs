//! Services: what promotion says about them to the part that runs them.

use serde_json::json;

use crate::support::*;

const PAGE: &str = include_str!("../../../../../docs/promotion.md");

fn counter(by: u32) -> DraftBundle {
    let source = format!(
        "let n = 0;
         export const init = (prev) => {{ n = prev?.n ?? 0; }};
         export const dispose = () => ({{ n }});
         export const run = () => n += {by};"
    );
    let mut draft =
        DraftBundle::new("counter", &source).test(json!({ "expect": { "output": by } }));
    draft.content.service = true;
    draft
}

#[tokio::test]
async fn the_supervisor_of_services_sees_which_are_active() {
    let folder = folder();
    let node = PromotionNode::start(folder.path(), live()).await;
    let in_place = || node.isolates.services.lock().expect("no panic").clone();
    node.promote(&says("plain", &json!(1))).await;
    assert!(in_place().is_empty(), "it is no service");
    let one = counter(1);
    node.promote(&one).await;
    let first = in_place();
    assert_eq!(first["js/counter"].code, one.sign().id());
    assert_eq!(first.len(), 1);
    // Each test, and here each call, begins with what `init` makes of nothing.
    for _ in 0..2 {
        let answer = node.call("cal", "js/counter", &json!({})).await;
        assert_eq!(answer, Ok(json!(1)));
    }
    // Other code, and other rights of its author.
    let two = counter(2);
    node.promote(&two).await;
    let second = in_place();
    assert_eq!(second["js/counter"].code, two.sign().id());
    assert_eq!(
        second["js/counter"].authority,
        first["js/counter"].authority
    );
    node.identities.set("ada", &["ops:propose"]);
    soon(async {
        while in_place()["js/counter"].authority == second["js/counter"].authority {
            tokio::task::yield_now().await;
        }
    })
    .await;
    // Back to the first, and away with it.
    for left in [1, 0] {
        let back = json!({ "path": "js/counter" });
        let taken = node.call("eve", "ops/rollback", &back).await;
        taken.expect("taken back");
        assert_eq!(in_place().len(), left);
    }
}

#[tokio::test]
async fn the_page_s_service_passes_its_test() {
    let folder = folder();
    let node = PromotionNode::start(folder.path(), live()).await;
    let source = PAGE.split("\n```js\n").nth(1).expect("an example");
    let source = source.split("\n```").next().expect("it ends");
    let mut draft = DraftBundle::new("visits", source).test(json!({ "expect": { "output": 1 } }));
    draft.content.service = true;
    draft.content.export = Some("count".to_owned());
    node.promote(&draft).await;
    let answer = node.call("cal", "js/visits", &json!({})).await;
    assert_eq!(answer, Ok(json!(1)));
}

#[tokio::test]
async fn a_service_without_init_does_not_pass_its_tests() {
    let folder = folder();
    let node = PromotionNode::start(folder.path(), live()).await;
    let mut draft = DraftBundle::new("counter", "export const run = () => 1;")
        .test(json!({ "expect": { "output": 1 } }));
    draft.content.service = true;
    let refused = node.propose("ada", &draft.sign()).await;
    assert_eq!(
        refused.expect_err("a test fails").code.name(),
        "TESTS_FAILED"
    );
}
