//! A worker that does whatever a test asks of it, most of it hostile; by its other verbs, a host
//! of such workers; and as PID 1, a machine with nothing but these.

mod machine;
mod tricks;

#[path = "../act.rs"]
mod act;

use std::sync::Mutex;

use act::{Act, Inside, Said};
use alknet_worker::{
    Blob, Body, Config, Fault, FromWorker, Guest, GuestCall, Incoming, Lease, LogLevel, Reply,
    Role, RoleConfig, ToWorker, Workers, enter, started_as_worker,
};

/// Threads that take calls: one may be busy while another answers.
const THREADS: usize = 3;

fn main() {
    if started_as_worker() {
        let role = std::env::args().nth(3).unwrap_or_default();
        let role: Role = role.parse().expect("the host names a role");
        work(role);
    }
    if std::process::id() == 1 {
        machine::run();
    }
    let stays = std::env::args().nth(1).as_deref() == Some("host");
    host(stays);
}

/// Starts a worker and tells what it is like; then waits to be killed, if it is to stay.
fn host(stays: bool) {
    let mut config = Config::this_executable();
    config.roles = vec![RoleConfig::new(Role::Js)];
    let workers = Workers::start(config).expect("a supervisor");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    let session = runtime.block_on(workers.open(Lease::new(Role::Js, "probe")));
    let session = session.expect("a session");
    let sandbox = session.sandbox();
    let gaps: Vec<String> = sandbox
        .gaps
        .iter()
        .map(|gap| format!("{:?}", gap.wall))
        .collect();
    println!("{} {} {}", session.pid(), sandbox.level, gaps.join(","));
    if stays {
        loop {
            std::thread::park();
        }
    }
    runtime.block_on(workers.shutdown());
}

