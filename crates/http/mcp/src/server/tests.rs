use super::{McpOptions, McpServer, exact};

use std::sync::Arc;

use alknet_gateway::{Gateway, Quota};
use bytes::Bytes;
use http::Request;
use http_body_util::Full;

#[test]
fn an_origin_without_a_port_is_one_of_its_scheme() {
    assert_eq!(exact("https://a.example"), "https://a.example:443");
    assert_eq!(exact("http://a.example"), "http://a.example:80");
    assert_eq!(exact("https://a.example:8443"), "https://a.example:8443");
    assert_eq!(exact("http://[::1]"), "http://[::1]:80");
    assert_eq!(exact("http://[::1]:8080"), "http://[::1]:8080");
}

#[tokio::test]
async fn no_client_is_asked_for_a_token() {
    let gateway = Arc::new(Gateway::new(Quota::default()));
    let server = McpServer::new(gateway, McpOptions::default());
    let request = Request::post("/mcp").body(Full::<Bytes>::default());
    let answer = server.respond(request.expect("a request")).await;
    assert_eq!(answer.status(), 401);
    assert_eq!(
        answer.headers()["www-authenticate"],
        "Bearer realm=\"alknet\""
    );
}

#[test]
fn an_unknown_tool_is_an_error() {
    let gateway = Arc::new(Gateway::new(Quota::default()));
    let options = McpOptions {
        tools: vec!["/node/info".to_owned(), "nonsense".to_owned()],
        ..McpOptions::default()
    };
    let server = McpServer::new(gateway, options);
    assert_eq!(server.left_out().len(), 1);
    server.set_options(McpOptions::default());
    assert!(server.left_out().is_empty());
}
