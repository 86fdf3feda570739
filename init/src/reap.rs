//! Collects processes that ended: PID 1 inherits every orphan and must collect all of them, or the
//! process table fills.

use nix::{
    errno::Errno,
    sys::{
        signal::Signal,
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

/// How many PID 1 collects before other work gets its turn.
const BATCH: usize = 512;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProcessExit {
    Exited(i32),
    Signalled(Signal),
}

impl std::fmt::Display for ProcessExit {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exited(status) => write!(out, "ended with status {status}"),
            Self::Signalled(signal) => write!(out, "killed by {signal}"),
        }
    }
}

/// The result of one round of collecting.
#[derive(Debug)]
pub(crate) struct ReapRound {
    pub(crate) ended: Vec<(Pid, ProcessExit)>,
    /// Whether there may be more.
    pub(crate) more: bool,
    /// Whether this process is the only one left.
    pub(crate) alone: bool,
}

/// Collects the processes that have ended, at most [`BATCH`] of them. Never blocks.
pub(crate) fn collect() -> ReapRound {
    let mut round = ReapRound {
        ended: Vec::new(),
        more: false,
        alone: false,
    };
    while round.ended.len() < BATCH {
        match waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, status)) => {
                round.ended.push((pid, ProcessExit::Exited(status)))
            }
            Ok(WaitStatus::Signaled(pid, signal, _)) => {
                round.ended.push((pid, ProcessExit::Signalled(signal)));
            }
            Ok(WaitStatus::StillAlive) => return round,
            Err(Errno::ECHILD) => {
                round.alone = true;
                return round;
            }
            // Stopped and continued children have not ended.
            Ok(_) | Err(Errno::EINTR) => {}
            // The process ended by a signal number that this library does not know. It is collected
            // all the same.
            Err(Errno::EINVAL) => {}
            Err(_) => return round,
        }
    }
    round.more = true;
    round
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_reads_as_words() {
        assert_eq!(ProcessExit::Exited(3).to_string(), "ended with status 3");
        assert_eq!(
            ProcessExit::Signalled(Signal::SIGSEGV).to_string(),
            "killed by SIGSEGV"
        );
    }
}
