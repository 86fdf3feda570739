//! The operations against a PID 1 of the tests' own.

mod agreed_floors;
mod attacks;
mod blocked_updates;
mod clients;
mod downloads;
mod ended_starts;
mod offers;
mod operations;
mod refused_starts;
mod scheduled_starts;
mod sessions;
mod stateless;

use std::io;
use std::os::unix::net::UnixStream as StdStream;
use std::sync::atomic::Ordering;
use std::time::Duration;

use alknet_core::config::NodeConfig;
use alknet_core::{IdentityEntries, PeerAddr, PeerEntry, PeerKey};
use alknet_init::control::{
    InitMessage, MachineFacts, UPDATE_FRAME_ABORT, UpdateFacts, UpdatePlan, UpdateRecord,
    UpdateRequest,
};
use alknet_update::{AgreedFloor, ReleaseVersion};
use arc_swap::ArcSwap;
use bytes::Bytes;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::sync::{Notify, mpsc};

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
    /// It reads all of it, and says nothing even when the node gives the bundle up.
    Silent,
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
            Self::PlansVersion(version) => UpdatePlan {
                to: (*version).to_owned(),
                sha256: "b2".to_owned(),
                ..plan()
            },
            _ => plan(),
        }
    }
}

/// What PID 1 has seen.
#[derive(Debug, Default)]
struct InitSeen {
    requests: Vec<(UpdateRequest, String)>,
    /// The bytes of each bundle, and whether it ended or was given up.
    bundles: Vec<(Vec<u8>, bool)>,
    frame_max: u32,
    /// Who staged the last version, by the log. Empty: the machine itself.
    stager: String,
    /// Whether the log says that this caller may not start versions.
    stager_limited: bool,
    /// Whether PID 1 keeps no log, as on a stateless machine.
    keeps_no_log: bool,
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

impl InitSeen {
    /// What the log says of the version that was staged last.
    fn log_answer(&self) -> UpdateAnswer {
        let by = Some(self.stager.clone()).filter(|by| !by.is_empty());
        let record = UpdateRecord {
            event: "staged".to_owned(),
            version: "1.1.0".to_owned(),
            by: by.unwrap_or_else(|| BY.to_owned()),
            limited: self.stager_limited,
            ..UpdateRecord::default()
        };
        let records = match self.keeps_no_log {
            true => Vec::new(),
            false => vec![record],
        };
        UpdateAnswer::Log { records }
    }
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
        let mut facts = MachineFacts::clone(&self.facts.load());
        change(&mut facts);
        self.facts.store(Arc::new(facts));
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
    let (init, n, answer) = (init.clone(), *n, seen.log_answer());
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
    }
}

/// PID 1, as far as the node sees it.
struct FakeInit {
    init: UpdateClient,
    stream: UnixStream,
    seen: Arc<Mutex<InitSeen>>,
    verdict: Arc<Mutex<Verdict>>,
}

impl FakeInit {
    async fn run(mut self, mut messages: mpsc::Receiver<InitMessage>) {
        while let Some(message) = messages.recv().await {
            let (n, request, by) = match message {
                InitMessage::Update { n, request, by } => (n, request, by),
                // The frames say the same a moment later.
                InitMessage::GiveUpBundle { .. } => continue,
                other => panic!("the node sends {other:?}"),
            };
            {
                let mut seen = self.seen.lock().expect("no panic");
                seen.is_staging = matches!(request, UpdateRequest::Stage { .. });
                seen.requests.push((request.clone(), by));
            }
            match request {
                UpdateRequest::Stage { .. } => {
                    let verdict = self.verdict.lock().expect("no panic").clone();
                    if let Verdict::StallsUntilGivenUp = verdict {
                        given_up(&mut messages, n).await;
                    }
                    self.read(n, verdict, &mut messages).await.expect("frames");
                }
                UpdateRequest::Log => {
                    let answer = self.seen.lock().expect("no panic").log_answer();
                    self.init.answered(n, answer);
                }
                UpdateRequest::Unscheduled { .. } => self.init.answered(n, UpdateAnswer::Done),
                UpdateRequest::Confirm => {
                    let (code, text) = ("no-trial".to_owned(), "no version is on trial".to_owned());
                    self.init.answered(n, UpdateAnswer::Refused { code, text });
                }
                UpdateRequest::Rollback { .. } => {
                    let refused = self.seen.lock().expect("no panic").refuses_rollback;
                    let answer = refused.map_or(UpdateAnswer::Done, busy);
                    self.init.answered(n, answer);
                }
                UpdateRequest::Apply {
                    sha256,
                    agreed_floor,
                    ..
                } => {
                    let answer = self.start_answer(sha256, agreed_floor);
                    self.init.answered(n, answer);
                }
            }
        }
    }

