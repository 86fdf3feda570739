//! The language's own tests (test262), against a record of those that fail.
//!
//! They are fetched by `cargo xtask test`, which names their folder in `ALKNET_TEST_TEST262`;
//! `crates/tasks/sources.toml` pins them. Another engine's source carries them, in the form that engine
//! runs them: a first line with what is to come of the file, and what files share in `shell.js` of
//! their folders and of those above.
//!
//! One of five is run, in the order of their names, and of those that a program made from the tables of Unicode one of
//! forty: each of them looks at every character there is, which takes it as long as it takes a hundred others.
//! `cargo xtask soak counts` runs every one. Those that fail have to be those in `data/test262.txt`: one more is a step
//! back, one less is to be taken out.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use alknet_runtime::{
    Isolate, IsolateSpec, IsolateWork, ModuleSet, RuntimeCode, ScriptFailure, SessionMode,
};
use alknet_test_support::is_campaign;

use crate::support::{RecordingHost, wait};

/// Tests that fail, each with what it ends with.
const RECORD: &str = include_str!("../data/test262.txt");

/// How many there are of each that is run.
const ONE_OF: usize = 5;

/// Where the tests are that were made from the tables of Unicode, and how many of these there are of each that is run.
const MADE: &str = "/property-escapes/generated/";
const ONE_OF_MADE: usize = 8 * ONE_OF;

/// The parts of the language. The rest is about browsers and about what is not built in.
const PARTS: [&str; 2] = ["built-ins", "language"];

/// Where the shared file begins to speak about its own engine.
const OTHER_ENGINE: &str = "// file: test262-host.js";

/// What it needs instead: the session's answer to a test that ends later, and the little that can be
/// said about this host.
const HOST: &str = "
    globalThis.$finished = new Promise((resolve, reject) => {
        globalThis.$DONE = (failure) => failure ? reject(failure) : resolve();
    });
    globalThis.reportCompare = (expected, actual) => assert.sameValue(actual, expected);
    globalThis.$262 = { global: globalThis, detachArrayBuffer: (buffer) => { buffer.transfer(); } };
    globalThis.$DETACHBUFFER = $262.detachArrayBuffer;
";

/// What a script cannot have here, by words that only its tests have.
const ABSENT: [(&str, &str); 12] = [
    ("Atomics", "no second thread shares an engine"),
    ("SharedArrayBuffer", "no second thread shares an engine"),
    ("CanBlockIs", "no second thread shares an engine"),
    ("WeakRef", "nothing shows the collector"),
    ("FinalizationRegistry", "nothing shows the collector"),
    ("host-gc-required", "nothing shows the collector"),
    ("$262.gc", "nothing shows the collector"),
    ("createRealm", "an engine has one realm"),
    ("newGlobal", "an engine has one realm"),
    ("evalScript", "scripts come from the host"),
    ("IsHTMLDDA", "it is there for browsers"),
    ("tail-call-optimization", "the engine grows its stack"),
];

/// Fuel of each: the same on every machine, and enough for all but a few.
const FUEL_TICKS: u64 = 20_000;

enum Test262Verdict {
    Failed(String),
    LeftOut(&'static str),
    Passed,
}

/// A test, and what its first line says.
struct Test262Case<'a> {
    name: &'a str,
    text: &'a str,
    marks: &'a str,
}

impl<'a> Test262Case<'a> {
    fn new(name: &'a str, text: &'a str) -> Self {
        let first = text.lines().next().unwrap_or_default();
        let marks = first.strip_prefix("// |reftest|").unwrap_or_default();
        let marks = marks.split(" -- ").next().unwrap_or_default();
        Self { name, text, marks }
    }

    fn is(&self, mark: &str) -> bool {
        self.marks.split_whitespace().any(|known| known == mark)
    }

    /// The error that has to come of it.
    fn error(&self) -> Option<&str> {
        let mut marks = self.marks.split_whitespace();
        marks.find_map(|mark| mark.strip_prefix("error:"))
    }
}

