//! slowhttptest: slow heads, bodies and readers, and very many ranges. Meanwhile others are served
//! from another network, and the attack has no more connections than one network may.

use std::fs::File;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use alknet_test_support::deadline;
use alknet_tests::{TestBench, WebNode, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{GROWTH_BYTES, resident};

/// How many connections an attack tries to have: more than one network may, even with a token.
const WANTED: &str = "150";

/// Connections that the unknown peers of one network may have (docs/endpoint.md).
const PER_NETWORK: u64 = 64;

/// Known peers' connection slots for one token. Further connections count as unknown peers'.
const PER_TOKEN: u64 = 64;

/// Longest duration of an attack, in whole seconds. Everything that a limit ends, ends long before.
fn lasts() -> String {
    deadline(Duration::from_secs(150)).as_secs().to_string()
}

/// Its message after the server has ended all connections.
const ALL_ENDED: &str = "No open connections left";

/// curl options for another network: another address of this host.
const OTHERS: [&str; 3] = ["--http2", "--interface", "127.0.1.1"];

/// How long the tool runs at a time. After one of its connections has ended, it polls the kernel
/// without a pause, and uses a whole processor for the few bytes per second that it sends. So it is
/// stopped between two checks of the test, 50 ms apart on an idle host. The attack's pauses are
/// seconds, so a stop this short does not weaken it. It runs all the time while others send
/// requests.
const WORKS: Duration = Duration::from_millis(10);
/// The same while it opens its connections, fifty per second, each with a handshake.
const WORKS_OPENING: Duration = Duration::from_millis(50);
/// How long it opens them, on an idle machine.
const OPENING: Duration = Duration::from_secs(6);

/// Whether the attackers run to their end or the server ends them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AttackEnd {
    Server,
    Either,
}

/// The running tool. It is ended on drop.
struct SlowAttack<'a> {
    web: &'a WebNode,
    tool: Child,
    before: u64,
    /// How many connections it may have.
    may: u64,
    /// Most connections that were seen at once.
    most: u64,
    /// Whether it is stopped between two checks of the test.
    pauses: bool,
    begun: Instant,
}

impl<'a> SlowAttack<'a> {
    fn begin(bench: &TestBench, web: &'a WebNode, path: &str, arguments: &[&str]) -> Self {
        let output = bench.path().join("slowhttptest.txt");
        let output = File::create(output).expect("the folder is ours");
        let tool = Command::new("slowhttptest")
            .args(arguments)
            .args(["-c", WANTED, "-r", "50", "-p", "5", "-u", &web.url(path)])
            .stdout(output)
            .stderr(Stdio::null())
            .current_dir(bench.path())
            .spawn();
        Self {
            before: resident(web),
            web,
            tool: tool.expect("`cargo xtask test` installs slowhttptest"),
            may: PER_NETWORK,
            most: 0,
            pauses: true,
            begun: Instant::now(),
        }
    }

    /// The attacker has a valid token.
    fn by_token(mut self) -> Self {
        self.may = PER_NETWORK + PER_TOKEN;
        self
    }

    /// The attack sends as fast as it can.
    fn without_pause(mut self) -> Self {
        self.pauses = false;
        self
    }

    /// Lets the tool run during `work`, and at least for a moment.
    fn goes_on_while(&mut self, done: impl FnOnce(&mut Self)) {
        if !self.pauses {
            return done(self);
        }
        let works = match self.begun.elapsed() < deadline(OPENING) {
            true => WORKS_OPENING,
            false => WORKS,
        };
        self.signal(Signal::SIGCONT);
        let since = Instant::now();
        done(self);
        std::thread::sleep(works.saturating_sub(since.elapsed()));
        self.signal(Signal::SIGSTOP);
    }

    /// The process was not waited for yet, so its number is not reused.
    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.tool.id().cast_signed());
        kill(pid, signal).expect("it is our child");
    }

    /// Serves others, within bounds.
    fn survives(&mut self) {
        let told = self.web.curl("/healthz", &OTHERS);
        assert_eq!(told.status, 200, "{told:?}");
        // A connection that gives its slot to another one is counted until it has ended completely,
        // and only connections with a slot can do that. So there are never twice as many.
        let may = self.may;
        let now = eventually("those that gave their places away have ended", || {
            let now = connections(self.web);
            assert!(now < 2 * may, "{now} connections, not {may}");
            (now <= may).then_some(now)
        });
        self.most = self.most.max(now);
        let (before, now) = (self.before, resident(self.web));
        assert!(now < before + GROWTH_BYTES, "{before} became {now}");
    }

    /// Watches it to its end, and returns the most connections that it had. Others send a request
    /// every second, each with a program.
    fn ends(mut self, bench: &TestBench, end: AttackEnd) -> u64 {
        let mut next = Instant::now();
        eventually("the attack ends", || {
            if Instant::now() >= next {
                self.goes_on_while(Self::survives);
                next = Instant::now() + Duration::from_secs(1);
            } else {
                self.goes_on_while(|_| {});
            }
            self.tool.try_wait().expect("it is our child")
        });
        let text = std::fs::read(bench.path().join("slowhttptest.txt"));
        let text = String::from_utf8_lossy(&text.expect("it was written")).into_owned();
        assert!(text.contains("Exit status"), "{text}");
        if end == AttackEnd::Server {
            assert!(text.contains(ALL_ENDED), "{text}");
        }
        eventually("the node forgets them", || {
            (connections(self.web) == 0).then_some(())
        });
        self.survives();
        self.most
    }
}

