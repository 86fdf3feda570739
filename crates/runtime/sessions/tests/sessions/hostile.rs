//! Scripts that mean no good: each ends with its code, and a session of another tenant answers all
//! the while.

mod table;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use alknet_runtime::{RuntimeCode, SessionMode};
use alknet_sessions::limits::WALL_MAX_ONE_SHOT;
use alknet_sessions::{ScriptSession, SessionSpec};
use alknet_test_support::{deadline, is_campaign};
use alknet_worker::WorkerEndReason;
use alknet_worker::limits::{DEATH_WITHIN, LINGER};
use serde_json::json;

use crate::support::{SessionLab, SessionTestRequest, export, main, soon, spec_of, until};
use table::{CaseEnd, HostileCase, cases};

/// Runs in the long campaign (`cargo xtask soak hostile`), and in a run of the tests.
const SOAK_RUNS: usize = 10_000;
const RUNS: usize = 1_000;
/// How many of them at once, each of a tenant of its own.
const SOAK_LANES: usize = 4;

/// How often the node is weighed meanwhile.
const PARTS: usize = 5;

/// What a campaign permits of workers that did not stop at a limit: of a hundred, so many may be gone later than
/// promised, and none later than this.
#[derive(Clone, Copy, Debug)]
struct Lateness {
    percent: u64,
    longest: Duration,
}

/// One script at a time.
const ALONE: Lateness = Lateness {
    percent: 10,
    longest: Duration::from_millis(100),
};
/// As many as [`SOAK_LANES`] on two processors: a worker that was killed waits for a processor to end on.
const BESIDE_OTHERS: Lateness = Lateness {
    percent: 12,
    longest: Duration::from_millis(300),
};

/// What the cases are run with.
#[derive(Clone, Copy)]
struct HostileLimits {
    /// Processor time of those that end by it: what nothing inside stops is killed after it.
    cpu: Duration,
    /// Wall-clock time of those that end by that.
    wall: Duration,
    /// Heap of those that end by that.
    heap_bytes: usize,
}

/// Once each. What grows without end does so with a quarter of a session's heap as with all of it, in a quarter of the
/// time.
const ONCE: HostileLimits = HostileLimits {
    cpu: Duration::from_millis(100),
    wall: Duration::from_millis(100),
    heap_bytes: 16 << 20,
};
/// Over and over: what a case does with more of it, it does with little.
const OVER_AND_OVER: HostileLimits = HostileLimits {
    cpu: Duration::from_millis(30),
    wall: Duration::from_millis(30),
    heap_bytes: 64 << 20,
};
/// What no case reaches: only one limit is near in each.
const FAR: Duration = Duration::from_secs(110);
const FAR_TICKS: u64 = 10_000_000;
const FAR_HEAP_BYTES: usize = 64 << 20;

/// Cases that compute for a tenth of a second or longer before they end in the way of many others: at their fuel, at
/// their stack, or by an exception. In the short form they run in the first round only: with two more of their kind, which
/// run with the others, they took nine tenths of its time.
const LONG: [&str; 10] = [
    "a chain that feeds itself",
    "a deep array as text",
    "a deep array flattened",
    "a proxy of a proxy",
    "a thenable of itself",
    "an async loop",
    "for await of nothing new",
    "for in over a proxy that lies",
    "repeated BigInt squaring",
    "self-feeding promise chain",
];

fn hostile(case: &HostileCase, tenant: &str, limits: HostileLimits) -> SessionSpec {
    let mut spec = spec_of(tenant, &case.source);
    let runtime = &mut spec.limits.runtime;
    runtime.fuel_ticks = FAR_TICKS;
    runtime.cpu = FAR;
    runtime.heap_bytes = FAR_HEAP_BYTES;
    spec.limits.wall = deadline(FAR).min(WALL_MAX_ONE_SHOT);
    match case.kind {
        CaseEnd::Fuel | CaseEnd::FuelOfAnother => runtime.fuel_ticks = 50,
        CaseEnd::Memory => runtime.heap_bytes = limits.heap_bytes,
        CaseEnd::Time => runtime.cpu = limits.cpu,
        CaseEnd::Wall => spec.limits.wall = limits.wall,
        _ => {}
    }
    spec
}

