//! What every test has: workers whose program is the probe, and a look at them from outside.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use alknet_worker::{
    Answer, Body, CallError, CallLimits, Config, Executable, Hash, Lease, Reply, Request, Role,
    RoleConfig, Session, Workers,
};

use crate::act::{Act, Said};

/// How long anything may take that has no limit of its own here: machines are slow, and shared.
pub(crate) const LONG: Duration = Duration::from_secs(60);

pub(crate) fn probe() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_alknet-worker-probe"))
}

/// Patient workers: a loaded machine must not be taken for a silent worker.
pub(crate) fn config() -> Config {
    let mut config = Config::this_executable();
    config.executable = Executable::File(probe());
    config.silence = LONG;
    config.roles = Role::ALL.map(RoleConfig::new).to_vec();
    config
}

pub(crate) fn workers() -> Workers {
    Workers::start(config()).expect("a supervisor")
}

pub(crate) fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.expect("a runtime").block_on(work)
}

pub(crate) fn open(workers: &Workers, role: Role, tenant: &str) -> Session {
    block_on(workers.open(Lease::new(role, tenant))).expect("a session")
}

pub(crate) const fn limits(wall: Duration) -> CallLimits {
    CallLimits {
        wall,
        cpu: None,
        gpu: None,
    }
}

pub(crate) fn request(act: &Act) -> Request {
    Request::role(Body::of(act).expect("CBOR").into_bytes())
}

/// Asks and waits.
pub(crate) fn ask(session: &Session, act: &Act) -> Result<Answer, CallError> {
    session.call(request(act), limits(LONG), None).wait()
}

/// Asks in the name of an operation.
pub(crate) fn ask_as(session: &Session, act: &Act, operation: Hash) -> Result<Answer, CallError> {
    session
        .call(request(act), limits(LONG), Some(operation))
        .wait()
}

pub(crate) fn said(answer: Answer) -> Said {
    match answer.reply {
        Reply::Ok(blob) => {
            let bytes = blob.read(&answer.fds, 1 << 20).expect("bytes");
            Body::from_cbor(bytes).read().expect("the probe's words")
        }
        Reply::Err(fault) => panic!("{fault:?}"),
    }
}

pub(crate) fn errno(session: &Session, act: &Act) -> i32 {
    match said(ask(session, act).expect("an answer")) {
        Said::Errno(errno) => errno,
        other => panic!("{other:?}"),
    }
}

/// Whether the worker behind the session still does what it is asked.
pub(crate) fn answers(session: &Session) -> bool {
    let body = Body::of(&"hello").expect("CBOR");
    let answer = ask(session, &Act::Echo(body.clone()));
    answer.is_ok_and(|answer| match answer.reply {
        Reply::Ok(blob) => blob
            .read(&answer.fds, 100)
            .is_ok_and(|bytes| bytes == body.as_bytes()),
        Reply::Err(_) => false,
    })
}

/// State and processor time (clock ticks) of a process; `None` once it is gone.
pub(crate) fn stat(pid: i32) -> Option<(char, u64)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = text[text.rfind(')')? + 2..].split(' ');
    let state = fields.next()?.chars().next()?;
    let user: u64 = fields.nth(10)?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some((state, user + system))
}

/// Whether no instruction of it runs any more: gone, or dead and its clock standing still.
pub(crate) fn stands_still(pid: i32) -> bool {
    let first = stat(pid);
    std::thread::sleep(Duration::from_millis(50));
    match (first, stat(pid)) {
        (_, None) => true,
        (Some((_, before)), Some((state, after))) => before == after && "ZX".contains(state),
        (None, Some(_)) => false,
    }
}

/// Waits for something that other threads are about to do.
#[track_caller]
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < LONG, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
