//! Rollouts to workers of the tests' own.

mod replaced_bundles;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use alknet_test_support::deadline;

use super::bundle::tests::free;
use super::rollout::{
    RolloutError, RolloutReport, RolloutState, RolloutTurn, WorkerRow, read_report,
};
use super::worker::OFFERS_AGAIN_MAX;
use super::*;

/// What a worker does with the version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Behaviour {
    Confirms,
    /// It starts the version, and is back on the one before.
    ReturnsToOld,
    /// It never comes back.
    IsLost,
    /// PID 1 refuses the bundle by its signatures.
    Refuses,
    NeedsPin,
    /// Another caller has staged the same program there with a higher floor.
    HasHigherFloor,
    /// Its plan needs no person, and its start does.
    NeedsPinLater,
    /// Its configuration permits the start at another time of day.
    OutsideWindow,
    RunsItAlready,
    /// Its `[[join]]` does not let the hub offer.
    Closed,
    /// It runs on an ordinary host.
    IsHost,
    /// Each second piece is lost with the connection, once.
    LosesPieces,
    /// It takes the offer, and never answers to a piece.
    IsSilent,
    /// It wants another piece again and again.
    Circles,
    /// Another caller sends it a bundle, without end.
    IsBusy,
    /// The same, for a while.
    IsBusyOnce,
    /// So often a person at its console needs the media when it has the whole bundle.
    GivesUp(usize),
    /// It never answers to the start.
    StartsForEver,
}

#[derive(Debug, Default)]
struct ModelWorker {
    got: Vec<u8>,
    is_started: bool,
    /// The input of the call that started it.
    start: Value,
    has_lost: bool,
    /// How many bundles it has given up.
    given_up: usize,
    requests: usize,
}

impl ModelWorker {
    /// The session of its last offer.
    fn session(&self) -> String {
        format!("s{}", self.given_up + 1)
    }
}

/// Workers of a model, by their names.
struct ModelFleet {
    bytes: usize,
    behaviours: BTreeMap<PeerId, Behaviour>,
    workers: Mutex<BTreeMap<PeerId, ModelWorker>>,
    busy: AtomicUsize,
    most_busy: AtomicUsize,
}

const VERSION: &str = "1.1.0";
/// SHA-256 of its program.
const PROGRAM_SHA256: &str = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";

impl ModelFleet {
    fn new(bytes: usize, behaviours: impl Fn(usize) -> Behaviour, count: usize) -> Arc<Self> {
        let behaviours = (1..=count).map(|n| (worker(n), behaviours(n)));
        Arc::new(Self {
            bytes,
            behaviours: behaviours.collect(),
            workers: Mutex::default(),
            busy: AtomicUsize::new(0),
            most_busy: AtomicUsize::new(0),
        })
    }

    fn touched(&self) -> Vec<PeerId> {
        self.workers
            .lock()
            .expect("no panic")
            .keys()
            .cloned()
            .collect()
    }

