//! QEMU as a child process that cannot outlive its parent.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

/// The first descriptor that a child gets. Its standard streams are below.
pub(crate) const FIRST_FD: RawFd = 3;

/// A child that dies with this process, however that ends, and at the latest when this is dropped.
#[derive(Debug)]
pub struct ChildProcess {
    child: Mutex<Child>,
    pid: Pid,
}

impl ChildProcess {
    /// Starts `command`. The descriptors in `fds` become 3, 4, 5 … of the child.
    ///
    /// The kernel sends the parent-death signal when the *thread* that forked ends, so one thread
    /// that never ends forks all children. They are in the network namespace of the thread that
    /// calls this all the same, as they would be if it forked them.
    pub fn spawn(command: Command, fds: Vec<OwnedFd>) -> io::Result<Self> {
        let (answer, result) = channel();
        let gone = || io::Error::other("the thread that starts machines is gone");
        spawner()
            .send(SpawnRequest {
                command,
                fds,
                network: network()?,
                answer,
            })
            .map_err(|_| gone())?;
        let child = result.recv().map_err(|_| gone())??;
        let pid = Pid::from_raw(child.id().cast_signed());
        Ok(Self {
            child: Mutex::new(child),
            pid,
        })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.pid.as_raw().cast_unsigned()
    }

    /// The processor time that it has used, ended threads included. `None` once it was waited for.
    pub fn cpu_time(&self) -> Option<Duration> {
        self.cpu_clock()?.read()
    }

    /// The clock of its processor time, for other threads to read.
    pub fn cpu_clock(&self) -> Option<CpuClock> {
        ClockId::pid_cpu_clock_id(self.pid).ok().map(CpuClock)
    }

    /// How long its threads were ready to run and waited for a processor, all of them together.
    /// `None` if the kernel does not say it.
    pub(crate) fn kept_waiting(&self) -> Option<Duration> {
        let threads = fs::read_dir(format!("/proc/{}/task", self.pid)).ok()?;
        let waited = threads.filter_map(|thread| {
            // A thread may have ended meanwhile. Documentation/scheduler/sched-stats.rst: the
            // second number, in ns.
            let text = fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()?;
            text.split_whitespace().nth(1)?.parse::<u64>().ok()
        });
        Some(Duration::from_nanos(waited.sum()))
    }

    /// The memory that it holds now, in bytes.
    pub fn resident_bytes(&self) -> Option<u64> {
        let statm = fs::read_to_string(format!("/proc/{}/statm", self.pid)).ok()?;
        let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
        Some(pages * PAGE_BYTES)
    }

    /// Ends it at once and waits for it. Harmless if it has ended already.
    pub fn kill(&self) -> io::Result<ExitStatus> {
        let mut child = self.child();
        child.kill()?;
        child.wait()
    }

    /// Waits for its end.
    pub fn wait(&self) -> io::Result<ExitStatus> {
        self.child().wait()
    }

    /// Its exit status, if it has ended.
    pub fn try_wait(&self) -> io::Result<Option<ExitStatus>> {
        self.child().try_wait()
    }

