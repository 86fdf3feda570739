//! One line of progress while a child process works, and its output in a log file.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How often the child is looked at; short enough that no step is rounded up noticeably.
const POLL: Duration = Duration::from_millis(100);

/// How often a line is printed where nobody can see a spinner.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Environment variable through which the steps done so far reach `alknet-tasks`.
pub const STEPS_VARIABLE: &str = "ALKNET_STEPS";

/// A step that is over, for the closing table.
#[derive(Clone, Debug, PartialEq)]
pub struct StepTime {
    /// What was done.
    pub name: String,
    /// How long it took.
    pub seconds: f64,
}

/// Runs `command` with its output in `log`, showing `title` and the time elapsed.
pub fn run_logged(command: &mut Command, title: &str, log: &Path) -> io::Result<ExitStatus> {
    watch(start_logged(command, log)?, title)
}

/// Starts `command` with its output in `log`.
pub fn start_logged(command: &mut Command, log: &Path) -> io::Result<Child> {
    if let Some(folder) = log.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let file = File::create(log)?;
    command
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .spawn()
}

/// Waits for a child, showing that it still works.
pub fn watch(child: Child, title: &str) -> io::Result<ExitStatus> {
    Ok(watch_all([child], title)?.remove(0))
}

/// Waits for all of these, showing that they still work; their statuses, in the order given.
pub fn watch_all(
    children: impl IntoIterator<Item = Child>,
    title: &str,
) -> io::Result<Vec<ExitStatus>> {
    let mut children: Vec<Child> = children.into_iter().collect();
    let started = Instant::now();
    let terminal = io::stderr().is_terminal();
    if !terminal {
        eprintln!("{title} ...");
    }
    let mut next = LINE_EVERY;
    loop {
        // A child that has ended gives the same status each time it is asked.
        let statuses = children.iter_mut().map(Child::try_wait);
        let statuses: Vec<Option<ExitStatus>> = statuses.collect::<io::Result<_>>()?;
        if let Some(statuses) = statuses.into_iter().collect() {
            if terminal {
                eprint!("\r\x1b[K");
            }
            return Ok(statuses);
        }
        let elapsed = started.elapsed();
        if terminal {
            eprint!("\r\x1b[K{title} ... {} s", elapsed.as_secs());
            io::stderr().flush()?;
        } else if elapsed >= next {
            eprintln!("{title} ... {} s", elapsed.as_secs());
            next += LINE_EVERY;
        }
        thread::sleep(POLL);
    }
}

/// Writes steps as `name=seconds;name=seconds`, for [`STEPS_VARIABLE`].
#[must_use]
pub fn encode_steps(steps: &[StepTime]) -> String {
    let one =
        |step: &StepTime| format!("{}={:.3}", step.name.replace(['=', ';'], " "), step.seconds);
    steps.iter().map(one).collect::<Vec<_>>().join(";")
}

/// Reads what [`encode_steps`] wrote; what is not a step is left out.
#[must_use]
pub fn decode_steps(text: &str) -> Vec<StepTime> {
    let one = |part: &str| {
        let (name, seconds) = part.split_once('=')?;
        Some(StepTime {
            name: name.to_owned(),
            seconds: seconds.parse().ok()?,
        })
    };
    text.split(';').filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_survive_the_environment() {
        let steps = vec![
            StepTime {
                name: "system packages".into(),
                seconds: 1.25,
            },
            StepTime {
                name: "a=b;c".into(),
                seconds: 30.0,
            },
        ];
        let read = decode_steps(&encode_steps(&steps));
        assert_eq!(read[0], steps[0]);
        assert_eq!(read[1].name, "a b c");
    }

    #[test]
    fn nonsense_in_the_environment_is_no_step() {
        assert!(decode_steps("").is_empty());
        assert!(decode_steps("x;y=z;=").is_empty());
    }

    #[test]
    fn output_goes_to_the_log_and_the_status_comes_back() {
        let log = std::env::temp_dir().join(format!("xtask-log-{}", std::process::id()));
        let mut command = Command::new("sh");
        command.args(["-c", "echo out; echo err >&2; exit 3"]);
        let status = run_logged(&mut command, "test", &log).expect("sh starts");
        assert_eq!(status.code(), Some(3));
        let text = std::fs::read_to_string(&log).expect("the log was written");
        assert!(text.contains("out") && text.contains("err"), "{text}");
        std::fs::remove_file(log).expect("the log is ours");
    }

    #[test]
    fn several_children_are_waited_for_in_their_order() {
        let child = |script: &str| Command::new("sh").args(["-c", script]).spawn();
        let children = ["sleep 0.3; exit 1", "exit 2"].map(|script| child(script).expect("sh"));
        let statuses = watch_all(children, "test").expect("they are ours");
        let codes: Vec<_> = statuses.iter().map(|status| status.code()).collect();
        assert_eq!(codes, [Some(1), Some(2)]);
    }
}
