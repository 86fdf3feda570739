//! A child that runs one helper task: the one binary executed again, unprivileged, in its own
//! control group. It has a socket and nothing else of PID 1. PID 1 does not trust its answer.

use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use zeroize::Zeroizing;

use crate::child::{check, duplicate_above};
use crate::groups;
use crate::helper_task::{HELPER_FD, HELPER_VERB, HelperOutcome, HelperTask, LINE_BYTES_MAX};

/// User and group of such a child. It differs from the node's: a running node must not be able to
/// read the child's memory.
const HELPER_UID: u32 = 1001;
/// Process name of the child.
const HELPER_NAME: &str = "alknet-helper";

/// Runs a task to its end. Blocks for up to [`HelperTask::time`], so PID 1's loop must not call it.
/// Run one at a time.
pub(crate) fn run(task: &HelperTask) -> io::Result<HelperOutcome> {
    let (ours, theirs) = UnixStream::pair()?;
    let mut child = execute(&theirs)?;
    // PID 1 drops its copy of the child's end: otherwise the stream would not end when the child
    // does.
    drop(theirs);
    let outcome = exchange(&ours, task, task.time());
    // All processes of the group are killed, whatever the answer was. PID 1 collects every child,
    // so the process id is certain to be the child's only while it has not ended.
    let late = |error: &io::Error| error.kind() == io::ErrorKind::TimedOut;
    // Clearing fails on a kernel without control groups, where the child alone can be killed.
    if groups::clear_helper_task().is_err() && outcome.as_ref().is_err_and(late) {
        // A child that has just ended fails this.
        let _ = child.kill();
    }
    outcome
}

fn execute(channel: &UnixStream) -> io::Result<Child> {
    let channel = channel.as_raw_fd();
    let group = groups::helper_cgroup();
    let cgroup_procs = group.as_ref().map(AsRawFd::as_raw_fd);
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0(HELPER_NAME)
        .arg(HELPER_VERB)
        .env_clear()
        .current_dir("/")
        .uid(HELPER_UID)
        .gid(HELPER_UID)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    // SAFETY: between fork and exec the closure only makes system calls, and allocates no memory.
    unsafe { command.pre_exec(move || confine(channel, cgroup_procs)) }.spawn()
}

/// Runs in the child: joins its control group, gives up gaining privileges, ends with the waiting
/// thread, disables core dumps, and takes the socket.
fn confine(channel: i32, group: Option<i32>) -> io::Result<()> {
    if let Some(group) = group {
        // "0" means the writing process. If the write fails, the child runs without limits, until the waiting thread
        // ends. SAFETY: the descriptor is open, and the text lives as long as the program.
        unsafe { libc::write(group, c"0".as_ptr().cast(), 1) };
    }
    let none = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the calls take numbers, and a structure that outlives them. The descriptor is open,
    // and its copy belongs to the child.
    unsafe {
        check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
        check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0))?;
        check(libc::setrlimit(libc::RLIMIT_CORE, &raw const none))?;
        check(libc::setsid())?;
        let channel = duplicate_above(channel, HELPER_FD)?;
        check(libc::dup2(channel, HELPER_FD))
    }
}

/// Sends one line and receives one line, before the time is over.
fn exchange(
    mut channel: &UnixStream,
    task: &HelperTask,
    time: Duration,
) -> io::Result<HelperOutcome> {
    let until = Instant::now() + time;
    // The buffer has its full size at once, so that a secret is at one address and is wiped there.
    let mut line = Zeroizing::new(Vec::with_capacity(LINE_BYTES_MAX));
    serde_json::to_writer(&mut *line, task)?;
    line.push(b'\n');
    // A child that does not read must not block the thread.
    channel.set_write_timeout(Some(time))?;
    channel.write_all(&line)?;
    let mut answer = Zeroizing::new(vec![0; LINE_BYTES_MAX]);
    let mut filled = 0;
    loop {
        // The timeout is recomputed for each read: a child that sends byte by byte gets no more
        // time.
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(late());
        }
        channel.set_read_timeout(Some(left))?;
        let read = match channel.read(&mut answer[filled..]) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(late()),
            Err(error) => return Err(error),
        };
        let from = filled;
        filled += read;
        if let Some(end) = answer[from..filled].iter().position(|byte| *byte == b'\n') {
            let outcome: HelperOutcome = serde_json::from_slice(&answer[..from + end])
                .map_err(|_| io::Error::other("it answered something that is no answer"))?;
            return Ok(outcome.presentable());
        }
        if read == 0 {
            let what = match filled {
                LINE_BYTES_MAX => "its answer is too long",
                _ => "it ended without an answer",
            };
            return Err(io::Error::other(what));
        }
    }
}

fn late() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "it did not answer in time")
}

#[cfg(test)]
mod tests {
    use std::thread;

    use alknet_test_support::deadline;

    use super::*;
    use crate::helper_task::{HelperRefusal, HexSecret};

    fn task() -> HelperTask {
        HelperTask::Release {
            peer: String::new(),
            addresses: Vec::new(),
            id: "abc".to_owned(),
            client: HexSecret::copy_of(&[1; 32]),
        }
    }

    /// The outcome of a child that reads a line and writes `answer`.
    fn answered(answer: &[u8]) -> io::Result<HelperOutcome> {
        let (ours, mut theirs) = UnixStream::pair()?;
        let answer = answer.to_vec();
        let child = thread::spawn(move || {
            let mut line = [0; 512];
            let read = theirs.read(&mut line).expect("a helper task");
            assert!(line[..read].ends_with(b"}\n"));
            // The other end may close before everything is written.
            let _ = theirs.write_all(&answer);
        });
        let outcome = exchange(&ours, &task(), deadline(Duration::from_secs(20)));
        drop(ours);
        child.join().expect("it does not panic");
        outcome
    }

    #[test]
    fn one_line_goes_and_one_line_comes() {
        let share = "07".repeat(32);
        let outcome =
            answered(format!("{{\"t\":\"released\",\"share\":\"{share}\"}}\n").as_bytes());
        let share = HexSecret::copy_of(&[7; 32]);
        assert_eq!(
            outcome.expect("an answer"),
            HelperOutcome::Released { share }
        );
        let refused = b"{\"t\":\"refused\",\"refusal\":\"pending\",\"text\":\"a\\u001bb\"}\n";
        let expected = HelperOutcome::refused(HelperRefusal::Pending, "a b");
        assert_eq!(answered(refused).expect("an answer"), expected);
    }

    #[test]
    fn whatever_else_it_says_is_an_error() {
        for (answer, word) in [
            (&b""[..], "without an answer"),
            (b"{\"t\":\"released\"", "without an answer"),
            (b"\n", "no answer"),
            (b"{\"t\":\"released\"}\n", "no answer"),
            (b"{\"t\":\"opened\"}\n", "no answer"),
            (&[b' '; 2 * LINE_BYTES_MAX], "too long"),
        ] {
            let error = answered(answer).expect_err("no answer");
            assert!(error.to_string().contains(word), "{error}");
        }
    }

    #[test]
    fn a_child_that_says_nothing_is_given_up() {
        let (ours, _theirs) = UnixStream::pair().expect("a pair");
        let error = exchange(&ours, &task(), Duration::from_millis(20)).expect_err("silence");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
