//! Mounts whose requests have a budget of their own.

use std::sync::Arc;

use alknet_core::{BoxError, BoxFuture, HttpMount, MountBody, MountCaller, MountRequestBudget};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use serde_json::json;

use super::node::{HttpTestNode, VERSIONS};

/// Answers each request with an empty body.
struct BudgetedMount {
    prefix: &'static str,
    budget: Option<MountRequestBudget>,
}

impl HttpMount for BudgetedMount {
    fn prefix(&self) -> &'static str {
        self.prefix
    }

    fn request_budget(&self) -> Option<MountRequestBudget> {
        self.budget
    }

    fn respond(
        self: Arc<Self>,
        _: Request<MountBody>,
        _: MountCaller,
    ) -> BoxFuture<'static, Response<MountBody>> {
        let body = Full::new(Bytes::new()).map_err(|never| -> BoxError { match never {} });
        Box::pin(async { Response::new(MountBody::new(body)) })
    }
}

/// A node with this configuration, a mount `/many` of 300 requests at once, and `/few` without a budget.
fn node(config: &str) -> HttpTestNode {
    let mount =
        |prefix, budget| -> Arc<dyn HttpMount> { Arc::new(BudgetedMount { prefix, budget }) };
    let budget = MountRequestBudget {
        per_second: 1,
        burst: 300,
    };
    let mounts = vec![mount("/many", Some(budget)), mount("/few", None)];
    HttpTestNode::with_config_and_mounts(config, mounts)
}

/// How many requests are answered before the first refusal, which names a time.
async fn served(
    node: &HttpTestNode,
    version: &'static str,
    token: Option<&str>,
    path: &str,
) -> u32 {
    let mut count = 0;
    loop {
        let told = node.get(version, token, path).await;
        if told.status == StatusCode::TOO_MANY_REQUESTS {
            assert!(told.header("retry-after").is_some(), "{told:?}");
            break count;
        }
        assert_eq!(told.status, StatusCode::OK, "{told:?}");
        count += 1;
        assert!(count < 1000, "nothing is refused");
    }
}

/// Ten thousand small files at the default settings: here a mount with more than the default burst of 200.
#[tokio::test]
async fn an_identity_may_send_a_mount_what_its_budget_says() {
    for version in VERSIONS {
        let node = node("");
        let at_mount = served(&node, version, Some("good"), "/many/a").await;
        assert!(at_mount >= 300, "{version}: {at_mount}");
        // Neither the rest of the server nor another identity has less for it.
        let body = json!({ "operation": "/test/echo" });
        let told = node.post(version, Some("good"), "/call", &body).await;
        assert_eq!(told.status, StatusCode::OK, "{version}");
        let told = node.get(version, Some("admin"), "/many").await;
        assert_eq!(told.status, StatusCode::OK, "{version}");
    }
}

#[tokio::test]
async fn a_mount_without_a_budget_counts_with_the_other_requests() {
    let node = node("[http]\nrequests_per_second = 1\nrequests_burst = 3\n");
    let count = served(&node, "h2", Some("good"), "/few").await;
    assert!((3..300).contains(&count), "{count}");
    let body = json!({ "operation": "/test/echo" });
    let told = node.post("h2", Some("good"), "/call", &body).await;
    assert_eq!(told.status, StatusCode::TOO_MANY_REQUESTS);
    let told = node.get("h2", Some("good"), "/many").await;
    assert_eq!(told.status, StatusCode::OK, "counted apart");
}

/// The attack: a client without a token uses the budget that identities have.
#[tokio::test]
async fn unknown_peers_have_no_budget_at_a_mount() {
    let node = node("[http]\nunknown_peer_requests_per_second = 1\n");
    let count = served(&node, "h2", None, "/many").await;
    assert!((40..300).contains(&count), "{count}");
    let told = node.get("h2", None, "/few").await;
    assert_eq!(
        told.status,
        StatusCode::TOO_MANY_REQUESTS,
        "one budget for both"
    );
    let told = node.get("h2", Some("good"), "/many").await;
    assert_eq!(told.status, StatusCode::OK);
}