    fn answer(&self, peer: &PeerId, operation: &str, input: &Value) -> Result<Value, CallError> {
        let behaviour = self.behaviours[peer];
        let mut workers = self.workers.lock().expect("no panic");
        let worker = workers.entry(peer.clone()).or_default();
        match operation {
            "update/offer" => match behaviour {
                Behaviour::Closed => Err(CallError::not_found(operation)),
                Behaviour::IsHost => {
                    let details = json!({ "code": "host" });
                    Err(CallError::unavailable("an ordinary host").with_details(details))
                }
                Behaviour::IsBusyOnce if worker.has_lost => {
                    self.busy.fetch_add(1, Ordering::SeqCst);
                    Ok(json!({ "wanted": true, "session": "s1", "bytes": self.bytes, "offset": 0 }))
                }
                Behaviour::IsBusy | Behaviour::IsBusyOnce => {
                    worker.has_lost = true;
                    let details = json!({ "code": "busy" });
                    Err(CallError::new(ErrorCode::Conflict, "another update").with_details(details))
                }
                Behaviour::RunsItAlready => {
                    Ok(json!({ "wanted": false, "reason": "1.1.0 runs already" }))
                }
                _ => {
                    let busy = self.busy.fetch_add(1, Ordering::SeqCst) + 1;
                    self.most_busy.fetch_max(busy, Ordering::SeqCst);
                    let session = worker.session();
                    Ok(
                        json!({ "wanted": true, "session": session, "bytes": self.bytes, "offset": 0 }),
                    )
                }
            },
            "update/write" if behaviour == Behaviour::Circles => {
                let other = u64::from(input["offset"] == 0);
                let details = json!({ "code": "offset", "offset": other });
                Err(CallError::new(ErrorCode::Conflict, "another piece").with_details(details))
            }
            "update/write" => {
                assert_eq!(input["session"], worker.session());
                if behaviour == Behaviour::LosesPieces && !worker.has_lost && !worker.got.is_empty()
                {
                    worker.has_lost = true;
                    return Err(CallError::unavailable("the connection is lost"));
                }
                self.write(worker, behaviour, input)
            }
            "update/apply" if behaviour == Behaviour::NeedsPinLater => {
                self.busy.fetch_sub(1, Ordering::SeqCst);
                let details = json!({ "code": "needs-person" });
                Err(CallError::new(ErrorCode::Forbidden, "a person").with_details(details))
            }
            "update/apply" if behaviour == Behaviour::OutsideWindow => {
                self.busy.fetch_sub(1, Ordering::SeqCst);
                let details = json!({ "code": "outside-window" });
                Err(CallError::new(ErrorCode::Conflict, "the window").with_details(details))
            }
            "update/apply" => {
                worker.is_started = true;
                worker.start = input.clone();
                Err(CallError::unavailable("the machine restarts"))
            }
            "update/status" => {
                worker.requests += 1;
                self.status(worker, behaviour)
            }
            other => panic!("the hub calls {other}"),
        }
    }

    fn write(
        &self,
        worker: &mut ModelWorker,
        behaviour: Behaviour,
        input: &Value,
    ) -> Result<Value, CallError> {
        let offset = input["offset"].as_u64().expect("an offset") as usize;
        let data = BASE64
            .decode(input["data"].as_str().expect("data").as_bytes())
            .expect("base64");
        assert_eq!(offset, worker.got.len());
        worker.got.extend(data);
        if worker.got.len() < self.bytes {
            return Ok(json!({ "offset": worker.got.len(), "plan": null }));
        }
        let needs = match behaviour {
            Behaviour::GivesUp(times) if worker.given_up < times => {
                self.busy.fetch_sub(1, Ordering::SeqCst);
                worker.given_up += 1;
                worker.got.clear();
                let details = json!({ "code": "aborted" });
                return Err(CallError::new(ErrorCode::Conflict, "the media").with_details(details));
            }
            Behaviour::Refuses => {
                self.busy.fetch_sub(1, Ordering::SeqCst);
                return Err(CallError::new(ErrorCode::Forbidden, "too few signatures"));
            }
            Behaviour::NeedsPin => {
                self.busy.fetch_sub(1, Ordering::SeqCst);
                json!("pin")
            }
            _ => Value::Null,
        };
        let mut plan = json!({
            "from": "1.0.0", "to": VERSION, "sha256": PROGRAM_SHA256, "needs_person": needs,
        });
        if behaviour == Behaviour::HasHigherFloor {
            plan["floor"] = json!(VERSION);
            plan["bundle_floor"] = json!("1.0.0");
            plan["agreed_floor"] = json!(VERSION);
        }
        Ok(json!({ "offset": self.bytes, "plan": plan }))
    }

