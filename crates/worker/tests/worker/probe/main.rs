//! A worker that does whatever a test requests, most of it hostile; by its other verbs, a host of such workers; and
//! as PID 1, a machine with nothing but these.

mod machine;
mod tricks;

#[path = "../act.rs"]
mod act;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use act::{ProbeAct, ProbeReply, ProbeView};
use alknet_worker::{
    CborBody, ConfinementLevel, FrameBlob, FromWorkerMessage, Guest, GuestCall, GuestInput,
    RoleConfig, SandboxLayer, ToWorkerMessage, WorkerError, WorkerFault, WorkerLease,
    WorkerLogLevel, WorkerReply, WorkerRole, Workers, WorkersConfig, enter, started_as_worker,
};
use rustix::process::{Signal, set_parent_process_death_signal, setsid};
use rustix::thread::{CpuSet, sched_setaffinity};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

/// Threads that take calls: one may be busy while another answers.
const THREADS: usize = 3;

fn main() {
    if started_as_worker() {
        let role = std::env::args().nth(3).unwrap_or_default();
        let role: WorkerRole = role.parse().expect("the host names a role");
        work(role);
    }
    if std::process::id() == 1 {
        machine::run();
    }
    match std::env::args().nth(1).as_deref() {
        Some("compute") => compute(std::env::args().nth(2)),
        Some("unfiltered") => unfiltered(),
        verb => host(verb == Some("host")),
    }
}

/// Computes on one processor until it is killed, as a program of another user would.
fn compute(cpu: Option<String>) -> ! {
    let cpu = cpu.and_then(|cpu| cpu.parse().ok()).expect("a processor");
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).expect("it is one of ours");
    set_parent_process_death_signal(Some(Signal::KILL)).expect("a signal");
    // The kernel shares a processor between sessions first.
    setsid().expect("it leads no group");
    loop {
        std::hint::spin_loop();
    }
}

/// Starts a worker and reports its properties; then waits to be killed, if it is to stay.
fn host(stays: bool) {
    let mut config = WorkersConfig::this_executable();
    config.roles = vec![RoleConfig::new(WorkerRole::Js)];
    let workers = Workers::start(config).expect("a supervisor");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    let session = runtime.block_on(workers.open(WorkerLease::new(WorkerRole::Js, "probe")));
    let session = session.expect("a session");
    let sandbox = session.sandbox();
    let gaps: Vec<String> = sandbox
        .gaps
        .iter()
        .map(|gap| format!("{:?}", gap.layer))
        .collect();
    println!("{} {} {}", session.pid(), sandbox.level, gaps.join(","));
    if stays {
        loop {
            std::thread::park();
        }
    }
    runtime.block_on(workers.shutdown());
}

/// Starts a worker that cannot install its list of system calls, and reports why it gets no session.
fn unfiltered() {
    let rules = BTreeMap::from([(libc::SYS_seccomp, Vec::new())]);
    let arch = std::env::consts::ARCH.try_into().expect("a known one");
    let refused = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refused, arch);
    let program: BpfProgram = filter.expect("rules").try_into().expect("a program");
    // Every process that this one starts has the filter as well.
    seccompiler::apply_filter(&program).expect("the first one is allowed");
    let mut config = WorkersConfig::this_executable();
    config.roles = vec![RoleConfig::new(WorkerRole::Js)];
    config.minimum = ConfinementLevel::Partial;
    let workers = Workers::start(config).expect("a supervisor");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    let session = runtime.block_on(workers.open(WorkerLease::new(WorkerRole::Js, "probe")));
    let Err(error @ WorkerError::Policy { .. }) = session else {
        panic!("a refusal, not {session:?}");
    };
    let sandbox = workers.stats().sandbox.remove(&WorkerRole::Js);
    let gaps = sandbox.map(|sandbox| sandbox.gaps).unwrap_or_default();
    let gap = gaps.iter().find(|gap| gap.layer == SandboxLayer::Seccomp);
    println!("{} {error}: {gap:?}", error.code());
    runtime.block_on(workers.shutdown());
}

/// Takes as long for its start as the test wants.
fn delay_start() {
    let Ok(wanted) = std::env::var(act::START_VARIABLE) else {
        return;
    };
    if wanted == act::START_SLEEPS {
        loop {
            std::thread::park();
        }
    }
    let wanted = Duration::from_millis(wanted.parse().expect("milliseconds"));
    let began = Instant::now();
    while began.elapsed() < wanted {
        std::hint::spin_loop();
    }
}

