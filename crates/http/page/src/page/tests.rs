use std::sync::atomic::{AtomicU64, Ordering};

use alknet_call::{
    ALPN, CallClient, CallHandler, CallOptions, Dispatcher, HandlerKind, LocalCaller,
    OperationSpec, Registry,
};
use alknet_core::{
    ApiKey, AuthContext, Clock, Identities, IdentityEntries, IdentityStore, PeerEntry, PeerKey,
    ProtocolHandler, memory_pair,
};
use alknet_gateway::{Quota, RequestId};
use http::header::{COOKIE, LOCATION, SET_COOKIE};
use http_body_util::Full;
use serde_json::Value;

use super::*;
use crate::session::COOKIE_NAME;

struct PageTestClock;

impl Clock for PageTestClock {
    fn now_s(&self) -> Option<u64> {
        Some(2_000_000_000)
    }
}

/// A node with the operations that the page asks, and two that it may do.
struct PageTestNode {
    page: AdminPage,
    identities: Arc<Identities>,
    dispatcher: Arc<Dispatcher>,
    rebooted: Arc<AtomicU64>,
}

const KEY: PeerKey = PeerKey::Ed25519([7; 32]);

impl PageTestNode {
    fn new() -> Self {
        let entries = IdentityEntries {
            admins: vec![("admin".parse().expect("a peer id"), KEY)],
            ..IdentityEntries::default()
        };
        let identities = Arc::new(Identities::new(entries, Arc::new(PageTestClock)));
        let gateway = Arc::new(Gateway::new(Quota::default()));
        let names = || vec!["box.local".to_owned()];
        let page = AdminPage::new(gateway, Arc::clone(&identities) as _, names);
        let rebooted = Arc::new(AtomicU64::new(0));
        let mut builder = Registry::builder();
        builder.add(page.operation());
        let info = json!({ "name": "edge-1", "problems": [], "listen": { "port": 443 },
            "identity": "ed25519:07", "time": "2033-05-18T03:33:20Z" });
        builder.add(answering("node/info", "node:read", info));
        let peers = json!({ "peers": [{ "peer_id": "ada", "display_name": "<b>Ada</b>" }] });
        builder.add(answering("peer/list", "peer:list", peers));
        let log = OperationSpec::subscription("node/log", "The log.").with_scope("admin");
        let log_handler = HandlerKind::stream(|_: alknet_call::CallBody, _| {
            let record = json!({ "boot_ms": 1, "level": "info", "target": "init",
                "message": "the first line" });
            futures_util::stream::iter([Ok::<_, CallError>(record)])
        });
        builder.add(Registration::new(log, log_handler));
        let count = Arc::clone(&rebooted);
        let reboot = OperationSpec::mutation("node/reboot", "Restarts.").with_scope("admin");
        let reboot_handler = HandlerKind::once(move |_: alknet_call::CallBody, _| {
            count.fetch_add(1, Ordering::SeqCst);
            std::future::ready(Ok::<_, CallError>(json!({})))
        });
        builder.add(Registration::new(reboot, reboot_handler));
        let registry = builder.build().expect("correct operations");
        let dispatcher = Dispatcher::new(registry).with_identities(Arc::clone(&identities) as _);
        Self {
            page,
            identities,
            dispatcher: Arc::new(dispatcher),
            rebooted,
        }
    }

    fn caller(&self, token: Option<&AuthToken>) -> HttpCaller {
        let (_, accepted) = memory_pair(b"h2");
        HttpCaller {
            gate: LocalCaller::new(&self.dispatcher, &accepted, None),
            identity: token.and_then(|token| self.identities.by_token(token)),
            token: token.cloned().map(Arc::new),
            via: HttpIngress::Http,
            remote: None,
            proved_by: None,
            account: None,
            began: Instant::now(),
            request_id: RequestId::next(),
        }
    }

    async fn token(&self, scopes: &[&str]) -> AuthToken {
        let token = AuthToken::generate().expect("randomness");
        let key = ApiKey {
            scopes: scopes.iter().collect(),
            ..ApiKey::new(token.hash().expect("a token"))
        };
        self.identities.put_api_key(key).await.expect("room");
        token
    }

    async fn ask(&self, request: Request<Full<Bytes>>) -> (StatusCode, HeaderMap, String) {
        self.ask_as(request, None).await
    }