    fn status(&self, worker: &ModelWorker, behaviour: Behaviour) -> Result<Value, CallError> {
        assert!(worker.is_started);
        let end = |outcome: &str| json!({ "version": VERSION, "outcome": outcome, "stage": "data", "reason": "no" });
        match (worker.requests, behaviour) {
            (_, Behaviour::IsLost) => Err(CallError::unavailable("the worker is not connected")),
            (1, _) => Err(CallError::unavailable("the worker is not connected")),
            (2, _) => Ok(json!({ "state": "trial", "version": VERSION, "last": null })),
            (_, Behaviour::ReturnsToOld) => {
                self.busy.fetch_sub(1, Ordering::SeqCst);
                Ok(json!({ "state": "failed", "version": "1.0.0", "last": end("failed") }))
            }
            _ => {
                self.busy.fetch_sub(1, Ordering::SeqCst);
                Ok(json!({ "state": "good", "version": VERSION, "last": end("confirmed") }))
            }
        }
    }
}

impl WorkerCaller for ModelFleet {
    fn call<'a>(
        &'a self,
        worker: &'a PeerId,
        operation: &'a str,
        input: Value,
    ) -> BoxFuture<'a, Result<Value, CallError>> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            let is_silent = match self.behaviours[worker] {
                Behaviour::IsSilent => operation == "update/write",
                Behaviour::StartsForEver => operation == "update/apply",
                _ => false,
            };
            if is_silent {
                std::future::pending::<()>().await;
            }
            self.answer(worker, operation, &input)
        })
    }
}

fn worker(n: usize) -> PeerId {
    format!("worker-{n:02}").parse().expect("a peer id")
}

/// A folder with a bundle, and what begins a rollout there.
struct RolloutBench {
    dir: tempfile::TempDir,
    bundle: Vec<u8>,
}

impl RolloutBench {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        // Of three pieces.
        let bundle = bundle::tests::unsigned(VERSION, &vec![5; 2 * PIECE_BYTES_MAX + 100]);
        let store = HubBundleStore::open(dir.path().to_owned());
        store.begin("admin", bundle.len() as u64).expect("a length");
        for (n, piece) in bundle.chunks(PIECE_BYTES_MAX).enumerate() {
            store
                .write("admin", (n * PIECE_BYTES_MAX) as u64, piece, free)
                .expect("a piece");
        }
        Self { dir, bundle }
    }

    fn fleet(&self, behaviours: impl Fn(usize) -> Behaviour, count: usize) -> Arc<ModelFleet> {
        ModelFleet::new(self.bundle.len(), behaviours, count)
    }

    fn begin(
        &self,
        rollouts: &Rollouts,
        fleet: &Arc<ModelFleet>,
        plan: RolloutPlan,
    ) -> Result<impl Future<Output = ()> + Send + use<>, RolloutError> {
        let store = HubBundleStore::open(self.dir.path().to_owned());
        let workers = fleet.behaviours.keys().cloned().collect();
        let calls = Arc::clone(fleet) as _;
        rollouts.begin(
            (&|| store.agreed_bundle(None), store.path()),
            workers,
            (plan, "admin".to_owned()),
            calls,
        )
    }

    async fn run(&self, fleet: &Arc<ModelFleet>, plan: RolloutPlan) -> RolloutReport {
        let rollouts = Rollouts::open(self.dir.path());
        self.begin(&rollouts, fleet, plan).expect("it begins").await;
        rollouts.report().expect("a report")
    }
}

fn plan(rings: &[RingSize], at_once: usize) -> RolloutPlan {
    RolloutPlan {
        rings: rings.to_vec(),
        at_once,
        // A worker that goes on has to end within it, also where the test gets little of the processor.
        limit: deadline(Duration::from_millis(300)),
        poll: Duration::from_millis(1),
    }
}

fn states(report: &RolloutReport) -> Vec<RolloutTurn> {
    report.workers.iter().map(|row| row.state).collect()
}

#[tokio::test]
async fn each_worker_gets_all_bytes_and_is_confirmed() {
    let bench = RolloutBench::new();
    let fleet = bench.fleet(|_| Behaviour::Confirms, 20);
    let rings = [RingSize::Workers(1), RingSize::Workers(5), RingSize::All];
    let report = bench.run(&fleet, plan(&rings, 4)).await;
    assert_eq!(report.state, RolloutState::Done, "{report:?}");
    assert_eq!(states(&report), [RolloutTurn::Confirmed; 20]);
    let rings: Vec<_> = report.workers.iter().map(|row| row.ring).collect();
    assert_eq!(rings, [&[1][..], &[2; 5], &[3; 14]].concat());
    let most = fleet.most_busy.load(Ordering::SeqCst);
    assert_eq!(most, 4, "as many at once as were asked for");
    let workers = fleet.workers.lock().expect("no panic");
    assert!(workers.values().all(|worker| worker.got == bench.bundle));
}

