//! Authorities that are away, overwhelmed or tired of being asked, by a clock that a test sets.

use alknet_core::BoxFuture;
use rustls::pki_types::CertificateDer;
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::fake::{ACCOUNT, DIRECTORY, FakeCa, FakeCaBehavior, NAME, ORDER, WINDOW};
use super::*;
use crate::diagnostics::NodeDiagnostic;
use crate::pair::tests::{NOW, PairTestCa};

const HOUR_S: u64 = 3_600;
const DAY_S: u64 = 86_400;

const LIMITED: &str =
    r#"{"type":"urn:ietf:params:acme:error:rateLimited","detail":"too many orders"}"#;
const BROKEN: &str = r#"{"type":"urn:ietf:params:acme:error:serverInternal","detail":"broken"}"#;

/// How long anything may take before a test calls it hung.
const HUNG: Duration = Duration::from_secs(60);

/// What time it is, and until when its only sleeper sleeps.
#[derive(Clone, Copy)]
struct ManualClockState {
    now: u64,
    until: Option<u64>,
}

/// A clock that stands still while anything is done, and then goes to the next time at which something is
/// due.
struct AcmeManualClock(watch::Sender<ManualClockState>);

impl AcmeClock for AcmeManualClock {
    fn now(&self) -> u64 {
        self.0.borrow().now
    }

    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()> {
        let until = self.now() + time.as_secs();
        self.0.send_modify(|tick| tick.until = Some(until));
        let mut seen = self.0.subscribe();
        Box::pin(async move {
            let woken = seen.wait_for(|tick| tick.now >= until).await;
            woken.expect("the clock outlives the node");
        })
    }
}

impl AcmeManualClock {
    /// Forgets the sleep of the node before, which was stopped.
    fn wake(&self) {
        self.0.send_modify(|tick| tick.until = None);
    }

    /// Lets that time come, and everything happen that is due until then.
    async fn until(&self, end: u64) {
        let mut seen = self.0.subscribe();
        loop {
            let asleep = seen.wait_for(|tick| tick.until.is_some());
            let asleep = timeout(HUNG, asleep).await;
            let asleep = *asleep.expect("it sleeps again").expect("a clock");
            let due = asleep.until.filter(|due| *due <= end);
            self.0.send_replace(match due {
                Some(now) => ManualClockState { now, until: None },
                None => ManualClockState { now: end, ..asleep },
            });
            if due.is_none() {
                return;
            }
        }
    }
}

/// A node with a certificate in hand, and its authority.
struct AcmeBackoffTest {
    authority: Arc<FakeCa>,
    clock: Arc<AcmeManualClock>,
    store: Arc<CertificateStore>,
    problems: Arc<NodeDiagnostics>,
    state: TempDir,
    first: CertificateDer<'static>,
}

impl AcmeBackoffTest {
    /// It is [`NOW`].
    fn new() -> Self {
        let now = ManualClockState {
            now: NOW,
            until: None,
        };
        let clock = Arc::new(AcmeManualClock(watch::Sender::new(now)));
        let store = Arc::new(CertificateStore::default());
        let first = PairTestCa::new("another").pair(&[NAME]);
        let shown = first.certified().cert[0].clone();
        store.put(CertificateSource::Acme, first);
        Self {
            authority: FakeCa::new(Arc::clone(&clock) as _),
            clock,
            store,
            problems: Arc::default(),
            state: tempfile::tempdir().expect("a directory"),
            first: shown,
        }
    }

    fn refusing(at: &'static str, status: u16, after: Option<&str>, body: &'static str) -> Self {
        let scene = Self::new();
        scene.authority.is(FakeCaBehavior::Refuses {
            at,
            status,
            retry_after: after.map(str::to_owned),
            body,
        });
        scene
    }

    fn start(&self) -> (AcmeHandle, JoinHandle<()>) {
        let options = AcmeOptions {
            directory: format!("https://authority.example{DIRECTORY}"),
            contact: Vec::new(),
            names: vec![NAME.to_owned()],
            challenge: None,
            profile: None,
            state_dir: self.state.path().to_owned(),
            clock_floor: NOW,
        };
        let authority = Arc::clone(&self.authority);
        let parts = fake::parts(authority, &self.store, &self.problems);
        let mut acme = Acme::new(options, parts).expect("good options");
        acme.clock = Arc::clone(&self.clock) as _;
        self.clock.wake();
        (acme.handle(), tokio::spawn(acme.run()))
    }