/// The code that a case ends with, if it ends with one: all limits but its own are far away.
fn codes(kind: CaseEnd) -> Vec<RuntimeCode> {
    match kind {
        CaseEnd::Fuel => vec![RuntimeCode::Fuel],
        CaseEnd::FuelOfAnother => vec![RuntimeCode::Fuel, RuntimeCode::WorkerLost],
        CaseEnd::Harmless => vec![],
        CaseEnd::Memory => vec![RuntimeCode::Memory],
        CaseEnd::Refused(code) => vec![code],
        CaseEnd::Stack => vec![RuntimeCode::Stack],
        CaseEnd::Time | CaseEnd::Wall => vec![RuntimeCode::Timeout],
    }
}

async fn pongs(witness: &ScriptSession, request: &SessionTestRequest, what: &str) {
    let pong = soon(witness.run(&request.env(), export("ping", json!(what)))).await;
    let pong = pong.unwrap_or_else(|failure| panic!("{what}: {failure}"));
    assert_eq!(pong.value, json!(["pong", what]));
}

/// What came of a case, if it is not what should have come.
async fn case_failure(
    lab: &SessionLab,
    request: &SessionTestRequest,
    witness: &ScriptSession,
    case: &HostileCase,
    spec: SessionSpec,
) -> Option<String> {
    let env = request.env();
    let session = match lab.sessions.open(&env, spec).await {
        Ok(session) => session,
        Err(failure) => return Some(format!("{}: not opened: {failure}", case.name)),
    };
    let runs = soon(session.run(&env, main()));
    // While it runs, and after.
    let (ended, ()) = tokio::join!(runs, pongs(witness, request, case.name));
    pongs(witness, request, case.name).await;
    match (ended, case.kind) {
        (Ok(_), CaseEnd::Harmless) => None,
        (Err(failure), kind) if codes(kind).contains(&failure.code) => None,
        (ended, kind) => {
            let ended = ended.map(|ran| ran.value);
            Some(format!("{}: expected {kind:?}: {ended:?}", case.name))
        }
    }
}

async fn witness(lab: &SessionLab, request: &SessionTestRequest) -> ScriptSession {
    let mut witness = spec_of("witness", "export const ping = (what) => ['pong', what]");
    witness.mode = SessionMode::Service;
    let witness = lab.open(request, witness).await;
    pongs(&witness, request, "before").await;
    witness
}