#[tokio::test]
async fn after_the_third_of_twenty_fails_the_rest_is_left_alone() {
    for third in [
        Behaviour::ReturnsToOld,
        Behaviour::IsLost,
        Behaviour::Refuses,
    ] {
        let bench = RolloutBench::new();
        let behaviour = |n| if n == 3 { third } else { Behaviour::Confirms };
        let fleet = bench.fleet(behaviour, 20);
        let rings = [RingSize::Workers(1), RingSize::Workers(2), RingSize::All];
        let report = bench.run(&fleet, plan(&rings, 2)).await;
        assert_eq!(report.state, RolloutState::Failed, "{third:?}");
        let expected = [
            &[RolloutTurn::Confirmed; 2][..],
            &[RolloutTurn::Failed],
            &[RolloutTurn::Waits; 17],
        ];
        assert_eq!(states(&report), expected.concat(), "{third:?}");
        assert_eq!(fleet.touched(), [worker(1), worker(2), worker(3)]);
        assert!(!report.workers[2].reason.is_empty());
    }
}

/// A worker that holds the update up fails when its time is over, and the update ends.
#[tokio::test]
async fn a_worker_that_takes_no_end_holds_nothing_up() {
    for slow in [
        Behaviour::IsSilent,
        Behaviour::Circles,
        Behaviour::IsBusy,
        Behaviour::StartsForEver,
    ] {
        let bench = RolloutBench::new();
        let fleet = bench.fleet(|n| if n == 2 { slow } else { Behaviour::Confirms }, 3);
        let report = bench.run(&fleet, plan(&[RingSize::Workers(2)], 2));
        let report = tokio::time::timeout(deadline(Duration::from_secs(30)), report);
        let report = report.await.expect("it ends");
        assert_eq!(report.state, RolloutState::Failed, "{slow:?}");
        let expected = [
            RolloutTurn::Confirmed,
            RolloutTurn::Failed,
            RolloutTurn::Waits,
        ];
        assert_eq!(states(&report), expected, "{slow:?}");
        assert!(report.workers[1].reason.contains(" within "), "{report:?}");
    }
}

#[tokio::test]
async fn a_worker_to_which_another_caller_sends_a_bundle_is_waited_for() {
    let bench = RolloutBench::new();
    let fleet = bench.fleet(|_| Behaviour::IsBusyOnce, 1);
    let report = bench.run(&fleet, plan(&[], 1)).await;
    assert_eq!(states(&report), [RolloutTurn::Confirmed], "{report:?}");
}

/// A person at a worker's console unlocks its vault from a stick while it gets the bundle. Without another offer the update
/// of all workers would end.
#[tokio::test]
async fn a_worker_whose_console_needs_the_media_is_offered_the_bundle_again() {
    for (times, expected) in [
        (1, RolloutTurn::Confirmed),
        (OFFERS_AGAIN_MAX, RolloutTurn::Confirmed),
        (usize::MAX, RolloutTurn::Failed),
    ] {
        let bench = RolloutBench::new();
        let fleet = bench.fleet(|_| Behaviour::GivesUp(times), 1);
        let plan = RolloutPlan {
            limit: deadline(Duration::from_secs(60)),
            ..plan(&[], 1)
        };
        let report = bench.run(&fleet, plan).await;
        assert_eq!(states(&report), [expected], "{report:?}");
        let workers = fleet.workers.lock().expect("no panic");
        let worker = workers.values().next().expect("it was asked");
        match expected {
            RolloutTurn::Confirmed => assert_eq!(worker.got, bench.bundle),
            _ => assert_eq!(worker.given_up, OFFERS_AGAIN_MAX + 1),
        }
    }
}