    /// Lets the time come that is so long after the beginning, and everything that is due until then happen.
    async fn until(&self, seconds: u64) {
        self.clock.until(NOW + seconds).await;
    }

    /// What was asked for at this path or below it, in seconds since the beginning.
    fn requests(&self, path: &str) -> Vec<u64> {
        let mut requests = self.authority.requests(path);
        requests.iter_mut().for_each(|at| *at -= NOW);
        requests
    }

    fn shown(&self) -> CertificateDer<'static> {
        let pair = self
            .store
            .pair(CertificateSource::Acme)
            .expect("one is served");
        pair.certified().cert[0].clone()
    }

    fn problem(&self) -> Option<NodeDiagnostic> {
        let list = self.problems.list();
        assert!(list.len() <= 1, "{list:?}");
        list.into_iter().next()
    }

    /// The certificate before is served, and it is said what is wrong.
    fn goes_on(&self, word: &str) {
        assert_eq!(self.shown(), self.first);
        let problem = self.problem().expect("something is wrong");
        assert_eq!((problem.code, &*problem.subject), (ACME_FAILED, NAME));
        assert!(problem.text.contains(word), "{problem}");
    }

    fn is_served_again(&self) {
        assert_ne!(self.shown(), self.first);
        assert_eq!(self.problem(), None);
    }
}

#[tokio::test]
async fn an_authority_that_is_away_for_an_hour_gives_as_soon_as_it_is_asked_again() {
    let scene = AcmeBackoffTest::new();
    scene.authority.is(FakeCaBehavior::Away);
    let (_handle, running) = scene.start();
    scene.until(HOUR_S).await;
    let expected = [0, 60, 180, 420, 900, 1_860];
    assert_eq!(scene.requests("/"), expected, "the pause doubles");
    scene.goes_on("no server answers there");

    scene.authority.is(FakeCaBehavior::Gives);
    scene.until(3_779).await;
    assert_eq!(scene.requests("/"), expected);
    scene.goes_on("no server answers there");
    scene.until(3_781).await;
    assert_eq!(scene.requests(DIRECTORY)[expected.len()], 3_780);
    scene.is_served_again();
    running.abort();
}

/// An authority that cannot be asked for an order gave none: what counts is only the pause, which ends at a day.
#[tokio::test]
async fn an_authority_that_is_away_for_a_month_is_asked_once_a_day() {
    let scene = AcmeBackoffTest::new();
    scene.authority.is(FakeCaBehavior::Away);
    let (_handle, running) = scene.start();
    scene.until(30 * DAY_S).await;
    let expected = scene.requests("/");
    let pauses: Vec<u64> = expected.windows(2).map(|two| two[1] - two[0]).collect();
    assert_eq!(pauses[..4], [60, 120, 240, 480]);
    let doubles = |two: &[u64]| two[1] == (2 * two[0]).min(BACK_OFF_MAX_S);
    assert!(pauses.windows(2).all(doubles), "{pauses:?}");
    assert_eq!(pauses.last(), Some(&BACK_OFF_MAX_S));
    scene.goes_on("no server answers there");
    running.abort();
}

/// Over restarts, and however often the operator asks.
#[tokio::test]
async fn no_name_is_ordered_more_than_five_times_a_day() {
    let scene = AcmeBackoffTest::refusing(ORDER, 500, None, BROKEN);
    for life in 1..=72 {
        let (handle, running) = scene.start();
        handle.renew();
        scene.until(life * HOUR_S).await;
        running.abort();
    }
    let orders = scene.requests(ORDER);
    assert_eq!(orders[..5], [0, 60, 180, 420, 900]);
    for first in &orders {
        let day = *first..first + DAY_S;
        let day = orders.iter().filter(|at| day.contains(at)).count();
        assert!(day <= ORDERS_PER_DAY_MAX, "{orders:?}");
    }
    assert!(orders.len() > ORDERS_PER_DAY_MAX, "it never gives up");
    scene.goes_on("broken");
}

