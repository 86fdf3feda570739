//! The status page of a machine, and other uses of the machine by a browser.

use std::path::{Path, PathBuf};
use std::time::Duration;

use alknet_tests::{Browser, TestBench, curl, eventually, spki};
use data_encoding::BASE64;
use serde_json::json;

use super::Machine;
use super::clients::{MODULE, USED, USES, facts, text};

/// Longest wait until a machine has ended.
const OFF_WITHIN: Duration = Duration::from_secs(30);

/// Returns a link to the page, as `alknet open` prints it.
fn link(bench: &TestBench, web: &Machine, more: &[&str]) -> String {
    let mut command = bench
        .admin()
        .command(&["open", "--print", &web.node.target()]);
    command.args(more);
    let answer = bench.admin().run(command).json();
    answer["url"].as_str().expect("a link").to_owned()
}

pub(super) fn a_link_lets_in_once(bench: &TestBench, web: &Machine) {
    let unknown_peer = web.curl("/", &[]).text();
    assert!(unknown_peer.contains("name=\"token\"") && !unknown_peer.contains("Peers"));
    let link = link(bench, web, &[]);
    assert!(link.starts_with(&web.url("/status/enter/")), "{link}");
    let entered = curl(&link, &[]);
    assert_eq!(
        (entered.status, entered.header("location")),
        (303, Some("/"))
    );
    let cookie = entered.header("set-cookie").expect("a cookie");
    assert!(cookie.starts_with("__Host-alknet="), "{cookie}");
    assert_eq!(curl(&link, &[]).status, 410);

    let pair = cookie.split(';').next().unwrap_or_default();
    let cookie = format!("Cookie: {pair}");
    let page = web.curl("/", &["--header", &cookie]);
    assert!(page.text().contains(web.node.identity()), "{}", page.text());
    // Outside the page the node ignores the cookie.
    assert_eq!(web.curl("/search", &["--header", &cookie]).status, 401);
}

/// Folder with pictures of the page for people to look at.
fn pictures() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("page-of-a-machine");
    std::fs::create_dir_all(&folder).expect("a folder of ours");
    folder
}

/// Returns the browser, which goes on to [`a_browser_uses_it`].
pub(super) fn a_browser_shows_the_machine(bench: &TestBench, web: &Machine) -> Browser {
    let mut browser = Browser::start(&[spki(web.address())]);
    browser.emulate_screen(1280, 900, false);
    browser.navigate(&web.url("/"));
    assert_eq!(browser.barriers(), json!([]), "the form");
    browser.screenshot(&pictures().join("enter.png"));

    browser.navigate(&link(bench, web, &[]));
    assert_eq!(browser.evaluate("location.pathname"), "/");
    assert_eq!(
        browser.evaluate("document.querySelector('h1').textContent"),
        "alknet"
    );
    eventually("the page is live", || {
        let live = browser.evaluate("document.getElementById('live').textContent");
        (live == "Live").then_some(())
    });
    eventually("the plots have lines", || {
        let lines = browser.evaluate("document.querySelectorAll('#calls polyline').length");
        (lines.as_u64() >= Some(5)).then_some(())
    });
    // Only a machine has these sections. The log shows the newest records alone: on a slow host none of them is about
    // a connection that opened, but other clients' connections end all the time.
    for (section, word) in [
        ("vault", "unlocked"),
        ("storage", "mounted"),
        ("software", "Kernel"),
        ("log", "endpoint"),
    ] {
        let shown = format!("document.getElementById('{section}').textContent");
        eventually(&format!("{section} shows {word}"), || {
            let shown = browser.evaluate(&shown);
            let has = shown.as_str().is_some_and(|shown| shown.contains(word));
            has.then_some(())
        });
    }
    let shown = browser.evaluate("document.body.textContent");
    let shown = shown.as_str().expect("text");
    assert!(!shown.contains("Cannot be shown"), "{shown}");
    // The command names the forwarded port of this request, which is not the machine's own.
    let command = format!("alknet token list {}", web.node.target());
    assert!(shown.contains(&command), "{command}: {shown}");
    for (name, width, dark) in [
        ("light", 1280, false),
        ("dark", 1280, true),
        ("phone", 390, false),
    ] {
        browser.emulate_screen(width, 900, dark);
        assert_eq!(browser.barriers(), json!([]), "{name}");
        let fits = "document.documentElement.scrollWidth <= innerWidth";
        assert_eq!(browser.evaluate(fits), true, "{name} scrolls sideways");
        browser.screenshot(&pictures().join(format!("{name}.png")));
    }
    let diagnostics = browser.events("Log.entryAdded");
    assert!(diagnostics.is_empty(), "{diagnostics:?}");
    browser
}

