//! Starts a process: one `clone3` with every namespace, a few system calls, `execveat`.
//!
//! Between the two the child is a copy of a process with many threads, of which only one was copied: any lock may be
//! held for ever (fork(2)). Hence [`child`] makes system calls only, on data that was prepared before: no allocation,
//! no lock, no library function that could take one. It does not return, so that no destructor runs either. The
//! worker does everything else after the exec, before it reads any foreign input.

use std::ffi::{CString, c_char};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::{fs, ptr};

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{
    Resource, Rlimit, Signal, chdir, set_parent_process_death_signal, setrlimit, setsid,
};
use rustix::thread::disable_transparent_huge_pages;

use super::ProcessMemory;
use crate::setup::{HOST_FD, Namespaces};

/// `CLONE_CLEAR_SIGHAND` and `CLONE_INTO_CGROUP`, which do not fit the type of libc's constants.
const CLEAR_SIGNAL_HANDLERS: u64 = 0x1_0000_0000;
const INTO_CGROUP: u64 = 0x2_0000_0000;
/// Lowest number of a prepared descriptor: above those that the child places.
const PREPARED_FD_MIN: RawFd = 10;
/// Exit status of a child that could not execute. The parent reads the pipe instead, which has the error.
const NOT_STARTED: i32 = 127;

/// The parameters of a start, all of them prepared before the clone.
pub(crate) struct Launch<'a> {
    /// `None` for a trial, which ends where it would execute.
    pub(crate) executable: Option<BorrowedFd<'a>>,
    pub(crate) arguments: &'a [CString],
    pub(crate) environment: &'a [CString],
    /// Becomes standard input.
    pub(crate) null: BorrowedFd<'a>,
    /// Becomes standard output and error.
    pub(crate) output: BorrowedFd<'a>,
    /// Becomes descriptor 3.
    pub(crate) host: BorrowedFd<'a>,
    pub(crate) limits: &'a [(Resource, Rlimit)],
    /// Whether its memory may be in huge pages, of which a small used part takes the whole.
    pub(crate) huge_pages: bool,
    pub(crate) namespaces: Namespaces,
    pub(crate) identity: ProcessIdentity,
    pub(crate) cgroup: Option<BorrowedFd<'a>>,
}

/// The user of the process outside its namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProcessIdentity {
    /// The user of its parent.
    Own,
    /// This user and group, which are root inside the user namespace. Needs a privileged parent.
    Other(u32),
}

/// A process that has executed.
#[derive(Debug)]
pub(crate) struct LaunchedProcess {
    pub(crate) pid: i32,
    pub(crate) pidfd: OwnedFd,
    pub(crate) memory: Arc<ProcessMemory>,
}

/// The step at which a start failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum LaunchStage {
    Prepare,
    Clone,
    Identity,
    Streams,
    Limits,
    Execute,
}

/// A start that failed.
#[derive(Debug, thiserror::Error)]
#[error("{stage:?}: {source}")]
pub(crate) struct LaunchError {
    pub(crate) stage: LaunchStage,
    #[source]
    source: io::Error,
}

impl LaunchError {
    fn at(stage: LaunchStage) -> impl Fn(io::Error) -> Self {
        move |source| Self { stage, source }
    }
}

