//! Programs in their own process groups, which end with all that they started, and with this
//! process.

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::os::fd::IntoRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, exit};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::prctl;
use nix::sys::signal::{self, SigHandler, Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

/// How long programs have to end in order after a signal ended this process.
const GRACE: Duration = Duration::from_millis(500);

/// How often a program is polled for its end.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// The groups of this process.
#[derive(Debug)]
struct ProcessGroups {
    /// Groups whose leaders were started and not yet reaped, so that no other group can have their
    /// numbers.
    running: BTreeSet<Pid>,
    /// Whether a signal came, and this process exits in a moment.
    ending: bool,
}

static GROUPS: Mutex<ProcessGroups> = Mutex::new(ProcessGroups {
    running: BTreeSet::new(),
    ending: false,
});

fn groups() -> MutexGuard<'static, ProcessGroups> {
    GROUPS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Stops this thread if the process is ending. Its next action is of no use, such as a report that
/// a program failed that the signal ended. A return from `main` would come before the last SIGKILL.
fn stop_if_ending(
    groups: MutexGuard<'static, ProcessGroups>,
) -> MutexGuard<'static, ProcessGroups> {
    if groups.ending {
        drop(groups);
        // The thread that ends the process is at work, and no program may be started meanwhile.
        loop {
            thread::park();
        }
    }
    groups
}

/// A program that leads its own group. The group gets the signals that [end this
/// process](end_with_this_process), and SIGKILL if this is dropped before the program was
/// [reaped](Self::reap).
#[derive(Debug)]
pub(crate) struct ProcessGroup {
    child: Child,
    reaped: bool,
}

impl ProcessGroup {
    /// Starts the program by `spawn`. It ends when the calling thread ends: Ctrl-C reaches this
    /// process only, and must not leave compilers and test programs behind.
    pub(crate) fn start(
        command: &mut Command,
        spawn: impl FnOnce(&mut Command) -> io::Result<Child>,
    ) -> io::Result<Self> {
        // The program has its own group, so that what it starts can be ended with it.
        command.process_group(0);
        // SAFETY: the closure makes one system call and allocates nothing, as it must between fork
        // and exec.
        unsafe { command.pre_exec(|| Ok(prctl::set_pdeathsig(Signal::SIGTERM)?)) };
        // The set is locked until the group is in it: a signal either finds the group there or
        // keeps it from starting.
        let mut groups = stop_if_ending(groups());
        let child = spawn(command)?;
        groups.running.insert(pid(&child));
        Ok(Self {
            child,
            reaped: false,
        })
    }

    /// The program itself, for its pipes. Only [`reap`](Self::reap) may wait for it.
    pub(crate) const fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Sends `signal` to the program and to all of its group.
    pub(crate) fn signal(&self, signal: Signal) {
        // A group whose processes are all gone needs no signal.
        let _ = killpg(pid(&self.child), signal);
    }

    /// Whether the program has ended. It stays a zombie, which keeps its number from other
    /// processes.
    pub(crate) fn has_ended(&self) -> io::Result<bool> {
        // The program is not reaped: the number of the group stays taken until the group was
        // signalled.
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT | WaitPidFlag::WNOHANG;
        Ok(waitid(Id::Pid(pid(&self.child)), flags)? != WaitStatus::StillAlive)
    }

    /// Waits until the program has ended. It stays a zombie.
    pub(crate) fn wait(&self) -> io::Result<()> {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
        waitid(Id::Pid(pid(&self.child)), flags)?;
        Ok(())
    }

    /// Waits until the program has ended, and frees its number. Programs that it left in its group
    /// go on.
    pub(crate) fn reap(mut self) -> io::Result<ExitStatus> {
        self.wait()?;
        self.free()
    }

    /// Removes the number from the set before the kernel may give it to another process.
    fn free(&mut self) -> io::Result<ExitStatus> {
        stop_if_ending(groups()).running.remove(&pid(&self.child));
        self.reaped = true;
        self.child.wait()
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        if !self.reaped {
            self.signal(Signal::SIGKILL);
            if self.wait().is_ok() {
                let _ = self.free();
            }
        }
    }
}

/// Ends programs with all of their groups: by `signal`, and by SIGKILL those that have not ended
/// after `grace`. A stopped program is continued, because it handles no other signal.
pub(crate) fn end(programs: &[ProcessGroup], signal: Signal, grace: Duration) -> io::Result<()> {
    for program in programs {
        program.signal(signal);
        program.signal(Signal::SIGCONT);
    }
    let until = Instant::now() + grace;
    for program in programs {
        while !program.has_ended()? && Instant::now() < until {
            thread::sleep(LOOK_EVERY);
        }
    }
    for program in programs {
        program.signal(Signal::SIGKILL);
        program.wait()?;
    }
    Ok(())
}

