//! What the words of the command line mean, and what is printed.

use clap::Parser;

use super::*;

#[derive(Debug, Parser)]
struct UpdateTestCli {
    #[command(flatten)]
    args: UpdateArgs,
}

fn read(line: &str) -> Result<UpdateArgs, clap::Error> {
    let words = std::iter::once("update").chain(line.split_whitespace());
    UpdateTestCli::try_parse_from(words).map(|cli| cli.args)
}

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn the_last_word_is_the_source_if_it_can_be_no_node() {
    let is_node = |word: &str| word == "bundle.tar" || word == "edge-1";
    for (line, nodes, source) in [
        ("", 0, None),
        ("edge-1", 1, None),
        ("edge-1 hall", 2, None),
        ("edge-1 ./a", 1, Some("./a")),
        ("new.tar", 0, Some("new.tar")),
        ("bundle.tar", 1, None),
        (
            "edge-1 hall https://a.example/b",
            2,
            Some("https://a.example/b"),
        ),
    ] {
        let words = words(line);
        let (found, file) = arranged(&words, is_node).expect(line);
        assert_eq!((found.len(), file), (nodes, source), "{line}");
    }
    let wrong = words("https://a.example/b edge-1");
    assert!(arranged(&wrong, is_node).is_err());
}

#[test]
fn a_verb_is_no_node_and_a_node_is_no_verb() {
    assert!(matches!(
        read("status edge-1").expect("a verb").verb,
        Some(UpdateVerb::Status(_))
    ));
    assert!(matches!(
        read("log").expect("a verb").verb,
        Some(UpdateVerb::Log(_))
    ));
    let parsed = read("edge-1 b.tar --stage --downgrade 1.0.0").expect("options");
    assert!(parsed.verb.is_none() && parsed.options.stage && !parsed.options.take_over);
    assert!(matches!(
        read("cancel edge-1").expect("a verb").verb,
        Some(UpdateVerb::Cancel(_))
    ));
    assert_eq!(parsed.options.words, ["edge-1", "b.tar"]);
    for refused in [
        "edge-1 --stage --at 1h",
        "edge-1 --dry-run --stage",
        "edge-1 --rings 1,all",
        "attic --workers --rings 0",
        "attic --workers --at-once 0",
        "attic --workers --stage",
        "attic --workers --take-over",
        "attic --workers --channel beta",
        "edge-1 --channel nightly",
        "edge-1 --channel beta --from attic",
        "edge-1 --at noon",
    ] {
        assert!(read(refused).is_err(), "{refused}");
    }
    let fleet = read("attic b.tar --workers --rings 1,5,all --at-once 3").expect("options");
    assert_eq!(fleet.options.rings.len(), 3);
}

#[test]
fn a_start_is_a_moment_or_a_time_from_now() {
    let now: Timestamp = "2027-01-31T00:00:00Z".parse().expect("a time");
    let moment = |text: &str| {
        let at = start_time(text).expect(text).moment(now);
        at.expect("not far").to_string()
    };
    assert_eq!(moment("2h"), "2027-01-31T02:00:00Z");
    assert_eq!(moment("2027-02-01T02:00:00Z"), "2027-02-01T02:00:00Z");
    duration::samples::refuses_what_is_no_time(OR_MOMENT, start_time);
    assert!(StartTime::In(u64::MAX).moment(now).is_err());
}

#[test]
fn without_a_person_nothing_restarts_unasked() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let line = format!("127.0.0.1:1 --state {}", dir.path().display());
    let options = read(&line).expect("options").options;
    let refused = update(&options, true).expect_err("no person");
    assert_eq!(refused.exit, CommandExit::Usage);
    assert!(refused.message.contains("--yes"), "{refused}");
    let plain = read(&format!("{line} http://a.example/b.tar"))
        .expect("options")
        .options;
    let refused = update(&plain, true).expect_err("a server without TLS");
    assert!(refused.message.contains("https only"), "{refused}");
    let both = read(&format!("{line} ./b.tar --channel beta"))
        .expect("options")
        .options;
    let refused = update(&both, true).expect_err("two sources");
    assert!(refused.message.contains("--channel"), "{refused}");
    let missing = read(&format!("{line} ./missing.tar"))
        .expect("options")
        .options;
    let refused = update(&missing, true).expect_err("no such file");
    assert!(refused.message.contains("missing.tar"), "{refused}");
}

/// The node restarted after the version was staged, so it has no plan any more. Another caller may stage another program
/// while the administrator reads the question.
#[test]
fn a_start_names_the_program_that_was_agreed_to() {
    let mut status = json!({
        "state": "staged", "version": "1.0.0", "other_version": "1.1.0", "other_sha256": "a1", "plan": null,
    });
    let waiting = |status: &Value| waiting_plan(status, status["plan"].clone());
    let plan = waiting(&status).expect("a version waits");
    assert_eq!(
        (&plan["from"], &plan["to"]),
        (&json!("1.0.0"), &json!("1.1.0"))
    );
    let expected = json!({ "at": null, "sha256": "a1" });
    assert_eq!(start_input(None, &plan), Ok(expected));
    status["plan"] = json!({ "from": "1.0.0", "to": "1.1.0", "sha256": "b2", "bytes": 9 });
    assert_eq!(waiting(&status), Some(status["plan"].clone()));
    // A node that names no program gets no order that would start any.
    for unknown in [json!(null), json!("")] {
        status["plan"] = json!(null);
        status["other_sha256"] = unknown;
        let plan = waiting(&status).expect("a version waits");
        let refused = start_input(None, &plan).expect_err("no program is named");
        assert_eq!(refused.exit, CommandExit::Failed);
    }
    status["state"] = json!("good");
    assert_eq!(waiting(&status), None);
}

