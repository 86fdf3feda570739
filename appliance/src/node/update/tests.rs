//! The operations against a PID 1 of the tests' own.

mod agreed_floors;
mod attacks;
mod blocked_updates;
mod clients;
mod downloads;
mod ended_starts;
mod fake_init;
mod offers;
mod operations;
mod refused_starts;
mod scheduled_starts;
mod sessions;
mod stagers;
mod stateless;

use std::os::unix::net::UnixStream as StdStream;
use std::sync::atomic::Ordering;
use std::time::Duration;

use alknet_core::config::NodeConfig;
use alknet_core::{IdentityEntries, PeerAddr, PeerEntry, PeerKey};
use alknet_init::control::{
    InitMessage, MachineFacts, UpdateFacts, UpdatePlan, UpdateRecord, UpdateRequest, UpdateStager,
};
use alknet_update::AgreedFloor;
use arc_swap::ArcSwap;
use bytes::Bytes;
use tokio::net::UnixStream;
use tokio::sync::{Notify, mpsc};

use self::fake_init::{FakeInit, busy};
use super::auto::BY;
use super::scheduled_start::ScheduledStartStore;
use super::session::{StagingError, StagingRequest};
use super::*;

/// What PID 1 makes of the next bundle.
#[derive(Clone, Debug)]
enum Verdict {
    /// It reads all of it.
    Plans,
    /// The same of the program with this SHA-256.
    PlansOf(&'static str),
    /// The same of a release with this floor.
    PlansFloor(&'static str),
    /// The same of a release without a floor, after another caller has brought its program with this floor.
    PlansBelowFloor(&'static str),
    /// The same of this version, whose program has the SHA-256 `b2`.
    PlansVersion(&'static str),
    /// It reads all of it, and refuses a bundle that begins so with this code.
    Refuses(&'static [u8], &'static str),
    /// It refuses after so many bytes.
    RefusesAfter(u64),
    /// It knows what a dry run would do after so many bytes.
    PlansAfter(u64),
    /// It reads all of it, and then applies a delta until the node gives the bundle up.
    AppliesUntilGivenUp,
    /// It applies a delta, and reads nothing more until the node gives the bundle up.
    StallsUntilGivenUp,
    /// It reads all of it, and answers with the plan once the node gives the bundle up: it was staged already.
    StagedBeforeGivenUp,
    /// It reads all of it, stages this version, and says nothing even when the node gives the bundle up.
    Silent(&'static str),
    /// It stages this version when it has so many bytes, and answers when it has read the bundle to its end.
    StagesAfter(u64, &'static str),
}

impl Verdict {
    fn plan(&self) -> UpdatePlan {
        match self {
            Self::PlansOf(sha256) => UpdatePlan {
                sha256: (*sha256).to_owned(),
                ..plan()
            },
            Self::PlansFloor(floor) => UpdatePlan {
                floor: Some((*floor).to_owned()),
                bundle_floor: Some((*floor).to_owned()),
                ..plan()
            },
            Self::PlansBelowFloor(floor) => UpdatePlan {
                floor: Some((*floor).to_owned()),
                ..plan()
            },
            Self::PlansVersion(version) | Self::Silent(version) | Self::StagesAfter(_, version) => {
                UpdatePlan {
                    to: (*version).to_owned(),
                    sha256: sha256_of(version).to_owned(),
                    ..plan()
                }
            }
            _ => plan(),
        }
    }
}

/// SHA-256 of the program of this version.
fn sha256_of(version: &str) -> &'static str {
    match version {
        "1.1.0" => "a1",
        _ => "b2",
    }
}

/// What PID 1 has seen.
#[derive(Debug, Default)]
struct InitSeen {
    requests: Vec<(UpdateRequest, String)>,
    /// The bytes of each bundle, and whether it ended or was given up.
    bundles: Vec<(Vec<u8>, bool)>,
    frame_max: u32,
    /// What PID 1 has staged last.
    slot: Option<StagedSlot>,
    /// Whether the facts say what PID 1 has staged as soon as it has read the slots. Otherwise they say whose version it is,
    /// and a test says the rest.
    shows_slot: bool,
    /// Whether PID 1 does not come to read the slots, because there is another bundle after each one.
    has_no_look: bool,
    /// Holds back the next answer about the log, which says how it stood at the question, until a test notifies this.
    log_release: Option<Arc<Notify>>,
    /// The code with which PID 1 refuses a rollback.
    refuses_rollback: Option<&'static str>,
    /// The code with which PID 1 refuses a start.
    refuses_start: Option<&'static str>,
    /// Whether PID 1 has begun with a bundle and not ended it. It refuses a start meanwhile.
    is_staging: bool,
    /// Whether PID 1 works on each start without an end.
    keeps_starts: bool,
    /// SHA-256 of the program that waits, to which PID 1 compares that of a start. `None`: it starts any.
    waits: Option<&'static str>,
    /// To what the program that waits raises the floor, with which PID 1 compares the agreed floor of a start.
    raises: Option<&'static str>,
}

/// A version in the other slot.
#[derive(Clone, Debug)]
struct StagedSlot {
    version: String,
    sha256: String,
    stager: UpdateStager,
}

/// What the log says.
fn log_answer() -> UpdateAnswer {
    let record = UpdateRecord {
        event: "staged".to_owned(),
        version: "1.1.0".to_owned(),
        by: BY.to_owned(),
        ..UpdateRecord::default()
    };
    UpdateAnswer::Log {
        records: vec![record],
    }
}

/// Changes the facts. Tests and their PID 1 do so at the same time.
fn change_facts(facts: &SharedFacts, change: impl FnOnce(&mut MachineFacts)) {
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut changed = MachineFacts::clone(&facts.load());
    change(&mut changed);
    facts.store(Arc::new(changed));
}

/// PID 1 reads the slots, if it comes to this.
fn look_at_slots(seen: &Mutex<InitSeen>, facts: &SharedFacts) {
    let (slot, shows_slot, has_no_look) = {
        let seen = seen.lock().expect("no panic");
        (seen.slot.clone(), seen.shows_slot, seen.has_no_look)
    };
    if has_no_look {
        return;
    }
    change_facts(facts, |facts| {
        let update = &mut facts.update;
        update.outdated = false;
        if let Some(slot) = slot {
            update.staged_version = Some(slot.version.clone());
            update.stager = Some(slot.stager);
            if shows_slot {
                update.state = "staged".to_owned();
                update.other_version = Some(slot.version);
                update.other_sha256 = Some(slot.sha256);
            }
        }
    });
}

/// How long the node of the tests waits between two tries of a start.
const STEP: Duration = Duration::from_millis(20);

/// The system's clock, set forward by so many seconds.
#[derive(Default)]
struct ShiftedClock(AtomicU64);

impl Clock for ShiftedClock {
    fn now_s(&self) -> Option<u64> {
        let now = crate::node::clock().now_s()?;
        Some(now + self.0.load(Ordering::Relaxed))
    }
}

/// The clocks of a node in tests.
#[derive(Clone, Default)]
struct TestClocks {
    /// The one that time servers and people set.
    wall: Arc<ShiftedClock>,
    /// Seconds by which a test has let the time since the node's start pass faster.
    steady_s: Arc<AtomicU64>,
}

impl TestClocks {
    fn steady(&self) -> SteadyClock {
        let (began, passed) = (Instant::now(), Arc::clone(&self.steady_s));
        Arc::new(move || began.elapsed() + Duration::from_secs(passed.load(Ordering::Relaxed)))
    }
}

struct NodeUpdateBench {
    updates: NodeUpdates,
    clock: Arc<ShiftedClock>,
    clocks: TestClocks,
    /// The server that the node asks without TLS.
    plain: Option<PeerAddr>,
    seen: Arc<Mutex<InitSeen>>,
    verdict: Arc<Mutex<Verdict>>,
    facts: SharedFacts,
    identities: crate::node::IdentityServices,
    dir: tempfile::TempDir,
}

/// The agreement to a plan that does not raise the floor.
fn unchanged() -> Option<AgreedFloor> {
    Some(AgreedFloor::new(None))
}

fn plan() -> UpdatePlan {
    UpdatePlan {
        from: "1.0.0".to_owned(),
        to: "1.1.0".to_owned(),
        step: "upgrade".to_owned(),
        sha256: "a1".to_owned(),
        bytes: 9,
        ..UpdatePlan::default()
    }
}

impl NodeUpdateBench {
    fn new() -> Self {
        Self::with("", StagingPace::default(), None)
    }

    fn with(document: &str, pace: StagingPace, plain: Option<PeerAddr>) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let config = NodeConfig::parse(document.as_bytes()).expect("a correct document");
        let store = crate::node::store::open(dir.path());
        let (overlay, config_store) = (Default::default(), crate::node::ConfigStore::nowhere());
        let identity_services =
            crate::node::build_identity_services(&config, overlay, config_store, Vec::new(), store);
        let facts = MachineFacts {
            clock: "sntp".to_owned(),
            update: UpdateFacts {
                state: "idle".to_owned(),
                version: "1.0.0".to_owned(),
                ..UpdateFacts::default()
            },
            ..MachineFacts::default()
        };
        let facts: SharedFacts = Arc::new(ArcSwap::from_pointee(facts));
        identity_services.identities.replace_config(admins());
        let seen = Arc::default();
        let verdict = Arc::new(Mutex::new(Verdict::Plans));
        let init = (&seen, &verdict);
        let clocks = TestClocks::default();
        let services = (&identity_services, &clocks);
        Self {
            updates: start_updates(&dir, services, &facts, init, (pace, plain.clone())),
            clock: Arc::clone(&clocks.wall),
            clocks,
            plain,
            seen,
            verdict,
            facts,
            identities: identity_services,
            dir,
        }
    }

    /// Ends the node as a crash does, and starts it again on its folder.
    fn restart(&mut self) {
        self.updates.0.scheduled.end_for_tests();
        let init = (&self.seen, &self.verdict);
        let pace = (StagingPace::default(), self.plain.clone());
        let services = (&self.identities, &self.clocks);
        self.updates = start_updates(&self.dir, services, &self.facts, init, pace);
    }

    fn judge(&self, verdict: Verdict) {
        *self.verdict.lock().expect("no panic") = verdict;
    }

    fn set(&self, change: impl FnOnce(&mut MachineFacts)) {
        change_facts(&self.facts, change);
    }

    /// PID 1 names this caller as the one that has staged the version that waits.
    fn set_stager(&self, by: &str, limited: bool) {
        self.set(|facts| {
            facts.update.stager = Some(UpdateStager {
                by: by.to_owned(),
                limited,
            });
        });
    }

    fn bundles(&self) -> Vec<(Vec<u8>, bool)> {
        self.seen.lock().expect("no panic").bundles.clone()
    }

    fn requests(&self) -> Vec<(UpdateRequest, String)> {
        self.seen.lock().expect("no panic").requests.clone()
    }

    fn begin(&self, bytes: usize) -> String {
        let session = self.updates.0.sessions.begin(request(bytes), None);
        session.expect("it begins").id.clone()
    }

    async fn send(
        &self,
        id: &str,
        offset: usize,
        data: &[u8],
    ) -> Result<session::PieceTaken, StagingError> {
        let piece = (offset as u64, Bytes::copy_from_slice(data));
        self.updates.0.sessions.write((id, "ada"), piece).await
    }
}

/// The administrator of the tests, and no other identity.
fn admins() -> IdentityEntries {
    let admin = "admin".parse().expect("a peer id");
    IdentityEntries {
        admins: vec![(admin, PeerKey::Ed25519([1; 32]))],
        ..IdentityEntries::default()
    }
}

/// The administrator, and a peer with this id, these keys and these scopes.
fn admins_and(id: &str, keys: &[u8], scopes: &[&str]) -> IdentityEntries {
    let peer = PeerEntry {
        keys: keys.iter().map(|n| PeerKey::Ed25519([*n; 32])).collect(),
        scopes: scopes.iter().collect(),
        ..PeerEntry::new(id.parse().expect("a peer id"))
    };
    IdentityEntries {
        peers: vec![peer],
        ..admins()
    }
}

/// The updates of a node on this folder, with a PID 1 of their own.
fn start_updates(
    dir: &tempfile::TempDir,
    (services, clocks): (&crate::node::IdentityServices, &TestClocks),
    facts: &SharedFacts,
    (seen, verdict): (&Arc<Mutex<InitSeen>>, &Arc<Mutex<Verdict>>),
    (pace, plain): (StagingPace, Option<PeerAddr>),
) -> NodeUpdates {
    let (to_init, messages) = mpsc::channel(8);
    let (ours, theirs) = StdStream::pair().expect("sockets");
    theirs.set_nonblocking(true).expect("a socket");
    let context = UpdateContext {
        init: UpdateClient::new(Some(to_init), Some(UpdateStream::of_test(ours))),
        dialer: Arc::new(alknet_endpoint::EndpointDialer::new(None)),
        facts: Arc::clone(facts),
        reloader: Arc::clone(&services.reloader),
        identity: "ed25519:00".to_owned(),
        clock: Arc::clone(&clocks.wall) as _,
        identities: Arc::clone(&services.identities) as _,
        request_count: RequestCount::new(|| 0),
        state_dir: dir.path().to_owned(),
    };
    let mut downloader = BundleDownloader::new(Arc::clone(&context.dialer));
    if let Some(server) = plain {
        downloader = downloader.with_plain(server);
    }
    let scheduled = ScheduledStartStore::new(dir.path(), STEP);
    let updates = NodeUpdates::with(context, downloader, pace, (scheduled, clocks.steady()));
    let (to_work, work) = mpsc::channel(8);
    let front = refuse_while_staging(updates.0.init.clone(), Arc::clone(seen), messages, to_work);
    tokio::spawn(front);
    let init = FakeInit {
        init: updates.0.init.clone(),
        stream: UnixStream::from_std(theirs).expect("a socket"),
        seen: Arc::clone(seen),
        verdict: Arc::clone(verdict),
        facts: Arc::clone(facts),
    };
    tokio::spawn(init.run(work));
    updates
}

/// Refuses a start while a bundle is read, as PID 1 does beside its work, and passes on every other message. A question
/// about the log waits here if a test holds back its answer.
async fn refuse_while_staging(
    init: UpdateClient,
    seen: Arc<Mutex<InitSeen>>,
    mut messages: mpsc::Receiver<InitMessage>,
    work: mpsc::Sender<InitMessage>,
) {
    while let Some(message) = messages.recv().await {
        let refused = match &message {
            InitMessage::Update { n, request, by } => {
                let mut seen = seen.lock().expect("no panic");
                let is_start = matches!(request, UpdateRequest::Apply { .. });
                if is_start && seen.keeps_starts {
                    continue;
                }
                let code = seen.refuses_start.unwrap_or("busy");
                let refused = Some((*n, code)).filter(|_| is_start && seen.is_staging);
                if refused.is_some() {
                    seen.requests.push((request.clone(), by.clone()));
                }
                refused
            }
            _ => None,
        };
        if let Some((n, code)) = refused {
            init.answered(n, busy(code));
        } else if !answer_log_later(&init, &seen, &message) && work.send(message).await.is_err() {
            return;
        }
    }
}

/// Answers a question about the log once a test permits it. Returns whether this is such a question.
fn answer_log_later(init: &UpdateClient, seen: &Mutex<InitSeen>, message: &InitMessage) -> bool {
    let InitMessage::Update {
        n,
        request: UpdateRequest::Log,
        by,
    } = message
    else {
        return false;
    };
    let mut seen = seen.lock().expect("no panic");
    let Some(release) = seen.log_release.clone() else {
        return false;
    };
    seen.requests.push((UpdateRequest::Log, by.clone()));
    let (init, n, answer) = (init.clone(), *n, log_answer());
    tokio::spawn(async move {
        release.notified().await;
        init.answered(n, answer);
    });
    true
}

fn request(bytes: usize) -> StagingRequest {
    StagingRequest {
        owner: "ada".to_owned(),
        by: "ada".to_owned(),
        source: "upload".to_owned(),
        bytes: bytes as u64,
        downgrade: None,
        dry_run: false,
        unasked: false,
        other_source: false,
        limited: false,
        by_calls: true,
    }
}