fn work(role: Role) -> ! {
    let entered = enter(role).expect("a host that lives");
    let warm_up = |guest: &Guest| {
        let seen = Inside {
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
    let (_guest, ()) = entered.seal(warm_up).expect("walls");
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

/// Replies of the host to calls of ours that a thread waits for.
static REPLIES: Mutex<Vec<(u64, Reply)>> = Mutex::new(Vec::new());

fn take_calls(guest: &Guest, seen: &Inside) -> ! {
    loop {
        let Incoming {
            message, fds, call, ..
        } = guest.next();
        match (message, call) {
            (ToWorker::Run { body, .. }, Some(call)) => {
                let act: Act = body.read().expect("the test's own words");
                let _here = call.on_this_thread();
                if let Some(said) = perform(guest, &call, act, seen) {
                    answer(guest, &call, said);
                }
            }
            (ToWorker::Close { .. }, Some(call)) => {
                // A service that says what it leaves, unless its session was told not to.
                answer(
                    guest,
                    &call,
                    Ok(Body::of(&Said::Text("disposed".to_owned())).expect("CBOR")),
                );
            }
            (ToWorker::Reply { id, reply, .. }, _) => {
                REPLIES
                    .lock()
                    .expect("no thread panics with it")
                    .push((id, reply));
            }
            (ToWorker::Tell { .. }, _) => tricks::keep(fds),
            _ => {}
        }
    }
}

type Outcome = Result<Body, Fault>;

fn answer(guest: &Guest, call: &GuestCall, outcome: Outcome) {
    let mut fds = Vec::new();
    let reply = match outcome {
        Ok(body) => Reply::Ok(Blob::pack(body.into_bytes(), &mut fds).expect("it fits")),
        Err(fault) => Reply::Err(fault),
    };
    guest
        .finish(call, reply, fds, 0, 0)
        .expect("the host reads");
}

fn say(said: &Said) -> Option<Outcome> {
    Some(Ok(Body::of(said).expect("CBOR")))
}

/// Does it. None: there is nothing to answer any more.
fn perform(guest: &Guest, call: &GuestCall, act: Act, seen: &Inside) -> Option<Outcome> {
    let text = |result: std::io::Result<String>| match result {
        Ok(text) => Said::Text(text),
        Err(error) => Said::Errno(error.raw_os_error().unwrap_or(-1)),
    };
    match act {
        Act::Abort => std::process::abort(),
        Act::Allocate(bytes) => tricks::allocate(bytes),
        Act::Ask(op) => return Some(ask(guest, call, op)),
        Act::Bus => tricks::bus(),
        Act::CloseChannel => tricks::close_channel(),
        Act::Compile(ms) => {
            let busy = |busy| FromWorker::Gpu {
                sid: call.sid(),
                id: call.id(),
                busy,
            };
            guest
                .send(&busy(false), Vec::new())
                .expect("the host reads");
            std::thread::sleep(std::time::Duration::from_millis(ms));
            guest.send(&busy(true), Vec::new()).expect("the host reads");
        }
        Act::Echo(body) => return Some(Ok(body)),
        Act::Exit(status) => std::process::exit(status),
        Act::Flood(count) => (0..count).for_each(|id| send_call(guest, call, id, "flood")),
        Act::Garbage(bytes) => tricks::send_raw(&bytes),
        Act::Inside => return say(&Said::Inside(seen.clone())),
        Act::Kept => {
            let (count, bytes) = tricks::kept();
            return say(&Said::Text(format!("{count} of {bytes}")));
        }
        Act::Log(lines, bytes) => {
            for _ in 0..lines {
                let log = FromWorker::Log {
                    sid: call.sid(),
                    level: LogLevel::Info,
                    text: "l".repeat(bytes),
                };
                guest.send(&log, Vec::new()).expect("the host reads");
            }
        }
        Act::ManyDescriptors => tricks::send_many_descriptors(),
        Act::Panic => panic!("as the test asked"),
        Act::Read(path) => return say(&text(std::fs::read_to_string(path))),
        Act::ResultUnasked => {
            let result = FromWorker::Result {
                sid: call.sid(),
                id: u64::MAX,
                reply: Reply::Err(Fault::default()),
                stats: alknet_worker::CallStats::default(),
            };
            guest.send(&result, Vec::new()).expect("the host reads");
        }
        Act::Segv => tricks::segv(),
        Act::Share(bytes) => {
            return say(&Said::Errno(tricks::share(bytes)));
        }
        Act::Silence => return say(&Said::Errno(tricks::silence())),
        Act::Sleep(ms) => std::thread::sleep(std::time::Duration::from_millis(ms)),
        Act::Spin { obeys } => {
            let mut ticks = 0_u64;
            while !(obeys && call.is_aborted()) {
                ticks += 1;
                call.progress(ticks, 0);
            }
            let code = "E_ABORT".to_owned();
            return Some(Err(Fault {
                code,
                ..Fault::default()
            }));
        }
        Act::Tell(count, bytes) => {
            for _ in 0..count {
                let tell = FromWorker::Tell {
                    sid: call.sid(),
                    body: Body::from_cbor(vec![0; bytes]),
                };
                // A host that has had enough reads no more.
                let _ = guest.send(&tell, Vec::new());
            }
        }
        Act::Threads(count) => return say(&Said::Text(tricks::threads(count).to_string())),
        Act::Try(attempt) => return say(&Said::Errno(tricks::attempt(attempt))),
        Act::Value(bytes) => return Some(Ok(Body::from_cbor(vec![0x5a; bytes]))),
        Act::Write(path) => {
            let written = std::fs::write(path, "by the worker");
            return say(&text(written.map(|()| String::new())));
        }
    }
    say(&Said::Text("done".to_owned()))
}

fn send_call(guest: &Guest, call: &GuestCall, id: u64, op: &str) {
    let message = FromWorker::Call {
        sid: call.sid(),
        id,
        op: op.to_owned(),
        input: Blob::Inline(Body::default()),
        opts: Body::default(),
    };
    // A host that has had enough reads no more.
    let _ = guest.send(&message, Vec::new());
}

/// Calls the host; another thread takes the reply.
fn ask(guest: &Guest, call: &GuestCall, op: String) -> Outcome {
    send_call(guest, call, call.id(), &op);
    loop {
        let mut replies = REPLIES.lock().expect("no thread panics with it");
        if let Some(at) = replies.iter().position(|(id, _)| *id == call.id()) {
            return match replies.remove(at).1 {
                Reply::Ok(blob) => Ok(Body::from_cbor(blob.read(&[], 1 << 20).expect("inline"))),
                Reply::Err(fault) => Err(fault),
            };
        }
        drop(replies);
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}
