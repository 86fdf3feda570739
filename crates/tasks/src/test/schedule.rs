//! Which test programs run at once.
//!
//! Most tests compute; some mostly wait: for a machine to boot, a timer, a client that is not ours. So the
//! processors are handed out twice: programs that compute share one set of places, programs that wait
//! another one, and a program of one kind never waits for one of the other. When all that compute have ended,
//! those that wait get half of their places, too: with all of them, emulated machines and workers miss
//! limits of the product, which no factor lengthens. What only waited for time to pass in the last run takes
//! neither: it has places of its own, and starts at once. Within each kind the longest, by the last run, start
//! first.
//!
//! A program that waits runs as one process for each of its modules, one test after the other in each: so
//! as many of its tests run at a time as there are places just then. What measures time or memory runs at
//! the end, alone.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, PoisonError};

use super::history::History;

/// Tests at a time for each processor in programs that compute: two programs side by side, so that the last
/// test of one does not leave a processor idle.
const COMPUTING_PER_PROCESSOR: usize = 2;

/// Tests at a time for each processor in programs that wait, beside those that compute.
const WAITING_PER_PROCESSOR: usize = 1;

/// Tests at a time for each processor in programs that slept through the last run, beside all others.
const SLEEPING_PER_PROCESSOR: usize = 4;

/// How many tests share a processor at most, without those that sleep: deadlines are multiplied by this.
pub(super) const CROWD: usize = COMPUTING_PER_PROCESSOR + WAITING_PER_PROCESSOR;

/// Programs whose tests use less than half of a processor each.
const WAITING: [&str; 4] = [
    "alknet-tests http",
    "alknet-tests machine",
    "alknet-tests node",
    "alknet-tests observability",
];

/// Tests that compare times or measure memory: program and module, `None` for all of the program's.
const ALONE: [(&str, Option<&str>); 2] = [
    ("alknet-tests flood", None),
    ("alknet-tests http", Some("timing")),
];

/// Which places a program takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Load {
    Computing,
    Waiting,
    /// Places of its own, beside computing and waiting parts: in the last run its tests used almost no processor
    /// time.
    Sleeping,
    /// All: nothing else runs beside it.
    Alone,
}

/// A part of a program that runs as one process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// The program, and the module where it is one module's tests.
    pub(super) name: String,
    /// Names of its tests; `None` for all of the program's.
    pub(super) tests: Option<Vec<String>>,
    /// Tests at a time.
    pub(super) threads: usize,
    pub(super) load: Load,
}

/// Whether a program runs in several parts.
pub(super) fn is_divided(program: &str) -> bool {
    WAITING.contains(&program)
}

/// A program that runs as a whole, on so many processors.
pub(super) fn whole(program: &str, processors: usize) -> Part {
    let alone = ALONE.contains(&(program, None));
    Part {
        name: program.to_owned(),
        tests: None,
        threads: if alone { 1 } else { processors },
        load: if alone { Load::Alone } else { Load::Computing },
    }
}

/// The parts of a program that is divided, and has tests of these names.
pub(super) fn modules(program: &str, tests: Vec<String>) -> Vec<Part> {
    let mut modules: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for test in tests {
        let module = test.split_once("::").map_or("", |(module, _)| module);
        modules.entry(module.to_owned()).or_default().push(test);
    }
    let parts = modules.into_iter().map(|(module, tests)| Part {
        name: format!("{program} {module}").trim_end().to_owned(),
        load: if ALONE.contains(&(program, Some(&module))) {
            Load::Alone
        } else {
            Load::Waiting
        },
        tests: Some(tests),
        threads: 1,
    });
    parts.collect()
}

/// By the last run: which parts sleep, and the longest first; new ones before all others.
pub(super) fn plan<T>(parts: &mut [(T, Part)], last: &History) {
    for (_, part) in parts.iter_mut() {
        if part.load != Load::Alone && last.slept(&part.name) {
            part.load = Load::Sleeping;
        }
    }
    let seconds = |part: &Part| last.seconds(&part.name).unwrap_or(f64::MAX);
    parts.sort_by(|(_, one), (_, other)| seconds(other).total_cmp(&seconds(one)));
}

/// Places for tests of one kind that run at the same time.
#[derive(Debug)]
pub(super) struct Places {
    counts: Mutex<Counts>,
    freed: Condvar,
}

#[derive(Debug)]
struct Counts {
    free: usize,
    all: usize,
}

/// Places that are taken until this is dropped.
#[derive(Debug)]
pub(super) struct Taken<'a> {
    places: &'a Places,
    count: usize,
}

impl Places {
    /// All places of a kind, free.
    pub(super) fn of(load: Load, processors: usize) -> Self {
        let all = count(load, processors);
        Self {
            counts: Mutex::new(Counts { free: all, all }),
            freed: Condvar::new(),
        }
    }

