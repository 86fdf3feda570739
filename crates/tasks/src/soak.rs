//! `soak`: the campaigns of the test suite at full count, with a dated summary.

use std::fs;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use crate::context::{self, XtaskContext};
use crate::failure::{Result, TaskError};
use crate::test::TestEnvironment;
use crate::{driver, fuzz, image, test};

/// Tests read this: `full` requests the promised counts, instead of those that fit continuous
/// integration.
const COUNT_VARIABLE: &str = "ALKNET_SOAK";

/// Tests with random inputs print this with the seed that repeats them.
const SEED_VARIABLE: &str = "ALKNET_SEED";

/// The names and kinds of the campaigns.
const CAMPAIGNS: [(&str, CampaignKind); 13] = [
    // A client that was not run has shown nothing, so this campaign needs a host that runs all of them.
    (
        "clients",
        CampaignKind::Complete(&[
            "iroh_clients_fetch_contents",
            "webdav_clients_use_the_files",
        ]),
    ),
    ("counts", CampaignKind::Tests(&COUNTS)),
    // Most of the time is spent waiting, and no time is measured, so it may run beside other work.
    ("crowds", CampaignKind::Tests(&["hostile_crowds"])),
    (
        "flood",
        CampaignKind::Measured(&[
            "flood_of_forged",
            "host_with_thousands",
            "neighbour_of_a_crowd",
        ]),
    ),
    (fuzz::NAME, CampaignKind::Fuzz),
    (
        "hostile",
        CampaignKind::Measured(&[
            "a_node_answers_as_its_document",
            "every_case_ends_with_its_code",
            "hostile_frames",
            "hostile_headers_end_in_errors",
            "hostile_noise",
            "hostile_scripts",
        ]),
    ),
    (
        "media",
        CampaignKind::Tests(&["the_medium_as_a_stick", "the_medium_installs_itself"]),
    ),
    (
        "network-boot",
        CampaignKind::Tests(&["starts_over_the_network"]),
    ),
    ("pipelines", CampaignKind::Measured(&["pipelines_that"])),
    ("power-cuts", CampaignKind::Tests(&["power_cut"])),
    (
        "sync",
        CampaignKind::Measured(&[
            "a_first_synchronisation_of_a_large_tree",
            "three_nodes_that_are_parted",
        ]),
    ),
    ("times", CampaignKind::Measured(&TIMES)),
    (
        "update-cuts",
        CampaignKind::Tests(&[
            "update_auto",
            "update_cuts",
            "update_damaged",
            "update_refusals",
            "update_sealed",
            "update_secured",
            "update_that_hangs",
            "update_that_panics",
            "update_unwell",
            "update_workers",
        ]),
    ),
];

/// Tests with a count that is higher here than in a run of the tests, and that measure no time.
const COUNTS: [&str; 10] = [
    "a_file_of_holes",
    "a_server_that_takes_no_cancellation",
    "a_thousand_idle_sessions",
    "a_thousand_replays",
    "behaves_as_the_model",
    "disk_fails_at_any_call",
    "matrices_may_lie_anyhow",
    "products_are_numpys",
    "the_language_s_own_tests",
    "torn_at_any_byte",
];

/// Tests of promised times, which only an idle machine can show, and three that wait ten minutes and more.
const TIMES: [&str; 25] = [
    "a_booted_machine_serves",
    "a_hub_reaches_its_workers",
    "a_large_file_is_not_read",
    "a_narrower_scope_ends_them",
    "a_narrower_token_of_a_connection",
    "a_peer_taken_out_of_the_file",
    "a_removed_peer_does_not_let_itself_in",
    "a_removed_peer_loses_its_live_connections",
    "a_request_that_would_repeat",
    "a_shader_whose_caller_stops",
    "a_token_that_is_revoked_ends_what_it_started",
    "a_worker_machine_joins",
    "a_worker_without_heartbeats",
    "an_abort_reaches",
    "answers_that_are_not_taken",
    "half_open_streams_end",
    "native_loops_and_sleeps",
    "schemas_of_peers_cost",
    "schemas_of_proposals_cost",
    "schemas_of_scripts_cost",
    "schemas_of_servers_cost",
    "the_older_connection_does_not_stay",
    "unknown_peers_that_keep_asking",
    "what_continues_finishes",
    "what_is_written_in_one_copy",
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CampaignKind {
    /// Like `Tests`, and fails if one of the tests left something out.
    Complete(&'static [&'static str]),
    Fuzz,
    /// Runs the tests whose names have one of these parts, one at a time: other tests must not
    /// change what they measure.
    Measured(&'static [&'static str]),
    /// Runs the tests whose names have one of these parts, as many at a time as there are processors.
    Tests(&'static [&'static str]),
}

