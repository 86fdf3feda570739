//! The client against servers of the tests' own, over TLS with a pinned key.

mod certificate;
mod server;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use alknet_core::{
    CapabilityBackend, CapabilityKind, DialAllowList, DialErrorKind, Dialer, PeerAddr, PeerKey,
    Secret, capability,
};
use alknet_http_client::limits::{HEADERS_MAX, REDIRECTS_MAX};
use alknet_http_client::{ClientOptions, HttpClient, HttpError, HttpRequestOptions, Redirects};
use alknet_test_support::deadline;
use bytes::Bytes;
use http::{Request, Response, StatusCode, Version};
use http_body_util::BodyExt;
use server::{CannedResponse, ClientTestServer};

fn dialer() -> Arc<dyn Dialer> {
    Arc::new(alknet_endpoint::EndpointDialer::new(None))
}

/// May ask these servers, which are on this computer.
fn options(servers: &[&ClientTestServer]) -> ClientOptions {
    let pinned = |server: &&ClientTestServer| at(server.address).with_pins([server.pin]);
    ClientOptions {
        reach: DialAllowList::Public {
            also: vec!["127.0.0.1".parse().expect("a range")],
        },
        pinned: servers.iter().map(pinned).collect(),
        ..ClientOptions::default()
    }
}

fn client(server: &ClientTestServer) -> HttpClient {
    HttpClient::new(dialer(), options(&[server]))
}

fn at(address: SocketAddr) -> PeerAddr {
    address.to_string().parse().expect("an address")
}

fn get(server: &ClientTestServer, path: &str) -> Request<Bytes> {
    let uri = format!("https://{}{path}", server.address);
    Request::get(uri).body(Bytes::new()).expect("a request")
}

async fn text(answer: Response<alknet_http_client::ResponseBody>) -> String {
    let body = answer.into_body().collect_bounded(1 << 20).await;
    String::from_utf8(body.expect("a body").to_vec()).expect("text")
}

