//! The status page in a browser, for a node in the known state that the documentation's pictures
//! show.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use alknet_call::{ALPN, CallClient};
use alknet_endpoint::{EndpointDialer, Target};
use alknet_tests::{Browser, CliRunner, DOCS_PICTURES, HostNode, TestBench, eventually, spki};
use alknet_tls::NodeKey;
use serde_json::{Value, json};

/// The time zone of the page's reader: nine hours east of UTC all year round.
const ZONE: &str = "Asia/Tokyo";

/// Widths of a phone, a tablet and a laptop, in pixels.
const WIDTHS: [u32; 3] = [360, 800, 1280];

/// Height in pixels over which one half of the page may be empty beside the other: that of a
/// heading or a line.
const HALF_EMPTY_MAX: f64 = 60.0;

/// Points of the lines on the pictures: half a minute.
const POINTS: u64 = 6;

/// One call fails per this many, so that few fail.
const FAILS_SELDOM: u32 = 40;

/// A client that keeps calling the node over one connection, at a varying rate.
struct PageTraffic {
    is_over: Arc<AtomicBool>,
    /// Whether all calls are to an operation that the node does not have.
    all_fail: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl PageTraffic {
    fn begin(node: &HostNode, admin: &CliRunner) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let all_fail = Arc::new(AtomicBool::new(false));
        let (until, failing) = (Arc::clone(&is_over), Arc::clone(&all_fail));
        let target: Target = node.target().parse().expect("the node's own target");
        let key = admin.state().join("identity.key");
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("this host has threads and sockets");
            runtime.block_on(call_on(&target, &key, &until, &failing));
        });
        Self {
            is_over,
            all_fail,
            thread: Some(thread),
        }
    }

    fn end(mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        let thread = self.thread.take().expect("it ends once");
        thread.join().expect("the node answers");
    }
}

impl Drop for PageTraffic {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
    }
}

async fn call_on(target: &Target, key: &Path, is_over: &AtomicBool, all_fail: &AtomicBool) {
    let (key, _) = NodeKey::load_or_create(key).expect("a key");
    let dialer = EndpointDialer::new(Some(key));
    let connection = dialer.dial(target, ALPN).await.expect("it serves");
    let client = CallClient::without_operations().attach(connection, None);
    let mut count = 0;
    while !is_over.load(Ordering::SeqCst) {
        count += 1;
        let fails = all_fail.load(Ordering::SeqCst) || count % FAILS_SELDOM == 0;
        let operation = if fails { "demo/absent" } else { "node/info" };
        let answer = client.call(operation, &Value::Null).await;
        assert_eq!(answer.is_err(), fails, "{operation}: {:?}", answer.err());
        // The client's own pace, so that the lines of the plots rise and fall.
        let pause_ms = 100 + 20 * u64::from(count % 10);
        tokio::time::sleep(Duration::from_millis(pause_ms)).await;
    }
}

/// A node with peers in every state.
fn known_node(bench: &TestBench) -> HostNode {
    let key = |name: &str| bench.user(name).identity();
    let (sensor, laptop) = (key("sensor"), key("laptop"));
    bench.host_with(&format!(
        "[node]\nname = \"edge-1\"\n\
         [[peers]]\npeer_id = \"attic-sensor\"\nkeys = [\"{sensor}\"]\n\
         display_name = \"Sensor in the attic\"\nscopes = [\"node:read\"]\n\
         [[peers]]\npeer_id = \"old-laptop\"\nkeys = [\"{laptop}\"]\n\
         display_name = \"Ada's old laptop\"\nenabled = false\n"
    ))
}

fn origin(node: &HostNode) -> String {
    let (_, address) = node
        .target()
        .rsplit_once('@')
        .expect("a pin and an address");
    format!("https://{address}")
}