/// How much slower than at rest a machine may be whose times count against promises: the bounds are
/// multiplied by this.
const SLOWDOWN_MAX: f64 = 1.5;

/// Prefix of the lines that measuring tests print.
const FIGURE: &str = "figure ";

/// Arguments of `soak`.
#[derive(Debug, clap::Args)]
pub(crate) struct SoakArgs {
    /// Campaign: clients, counts, crowds, flood, fuzz, hostile, media, network-boot, pipelines, power-cuts, sync, times
    /// or update-cuts [default: all]
    name: Option<String>,
    /// Folder for the summaries, DATE-NAME.md [default: soak in the cache]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Minutes for each fuzz target
    #[arg(long, value_name = "N", default_value_t = fuzz::MINUTES, value_parser = clap::value_parser!(u64).range(1..=1440))]
    minutes: u64,
    /// Fuzz this target only
    #[arg(long, value_name = "NAME")]
    target: Option<String>,
    /// Put what fuzzing found interesting into fuzz/corpus, minimised
    #[arg(long)]
    keep: bool,
    /// Fuzz so many targets at once [default: as many as there are processors]
    #[arg(long, value_name = "N")]
    jobs: Option<NonZeroUsize>,
}

/// Runs the campaigns one after the other. The next one also runs after a failure.
pub(crate) fn run(cx: &mut XtaskContext, arguments: &SoakArgs) -> Result<()> {
    let campaigns = chosen(arguments.name.as_deref())?;
    let mut first_failure = None;
    for (name, kind) in campaigns {
        // This commit is built in a moment. Hours later, when the summary names it, the clone may have others.
        let git = image::commit(cx.root());
        let result = match kind {
            CampaignKind::Fuzz => fuzzing(cx, arguments, &git),
            CampaignKind::Complete(_) | CampaignKind::Measured(_) | CampaignKind::Tests(_) => {
                tests(cx, arguments, (name, kind), &git)
            }
        };
        if let Err(failure) = result {
            eprintln!("{name}: {failure}");
            // The other campaigns run all the same: each takes hours, and its result counts by
            // itself.
            first_failure.get_or_insert(failure);
        }
    }
    first_failure.map_or(Ok(()), Err)
}

fn fuzzing(cx: &mut XtaskContext, arguments: &SoakArgs, git: &str) -> Result<()> {
    let campaign = fuzz::Campaign {
        minutes: arguments.minutes,
        only: arguments.target.as_deref(),
        keep: arguments.keep,
        jobs: arguments.jobs.unwrap_or_else(fuzz::jobs),
    };
    let report = campaign.run(cx)?;
    let verdict = match report.findings.as_slice() {
        [] => "no finding",
        _ => "FAILED",
    };
    let summary = format!(
        "# Soak: {}\n\n{verdict} on {}, commit {git}.\n\n{}",
        fuzz::NAME,
        today(),
        report.table
    );
    publish(cx, arguments, fuzz::NAME, &summary)?;
    match report.findings.first() {
        None => Ok(()),
        Some(first) => Err(TaskError::Step {
            what: format!("campaign {}", fuzz::NAME),
            how: format!(
                "{} findings, the first in {}",
                report.findings.len(),
                first.display()
            ),
            log: None,
        }),
    }
}

