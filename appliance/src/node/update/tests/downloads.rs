//! Bundles that the node downloads.

use alknet_test_support::deadline;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::node::update::schedule::LOOK_PERIOD_S;
use crate::node::update::session::StagingOutcome;

/// A server that sends a file in parts of so many bytes, each over a connection of its own that then breaks.
pub(super) async fn breaking_server(
    file: &'static [u8],
    part: usize,
    has_ranges: bool,
) -> PeerAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        let mut most = part;
        loop {
            let (mut stream, _) = listener.accept().await.expect("a client");
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.expect("a request"));
            }
            let head = String::from_utf8(head).expect("text").to_lowercase();
            let from = head.split_once("range: bytes=").filter(|_| has_ranges);
            let from = from.map_or(0, |(_, it)| {
                it.split('-')
                    .next()
                    .map_or(0, |n| n.parse().expect("a number"))
            });
            let rest = &file[from..];
            let status = match from {
                0 => "200 OK".to_owned(),
                _ => format!(
                    "206 Partial Content\r\ncontent-range: bytes {from}-{}/{}",
                    file.len() - 1,
                    file.len()
                ),
            };
            let answer = format!(
                "HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n",
                rest.len()
            );
            stream.write_all(answer.as_bytes()).await.expect("a client");
            // Without ranges each answer gets a bit further.
            let bytes = if has_ranges { part } else { most };
            most += part;
            stream
                .write_all(&rest[..bytes.min(rest.len())])
                .await
                .expect("a client");
        }
    });
    address.to_string().parse().expect("an address")
}

pub(super) const FILE: &[u8] = b"the bytes of a bundle on a server, which come in several parts";

#[tokio::test(flavor = "multi_thread")]
async fn a_download_goes_on_after_each_broken_connection() {
    for has_ranges in [true, false] {
        let server = breaking_server(FILE, 7, has_ranges).await;
        let bench = NodeUpdateBench::with("", StagingPace::default(), Some(server.clone()));
        let request = stage::DownloadRequest {
            owner: "ada".to_owned(),
            by: "ada".to_owned(),
            origin: stage::DownloadOrigin::Address(format!("http://{server}/bundle.tar")),
            downgrade: Some("0.9.0".to_owned()),
            dry_run: false,
            whole: false,
            anywhere: true,
            unasked: false,
            limited: false,
            take_over: false,
        };
        let begun = bench.updates.fetch(request).await.expect("it begins");
        assert_eq!(begun.bytes, FILE.len() as u64);
        let outcome = bench.updates.0.sessions.outcome(begun.session).await;
        assert_eq!(outcome, StagingOutcome::Planned(plan()), "{has_ranges}");
        assert_eq!(bench.bundles(), [(FILE.to_vec(), true)], "{has_ranges}");
        let (stage, _) = bench.requests().remove(0);
        let UpdateRequest::Stage { downgrade, .. } = stage else {
            panic!("{stage:?}");
        };
        assert_eq!(downgrade.as_deref(), Some("0.9.0"));
    }
}