    /// Adds half of the places of another kind, which has no use for them any more.
    pub(super) fn add_half(&self, load: Load, processors: usize) {
        let more = count(load, processors) / 2;
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.free += more;
        counts.all += more;
        self.freed.notify_all();
    }

    /// Waits for `count` places; all of them when that is more than there are.
    pub(super) fn take(&self, count: usize) -> Taken<'_> {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let few = |counts: &mut Counts| counts.free < count.min(counts.all);
        let waited = self.freed.wait_while(counts, few);
        let mut counts = waited.unwrap_or_else(PoisonError::into_inner);
        let count = count.min(counts.all);
        counts.free -= count;
        Taken {
            places: self,
            count,
        }
    }
}

fn count(load: Load, processors: usize) -> usize {
    match load {
        Load::Computing => processors * COMPUTING_PER_PROCESSOR,
        Load::Waiting => processors * WAITING_PER_PROCESSOR,
        Load::Sleeping => processors * SLEEPING_PER_PROCESSOR,
        Load::Alone => 1,
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let counts = self.places.counts.lock();
        counts.unwrap_or_else(PoisonError::into_inner).free += self.count;
        self.places.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::super::harness::Outcome;
    use super::super::report::Ran;
    use super::*;

    #[test]
    fn every_test_of_a_program_is_in_one_part() {
        let library = whole("alknet-core lib", 2);
        assert!(!is_divided(&library.name) && library.tests.is_none());
        assert_eq!((library.threads, library.load), (2, Load::Computing));
        let flood = whole("alknet-tests flood", 2);
        assert!(!is_divided(&flood.name) && flood.tests.is_none());
        assert_eq!((flood.threads, flood.load), (1, Load::Alone));

        assert!(is_divided("alknet-tests http"));
        let names = ["top", "timing::a::b", "page::c", "timing::d"].map(str::to_owned);
        let parts = modules("alknet-tests http", names.to_vec());
        let parts: Vec<_> = parts
            .iter()
            .map(|part| {
                let tests = part.tests.as_ref().expect("a module's tests");
                (part.name.as_str(), tests.join(" "), part.load)
            })
            .collect();
        assert_eq!(
            parts,
            [
                ("alknet-tests http", "top".to_owned(), Load::Waiting),
                (
                    "alknet-tests http page",
                    "page::c".to_owned(),
                    Load::Waiting
                ),
                (
                    "alknet-tests http timing",
                    "timing::a::b timing::d".to_owned(),
                    Load::Alone
                ),
            ]
        );
    }

    #[test]
    fn the_longest_come_first_and_new_ones_before_them() {
        let last = history(&[("short", 1.0, 1.0), ("long", 9.0, 9.0)]);
        let mut parts = ["short", "new", "long"].map(|name| ((), whole(name, 1)));
        plan(&mut parts, &last);
        let names = parts.map(|((), part)| part.name);
        assert_eq!(names, ["new", "long", "short"]);
    }

    #[test]
    fn what_slept_takes_places_of_its_own_unless_it_runs_alone() {
        let last = history(&[
            ("alknet-core lib", 60.0, 1.0),
            ("alknet-tests flood", 60.0, 1.0),
        ]);
        let names = ["alknet-core lib", "alknet-tests flood"];
        let mut parts = names.map(|name| ((), whole(name, 2)));
        plan(&mut parts, &last);
        let loads = parts.map(|((), part)| part.load);
        assert_eq!(loads, [Load::Sleeping, Load::Alone]);
    }

    fn history(parts: &[(&str, f64, f64)]) -> History {
        let ran = parts.iter().map(|(part, wall_seconds, cpu_seconds)| {
            let outcome = Outcome {
                wall_seconds: *wall_seconds,
                cpu_seconds: *cpu_seconds,
                ..Outcome::default()
            };
            Ran {
                part: (*part).to_owned(),
                outcome,
                skips: Vec::new(),
            }
        });
        let mut history = History::default();
        history.extend(&ran.collect::<Vec<_>>());
        history
    }

    #[test]
    fn no_more_places_are_taken_than_there_are() {
        let places = Places::of(Load::Computing, 2);
        let one = places.take(1);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| places.take(100).count);
            assert!(!waiting.is_finished());
            drop(one);
            assert_eq!(waiting.join().expect("it got all"), 4);
        });
    }

    #[test]
    fn places_that_are_added_are_taken_by_those_who_wait() {
        let places = Places::of(Load::Waiting, 2);
        let all = [places.take(1), places.take(1)];
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| places.take(1).count);
            assert!(!waiting.is_finished());
            places.add_half(Load::Computing, 2);
            assert_eq!(waiting.join().expect("it got one"), 1);
        });
        drop(all);
        assert_eq!(places.take(100).count, 4);
    }
}