/// An authority that says until when it wants to be left alone is not asked before, whatever it was asked for: neither
/// because the usual pause is over, nor because the operator asks, nor by a node that was started again.
#[tokio::test]
async fn an_authority_is_not_asked_before_its_retry_after() {
    const ALONE_S: u64 = 7_200;
    // Two hours after the time of the tests.
    let date = "Thu, 01 Jan 2026 02:00:00 GMT";
    let seconds = "7200";
    for (at, status, after, body, word) in [
        (ORDER, 429, seconds, LIMITED, "too many orders"),
        (ORDER, 429, date, LIMITED, "too many orders"),
        (ORDER, 503, seconds, "<html>", "503"),
        (ACCOUNT, 429, seconds, LIMITED, "too many orders"),
        (ACCOUNT, 503, date, BROKEN, "broken"),
        (DIRECTORY, 429, seconds, LIMITED, "too many orders"),
        (DIRECTORY, 503, seconds, "<html>", "503"),
    ] {
        let what = format!("{at} {status} {after}");
        let scene = AcmeBackoffTest::refusing(at, status, Some(after), body);
        let (_handle, running) = scene.start();
        scene.until(ALONE_S / 2).await;
        running.abort();
        let (handle, running) = scene.start();
        handle.renew();
        scene.until(ALONE_S - 1).await;
        assert!(scene.requests("/").iter().all(|at| *at == 0), "{what}");
        assert_eq!(scene.requests(at).len(), 1, "{what}");
        scene.goes_on(word);
        scene.goes_on("left alone for 7200 s");

        scene.authority.is(FakeCaBehavior::Gives);
        scene.until(ALONE_S + 1).await;
        let again = scene.requests("/").into_iter().find(|at| *at > 0);
        assert_eq!(again, Some(ALONE_S), "{what}");
        scene.is_served_again();
        running.abort();
    }
}

#[tokio::test]
async fn too_many_orders_pause_for_an_hour_without_retry_after() {
    let scene = AcmeBackoffTest::refusing(ORDER, 403, None, LIMITED);
    let (_handle, running) = scene.start();
    scene.until(2 * RATE_LIMITED_S - 1).await;
    assert_eq!(scene.requests(ORDER), [0, RATE_LIMITED_S]);
    scene.goes_on("too many orders");
    running.abort();
}

#[tokio::test]
async fn an_authority_that_is_overwhelmed_and_says_no_more_gets_the_usual_pause() {
    let scene = AcmeBackoffTest::refusing(ORDER, 503, None, "<html>");
    let (_handle, running) = scene.start();
    scene.until(100).await;
    assert_eq!(scene.requests(ORDER), [0, 60]);
    scene.goes_on("it answers 503");
    scene.authority.is(FakeCaBehavior::Gives);
    scene.until(181).await;
    scene.is_served_again();
    running.abort();
}

/// When it would like a renewal is asked for like everything else: not while it is to be left alone. What
/// it gave is served meanwhile, and nothing is wrong.
#[tokio::test]
async fn renewal_windows_are_not_asked_before_retry_after() {
    let scene = AcmeBackoffTest::refusing(WINDOW, 429, Some("7200"), LIMITED);
    let (_handle, running) = scene.start();
    scene.until(7_000).await;
    let served = scene.shown();
    scene.is_served_again();
    let first = scene.requests(WINDOW);
    assert_eq!(first.len(), 1, "{first:?}");
    scene.until(first[0] + 7_199).await;
    assert_eq!(scene.requests(WINDOW), first);
    // It is asked again within the longest sleep, and refuses again.
    scene
        .until(first[0] + 7_200 + 2 * SLEEP_MAX.as_secs())
        .await;
    assert_eq!(scene.requests(WINDOW).len(), 2);
    assert_eq!(scene.requests("/finalize").len(), 1);
    assert_eq!((scene.shown(), scene.problem()), (served, None));
    running.abort();
}
