//! Shared code of the tests: workers whose program is the probe, and their inspection from outside.

use std::path::PathBuf;
use std::time::Duration;

use alknet_test_support::{deadline, eventually};
use alknet_worker::{
    Bytes32, CallLimits, CborBody, Executable, RoleConfig, WorkerAnswer, WorkerCallError,
    WorkerLease, WorkerReply, WorkerRequest, WorkerRole, WorkerSession, Workers, WorkersConfig,
};

use crate::act::{ProbeAct, ProbeReply};

/// How long a step without a limit of its own may take, on a machine at rest.
const LONG: Duration = Duration::from_secs(60);

pub(crate) fn long() -> Duration {
    deadline(LONG)
}

pub(crate) fn probe() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_alknet-worker-probe"))
}

/// Patient workers: a loaded machine must not make a worker look silent.
pub(crate) fn config() -> WorkersConfig {
    let mut config = WorkersConfig::this_executable();
    config.executable = Executable::File(probe());
    config.silence = long();
    config.roles = WorkerRole::ALL.map(RoleConfig::new).to_vec();
    config
}

pub(crate) fn workers() -> Workers {
    Workers::start(config()).expect("a supervisor")
}

pub(crate) fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.expect("a runtime").block_on(work)
}

pub(crate) fn open(workers: &Workers, role: WorkerRole, tenant: &str) -> WorkerSession {
    block_on(workers.open(WorkerLease::new(role, tenant))).expect("a session")
}

pub(crate) const fn limits(wall: Duration) -> CallLimits {
    CallLimits {
        wall,
        cpu: None,
        gpu: None,
    }
}

pub(crate) fn request(act: &ProbeAct) -> WorkerRequest {
    WorkerRequest::role(CborBody::encode(act).expect("CBOR").into_bytes())
}

/// Sends a request and waits.
pub(crate) fn ask(
    session: &WorkerSession,
    act: &ProbeAct,
) -> Result<WorkerAnswer, WorkerCallError> {
    session.call(request(act), limits(long()), None).wait()
}

/// Sends a request in the name of an operation.
pub(crate) fn ask_as(
    session: &WorkerSession,
    act: &ProbeAct,
    operation: Bytes32,
) -> Result<WorkerAnswer, WorkerCallError> {
    session
        .call(request(act), limits(long()), Some(operation))
        .wait()
}

pub(crate) fn said(answer: WorkerAnswer) -> ProbeReply {
    match answer.reply {
        WorkerReply::Ok(blob) => {
            let bytes = blob.read(&answer.fds, 1 << 20).expect("bytes");
            CborBody::from_cbor(bytes)
                .read()
                .expect("the probe's words")
        }
        WorkerReply::Err(fault) => panic!("{fault:?}"),
    }
}

pub(crate) fn errno(session: &WorkerSession, act: &ProbeAct) -> i32 {
    match said(ask(session, act).expect("an answer")) {
        ProbeReply::Errno(errno) => errno,
        other => panic!("{other:?}"),
    }
}

/// Whether the worker behind the session still obeys.
pub(crate) fn answers(session: &WorkerSession) -> bool {
    let body = CborBody::encode(&"hello").expect("CBOR");
    let answer = ask(session, &ProbeAct::Echo(body.clone()));
    answer.is_ok_and(|answer| match answer.reply {
        WorkerReply::Ok(blob) => blob
            .read(&answer.fds, 100)
            .is_ok_and(|bytes| bytes == body.as_bytes()),
        WorkerReply::Err(_) => false,
    })
}

/// State and processor time (clock ticks) of a process; `None` once it is gone.
pub(crate) fn stat(pid: i32) -> Option<(char, u64)> {
    parse_stat(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse_stat(text: &str) -> Option<(char, u64)> {
    let mut fields = text[text.rfind(')')? + 2..].split(' ');
    let state = fields.next()?.chars().next()?;
    let user: u64 = fields.nth(10)?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some((state, user + system))
}

/// Whether no instruction of it runs any more: each of its threads is gone, or dead and not yet collected.
pub(crate) fn is_dead(pid: i32) -> bool {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
        return true;
    };
    let mut threads = threads.flatten();
    threads.all(|thread| {
        let stat = std::fs::read_to_string(thread.path().join("stat"));
        let stat = stat.ok().and_then(|text| parse_stat(&text));
        stat.is_none_or(|(state, _)| "ZX".contains(state))
    })
}

/// Waits for a step that other threads are about to take.
#[track_caller]
pub(crate) fn until(what: &str, holds: impl FnMut() -> bool) {
    eventually(what, LONG, holds);
}