fn link(bench: &TestBench, node: &HostNode) -> String {
    let command = bench.admin().command(&["open", "--print", node.target()]);
    let answer = bench.admin().run(command).json();
    answer["url"].as_str().expect("a link").to_owned()
}

/// Where each run saves the pictures.
fn folder() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("pictures");
    std::fs::create_dir_all(&folder).expect("a folder of ours");
    folder
}

#[test]
fn a_browser_shows_it_with_and_without_scripts() {
    let bench = TestBench::new();
    let node = known_node(&bench);
    let own = origin(&node);
    let address = own["https://".len()..].parse().expect("an address");
    let mut browser = Browser::start(&[spki(address)]);
    browser.zone(ZONE);
    browser.emulate_screen(1280, 900, false);
    browser.navigate(&format!("{own}/"));
    assert_eq!(browser.barriers(), json!([]), "the form");

    let traffic = PageTraffic::begin(&node, bench.admin());
    browser.navigate(&link(&bench, &node));
    assert_eq!(browser.evaluate("location.pathname"), "/");
    assert_eq!(
        browser.evaluate("document.cookie"),
        "",
        "scripts do not see it"
    );
    eventually("the page is live", || {
        let live = browser.evaluate("document.getElementById('live').textContent");
        (live == "Live").then_some(())
    });
    assert_has_lines(&mut browser, 1);
    let shown = browser.evaluate("document.body.textContent");
    let shown = shown.as_str().expect("text");
    assert!(!shown.contains("Cannot be shown"), "{shown}");
    for word in ["disabled", "Configuration generation", "Sign out"] {
        assert!(shown.contains(word), "{word}: {shown}");
    }
    assert_times_are_in_the_readers_zone(&mut browser);
    for width in WIDTHS {
        browser.emulate_screen(width, 900, false);
        assert_well_made(&mut browser, width);
    }
    browser.emulate_screen(1280, 900, true);
    assert_well_made(&mut browser, 1280);

    // Few calls fail, and this many points make a plot.
    assert_has_lines(&mut browser, POINTS);
    assert_eq!(failures(&mut browser)["alarm"], Value::Null);
    for picture in DOCS_PICTURES {
        picture.take(&mut browser, &folder());
    }
    println!("the pictures are in {}", folder().display());

    traffic.all_fail.store(true, Ordering::SeqCst);
    assert_many_failures_are_seen(&mut browser);
    traffic.end();
    let diagnostics = browser.events("Log.entryAdded");
    assert!(diagnostics.is_empty(), "{diagnostics:?}");
    let foreign: Vec<_> = browser.loaded();
    let is_own = |url: &str| url.starts_with(&own) || url.starts_with("data:");
    assert!(foreign.iter().all(|it| is_own(&it.url)), "{foreign:?}");

    assert_works_without_scripts(&mut browser, &own);
}

fn assert_works_without_scripts(browser: &mut Browser, origin: &str) {
    browser.scripts(false);
    browser.navigate(&format!("{origin}/"));
    browser.scripts(true);
    let facts = browser.evaluate("document.querySelectorAll('dd').length");
    assert!(facts.as_u64() >= Some(10), "{facts}");
    let at = browser.evaluate("document.getElementById('at').textContent");
    assert!(at.as_str().is_some_and(|at| at.ends_with(" UTC")), "{at}");
}

/// Each plot has its lines, and the plot of calls has this many points.
fn assert_has_lines(browser: &mut Browser, points: u64) {
    let lines = "document.querySelectorAll('#calls polyline').length";
    let length = "document.querySelector('#calls polyline')?.points.numberOfItems ?? 0";
    eventually("the plots have lines", || {
        let lines = browser.evaluate(lines).as_u64();
        let length = browser.evaluate(length).as_u64();
        (lines >= Some(7) && length >= Some(points)).then_some(())
    });
}

