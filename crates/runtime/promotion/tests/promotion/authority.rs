//! No promotion gives more than its author had, its bundle says and its reviewer saw.

use alknet_call::{
    CompositionAuthority, Ctx, ErrorCode, HandlerKind, OperationSpec, Registration, ScopedPeerEnv,
};
use serde_json::{Value, json};

use crate::support::*;

/// Calls what its input names.
fn caller(name: &str, uses: &[&str]) -> DraftBundle {
    let source = "export const run = async (path) => {
        try { return await ops.call(path, {}) } catch (error) { return error.code }
    };";
    DraftBundle::new(name, source)
        .uses(uses)
        .test(json!({ "input": "x/y", "expect": { "output": "NOT_FOUND" } }))
}

async fn calls(node: &PromotionNode, who: &str, path: &str) -> Value {
    let answer = node.call(who, "js/caller", &json!(path)).await;
    answer.expect("an answer")
}

#[tokio::test]
async fn it_reaches_what_its_bundle_says_and_does_what_its_author_may() {
    let folder = folder();
    let node = PromotionNode::start(folder.path(), live()).await;
    // The caller may do everything, and the operation gets no rights by that.
    node.identities.set("root", &["*"]);
    node.promote(&caller("caller", &["config/tax", "files/write"]))
        .await;
    assert_eq!(
        calls(&node, "root", "config/tax").await,
        json!({ "percent": 50 })
    );
    assert_eq!(
        calls(&node, "root", "files/write").await,
        json!("FORBIDDEN"),
        "not ada's"
    );
    assert_eq!(
        calls(&node, "root", "door/open").await,
        json!("NOT_FOUND"),
        "not said"
    );
    assert_eq!(
        calls(&node, "root", "ops/proposals").await,
        json!("NOT_FOUND")
    );
    // The same code is ada's proposal already: bob, who has other rights, cannot propose it.
    let bobs = caller("caller", &["config/tax", "files/write"]).by("bob");
    let refused = node.propose("bob", &bobs.sign()).await;
    assert_eq!(refused.expect_err("ada's").code, ErrorCode::Conflict);
}