    async fn ask_as(
        &self,
        request: Request<Full<Bytes>>,
        token: Option<&AuthToken>,
    ) -> (StatusCode, HeaderMap, String) {
        // As the server does it, on whatever thread.
        let own = |never: std::convert::Infallible| -> BoxError { match never {} };
        let request = request.map(|body| MountBody::new(body.map_err(own)));
        let answer = self.page.respond(request, self.caller(token));
        let answer: alknet_core::BoxFuture<'_, PageResponse> = Box::pin(answer);
        let (head, body) = answer.await.into_parts();
        let body = body.collect().await.expect("whole").to_bytes();
        let text = String::from_utf8(body.to_vec()).expect("text");
        (head.status, head.headers, text)
    }

    fn ticket(&self, purpose: LinkPurpose) -> String {
        let proof = ViewerProof::key("admin".parse().expect("a peer id"), KEY);
        let made = self.page.0.tickets.make(purpose, proof, Instant::now());
        made.expect("room")
    }

    /// Enters by a link; the cookie.
    async fn entered(&self) -> String {
        let ticket = self.ticket(LinkPurpose::Enter);
        let (status, headers, _) = self.ask(get(&format!("{ENTER}{ticket}"))).await;
        assert_eq!(status, StatusCode::SEE_OTHER);
        assert_eq!(headers[LOCATION], "/");
        cookie_in(&headers)
    }
}

fn answering(name: &str, scope: &str, answer: Value) -> Registration {
    let spec = OperationSpec::query(name, "Answers.").with_scope(scope);
    let handler = HandlerKind::once(move |_: alknet_call::CallBody, _| {
        std::future::ready(Ok::<_, CallError>(answer.clone()))
    });
    Registration::new(spec, handler)
}

fn cookie_in(headers: &HeaderMap) -> String {
    let cookie = headers[SET_COOKIE].to_str().expect("text");
    let pair = cookie.split(';').next().expect("a pair");
    assert!(pair.starts_with(COOKIE_NAME) && pair.len() > 40, "{cookie}");
    pair.to_owned()
}

fn get(path: &str) -> Request<Full<Bytes>> {
    let request = Request::builder().uri(path).header(HOST, "192.0.2.7");
    request.body(Full::default()).expect("a request")
}

fn with_cookie(path: &str, cookie: &str) -> Request<Full<Bytes>> {
    let mut request = get(path);
    let value = cookie.parse().expect("a value");
    request.headers_mut().insert(COOKIE, value);
    request
}

fn post(path: &str, form: &str) -> Request<Full<Bytes>> {
    let request = Request::post(path)
        .header(HOST, "192.0.2.7")
        .header(ORIGIN, "https://192.0.2.7")
        .header(CONTENT_TYPE, "application/x-www-form-urlencoded");
    let body = Full::from(Bytes::copy_from_slice(form.as_bytes()));
    request.body(body).expect("a request")
}

/// The connection of a browser proves no identity, and the viewer is checked again while it reads the log.
#[tokio::test]
async fn the_log_is_shown_whatever_proved_who_looks() {
    let node = PageTestNode::new();
    let shows = |text: &str, by: &str| {
        assert!(text.contains("the first line"), "{by}: {text}");
        assert!(!text.contains("Cannot be shown"), "{by}");
    };
    let cookie = node.entered().await;
    let (_, _, text) = node.ask(with_cookie("/", &cookie)).await;
    shows(&text, "a link");
    let token = node.token(&["admin"]).await;
    let (_, _, text) = node.ask_as(get("/"), Some(&token)).await;
    shows(&text, "a token");
    let name = ViewerProof::name("admin".parse().expect("a peer id"));
    let made = node
        .page
        .0
        .tickets
        .make(LinkPurpose::Enter, name, Instant::now());
    let link = format!("{ENTER}{}", made.expect("room"));
    let (_, headers, _) = node.ask(get(&link)).await;
    let (_, _, text) = node.ask(with_cookie("/", &cookie_in(&headers))).await;
    shows(&text, "a name");
}

