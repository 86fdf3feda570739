//! The times of the parts in the last whole run, which decide what starts first and beside what. A cache without a record
//! of a run has those of the long parts in a run elsewhere.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use xtask::progress::{self, StepTime};

use super::report::PartResult;
use crate::context::XtaskContext;
use crate::failure::{Result, TaskError};

/// The largest share of a processor that a part uses whose tests mostly wait: for time to pass, or for a machine that does.
const SLEEPING_SHARE: f64 = 0.35;

/// A shorter part is over before it matters, and its share is chance. In seconds.
const SLEEPING_LEAST: f64 = 5.0;

/// The parts that took 20 s or more, each with its seconds of the clock and of processors: the record of the runs on two
/// processors of AMD EPYC family 25, model 17, until 2026-11-28.
const USUAL: &str = include_str!("usual-times.txt");

/// Seconds by the name of a part.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct TestHistory {
    clock: BTreeMap<String, f64>,
    processors: BTreeMap<String, f64>,
    /// Whether a part without a time is short. In a record of a run it is new.
    names_long_only: bool,
}

impl TestHistory {
    /// The history in the cache, or the usual times if there was no run.
    pub(super) fn read(cx: &XtaskContext) -> Self {
        let [clock, processors] = files(cx).map(|file| {
            let text = fs::read_to_string(file).unwrap_or_default();
            let steps = progress::decode_steps(&text.replace('\n', ";"));
            let steps = steps.into_iter().map(|step| (step.name, step.seconds));
            steps.collect::<BTreeMap<_, _>>()
        });
        if clock.is_empty() {
            return Self::usual();
        }
        Self {
            clock,
            processors,
            names_long_only: false,
        }
    }

    /// The times of [`USUAL`].
    fn usual() -> Self {
        let mut usual = Self {
            names_long_only: true,
            ..Self::default()
        };
        for (part, clock, processors) in USUAL.lines().filter_map(usual_line) {
            usual.clock.insert(part.to_owned(), clock);
            usual.processors.insert(part.to_owned(), processors);
        }
        usual
    }

    /// Adds the parts that passed. Parts that failed, or did not run, keep their times: one that
    /// hung looks like one that sleeps, and one that broke off like a short one.
    pub(super) fn extend(&mut self, ran: &[PartResult]) {
        let passed = ran.iter().filter(|ran| ran.outcome.passed());
        for PartResult { part, outcome, .. } in passed {
            self.clock.insert(part.clone(), outcome.wall_seconds);
            self.processors.insert(part.clone(), outcome.cpu_seconds);
        }
    }

    pub(super) fn write(&self, cx: &XtaskContext) -> Result<()> {
        for (file, seconds) in files(cx).iter().zip([&self.clock, &self.processors]) {
            let steps = seconds.iter().map(|(name, seconds)| StepTime {
                name: name.clone(),
                seconds: *seconds,
            });
            let text = progress::encode_steps(&steps.collect::<Vec<_>>()).replace(';', "\n");
            fs::write(file, text).map_err(TaskError::io("write how long programs took"))?;
        }
        Ok(())
    }

    /// How long a part took, in seconds of the clock.
    pub(super) fn seconds(&self, part: &str) -> Option<f64> {
        let short = self.names_long_only.then_some(0.0);
        self.clock.get(part).copied().or(short)
    }

    /// Whether a part waited for time to pass: it used almost no processor time.
    pub(super) fn slept(&self, part: &str) -> bool {
        let both = self.seconds(part).zip(self.processors.get(part));
        both.is_some_and(|(clock, used)| clock >= SLEEPING_LEAST && *used < SLEEPING_SHARE * clock)
    }
}

/// Part, seconds of the clock and seconds of processors of a line such as `alknet-tests machine update=376 109`.
fn usual_line(line: &str) -> Option<(&str, f64, f64)> {
    let (part, times) = line.rsplit_once('=')?;
    let (clock, processors) = times.split_once(' ')?;
    Some((part, clock.parse().ok()?, processors.parse().ok()?))
}

/// The files for seconds of the clock, and for those of processors.
fn files(cx: &XtaskContext) -> [PathBuf; 2] {
    ["tests", "tests-processors"].map(|name| cx.cache().join("times").join(name))
}

#[cfg(test)]
mod tests {
    use super::super::harness::ProgramResult;
    use super::*;

    fn ran(part: &str, wall_seconds: f64, cpu_seconds: f64) -> PartResult {
        let outcome = ProgramResult {
            wall_seconds,
            cpu_seconds,
            ..ProgramResult::default()
        };
        PartResult {
            part: part.to_owned(),
            outcome,
            skips: Vec::new(),
        }
    }

    #[test]
    fn what_hardly_used_a_processor_slept() {
        let mut history = TestHistory::default();
        assert!(!history.slept("new"));
        history.extend(&[
            ran("waits for timers", 60.0, 3.0),
            ran("boots machines", 60.0, 30.0),
            ran("is short", 1.0, 0.0),
        ]);
        let slept = ["waits for timers", "boots machines", "is short"];
        assert_eq!(slept.map(|part| history.slept(part)), [true, false, false]);
    }

    #[test]
    fn a_cache_without_a_run_has_the_times_of_long_parts() {
        let usual = TestHistory::usual();
        assert_eq!(
            usual.clock.len(),
            USUAL.lines().count(),
            "every line is read"
        );
        assert!(usual.clock.values().all(|seconds| *seconds >= 20.0));
        assert_eq!(usual.seconds("a part that is in no line"), Some(0.0));
        let recorded = TestHistory::default();
        assert_eq!(recorded.seconds("a new part"), None);
    }

    #[test]
    fn what_hung_counts_as_before() {
        let mut history = TestHistory::default();
        history.extend(&[ran("a lib", 60.0, 60.0)]);
        let mut hung = ran("a lib", 1200.0, 1.0);
        hung.outcome.broken = Some("said nothing".to_owned());
        history.extend(&[hung]);
        assert!(!history.slept("a lib"));
        assert_eq!(history.seconds("a lib"), Some(60.0));
    }

    #[test]
    fn what_was_written_is_read_again() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let cx = XtaskContext::in_folder(folder.path());
        fs::create_dir_all(cx.cache().join("times")).expect("the folder is ours");
        assert_eq!(TestHistory::read(&cx), TestHistory::usual());
        let mut history = TestHistory::default();
        history.extend(&[ran("a lib", 2.5, 1.5), ran("b http page", 9.0, 0.5)]);
        history.write(&cx).expect("the folder is ours");
        assert_eq!(TestHistory::read(&cx), history);
    }
}
