//! Limits of calls. The tests assert which process ended and why, and that none ended before its limit. They print
//! how long after the limit it ended, and compare that with the promise in a campaign.

use std::process::{Child, Command};
use std::time::{Duration, Instant};

use alknet_test_support::{deadline, is_campaign, took};
use alknet_worker::limits::{
    ABORT_GRACE, DEATH_WITHIN, HEARTBEAT_SILENCE_MAX, SILENCE_LOOK, SILENCE_LOOKS,
};
use alknet_worker::{CallLimits, LimitCause, WorkerCallError, WorkerEndReason, WorkerRole};
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::act::ProbeAct;
use crate::host::{answers, is_dead, limits, long, open, probe, request, stat, until, workers};

const MS_300: Duration = Duration::from_millis(300);

#[track_caller]
fn ended(outcome: Result<alknet_worker::WorkerAnswer, WorkerCallError>) -> (LimitCause, bool) {
    match outcome {
        Err(WorkerCallError::Limit { cause, killed }) => (cause, killed),
        other => panic!("a limit, not {other:?}"),
    }
}

/// The host kills a worker that does not answer, while another tenant keeps answering.
#[test]
fn native_loops_and_sleeps_are_killed_at_their_limit() {
    let workers = workers();
    let other = open(&workers, WorkerRole::Js, "other");
    for (round, act) in [ProbeAct::Spin { obeys: false }, ProbeAct::Sleep(600_000)]
        .iter()
        .enumerate()
    {
        let session = open(&workers, WorkerRole::Js, &format!("hostile {round}"));
        let pid = session.pid();
        let began = Instant::now();
        let call = session.call(request(act), limits(MS_300), None);
        assert!(answers(&other));
        assert_eq!(ended(call.wait()), (LimitCause::Wall, true));
        let answered = began.elapsed();
        until("no instruction runs", || is_dead(pid));
        let dead = began.elapsed();
        assert!(answers(&other));
        println!("limit 300 ms, answered after {answered:?}, dead after {dead:?}: {act:?}");
        // The call has its time, and the grace to answer an abort.
        assert!(answered >= MS_300 + ABORT_GRACE, "{answered:?}: {act:?}");
        let late = dead.saturating_sub(MS_300);
        // Apart from the end itself this includes the way of the call to its worker and the pauses between checks of
        // the process.
        took(
            "a worker that does not stop is dead after its limit",
            2 * DEATH_WITHIN,
            late,
        );
    }
    until("both are counted", || {
        workers.stats().ended.get(&WorkerEndReason::Wall) == Some(&2)
    });
    let death = workers.stats().death;
    println!("limit to death, p50 and p99: {death:?}");
    let deaths = workers.stats().deaths;
    assert_eq!(deaths.count, 2, "{deaths:?}");
    // The time counts from the limit on, and not from the start of the call.
    assert!(deaths.longest >= ABORT_GRACE, "{deaths:?}");
    took(
        "the longest of these ends, as the node counts it",
        DEATH_WITHIN,
        deaths.longest,
    );
}

#[test]
fn a_call_that_obeys_ends_and_its_worker_lives_on() {
    let mut config = crate::host::config();
    // A busy machine may keep the worker from running for longer than the standard allows.
    config.abort_grace = long();
    let workers = alknet_worker::Workers::start(config).expect("a supervisor");
    let session = open(&workers, WorkerRole::Js, "a");
    let call = session.call(
        request(&ProbeAct::Spin { obeys: true }),
        limits(MS_300),
        None,
    );
    assert_eq!(ended(call.wait()), (LimitCause::Wall, false));
    assert!(answers(&session));
}

#[test]
fn processor_time_runs_out_for_a_worker_that_works_and_not_for_one_that_waits() {
    let workers = workers();
    let session = open(&workers, WorkerRole::Js, "a");
    let budget = CallLimits {
        wall: long(),
        cpu: Some(MS_300),
        gpu: None,
    };
    let waits = session.call(request(&ProbeAct::Sleep(1500)), budget, None);
    assert!(waits.wait().is_ok(), "waiting costs nothing");
    let began = Instant::now();
    let works = session.call(request(&ProbeAct::Spin { obeys: false }), budget, None);
    assert_eq!(ended(works.wait()), (LimitCause::Cpu, true));
    println!(
        "300 ms of processor time were over after {:?}",
        began.elapsed()
    );
}

#[test]
fn a_gpu_worker_is_killed_at_its_gpu_time() {
    let workers = workers();
    let session = open(&workers, WorkerRole::Gpu, "a");
    let budget = CallLimits {
        wall: long(),
        cpu: None,
        gpu: Some(MS_300),
    };
    let call = session.call(request(&ProbeAct::Sleep(600_000)), budget, None);
    let error = call.wait().expect_err("a limit");
    assert_eq!(error.code(), "E_GPU_TIMEOUT");
    assert_eq!(ended(Err(error)), (LimitCause::Gpu, true));
}

/// Compiling the node's own code does not count as time on the GPU: the caller did not request it.
#[test]
fn what_is_no_work_of_the_gpu_is_no_time_on_it() {
    let workers = workers();
    let most = deadline(MS_300);
    let budget = CallLimits {
        wall: long(),
        cpu: None,
        gpu: Some(most),
    };
    for role in [WorkerRole::Gpu, WorkerRole::JsGpu] {
        let session = open(&workers, role, "a");
        let longer = u64::try_from(5 * most.as_millis()).expect("short");
        let call = session.call(request(&ProbeAct::Compile(longer)), budget, None);
        call.wait().expect("an answer");
        // The GPU's later work counts.
        if role == WorkerRole::Gpu {
            let call = session.call(request(&ProbeAct::Sleep(600_000)), budget, None);
            assert_eq!(ended(call.wait()), (LimitCause::Gpu, true));
        }
    }
}