#[tokio::test]
async fn a_link_lets_in_once_and_the_cookie_from_then_on() {
    let node = PageTestNode::new();
    let (status, _, text) = node.ask(get("/")).await;
    assert!(
        status == StatusCode::OK && text.contains("name=\"token\""),
        "the form"
    );
    assert!(!text.contains("edge-1"), "an unknown peer reads nothing");
    let ticket = node.ticket(LinkPurpose::Enter);
    let link = format!("{ENTER}{ticket}");
    let (status, headers, _) = node.ask(get(&link)).await;
    assert_eq!(status, StatusCode::SEE_OTHER);
    let cookie = cookie_in(&headers);
    let (status, headers, text) = node.ask(get(&link)).await;
    assert_eq!(status, StatusCode::GONE);
    assert!(!headers.contains_key(SET_COOKIE) && text.contains("used already"));
    // A viewer that is already in opens it again without harm.
    let (status, _, _) = node.ask(with_cookie(&link, &cookie)).await;
    assert_eq!(status, StatusCode::SEE_OTHER);
    let (status, headers, text) = node.ask(with_cookie("/", &cookie)).await;
    assert_eq!(status, StatusCode::OK);
    assert!(
        text.contains("edge-1") && text.contains("&lt;b&gt;Ada&lt;/b&gt;"),
        "{text}"
    );
    assert!(
        headers["content-security-policy"]
            .to_str()
            .is_ok_and(|it| it.contains("default-src 'none'"))
    );
    assert_eq!(headers["cache-control"], "no-store");
}

#[tokio::test]
async fn a_session_ends_with_what_it_rests_on() {
    let node = PageTestNode::new();
    let cookie = node.entered().await;
    let is_in = async || {
        let (_, _, text) = node.ask(with_cookie("/", &cookie)).await;
        text.contains("edge-1")
    };
    assert!(is_in().await);
    let found = node.page.session_of(with_cookie("/", &cookie).headers());
    assert_eq!(found.expect("an administrator's").id.as_str(), "admin");
    node.identities.replace_config(IdentityEntries::default());
    assert!(
        node.page
            .session_of(with_cookie("/", &cookie).headers())
            .is_none()
    );
    assert!(!is_in().await);
    let token = node.token(&["*"]).await;
    let form = format!("token={}", token.expose());
    let (status, headers, _) = node.ask(post("/status/enter", &form)).await;
    assert_eq!(status, StatusCode::SEE_OTHER);
    let cookie = cookie_in(&headers);
    let (_, _, text) = node.ask(with_cookie("/", &cookie)).await;
    assert!(text.contains("edge-1"));
    let key_id = token.hash().expect("a token").key_id;
    node.identities.revoke_token(key_id).await.expect("room");
    let (_, _, text) = node.ask(with_cookie("/", &cookie)).await;
    assert!(!text.contains("edge-1"));
}

#[tokio::test]
async fn wrong_and_narrow_tokens_and_forms_of_others_do_not_let_in() {
    let node = PageTestNode::new();
    let (good, narrow) = (
        node.token(&["admin"]).await,
        node.token(&["node:read"]).await,
    );
    let form = |token: &AuthToken| format!("token=%20{}+", token.expose());
    let enter = async |request| {
        let (status, headers, _) = node.ask(request).await;
        (status.as_u16(), headers.contains_key(SET_COOKIE))
    };
    assert_eq!(
        enter(post("/status/enter", &form(&good))).await,
        (303, true)
    );
    assert_eq!(
        enter(post("/status/enter", &form(&narrow))).await,
        (403, false)
    );
    for wrong in ["", "token=", "token=alk_x", "other=1", "&&=&%zz"] {
        assert_eq!(
            enter(post("/status/enter", wrong)).await,
            (403, false),
            "{wrong}"
        );
    }
    let long = format!("token={}", "x".repeat(FORM_BYTES_MAX));
    assert_eq!(enter(post("/status/enter", &long)).await, (413, false));
    for origin in [
        "https://evil.example",
        "http://192.0.2.7",
        "null",
        "https://192.0.2.7:8443",
    ] {
        let mut request = post("/status/enter", &form(&good));
        request
            .headers_mut()
            .insert(ORIGIN, origin.parse().expect("a value"));
        assert_eq!(enter(request).await, (403, false), "{origin}");
    }
    let mut request = post("/status/enter", &form(&good));
    request
        .headers_mut()
        .insert(CONTENT_TYPE, "text/plain".parse().expect("a value"));
    assert_eq!(enter(request).await, (415, false));
}