impl Launch<'_> {
    /// Starts the process and waits until it has executed. The child ends with the calling thread.
    pub(crate) fn start(&self) -> Result<LaunchedProcess, LaunchError> {
        let prepare = LaunchError::at(LaunchStage::Prepare);
        let high = |fd: BorrowedFd<'_>| {
            rustix::io::fcntl_dupfd_cloexec(fd, PREPARED_FD_MIN)
                .map_err(|error| LaunchError::at(LaunchStage::Prepare)(error.into()))
        };
        let (null, output, host) = (high(self.null)?, high(self.output)?, high(self.host)?);
        let executable = self.executable.map(high).transpose()?;
        let (low_go_read, go_write) =
            pipe_with(PipeFlags::CLOEXEC).map_err(|error| prepare(error.into()))?;
        let (report_read, low_report_write) =
            pipe_with(PipeFlags::CLOEXEC).map_err(|error| prepare(error.into()))?;
        let (go_read, report_write) = (high(low_go_read.as_fd())?, high(low_report_write.as_fd())?);
        // With an end of the child's pipe open here, the parent would not see the child's end.
        drop((low_go_read, low_report_write));
        let arguments = pointers(self.arguments);
        let environment = pointers(self.environment);
        let prepared = PreparedLaunch {
            executable: executable.as_ref().map(AsFd::as_fd),
            arguments: &arguments,
            environment: &environment,
            streams: [null.as_fd(), output.as_fd(), output.as_fd(), host.as_fd()],
            limits: self.limits,
            huge_pages: self.huge_pages,
            identity: self.identity,
            namespaces: self.namespaces,
            go: go_read.as_fd(),
            report: report_write.as_fd(),
            parent_go: go_write.as_fd(),
        };
        let (pid, pidfd) = self.clone_process(&prepared)?;
        // With an end of the child's pipe open here, the parent would not see the child's end.
        drop((go_read, report_write));
        let begin = |memory: ProcessMemory| {
            let begun = self
                .map_users(pid)
                .and_then(|()| fs::File::from(go_write).write_all(&[1]));
            begun.map_err(LaunchError::at(LaunchStage::Identity))?;
            child_result(report_read).map(|()| memory)
        };
        // The child waits meanwhile, so its number is not another process's.
        let opened = ProcessMemory::open(pid).map_err(LaunchError::at(LaunchStage::Prepare));
        let outcome = opened.and_then(begin);
        if outcome.is_err() || self.executable.is_none() {
            end(&pidfd);
        }
        outcome.map(|memory| LaunchedProcess {
            pid,
            pidfd,
            memory: Arc::new(memory),
        })
    }

    /// Returns the child's number, and its descriptor.
    fn clone_process(&self, prepared: &PreparedLaunch<'_>) -> Result<(i32, OwnedFd), LaunchError> {
        let mut pidfd: RawFd = -1;
        // SAFETY: all fields are numbers, for which zero means "none".
        let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
        arguments.flags = flags(self.namespaces);
        arguments.pidfd = (&raw mut pidfd) as u64;
        arguments.exit_signal = libc::SIGCHLD as u64;
        if let Some(group) = self.cgroup {
            arguments.flags |= INTO_CGROUP;
            arguments.cgroup = u64::from(group.as_raw_fd().unsigned_abs());
        }
        let size = size_of::<libc::clone_args>();
        // SAFETY: the arguments are a clone_args and its size, and outlive the call. No memory is
        // shared with the child (no CLONE_VM) and no stack given, so that it goes on here, on a copy
        // of everything, as after fork. It then runs `child` alone, which keeps to what is allowed.
        let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut arguments, size) };
        if pid == 0 {
            child(prepared);
        }
        if pid < 0 {
            return Err(LaunchError::at(LaunchStage::Clone)(
                io::Error::last_os_error(),
            ));
        }
        // SAFETY: the kernel has just stored a new descriptor there, which has no other owner.
        let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
        let pid = i32::try_from(pid).unwrap_or(i32::MAX);
        Ok((pid, pidfd))
    }

    /// Maps a user and a group into the child's user namespace. Only the parent may map a user other than the child's
    /// own (user_namespaces(7)).
    fn map_users(&self, pid: i32) -> io::Result<()> {
        if !self.namespaces.user {
            return Ok(());
        }
        let (user, group) = match self.identity {
            ProcessIdentity::Other(id) => (id, id),
            ProcessIdentity::Own => {
                // An unprivileged process may map a group only after it has denied setgroups (user_namespaces(7)).
                fs::write(format!("/proc/{pid}/setgroups"), "deny")?;
                let user = rustix::process::geteuid().as_raw();
                (user, rustix::process::getegid().as_raw())
            }
        };
        fs::write(format!("/proc/{pid}/uid_map"), format!("0 {user} 1\n"))?;
        fs::write(format!("/proc/{pid}/gid_map"), format!("0 {group} 1\n"))
    }
}

fn flags(namespaces: Namespaces) -> u64 {
    // No signal handler of the host may run in the copy of its process.
    let mut flags = CLEAR_SIGNAL_HANDLERS | libc::CLONE_PIDFD as u64;
    for (wanted, flag) in [
        (namespaces.ipc, libc::CLONE_NEWIPC),
        (namespaces.mount, libc::CLONE_NEWNS),
        (namespaces.net, libc::CLONE_NEWNET),
        (namespaces.pid, libc::CLONE_NEWPID),
        (namespaces.user, libc::CLONE_NEWUSER),
    ] {
        if wanted {
            flags |= u64::from(flag.unsigned_abs());
        }
    }
    flags
}

/// The strings in the form of execve(2): addresses, and a null at the end.
fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    let addresses = strings.iter().map(|string| string.as_ptr());
    addresses.chain([ptr::null()]).collect()
}

/// Reads the child's report, which is empty if the child executed and the kernel closed the pipe.
fn child_result(pipe: OwnedFd) -> Result<(), LaunchError> {
    let mut bytes = Vec::new();
    fs::File::from(pipe)
        .read_to_end(&mut bytes)
        .map_err(LaunchError::at(LaunchStage::Execute))?;
    let Some((stage, errno)) = bytes.split_first() else {
        return Ok(());
    };
    let stage = match *stage {
        1 => LaunchStage::Clone,
        2 => LaunchStage::Identity,
        3 => LaunchStage::Streams,
        4 => LaunchStage::Limits,
        _ => LaunchStage::Execute,
    };
    let errno = <[u8; 4]>::try_from(errno).map_or(0, i32::from_ne_bytes);
    Err(LaunchError::at(stage)(io::Error::from_raw_os_error(errno)))
}

/// Kills and collects a child that is not needed.
fn end(pidfd: &OwnedFd) {
    // It may have ended by itself.
    let _ = rustix::process::pidfd_send_signal(pidfd, Signal::KILL);
    let id = rustix::process::WaitId::PidFd(pidfd.as_fd());
    let _ = rustix::process::waitid(id, rustix::process::WaitIdOptions::EXITED);
}