#[test]
fn a_worker_without_heartbeats_is_lost() {
    let mut config = crate::host::config();
    // Enough time for the worker to answer until it is to be silent.
    config.silence = if is_campaign() {
        HEARTBEAT_SILENCE_MAX
    } else {
        deadline(Duration::from_millis(500))
    };
    let silence = config.silence;
    let workers = alknet_worker::Workers::start(config).expect("a supervisor");
    let session = open(&workers, WorkerRole::Js, "a");
    let began = Instant::now();
    let call = session.call(request(&ProbeAct::Silence), limits(long()), None);
    let error = call.wait().expect_err("a limit");
    let looks = SILENCE_LOOK * SILENCE_LOOKS;
    let waited = began.elapsed();
    assert!(waited >= silence + looks, "{waited:?}");
    let most = silence + looks + 2 * DEATH_WITHIN;
    took("a worker that says nothing is given up", most, waited);
    assert_eq!(error.code(), "E_WORKER_LOST");
    assert_eq!(ended(Err(error)), (LimitCause::Silent, true));
    until("it is collected", || {
        workers.stats().ended.contains_key(&WorkerEndReason::Silent)
    });
}

#[test]
fn a_call_that_is_given_up_ends_with_its_worker_if_need_be() {
    let workers = workers();
    let session = open(&workers, WorkerRole::Js, "a");
    let call = session.call(request(&ProbeAct::Sleep(600_000)), limits(long()), None);
    call.abort();
    let error = call.wait().expect_err("it was given up");
    assert_eq!(error.code(), "E_ABORT");
    assert_eq!(ended(Err(error)), (LimitCause::Aborted, true));
    // A dropped call is given up all the same.
    let session = open(&workers, WorkerRole::Js, "b");
    let pid = session.pid();
    drop(session.call(
        request(&ProbeAct::Spin { obeys: false }),
        limits(long()),
        None,
    ));
    until("the worker is killed", || stat(pid).is_none());
    until("it is counted", || {
        workers.stats().ended.get(&WorkerEndReason::Abort) == Some(&2)
    });
}

/// Programs that compute on one processor until this is dropped.
struct BusyProcessor(Vec<Child>);

impl BusyProcessor {
    /// Moves the threads of a process to one processor and starts as many programs there.
    fn share_with(pid: i32, programs: usize) -> Self {
        let ours = sched_getaffinity(None).expect("we have a processor");
        let last = (0..CpuSet::MAX_CPU).rfind(|cpu| ours.is_set(*cpu));
        let cpu = last.expect("we have a processor");
        let mut set = CpuSet::new();
        set.set(cpu);
        let threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("it lives");
        for thread in threads {
            let name = thread.expect("a thread").file_name();
            let tid = name.to_str().and_then(|tid| tid.parse().ok());
            sched_setaffinity(tid.and_then(Pid::from_raw), &set).expect("it is our worker's");
        }
        let started = (0..programs).map(|_| {
            let mut program = Command::new(probe());
            let program = program.args(["compute", &cpu.to_string()]);
            program.spawn().expect("it starts")
        });
        let started = Self(started.collect());
        let compute = |child: &Child| {
            let pid = i32::try_from(child.id()).expect("a process id");
            stat(pid).is_some_and(|(_, ticks)| ticks > 0)
        };
        until("all compute", || started.0.iter().all(compute));
        started
    }
}

impl Drop for BusyProcessor {
    fn drop(&mut self) {
        for child in &mut self.0 {
            child.kill().expect("it computes");
            child.wait().expect("it is ours");
        }
    }
}

/// Each program has the processor for a few milliseconds, and the worker waits for longer than the grace. It would
/// obey, and its other session has done nothing.
#[test]
fn a_worker_that_waits_for_a_processor_is_not_killed_with_its_sessions() {
    let workers = workers();
    let session = open(&workers, WorkerRole::Js, "a");
    let other = open(&workers, WorkerRole::Js, "a");
    let pid = session.pid();
    assert_eq!(pid, other.pid());
    let busy = BusyProcessor::share_with(pid, 16);
    // By chance, the worker has the processor when an abort arrives.
    for round in 0..10 {
        let act = request(&ProbeAct::Spin { obeys: true });
        let call = session.call(act, limits(long()), None);
        call.abort();
        let ended = ended(call.wait());
        assert_eq!(ended, (LimitCause::Aborted, false), "{round}");
    }
    drop(busy);
    assert!(answers(&other));
}

#[test]
fn a_service_is_asked_to_leave_and_then_made_to() {
    let workers = workers();
    let session = open(&workers, WorkerRole::Js, "a");
    let answer = session.drain().wait().expect("its last words");
    assert_eq!(
        crate::host::said(answer),
        crate::act::ProbeReply::Text("disposed".to_owned())
    );
    // All threads of this worker are in native sleeps: none of them reads the farewell.
    let session = open(&workers, WorkerRole::Js, "b");
    let pid = session.pid();
    let busy: Vec<_> = (0..3)
        .map(|_| session.call(request(&ProbeAct::Sleep(600_000)), limits(long()), None))
        .collect();
    assert_eq!(ended(session.drain().wait()), (LimitCause::Drain, true));
    for call in busy {
        assert_eq!(call.wait().expect_err("a sibling").code(), "E_WORKER_LOST");
    }
    until("the worker is gone", || stat(pid).is_none());
}
