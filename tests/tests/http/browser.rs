//! What a browser does with a node: calls, streams of events, the module of the documentation.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::thread;

use alknet_tests::{Browser, spki};
use serde_json::{Value, json};

use super::test_node::GatewayTestNode;

/// A site of another origin: the module, its tests, and an empty page.
struct ForeignSite {
    origin: String,
}

impl ForeignSite {
    fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = listener.local_addr().expect("it has an address");
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                // A browser may close the connection early, which does not matter.
                thread::spawn(move || answer(stream).ok());
            }
        });
        Self {
            origin: format!("http://{address}"),
        }
    }
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    while lines
        .next()
        .transpose()?
        .is_some_and(|line| !line.is_empty())
    {}
    let file = |name: &str| {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(name);
        std::fs::read_to_string(path)
    };
    let (kind, body) = match first.split(' ').nth(1).unwrap_or_default() {
        "/alknet.js" => ("text/javascript", file("../docs/examples/alknet.js")?),
        "/session.js" => ("text/javascript", file("clients/session.js")?),
        "/browser.html" => ("text/html", file("../docs/examples/browser.html")?),
        _ => (
            "text/html",
            "<!doctype html><title>a site</title>".to_owned(),
        ),
    };
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: {kind}; charset=utf-8\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n{body}"
    )
}

/// A call with `fetch`.
fn fetch(place: &GatewayTestNode, operation: &str) -> String {
    let request = json!({
        "method": "POST",
        "headers": {
            "Authorization": format!("Bearer {}", place.token),
            "Content-Type": "application/json",
        },
        "body": json!({ "operation": operation, "input": "hello" }).to_string(),
    });
    let url = place.url("/call");
    format!("await (await fetch('{url}', {request})).json()")
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_permitted_sites_call_and_others_do_not() {
    let (ours, foreign) = (ForeignSite::start(), ForeignSite::start());
    let place = GatewayTestNode::start(std::slice::from_ref(&ours.origin));
    tokio::task::block_in_place(|| {
        let mut browser = Browser::start(&[spki(place.address())]);
        let socket = format!(
            "await new Promise((done) => {{
                const socket = new WebSocket('{}', ['alknet.call', 'alknet.bearer.{}']);
                socket.onopen = () => {{ socket.close(1000); done('open'); }};
                socket.onerror = () => done('refused');
            }})",
            place.session_url(),
            place.token
        );
        browser.navigate(&ours.origin);
        let answer = browser.evaluate(&fetch(&place, "demo/echo"));
        assert_eq!(answer["output"], "hello", "{answer}");
        assert_eq!(browser.evaluate(&socket), "open");
        // The browser opens the WebSocket in the same HTTP/2 connection, because the node announced
        // this before.
        let shakes = browser.events("Network.webSocketHandshakeResponseReceived");
        let status = |shake: &Value| shake["response"]["status"].as_u64();
        assert!(
            shakes
                .iter()
                .all(|shake| matches!(status(shake), Some(101 | 200))),
            "{shakes:?}"
        );
        assert!(!shakes.is_empty());
        let calls: Vec<_> = browser.loaded().into_iter().collect();
        assert!(
            calls
                .iter()
                .any(|call| call.url == place.url("/call") && call.protocol == "h2"),
            "{calls:?}"
        );

        browser.navigate(&foreign.origin);
        let refused = browser.try_evaluate(&fetch(&place, "demo/echo"));
        assert!(refused.is_err_and(|error| error.contains("Failed to fetch")));
        assert_eq!(browser.evaluate(&socket), "refused");
    });
}