/// A secret in the address of a download, which others may see the state of.
#[tokio::test(flavor = "multi_thread")]
async fn the_query_of_an_address_is_not_shown() {
    let server = breaking_server(FILE, 1000, true).await;
    let bench = NodeUpdateBench::with("", StagingPace::default(), Some(server.clone()));
    let request = stage::DownloadRequest {
        owner: "ada".to_owned(),
        by: "ada".to_owned(),
        origin: stage::DownloadOrigin::Address(format!(
            "http://{server}/bundle.tar?token=hush#hush"
        )),
        downgrade: None,
        dry_run: false,
        whole: false,
        anywhere: true,
        unasked: false,
        limited: false,
        take_over: false,
    };
    let begun = bench.updates.fetch(request).await.expect("it begins");
    let shown = format!("http://{server}/bundle.tar");
    assert_eq!(
        (&begun.url, &begun.session.request.source),
        (&shown, &shown)
    );
    bench.updates.0.sessions.outcome(begun.session).await;
    let node = operations::UpdateCaller::new(&bench.updates);
    let status = node
        .call(operations::ADMIN, "update/status", Value::Null)
        .await;
    let status = status.expect("a status");
    assert_eq!(status["ended"]["source"], shown);
    assert!(!status.to_string().contains("hush"), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_may_stage_does_not_make_the_node_ask_its_local_network() {
    let server = breaking_server(FILE, 100, true).await;
    let bench = NodeUpdateBench::with("", StagingPace::default(), Some(server.clone()));
    let request = stage::DownloadRequest {
        owner: "ada".to_owned(),
        by: "ada".to_owned(),
        origin: stage::DownloadOrigin::Address(format!("http://{server}/bundle.tar")),
        downgrade: None,
        dry_run: false,
        whole: false,
        anywhere: false,
        unasked: false,
        limited: false,
        take_over: false,
    };
    let refused = bench.updates.fetch(request).await.err().expect("refused");
    assert_eq!(refused.code, ErrorCode::Unavailable, "{refused}");
    assert!(bench.requests().is_empty());
}

/// The whole way by itself: look at the channel, stage, start; and no start of what failed.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_follows_its_channel_by_itself() {
    let server = breaking_server(FILE, 1000, true).await;
    let document =
        "[update]\nurl = \"https://updates.example.org\"\nauto = \"apply\"\njitter = \"0s\"\n";
    let bench = NodeUpdateBench::with(document, StagingPace::default(), Some(server.clone()));
    // The configuration takes https only; the server of the test has no TLS.
    bench
        .updates
        .0
        .downloader
        .instead(format!("http://{server}/stable/bundle.tar"));
    bench.updates.act().await;
    let (look, by) = bench.requests().pop().expect("a look");
    assert!(
        matches!(look, UpdateRequest::Stage { dry_run: true, .. }),
        "{look:?}"
    );
    assert_eq!(by, "the machine");
    bench.updates.act().await;
    let (stage, _) = bench.requests().pop().expect("a stage");
    assert!(
        matches!(stage, UpdateRequest::Stage { dry_run: false, .. }),
        "{stage:?}"
    );
    bench.set(|facts| {
        facts.update.state = "staged".to_owned();
        facts.update.other_version = Some("1.1.0".to_owned());
        facts.update.outdated = true;
    });
    let count = bench.requests().len();
    bench.updates.act().await;
    assert_eq!(bench.requests().len(), count, "another one may be staged");
    bench.set(|facts| facts.update.outdated = false);
    bench.updates.act().await;
    assert_eq!(
        bench.requests().pop().expect("a start").0,
        UpdateRequest::Apply {
            sha256: Some(plan().sha256),
            agreed_floor: unchanged(),
            limited: true,
            unasked: true,
        }
    );
    let count = bench.requests().len();
    bench.set(|facts| {
        facts.update.last = Some(alknet_init::control::UpdateOutcome {
            version: "1.1.0".to_owned(),
            outcome: "failed".to_owned(),
            ..Default::default()
        });
    });
    bench.updates.act().await;
    assert_eq!(bench.requests().len(), count, "it is not tried again");
    let auto = bench.updates.auto_shown();
    assert_eq!(auto["next"], "failed-before");
    // PID 1 reports the failure, and the facts bring its report back: the node adds none, or they would alternate.
    assert!(bench.updates.problems().is_empty());
}

/// A machine that installs by itself what its channel has.
pub(super) async fn stable_follower() -> NodeUpdateBench {
    follower_of(&breaking_server(FILE, 1000, true).await)
}

/// The same with this server.
pub(super) fn follower_of(server: &PeerAddr) -> NodeUpdateBench {
    follower_with(server, "", StagingPace::default())
}

/// The same with more lines of `[update]`, and this pace.
pub(super) fn follower_with(server: &PeerAddr, more: &str, pace: StagingPace) -> NodeUpdateBench {
    let document = format!(
        "[update]\nurl = \"https://updates.example.org\"\nauto = \"apply\"\njitter = \"0s\"\n{more}"
    );
    let bench = NodeUpdateBench::with(&document, pace, Some(server.clone()));
    ask_instead(&bench, server);
    bench
}

/// The node asks this server in the place of every other one: the configuration takes https only, and the server of the
/// tests has no TLS.
pub(super) fn ask_instead(bench: &NodeUpdateBench, server: &PeerAddr) {
    let downloader = &bench.updates.0.downloader;
    downloader.instead(format!("http://{server}/stable/bundle.tar"));
}

/// The server of the channel `stable` has a bundle of `beta`, which the same keys have signed.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_installs_no_version_of_another_channel_by_itself() {
    let bench = stable_follower().await;
    bench.updates.act().await;
    bench.judge(Verdict::Refuses(b"the bytes", "other-channel"));
    bench.updates.act().await;
    let (stage, _) = bench.requests().pop().expect("a stage");
    let is_unasked = matches!(
        stage,
        UpdateRequest::Stage {
            unasked: true,
            dry_run: false,
            ..
        }
    );
    assert!(is_unasked, "{stage:?}");
    let count = bench.requests().len();
    bench.updates.act().await;
    assert_eq!(bench.requests().len(), count, "it waits for its next look");
    let auto = bench.updates.auto_shown();
    assert_eq!(auto["next"], "look");
    assert!(auto["error"].is_string(), "{auto}");
}