/// No case brought its worker down. How many were ended from outside.
fn ended_well(lab: &SessionLab) -> u64 {
    let ended = lab.sessions.workers().stats().ended;
    let count = |reason: WorkerEndReason| ended.get(&reason).copied().unwrap_or_default();
    let bad = [
        WorkerEndReason::Crash,
        WorkerEndReason::Violation,
        WorkerEndReason::Exit,
        WorkerEndReason::Protocol,
        WorkerEndReason::Flood,
    ];
    assert!(bad.iter().all(|reason| count(*reason) == 0), "{ended:?}");
    count(WorkerEndReason::Cpu) + count(WorkerEndReason::Wall)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_case_ends_with_its_code_while_others_are_served() {
    let lab = SessionLab::new();
    let request = lab.request().await;
    let witness = witness(&lab, &request).await;
    let cases = cases();
    let names: BTreeMap<_, _> = cases.iter().map(|case| (case.name, case.kind)).collect();
    assert_eq!(names.len(), cases.len(), "every name once");
    assert!(cases.len() >= 110, "{}", cases.len());
    let mut all = Vec::new();
    for case in &cases {
        let spec = hostile(case, "hostile", ONCE);
        all.extend(case_failure(&lab, &request, &witness, case, spec).await);
    }
    assert!(
        all.is_empty(),
        "{} of {}:\n{}",
        all.len(),
        cases.len(),
        all.join("\n")
    );
    assert!(ended_well(&lab) > 0, "native loops end from outside only");
    deaths(&lab, "one at a time", ALONE);
}

/// Says how soon workers that did not stop at a limit were gone; in a campaign, holds it against what is permitted.
fn deaths(lab: &SessionLab, how: &str, permitted: Lateness) {
    let deaths = lab.sessions.workers().stats().deaths;
    let late = format!(
        "{} workers did not stop at a limit; {} were gone later than {DEATH_WITHIN:?} after it, without waits for a \
         processor, and with them the last after {:.1} ms",
        deaths.count,
        deaths.late,
        deaths.longest.as_secs_f64() * 1e3
    );
    println!("figure hostile scripts, {how}: {late}");
    assert!(deaths.count > 0, "none had to be killed");
    if is_campaign() {
        let in_time = deaths.late * 100 <= deaths.count * permitted.percent;
        let all = deaths.longest <= deadline(permitted.longest);
        assert!(in_time && all, "{late}, where {permitted:?} is permitted");
    }
}

/// What this process, which is the node, holds.
#[derive(Clone, Copy, Debug)]
struct ProcessUsage {
    /// MiB that it allocated and has not freed.
    allocated: f64,
    /// MiB of anonymous and shared memory behind it, of which the allocator keeps some for later.
    resident: f64,
    /// Descriptors: sockets and processes of workers, and memory that values travel in.
    descriptors: usize,
}

/// What the node may allocate and keep while the corpus runs over and over, MiB, in the long campaign and in a run of the
/// tests: some 100 bytes a script and 500. In the campaign it was 0.3 MiB. A session that is forgotten holds more.
const SOAK_GROWTH_MIB: f64 = 1.0;
const GROWTH_MIB: f64 = 0.5;
/// How long what was let go may take to be freed.
const SETTLES_WITHIN: Duration = Duration::from_secs(5);
/// What the allocator may keep beside that, MiB.
const RESIDENT_MIB: f64 = 12.0;
/// Descriptors of workers that wait for their tenant's next session: three for each lane of the last rounds.
const DESCRIPTORS: usize = 3 * SOAK_LANES * (PARTS + 2);

/// Set for the process in which the memory of the node alone is measured.
const MEASURED: &str = "ALKNET_TEST_MEASURED";
/// The test's name in libtest.
const MEASURED_TEST: &str = "hostile::hostile_scripts_leave_nothing_behind";

/// Runs the test alone in a process of its own, where no other test allocates.
fn measured_elsewhere() {
    let here = std::env::current_exe().expect("a test program");
    let mut child = std::process::Command::new(here);
    child.args(["--exact", MEASURED_TEST, "--nocapture"]);
    let ended = child.env(MEASURED, "1").output().expect("it starts");
    let said = String::from_utf8_lossy(&ended.stdout);
    // Its count of tests is not one of this process.
    for line in said.lines().filter(|line| !line.starts_with("test ")) {
        println!("{line}");
    }
    let diagnostic = String::from_utf8_lossy(&ended.stderr);
    let has_run = ended.status.success() && said.contains("1 passed");
    assert!(has_run, "{}: {diagnostic}", ended.status);
}

impl ProcessUsage {
    fn now() -> Self {
        // SAFETY: it takes nothing and answers with numbers.
        let info = unsafe { libc::mallinfo2() };
        let allocated = (info.uordblks + info.hblkhd) as f64 / (1 << 20) as f64;
        let text = std::fs::read_to_string("/proc/self/status").expect("the kernel tells");
        let kib = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok());
            kib.expect("it is a number")
        };
        let descriptors = std::fs::read_dir("/proc/self/fd").expect("the kernel tells");
        Self {
            allocated,
            resident: (kib("RssAnon:") + kib("RssShmem:")) / 1024.0,
            descriptors: descriptors.count(),
        }
    }
}