#[test]
fn the_language_s_own_tests_fail_only_where_it_is_known() {
    let root = root();
    let names = names(&root);
    assert!(names.len() > 30_000, "{} tests", names.len());
    let chosen = chosen(&names);
    let verdicts = judged(&root, &chosen);
    let mut left_out: BTreeMap<&str, u32> = BTreeMap::new();
    let mut failed: BTreeMap<&str, &str> = BTreeMap::new();
    for (name, verdict) in &verdicts {
        match verdict {
            Test262Verdict::Failed(why) => _ = failed.insert(name, why),
            Test262Verdict::LeftOut(why) => *left_out.entry(why).or_default() += 1,
            Test262Verdict::Passed => {}
        }
    }
    let out: u32 = left_out.values().sum();
    println!(
        "figure test262: {} of {} ran, {} failed; left out {out}: {left_out:?}",
        verdicts.len() - out as usize,
        names.len(),
        failed.len()
    );
    let known = known();
    let ran: BTreeSet<&str> = chosen.iter().copied().collect();
    let new = failed.iter().filter(|(name, _)| !known.contains(*name));
    let new: Vec<String> = new.map(|(name, why)| format!("{name}\t{why}")).collect();
    let mended = known.iter().filter(|name| ran.contains(*name));
    let mended: Vec<&&str> = mended.filter(|name| !failed.contains_key(*name)).collect();
    let unknown: Vec<&&str> = known
        .iter()
        .filter(|name| {
            names
                .binary_search_by(|known| known.as_str().cmp(name))
                .is_err()
        })
        .collect();
    assert!(
        new.is_empty() && mended.is_empty() && unknown.is_empty(),
        "{} fail that did not:\n{}\n{} do not fail any more:\n{mended:?}\nno such test:\n{unknown:?}",
        new.len(),
        new.join("\n"),
        mended.len()
    );
}

/// Those that are run, in the order of their names.
fn chosen(names: &[String]) -> Vec<&str> {
    let names = names.iter().map(String::as_str);
    if is_campaign() {
        return names.collect();
    }
    let (made, written): (Vec<&str>, Vec<&str>) = names.partition(|name| name.contains(MADE));
    assert!(made.len() > 400, "{} made of tables", made.len());
    let written = written.into_iter().step_by(ONE_OF);
    let mut chosen: Vec<&str> = written
        .chain(made.into_iter().step_by(ONE_OF_MADE))
        .collect();
    chosen.sort_unstable();
    chosen
}

fn root() -> PathBuf {
    let folder = std::env::var_os("ALKNET_TEST_TEST262");
    folder
        .expect("ALKNET_TEST_TEST262 names the tests' folder; cargo xtask test sets it")
        .into()
}

fn known() -> BTreeSet<&'static str> {
    let lines = RECORD.lines().filter(|line| !line.starts_with('#'));
    lines
        .filter_map(|line| line.split('\t').next())
        .filter(|name| !name.is_empty())
        .collect()
}

/// Every test's path below the root, in order.
fn names(root: &Path) -> Vec<String> {
    let mut names = Vec::new();
    let mut folders: Vec<PathBuf> = PARTS.iter().map(PathBuf::from).collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root.join(&folder)).expect("the folder is there") {
            let entry = entry.expect("it can be read");
            let path = folder.join(entry.file_name());
            if entry.file_type().expect("it is there").is_dir() {
                folders.push(path);
                continue;
            }
            let name = path.to_str().expect("plain names").to_owned();
            let shared = ["/shell.js", "/browser.js", "_FIXTURE.js"];
            if name.ends_with(".js") && !shared.iter().any(|end| name.ends_with(end)) {
                names.push(name);
            }
        }
    }
    names.sort();
    names
}

/// What came of each, on as many threads as there are processors.
fn judged<'a>(root: &Path, names: &[&'a str]) -> BTreeMap<&'a str, Test262Verdict> {
    let next = AtomicUsize::new(0);
    let verdicts = Mutex::new(BTreeMap::new());
    let work = || {
        while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
            let text = fs::read(root.join(name)).expect("the file is there");
            let text = String::from_utf8_lossy(&text);
            let verdict = judge(root, &Test262Case::new(name, &text));
            verdicts.lock().expect("no panic").insert(*name, verdict);
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    verdicts.into_inner().expect("no panic")
}