    fn start_answer(&self, sha256: Option<String>, agreed: Option<AgreedFloor>) -> UpdateAnswer {
        let seen = self.seen.lock().expect("no panic");
        let floor = |floor: &str| floor.parse::<ReleaseVersion>().expect("a version");
        let raised = seen.raises.map(floor);
        let is_raised = agreed.is_some_and(|agreed| !agreed.permits(raised.as_ref()));
        let is_other = sha256.is_some_and(|it| seen.waits.is_some_and(|waits| waits != it));
        match seen.refuses_start {
            Some(code) => busy(code),
            None if is_other => UpdateAnswer::Refused {
                code: "other-staged".to_owned(),
                text: "another program waits".to_owned(),
            },
            None if is_raised => UpdateAnswer::Refused {
                code: "floor-raised".to_owned(),
                text: "the floor is a higher one".to_owned(),
            },
            None => UpdateAnswer::Done,
        }
    }

    fn see_frame(&self, length: u32) {
        let mut seen = self.seen.lock().expect("no panic");
        seen.frame_max = seen.frame_max.max(length);
    }

    /// Reads one bundle to its end, whatever it says of it meanwhile.
    async fn read(
        &mut self,
        n: u64,
        verdict: Verdict,
        messages: &mut mpsc::Receiver<InitMessage>,
    ) -> io::Result<()> {
        let (mut bundle, mut has_answered) = (Vec::new(), false);
        let is_whole = loop {
            let length = self.stream.read_u32().await?;
            match length {
                0 => break true,
                UPDATE_FRAME_ABORT => break false,
                _ => {}
            }
            let mut frame = vec![0; length as usize];
            self.stream.read_exact(&mut frame).await?;
            bundle.extend(frame);
            self.see_frame(length);
            let answer = match verdict {
                Verdict::RefusesAfter(bytes) if bundle.len() as u64 >= bytes => Some(refusal()),
                Verdict::PlansAfter(bytes) if bundle.len() as u64 >= bytes => {
                    Some(UpdateAnswer::Planned { plan: plan() })
                }
                _ => None,
            };
            if let Some(answer) = answer.filter(|_| !has_answered) {
                has_answered = true;
                self.init.answered(n, answer);
            }
        };
        let refused = match verdict {
            Verdict::Refuses(begin, code) if bundle.starts_with(begin) => Some(code),
            _ => None,
        };
        {
            let mut seen = self.seen.lock().expect("no panic");
            seen.is_staging = false;
            seen.bundles.push((bundle, is_whole));
        }
        if let Verdict::AppliesUntilGivenUp | Verdict::StagedBeforeGivenUp | Verdict::Silent =
            verdict
        {
            given_up(messages, n).await;
        }
        if let Verdict::Silent = verdict {
            return Ok(());
        }
        let is_aborted = matches!(verdict, Verdict::AppliesUntilGivenUp);
        if !has_answered {
            let answer = match (is_whole && !is_aborted, refused) {
                (true, Some(code)) => UpdateAnswer::Refused {
                    code: code.to_owned(),
                    text: "this bundle is of no use here".to_owned(),
                },
                (true, None) => UpdateAnswer::Planned {
                    plan: verdict.plan(),
                },
                (false, _) => UpdateAnswer::Refused {
                    code: "given-up".to_owned(),
                    text: "the node gave it up".to_owned(),
                },
            };
            self.init.answered(n, answer);
        }
        Ok(())
    }
}

/// Waits until the node gives up the bundle of its request `n`.
async fn given_up(messages: &mut mpsc::Receiver<InitMessage>, n: u64) {
    let message = messages.recv().await;
    assert_eq!(message, Some(InitMessage::GiveUpBundle { n }));
}

/// A refusal with this code by a PID 1 that has other work.
fn busy(code: &str) -> UpdateAnswer {
    UpdateAnswer::Refused {
        code: code.to_owned(),
        text: "another request is under way".to_owned(),
    }
}

fn refusal() -> UpdateAnswer {
    UpdateAnswer::Refused {
        code: "signature".to_owned(),
        text: "too few keys have signed".to_owned(),
    }
}