#[tokio::test]
async fn who_sends_a_token_is_who_asks() {
    let node = PageTestNode::new();
    let (good, narrow) = (
        node.token(&["admin", "node:read"]).await,
        node.token(&["node:read"]).await,
    );
    let (_, _, text) = node.ask_as(get("/"), Some(&good)).await;
    assert!(text.contains("edge-1"));
    // What this token may not call is left out.
    assert!(!text.contains("Ada"));
    let cookie = node.entered().await;
    let (_, _, text) = node.ask_as(with_cookie("/", &cookie), Some(&narrow)).await;
    assert!(
        !text.contains("edge-1"),
        "the cookie adds nothing to a token"
    );
}

#[tokio::test]
async fn what_is_done_needs_a_link_of_its_own_each_time() {
    let node = PageTestNode::new();
    let ticket = node.ticket(LinkPurpose::Act(PageAction::Reboot));
    let link = format!("{ACT}{ticket}");
    // It is no way in.
    let (status, headers, _) = node.ask(get(&format!("{ENTER}{ticket}"))).await;
    assert!(status == StatusCode::GONE && !headers.contains_key(SET_COOKIE));
    for _ in 0..2 {
        let (status, headers, text) = node.ask(get(&link)).await;
        assert!(status == StatusCode::OK && text.contains("Restart the machine?"));
        assert!(!headers.contains_key(SET_COOKIE));
    }
    let (_, _, text) = node.ask(get(&link)).await;
    assert!(text.contains(&format!("action=\"{link}\"")));
    let mut foreign = post(&link, "");
    let evil = "https://evil.example".parse().expect("a value");
    foreign.headers_mut().insert(ORIGIN, evil);
    assert_eq!(node.ask(foreign).await.0, StatusCode::FORBIDDEN);
    assert_eq!(node.rebooted.load(Ordering::SeqCst), 0);
    let (status, _, text) = node.ask(post(&link, "")).await;
    assert!(
        status == StatusCode::OK && text.contains("being restarted"),
        "{text}"
    );
    assert_eq!(node.rebooted.load(Ordering::SeqCst), 1);
    let (status, _, _) = node.ask(post(&link, "")).await;
    assert_eq!(status, StatusCode::GONE);
    // Neither a session nor a link to the page does anything.
    let cookie = node.entered().await;
    let enters = node.ticket(LinkPurpose::Enter);
    let mut request = post(&format!("{ACT}{enters}"), "");
    request
        .headers_mut()
        .insert(COOKIE, cookie.parse().expect("a value"));
    assert_eq!(node.ask(request).await.0, StatusCode::GONE);
    assert_eq!(node.rebooted.load(Ordering::SeqCst), 1);
    // What the node does not have, it says.
    let ticket = node.ticket(LinkPurpose::Act(PageAction::Lock));
    let (status, _, text) = node.ask(post(&format!("{ACT}{ticket}"), "")).await;
    assert!(
        status == StatusCode::NOT_FOUND && text.contains("It was not done"),
        "{text}"
    );
}

#[tokio::test]
async fn leaving_ends_the_session() {
    let node = PageTestNode::new();
    let cookie = node.entered().await;
    let mut request = post("/status/leave", "");
    request
        .headers_mut()
        .insert(COOKIE, cookie.parse().expect("a value"));
    let (status, headers, _) = node.ask(request).await;
    assert_eq!(status, StatusCode::SEE_OTHER);
    assert!(
        headers[SET_COOKIE]
            .to_str()
            .is_ok_and(|it| it.contains("Max-Age=0"))
    );
    let (_, _, text) = node.ask(with_cookie("/", &cookie)).await;
    assert!(!text.contains("edge-1"));
}