fn judge(root: &Path, test: &Test262Case<'_>) -> Test262Verdict {
    let absent = ABSENT.iter().find(|(word, _)| test.text.contains(word));
    if let Some((_, why)) = absent {
        return Test262Verdict::LeftOut(why);
    }
    match run(root, test) {
        Ok(()) => Test262Verdict::Passed,
        Err(why) => Test262Verdict::Failed(why),
    }
}

fn run(root: &Path, test: &Test262Case<'_>) -> Result<(), String> {
    let mut modules = ModuleSet::new();
    let module = test.is("module");
    if module || test.text.contains("import(") {
        add(&mut modules, root, test.name);
    }
    let mut spec = IsolateSpec::new(modules).deterministic([1; 32], 1_586_000_000_000);
    spec.mode = SessionMode::Repl;
    spec.limits.fuel_ticks = FUEL_TICKS;
    spec.limits.cpu = Duration::from_secs(300);
    let isolate = Isolate::open(spec, Arc::new(RecordingHost::default()));
    let mut isolate = isolate.map_err(|failure| format!("no isolate: {failure}"))?;
    let mut enter = |work| wait(isolate.run(work)).result.map(drop);
    let script = |source: String| IsolateWork::Script { source };
    let shared = enter(script(shared(root, test.name)));
    shared.map_err(|failure| format!("what it shares: {}", summary(&failure)))?;
    let main = match module {
        true => IsolateWork::Module {
            module: format!("./{}", test.name.rsplit('/').next().unwrap_or_default()),
        },
        false => script(test.text.to_owned()),
    };
    let mut ended = enter(main);
    if ended.is_ok() && test.is("async") {
        ended = enter(script("await $finished".to_owned()));
    }
    match (ended, test.error()) {
        (Ok(()), None) => Ok(()),
        (Ok(()), Some(error)) => Err(format!("no {error}")),
        (Err(failure), Some(error)) if failure.name.as_deref() == Some(error) => Ok(()),
        (Err(failure), _) => Err(summary(&failure)),
    }
}

/// The test and everything of its folder that it may import, by names within that folder.
fn add(modules: &mut ModuleSet, root: &Path, name: &str) {
    let top = &name[..name.rfind('/').map_or(0, |at| at + 1)];
    let mut folders = vec![PathBuf::from(top.trim_end_matches('/'))];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root.join(&folder)).expect("the folder is there") {
            let entry = entry.expect("it can be read");
            let path = folder.join(entry.file_name());
            let Some(path) = path.to_str() else { continue };
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(path.into());
            } else if path == name || path.ends_with("_FIXTURE.js") {
                let text = fs::read(root.join(path)).expect("the file is there");
                let text = String::from_utf8_lossy(&text).into_owned();
                let below = path.strip_prefix(top).unwrap_or(path);
                // A module that is refused is missing for the test that imports it.
                let _ = modules.insert(&format!("./{below}"), text);
            }
        }
    }
}

/// What the folders down to the test share.
fn shared(root: &Path, name: &str) -> String {
    let whole = fs::read_to_string(root.join("shell.js")).expect("the shared file is there");
    let own = whole.split(OTHER_ENGINE).next().unwrap_or_default();
    let mut text = format!("{own}\n{HOST}");
    let folders: Vec<&Path> = Path::new(name).ancestors().skip(1).collect();
    for folder in folders.into_iter().rev() {
        if folder.as_os_str().is_empty() {
            continue;
        }
        // Not every folder has one.
        text += &fs::read_to_string(root.join(folder).join("shell.js")).unwrap_or_default();
        text.push('\n');
    }
    text
}

/// Short, and the same in every run.
fn summary(failure: &ScriptFailure) -> String {
    let line = failure.message.lines().next().unwrap_or_default();
    let line: String = line.chars().filter(|c| !c.is_control()).take(100).collect();
    match (failure.code, &failure.name) {
        (RuntimeCode::Exception, Some(name)) => format!("{name}: {line}"),
        (code, _) => format!("{}: {line}", code.name()),
    }
}