/// Any peer can serve `update/offer`. One that did not enrol as a worker gets no turn, and so cannot make the update fail.
#[test]
fn only_peers_that_enrolled_by_the_role_are_workers() {
    let entry = |n: usize, role: Option<&str>| {
        let mut entry = PeerEntry::new(worker(n));
        let label = role.map(|role| (ROLE_LABEL.to_owned(), role.to_owned()));
        entry.labels = label.into_iter().collect();
        entry
    };
    let peers = [
        entry(1, Some("worker")),
        entry(2, None),
        entry(3, Some("laptop")),
        entry(4, Some("worker")),
    ];
    // The fifth one is no peer any more.
    let serving = || (1..=5).map(worker).collect();
    assert_eq!(of_role(serving(), &peers, "worker"), [worker(1), worker(4)]);
    assert_eq!(of_role(serving(), &peers, "laptop"), [worker(3)]);
    assert_eq!(of_role(serving(), &peers, ""), [] as [PeerId; 0]);
}

#[tokio::test]
async fn a_worker_that_says_no_or_needs_a_person_is_no_failure() {
    let bench = RolloutBench::new();
    let behaviour = |n| match n {
        1 => Behaviour::Closed,
        2 => Behaviour::RunsItAlready,
        3 => Behaviour::NeedsPin,
        4 => Behaviour::IsHost,
        5 => Behaviour::NeedsPinLater,
        6 => Behaviour::OutsideWindow,
        _ => Behaviour::Confirms,
    };
    let fleet = bench.fleet(behaviour, 7);
    let report = bench.run(&fleet, plan(&[RingSize::All], 1)).await;
    assert_eq!(report.state, RolloutState::Done);
    let expected = [
        RolloutTurn::Skipped,
        RolloutTurn::Skipped,
        RolloutTurn::WaitsForPerson,
        RolloutTurn::Skipped,
        RolloutTurn::WaitsForPerson,
        RolloutTurn::WaitsForWindow,
        RolloutTurn::Confirmed,
    ];
    assert_eq!(states(&report), expected);
    let workers = fleet.workers.lock().expect("no panic");
    assert!(
        !workers[&worker(3)].is_started,
        "the vault would stay closed"
    );
}

#[tokio::test]
async fn a_piece_that_is_lost_is_sent_again() {
    let bench = RolloutBench::new();
    let fleet = bench.fleet(|_| Behaviour::LosesPieces, 1);
    let report = bench.run(&fleet, plan(&[], 1)).await;
    assert_eq!(states(&report), [RolloutTurn::Confirmed], "{report:?}");
    let workers = fleet.workers.lock().expect("no panic");
    assert_eq!(workers[&worker(1)].got, bench.bundle);
}

/// Another caller may stage another program on the worker before the call, or the same one with a higher floor. A worker of
/// an earlier version takes no agreement to a floor.
#[tokio::test]
async fn a_hub_starts_the_program_that_it_has_sent() {
    for (behaviour, expected) in [
        (Behaviour::Confirms, json!({ "sha256": PROGRAM_SHA256 })),
        (
            Behaviour::HasHigherFloor,
            json!({ "sha256": PROGRAM_SHA256, "agreed_floor": "1.0.0" }),
        ),
    ] {
        let bench = RolloutBench::new();
        let fleet = bench.fleet(|_| behaviour, 1);
        let report = bench.run(&fleet, plan(&[], 1)).await;
        assert_eq!(states(&report), [RolloutTurn::Confirmed], "{report:?}");
        let workers = fleet.workers.lock().expect("no panic");
        assert_eq!(workers[&worker(1)].start, expected);
    }
}

