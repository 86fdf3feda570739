//! The probe as PID 1 of a machine that has nothing else: workers in groups of their own, whose limits the probe
//! tries.
//!
//! Its last line is `worker machine: all is well`, or the failure.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use alknet_worker::{
    CallLimits, CborBody, ConfinementLevel, DelegatedCgroup, Executable, RoleConfig, WorkerAnswer,
    WorkerCallError, WorkerEndReason, WorkerLease, WorkerReply, WorkerRequest, WorkerRole,
    WorkerSession, Workers, WorkersConfig,
};

use crate::act::{ProbeAct, ProbeReply};

/// The folder of the groups.
const GROUPS: &str = "/sys/fs/cgroup";
/// Memory of a worker, bytes, and a smaller and a larger amount.
const MEMORY: u64 = 64 << 20;
const LESS: u64 = 24 << 20;
const MORE: u64 = 128 << 20;
/// Threads of a worker, and a larger number.
const THREADS: u32 = 16;
const MORE_THREADS: u64 = 100;
/// Hundredths of a processor.
const PERCENT: u32 = 20;
/// How long a worker tries to use a whole one at the most; a period of the kernel's has 100 ms.
const SPINS: Duration = Duration::from_secs(30);
/// How long any step may take. The machine is emulated, and ends with the test.
const LONG: Duration = Duration::from_secs(300);

pub(crate) fn run() -> ! {
    match everything() {
        Ok(()) => println!("worker machine: all is well"),
        Err(error) => println!("worker machine: {error}"),
    }
    loop {
        // The test reads the console before the machine goes.
        std::thread::sleep(LONG);
    }
}

fn everything() -> Result<(), String> {
    mount("proc", "/proc")?;
    mount("sysfs", "/sys")?;
    mount("devtmpfs", "/dev")?;
    mount("tmpfs", "/tmp")?;
    mount("cgroup2", GROUPS)?;
    let delegated = Path::new(GROUPS).join("workers");
    fs::create_dir(&delegated).map_err(|error| format!("make a group: {error}"))?;
    let control = Path::new(GROUPS).join("cgroup.subtree_control");
    fs::write(&control, "+memory +cpu +pids").map_err(|error| format!("controllers: {error}"))?;
    let mut config = WorkersConfig::this_executable();
    config.executable = Executable::This;
    config.silence = LONG;
    config.cgroup = Some(DelegatedCgroup {
        path: delegated.clone(),
    });
    config.roles = WorkerRole::ALL.map(RoleConfig::new).to_vec();
    for role in &mut config.roles {
        role.memory_bytes = MEMORY;
        role.pids = THREADS;
        role.cpu_percent = Some(PERCENT);
    }
    let workers = Workers::start(config).map_err(|error| format!("{error:?}"))?;
    memory(&workers)?;
    threads(&workers)?;
    processor(&workers, &delegated)
}

/// Shared memory, which only the group counts: the supervisor checks a worker's private memory.
fn memory(workers: &Workers) -> Result<(), String> {
    for role in [WorkerRole::Js, WorkerRole::Gpu] {
        let session = open(workers, role, "memory")?;
        let sandbox = session.sandbox();
        if sandbox.level != ConfinementLevel::Full {
            return Err(format!("{role}: {} {:?}", sandbox.level, sandbox.gaps));
        }
        check_confinement(session.pid()).map_err(|error| format!("{role}: {error}"))?;
        ask(&session, &ProbeAct::Share(LESS))
            .map_err(|error| format!("{role}, little: {error}"))?;
        match ask(&session, &ProbeAct::Share(MORE)) {
            Err(WorkerCallError::Lost(loss)) if loss.reason == WorkerEndReason::Memory => {}
            other => return Err(format!("{role}, {MORE} bytes: {other:?}")),
        }
    }
    Ok(())
}

