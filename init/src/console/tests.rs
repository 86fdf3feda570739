mod private;
mod questions;

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::time::Duration;

use alknet_provisioning::ConsoleDocument;
use alknet_test_support::deadline;
use jiff::Timestamp;
use nix::pty::openpty;
use proptest::prelude::*;

use super::*;
use crate::control::{DataState, LinkFacts, MachineDiagnostic};

/// Takes the answers in a test that gives none.
fn unknown_peer() -> mpsc::Sender<ConsoleInput> {
    mpsc::channel(1).0
}

fn render(facts: &MachineFacts, node: Option<&NodeStatus>, state: &ScreenState) -> String {
    screen::render(facts, node, None, state)
}

fn key() -> String {
    format!("ed25519:3f9a1c2e{}", "07".repeat(28))
}

fn node() -> NodeStatus {
    NodeStatus {
        identity: key(),
        enrolment_uri: format!("alknet:{}@192.0.2.10:443", key()),
        port: 443,
        alpns: vec!["alknet/call".into()],
        admins: 1,
        problems: Vec::new(),
    }
}

fn healthy() -> MachineFacts {
    MachineFacts {
        hostname: "edge-1".into(),
        data: DataState {
            mode: "mounted".into(),
            device: Some("/dev/vda3".into()),
            total_bytes: 10_522_669_875,
            free_bytes: 9_771_050_598,
            clean: Some(true),
            detail: None,
            cipher: None,
        },
        links: vec![LinkFacts {
            name: "eth0".into(),
            mac: "52:54:00:12:34:56".into(),
            up: true,
            addresses: vec![
                "fe80::5054:ff:fe12:3456/64".into(),
                "192.0.2.10/24".into(),
                "2001:db8::5054:ff:fe12:3456/64".into(),
            ],
            ..LinkFacts::default()
        }],
        clock: "sntp".into(),
        config_source: "fw_cfg".into(),
        ..MachineFacts::default()
    }
}

fn problem(code: &str, text: &str, hint: &str) -> MachineDiagnostic {
    MachineDiagnostic {
        code: code.into(),
        text: text.into(),
        hint: hint.into(),
    }
}

fn state() -> ScreenState {
    ScreenState {
        kernel: "Linux 6.12.57-alknet".into(),
        time: "2026-11-20 08:40 UTC".into(),
        ..ScreenState::default()
    }
}

