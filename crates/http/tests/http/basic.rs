//! Tokens as passwords: taken where a part of the node says so, and nowhere else.

use std::sync::Arc;

use alknet_core::{BoxError, BoxFuture, HttpMount, MountBody, MountCaller};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};

use super::node::{HttpTestNode, HttpTestResponse, VERSIONS};

/// Says who asks.
struct CallerEcho {
    prefix: &'static str,
    takes_basic: bool,
}

impl HttpMount for CallerEcho {
    fn prefix(&self) -> &'static str {
        self.prefix
    }

    fn takes_basic(&self) -> bool {
        self.takes_basic
    }

    fn respond(
        self: Arc<Self>,
        _: Request<MountBody>,
        caller: MountCaller,
    ) -> BoxFuture<'static, Response<MountBody>> {
        let who = caller.identity;
        let who = who.map_or_else(|| "unknown".to_owned(), |who| who.id.to_string());
        let body = Full::new(Bytes::from(who)).map_err(|never| -> BoxError { match never {} });
        Box::pin(async { Response::new(MountBody::new(body)) })
    }
}

/// A node with a view that takes tokens as passwords, `/basic`, and one that does not, `/bearer`.
fn node() -> HttpTestNode {
    let view = |prefix, takes_basic| -> Arc<dyn HttpMount> {
        Arc::new(CallerEcho {
            prefix,
            takes_basic,
        })
    };
    HttpTestNode::with_mounts(vec![view("/basic", true), view("/bearer", false)])
}

async fn ask(
    node: &HttpTestNode,
    version: &'static str,
    path: &str,
    authorization: &str,
) -> HttpTestResponse {
    let mut request = if path == "/call" {
        let call = r#"{"operation":"/test/echo"}"#;
        node.request(Method::POST, None, path, call)
    } else {
        node.request(Method::GET, None, path, "")
    };
    let value = authorization.parse().expect("a header");
    request.headers_mut().insert(AUTHORIZATION, value);
    node.client(version).await.response(request).await
}

fn basic(pair: impl AsRef<[u8]>) -> String {
    format!("Basic {}", STANDARD.encode(pair))
}

#[tokio::test]
async fn a_token_is_a_password_where_a_mount_takes_it() {
    for version in VERSIONS {
        let node = node();
        let whole = basic("somebody:good");
        let lower = whole.replacen("Basic", "basic", 1);
        // The user name does not matter, and may be empty.
        for taken in [whole, lower, basic(":good"), "Bearer good".to_owned()] {
            for path in ["/basic", "/basic/a/b"] {
                let told = ask(&node, version, path, &taken).await;
                assert_eq!(told.status, StatusCode::OK, "{path} {taken}: {told:?}");
                assert_eq!(told.body, b"token", "{path} {taken}");
            }
        }
        // A client without a header is served as unknown; one that shows a wrong token is refused.
        let told = node.get(version, None, "/basic").await;
        assert_eq!(told.body, b"unknown");
        for wrong in [
            basic("somebody:bad"),
            basic("good:"),
            basic("good"),
            basic(b"a:\xff"),
            "Basic no base64!".to_owned(),
            "Digest good".to_owned(),
        ] {
            let told = ask(&node, version, "/basic", &wrong).await;
            assert_eq!(told.status, StatusCode::UNAUTHORIZED, "{wrong}: {told:?}");
        }
    }
}

#[tokio::test]
async fn a_password_is_no_token_anywhere_else() {
    for version in VERSIONS {
        let node = node();
        for path in ["/bearer", "/bearer/a", "/call", "/search"] {
            let told = ask(&node, version, path, &basic("somebody:good")).await;
            assert_eq!(told.status, StatusCode::UNAUTHORIZED, "{path}: {told:?}");
            let told = ask(&node, version, path, "Bearer good").await;
            assert_eq!(told.status, StatusCode::OK, "{path}: {told:?}");
        }
        // Where the path only begins alike there is nothing.
        let told = ask(&node, version, "/basics", &basic("somebody:good")).await;
        assert_eq!(told.status, StatusCode::NOT_FOUND, "{told:?}");
    }
}
