//! The schedule of test programs: the plan of a run, from the needs that the tests state
//! ([`TestNeeds`](super::needs::TestNeeds)) and from their times in the last run.
//!
//! Most tests compute. Some mostly wait: for a machine to boot, a timer, a client of another
//! project. So the processors are allotted twice: programs that compute share one set of slots,
//! programs that wait another one, and a program of one kind never waits for one of the other. When
//! all that compute have ended, those that wait get half of their slots, too. With all of them,
//! emulated machines and workers would miss limits of the product, which no factor lengthens. A
//! part that only waited for time to pass in the last run takes neither: it has other slots, and
//! starts at once. Within each kind the longest, by the last run, start first.
//!
//! Memory for machines is allotted as well, to parts of all kinds: a part starts if the machines
//! that its tests have at the same time fit beside those of all running parts. The longest of those
//! that wait for memory gets it first, however little a later one needs. Parts without machines
//! take the slots meanwhile.
//!
//! A program that waits runs as one process for each of its modules, with one test after the other
//! in each, so as many of its tests run at a time as there are slots just then. Parts that measure
//! time or memory run at the end, alone.

use std::collections::BTreeMap;

use super::history::TestHistory;
use super::needs::ProgramNeeds;

/// Tests at a time for each processor in programs that compute: two programs side by side, so that
/// the last test of one does not leave a processor idle.
const COMPUTING_PER_PROCESSOR: usize = 2;

/// Tests at a time for each processor in programs that wait, beside those that compute.
const WAITING_PER_PROCESSOR: usize = 1;

/// Tests at a time for each processor in programs that slept through the last run, beside all
/// others.
const SLEEPING_PER_PROCESSOR: usize = 4;

/// How many tests share a processor at most, without those that sleep. Deadlines are multiplied by
/// this.
pub(super) const CROWD: usize = COMPUTING_PER_PROCESSOR + WAITING_PER_PROCESSOR;

/// The slots that a program takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum PartLoad {
    Computing,
    Waiting,
    /// Other slots, beside computing and waiting parts: in the last run its tests used almost no
    /// processor time.
    Sleeping,
    /// All slots: no other part runs beside it.
    Alone,
}

/// A part of a program that runs as one process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TestPart {
    /// The program, and the module if it has one module's tests.
    pub(super) name: String,
    /// Names of its tests. `None` for all of the program's.
    pub(super) tests: Option<Vec<String>>,
    /// Tests at a time.
    pub(super) threads: usize,
    /// Memory of all machines that one of its tests has at the same time, MiB.
    pub(super) machines_mib: u64,
    pub(super) load: PartLoad,
}

impl TestPart {
    /// Memory of all machines that its tests have at the same time, MiB.
    fn all_machines_mib(&self) -> u64 {
        self.machines_mib * self.threads as u64
    }
}

/// A program that runs as a whole, on so many processors.
pub(super) fn whole(program: &str, needs: &ProgramNeeds, processors: usize) -> TestPart {
    let threads = if needs.alone { 1 } else { processors };
    TestPart {
        name: program.to_owned(),
        tests: None,
        threads,
        machines_mib: needs.machines_mib,
        load: if needs.alone {
            PartLoad::Alone
        } else {
            PartLoad::Computing
        },
    }
}

/// A part that is no test program, and computes on so many processors.
pub(super) fn computing(name: &str, processors: usize) -> TestPart {
    whole(name, &ProgramNeeds::default(), processors)
}

/// The parts of a program that waits, and has tests of these names.
pub(super) fn modules(program: &str, needs: &ProgramNeeds, tests: Vec<String>) -> Vec<TestPart> {
    let parts = by_module(tests)
        .into_iter()
        .map(|(module, tests)| TestPart {
            name: format!("{program} {module}").trim_end().to_owned(),
            load: if needs.is_alone(&module) {
                PartLoad::Alone
            } else {
                PartLoad::Waiting
            },
            machines_mib: needs.machines_mib(&module),
            tests: Some(tests),
            threads: 1,
        });
    parts.collect()
}

fn by_module(tests: Vec<String>) -> BTreeMap<String, Vec<String>> {
    let mut modules: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for test in tests {
        let module = test.split_once("::").map_or("", |(module, _)| module);
        modules.entry(module.to_owned()).or_default().push(test);
    }
    modules
}