fn pid(child: &Child) -> Pid {
    // The kernel's own limit is far below.
    Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX))
}

/// The descriptor to which the handler writes the number of the signal.
static SIGNALLED: AtomicI32 = AtomicI32::new(-1);

/// Makes SIGINT, SIGTERM and SIGHUP end all [groups](ProcessGroup) before this process from now on:
/// the parent-death signal reaches only the leader of a group, not the machines and servers that a
/// test started.
pub(crate) fn end_with_this_process() -> io::Result<()> {
    let (mut reader, writer) = io::pipe()?;
    // The descriptor stays open for as long as a signal may come.
    SIGNALLED.store(writer.into_raw_fd(), Ordering::Relaxed);
    thread::spawn(move || {
        let mut number = [0];
        if reader.read_exact(&mut number).is_err() {
            return;
        }
        groups().ending = true;
        let send = |signal| {
            // From here on the set stays unchanged: no program is started or reaped.
            for group in &groups().running {
                // A group whose processes are all gone needs no signal.
                let _ = killpg(*group, signal);
            }
        };
        send(Signal::SIGTERM);
        // A stopped program handles SIGTERM once it is continued.
        send(Signal::SIGCONT);
        thread::sleep(GRACE);
        send(Signal::SIGKILL);
        // The exit status by which a shell reports the end by a signal.
        exit(128 + i32::from(number[0]));
    });
    // Handlers, not blocked signals: programs inherit what is blocked, and could not be ended.
    for kind in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler loads an atomic number and writes to a pipe, which is safe in a
        // signal.
        unsafe { signal::signal(kind, SigHandler::Handler(write_signal)) }?;
    }
    Ok(())
}