fn assert_times_are_in_the_readers_zone(browser: &mut Browser) {
    let wrong = "[...document.querySelectorAll('time')].filter((time) => {
        const there = new Date(Date.parse(time.dateTime) + 9 * 3600e3).toISOString();
        const expected = `${there.slice(0, 10)} ${there.slice(11, 19)} GMT+9`;
        return !time.dateTime.endsWith('Z') || time.textContent !== expected;
    }).map((time) => time.outerHTML)";
    assert_eq!(browser.evaluate(wrong), json!([]));
    for place in ["header time", "#log time"] {
        let count = format!("document.querySelectorAll('{place}').length");
        let count = browser.evaluate(&count);
        assert!(count.as_u64() >= Some(1), "{place}: {count}");
    }
}

/// Checks the page at this width against the rules of accessibility and of its layout: it does not
/// scroll sideways, and no part of its width is empty beside another part that is not.
fn assert_well_made(browser: &mut Browser, width: u32) {
    assert_eq!(browser.barriers(), json!([]), "at {width}");
    let fits = "document.documentElement.scrollWidth <= innerWidth";
    assert_eq!(browser.evaluate(fits), true, "{width} scrolls sideways");
    let layout = browser.evaluate(
        "(() => {
            const main = document.querySelector('main').getBoundingClientRect();
            const half = main.left + main.width / 2;
            const parts = 'h2, p, dl > div, figure, .scroll, li, summary';
            const boxes = [...document.querySelector('main').querySelectorAll(parts)]
                .map((part) => part.getBoundingClientRect()).filter((box) => box.height > 0);
            let run = 0, emptiest = 0;
            for (let y = main.top; y < main.bottom; y += 4) {
                const here = boxes.filter((box) => box.top <= y && y < box.bottom);
                const left = here.some((box) => box.left < half - 24);
                const right = here.some((box) => box.right > half + 24);
                run = left === right ? 0 : run + 4;
                emptiest = Math.max(emptiest, run);
            }
            const short = [];
            for (const list of document.querySelectorAll('main dl, main .plots')) {
                const whole = list.getBoundingClientRect(), rows = new Map();
                for (const part of list.children) {
                    const box = part.getBoundingClientRect(), row = Math.round(box.top);
                    rows.set(row, Math.max(rows.get(row) ?? 0, box.right));
                }
                for (const right of rows.values()) {
                    if (whole.right - right > 2) short.push(list.textContent);
                }
            }
            return { emptiest, short };
        })()",
    );
    let emptiest = layout["emptiest"].as_f64().expect("a height");
    assert!(
        emptiest <= HALF_EMPTY_MAX,
        "at {width} one half is empty over {emptiest} pixels"
    );
    assert_eq!(layout["short"], json!([]), "rows at {width}");
}

/// The page's text about failed calls, and the colours of that text, of other facts and of the line
/// of failed calls.
fn failures(browser: &mut Browser) -> Value {
    browser.evaluate(
        "(() => {
            const alarm = document.querySelector('#calls .alarm');
            const line = document.querySelectorAll('#calls .legend')[0].children[1];
            return {
                alarm: alarm?.textContent ?? null,
                legend: line.textContent.trim(),
                colour: alarm && getComputedStyle(alarm).color,
                line: getComputedStyle(line.querySelector('path')).stroke,
                usual: getComputedStyle(document.querySelector('#calls dd')).color,
            };
        })()",
    )
}

/// By words and by colour.
fn assert_many_failures_are_seen(browser: &mut Browser) {
    let seen = eventually("the page says that many calls fail", || {
        let seen = failures(browser);
        seen["alarm"].is_string().then_some(seen)
    });
    let starts = |name: &str, text: &str| {
        let has = seen[name].as_str().is_some_and(|it| it.starts_with(text));
        assert!(has, "{seen}");
    };
    starts("alarm", "Many calls fail: ");
    starts("legend", "failed: many");
    assert_eq!(seen["colour"], seen["line"], "{seen}");
    assert_ne!(seen["colour"], seen["usual"], "{seen}");
}