fn work(role: WorkerRole) -> ! {
    let entered = enter(role).expect("a host that lives");
    let warm_up = |guest: &Guest| {
        delay_start();
        let seen = ProbeView {
            arguments: std::env::args().collect(),
            descriptors: tricks::open_descriptors(),
            environment: std::env::vars()
                .map(|(name, value)| format!("{name}={value}"))
                .collect(),
            folder: std::env::current_dir()?.display().to_string(),
            pid: std::process::id(),
            root: names("/")?,
        };
        for _ in 0..THREADS {
            let (guest, seen) = (guest.clone(), seen.clone());
            std::thread::Builder::new().spawn(move || take_calls(&guest, &seen))?;
        }
        Ok::<_, std::io::Error>(())
    };
    // A call that panicked on this thread would end the process, and one on another does not.
    let (_guest, ()) = entered.seal(warm_up).expect("layers");
    loop {
        std::thread::park();
    }
}

fn names(folder: &str) -> std::io::Result<Vec<String>> {
    let entries = std::fs::read_dir(folder)?;
    entries
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect()
}

/// Replies of the host to the probe's calls that a thread waits for.
static REPLIES: Mutex<Vec<(u64, WorkerReply)>> = Mutex::new(Vec::new());

fn take_calls(guest: &Guest, seen: &ProbeView) -> ! {
    loop {
        let GuestInput {
            message, fds, call, ..
        } = guest.next();
        match (message, call) {
            (ToWorkerMessage::Run { body, .. }, Some(call)) => {
                let act: ProbeAct = body.read().expect("the test's own words");
                let _here = call.on_this_thread();
                if let Some(said) = perform(guest, &call, act, seen) {
                    answer(guest, &call, said);
                }
            }
            (ToWorkerMessage::Close { .. }, Some(call)) => {
                // A service that reports its leave, where the host requests it.
                answer(
                    guest,
                    &call,
                    Ok(CborBody::encode(&ProbeReply::Text("disposed".to_owned())).expect("CBOR")),
                );
            }
            (ToWorkerMessage::Reply { id, reply, .. }, _) => {
                REPLIES
                    .lock()
                    .expect("no thread panics with it")
                    .push((id, reply));
            }
            (ToWorkerMessage::Tell { .. }, _) => tricks::hold_descriptors(fds),
            _ => {}
        }
    }
}

type ProbeResult = Result<CborBody, WorkerFault>;

fn answer(guest: &Guest, call: &GuestCall, outcome: ProbeResult) {
    let mut fds = Vec::new();
    let reply = match outcome {
        Ok(body) => WorkerReply::Ok(FrameBlob::pack(body.into_bytes(), &mut fds).expect("it fits")),
        Err(fault) => WorkerReply::Err(fault),
    };
    guest
        .finish(call, reply, fds, 0, 0)
        .expect("the host reads");
}

fn say(said: &ProbeReply) -> Option<ProbeResult> {
    Some(Ok(CborBody::encode(said).expect("CBOR")))
}

