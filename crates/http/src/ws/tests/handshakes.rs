//! Handshakes, by themselves and through hyper.

use std::sync::Arc;

use bytes::BytesMut;
use http::Request;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

use super::super::frame::BINARY;
use super::super::{bearer, handshake, respond};
use super::client::{OneToken, dispatcher, visitor};
use super::{TOKEN, frame};

fn request(headers: &[(&str, &str)]) -> Request<()> {
    let mut request = Request::get("https://node.example/alknet/call");
    let standard = [
        ("host", "node.example"),
        ("connection", "keep-alive, Upgrade"),
        ("upgrade", "WebSocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    for (name, value) in standard {
        if !headers.iter().any(|(other, _)| *other == name) {
            request = request.header(name, value);
        }
    }
    for (name, value) in headers.iter().filter(|(_, value)| !value.is_empty()) {
        request = request.header(*name, *value);
    }
    request.body(()).expect("correct headers")
}

#[test]
fn handshakes_are_checked() {
    let origins = ["https://app.example:8443".to_owned()];
    let status = |headers: &[(&str, &str)]| {
        let checked = handshake::check(&request(headers), &origins);
        checked.map_or_else(|error| error.status.as_u16(), |_| 101)
    };
    for (headers, expected) in [
        (&[][..], 101),
        (&[("sec-websocket-protocol", "alknet.call")], 101),
        (
            &[("sec-websocket-protocol", "alknet.bearer.x, alknet.call")],
            101,
        ),
        (&[("sec-websocket-protocol", "chat")], 400),
        (&[("sec-websocket-version", "8")], 426),
        (&[("sec-websocket-version", "")], 426),
        (&[("upgrade", "h2c")], 426),
        (&[("connection", "close")], 426),
        (&[("sec-websocket-key", "short")], 400),
        (&[("sec-websocket-key", "")], 400),
        (&[("origin", "https://node.example")], 101),
        (&[("origin", "https://NODE.example:443")], 101),
        (&[("origin", "https://app.example:8443")], 101),
        (&[("origin", "https://app.example")], 403),
        (&[("origin", "http://node.example")], 403),
        (&[("origin", "https://node.example.evil")], 403),
        (&[("origin", "null")], 403),
    ] {
        assert_eq!(status(headers), expected, "{headers:?}");
    }
    // The example of RFC 6455 section 1.3.
    let accepted = handshake::check(&request(&[("sec-websocket-protocol", "alknet.call")]), &[]);
    let response = accepted.expect("a correct handshake").response(());
    let headers = response.headers();
    assert_eq!(
        headers["sec-websocket-accept"],
        "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    );
    assert_eq!(headers["sec-websocket-protocol"], "alknet.call");
}

#[test]
fn the_token_is_found_in_the_list_and_nowhere_else() {
    let found = |list: &[(&str, &str)]| {
        let request = request(list);
        bearer(request.headers())
            .map(|token| token.map(str::to_owned))
            .ok()
    };
    let name = "sec-websocket-protocol";
    assert_eq!(found(&[]), Some(None));
    assert_eq!(found(&[(name, "alknet.call")]), Some(None));
    let list = format!("alknet.call, alknet.bearer.{TOKEN}");
    assert_eq!(found(&[(name, &list)]), Some(Some(TOKEN.to_owned())));
    assert_eq!(found(&[(name, &list), (name, "alknet.bearer.x")]), None);
}

#[tokio::test]
async fn hyper_upgrades_both_versions() {
    let tokens = OneToken::new(None);
    for h2 in [false, true] {
        let (ours, theirs) = duplex(64 << 10);
        let dispatcher = dispatcher(&tokens);
        let service =
            hyper::service::service_fn(move |mut request: Request<hyper::body::Incoming>| {
                let dispatcher = Arc::clone(&dispatcher);
                async move {
                    let token = bearer(request.headers())
                        .expect("one at most")
                        .map(str::to_owned);
                    let who = visitor(token.as_deref());
                    let body = String::new();
                    respond(&mut request, who, &dispatcher, &[], (), body)
                }
            });
        let io = TokioIo::new(theirs);
        tokio::spawn(async move {
            if h2 {
                let mut builder =
                    hyper::server::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new());
                builder
                    .enable_connect_protocol()
                    .serve_connection(io, service)
                    .await
            } else {
                hyper::server::conn::http1::Builder::new()
                    .serve_connection(io, service)
                    .with_upgrades()
                    .await
            }
        });
        let protocols = format!("alknet.call, alknet.bearer.{TOKEN}");
        let request = Request::builder()
            .uri("https://node.example/alknet/call")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-protocol", &protocols);
        let io = TokioIo::new(ours);
        let response = if h2 {
            let executor = hyper_util::rt::TokioExecutor::new();
            let (mut sender, driver) = hyper::client::conn::http2::handshake(executor, io)
                .await
                .expect("it speaks HTTP/2");
            tokio::spawn(driver);
            let request = request
                .method("CONNECT")
                .extension(hyper::ext::Protocol::from_static("websocket"))
                .body(String::new());
            // The server says in its settings that it takes these.
            sender.ready().await.expect("it is connected");
            let response = sender.send_request(request.expect("correct headers")).await;
            let response = response.expect("an answer");
            assert_eq!(response.status(), 200);
            response
        } else {
            let (mut sender, driver) = hyper::client::conn::http1::handshake(io)
                .await
                .expect("it speaks HTTP/1.1");
            tokio::spawn(driver.with_upgrades());
            let request = request
                .header("host", "node.example")
                .header("connection", "upgrade")
                .header("upgrade", "websocket")
                .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
                .body(String::new());
            let response = sender.send_request(request.expect("correct headers")).await;
            let response = response.expect("an answer");
            assert_eq!(response.status(), 101);
            response
        };
        assert_eq!(response.headers()["sec-websocket-protocol"], "alknet.call");
        let upgraded = hyper::upgrade::on(response).await.expect("a WebSocket");
        let mut io = TokioIo::new(upgraded);
        let event = r#"{"type":"call.requested","id":"1","payload":{"operationId":"demo/who"}}"#;
        io.write_all(&frame(BINARY, true, event.as_bytes()))
            .await
            .expect("it reads");
        let mut bytes = BytesMut::new();
        while !String::from_utf8_lossy(&bytes).contains("somebody") {
            assert_ne!(io.read_buf(&mut bytes).await.expect("it is there"), 0);
        }
    }
}