fn tests(
    cx: &mut XtaskContext,
    arguments: &SoakArgs,
    (name, kind): (&str, CampaignKind),
    git: &str,
) -> Result<()> {
    let (parts, how): (&[&str], &[&str]) = match kind {
        CampaignKind::Fuzz => (&[], &[]),
        CampaignKind::Measured(parts) => (parts, &["--test-threads=1"]),
        CampaignKind::Complete(parts) | CampaignKind::Tests(parts) => (parts, &[]),
    };
    // This precedes every build, because the load of this command is not the machine's.
    let surroundings = TestEnvironment::measure()?;
    let slowdown = surroundings.slowdown();
    cx.board().print(&format!(
        "this machine is {slowdown:.1} times slower than at rest"
    ));
    let booted = test::BootArtifacts::ensure(cx, &driver::DriverSelection::usual())?;
    let lock = cx.claim()?;
    let started = Instant::now();
    let log = format!("soak-{name}");
    let mut command = test::command(cx, &booted)?;
    ask_for_all(&mut command, &[how, parts].concat(), &surroundings);
    let result = cx.step(name, |cx| cx.run(&mut command, name, &log));
    drop(lock);
    let seconds = started.elapsed().as_secs();
    let output = fs::read_to_string(cx.log(&log))
        .map_err(TaskError::io(format!("read the output of {name}")))?;
    let tally = SoakTally::parse(&output);
    // A filter that matches no test would pass, and so do tests that skip themselves.
    let result = result.and_then(|()| tally.check(name, parts, surroundings.skipped_whole()));
    let result = result.and_then(|()| match kind {
        CampaignKind::Measured(_) => measured(name, slowdown, &surroundings.skipped()),
        CampaignKind::Complete(_) => complete(name, &surroundings.skipped()),
        CampaignKind::Fuzz | CampaignKind::Tests(_) => Ok(()),
    });
    let summary = summary(&SoakFacts {
        name,
        date: &today(),
        git,
        seconds,
        slowdown,
        passed: result.is_ok(),
        tally: &tally,
        skipped: &surroundings.skipped(),
        end: &context::tail(&cx.log(&log)),
    });
    // A failed campaign has a summary too.
    publish(cx, arguments, name, &summary)?;
    result
}

/// Refuses a campaign that measured on a busy machine, or in which a test measured nothing.
fn measured(name: &str, slowdown: f64, skipped: &str) -> Result<()> {
    if slowdown <= SLOWDOWN_MAX {
        return complete(name, skipped);
    }
    let how = format!(
        "the machine was {slowdown:.1} times slower than at rest, and times are held against promises up to \
         {SLOWDOWN_MAX} times: end what else runs on it"
    );
    Err(TaskError::Step {
        what: format!("campaign {name}"),
        how,
        log: None,
    })
}

/// Refuses a campaign in which a test left something out, which `skipped` lists.
fn complete(name: &str, skipped: &str) -> Result<()> {
    match skipped.is_empty() {
        true => Ok(()),
        false => Err(TaskError::Step {
            what: format!("campaign {name}"),
            how: "some of its tests left something out; the summary says for lack of what"
                .to_owned(),
            log: None,
        }),
    }
}

/// Makes cargo run the tests of a campaign, with these arguments of theirs, at full count.
fn ask_for_all(cargo_test: &mut Command, arguments: &[&str], surroundings: &TestEnvironment) {
    cargo_test
        // The whole workspace, so that libraries keep the features with which they were compiled.
        .args(["--workspace", "--tests", "--no-fail-fast"])
        .args(["--", "--nocapture"])
        .args(arguments)
        .env(COUNT_VARIABLE, "full")
        .envs(surroundings.variables());
}

fn today() -> String {
    jiff::Timestamp::now().strftime("%F").to_string()
}

fn publish(cx: &XtaskContext, arguments: &SoakArgs, name: &str, summary: &str) -> Result<()> {
    let folder = arguments.out.clone();
    let folder = folder.unwrap_or_else(|| cx.cache().join("soak"));
    let file = folder.join(format!("{}-{name}.md", today()));
    write(&file, summary)?;
    println!("{summary}\nThe summary is in {}.", file.display());
    Ok(())
}

fn chosen(name: Option<&str>) -> Result<Vec<(&'static str, CampaignKind)>> {
    let Some(name) = name else {
        return Ok(CAMPAIGNS.to_vec());
    };
    let found = CAMPAIGNS.into_iter().find(|(known, _)| *known == name);
    found.map(|campaign| vec![campaign]).ok_or_else(|| {
        let known: Vec<_> = CAMPAIGNS.iter().map(|(name, _)| *name).collect();
        TaskError::Arguments(format!("no campaign \"{name}\", only {}", known.join(", ")))
    })
}

/// The results in the output of a campaign.
#[derive(Debug, Default, PartialEq, Eq)]
struct SoakTally {
    passed: u32,
    failed: u32,
    /// Tests that began.
    tests: Vec<String>,
    cuts: usize,
    /// The seeds that repeat it, as `VARIABLE=number`.
    seeds: Vec<String>,
    /// The measured figures.
    figures: Vec<String>,
}