/// Does the act. `None`: there is nothing to answer any more.
fn perform(
    guest: &Guest,
    call: &GuestCall,
    act: ProbeAct,
    seen: &ProbeView,
) -> Option<ProbeResult> {
    let text = |result: std::io::Result<String>| match result {
        Ok(text) => ProbeReply::Text(text),
        Err(error) => ProbeReply::Errno(error.raw_os_error().unwrap_or(-1)),
    };
    match act {
        ProbeAct::Abort => std::process::abort(),
        ProbeAct::Allocate(bytes) => tricks::allocate(bytes),
        ProbeAct::Ask(op) => return Some(ask(guest, call, op)),
        ProbeAct::Beats(count) => (0..count).for_each(|_| {
            let beat = FromWorkerMessage::Heartbeat {
                sid: call.sid(),
                id: 0,
                ticks: 0,
                cpu_us: 0,
                mem: 0,
            };
            // A host that has given up reads no more.
            let _ = guest.send(&beat, Vec::new());
        }),
        ProbeAct::Bus => tricks::bus(),
        ProbeAct::CloseChannel => tricks::close_channel(),
        ProbeAct::Compile(ms) => {
            let busy = |busy| FromWorkerMessage::Gpu {
                sid: call.sid(),
                id: call.id(),
                busy,
            };
            guest
                .send(&busy(false), Vec::new())
                .expect("the host reads");
            std::thread::sleep(Duration::from_millis(ms));
            guest.send(&busy(true), Vec::new()).expect("the host reads");
        }
        ProbeAct::Deaf => {
            // Until the control thread has sent the first heartbeat: halted within it, it would keep the channel.
            std::thread::sleep(Duration::from_millis(100));
            assert_eq!(tricks::halt_control_thread(), None, "it is halted");
        }
        ProbeAct::Descriptors(count) => (0..count).for_each(|_| {
            let tell = FromWorkerMessage::Tell {
                sid: call.sid(),
                body: CborBody::default(),
            };
            // As above.
            let _ = guest.send(&tell, tricks::hoarded());
        }),
        ProbeAct::Echo(body) => return Some(Ok(body)),
        ProbeAct::EndFirstThread => assert_eq!(tricks::end_first_thread(), None, "it ends"),
        ProbeAct::Exit(status) => std::process::exit(status),
        ProbeAct::Flood(count) => (0..count).for_each(|id| send_call(guest, call, id, "flood")),
        ProbeAct::Garbage(bytes) => tricks::send_raw(&bytes),
        ProbeAct::Inside => return say(&ProbeReply::Inside(seen.clone())),
        ProbeAct::Kept => {
            let (count, bytes) = tricks::kept_descriptors();
            return say(&ProbeReply::Text(format!("{count} of {bytes}")));
        }
        ProbeAct::Log(lines, bytes) => {
            for _ in 0..lines {
                let log = FromWorkerMessage::Log {
                    sid: call.sid(),
                    level: WorkerLogLevel::Info,
                    text: "l".repeat(bytes),
                };
                guest.send(&log, Vec::new()).expect("the host reads");
            }
        }
        ProbeAct::ManyDescriptors => tricks::send_many_descriptors(),
        ProbeAct::Panic => panic!("as the test asked"),
        ProbeAct::Read(path) => return say(&text(std::fs::read_to_string(path))),
        ProbeAct::ResultUnasked => {
            let result = FromWorkerMessage::Result {
                sid: call.sid(),
                id: u64::MAX,
                reply: WorkerReply::Err(WorkerFault::default()),
                stats: alknet_worker::CallStats::default(),
            };
            guest.send(&result, Vec::new()).expect("the host reads");
        }
        ProbeAct::Segv => tricks::segv(),
        ProbeAct::SegvAfter(ms) => {
            std::thread::sleep(Duration::from_millis(ms));
            tricks::segv();
        }
        ProbeAct::Share(bytes) => {
            return say(&ProbeReply::Errno(tricks::share(bytes)));
        }
        ProbeAct::Silence => return say(&ProbeReply::Errno(tricks::silence())),
        ProbeAct::Sleep(ms) => std::thread::sleep(Duration::from_millis(ms)),
        ProbeAct::Spin { obeys } => {
            let mut ticks = 0_u64;
            while !(obeys && call.is_aborted()) {
                ticks += 1;
                call.progress(ticks, 0);
            }
            let code = "E_ABORT".to_owned();
            return Some(Err(WorkerFault {
                code,
                ..WorkerFault::default()
            }));
        }
        ProbeAct::Tell(count, bytes) => {
            for _ in 0..count {
                let tell = FromWorkerMessage::Tell {
                    sid: call.sid(),
                    body: CborBody::from_cbor(vec![0; bytes]),
                };
                // A host that has given up reads no more.
                let _ = guest.send(&tell, Vec::new());
            }
        }
        ProbeAct::Threads(count) => {
            return say(&ProbeReply::Text(tricks::threads(count).to_string()));
        }
        ProbeAct::Try(attempt) => return say(&ProbeReply::Errno(tricks::attempt(attempt))),
        ProbeAct::Value(bytes) => return Some(Ok(CborBody::from_cbor(vec![0x5a; bytes]))),
        ProbeAct::Write(path) => {
            let written = std::fs::write(path, "by the worker");
            return say(&text(written.map(|()| String::new())));
        }
    }
    say(&ProbeReply::Text("done".to_owned()))
}

fn send_call(guest: &Guest, call: &GuestCall, id: u64, op: &str) {
    let message = FromWorkerMessage::Call {
        sid: call.sid(),
        id,
        op: op.to_owned(),
        input: FrameBlob::Inline(CborBody::default()),
        opts: CborBody::default(),
    };
    // A host that has given up reads no more.
    let _ = guest.send(&message, Vec::new());
}

/// Calls the host; another thread takes the reply.
fn ask(guest: &Guest, call: &GuestCall, op: String) -> ProbeResult {
    send_call(guest, call, call.id(), &op);
    loop {
        let mut replies = REPLIES.lock().expect("no thread panics with it");
        if let Some(at) = replies.iter().position(|(id, _)| *id == call.id()) {
            return match replies.remove(at).1 {
                WorkerReply::Ok(blob) => Ok(CborBody::from_cbor(
                    blob.read(&[], 1 << 20).expect("inline"),
                )),
                WorkerReply::Err(fault) => Err(fault),
            };
        }
        drop(replies);
        std::thread::sleep(Duration::from_millis(1));
    }
}
