//! A process that proposes, promotes and takes back, and is killed in the middle of it, again and
//! again: what the store reported as done is done, and nothing is half done.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use alknet_promotion::{
    AuditAct, AuthoritySnapshot, BundleFindings, NewProposal, OperationVersion, PromotionStore,
    PromotionStoreError, PromotionTerms, ProposalState, ReviewResult, TallyCounts,
};
use alknet_runtime::ops::{Percentiles, ScriptTestReport};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use serde_json::json;

use crate::support::*;

/// Names the file to the process that writes it.
const FILE: &str = "ALKNET_TEST_PROMOTION_DB";
/// The test that starts itself as the process that it kills.
const NAME: &str = "killed::a_killed_writer_leaves_everything_whole";
/// How often a writer is killed.
const ROUNDS: usize = 25;

pub(crate) fn found() -> BundleFindings {
    BundleFindings {
        authority: AuthoritySnapshot::default(),
        imports: Vec::new(),
        report: ScriptTestReport {
            name: "a".to_owned(),
            passed: true,
            cases: Vec::new(),
            fuel: Percentiles { p50: 0, p99: 0 },
            uncovered: Vec::new(),
        },
    }
}

pub(crate) fn act(who: &str) -> AuditAct<'_> {
    AuditAct {
        who,
        at_s: Some(1),
        note: "",
    }
}

/// Proposes, promotes, and every third time takes back.
fn step(store: &PromotionStore, n: u64) -> Result<u64, PromotionStoreError> {
    let bundle = says("a", &json!(n)).sign();
    let proposal = store.propose(
        NewProposal {
            bundle: &bundle,
            found: &found(),
        },
        act("ada"),
    )?;
    let terms = PromotionTerms {
        path: "js/a".to_owned(),
        external: false,
        scopes: Vec::new(),
    };
    let accepted = store.accept(&proposal, &terms, 1, |_| true, None, act("eve"))?;
    let ReviewResult::Promoted(promoted) = accepted else {
        return Err(PromotionStoreError::Conflict("one is enough".to_owned()));
    };
    match n % 3 {
        0 => Ok(store.rollback("js/a", None, act("eve"))?.generation),
        _ => Ok(promoted.generation),
    }
}

/// The process that is killed.
fn write(file: &Path) {
    let store = PromotionStore::open(file).expect("a whole file");
    let (begun, _) = store.heads().expect("it can be read");
    let mut out = std::io::stdout().lock();
    for n in begun * 1_000.. {
        let generation = step(&store, n).expect("room");
        writeln!(out, "\ndone {generation}").expect("a reader");
        out.flush().expect("a reader");
    }
}

/// Everything that is there fits together.
fn is_whole(store: &PromotionStore) -> u64 {
    let (generation, heads) = store.heads().expect("it can be read");
    let versions = store.versions("js/a").expect("it can be read");
    let numbers: Vec<_> = versions.iter().rev().map(|it| it.version).collect();
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>());
    assert!(heads.len() <= 1);
    for OperationVersion {
        id,
        current,
        generation: of,
        ..
    } in &versions
    {
        let proposal = store.proposal(*id).expect("it can be read").expect("kept");
        let state = if *current {
            ProposalState::Promoted
        } else {
            ProposalState::Retired
        };
        assert_eq!(proposal.state, state);
        assert!(*of <= generation);
        store.bundle(*id).expect("signed").expect("kept");
    }
    let filter = alknet_promotion::ProposalFilter {
        state: Some(ProposalState::Proposed),
        before: None,
    };
    // Proposed by a writer that was killed before it promoted.
    let waiting = store.proposals(&filter, 1_000).expect("it can be read");
    assert!(waiting.len() <= ROUNDS);
    // Each generation is in the record, once for each proposal that it concerns.
    let mut recorded = std::collections::BTreeSet::new();
    for version in &versions {
        let entries = store.audit(version.id).expect("it can be read");
        recorded.extend(entries.iter().filter_map(|it| it.generation));
    }
    assert_eq!(recorded, (1..=generation).collect());
    generation
}