impl Drop for SlowAttack<'_> {
    fn drop(&mut self) {
        let _ = self.tool.kill();
        let _ = self.tool.wait();
    }
}

/// HTTP/1.1 connections, which only the tool has here.
fn connections(web: &WebNode) -> u64 {
    let told = web.curl_as(&web.admin, "/metrics", &OTHERS);
    assert_eq!(told.status, 200, "{told:?}");
    let text = told.text();
    let lines = text.lines().filter(|line| {
        line.starts_with("alknet_connections{") && line.contains("alpn=\"http/1.1\"")
    });
    let number = |line: &str| line.rsplit(' ').next()?.parse::<u64>().ok();
    lines.filter_map(number).sum()
}

/// A node with a file, which the node streams and does not keep in memory.
fn with_a_file(bench: &TestBench) -> WebNode {
    let folder = bench.path().join("www");
    std::fs::create_dir(&folder).expect("the folder is ours");
    std::fs::write(folder.join("large.bin"), vec![7; 4 << 20]).expect("room");
    WebNode::start(bench, &format!("[http]\nsite = \"{}\"\n", folder.display()))
}

#[test]
fn slow_heads_are_ended_and_others_are_served() {
    let bench = TestBench::new();
    let web = WebNode::start(&bench, "");
    let lasts = lasts();
    let arguments = ["-H", "-i", "2", "-x", "10", "-l", &lasts];
    let mut attack = SlowAttack::begin(&bench, &web, "/healthz", &arguments);
    eventually("it has connections", || {
        attack.goes_on_while(SlowAttack::survives);
        (attack.most > 8).then_some(())
    });
    attack.ends(&bench, AttackEnd::Server);
}

#[test]
fn slow_bodies_are_ended_and_others_are_served() {
    let bench = TestBench::new();
    let web = WebNode::start(&bench, "");
    let known = format!("application/json\r\nAuthorization: Bearer {}", web.reader);
    let form = "application/x-www-form-urlencoded";
    let lasts = lasts();
    let attack = |path: &str, kind: &str, pause: &str| {
        let body = ["-B", "-i", pause, "-x", "10", "-s", "9000", "-f", kind];
        let arguments = [&body[..], &["-l", &lasts]].concat();
        SlowAttack::begin(&bench, &web, path, &arguments)
    };
    // From a client without rights, so the node need not read its body.
    attack("/call", "application/json", "1").ends(&bench, AttackEnd::Server);
    // From a client with rights: it takes slots of known peers, and slots of unknown peers after
    // its token has no more.
    let most = attack("/call", &known, "1").by_token();
    let most = most.ends(&bench, AttackEnd::Server);
    assert!(
        most > PER_NETWORK,
        "{most} connections: the attack was none"
    );
    // A form, which any client may send: so slowly that it is still within the limit when the
    // attack is over.
    let most = attack("/status/enter", form, "10").ends(&bench, AttackEnd::Server);
    assert!(
        most > PER_NETWORK / 2,
        "{most} connections: the attack was none"
    );
}

#[test]
fn ranges_without_number_cost_little() {
    let bench = TestBench::new();
    let web = with_a_file(&bench);
    for method in ["HEAD", "GET"] {
        let arguments = ["-R", "-a", "5", "-b", "2000", "-t", method, "-l", "20"];
        let attack = SlowAttack::begin(&bench, &web, "/large.bin", &arguments).without_pause();
        attack.ends(&bench, AttackEnd::Either);
    }
}

/// The node ends a slow reader, but only after longer than this attack lasts, because an answer may
/// take some time. Until then the reader costs a bounded number of connections and each
/// connection's buffer for its answer.
#[test]
fn slow_readers_cost_little_and_others_are_served() {
    let bench = TestBench::new();
    let web = with_a_file(&bench);
    let reads = ["-X", "-n", "1", "-z", "32", "-w", "512", "-y", "1024"];
    let arguments = [&reads[..], &["-k", "3", "-l", "20"]].concat();
    SlowAttack::begin(&bench, &web, "/large.bin", &arguments).ends(&bench, AttackEnd::Either);
}