impl SoakTally {
    fn parse(output: &str) -> Self {
        let mut tally = Self::default();
        for line in output.lines() {
            if let Some(result) = line.strip_prefix("test result: ") {
                tally.passed += number_before(result, " passed");
                tally.failed += number_before(result, " failed");
            } else if let Some((test, _)) = line
                .strip_prefix("test ")
                .and_then(|rest| rest.split_once(" ... "))
            {
                tally.tests.push(test.to_owned());
            }
            // A test's name may stand before its output.
            let Some(text) = line.split(" ... ").last() else {
                continue;
            };
            tally.cuts += usize::from(text.starts_with("cut ") && text.contains(": moment "));
            if let Some(figure) = text.strip_prefix(FIGURE) {
                tally.figures.push(figure.to_owned());
            }
            if text.starts_with(SEED_VARIABLE) {
                tally.seeds.push(text.to_owned());
            }
        }
        tally
    }

    /// Refuses a campaign in which one of its `parts` matches no test, or in which no test checked
    /// anything. `skipped` is how many of its tests checked nothing.
    fn check(&self, name: &str, parts: &[&str], skipped: usize) -> Result<()> {
        let passed = usize::try_from(self.passed).unwrap_or(usize::MAX);
        let is_there = |part: &str| self.tests.iter().any(|test| test.contains(part));
        let how = if let Some(part) = parts.iter().find(|part| !is_there(part)) {
            format!("no test has {part:?} in its name")
        } else if passed <= skipped {
            "all of its tests skipped themselves; the summary says for lack of what".to_owned()
        } else {
            return Ok(());
        };
        Err(TaskError::Step {
            what: format!("campaign {name}"),
            how,
            log: None,
        })
    }
}

/// The number before `word`, or zero.
fn number_before(text: &str, word: &str) -> u32 {
    let before = text.split_once(word).map_or("", |(before, _)| before);
    let digits = before.rsplit(' ').next().unwrap_or_default();
    digits.parse().unwrap_or_default()
}

struct SoakFacts<'a> {
    name: &'a str,
    date: &'a str,
    git: &'a str,
    seconds: u64,
    /// How much slower the machine was than at rest, by which bounds on time were multiplied.
    slowdown: f64,
    passed: bool,
    tally: &'a SoakTally,
    /// The table of tests that skipped themselves, which the harness counts as passed.
    skipped: &'a str,
    end: &'a [String],
}

fn summary(facts: &SoakFacts<'_>) -> String {
    let verdict = if facts.passed { "passed" } else { "FAILED" };
    let SoakTally {
        passed,
        failed,
        cuts,
        seeds,
        figures,
        ..
    } = facts.tally;
    let mut text = format!(
        "# Soak: {}\n\n{verdict} on {}, commit {}, {} s, on a machine {:.1} times slower than at rest: \
         {passed} tests passed, {failed} failed",
        facts.name, facts.date, facts.git, facts.seconds, facts.slowdown,
    );
    if *cuts > 0 {
        text.push_str(&format!("; {cuts} power cuts"));
    }
    text.push_str(".\n");
    for figure in figures {
        text.push_str(&format!("\n- {figure}"));
    }
    if !figures.is_empty() {
        text.push('\n');
    }
    if !seeds.is_empty() {
        text.push_str(&format!("\nRepeated by {}.\n", seeds.join(", ")));
    }
    if !facts.skipped.is_empty() {
        text.push_str(&format!("\n```\n{}\n```\n", facts.skipped.trim_end()));
    }
    if !facts.passed {
        text.push_str(&format!("\n```\n{}\n```\n", facts.end.join("\n")));
    }
    text
}