extern "C" fn write_signal(signal: libc::c_int) {
    // The numbers of these three are below 16.
    let number = [u8::try_from(signal).unwrap_or(u8::MAX)];
    // SAFETY: this writes one existing byte into a descriptor that stays open.
    unsafe { libc::write(SIGNALLED.load(Ordering::Relaxed), number.as_ptr().cast(), 1) };
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs;
    use std::path::Path;
    use std::process::Stdio;

    use alknet_test_support::{deadline, eventually, limited};

    use super::*;

    /// The variable that tells a copy of this test program its role, instead of the test that
    /// starts it.
    const CHILD: &str = "ALKNET_TEST_GROUP_CHILD";

    /// The file to which programs append their numbers.
    const STARTED: &str = "ALKNET_TEST_GROUP_STARTED";

    /// Starts a program that stays, and writes its number.
    const SLEEPER: &str = "sleep 1000 & echo $! >> \"$ALKNET_TEST_GROUP_STARTED\"; wait";

    /// Waits until `timeout`, which started this shell, waits for it. If a SIGTERM comes between
    /// `fork` and the assignment of its result, the `timeout` of coreutils 9.1 ends without a
    /// signal to what it started. Beside eight endless loops that happened once.
    const SUPERVISED: &str = "until grep -q '^State:.S' /proc/$PPID/status; do sleep 0.01; done";

    /// Longer than a test waits.
    const LONG: Duration = Duration::from_secs(600);

    /// The role, if this is a copy.
    pub(crate) fn role() -> Option<String> {
        std::env::var(CHILD).ok()
    }

    /// A copy of this test program that runs one test in a role, because a signal ends the whole
    /// process.
    pub(crate) fn copy(test: &str, role: &str, started: &Path) -> Command {
        let mut command = Command::new(std::env::current_exe().expect("a test program"));
        command
            .args(["--exact", test, "--nocapture"])
            .env(CHILD, role)
            .env(STARTED, started)
            .stdout(Stdio::null());
        command
    }

    /// The numbers of programs in the file, once there are as many.
    pub(crate) fn started(file: &Path, count: usize) -> Vec<i32> {
        eventually("programs start", Duration::from_secs(30), || {
            let text = fs::read_to_string(file).unwrap_or_default();
            let numbers: Vec<i32> = text.lines().filter_map(|line| line.parse().ok()).collect();
            (numbers.len() >= count && text.ends_with('\n')).then_some(numbers)
        })
    }

    /// Waits until the program is gone, or a zombie that an idle parent does not reap.
    pub(crate) fn is_gone(pid: i32) {
        let gone = || {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let state = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
            state.is_empty() || state.starts_with(['Z', 'X'])
        };
        let what = format!("the program {pid} is gone");
        eventually(&what, Duration::from_secs(10), gone);
    }

    /// Ends a copy once so many programs have started below it, and waits until they are gone.
    pub(crate) fn ends_with_all(mut copy: Command, file: &Path, count: usize, by: Signal) {
        let mut copy = copy.spawn().expect("it starts");
        started(file, count);
        signal::kill(pid(&copy), by).expect("it runs");
        let status = copy.wait().expect("ours");
        if by == Signal::SIGTERM {
            assert_eq!(status.code(), Some(128 + 15), "{status}");
        }
        started(file, count).into_iter().for_each(is_gone);
    }

    fn sh(script: &str) -> ProcessGroup {
        let mut command = Command::new("sh");
        ProcessGroup::start(command.args(["-c", script]), Command::spawn).expect("sh")
    }

    fn file() -> tempfile::NamedTempFile {
        tempfile::NamedTempFile::new().expect("a temporary file")
    }

    #[test]
    fn what_was_started_ends_with_this_process_and_can_be_ended_alone() {
        if role().is_some() {
            end_with_this_process().expect("signals can be handled");
            // SIGTERM is not blocked in what it starts: `timeout` ends its child by it.
            let ended = Command::new("timeout")
                .args(["0.01", "sleep", "1000"])
                .status();
            assert_eq!(ended.expect("it starts").code(), Some(124));
            sh(SLEEPER).reap().expect("ours");
            return thread::sleep(LONG);
        }
        let name = "group::tests::what_was_started_ends_with_this_process_and_can_be_ended_alone";
        let file = file();
        ends_with_all(
            copy(name, "runner", file.path()),
            file.path(),
            1,
            Signal::SIGTERM,
        );
    }

    /// The second program would start between SIGTERM to the first and the end of the process.
    #[test]
    fn what_would_start_while_this_process_ends_does_not() {
        if role().is_some() {
            end_with_this_process().expect("signals can be handled");
            for _ in 0..2 {
                sh(SLEEPER).reap().expect("ours");
            }
            return;
        }
        let name = "group::tests::what_would_start_while_this_process_ends_does_not";
        let file = file();
        ends_with_all(
            copy(name, "runner", file.path()),
            file.path(),
            1,
            Signal::SIGTERM,
        );
        assert_eq!(started(file.path(), 1).len(), 1);
    }

    /// `limited` stands between a test program and the sleeper.
    #[test]
    fn a_limited_program_ends_with_the_program_that_started_it() {
        let name = "group::tests::a_limited_program_ends_with_the_program_that_started_it";
        match role().as_deref() {
            Some("runner") => {
                end_with_this_process().expect("signals can be handled");
                let file = std::env::var_os(STARTED).expect("set above");
                let mut program = copy(name, "test program", Path::new(&file));
                let program = ProcessGroup::start(&mut program, Command::spawn).expect("it starts");
                program.reap().expect("ours");
                return;
            }
            Some(_) => {
                let mut sh = limited(LONG, "sh");
                let note = "echo $$ >> \"$ALKNET_TEST_GROUP_STARTED\"";
                sh.args(["-c", &format!("{SUPERVISED}; {note}; {SLEEPER}")]);
                sh.status().expect("it starts");
                return;
            }
            None => {}
        }
        for by in [Signal::SIGTERM, Signal::SIGKILL] {
            let file = file();
            ends_with_all(copy(name, "runner", file.path()), file.path(), 2, by);
        }
    }

    #[test]
    fn a_program_that_is_stopped_or_ignores_the_signal_ends_all_the_same() {
        let [stopped, deaf] = [
            "kill -STOP $$; sleep 1000",
            "trap '' TERM; while :; do sleep 0.01; done",
        ]
        .map(sh);
        let programs = [stopped, deaf];
        end(
            &programs,
            Signal::SIGTERM,
            deadline(Duration::from_millis(300)),
        )
        .expect("ours");
        for program in programs {
            assert!(!program.reap().expect("ours").success());
        }
    }

    #[test]
    fn a_program_keeps_its_number_until_it_is_reaped() {
        let program = sh("exit 3");
        program.wait().expect("ours");
        assert!(program.has_ended().expect("ours"));
        let number = pid(&program.child);
        assert!(groups().running.contains(&number));
        // A zombie can be sent a signal: no other process has its number.
        signal::kill(number, None).expect("it is there");
        assert_eq!(program.reap().expect("ours").code(), Some(3));
        assert!(!groups().running.contains(&number));
    }

    #[test]
    fn a_program_that_is_dropped_ends_with_its_group() {
        let file = file();
        let mut command = Command::new("sh");
        command.args(["-c", SLEEPER]).env(STARTED, file.path());
        let program = ProcessGroup::start(&mut command, Command::spawn).expect("sh");
        let sleepers = started(file.path(), 1);
        drop(program);
        sleepers.into_iter().for_each(is_gone);
    }
}