/// The corpus over and over: nothing that one run leaves behind in the node may stay. In a run of the tests it is
/// what ends soon, as often as it takes for little from each to be seen, and what takes [`LONG`] once before.
#[tokio::test(flavor = "multi_thread")]
async fn hostile_scripts_leave_nothing_behind() {
    if std::env::var_os(MEASURED).is_none() {
        return measured_elsewhere();
    }
    let full = is_campaign();
    let lab = Arc::new(SessionLab::new());
    let request = Arc::new(lab.request().await);
    let witness = Arc::new(witness(&lab, &request).await);
    let mut cases = cases();
    if !full {
        cases.retain(|case| {
            matches!(
                case.kind,
                CaseEnd::Fuel | CaseEnd::Refused(_) | CaseEnd::Stack
            )
        });
    }
    let (cases, round) = (Arc::new(cases), AtomicUsize::new(0));
    let is_short = |case: &&HostileCase| full || !LONG.contains(&case.name);
    let again: Arc<Vec<HostileCase>> = Arc::new(cases.iter().filter(is_short).cloned().collect());
    assert!(full || again.len() + LONG.len() == cases.len(), "a name");
    let runs = if full { SOAK_RUNS } else { RUNS };
    let wrongs = async |cases: &Arc<Vec<HostileCase>>, runs: usize| {
        let round = round.fetch_add(1, Ordering::Relaxed);
        let next = Arc::new(AtomicUsize::new(0));
        let lane = |lane: usize| {
            let (lab, request, witness) = (lab.clone(), request.clone(), witness.clone());
            let (cases, next) = (cases.clone(), next.clone());
            tokio::spawn(async move {
                let (tenant, mut all) = (format!("hostile-{round}-{lane}"), Vec::new());
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    if at >= runs {
                        return all;
                    }
                    let case = &cases[at % cases.len()];
                    let spec = hostile(case, &tenant, OVER_AND_OVER);
                    all.extend(case_failure(&lab, &request, &witness, case, spec).await);
                }
            })
        };
        let lanes: Vec<_> = (0..SOAK_LANES).map(lane).collect();
        let mut all = Vec::new();
        for lane in lanes {
            all.extend(lane.await.expect("no panic"));
        }
        all
    };
    // The first round fills what stays: threads, tables, the allocator's own.
    let mut all = wrongs(&cases, cases.len()).await;
    // What the last ones hold is not kept: they may still be on their way out.
    let gone = || {
        until("only the witness is left", || {
            lab.sessions.list().len() == 1
        })
    };
    gone().await;
    let (mut memory, begun) = (vec![ProcessUsage::now()], Instant::now());
    for part in 0..PARTS {
        all.extend(wrongs(&again, runs * (part + 1) / PARTS - runs * part / PARTS).await);
        gone().await;
        memory.push(ProcessUsage::now());
        println!("{} runs: {memory:.2?} MiB", runs * (part + 1) / PARTS);
    }
    let took = begun.elapsed();
    println!(
        "figure hostile scripts: {runs} runs in {:.0} s, {} ended otherwise than they should",
        took.as_secs_f64(),
        all.len()
    );
    if full {
        deaths(&lab, &format!("{SOAK_LANES} at a time"), BESIDE_OTHERS);
    }
    println!("figure the node's memory before, and after each part of the runs: {memory:.2?} MiB");
    let before = memory[0];
    let most = if full { SOAK_GROWTH_MIB } else { GROWTH_MIB };
    // A session leaves the list before the last values of its scripts are freed, which may be megabytes. A worker that
    // no session took ends later.
    let (mut after, patience) = (memory[PARTS], deadline(LINGER + SETTLES_WITHIN));
    let stays = |after: &ProcessUsage| {
        after.allocated - before.allocated >= most
            || after.descriptors >= before.descriptors + DESCRIPTORS
    };
    let since = Instant::now();
    while stays(&after) && since.elapsed() < patience {
        tokio::time::sleep(SETTLES_WITHIN / 100).await;
        after = ProcessUsage::now();
    }
    let grown = after.allocated - before.allocated;
    assert!(grown < most, "{grown:.2} MiB stay: {memory:.2?}");
    let grown = after.resident - before.resident;
    assert!(
        grown < RESIDENT_MIB,
        "{grown:.2} MiB are kept: {memory:.2?}"
    );
    assert!(
        after.descriptors < before.descriptors + DESCRIPTORS,
        "descriptors stay: {memory:?}"
    );
    assert!(
        all.is_empty(),
        "{} of {runs}:\n{}",
        all.len(),
        all.join("\n")
    );
    ended_well(&lab);
}