/// The data of the child.
struct PreparedLaunch<'a> {
    executable: Option<BorrowedFd<'a>>,
    arguments: &'a [*const c_char],
    environment: &'a [*const c_char],
    streams: [BorrowedFd<'a>; 4],
    limits: &'a [(Resource, Rlimit)],
    huge_pages: bool,
    identity: ProcessIdentity,
    namespaces: Namespaces,
    go: BorrowedFd<'a>,
    report: BorrowedFd<'a>,
    parent_go: BorrowedFd<'a>,
}

/// Runs the child until it is another program. It makes system calls only; see the head of this file.
fn child(prepared: &PreparedLaunch<'_>) -> ! {
    let Err((stage, errno)) = prepared.run() else {
        // A trial that succeeded ends here.
        super::end_now(0);
    };
    let number = errno.raw_os_error().to_ne_bytes();
    let message = [stage as u8, number[0], number[1], number[2], number[3]];
    // A parent that has gone needs no report.
    let _ = rustix::io::write(prepared.report, &message);
    super::end_now(NOT_STARTED)
}

impl PreparedLaunch<'_> {
    fn run(&self) -> Result<(), (LaunchStage, Errno)> {
        self.wait_for_users()?;
        self.take_identity()
            .map_err(|e| (LaunchStage::Identity, e))?;
        self.place_streams()
            .map_err(|e| (LaunchStage::Streams, e))?;
        for (resource, limit) in self.limits {
            setrlimit(*resource, *limit).map_err(|e| (LaunchStage::Limits, e))?;
        }
        // The setting is made in both cases: the program that starts workers may itself run without huge pages.
        disable_transparent_huge_pages(!self.huge_pages).map_err(|e| (LaunchStage::Limits, e))?;
        let Some(executable) = self.executable else {
            return Ok(());
        };
        let flags = libc::AT_EMPTY_PATH;
        // SAFETY: path, arguments and environment are strings that end with a null, in arrays that
        // end with one, made before the clone and never freed here.
        unsafe {
            libc::syscall(
                libc::SYS_execveat,
                executable.as_raw_fd(),
                c"".as_ptr(),
                self.arguments.as_ptr(),
                self.environment.as_ptr(),
                flags,
            );
        }
        Err((LaunchStage::Execute, last_errno()))
    }

    /// Waits until the parent has mapped the users. If the parent ends, the pipe closes.
    fn wait_for_users(&self) -> Result<(), (LaunchStage, Errno)> {
        // The copy of the parent's own end would keep the pipe open for ever.
        // SAFETY: close takes a number; the child does not use this copy of the descriptor.
        unsafe { libc::close(self.parent_go.as_raw_fd()) };
        let mut byte = [0];
        match rustix::io::read(self.go, &mut byte) {
            Ok(1) => Ok(()),
            Ok(_) => Err((LaunchStage::Identity, Errno::CANCELED)),
            Err(errno) => Err((LaunchStage::Identity, errno)),
        }
    }

    fn take_identity(&self) -> Result<(), Errno> {
        if self.namespaces.user && matches!(self.identity, ProcessIdentity::Other(_)) {
            // SAFETY: numbers, and a list of none. glibc's own functions would tell every thread of a
            // process whose other threads are not here.
            let outcome = unsafe {
                libc::syscall(libc::SYS_setgroups, 0, ptr::null::<libc::gid_t>())
                    | libc::syscall(libc::SYS_setresgid, 0, 0, 0)
                    | libc::syscall(libc::SYS_setresuid, 0, 0, 0)
            };
            if outcome != 0 {
                return Err(last_errno());
            }
        }
        // This comes after the user: changing it clears the signal (prctl(2), PR_SET_PDEATHSIG).
        set_parent_process_death_signal(Some(Signal::KILL))?;
        setsid()?;
        chdir(c"/")
    }

    fn place_streams(&self) -> Result<(), Errno> {
        for (target, stream) in (0..).zip(&self.streams) {
            // SAFETY: dup3 takes numbers; 0 to 3 are the child's to give, and what it still needs
            // lies above them.
            if unsafe { libc::dup3(stream.as_raw_fd(), target, 0) } < 0 {
                return Err(last_errno());
            }
        }
        let first = HOST_FD.unsigned_abs() + 1;
        let flags = libc::CLOSE_RANGE_CLOEXEC;
        // SAFETY: numbers only. Descriptors stay open until the exec, then none is left but four.
        if unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, flags) } != 0 {
            return Err(last_errno());
        }
        Ok(())
    }
}

/// The error number that the C library's wrapper has just stored.
fn last_errno() -> Errno {
    // SAFETY: the address is the calling thread's own.
    let errno = unsafe { *libc::__errno_location() };
    Errno::from_raw_os_error(errno)
}

/// `child_result` reads these numbers of the stages.
const _: () = assert!(LaunchStage::Clone as u8 == 1 && LaunchStage::Execute as u8 == 5);