/// Another caller may stage the same program with a higher floor while the administrator reads the question.
#[test]
fn a_start_names_the_floor_of_the_plan_that_was_shown() {
    for (floor, sent) in [(json!("1.1.0"), "1.1.0"), (Value::Null, "unchanged")] {
        let status = json!({
            "state": "staged", "version": "1.0.0", "other_version": "1.1.0", "other_sha256": "a1", "other_floor": floor,
        });
        let plan = waiting_plan(&status, Value::Null).expect("a version waits");
        let is_shown = plan_lines("edge-1", &plan)
            .iter()
            .any(|line| line.starts_with("  floor "));
        assert_eq!(is_shown, floor.is_string());
        let expected = json!({ "at": null, "sha256": "a1", "agreed_floor": sent });
        assert_eq!(start_input(None, &plan), Ok(expected));
    }
    // A node that asks for more than its plan shows does not get it.
    let plan = json!({ "sha256": "a1", "floor": null, "agreed_floor": "9.0.0" });
    let input = start_input(None, &plan).expect("a program");
    assert_eq!(input["agreed_floor"], "unchanged");
    // A node of an earlier version refuses a member that it does not know.
    let plan = json!({ "sha256": "a1", "floor": "1.1.0" });
    let input = start_input(None, &plan).expect("a program");
    assert_eq!(input.get("agreed_floor"), None);
}

#[test]
fn a_plan_says_what_a_person_has_to_know() {
    let plan = json!({
        "from": "1.0.0", "to": "1.1.0", "step": "upgrade", "bytes": 40 << 20, "delta_bytes": 3 << 20,
        "changes": "faster\nsmaller", "floor": "1.1.0", "needs_person": "pin", "time_known": false,
    });
    let lines = plan_lines("edge-1", &plan);
    let expected = [
        "edge-1: 1.0.0 → 1.1.0",
        "  size     40.0 MiB",
        "  sends    3.0 MiB, the differences from the program that runs",
        "  changes  faster",
        "           smaller",
        "  floor    no version before 1.1.0 runs here afterwards",
        "  person   its start needs a person at the machine: pin",
        "  time     the machine does not know the time: it cannot tell an expired bundle",
    ];
    assert_eq!(lines, expected);
}

#[test]
fn a_trial_is_confirmed_returned_or_not_decided() {
    use trial::{TrialView, view};

    let status = |state: &str, version: &str, last: Value| json!({ "state": state, "version": version, "gate": ["the vault"], "last": last });
    let good = status("good", "1.1.0", Value::Null);
    assert_eq!(view(&good, "1.1.0"), TrialView::Confirmed);
    // The version that runs may be on trial where the machine cannot say how its slots stand.
    for state in ["pending", "staged", "trial", "unreadable"] {
        let undecided = view(&status(state, "1.1.0", Value::Null), "1.1.0");
        assert!(
            matches!(undecided, TrialView::Waits(_)),
            "{state}: {undecided:?}"
        );
    }
    let mut failed = json!({ "version": "1.1.0", "outcome": "failed", "stage": "data", "reason": "it is read-only" });
    let why = |failed: &Value| match view(&status("failed", "1.0.0", failed.clone()), "1.1.0") {
        TrialView::Returned(why) => why,
        other => panic!("it returned, and the view is {other:?}"),
    };
    let expected =
        "it runs 1.0.0 again, because 1.1.0 failed: after the stage 'data': it is read-only";
    assert_eq!(why(&failed), expected);
    failed["problems"] = json!(["data-full", "vault-locked"]);
    let expected = "it runs 1.0.0 again, because 1.1.0 failed: after the stage 'data', with the problems data-full, \
                    vault-locked: it is read-only";
    assert_eq!(why(&failed), expected);
}

#[test]
fn a_rollback_ends_with_the_version_before_and_no_trial() {
    use trial::ReturnTo;

    let status = |state: &str, version: &str| json!({ "state": state, "version": version });
    for wanted in [ReturnTo::Version("1.0.0"), ReturnTo::OtherThan("1.1.0")] {
        assert!(wanted.is_reached(&status("good", "1.0.0")), "{wanted:?}");
        assert!(wanted.is_reached(&status("failed", "1.0.0")), "{wanted:?}");
        assert!(!wanted.is_reached(&status("good", "1.1.0")), "{wanted:?}");
        assert!(!wanted.is_reached(&status("trial", "1.0.0")), "{wanted:?}");
    }
}