#[tokio::test(flavor = "multi_thread")]
async fn both_versions_are_spoken_and_connections_are_used_again() {
    let server = ClientTestServer::start(true, |request| {
        CannedResponse::new(
            200,
            &format!("{:?} {}", request.version(), request.uri().path()),
        )
    })
    .await;
    for (http2, version) in [(false, Version::HTTP_11), (true, Version::HTTP_2)] {
        let before = server.connections();
        let mut options = options(&[&server]);
        options.http2 = http2;
        let client = HttpClient::new(dialer(), options);
        for path in ["/a", "/b", "/c"] {
            let answer = client.send(get(&server, path)).await.expect("an answer");
            assert_eq!(answer.version(), version);
            assert_eq!(text(answer).await, format!("{version:?} {path}"));
        }
        assert_eq!(server.connections() - before, 1, "{version:?}");
    }
    // A server without HTTP/2 gets what it knows, and is not asked twice.
    let old = ClientTestServer::start(false, |_| CannedResponse::new(200, "old")).await;
    let mut options = options(&[&old]);
    options.http2 = true;
    let client = HttpClient::new(dialer(), options);
    let answer = client.send(get(&old, "/")).await.expect("an answer");
    assert_eq!(answer.version(), Version::HTTP_11);
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_stay_where_they_are_allowed_and_carry_no_secret() {
    let other = ClientTestServer::start(false, |request| {
        let names: Vec<_> = request.headers().keys().map(|name| name.as_str()).collect();
        CannedResponse::new(200, &names.join(" "))
    })
    .await;
    let elsewhere = format!("https://{}/there", other.address);
    let server = ClientTestServer::start(false, move |request| match request.uri().path() {
        "/loop" => CannedResponse::new(302, "").with("location", "/loop"),
        "/here" => CannedResponse::new(307, "").with("location", "ok?x=1"),
        "/away" => CannedResponse::new(302, "").with("location", &elsewhere),
        "/down" => CannedResponse::new(302, "").with("location", "http://127.0.0.1/"),
        path => CannedResponse::new(200, path),
    })
    .await;
    let strict = client(&server);
    let followed = strict.send(get(&server, "/here")).await.expect("an answer");
    assert_eq!(text(followed).await, "/ok");
    let error = strict
        .send(get(&server, "/away"))
        .await
        .expect_err("elsewhere");
    assert!(matches!(error, HttpError::Redirect { .. }), "{error}");
    let before = server.requests();
    let error = strict
        .send(get(&server, "/loop"))
        .await
        .expect_err("a circle");
    assert!(matches!(error, HttpError::Redirects { .. }), "{error}");
    assert_eq!(server.requests() - before, REDIRECTS_MAX + 1);
    // Whatever is posted is not posted elsewhere.
    let mut posted = get(&server, "/away");
    *posted.method_mut() = http::Method::POST;
    let answer = strict.send(posted).await.expect("an answer");
    assert_eq!(answer.status(), StatusCode::FOUND);

    let mut free = options(&[&server, &other]);
    free.redirects = Redirects::Any;
    let free = HttpClient::new(dialer(), free);
    let (key, filler) = capability("key", CapabilityKind::Bearer, Arc::new(|| true));
    filler.fill(CapabilityBackend::Bearer(Secret::new(b"hush".to_vec())));
    let exchange = HttpRequestOptions::default().with_credential(Some(key));
    let mut request = get(&server, "/away");
    for name in ["accept", "cookie", "x-api-key", "authorization"] {
        request
            .headers_mut()
            .insert(name, "mine".parse().expect("a value"));
    }
    let answer = free.send_with(request, &exchange).await.expect("an answer");
    assert_eq!(text(answer).await, "accept user-agent host");
    let error = free.send(get(&server, "/down")).await.expect_err("no TLS");
    assert!(matches!(error, HttpError::Plain(_)), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_is_listed_is_dialled() {
    let server = ClientTestServer::start(false, |_| CannedResponse::new(200, "")).await;
    let refused = async |options: ClientOptions, uri: String| {
        let request = Request::get(uri).body(Bytes::new()).expect("a request");
        let client = HttpClient::new(dialer(), options);
        client.send(request).await.expect_err("refused")
    };
    let https = format!("https://{}/", server.address);
    let named = format!("https://localhost:{}/", server.address.port());
    let kind = |error: HttpError| match error {
        HttpError::Dial(error) => error.kind,
        other => panic!("{other}"),
    };
    let mut far = options(&[&server]);
    far.reach = ClientOptions::default().reach;
    assert_eq!(
        kind(refused(far.clone(), https.clone()).await),
        DialErrorKind::OutOfReach
    );
    assert_eq!(
        kind(refused(far.clone(), named).await),
        DialErrorKind::OutOfReach
    );
    far.plain = vec![at(server.address)];
    let plain = https.replace("https", "http");
    assert_eq!(
        kind(refused(far, plain.clone()).await),
        DialErrorKind::OutOfReach
    );
    let error = refused(options(&[&server]), plain).await;
    assert!(matches!(error, HttpError::Plain(_)), "{error}");
    let mut hosts = options(&[&server]);
    hosts.hosts = Some(vec!["api.example.org".parse().expect("a host")]);
    let error = refused(hosts, https.clone()).await;
    assert!(matches!(error, HttpError::Host(_)), "{error}");
    let mut unpinned = options(&[&server]);
    unpinned.pinned.clear();
    assert_eq!(
        kind(refused(unpinned, https.clone()).await),
        DialErrorKind::UnknownPeer
    );
    let mut other = options(&[&server]);
    other.pinned = vec![at(server.address).with_pins([PeerKey::Spki([7; 32])])];
    assert_eq!(kind(refused(other, https).await), DialErrorKind::Impostor);
    assert_eq!(server.requests(), 0);
}

/// `spki:` is what OpenSSL shows of every key, and names an Ed25519 key as well as `ed25519:` does.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_an_ed25519_certificate_is_known_by_either_pin() {
    // The key of RFC 8410 section 10.3: a PKCS #8 structure ends with the private key.
    let mut pkcs8 = vec![
        0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04,
        0x20,
    ];
    let private = "ed25519:d4ee72dbf913584ad5b6d8f1f769f8ad3afe7c28cbf1d4fbe097a88f44755842";
    let Ok(PeerKey::Ed25519(private)) = private.parse() else {
        panic!("the text of 32 bytes");
    };
    pkcs8.extend(private);
    for (pin, is_known) in [
        (
            "ed25519:19bf44096984cdfe8541bac167dc3b96c85086aa30b6b6cb0c5c38ad703166e1",
            true,
        ),
        (
            "spki:a1e9156054e04fac899ae9f275132cdc07a5dbc4ea2c2ad3a1ffc6e0d253681f",
            true,
        ),
        // The bare key in the place of the hash.
        (
            "spki:19bf44096984cdfe8541bac167dc3b96c85086aa30b6b6cb0c5c38ad703166e1",
            false,
        ),
    ] {
        let server = ClientTestServer::of_key(&pkcs8, pin.parse().expect("a key")).await;
        let answer = client(&server).send(get(&server, "/")).await;
        match (answer, is_known) {
            (Ok(answer), true) => assert_eq!(text(answer).await, "ed25519", "{pin}"),
            (Err(HttpError::Dial(error)), false) => {
                assert_eq!(error.kind, DialErrorKind::Impostor, "{pin}");
            }
            (answer, _) => panic!("{pin}: {:?}", answer.err()),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_servers_are_asked_where_they_are_listed() {
    let server =
        ClientTestServer::plain(|request| CannedResponse::new(200, request.uri().path())).await;
    let mut options = options(&[]);
    options.plain = vec![at(server.address)];
    let client = HttpClient::new(dialer(), options);
    let uri = format!("http://{}/x", server.address);
    let request = Request::get(uri).body(Bytes::new()).expect("a request");
    let answer = client.send(request).await.expect("an answer");
    assert_eq!(text(answer).await, "/x");
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_have_bounds() {
    let server = ClientTestServer::start(true, |request| match request.uri().path() {
        "/long" => CannedResponse::new(200, &"x".repeat(1000)),
        "/headers" => {
            let mut answer = CannedResponse::new(200, "");
            for n in 0..HEADERS_MAX + 10 {
                answer = answer.with(&format!("x-{n}"), "1");
            }
            answer
        }
        "/wide" => CannedResponse::new(200, "").with("x-wide", &"x".repeat(40 << 10)),
        "/hang" => CannedResponse::new(200, "begun").never_ending(),
        "/silent" => CannedResponse::silent(),
        _ => CannedResponse::new(404, ""),
    })
    .await;
    for http2 in [false, true] {
        let mut options = options(&[&server]);
        options.http2 = http2;
        let client = HttpClient::new(dialer(), options);
        let long = client.send(get(&server, "/long")).await.expect("an answer");
        let error = long
            .into_body()
            .collect_bounded(999)
            .await
            .expect_err("too long");
        assert!(matches!(error, HttpError::TooLong(999)), "{error}");
        let exact = client.send(get(&server, "/long")).await.expect("an answer");
        let body = exact.into_body().collect_bounded(1000).await.expect("fits");
        assert_eq!(body.len(), 1000);
        for path in ["/headers", "/wide"] {
            assert!(
                client.send(get(&server, path)).await.is_err(),
                "{path} {http2}"
            );
        }
        let brief = HttpRequestOptions {
            idle: deadline(Duration::from_millis(50)),
            ..HttpRequestOptions::default()
        };
        let hang = client.send_with(get(&server, "/hang"), &brief).await;
        let mut body = hang.expect("a head").into_body();
        let first = body.frame().await.expect("a frame").expect("data");
        assert_eq!(first.into_data().expect("data"), "begun");
        let error = body.frame().await.expect("an end").expect_err("silence");
        assert!(matches!(error, HttpError::Idle(_)), "{error}");
        let whole = HttpRequestOptions {
            whole: Some(deadline(Duration::from_millis(200))),
            ..HttpRequestOptions::default()
        };
        let hang = client.send_with(get(&server, "/hang"), &whole).await;
        let body = hang.expect("a head").into_body();
        let error = body.collect_bounded(100).await.expect_err("late");
        assert!(matches!(error, HttpError::TimedOut(_)), "{error}");
        let silent = client.send_with(get(&server, "/silent"), &whole).await;
        assert!(matches!(silent, Err(HttpError::TimedOut(_))));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changes_nothing_is_asked_again() {
    let server = ClientTestServer::start(false, |_| {
        CannedResponse::new(503, "busy").with("retry-after", "0")
    })
    .await;
    let client = client(&server);
    let exchange = HttpRequestOptions {
        retry: true,
        ..HttpRequestOptions::default()
    };
    let answer = client.send_with(get(&server, "/"), &exchange).await;
    assert_eq!(answer.expect("an answer").status(), 503);
    assert_eq!(server.requests(), 3);
    let answer = client.send(get(&server, "/")).await;
    assert_eq!(answer.expect("an answer").status(), 503);
    assert_eq!(server.requests(), 4);
}
