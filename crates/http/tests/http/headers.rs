//! What every answer says beside its content, errors included.

use alknet_http::PublicReachability;
use http::header::{HOST, HeaderName, IF_NONE_MATCH, ORIGIN};
use http::{HeaderValue, Method};

use super::node::{HttpTestNode, HttpTestResponse, VERSIONS};

const APP: &str = "https://app.example.org";

/// Says what the request is to have beside what every request has.
type HeaderPair = (HeaderName, HeaderValue);

async fn ask(
    node: &HttpTestNode,
    version: &'static str,
    (method, token, path): (&str, Option<&str>, &str),
    more: &[HeaderPair],
) -> HttpTestResponse {
    let method: Method = method.parse().expect("a method");
    let mut request = node.request(method, token, path, "");
    for (name, value) in more {
        request.headers_mut().insert(name, value.clone());
    }
    node.client(version).await.response(request).await
}

fn origin(text: &'static str) -> HeaderPair {
    (ORIGIN, HeaderValue::from_static(text))
}

/// An answer of the gateway: no cache keeps it, and no browser shows it as a page.
fn is_private(told: &HttpTestResponse, what: &str) {
    assert_eq!(told.header("cache-control"), Some("no-store"), "{what}");
    let policy = told.header("content-security-policy");
    assert_eq!(policy, Some("default-src 'none'"), "{what}");
}

#[tokio::test]
async fn no_cache_stores_an_answer_of_the_gateway() {
    let long = format!("/{}", "a".repeat(9000));
    for version in VERSIONS {
        let node = HttpTestNode::new(&format!("[http.cors]\norigins = [\"{APP}\"]\n"));
        for (request, status) in [
            (("GET", Some("good"), "/search"), 200),
            (("GET", Some("good"), "/schema?operation=/test/none"), 404),
            (("GET", Some("good"), "/openapi.json"), 200),
            (("GET", None, "/search"), 401),
            (("GET", Some("bad"), "/search"), 401),
            (("PUT", Some("good"), "/call"), 405),
            (("POST", Some("good"), "/call"), 400),
            (("POST", Some("good"), "/subscribe"), 406),
            (("GET", None, long.as_str()), 414),
            (("GET", None, "/alknet/call"), 426),
        ] {
            let told = ask(&node, version, request, &[origin(APP)]).await;
            let what = format!("{version} {request:?}");
            assert_eq!(told.status.as_u16(), status, "{what}");
            is_private(&told, &what);
            assert_eq!(told.header("x-content-type-options"), Some("nosniff"));
            assert!(told.header("x-request-id").is_some(), "{what}");
            // A page that may ask may also read why it was refused.
            let allowed = told.header("access-control-allow-origin");
            assert_eq!(allowed, Some(APP), "{what}");
            let credentials = told.header("access-control-allow-credentials");
            assert_eq!(credentials, None, "{what}");
        }
    }
}

#[tokio::test]
async fn pages_that_may_not_ask_read_nothing() {
    let node = HttpTestNode::new(&format!("[http.cors]\norigins = [\"{APP}\"]\n"));
    for foreign in ["https://evil.example", "null", "*"] {
        let request = ("GET", Some("good"), "/search");
        let told = ask(&node, "h2", request, &[origin(foreign)]).await;
        assert_eq!(told.status.as_u16(), 200);
        let allowed = told.header("access-control-allow-origin");
        assert_eq!(allowed, None, "{foreign}");
    }
    // Neither does one of a permitted site where there is no gateway.
    let told = ask(&node, "h2", ("GET", None, "/nothing"), &[origin(APP)]).await;
    assert_eq!(told.header("access-control-allow-origin"), None);
}

#[tokio::test]
async fn no_cache_stores_a_not_modified_answer() {
    for version in VERSIONS {
        let node = HttpTestNode::new("");
        let request = ("GET", Some("good"), "/search");
        let told = ask(&node, version, request, &[]).await;
        let etag = told.header("etag").expect("a list has one").to_owned();
        let known = HeaderValue::from_str(&etag).expect("it came as one");
        let told = ask(&node, version, request, &[(IF_NONE_MATCH, known)]).await;
        assert_eq!(told.status.as_u16(), 304, "{version}");
        is_private(&told, version);
    }
}

#[tokio::test]
async fn other_hosts_get_the_same_refusal_on_every_framing() {
    for version in VERSIONS {
        let node = HttpTestNode::new("");
        for path in ["/healthz", "/call", "/nothing"] {
            let told = at(&node, version, "evil.example", path).await;
            assert_eq!(told.status.as_u16(), 421, "{version} {path}");
            assert_eq!(told.header("x-content-type-options"), Some("nosniff"));
            assert_eq!(told.header("x-request-id"), None);
            assert_eq!(told.header("strict-transport-security"), None);
        }
    }
}

/// Asks under another name.
async fn at(
    node: &HttpTestNode,
    version: &'static str,
    host: &str,
    path: &str,
) -> HttpTestResponse {
    let mut request = node.request(Method::GET, None, path, "");
    let uri = format!("https://{host}{path}");
    *request.uri_mut() = uri.parse().expect("an address");
    let host = HeaderValue::from_str(host).expect("a header");
    request.headers_mut().insert(HOST, host);
    node.client(version).await.response(request).await
}

#[tokio::test]
async fn clients_are_promised_what_was_seen_from_outside() {
    for version in VERSIONS {
        let node =
            HttpTestNode::new("[http]\nnames = [\"hub.example.org\", \"www.example.org\"]\n");
        let promises = async |host: &str| {
            let told = at(&node, version, host, "/nothing").await;
            let tls = told.header("strict-transport-security").map(str::to_owned);
            let services = told.header("alt-svc").map(str::to_owned);
            (services.expect("it is always said"), tls)
        };
        let nothing = ("clear".to_owned(), None);
        assert_eq!(promises("hub.example.org").await, nothing, "{version}");
        node.seen(PublicReachability {
            http3: vec![("hub.example.org".to_owned(), 443)],
            trusted: vec!["hub.example.org".to_owned()],
        });
        let http3 = "h3=\":443\"; ma=86400".to_owned();
        let tls = Some("max-age=31536000".to_owned());
        let both = (http3.clone(), tls);
        assert_eq!(promises("hub.example.org").await, both, "{version}");
        assert_eq!(promises("www.example.org").await, nothing, "{version}");
        assert_eq!(promises("192.0.2.7").await, nothing, "{version}");
        // Nothing on the way stops what does not leave the machine.
        assert_eq!(promises("127.0.0.1").await, (http3, None), "{version}");
        node.seen(PublicReachability::default());
        assert_eq!(promises("hub.example.org").await, nothing, "{version}");
    }
}