#[test]
fn a_killed_writer_leaves_everything_whole() {
    // The test starts itself as the writer.
    if let Some(file) = std::env::var_os(FILE) {
        return write(Path::new(&file));
    }
    let folder = folder();
    let file = folder.path().join("promotion.db");
    let mut done = 0;
    for round in 0..ROUNDS {
        let mut writer = Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", NAME, "--nocapture", "--test-threads=1"])
            .env(FILE, &file)
            .stdout(Stdio::piped())
            .spawn()
            .expect("this test can be started");
        let lines = BufReader::new(writer.stdout.take().expect("asked for"));
        let until = done + 1 + (round as u64 * 5) % 7;
        for line in lines.lines() {
            let line = line.expect("text");
            if let Some(n) = line.strip_prefix("done ") {
                done = n.parse().expect("a number");
                if done >= until {
                    writer.kill().ok();
                }
            }
        }
        let ended = writer.wait().expect("our child");
        assert!(
            !ended.success() && done >= until,
            "round {round}: {ended}, {done}"
        );
        let store = PromotionStore::open(&file).expect("a whole file");
        let found = is_whole(&store);
        assert!(
            (done..=done + 2).contains(&found),
            "round {round}: {found} after {done}"
        );
        done = found;
    }
}

/// The author of a version that was taken back has the machine: they cut the power right after the answer, and damage each
/// block of the log in turn, which SQLite takes for the log's end.
#[test]
fn a_damaged_log_brings_no_version_back_that_was_taken_back() {
    let folder = folder();
    let file = folder.path().join("promotion.db");
    let store = PromotionStore::open(&file).expect("a file");
    for n in 1..=3 {
        step(&store, n).expect("room");
    }
    let taken_back = store.heads().expect("it can be read");
    let log = |of: &Path| of.with_file_name("promotion.db-wal");
    let written = std::fs::read(log(&file)).expect("the log of an open file");
    let blocks = written.len().div_ceil(4096);
    for damaged in (0..blocks).map(Some).chain([None]) {
        let other = self::folder();
        let cut = other.path().join("promotion.db");
        let mut written = written.clone();
        if let Some(block) = damaged.and_then(|n| written.chunks_mut(4096).nth(n)) {
            block.fill(0xa5);
        }
        std::fs::copy(&file, &cut).expect("the folder is ours");
        std::fs::write(log(&cut), written).expect("the folder is ours");
        let cut = PromotionStore::open(&cut).expect("a whole file");
        assert_eq!(
            cut.heads().expect("it can be read"),
            taken_back,
            "{damaged:?}"
        );
    }
    assert_eq!(blocks, 0, "a decision that was answered is in the file");
}

/// From now on a write beyond so many bytes of a file fails, as on a full disk.
fn limit_files(bytes: u64) {
    let mut signals = SigSet::empty();
    // The kernel sends it with each such write, and it would end the process.
    signals.add(Signal::SIGXFSZ);
    signals.thread_block().expect("a mask of this thread");
    let (_, hard) = getrlimit(Resource::RLIMIT_FSIZE).expect("a limit");
    let soft = bytes.min(hard);
    setrlimit(Resource::RLIMIT_FSIZE, soft, hard).expect("no more than the hard limit");
}

/// An attacker fills the disk before a decision: the log takes it, and the file has no room for it.
#[test]
fn a_log_that_cannot_be_emptied_is_a_problem_and_the_store_opens() {
    let name = "killed::a_log_that_cannot_be_emptied_is_a_problem_and_the_store_opens";
    // The limit is the process's.
    alknet_test_support::alone(name, || {
        let folder = folder();
        let file = folder.path().join("promotion.db");
        // Some 100 KB each: a decision takes less than the limit in the log, and more than is left in the file.
        let propose = |store: &PromotionStore, n: u64| {
            let bundle = says("a", &json!(format!("{n}{}", "x".repeat(50_000)))).sign();
            let new = NewProposal {
                bundle: &bundle,
                found: &found(),
            };
            store.propose(new, act("ada")).expect("room in the log");
            bundle.id()
        };
        let store = PromotionStore::open(&file).expect("a file");
        for n in 0..4 {
            propose(&store, n);
        }
        assert_eq!(store.unemptied_log(), None);
        limit_files(std::fs::metadata(&file).expect("the file").len());
        let last = propose(&store, 4);
        assert!(store.unemptied_log().is_some(), "the file took all of it");
        drop(store);
        let store = PromotionStore::open(&file).expect("a whole file with its log");
        let kept = store.proposal(last).expect("it can be read");
        assert!(
            kept.is_some() && store.unemptied_log().is_some(),
            "{kept:?}"
        );
        limit_files(u64::MAX);
        // Whatever is written next: it need not be a decision.
        let counts = TallyCounts::default();
        store.tally("js/a", 1, counts).expect("room");
        assert_eq!(store.unemptied_log(), None);
        let log = file.with_file_name("promotion.db-wal");
        assert_eq!(std::fs::metadata(log).expect("the log").len(), 0);
    });
}