/// A channel with these files.
async fn channel_server(files: &'static [(&'static str, &'static [u8])]) -> PeerAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.expect("a client");
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.expect("a request"));
            }
            let head = String::from_utf8(head).expect("text");
            let file = files
                .iter()
                .find(|(name, _)| head.starts_with(&format!("GET /stable/{name} ")));
            let (status, content) = file.map_or(("404 Not Found", &b""[..]), |(_, content)| {
                ("200 OK", content)
            });
            let answer = format!(
                "HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n",
                content.len()
            );
            stream.write_all(answer.as_bytes()).await.expect("a client");
            stream.write_all(content).await.expect("a client");
        }
    });
    address.to_string().parse().expect("an address")
}

const DELTA: &[u8] = b"a bundle with a delta";
const CHANNEL: &[(&str, &[u8])] = &[("bundle.tar", FILE), ("from-ab12.tar", DELTA)];

/// A machine that runs this program, and is to follow a channel by itself.
async fn new_follower(running: Option<&str>) -> NodeUpdateBench {
    new_follower_with(running, StagingPace::default()).await
}

async fn new_follower_with(running: Option<&str>, pace: StagingPace) -> NodeUpdateBench {
    let server = channel_server(CHANNEL).await;
    let document =
        "[update]\nurl = \"https://updates.example.org\"\nauto = \"stage\"\njitter = \"0s\"\n";
    let bench = NodeUpdateBench::with(document, pace, Some(server.clone()));
    let downloader = &bench.updates.0.downloader;
    downloader.instead(format!("http://{server}/stable/"));
    bench.set(|facts| facts.update.running_sha256 = running.map(str::to_owned));
    bench
}

/// The same, and it has followed the channel: it has looked, and staged.
async fn follower(running: Option<&str>, verdict: Verdict) -> NodeUpdateBench {
    let bench = new_follower(running).await;
    bench.judge(verdict);
    bench.updates.act().await;
    bench.updates.act().await;
    bench
}

/// The bundles that PID 1 gets of such a machine.
async fn followed(running: Option<&str>, verdict: Verdict) -> Vec<&'static [u8]> {
    let bench = follower(running, verdict).await;
    let auto = bench.updates.auto_shown();
    assert_eq!(auto["error"], Value::Null, "{auto}");
    taken(&bench)
}

/// The bundles of the channel that PID 1 got.
fn taken(bench: &NodeUpdateBench) -> Vec<&'static [u8]> {
    let known = |bundle: &Vec<u8>| {
        let content = CHANNEL.iter().map(|(_, content)| *content);
        content.into_iter().find(|content| content == bundle)
    };
    let bundles = bench.bundles();
    bundles
        .iter()
        .map(|(bundle, _)| known(bundle).expect("of the channel"))
        .collect()
}