#[tokio::test]
async fn what_the_author_is_given_later_is_not_granted_and_what_is_taken_is_gone() {
    let folder = folder();
    let node = PromotionNode::start(folder.path(), live()).await;
    node.promote(&caller("caller", &["config/tax", "files/write"]))
        .await;
    node.identities
        .set("ada", &["ops:propose", "config:*", "files:*"]);
    node.identities
        .set("eve", &["ops:promote", "call:*", "files:*"]);
    // Another promotion makes another generation; it knows what ada may by now.
    node.promote(&says("other", &json!(1))).await;
    assert_eq!(calls(&node, "cal", "files/write").await, json!("FORBIDDEN"));
    assert_eq!(
        calls(&node, "cal", "config/tax").await,
        json!({ "percent": 50 })
    );
    node.identities.set("ada", &["ops:propose"]);
    soon(async {
        while calls(&node, "cal", "config/tax").await != json!("FORBIDDEN") {
            tokio::task::yield_now().await;
        }
    })
    .await;
    node.identities.set("ada", &["ops:propose", "config:read"]);
    soon(async {
        while calls(&node, "cal", "config/tax").await != json!({ "percent": 50 }) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    node.identities.forget("ada");
    soon(async {
        while calls(&node, "cal", "config/tax").await != json!("FORBIDDEN") {
            tokio::task::yield_now().await;
        }
    })
    .await;
    // And after a start.
    let identities = node.identities.clone();
    node.stop().await;
    let tax = OperationSpec::query("config/tax", "").with_scope("config:read");
    let tax = Registration::new(tax, HandlerKind::once(|_, _| async { Ok(json!(1)) }));
    let node = PromotionNode::start_with(folder.path(), live(), identities, vec![tax]).await;
    assert_eq!(calls(&node, "cal", "config/tax").await, json!("FORBIDDEN"));
}

#[tokio::test]
async fn an_author_who_is_gone_promotes_nothing() {
    let folder = folder();
    let node = PromotionNode::start(folder.path(), live()).await;
    let bundle = says("a/b", &json!(1)).sign();
    let id = node.propose("ada", &bundle).await.expect("kept")["id"].clone();
    node.identities.forget("ada");
    let yes = json!({ "id": id, "accept": true });
    assert_eq!(
        node.code("eve", "ops/promote", &yes).await,
        ErrorCode::Conflict
    );
}

/// An operation that holds the scope and reaches the review cannot be made to review.
#[tokio::test]
async fn no_operation_reviews_for_its_caller() {
    let folder = folder();
    let identities = std::sync::Arc::new(PromotionIdentities::default());
    identities.set("ada", &["ops:propose"]);
    identities.set("eve", &["ops:promote", "call:*"]);
    let trick = HandlerKind::once(|input: alknet_call::CallBody, ctx: Ctx| async move {
        let input = input.value().clone();
        let name = input["name"].as_str().expect("a name").to_owned();
        let answer = ctx.env().invoke(&name, &input["input"]).await;
        Ok(json!(
            answer.map_err(|error| error.code.name().to_owned()).err()
        ))
    });
    let trick = Registration::new(OperationSpec::query("app/trick", ""), trick).composing(
        CompositionAuthority::new("trick", ["ops:promote"]),
        ScopedPeerEnv::new(["ops/*"]),
    );
    let node = PromotionNode::start_with(folder.path(), live(), identities, vec![trick]).await;
    let bundle = says("a/b", &json!(1)).sign();
    let id = node.propose("ada", &bundle).await.expect("kept")["id"].clone();
    for (name, input) in [
        ("ops/promote", json!({ "id": id, "accept": true })),
        ("ops/rollback", json!({ "path": "js/a/b" })),
    ] {
        let input = json!({ "name": name, "input": input });
        let told = node.call("eve", "app/trick", &input).await;
        assert_eq!(told, Ok(json!("FORBIDDEN")), "{name}");
    }
}

/// A locked vault is not the operation's fault, and the call is worth another try. The node's own record says that it was
/// locked: a script can make the error.
#[tokio::test]
async fn an_act_that_finds_nothing_is_unavailable_and_a_script_cannot_claim_it() {
    let folder = folder();
    let locked = HandlerKind::once(|_, ctx: Ctx| async move {
        ctx.env().note_vacancy();
        Ok(json!(null))
    });
    let locked = Registration::new(OperationSpec::query("door/locked", "Is locked."), locked);
    let identities = std::sync::Arc::new(PromotionIdentities::default());
    identities.set("ada", &["ops:propose"]);
    identities.set("eve", &["ops:promote"]);
    identities.set("cal", &["call:*"]);
    let node = PromotionNode::start_with(folder.path(), live(), identities, vec![locked]).await;
    let source = "export const run = async ({ path, locked }) => {
        if (path === 'nothing') return 1;
        if (locked) await ops.call('door/locked', null);
        const details = { reason: 'vault_locked' };
        throw new OpError('UNAVAILABLE', 'the vault is locked', { path, details, retryable: true });
    };";
    let works = json!({ "input": { "path": "nothing" }, "expect": { "output": 1 } });
    let draft = DraftBundle::new("acts", source).uses(&["door/locked"]);
    node.promote(&draft.test(works)).await;
    let claimed = json!({ "path": "capability/sign" });
    let claimed = node.code("cal", "js/acts", &claimed).await;
    assert_eq!(claimed, ErrorCode::Internal);
    let act = json!({ "path": "capability/sign", "locked": true });
    let locked = node.call("cal", "js/acts", &act).await;
    let locked = locked.expect_err("locked");
    assert_eq!(
        (&locked.code, locked.retryable),
        (&ErrorCode::Unavailable, true)
    );
    assert_eq!(locked.details.expect("why")["reason"], "vault_locked");
    let operation = json!({ "path": "config/tax", "locked": true });
    let other = node.code("cal", "js/acts", &operation).await;
    assert_eq!(other, ErrorCode::Internal);
}