#[tokio::test]
async fn one_rollout_runs_at_a_time_and_stops_between_workers() {
    let bench = RolloutBench::new();
    let fleet = bench.fleet(|_| Behaviour::Confirms, 3);
    let rollouts = Rollouts::open(bench.dir.path());
    let work = bench
        .begin(&rollouts, &fleet, plan(&[], 1))
        .expect("it begins");
    let second = bench.begin(&rollouts, &fleet, plan(&[], 1)).err();
    assert_eq!(second, Some(RolloutError::Running));
    rollouts.stop();
    work.await;
    let report = rollouts.report().expect("a report");
    assert_eq!(report.state, RolloutState::Stopped);
    assert_eq!(states(&report), [RolloutTurn::Waits; 3]);
    let none = bench.fleet(|_| Behaviour::Confirms, 0);
    let refused = bench.begin(&rollouts, &none, plan(&[], 1)).err();
    assert_eq!(refused, Some(RolloutError::NoWorkers));
}

#[tokio::test]
async fn a_rollout_that_a_restart_cut_off_is_shown_and_not_continued() {
    let bench = RolloutBench::new();
    let fleet = bench.fleet(|_| Behaviour::Confirms, 3);
    let rollouts = Rollouts::open(bench.dir.path());
    // The hub ends before the first step.
    drop(
        bench
            .begin(&rollouts, &fleet, plan(&[], 1))
            .expect("it begins"),
    );
    let again = Rollouts::open(bench.dir.path());
    let report = again.report().expect("a report");
    assert_eq!(report.state, RolloutState::Interrupted);
    assert_eq!(report.workers.len(), 3);
    assert!(!again.is_running());
    assert_eq!(fleet.touched(), []);
    let work = bench
        .begin(&again, &fleet, plan(&[], 1))
        .expect("it begins");
    work.await;
    assert_eq!(again.report().expect("a report").state, RolloutState::Done);
}

#[test]
fn rings_are_numbers_or_all() {
    let input = json!({ "rings": [1, 5, "all"], "at_once": 2 });
    let start: StartInput = serde_json::from_value(input).expect("rings");
    let expected = [RingSize::Workers(1), RingSize::Workers(5), RingSize::All];
    assert_eq!(start.rings, expected);
    assert_eq!((start.at_once, start.limit_s), (2, LIMIT_S));
    assert_eq!(json!(start.rings), json!([1, 5, "all"]));
    let wrong = serde_json::from_value::<StartInput>(json!({ "rings": ["some"] }));
    assert!(wrong.is_err());
    let row: WorkerRow = serde_json::from_value(json!({
        "peer": "worker-01", "ring": 1, "state": "waits-for-person"
    }))
    .expect("a row");
    assert_eq!(row.state, RolloutTurn::WaitsForPerson);
}

/// What the first version stored of a rollout that ran, with members that a later version may add.
#[test]
fn the_first_format_of_a_rollout_is_read() {
    const SAMPLE: &str = r#"{"version":"1.2.0","by":"ada","state":"running","workers":[{"peer":"worker-1","ring":1,"state":"failed","reason":"it did not come back","later":1},{"peer":"worker-2","ring":2,"state":"waits-for-person"}],"later":1}"#;
    let folder = tempfile::tempdir().expect("a temporary directory");
    std::fs::write(folder.path().join("rollout.json"), SAMPLE).expect("writable");
    let row = |peer: &str, ring, state, reason: &str| WorkerRow {
        peer: peer.parse().expect("a name"),
        ring,
        state,
        reason: reason.to_owned(),
    };
    let expected = RolloutReport {
        version: "1.2.0".to_owned(),
        by: "ada".to_owned(),
        state: RolloutState::Interrupted,
        workers: vec![
            row("worker-1", 1, RolloutTurn::Failed, "it did not come back"),
            row("worker-2", 2, RolloutTurn::WaitsForPerson, ""),
        ],
    };
    assert_eq!(Rollouts::open(folder.path()).report(), Some(expected));
}

#[test]
fn a_report_that_cannot_be_read_is_no_missing_one() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let file = folder.path().join("rollout.json");
    assert_eq!(read_report(&file).expect("no rollout"), None);
    std::fs::write(&file, "{").expect("writable");
    read_report(&file).expect_err("it is damaged");
    assert_eq!(Rollouts::open(folder.path()).report(), None);
}