/// Uses the last run: marks the parts that sleep, and sorts the longest first, with new ones before
/// all others.
pub(super) fn plan<T>(parts: &mut [(T, TestPart)], last: &TestHistory) {
    for (_, part) in parts.iter_mut() {
        if part.load != PartLoad::Alone && last.slept(&part.name) {
            part.load = PartLoad::Sleeping;
        }
    }
    let seconds = |part: &TestPart| last.seconds(&part.name).unwrap_or(f64::MAX);
    parts.sort_by(|(_, one), (_, other)| seconds(other).total_cmp(&seconds(one)));
}

/// The pending and the running parts.
#[derive(Debug)]
pub(super) struct PartQueue<'a> {
    /// In the order in which they start if they fit. Ended parts stay, so that an index names a
    /// part.
    parts: Vec<(&'a TestPart, PartState)>,
    processors: usize,
    /// Memory of all machines, MiB.
    machines_mib: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PartState {
    Pending,
    Running,
    Ended,
}

impl<'a> PartQueue<'a> {
    pub(super) fn new(
        parts: impl IntoIterator<Item = &'a TestPart>,
        processors: usize,
        machines_mib: u64,
    ) -> Self {
        let parts = parts.into_iter().map(|part| (part, PartState::Pending));
        Self {
            parts: parts.collect(),
            processors,
            machines_mib,
        }
    }

    /// The index of the next part that fits beside the running ones. It counts as running from now
    /// on.
    ///
    /// No part overtakes an earlier one of its kind in taking slots. No other part takes what the
    /// next one of each kind lacks: that part gets its memory as soon as it is free, whether it
    /// waits for a slot or for memory.
    pub(super) fn start_next(&mut self) -> Option<usize> {
        let (mut full, mut reserved): (Vec<PartLoad>, Vec<PartLoad>) = Default::default();
        let mut taken_mib: u64 = self.running().map(TestPart::all_machines_mib).sum();
        let index = self.parts.iter().position(|(part, state)| {
            if *state != PartState::Pending {
                return false;
            }
            // A part that runs alone waits for all others, which must not wait for its memory.
            if part.load == PartLoad::Alone && !self.has_slots(part) {
                return false;
            }
            let wanted_mib = part.all_machines_mib();
            // A part that needs more memory than there is gets all of it.
            let has_memory =
                wanted_mib == 0 || taken_mib == 0 || taken_mib + wanted_mib <= self.machines_mib;
            let has_slots = !full.contains(&part.load) && self.has_slots(part);
            if has_memory && has_slots {
                return true;
            }
            if has_memory {
                full.push(part.load);
            }
            if !reserved.contains(&part.load) {
                reserved.push(part.load);
                taken_mib += wanted_mib;
            }
            false
        })?;
        self.parts[index].1 = PartState::Running;
        Some(index)
    }

    pub(super) fn ended(&mut self, index: usize) {
        self.parts[index].1 = PartState::Ended;
    }

    fn has_slots(&self, part: &TestPart) -> bool {
        if part.load == PartLoad::Alone {
            return self.parts.iter().all(|(other, state)| match state {
                PartState::Ended => true,
                PartState::Pending => other.load == PartLoad::Alone,
                PartState::Running => false,
            });
        }
        let all = self.slots(part.load);
        let taken: usize = self
            .running()
            .map(|running| {
                if running.load == part.load {
                    running.threads.min(all)
                } else {
                    0
                }
            })
            .sum();
        taken + part.threads.min(all) <= all
    }

    fn running(&self) -> impl Iterator<Item = &TestPart> {
        let running = self
            .parts
            .iter()
            .filter(|(_, state)| *state == PartState::Running);
        running.map(|(part, _)| *part)
    }

    /// How many tests of this kind run at a time.
    fn slots(&self, load: PartLoad) -> usize {
        let computing = self.processors * COMPUTING_PER_PROCESSOR;
        match load {
            PartLoad::Computing => computing,
            PartLoad::Waiting => {
                let mut all = self.parts.iter();
                let is_over = all.all(|(part, state)| {
                    part.load != PartLoad::Computing || *state == PartState::Ended
                });
                let half = if is_over { computing / 2 } else { 0 };
                self.processors * WAITING_PER_PROCESSOR + half
            }
            PartLoad::Sleeping => self.processors * SLEEPING_PER_PROCESSOR,
            PartLoad::Alone => 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::harness::ProgramResult;
    use super::super::needs::ModuleNeeds;
    use super::super::report::PartResult;
    use super::*;

    fn alone() -> ProgramNeeds {
        ProgramNeeds {
            alone: true,
            ..ProgramNeeds::default()
        }
    }

    #[test]
    fn every_test_of_a_program_is_in_one_part() {
        let library = whole("alknet-core lib", &ProgramNeeds::default(), 2);
        assert!(library.tests.is_none());
        assert_eq!((library.threads, library.load), (2, PartLoad::Computing));
        let flood = whole("alknet-tests flood", &alone(), 2);
        assert!(flood.tests.is_none());
        assert_eq!((flood.threads, flood.load), (1, PartLoad::Alone));

        let timing = ModuleNeeds {
            alone: true,
            machines_mib: Some(64),
        };
        let needs = ProgramNeeds {
            waits: true,
            machines_mib: 512,
            modules: [("timing".to_owned(), timing)].into(),
            ..ProgramNeeds::default()
        };
        let names = ["top", "timing::a::b", "page::c", "timing::d"].map(str::to_owned);
        let parts = modules("alknet-tests http", &needs, names.to_vec());
        let parts: Vec<_> = parts
            .iter()
            .map(|part| {
                let tests = part.tests.as_ref().expect("a module's tests");
                (
                    part.name.as_str(),
                    tests.join(" "),
                    part.load,
                    part.machines_mib,
                )
            })
            .collect();
        assert_eq!(
            parts,
            [
                (
                    "alknet-tests http",
                    "top".to_owned(),
                    PartLoad::Waiting,
                    512
                ),
                (
                    "alknet-tests http page",
                    "page::c".to_owned(),
                    PartLoad::Waiting,
                    512
                ),
                (
                    "alknet-tests http timing",
                    "timing::a::b timing::d".to_owned(),
                    PartLoad::Alone,
                    64
                ),
            ]
        );
    }

    #[test]
    fn the_longest_come_first_and_new_ones_before_them() {
        let last = history(&[("short", 1.0, 1.0), ("long", 9.0, 9.0)]);
        let none = ProgramNeeds::default();
        let mut parts = ["short", "new", "long"].map(|name| ((), whole(name, &none, 1)));
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
        let library = whole("alknet-core lib", &ProgramNeeds::default(), 2);
        let flood = whole("alknet-tests flood", &alone(), 2);
        let mut parts = [library, flood].map(|part| ((), part));
        plan(&mut parts, &last);
        let loads = parts.map(|((), part)| part.load);
        assert_eq!(loads, [PartLoad::Sleeping, PartLoad::Alone]);
    }

    fn history(parts: &[(&str, f64, f64)]) -> TestHistory {
        let ran = parts.iter().map(|(part, wall_seconds, cpu_seconds)| {
            let outcome = ProgramResult {
                wall_seconds: *wall_seconds,
                cpu_seconds: *cpu_seconds,
                ..ProgramResult::default()
            };
            PartResult {
                part: (*part).to_owned(),
                outcome,
                skips: Vec::new(),
            }
        });
        let mut history = TestHistory::default();
        history.extend(&ran.collect::<Vec<_>>());
        history
    }

    fn part(load: PartLoad, threads: usize, machines_mib: u64) -> TestPart {
        TestPart {
            name: String::new(),
            tests: None,
            threads,
            machines_mib,
            load,
        }
    }

    /// Starts all that start now.
    fn start(queue: &mut PartQueue<'_>) -> Vec<usize> {
        std::iter::from_fn(|| queue.start_next()).collect()
    }

    #[test]
    fn each_kind_has_places_of_its_own() {
        let (computing, waiting) = (
            part(PartLoad::Computing, 2, 0),
            part(PartLoad::Waiting, 1, 0),
        );
        let sleeping = part(PartLoad::Sleeping, 1, 0);
        let mut parts = vec![&computing; 3];
        parts.extend([&waiting; 5]);
        parts.push(&sleeping);
        let mut queue = PartQueue::new(parts, 2, 0);
        assert_eq!(start(&mut queue), [0, 1, 3, 4, 8]);
        queue.ended(3);
        assert_eq!(start(&mut queue), [5]);
        queue.ended(0);
        assert_eq!(start(&mut queue), [2]);
        queue.ended(1);
        assert!(start(&mut queue).is_empty());
        // Half of the slots of computing parts are free for those that wait.
        queue.ended(2);
        assert_eq!(start(&mut queue), [6, 7]);
    }

    #[test]
    fn a_part_that_wants_all_places_and_more_gets_them_all() {
        let (wide, narrow) = (
            part(PartLoad::Computing, 100, 0),
            part(PartLoad::Computing, 1, 0),
        );
        let mut queue = PartQueue::new([&narrow, &wide, &narrow], 1, 0);
        assert_eq!(
            start(&mut queue),
            [0],
            "the last one does not pass the wide one"
        );
        queue.ended(0);
        assert_eq!(start(&mut queue), [1]);
        queue.ended(1);
        assert_eq!(start(&mut queue), [2]);
    }

    #[test]
    fn machines_start_as_far_as_memory_allows_and_in_turn() {
        let waiting = |mib| part(PartLoad::Waiting, 1, mib);
        let parts = [waiting(512), waiting(1024), waiting(512), waiting(0)];
        let mut queue = PartQueue::new(&parts, 8, 1024);
        // The third would fit and may not overtake the second. The last needs no memory.
        assert_eq!(start(&mut queue), [0, 3]);
        queue.ended(0);
        assert_eq!(start(&mut queue), [1]);
        queue.ended(1);
        assert_eq!(start(&mut queue), [2]);

        // A part that waits for a slot keeps its memory: the computing part cannot take it,
        // however often one could start.
        let computing = part(PartLoad::Computing, 2, 256);
        let parts = [waiting(512), waiting(512), waiting(512), computing];
        let mut queue = PartQueue::new(&parts, 1, 1024);
        assert_eq!(start(&mut queue), [0]);
        queue.ended(0);
        assert_eq!(start(&mut queue), [1]);
        queue.ended(1);
        assert_eq!(start(&mut queue), [2, 3]);

        // Memory is reserved for the next one of a kind, and not for all that come after it.
        let computing = part(PartLoad::Computing, 2, 128);
        let mut parts = vec![waiting(512); 9];
        parts.push(computing);
        let mut queue = PartQueue::new(&parts, 1, 2048);
        assert_eq!(start(&mut queue), [0, 9]);

        // A part that waits for memory keeps no slot until it has the memory.
        let parts = [waiting(1024), waiting(1024), waiting(0), waiting(0)];
        let mut queue = PartQueue::new(&parts, 1, 1024);
        assert_eq!(start(&mut queue), [0, 2]);
        queue.ended(0);
        assert_eq!(
            start(&mut queue),
            [1],
            "the last one does not pass it in places"
        );

        let parts = [waiting(4096), waiting(512)];
        let mut queue = PartQueue::new(&parts, 8, 1024);
        assert_eq!(start(&mut queue), [0], "alone, for it will never fit");
        queue.ended(0);
        assert_eq!(start(&mut queue), [1]);
    }

    #[test]
    fn what_runs_alone_runs_at_the_end() {
        let (alone, waiting) = (part(PartLoad::Alone, 1, 512), part(PartLoad::Waiting, 1, 0));
        let mut queue = PartQueue::new([&alone, &alone, &waiting], 2, 0);
        assert_eq!(start(&mut queue), [2]);
        queue.ended(2);
        assert_eq!(start(&mut queue), [0]);
        queue.ended(0);
        assert_eq!(start(&mut queue), [1]);
    }

    #[test]
    fn what_runs_alone_keeps_no_memory_from_the_others_while_it_waits() {
        let (alone, computing) = (
            part(PartLoad::Alone, 1, 512),
            part(PartLoad::Computing, 1, 1024),
        );
        let mut queue = PartQueue::new([&alone, &computing], 2, 1024);
        assert_eq!(start(&mut queue), [1]);
        queue.ended(1);
        assert_eq!(start(&mut queue), [0]);
    }
}