/// It looks at the whole bundle, because a delta may be left of an earlier release.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_takes_the_delta_that_starts_from_what_it_runs() {
    let took = followed(Some("ab12"), Verdict::Plans).await;
    assert_eq!(took, [FILE, DELTA]);
    assert_eq!(followed(Some("cd34"), Verdict::Plans).await, [FILE, FILE]);
    assert_eq!(followed(None, Verdict::Plans).await, [FILE, FILE]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_takes_the_whole_program_after_a_delta_that_does_not_fit() {
    // It does not fit, was damaged on its way, or was left of an earlier release.
    for code in ["other-base", "delta", "hash", "rollback"] {
        let took = followed(Some("ab12"), Verdict::Refuses(DELTA, code)).await;
        assert_eq!(took, [FILE, DELTA, FILE], "{code}");
    }
}

/// What is wrong with the release or the machine is so with the whole program as well.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_takes_no_whole_program_of_a_release_that_it_refuses() {
    let bench = follower(Some("ab12"), Verdict::Refuses(DELTA, "full")).await;
    let took: Vec<_> = bench.bundles().into_iter().map(|(it, _)| it).collect();
    assert_eq!(took, [FILE, DELTA]);
    assert_ne!(bench.updates.auto_shown()["error"], Value::Null);
}

/// PID 1 does not finish a delta, which the machine then would try every six hours for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_takes_the_whole_program_of_a_release_whose_delta_was_not_staged() {
    let is_refused = follower(Some("ab12"), Verdict::Refuses(DELTA, "failed")).await;
    let is_given_up = new_follower(Some("ab12")).await;
    is_given_up.updates.act().await;
    is_given_up.judge(Verdict::AppliesUntilGivenUp);
    let giving_up = async {
        while is_given_up.bundles().len() < 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let why = "PID 1 did not stage it".to_owned();
        is_given_up.updates.0.sessions.cancel(why).await
    };
    let both = async { tokio::join!(is_given_up.updates.act(), giving_up) };
    let both = tokio::time::timeout(deadline(Duration::from_secs(60)), both).await;
    let ((), is_cancelled) = both.expect("it ends");
    assert!(is_cancelled);
    for bench in [is_refused, is_given_up] {
        assert_eq!(taken(&bench), [FILE, DELTA]);
        assert_ne!(bench.updates.auto_shown()["error"], Value::Null);
        let later = |looks: i64| {
            let seconds = (looks * LOOK_PERIOD_S).unsigned_abs();
            bench.clock.0.store(seconds, Ordering::Relaxed);
        };
        // Each time it looks, and stages.
        later(1);
        bench.judge(Verdict::Plans);
        bench.updates.act().await;
        bench.updates.act().await;
        assert_eq!(taken(&bench)[2..], [FILE, FILE]);
        // The next release is another one.
        later(2);
        bench.judge(Verdict::PlansOf("b2"));
        bench.updates.act().await;
        bench.updates.act().await;
        assert_eq!(taken(&bench)[4..], [FILE, DELTA]);
        assert_eq!(bench.updates.auto_shown()["error"], Value::Null);
    }
}

/// The disk is too slow for the delta. The machine does not wait for its next look, and tries this delta once.
#[tokio::test(flavor = "multi_thread")]
async fn after_a_delta_that_pid_1_does_not_finish_the_whole_program_follows_ten_minutes_later() {
    let pace = StagingPace {
        answer: Duration::from_millis(20),
        ..StagingPace::default()
    };
    let bench = new_follower_with(Some("ab12"), pace).await;
    bench.judge(Verdict::AppliesUntilGivenUp);
    {
        let now = bench.updates.now_s().expect("the time");
        let steady = bench.updates.steady_now();
        let mut auto = bench.updates.auto();
        auto.note_look(now, steady);
        auto.found = Some(plan());
    }
    bench.updates.act().await;
    assert_eq!(taken(&bench), [DELTA]);
    bench.updates.act().await;
    assert_eq!(taken(&bench), [DELTA], "the pause is not over");
    bench.clocks.steady_s.fetch_add(600, Ordering::Relaxed);
    bench.updates.act().await;
    assert_eq!(taken(&bench), [DELTA, FILE]);
    // The whole program begins with the short pause: the delta says nothing about it.
    bench.clocks.steady_s.fetch_add(600, Ordering::Relaxed);
    bench.updates.act().await;
    assert_eq!(taken(&bench), [DELTA, FILE, FILE]);
}

