//! Services that get another specification, and that leave outside of any request.

use alknet_runtime::RuntimeCode;
use alknet_sessions::{SessionGrants, SessionState};
use serde_json::json;

use crate::support::{SessionLab, code, soon, spec, until};

const SOURCE: &str = "let n = 0;
    export const init = (prev) => { n = prev?.n ?? 0; };
    export const dispose = async () => {
        let told; try { await ops.call('test/echo', 1); } catch (e) { told = e.code; }
        return { n, told };
    };
    export const add = (by) => n += by;
    export const echo = (what) => ops.call('test/echo', what);";

#[tokio::test(flavor = "multi_thread")]
async fn a_service_goes_on_with_other_rights() {
    let lab = SessionLab::new();
    let request = lab.request().await;
    let env = request.env();
    let service = lab.service(&request, spec(SOURCE)).await;
    soon(service.call(&env, "add", json!(5)))
        .await
        .expect("five");
    soon(service.call(&env, "echo", json!(1)))
        .await
        .expect("one");
    let mut fewer = spec(SOURCE);
    fewer.grants = SessionGrants::default();
    soon(service.replace(&env, fewer)).await.expect("replaced");
    let six = soon(service.call(&env, "add", json!(1))).await;
    assert_eq!(six.expect("six").value, json!(6));
    let refused = soon(service.call(&env, "echo", json!(1))).await;
    assert_eq!(code(refused), RuntimeCode::Exception);
    until("the old one is gone", || lab.sessions.list().len() == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_leaves_without_successor_calls_nothing() {
    let lab = SessionLab::new();
    let request = lab.request().await;
    let env = request.env();
    let service = lab.service(&request, spec(SOURCE)).await;
    soon(service.call(&env, "add", json!(5)))
        .await
        .expect("five");
    let left = soon(service.dispose()).await.expect("a state");
    assert_eq!(left, json!({ "n": 5, "told": "ABORTED" }));
    until("it is closed", || lab.sessions.list().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_cannot_resume_starts_again() {
    let lab = SessionLab::new();
    let request = lab.request().await;
    let env = request.env();
    // What the old one left, it cannot take itself.
    let proud = "let n = 0;
        export const init = (prev) => { if (prev) throw new Error('no'); };
        export const dispose = () => ({ n });
        export const add = (by) => n += by;";
    let service = lab.service(&request, spec(proud)).await;
    soon(service.call(&env, "add", json!(5)))
        .await
        .expect("five");
    let failed = soon(service.replace(&env, spec(proud))).await;
    assert_eq!(
        failed.expect_err("init throws").code,
        RuntimeCode::Exception
    );
    let state = service.session().await.info().state;
    assert!(matches!(state, SessionState::Closed(_)), "{state:?}");
    let two = soon(service.call(&env, "add", json!(2))).await;
    assert_eq!(two.expect("two").value, json!(2));
}