pub(super) fn a_browser_uses_it(mut browser: Browser, web: &Machine) {
    // The browser opens a page of the node itself, which may send the node any request.
    browser.command("Page.setBypassCSP", &json!({ "enabled": true }));
    browser.navigate(&web.url("/healthz"));
    let hop = "performance.getEntriesByType('navigation')[0].nextHopProtocol";
    assert_eq!(browser.evaluate(hop), "h2");
    let answer = browser.evaluate(&fetch(web));
    assert_eq!(
        answer["output"]["identity"],
        web.node.identity(),
        "{answer}"
    );

    let told = browser.evaluate(&event_source(web));
    assert_eq!(told["status"], 201, "{told}");
    assert_eq!(told["completed"], 1, "{told}");
    assert_eq!(told["seen"], 5, "{told}");

    let module = |path| {
        format!(
            "data:text/javascript;base64,{}",
            BASE64.encode(text(path).as_bytes())
        )
    };
    let passed = browser.evaluate(&format!(
        "const {{ Alknet, CallError }} = await import('{}');
         const {{ use }} = await import('{}');
         await use(Alknet, CallError, {})",
        module(MODULE),
        module(USED),
        facts(web)
    ));
    assert_eq!(passed.as_array().map(Vec::len), Some(USES), "{passed}");
    drop(browser);

    let keys = [spki(web.address())];
    let force = format!("--origin-to-force-quic-on={}", web.address());
    let mut browser = Browser::start_with(&keys, &["--enable-quic", &force]);
    browser.navigate(&web.url("/healthz"));
    assert_eq!(browser.evaluate(hop), "h3");
    assert_eq!(browser.evaluate("document.body.textContent.trim()"), "ok");
}

/// Returns a script that makes a call by `fetch`.
fn fetch(web: &Machine) -> String {
    let request = json!({
        "method": "POST",
        "headers": {
            "Authorization": format!("Bearer {}", web.admin),
            "Content-Type": "application/json",
        },
        "body": json!({ "operation": "node/info" }).to_string(),
    });
    format!("await (await fetch('/call', {request})).json()")
}

/// Returns a script that gets a ticket, and follows it with an `EventSource` until that gives up.
fn event_source(web: &Machine) -> String {
    let request = json!({
        "method": "POST",
        "headers": {
            "Authorization": format!("Bearer {}", web.admin),
            "Content-Type": "application/json",
            "Prefer": "respond-async",
        },
        "body": json!({ "operation": "node/log", "input": { "last": 5 } }).to_string(),
    });
    format!(
        "const answer = await fetch('/subscribe', {request});
        const ticket = await answer.json();
        await new Promise((done) => {{
            const source = new EventSource(ticket.url);
            let seen = 0, completed = 0;
            source.addEventListener('data', () => {{ seen += 1; }});
            source.addEventListener('completed', () => {{ completed += 1; }});
            // It tries once more, and the server answers that there is nothing.
            source.onerror = () => {{
                if (source.readyState === EventSource.CLOSED) {{
                    done({{ status: answer.status, seen, completed }});
                }}
            }};
        }})"
    )
}

/// A link's page asks for confirmation before the node acts, also in stealth mode.
pub(super) fn a_link_restarts_the_machine(bench: &TestBench, web: Machine) {
    let link = link(bench, &web, &["--action", "reboot"]);
    let asked = curl(&link, &[]);
    assert_eq!(asked.status, 200);
    assert!(
        asked.text().contains("Restart the machine?"),
        "{}",
        asked.text()
    );
    let done = curl(&link, &["--data", ""]);
    assert_eq!(done.status, 200, "{}", done.text());
    let mut node = web.node;
    let exit = node.vm_mut().wait_exit(OFF_WITHIN);
    let exit = exit.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(exit.reason(), Some("guest-reset"), "{exit}");
}