    fn child(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for ChildProcess {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// A process's processor time.
#[derive(Clone, Copy, Debug)]
pub struct CpuClock(ClockId);

impl CpuClock {
    /// The time now. `None` once the process is gone.
    pub fn read(&self) -> Option<Duration> {
        clock_gettime(self.0).ok().map(Duration::from)
    }
}

/// `exit status 1` or `killed by signal 9`.
pub(crate) fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}

/// Size of a page on x86-64, the only host that this harness knows.
const PAGE_BYTES: u64 = 4096;

struct SpawnRequest {
    command: Command,
    fds: Vec<OwnedFd>,
    /// The network namespace for the child.
    network: File,
    answer: Sender<io::Result<Child>>,
}

fn spawner() -> Sender<SpawnRequest> {
    static SPAWNER: OnceLock<Mutex<Sender<SpawnRequest>>> = OnceLock::new();
    let sender = SPAWNER.get_or_init(|| {
        let (sender, jobs) = channel::<SpawnRequest>();
        // The thread lives as long as the process, because the sender is never dropped.
        std::thread::spawn(move || {
            for SpawnRequest {
                command,
                fds,
                network,
                answer,
            } in jobs
            {
                let forked = enter(&network).and_then(|()| fork(command, &fds));
                let _ = answer.send(forked);
            }
        });
        Mutex::new(sender)
    });
    sender
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone()
}

/// The network namespace of the calling thread.
fn network() -> io::Result<File> {
    File::open("/proc/thread-self/ns/net")
}

/// Moves the calling thread into a network namespace, unless it is there. Only root may move.
fn enter(wanted: &File) -> io::Result<()> {
    let is_there = network()?.metadata()?.ino() == wanted.metadata()?.ino();
    if is_there {
        return Ok(());
    }
    Ok(setns(wanted, CloneFlags::CLONE_NEWNET)?)
}

fn fork(mut command: Command, fds: &[OwnedFd]) -> io::Result<Child> {
    let parent = std::process::id();
    let fds: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let mut parked = vec![-1; fds.len()];
    // SAFETY: this runs between fork and exec, where only async-signal-safe functions may be
    // called. prctl, getppid, fcntl and dup2 are such functions, and nothing here allocates or
    // takes a lock.
    unsafe {
        command.pre_exec(move || {
            die_with_parent(parent)?;
            move_fds(&fds, &mut parked)
        });
    }
    command.spawn()
}

/// Asks the kernel to kill this process with its parent. Fails if the parent is gone by now: then
/// no signal comes (prctl(2), PR_SET_PDEATHSIG).
fn die_with_parent(parent: u32) -> io::Result<()> {
    // SAFETY: prctl with PR_SET_PDEATHSIG reads its integer arguments and nothing else.
    if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: getppid has no arguments and cannot fail.
    if unsafe { libc::getppid() } != parent.cast_signed() {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    Ok(())
}

/// Moves `fds` to 3, 4, 5 …. It first copies them above every target, so that none is overwritten
/// before it was moved.
fn move_fds(fds: &[RawFd], parked: &mut [RawFd]) -> io::Result<()> {
    // Copies go above all target numbers first, or one could overwrite another that is still
    // needed.
    let above = FIRST_FD + libc::c_int::try_from(fds.len()).unwrap_or(libc::c_int::MAX / 2);
    for (fd, parked) in fds.iter().zip(parked.iter_mut()) {
        // SAFETY: F_DUPFD_CLOEXEC takes two integers, and the result is checked.
        *parked = unsafe { libc::fcntl(*fd, libc::F_DUPFD_CLOEXEC, above) };
        if *parked < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    for (target, parked) in (FIRST_FD..).zip(parked.iter()) {
        // SAFETY: dup2 takes two integers. The copy is without close-on-exec, as intended.
        if unsafe { libc::dup2(*parked, target) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn descriptors_arrive_in_order() {
        let (mut ours, theirs) = UnixStream::pair().expect("a socket pair can be made");
        let (mut ours2, theirs2) = UnixStream::pair().expect("a socket pair can be made");
        let fds = vec![theirs.into(), theirs2.into()];
        let child = ChildProcess::spawn(shell("echo three >&3; echo four >&4"), fds)
            .expect("every system has a shell");
        let (mut three, mut four) = (String::new(), String::new());
        ours.read_to_string(&mut three)
            .expect("the child closes its end");
        ours2
            .read_to_string(&mut four)
            .expect("the child closes its end");
        assert_eq!((three.as_str(), four.as_str()), ("three\n", "four\n"));
        assert!(child.wait().expect("it is our child").success());
    }

    #[test]
    fn a_dropped_process_is_gone() {
        let child = ChildProcess::spawn(shell("exec sleep 1000"), vec![])
            .expect("every system has a shell");
        let proc = format!("/proc/{}", child.id());
        assert!(fs::exists(&proc).expect("proc is mounted"));
        assert!(child.cpu_time().is_some());
        drop(child);
        assert!(!fs::exists(&proc).expect("proc is mounted"));
    }

    #[test]
    fn a_process_outlives_the_thread_that_asked_for_it() {
        let child = std::thread::spawn(|| {
            ChildProcess::spawn(shell("exec 2>/dev/null; read x <&3; exit 7"), vec![])
        });
        let child = child
            .join()
            .expect("it does not panic")
            .expect("every system has a shell");
        // There is no descriptor 3: the shell ends with an error of its own, not by the death of a
        // thread.
        let status = child.wait().expect("it is our child");
        assert_eq!(status.signal(), None, "{}", describe(status));
    }

    #[test]
    fn a_program_that_is_not_there_is_an_error() {
        let error =
            ChildProcess::spawn(Command::new("/nowhere/qemu"), vec![]).expect_err("nothing there");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