/// Compares with `snapshots/<name>.txt`. With `ALKNET_BLESS` set it writes that file instead.
fn snapshot(name: &str, screen: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("src/console/snapshots")
        .join(format!("{name}.txt"));
    if std::env::var_os("ALKNET_BLESS").is_some() {
        std::fs::write(&path, screen).expect("a writable source tree");
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(screen, expected, "{name}\n{screen}");
}

fn fits(screen: &str, state: &ScreenState) {
    let lines: Vec<_> = screen.split('\n').collect();
    assert!(lines.len() <= state.rows, "{} rows\n{screen}", lines.len());
    for line in lines {
        assert!(line.chars().count() <= state.columns, "{line}");
        assert!(!line.contains(char::is_control), "{line:?}");
    }
}

fn check(name: &str, facts: &MachineFacts, node: Option<&NodeStatus>, state: &ScreenState) {
    let screen = render(facts, node, state);
    fits(&screen, state);
    snapshot(name, &screen);
}

#[test]
fn a_healthy_machine_shows_everything_beside_its_code() {
    let screen = render(&healthy(), Some(&node()), &state());
    assert!(screen.contains('▀') && screen.contains("3f9a1c2e (ed25519)"));
    check("healthy", &healthy(), Some(&node()), &state());
}

#[test]
fn a_machine_without_network_says_what_to_do() {
    let mut facts = healthy();
    facts.links[0].up = false;
    facts.links[0].addresses.clear();
    facts.clock = "rtc".into();
    check("no-network", &facts, Some(&node()), &state());
}

#[test]
fn a_refused_configuration_is_shown_with_every_mistake() {
    let mut facts = healthy();
    facts.problems = vec![
        problem(
            "config-refused",
            "fw_cfg: line 2, node.admin_key: unknown key 'admin_key'",
            "did you mean 'admin_keys'?",
        ),
        problem(
            "config-salvaged",
            "fw_cfg: only administrators, name, port and network are taken from it",
            "correct the document and start again",
        ),
    ];
    let mut node = node();
    node.admins = 0;
    check("bad-config", &facts, Some(&node), &state());
}

#[test]
fn a_volatile_machine_says_that_nothing_is_kept() {
    let mut facts = healthy();
    facts.data = DataState {
        mode: "volatile".into(),
        ..DataState::default()
    };
    facts.problems = vec![problem(
        "data-missing",
        "no disk with the label or serial alk-data",
        "attach a disk with the serial alk-data",
    )];
    check("volatile", &facts, Some(&node()), &state());
}

#[test]
fn a_crashed_node_shows_its_last_words() {
    let mut facts = healthy();
    facts.node_restarts = 3;
    facts.last_words = Some("signal 11 (SIGSEGV)\nsecond line".into());
    check("node-crashed", &facts, None, &state());
}

#[test]
fn more_problems_than_fit_are_counted_and_listed_on_request() {
    let mut facts = healthy();
    facts.problems = (0..12)
        .map(|n| problem("config-refused", &format!("line {n}: wrong"), "correct it"))
        .collect();
    check("many-problems", &facts, Some(&node()), &state());
    let view = ConsoleView::Problems;
    let all = ScreenState {
        view,
        rows: 60,
        ..state()
    };
    let screen = render(&facts, Some(&node()), &all);
    assert!((0..12).all(|n| screen.contains(&format!("line {n}: wrong"))));
}

#[test]
fn the_first_moments_are_calm() {
    check("starting", &MachineFacts::default(), None, &state());
}

#[test]
fn fault_injection_is_announced() {
    let facts = MachineFacts {
        fault_injection: true,
        ..healthy()
    };
    assert!(render(&facts, Some(&node()), &state()).contains("injection is ON"));
}

#[test]
fn ascii_terminals_get_ascii() {
    let ascii = ScreenState {
        charset: Charset::Ascii,
        ..state()
    };
    check("ascii", &healthy(), Some(&node()), &ascii);
    let code = ScreenState {
        view: ConsoleView::Enrol,
        ..ascii.clone()
    };
    for state in [ascii, code] {
        let screen = render(&healthy(), Some(&node()), &state);
        assert!(screen.is_ascii());
    }
}

#[test]
fn the_enrolment_view_shows_code_and_uri_where_there_is_room() {
    let view = ConsoleView::Enrol;
    check(
        "enrol",
        &healthy(),
        Some(&node()),
        &ScreenState { view, ..state() },
    );
    let tall = ScreenState {
        view,
        rows: 40,
        ..state()
    };
    let screen = render(&healthy(), Some(&node()), &tall);
    assert!(screen.contains("192.0.2.10:443"));
    assert!(render(&healthy(), None, &tall).contains("no enrolment code yet"));
}

#[test]
fn the_log_view_shows_the_last_lines() {
    let log = (0..100).map(|n| format!("line {n}")).collect();
    let state = ScreenState {
        view: ConsoleView::Log,
        log,
        live: true,
        ..state()
    };
    let screen = render(&healthy(), Some(&node()), &state);
    fits(&screen, &state);
    assert!(screen.contains("line 99") && !screen.contains("line 77\n"));
}

#[test]
fn hostile_text_cannot_reach_the_terminal() {
    let nasty = "\u{1b}]0;x\u{7}\u{1b}[2J\u{202e}\r\n".repeat(50);
    let mut facts = healthy();
    facts.hostname.clone_from(&nasty);
    facts.config_source.clone_from(&nasty);
    facts.last_words = Some(nasty.clone());
    facts.links[0].addresses = vec![nasty.clone()];
    facts.problems = vec![problem(&nasty, &nasty, &nasty)];
    let mut node = node();
    node.identity.clone_from(&nasty);
    node.enrolment_uri.clone_from(&nasty);
    node.alpns = vec![nasty];
    for view in [
        ConsoleView::Status,
        ConsoleView::Enrol,
        ConsoleView::Problems,
    ] {
        fits(
            &render(&facts, Some(&node), &ScreenState { view, ..state() }),
            &state(),
        );
    }
    let mut driver = ConsoleDriver::new(String::new(), (80, 24));
    driver.update(facts, Some(node));
    let marker = driver.take(0, Timestamp::UNIX_EPOCH);
    assert!(
        !marker.contains('\u{1b}') && marker.lines().count() == 3,
        "{marker:?}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_screen_fits(
        columns in 40usize..140,
        rows in 12usize..50,
        problems in prop::collection::vec(("[a-z-]{1,20}", "\\PC{0,200}", "\\PC{0,100}"), 0..6),
        uri in "[a-z0-9:@.]{0,300}",
        live in any::<bool>(),
    ) {
        let mut facts = healthy();
        facts.problems = problems.iter().map(|(code, text, hint)| problem(code, text, hint)).collect();
        let node = NodeStatus { enrolment_uri: uri, ..node() };
        for view in [ConsoleView::Status, ConsoleView::Enrol, ConsoleView::Log, ConsoleView::Problems] {
            let state = ScreenState { columns, rows, view, live, ..state() };
            fits(&render(&facts, Some(&node), &state), &state);
        }
    }
}

fn driver() -> ConsoleDriver {
    ConsoleDriver::new("Linux".into(), (80, 24))
}

fn take(driver: &mut ConsoleDriver, now_ms: u64) -> String {
    driver.take(now_ms, Timestamp::UNIX_EPOCH)
}

fn lines_with(output: &str, start: &str) -> usize {
    output
        .lines()
        .filter(|line| line.starts_with(start))
        .count()
}

#[test]
fn ready_is_said_once_for_each_time_the_node_becomes_ready() {
    let mut driver = driver();
    driver.update(healthy(), None);
    take(&mut driver, 0);
    driver.update(healthy(), Some(node()));
    let expected = format!("alknet: ready edge-1 {} port 443\n", key());
    assert_eq!(take(&mut driver, 10), expected);
    driver.update(healthy(), Some(node()));
    assert_eq!(lines_with(&take(&mut driver, 5000), "alknet: ready"), 0);
    driver.update(healthy(), None);
    driver.update(healthy(), Some(node()));
    assert_eq!(lines_with(&take(&mut driver, 20_000), "alknet: ready"), 1);
}

#[test]
fn the_first_address_is_said_and_again_after_the_last_was_lost() {
    let mut driver = driver();
    let lost = MachineFacts {
        links: Vec::new(),
        ..healthy()
    };
    for (n, facts, said) in [
        (0, lost.clone(), 0),
        (1, healthy(), 1),
        (2, healthy(), 0),
        (3, lost, 0),
        (4, healthy(), 1),
    ] {
        driver.update(facts, None);
        let output = take(&mut driver, n);
        assert_eq!(lines_with(&output, "alknet: address "), said, "{n}");
    }
}

#[test]
fn a_problem_is_said_once_and_again_when_it_comes_back() {
    let mut driver = driver();
    let mut facts = healthy();
    facts.problems = vec![problem("data-missing", "no disk", "attach one")];
    for (n, with, said) in [(0, true, 1), (1, true, 0), (2, false, 0), (3, true, 1)] {
        let facts = if with { facts.clone() } else { healthy() };
        driver.update(facts, None);
        let output = take(&mut driver, n);
        assert_eq!(
            lines_with(&output, "alknet: problem data-missing: no disk"),
            said,
            "{n}"
        );
    }
}

#[test]
fn a_plain_console_prints_the_screen_without_escape_codes_and_only_on_change() {
    let mut driver = driver();
    driver.update(healthy(), Some(node()));
    take(&mut driver, 0);
    assert_eq!(driver.due_ms(0), Some(SETTLE));
    let screen = take(&mut driver, SETTLE);
    assert!(screen.contains("edge-1") && !screen.contains('\u{1b}'));
    let mut facts = healthy();
    facts.data.free_bytes -= 4 << 30;
    driver.update(facts.clone(), Some(node()));
    take(&mut driver, 2000);
    assert_eq!(take(&mut driver, 60_000), "", "free space is no news");
    facts.links[0].addresses.pop();
    driver.update(facts, Some(node()));
    take(&mut driver, 70_000);
    assert!(take(&mut driver, 71_000).contains("edge-1"));
    assert_eq!(driver.due_ms(80_000), None);
}

const SETTLE: u64 = 1000;

#[test]
fn a_node_that_never_comes_up_does_not_leave_the_console_empty() {
    let mut driver = driver();
    driver.update(healthy(), None);
    let first = take(&mut driver, 0);
    assert_eq!(lines_with(&first, "alknet: address "), 1, "{first}");
    assert_eq!(driver.due_ms(0), Some(10_000));
    assert!(take(&mut driver, 10_000).contains("the node is starting"));
}

#[test]
fn changes_that_never_end_do_not_flood_the_console() {
    let mut driver = driver();
    let mut printed = 0;
    for n in 0..600 {
        let mut facts = healthy();
        facts.links[0].addresses = vec![format!("192.0.2.{}/24", n % 250)];
        driver.update(facts, Some(node()));
        printed += usize::from(take(&mut driver, n * 100).contains("[ok]"));
    }
    assert!((5..=13).contains(&printed), "{printed} in a minute");
}

#[test]
fn a_key_makes_the_screen_live_and_q_leaves_it() {
    let mut driver = driver();
    driver.update(healthy(), Some(node()));
    take(&mut driver, 0);
    driver.keys(b"\r");
    let live = take(&mut driver, 1);
    assert!(live.contains("\u{1b}[H") && live.contains("q leave"));
    assert_eq!(take(&mut driver, 1500), "", "nothing changed");
    driver.keys(b"q");
    assert!(take(&mut driver, 1600).contains("live screen off"));
    driver.update(healthy(), None);
    assert!(!take(&mut driver, 9000).contains('\u{1b}'));
}

#[test]
fn line_noise_is_not_a_key_press() {
    let mut driver = driver();
    driver.keys(&[0, 0xff, 0x7f, 0x80]);
    assert_eq!(take(&mut driver, 0), "");
}

#[test]
fn the_log_is_followed_on_request() {
    let mut driver = driver();
    let record = |n: u64| LogRecord {
        boot_ms: n * 1000,
        time: None,
        level: "warn".into(),
        target: "net".into(),
        message: format!("record {n} \u{1b}[31m"),
    };
    driver.update(healthy(), Some(node()));
    (0..500).for_each(|n| driver.log(&record(n)));
    take(&mut driver, 0);
    driver.keys(b"l");
    let shown = take(&mut driver, 10);
    assert!(
        shown.contains("499.000 warn  net: record 499 ?[31m"),
        "{shown}"
    );
    driver.log(&record(500));
    assert_eq!(take(&mut driver, 20), "", "at most once a second");
    assert!(take(&mut driver, 1010).contains("record 500"));
    driver.keys(&[0x1b]);
    assert!(take(&mut driver, 1020).contains("[ok] node"));
}

#[test]
fn lines_said_meanwhile_start_on_a_line_of_their_own() {
    let mut driver = driver();
    driver.keys(b" ");
    take(&mut driver, 0);
    driver.say("alknet: powering off\u{7}");
    let output = take(&mut driver, 1);
    assert!(output.starts_with("\nalknet: powering off?\n"));
    assert!(output.contains("\u{1b}[H"), "the picture comes back");
}

#[test]
fn a_stuck_terminal_costs_a_bounded_number_of_lines() {
    let mut driver = driver();
    (0..10_000).for_each(|n| driver.say(&format!("line {n}")));
    let output = take(&mut driver, 0);
    assert_eq!(output.lines().count(), 256);
    assert!(output.contains("line 9999\n"));
}

/// How long a terminal may take to show something.
fn patience() -> Duration {
    deadline(Duration::from_secs(20))
}

/// Reads until `wanted` has come.
async fn read_until(reader: &mut tokio::fs::File, seen: &mut String, wanted: &str) {
    use tokio::io::AsyncReadExt;
    let mut chunk = vec![0; 4096];
    while !seen.contains(wanted) {
        let count = tokio::time::timeout(patience(), reader.read(&mut chunk)).await;
        let count = count.unwrap_or_else(|_| panic!("no {wanted:?} in {seen:?}"));
        let count = count.expect("the console lives");
        seen.push_str(&String::from_utf8_lossy(&chunk[..count]));
    }
}

#[tokio::test]
async fn a_terminal_gets_the_marker_and_answers_keys() {
    let pty = openpty(None, None).expect("a pseudo-terminal");
    let mut keyboard = std::fs::File::from(pty.master.try_clone().expect("a descriptor"));
    let mut reader = tokio::fs::File::from_std(std::fs::File::from(pty.master));
    let console = InitConsole::new(pty.slave, unknown_peer()).expect("a terminal");
    console.update(healthy(), Some(node()));
    let mut seen = String::new();
    read_until(&mut reader, &mut seen, "alknet: ready edge-1").await;
    assert!(!seen.contains('\u{1b}'));
    keyboard.write_all(b"l").expect("a keyboard");
    read_until(&mut reader, &mut seen, "q or Esc back").await;
    console.say("alknet: the end");
    read_until(&mut reader, &mut seen, "alknet: the end\r\n").await;
}

/// A user pastes a configuration right behind the last answer. The terminal forgets the keys of that answer later.
#[tokio::test]
async fn what_is_typed_right_behind_an_answer_arrives() {
    let line = ConsoleDocument::line(b"[node]\nname = \"edge-1\"\n");
    for _ in 0..8 {
        let pty = openpty(None, None).expect("a pseudo-terminal");
        let mut keyboard = std::fs::File::from(pty.master);
        let (answers, mut answered) = mpsc::channel(4);
        let console = InitConsole::new(pty.slave, answers).expect("a terminal");
        console.ask(Some(ConsoleQuestion::shown("word 3")));
        tokio::task::yield_now().await;
        keyboard.write_all(b"zoo\r").expect("a keyboard");
        let answer = tokio::time::timeout(patience(), answered.recv()).await;
        assert!(
            matches!(answer, Ok(Some(ConsoleInput::Line(_)))),
            "{answer:?}"
        );
        // The console sees both at once.
        console.ask(None);
        keyboard.write_all(line.as_bytes()).expect("a keyboard");
        keyboard.write_all(b"\r").expect("a keyboard");
        let pasted = tokio::time::timeout(patience(), answered.recv()).await;
        let Ok(Some(ConsoleInput::Pasted(pasted))) = pasted else {
            panic!("{pasted:?}");
        };
        assert!(ConsoleDocument::parse(&pasted).is_ok());
    }
}

#[tokio::test]
async fn no_writer_waits_for_a_terminal_that_takes_nothing() {
    let pty = openpty(None, None).expect("a pseudo-terminal");
    let console = InitConsole::new(pty.slave, unknown_peer()).expect("a terminal");
    for n in 0..2000 {
        console.say("x".repeat(200));
        console.update(healthy(), (n % 2 == 0).then(node));
        tokio::task::yield_now().await;
    }
    let mut reader = tokio::fs::File::from_std(std::fs::File::from(pty.master));
    let mut seen = String::new();
    read_until(&mut reader, &mut seen, "xxx").await;
}

#[tokio::test]
async fn a_console_that_is_a_file_is_written_too() {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    let fd = OwnedFd::from(file.reopen().expect("the same file"));
    let console = InitConsole::new(fd, unknown_peer()).expect("a file");
    console.say("alknet: hello");
    let written = async {
        let mut text = String::new();
        while !text.contains("alknet: hello\n") {
            tokio::time::sleep(Duration::from_millis(1)).await;
            text.clear();
            let mut file = file.reopen().expect("the same file");
            file.read_to_string(&mut text).expect("readable");
        }
    };
    let written = tokio::time::timeout(patience(), written).await;
    written.expect("it is written");
}