fn write(file: &PathBuf, text: &str) -> Result<()> {
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder).map_err(TaskError::io(format!("make {}", folder.display())))?;
    }
    fs::write(file, text).map_err(TaskError::io(format!("write {}", file.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "\
running 2 tests
test a_power_cut_costs_nothing ... ALKNET_SEED=5
cut 0: moment 7 of 9, announced at 8, seed 3: CutSummary { whole: 4 }
cut 1: moment 1 of 9, announced at 8, seed 4: CutSummary { whole: 0 }
figure p99 of a call: 1.00 ms
ok
test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 3 filtered out
running 0 tests
test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 12 filtered out
";

    #[test]
    fn the_output_is_counted() {
        let tally = SoakTally {
            passed: 1,
            failed: 1,
            tests: vec!["a_power_cut_costs_nothing".to_owned()],
            cuts: 2,
            seeds: vec!["ALKNET_SEED=5".to_owned()],
            figures: vec!["p99 of a call: 1.00 ms".to_owned()],
        };
        assert_eq!(SoakTally::parse(OUTPUT), tally);
    }

    #[test]
    fn a_campaign_without_tests_has_not_passed() {
        let parts = ["power_cut", "blank"];
        let tally = SoakTally::parse("test result: ok. 0 passed; 0 failed; 0 ignored");
        let error = tally.check("power-cuts", &parts, 0);
        let error = error.expect_err("nothing ran").to_string();
        assert!(error.contains("power-cuts"), "{error}");
        let one = "test a_power_cut ... ok\ntest result: ok. 1 passed; 0 failed; 0 ignored\n";
        let error = SoakTally::parse(one).check("power-cuts", &parts, 0);
        let error = error.expect_err("one part fits nothing").to_string();
        assert!(error.contains("\"blank\""), "{error}");
        let both = format!("{one}test of_a_blank_disk ... ok\n{one}");
        let tally = SoakTally::parse(&both);
        assert!(tally.check("power-cuts", &parts, 1).is_ok());
        let error = tally.check("power-cuts", &parts, 2);
        let error = error.expect_err("both skipped").to_string();
        assert!(error.contains("skipped themselves"), "{error}");
    }

    #[test]
    fn what_is_measured_on_a_busy_machine_or_left_out_has_not_passed() {
        assert!(measured("times", SLOWDOWN_MAX, "").is_ok());
        let busy = measured("times", SLOWDOWN_MAX + 0.1, "");
        let busy = busy.expect_err("it is busy").to_string();
        assert!(busy.contains("1.6 times slower"), "{busy}");
        let part = measured("times", 1.0, "1 tests were skipped for lack of:\n");
        let part = part.expect_err("one left something out").to_string();
        assert!(part.contains("left something out"), "{part}");
        // On a busy machine clients are only slower.
        assert!(complete("clients", "").is_ok());
        let part = complete("clients", "a_test skipped for lack of FUSE: no device\n");
        let part = part.expect_err("one client was not run").to_string();
        assert!(
            part.contains("clients") && part.contains("left something out"),
            "{part}"
        );
    }

    #[test]
    fn the_campaign_of_clients_fails_without_one_of_them() {
        let [(name, kind)] = chosen(Some("clients")).expect("it exists")[..] else {
            panic!("one campaign");
        };
        assert!(matches!(kind, CampaignKind::Complete(_)), "{name}");
    }

    #[test]
    fn a_summary_is_dated_and_says_how_it_went() {
        let end = ["the last line".to_owned()];
        let facts = SoakFacts {
            name: "power-cuts",
            date: "2026-01-02",
            git: "abc",
            seconds: 7,
            slowdown: 1.25,
            passed: false,
            tally: &SoakTally::parse(OUTPUT),
            skipped: "1 tests were skipped for lack of:\n  KVM: 1\n",
            end: &end,
        };
        let text = summary(&facts);
        for part in [
            "power-cuts",
            "2026-01-02",
            "abc",
            "7 s",
            "1.2 times slower than at rest",
            "FAILED",
            "1 tests passed",
            "2 power cuts",
            "ALKNET_SEED=5",
            "- p99 of a call: 1.00 ms",
            "skipped for lack of:\n  KVM: 1",
            "the last line",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn a_campaigns_tests_learn_what_all_tests_do() {
        let surroundings = TestEnvironment::measure().expect("writable");
        let mut command = Command::new("cargo");
        ask_for_all(&mut command, &["power_cut", "blank"], &surroundings);
        let arguments: Vec<_> = command.get_args().collect();
        assert!(arguments.ends_with(&["power_cut".as_ref(), "blank".as_ref()]));
        let set = |name: &str| {
            let mut all = command.get_envs();
            let found = all.find(|(variable, _)| *variable == name);
            let value = found.and_then(|(_, value)| value);
            value.map(|value| value.to_string_lossy().into_owned())
        };
        assert_eq!(set("ALKNET_SOAK").as_deref(), Some("full"));
        let slowdown = set("ALKNET_TEST_SLOWDOWN").and_then(|text| text.parse().ok());
        assert!(slowdown.is_some_and(|factor: f64| factor >= 1.0));
        assert!(set("ALKNET_TEST_SKIPS").is_some());
    }

    #[test]
    fn an_unknown_campaign_is_refused_with_the_known_ones() {
        assert_eq!(chosen(None).expect("all").len(), CAMPAIGNS.len());
        let fuzz = chosen(Some("fuzz")).expect("it exists");
        assert_eq!(fuzz, [("fuzz", CampaignKind::Fuzz)]);
        let error = chosen(Some("power")).expect_err("unknown").to_string();
        assert!(error.contains("power-cuts"), "{error}");
    }
}