/// A ticket opens a stream. After the stream's end the browser does not reconnect.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_source_gets_its_events_and_does_not_come_back() {
    let place = GatewayTestNode::start(&[]);
    tokio::task::block_in_place(|| {
        let mut browser = Browser::start(&[spki(place.address())]);
        // A page of the node itself, which may send any request to it.
        browser.command("Page.setBypassCSP", &json!({ "enabled": true }));
        browser.navigate(&place.url("/healthz"));
        let script = format!(
            "const answer = await fetch('/subscribe', {{
                method: 'POST',
                headers: {{
                    Authorization: 'Bearer {}', 'Content-Type': 'application/json',
                    Accept: 'text/event-stream', Prefer: 'respond-async',
                }},
                body: JSON.stringify({{ operation: 'demo/count', input: 100 }}),
            }});
            const ticket = await answer.json();
            await new Promise((done) => {{
                const source = new EventSource(ticket.url), seen = [];
                let completed = 0;
                source.addEventListener('data', (event) => seen.push(JSON.parse(event.data)));
                source.addEventListener('completed', () => {{ completed += 1; }});
                // It tries once more, and the server answers that there is nothing.
                source.onerror = () => {{
                    if (source.readyState === EventSource.CLOSED) {{
                        done({{ status: answer.status, seen, completed }});
                    }}
                }};
            }})",
            place.token
        );
        let told = browser.evaluate(&script);
        assert_eq!(told["status"], 201, "{told}");
        assert_eq!(told["completed"], 1, "{told}");
        let expected: Vec<_> = (0..100).collect();
        assert_eq!(told["seen"], json!(expected));
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn the_module_works_in_chromium() {
    let site = ForeignSite::start();
    let place = GatewayTestNode::start(std::slice::from_ref(&site.origin));
    tokio::task::block_in_place(|| {
        let mut browser = Browser::start(&[spki(place.address())]);
        browser.navigate(&site.origin);
        let facts = json!({ "url": place.session_url(), "token": place.token });
        let script = format!(
            "const {{ Alknet, CallError }} = await import('/alknet.js');
             const {{ suite }} = await import('/session.js');
             await suite(Alknet, CallError, {facts})"
        );
        let passed = browser.evaluate(&script);
        assert_eq!(passed.as_array().map(Vec::len), Some(10), "{passed}");

        // The page of the documentation, filled in and sent.
        browser.navigate(&format!("{}/browser.html", site.origin));
        let fill = json!({
            "url": place.session_url(), "token": place.token,
            "operation": "demo/echo", "input": "\"seen on the page\"",
        });
        let shown = browser.evaluate(&format!(
            "const form = document.querySelector('form');
             for (const [name, value] of Object.entries({fill})) form.elements[name].value = value;
             form.elements.call.click();
             const output = document.querySelector('#output');
             while (!output.textContent) await new Promise(requestAnimationFrame);
             output.textContent"
        ));
        assert_eq!(shown, "\"seen on the page\"\n");
    });
}

/// The first answers come over HTTP/2. If no public authority signed the node's certificate,
/// Chromium uses HTTP/3 with the node only if an option allows it.
#[tokio::test(flavor = "multi_thread")]
async fn chromium_speaks_http2_and_http3() {
    let place = GatewayTestNode::start(&[]);
    tokio::task::block_in_place(|| {
        let keys = [spki(place.address())];
        // A missing page has no policy that prevents it from sending requests.
        let url = place.url("/nothing");
        let hop = "performance.getEntriesByType('navigation')[0].nextHopProtocol";
        let mut browser = Browser::start(&keys);
        browser.navigate(&url);
        assert_eq!(browser.evaluate(hop), "h2");
        let services = format!("(await fetch('{url}')).headers.get('alt-svc')");
        let services = browser.evaluate(&services);
        let port = place.address().port();
        assert!(
            services
                .as_str()
                .is_some_and(|it| it.contains(&format!("h3=\":{port}\""))),
            "{services}"
        );
        drop(browser);
        let force = format!("--origin-to-force-quic-on={}", place.address());
        let mut browser = Browser::start_with(&keys, &["--enable-quic", &force]);
        browser.navigate(&url);
        assert_eq!(browser.evaluate(hop), "h3");
        let text = browser.evaluate("document.body.textContent");
        assert!(
            text.as_str().is_some_and(|text| text.contains("Not Found")),
            "{text}"
        );
    });
}
