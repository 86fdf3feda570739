//! What a process uses: time of the processors, with its children, and memory.

use std::fs;
use std::process::{Command, Stdio};

use crate::call::measure::failed;
use alknet_tasks::failure::{Result, TaskError};

/// Clock ticks of a second in `/proc`: `USER_HZ`, which is 100 on every processor that this project builds for.
const TICKS_PER_SECOND: f64 = 100.0;

/// First field of processor time in `/proc/PID/stat`, counted from the state: user and system time, then those of children
/// that it has waited for (proc_pid_stat(5)).
const TICKS_FIELD: usize = 11;

/// Makes `/proc/PID/clear_refs` begin the peak of resident memory again.
const PEAK_AGAIN: &str = "5";

/// Processor seconds of a process, of its children, and of those that have ended.
pub(super) fn cpu_seconds(pid: u32) -> Result<f64> {
    let mut ticks = times(&stat(&pid.to_string())?)
        .ok_or_else(|| failed("reading the processor time")("the kernel does not say"))?
        .ticks;
    let entries = fs::read_dir("/proc").map_err(TaskError::io("list the processes"))?;
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|name| name.parse::<u32>().is_ok()) else {
            continue;
        };
        // It may have ended since the list was made.
        let times = stat(name).ok().and_then(|text| times(&text));
        ticks += times
            .filter(|times| times.parent == pid)
            .map_or(0, |times| times.ticks);
    }
    Ok(ticks as f64 / TICKS_PER_SECOND)
}

/// Runs a program to its end, which is noticed at once.
pub(super) fn run_program(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.map_err(TaskError::io(format!("run {command:?}")))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(TaskError::Step {
            what: format!("{command:?}"),
            how: String::from_utf8_lossy(&output.stderr).into_owned(),
            log: None,
        }),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ProcessTimes {
    parent: u32,
    ticks: u64,
}

fn stat(pid: &str) -> Result<String> {
    fs::read_to_string(format!("/proc/{pid}/stat")).map_err(TaskError::io("read a process"))
}

fn times(stat: &str) -> Option<ProcessTimes> {
    // The name before may have spaces and parentheses of its own.
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks = fields.get(TICKS_FIELD..TICKS_FIELD + 4)?;
    Some(ProcessTimes {
        parent: fields.get(1)?.parse().ok()?,
        ticks: ticks
            .iter()
            .map(|field| field.parse::<u64>().ok())
            .sum::<Option<u64>>()?,
    })
}

/// Resident memory of a process, in MiB.
pub(super) fn resident_mib(pid: u32) -> Result<f64> {
    status_mib(pid, "VmRSS:")
}

/// The most resident memory since [`forget_peak`], in MiB.
pub(super) fn peak_mib(pid: u32) -> Result<f64> {
    status_mib(pid, "VmHWM:")
}

/// Begins the peak of resident memory again.
pub(super) fn forget_peak(pid: u32) -> Result<()> {
    let path = format!("/proc/{pid}/clear_refs");
    fs::write(path, PEAK_AGAIN).map_err(TaskError::io("begin a peak of memory again"))
}

fn status_mib(pid: u32, field: &str) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"));
    let text = text.map_err(TaskError::io("read a process"))?;
    mib(&text, field).ok_or_else(|| failed("reading memory")("the kernel does not say"))
}

/// A line of the kernel's, which counts in KiB.
fn mib(status: &str, field: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    let kib: f64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_behind_any_name() {
        let stat = "7 (a) b) S 3 7 7 0 -1 4194304 1 2 3 4 10 20 30 40 20 0 1 0 5 6 7";
        let expected = ProcessTimes {
            parent: 3,
            ticks: 100,
        };
        assert_eq!(times(stat), Some(expected));
        assert_eq!(times("7 (a) S 3"), None);
    }

    #[test]
    fn this_process_has_memory_and_a_peak() {
        let pid = std::process::id();
        assert!(cpu_seconds(pid).expect("it runs") >= 0.0);
        forget_peak(pid).expect("its own process");
        assert!(resident_mib(pid).expect("it runs") > 0.0);
        assert!(peak_mib(pid).expect("it runs") > 0.0);
    }

    #[test]
    fn memory_is_counted_in_kib() {
        let text = "VmHWM:\t    4096 kB\nVmRSS:\t    2048 kB\n";
        assert_eq!(mib(text, "VmRSS:"), Some(2.0));
        assert_eq!(mib(text, "VmSwap:"), None);
    }
}