#[test]
fn a_log_and_a_status_read_well() {
    let log = json!({ "records": [
        { "time": "2027-01-31T02:00:00Z", "event": "staged", "version": "1.1.0", "by": "admin", "reason": "" },
        { "time": null, "event": "failed", "version": "1.1.0", "by": "the machine", "reason": "it hung" },
    ] });
    let expected = [
        "2027-01-31T02:00:00Z  staged 1.1.0 by admin",
        "no clock  failed 1.1.0 by the machine: it hung",
    ];
    assert_eq!(log_lines(&log), expected);
    assert_eq!(
        log_lines(&json!({ "records": [] })),
        ["no update was tried"]
    );
    let status = json!({
        "version": "1.0.0", "state": "staged", "slot": "a", "other_version": "1.1.0", "keys": "owner",
        "floor": null, "session": { "offset": 3, "bytes": 9, "source": "upload" },
        "foreign_files": { "files": 2, "bytes": 1300 },
        "scheduled": "2027-01-31T02:00:00Z",
        "not_started": { "version": "1.0.9", "at": "2027-01-30T02:00:00Z", "by": "ada", "reason": "eve has staged another one" },
        "auto": { "mode": "stage", "next": "look", "at": "2027-01-31T06:00:00Z", "error": null },
    });
    let expected = [
        "version    1.0.0",
        "update     slot a; 1.1.0 waits to be started",
        "keys       owner",
        "foreign    files of others on the boot partition: 2, of 1300 bytes",
        "sending    3 of 9 bytes, upload",
        "starts     2027-01-31T02:00:00Z",
        "planned    no start of 1.0.9 at 2027-01-30T02:00:00Z: eve has staged another one",
        "by itself  stage; next: look at 2027-01-31T06:00:00Z",
    ];
    assert_eq!(status_lines(&status), expected);
    // Where the machine waits, the administrator reads what to do.
    for (next, does) in [
        ("left-before", "'alknet update NODE' installs it"),
        ("failed-before", "'alknet update NODE' tries it again"),
        ("waits-for-administrator", "'alknet rollback NODE'"),
        ("waits-for-person", "at the machine"),
        ("no-clock", "the time"),
    ] {
        let mut status = status.clone();
        status["auto"] = json!({ "mode": "apply", "next": next, "at": null, "error": null });
        let lines = status_lines(&status);
        assert_eq!(
            lines[lines.len() - 2],
            format!("by itself  apply; next: {next}")
        );
        let last = lines.last().expect("a line");
        assert!(
            last.starts_with("           ") && last.contains(does),
            "{last}"
        );
    }
}

#[test]
fn a_status_names_the_caller_that_keeps_the_machine_from_its_updates() {
    let text =
        "for an hour this machine has not been able to look at its channel: eve had the session";
    let status = json!({
        "version": "1.0.0", "state": "idle", "slot": "a", "keys": "owner",
        "auto": {
            "mode": "apply", "next": "busy", "at": null, "error": null,
            "blocked": { "step": "look", "by": "eve", "text": text },
        },
    });
    let lines = status_lines(&status);
    let by_itself = lines.iter().position(|line| line.starts_with("by itself"));
    let by_itself = by_itself.expect("the line");
    assert_eq!(lines[by_itself], "by itself  apply; next: busy");
    assert_eq!(lines[by_itself + 1..], [format!("           {text}")]);
}

#[test]
fn a_status_has_the_reason_of_a_refused_start_before_what_to_do() {
    let mut status = json!({ "version": "1.0.0", "state": "staged", "slot": "a", "other_version": "1.1.0", "keys": "owner" });
    let mut last_lines = |code: &str, error: &str| {
        status["auto"] = json!({
            "mode": "apply", "next": "start-refused", "at": null,
            "refusal": { "code": code, "text": "it is not verified" }, "error": error,
        });
        let lines = status_lines(&status);
        let by_itself = lines.iter().position(|line| line.starts_with("by itself"));
        lines[by_itself.expect("the line") + 1..].to_vec()
    };
    let once = last_lines("unverified", "it is not verified");
    assert_eq!(once.len(), 2, "{once:?}");
    assert_eq!(once[0], "           it is not verified");
    // A look that failed since is no reason of the refusal.
    let with_error = last_lines("unverified", "the channel is down");
    assert_eq!(with_error[..2], once);
    assert_eq!(with_error[2..], ["           the channel is down"]);
    // To send the version again changes what the slot has, and nothing else.
    for (code, is_ended) in [
        ("other-staged", true),
        ("slot-damaged", true),
        ("unverified", true),
        ("below-floor", false),
        ("busy", false),
        ("floor-raised", false),
        ("locked", false),
        ("needs-person", false),
        ("no-slots", false),
        ("trust-damaged", false),
        ("unpredictable", false),
    ] {
        let lines = last_lines(code, "it is not verified");
        let is_sent = lines[1].contains("'alknet update NODE BUNDLE'");
        assert_eq!(is_sent, is_ended, "{code}: {lines:?}");
        let is_reason = lines[1].contains("do what the reason says");
        assert_eq!(is_reason, !is_ended, "{code}: {lines:?}");
    }
}