/// The kernel's report of a worker's layers, beside the worker's own.
fn check_confinement(pid: i32) -> Result<(), String> {
    let told = |error: io::Error| format!("process {pid}: {error}");
    let status = fs::read_to_string(format!("/proc/{pid}/status")).map_err(told)?;
    for layer in ["CapEff:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"] {
        if !status.lines().any(|line| line == layer) {
            return Err(format!("no {layer:?}"));
        }
    }
    let mut root = fs::read_dir(format!("/proc/{pid}/root")).map_err(told)?;
    match root.next() {
        None => Ok(()),
        Some(entry) => Err(format!("in its root: {entry:?}")),
    }
}

/// A role that may have threads.
fn threads(workers: &Workers) -> Result<(), String> {
    let session = open(workers, WorkerRole::Gpu, "threads")?;
    let answer =
        ask(&session, &ProbeAct::Threads(MORE_THREADS)).map_err(|error| error.to_string())?;
    let started = match said(answer)? {
        ProbeReply::Text(count) => count.parse::<u32>().map_err(|error| error.to_string())?,
        other => return Err(format!("{other:?}")),
    };
    if (1..THREADS).contains(&started) {
        Ok(())
    } else {
        Err(format!(
            "{started} threads of {MORE_THREADS} were started, where {THREADS} may be"
        ))
    }
}

fn processor(workers: &Workers, delegated: &Path) -> Result<(), String> {
    let session = open(workers, WorkerRole::Js, "processor")?;
    let limits = CallLimits {
        wall: LONG,
        cpu: None,
        gpu: None,
    };
    let spins = session.call(request(&ProbeAct::Spin { obeys: true }), limits, None);
    let began = Instant::now();
    // While it runs: the group goes with its worker.
    let held_back = loop {
        let groups = fs::read_dir(delegated).map_err(|error| error.to_string())?;
        let times: u64 = groups.flatten().map(|entry| throttled(&entry.path())).sum();
        if times > 0 || began.elapsed() > SPINS {
            break times > 0;
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    spins.abort();
    // It obeys, or is too slow to.
    let ended = spins.wait();
    if held_back {
        Ok(())
    } else {
        Err(format!("a worker was never held back: {ended:?}"))
    }
}

/// How often the kernel held a group back.
fn throttled(group: &Path) -> u64 {
    let text = fs::read_to_string(group.join("cpu.stat")).unwrap_or_default();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("nr_throttled "));
    line.and_then(|count| count.parse().ok()).unwrap_or(0)
}

fn open(workers: &Workers, role: WorkerRole, tenant: &str) -> Result<WorkerSession, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    let session = runtime.block_on(workers.open(WorkerLease::new(role, tenant)));
    session.map_err(|error| format!("{role}: {error}"))
}

fn request(act: &ProbeAct) -> WorkerRequest {
    WorkerRequest::role(CborBody::encode(act).expect("CBOR").into_bytes())
}

fn ask(session: &WorkerSession, act: &ProbeAct) -> Result<WorkerAnswer, WorkerCallError> {
    let limits = CallLimits {
        wall: LONG,
        cpu: None,
        gpu: None,
    };
    session.call(request(act), limits, None).wait()
}

fn said(answer: WorkerAnswer) -> Result<ProbeReply, String> {
    let WorkerReply::Ok(blob) = answer.reply else {
        return Err("a fault".to_owned());
    };
    let bytes = blob
        .read(&answer.fds, 1 << 20)
        .map_err(|error| error.to_string())?;
    CborBody::from_cbor(bytes)
        .read()
        .map_err(|error| error.to_string())
}

fn mount(kind: &str, at: &str) -> Result<(), String> {
    let text = |text: &str| std::ffi::CString::new(text).expect("no zero byte");
    fs::create_dir_all(PathBuf::from(at)).map_err(|error| format!("make {at}: {error}"))?;
    let (kind, target) = (text(kind), text(at));
    // SAFETY: the texts outlive the call, and nothing is passed along.
    let mounted = unsafe {
        libc::mount(
            kind.as_ptr(),
            target.as_ptr(),
            kind.as_ptr(),
            0,
            std::ptr::null(),
        )
    };
    if mounted == 0 {
        return Ok(());
    }
    Err(format!("mount {at}: {}", io::Error::last_os_error()))
}