/// Dashboards and hubs may read. Without a pause their checks would have the one session nearly all the time.
#[tokio::test(flavor = "multi_thread")]
async fn readers_have_the_channel_checked_once_a_minute() {
    let server = channel_server(CHANNEL).await;
    let document = "[update]\nurl = \"https://updates.example.org\"\n";
    let bench = NodeUpdateBench::with(document, StagingPace::default(), Some(server.clone()));
    let downloader = &bench.updates.0.downloader;
    downloader.instead(format!("http://{server}/stable/"));
    let node = operations::UpdateCaller::new(&bench.updates);
    let check = |who| node.call(who, "update/check", Value::Null);
    let readers: Vec<_> = (0..10).map(|n| format!("reader-{n}")).collect();
    let all = readers
        .iter()
        .map(|name| check((name.as_str(), &[READ_SCOPE][..])));
    let answers = futures_util::future::join_all(all).await;
    let first = answers[0].clone().expect("an answer");
    assert_eq!(first["plan"]["to"], "1.1.0");
    assert!(
        answers.iter().all(|it| it.as_ref() == Ok(&first)),
        "{answers:?}"
    );
    assert_eq!(bench.requests().len(), 1);
    // A caller that may stage asks each time.
    for expected in [2, 3] {
        let stager = ("stager", &[STAGE_SCOPE][..]);
        check(stager).await.expect("an answer");
        assert_eq!(bench.requests().len(), expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_administrator_may_ask_for_the_whole_program() {
    let server = channel_server(CHANNEL).await;
    let document = "[update]\nurl = \"https://updates.example.org\"\n";
    let bench = NodeUpdateBench::with(document, StagingPace::default(), Some(server.clone()));
    let downloader = &bench.updates.0.downloader;
    downloader.instead(format!("http://{server}/stable/"));
    bench.set(|facts| facts.update.running_sha256 = Some("ab12".to_owned()));
    let node = operations::UpdateCaller::new(&bench.updates);
    for (input, bytes) in [
        (json!({}), DELTA.len()),
        (json!({ "whole": true }), FILE.len()),
    ] {
        let begun = node.call(operations::ADMIN, "update/stage", input).await;
        assert_eq!(begun.expect("it begins")["bytes"], bytes);
        let session = bench.updates.0.sessions.current();
        if let Some(session) = session {
            bench.updates.0.sessions.outcome(session).await;
        } else {
            assert_eq!(bench.bundles().last().map(|it| it.0.len()), Some(bytes));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_may_name_another_channel_than_the_configuration() {
    let server = channel_server(CHANNEL).await;
    let document = "[update]\nurl = \"https://updates.example.org/alknet\"\n";
    let bench = NodeUpdateBench::with(document, StagingPace::default(), Some(server.clone()));
    let downloader = &bench.updates.0.downloader;
    downloader.instead(format!("http://{server}/stable/"));
    let node = operations::UpdateCaller::new(&bench.updates);
    let call = |name, input| node.call(operations::ADMIN, name, input);
    for (input, channel) in [
        (json!({}), "stable"),
        (json!({ "channel": "beta" }), "beta"),
        (json!({ "channel": "stable" }), "stable"),
    ] {
        call("update/stage", input).await.expect("it begins");
        if let Some(session) = bench.updates.0.sessions.current() {
            bench.updates.0.sessions.outcome(session).await;
        }
        let status = call("update/status", Value::Null).await.expect("a status");
        let address = format!("https://updates.example.org/alknet/{channel}/bundle.tar");
        assert_eq!(status["ended"]["source"], address, "{status}");
        let (stage, _) = bench.requests().pop().expect("a request");
        let UpdateRequest::Stage { other_source, .. } = stage else {
            panic!("{stage:?}");
        };
        assert_eq!(other_source, channel == "beta", "{status}");
    }
    for input in [
        json!({ "channel": "nightly" }),
        json!({ "channel": "beta", "bytes": 100 }),
        json!({ "channel": "beta", "url": "https://updates.example.org/b.tar" }),
    ] {
        let refused = call("update/stage", input.clone()).await;
        let refused = refused.expect_err("it is refused");
        assert_eq!(refused.code, ErrorCode::InvalidInput, "{input}: {refused}");
    }
}