#[tokio::test]
async fn in_the_dark_only_links_and_sessions_are_known() {
    let node = PageTestNode::new();
    let knows = |request: Request<Full<Bytes>>| node.page.knows(request.uri(), request.headers());
    for path in [
        "/",
        "/status/style.css",
        "/status/enter/x",
        "/status/enter/",
        "/status/act/x",
    ] {
        assert!(!knows(get(path)), "{path}");
    }
    let (enters, acts) = (
        node.ticket(LinkPurpose::Enter),
        node.ticket(LinkPurpose::Act(PageAction::Reboot)),
    );
    assert!(knows(get(&format!("{ENTER}{enters}"))) && knows(get(&format!("{ACT}{acts}"))));
    assert!(knows(post(&format!("{ACT}{acts}"), "")) && !knows(post("/status/act/x", "")));
    let cookie = node.entered().await;
    assert!(knows(with_cookie("/", &cookie)) && !knows(with_cookie("/", "__Host-alknet=x")));
}

#[tokio::test]
async fn a_link_followed_from_elsewhere_leads_on_by_a_page_of_ours() {
    let node = PageTestNode::new();
    let ticket = node.ticket(LinkPurpose::Enter);
    let mut request = get(&format!("{ENTER}{ticket}"));
    let elsewhere = "cross-site".parse().expect("a value");
    request.headers_mut().insert("sec-fetch-site", elsewhere);
    let (status, headers, text) = node.ask(request).await;
    assert_eq!(status, StatusCode::OK);
    cookie_in(&headers);
    assert!(text.contains("http-equiv=\"refresh\" content=\"0;url=/\""));
}

#[tokio::test]
async fn paths_and_methods_that_are_none() {
    let node = PageTestNode::new();
    let status = async |request| node.ask(request).await.0.as_u16();
    assert_eq!(status(get("/status/nothing")).await, 404);
    assert_eq!(status(post("/", "")).await, 405);
    assert_eq!(status(get("/status/enter")).await, 303);
    let mut head = get(&format!("{ENTER}{}", node.ticket(LinkPurpose::Enter)));
    *head.method_mut() = Method::HEAD;
    assert_eq!(status(head).await, 405);
    assert_eq!(status(get("/status/style.css")).await, 200);
    assert_eq!(
        status(get("/status/events")).await,
        204,
        "unknown peers hear nothing"
    );
}

#[tokio::test]
async fn an_open_page_hears_what_changes_and_when_it_is_over() {
    let node = PageTestNode::new();
    let cookie = node.entered().await;
    let request = with_cookie("/status/events", &cookie);
    let answer = node.page.respond(request, node.caller(None)).await;
    assert_eq!(answer.headers()[CONTENT_TYPE], "text/event-stream");
    let mut body = answer.into_body();
    let mut next = async || {
        let frame = body.frame().await?.expect("no error");
        Some(String::from_utf8(frame.into_data().expect("data").to_vec()).expect("text"))
    };
    assert!(next().await.is_some_and(|it| it.starts_with("retry: ")));
    let first = next().await.expect("an event");
    assert!(
        first.starts_with("event: update\ndata: {") && first.ends_with("}\n\n"),
        "{first}"
    );
    assert!(first.contains("Ada") && !first.contains("<b>Ada"));
    let second = next().await.expect("an event");
    assert!(!second.contains("Ada"), "it did not change: {second}");
    node.identities.replace_config(IdentityEntries::default());
    assert!(
        next()
            .await
            .is_some_and(|it| it.starts_with("event: over\n"))
    );
    assert!(next().await.is_none());
}

/// The stream of an open page would otherwise take all the time of a drain.
#[tokio::test]
async fn an_open_page_ends_when_the_node_drains() {
    let node = PageTestNode::new();
    let cookie = node.entered().await;
    let request = with_cookie("/status/events", &cookie);
    let answer = node.page.respond(request, node.caller(None)).await;
    let mut body = answer.into_body();
    let first = body.frame().await.expect("an event").expect("no error");
    assert!(first.into_data().expect("data").starts_with(b"retry: "));
    // No connection of a call is open, so it is over at once.
    node.dispatcher.drain().await;
    let mut events = 0;
    while let Some(frame) = body.frame().await {
        frame.expect("no error");
        events += 1;
        // One was in the channel, and one may have waited for room there.
        assert!(events < 5, "it goes on");
    }
}

#[tokio::test]
async fn the_operation_makes_links_for_administrators() {
    let node = PageTestNode::new();
    let (good, narrow) = (
        node.token(&["admin"]).await,
        node.token(&["node:read"]).await,
    );
    let gateway = Gateway::new(Quota::default());
    let make = async |token: &AuthToken, input: Value| {
        let caller = node.caller(Some(token));
        let call = GatewayCall::for_operation("node/page-ticket", &input);
        let made = gateway.invoke(&caller, call).await;
        made.map(|output| alknet_call::CallBody::from(output).value().clone())
    };
    assert!(make(&narrow, json!({})).await.is_err());
    assert!(make(&good, json!({ "action": "format" })).await.is_err());
    assert!(make(&good, json!({ "other": 1 })).await.is_err());
    let made = make(&good, json!({})).await.expect("a link");
    assert_eq!(
        (&made["expires_in"], &made["names"]),
        (&json!(60), &json!(["box.local"]))
    );
    let path = made["path"].as_str().expect("text");
    let (status, headers, _) = node.ask(get(path)).await;
    assert_eq!(status, StatusCode::SEE_OTHER);
    let cookie = cookie_in(&headers);
    // The session of a token's link ends with the token.
    let key_id = good.hash().expect("a token").key_id;
    node.identities.revoke_token(key_id).await.expect("room");
    assert!(
        node.page
            .session_of(with_cookie("/", &cookie).headers())
            .is_none()
    );
    let admins = node.token(&["*"]).await;
    let made = make(&admins, json!({ "action": "reboot" }))
        .await
        .expect("a link");
    assert!(made["path"].as_str().is_some_and(|it| it.starts_with(ACT)));
}

/// A token of an administrator's own, which is shown over a connection of some other key. Its holder stays an
/// administrator when it is taken back.
#[tokio::test]
async fn what_a_link_of_a_token_led_to_ends_with_the_token() {
    const MOST: std::time::Duration = std::time::Duration::from_secs(60);
    for by_session in [true, false] {
        let node = PageTestNode::new();
        let token = AuthToken::generate().expect("randomness");
        let ada = PeerEntry {
            token_hashes: vec![token.hash().expect("a token")],
            scopes: ["admin"].iter().collect(),
            ..PeerEntry::new("ada".parse().expect("a peer id"))
        };
        node.identities.put(ada).await.expect("room");
        let (dialled, accepted) = memory_pair(ALPN);
        let auth = AuthContext {
            identity: None,
            key: Some(PeerKey::Ed25519([9; 32])),
            alpn: ALPN.into(),
            sni: None,
            remote_addr: None,
            carriage: accepted.carriage(),
            early_data: false,
        };
        let handler = Arc::new(CallHandler::new(Arc::clone(&node.dispatcher)));
        tokio::spawn(handler.handle(accepted, auth));
        let client = CallClient::without_operations().attach(dialled, None);
        let mut options = CallOptions::default();
        match by_session {
            true => client.authenticate(&token).await.expect("it is ada's"),
            false => options.auth_token = Some(token.expose().to_owned()),
        }
        let input = json!({});
        let made = client.call_with("node/page-ticket", &input, &options).await;
        let made = made.expect("a link");
        let path = made.value()["path"].as_str().expect("text").to_owned();
        let (_, headers, _) = node.ask(get(&path)).await;
        let cookie = cookie_in(&headers);
        let open = with_cookie("/status/events", &cookie);
        let revoked = async {
            let key_id = token.hash().expect("a token").key_id;
            node.identities.revoke_token(key_id).await.expect("room");
        };
        let both = async { tokio::join!(node.ask(open), revoked) };
        let ended = tokio::time::timeout(MOST, both).await;
        let ((_, _, events), ()) = ended.expect("the page goes on");
        assert!(events.ends_with("event: over\ndata: {}\n\n"), "{events}");
        let (_, _, text) = node.ask(with_cookie("/", &cookie)).await;
        assert!(text.contains("name=\"token\""), "{text}");
        let holder = node.identities.by_id(&"ada".parse().expect("a peer id"));
        assert!(holder.is_some(), "ada still has an identity");
    }
}

#[test]
fn forms_are_read_as_browsers_write_them() {
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    assert_eq!(
        fields(b"a=b+c&d=%C3%A4&e"),
        [pair("a", "b c"), pair("d", "ä"), pair("e", "")]
    );
    assert_eq!(fields(b"&&a=%zz=&=x"), [pair("a", "%zz="), pair("", "x")]);
    assert!(fields(b"").is_empty());
}
