//! Clients that raise the floor of a staged program between the plan that an administrator sees and the start.

use alknet_update::AgreedFloor;

use super::given_up::in_files;
use super::*;

/// What a caller agrees to that has seen this plan.
fn terms(plan: &UpdatePlan) -> StartTerms {
    StartTerms {
        sha256: Some(plan.sha256.clone()),
        floor: Some(AgreedFloor::new(plan.floor.as_deref().map(version))),
    }
}

/// The release of `first` once more, with another floor.
fn signed_again(first: &TestRelease, number: u64, floor: Option<&str>) -> TestRelease {
    TestRelease {
        floor: floor.map(str::to_owned),
        program: Some(first.content()),
        ..TestRelease::new(NEW, number)
    }
}

/// Stages the release for a client that may not start versions.
fn stage_for_client(bench: &UpdateBench, release: &TestRelease) -> UpdatePlan {
    let bundle = bench.publisher.bundle(release);
    let order = StageOrder {
        other_source: true,
        limited: true,
        ..order(&bundle)
    };
    bench.stage_bundle(&bundle, &order).expect("staged")
}

fn plan_start(bench: &UpdateBench, terms: &StartTerms) -> Result<(), UpdateRefusal> {
    apply::plan_apply(&mut bench.disk.open(), BootSlot::A, bench.rules(), terms).map(drop)
}

/// The attack: an administrator sees the plan, and agrees to it, also to a start at a later moment. Before the start a
/// client with `update:stage` brings other signed metadata, with a higher floor, for the same program.
#[test]
fn a_start_raises_the_floor_no_further_than_its_caller_agreed_to() {
    for floor in [None, Some("0.9.0")] {
        let bench = UpdateBench::new();
        let first = TestRelease {
            floor: floor.map(str::to_owned),
            ..TestRelease::new(NEW, 1)
        };
        let seen = bench.stage(&first).expect("staged");
        assert_eq!(seen.floor.as_deref(), floor);
        assert_eq!(plan_start(&bench, &terms(&seen)), Ok(()));
        let raised = stage_for_client(&bench, &signed_again(&first, 2, Some(NEW)));
        assert_eq!(
            (&raised.sha256, raised.floor.as_deref()),
            (&seen.sha256, Some(NEW))
        );
        bench.refuses(RefusalCode::FloorRaised, |bench| {
            plan_start(bench, &terms(&seen))
        });
        // The administrator looks at the plan again, and agrees to it.
        assert_eq!(plan_start(&bench, &terms(&raised)), Ok(()));
        // A start that an earlier version has stored names no floor.
        assert_eq!(plan_start(&bench, &ANY), Ok(()));
    }
}

/// Another program is the more important news.
#[test]
fn a_start_is_refused_for_another_program_before_its_floor() {
    let bench = UpdateBench::new();
    let seen = bench.stage(&TestRelease::new(NEW, 1)).expect("staged");
    let other = TestRelease {
        floor: Some(NEW.to_owned()),
        ..TestRelease::new(NEW, 2)
    };
    stage_for_client(&bench, &other);
    bench.refuses(RefusalCode::OtherStaged, |bench| {
        plan_start(bench, &terms(&seen))
    });
}

/// The agreement is about what a start changes: a lower floor than the agreed one, or one that the machine has already,
/// needs no new agreement.
#[test]
fn a_start_that_raises_the_floor_less_than_agreed_is_not_refused() {
    let bench = UpdateBench::new();
    let first = TestRelease::new(NEW, 1);
    let agreed = StartTerms {
        sha256: None,
        floor: Some(AgreedFloor::new(Some(version(NEW)))),
    };
    bench.stage(&first).expect("staged");
    assert_eq!(plan_start(&bench, &agreed), Ok(()));
    bench
        .stage(&signed_again(&first, 2, Some("0.9.0")))
        .expect("staged");
    assert_eq!(plan_start(&bench, &agreed), Ok(()));
    let bench = UpdateBench::new();
    bench.stage(&first).expect("staged");
    let mut trust = bench.trust.load(&bench.anchor).expect("seen");
    trust.raise_floor(Some(&version("0.9.0")));
    bench.trust.save(&trust).expect("written");
    let plan = bench
        .stage(&signed_again(&first, 2, Some("0.9.0")))
        .expect("staged");
    assert_eq!(plan.floor, None);
    assert_eq!(plan_start(&bench, &terms(&plan)), Ok(()));
}

/// The attack: the client comes before the machine, or before a hub, which start without a person who reads the plan. They
/// agree to the floor of their own bundle.
#[test]
fn a_plan_has_the_floor_of_its_own_bundle_beside_the_noted_one() {
    let bench = UpdateBench::new();
    let first = TestRelease::new(NEW, 1);
    stage_for_client(&bench, &signed_again(&first, 2, Some(NEW)));
    let plan = bench.stage(&first).expect("staged");
    assert_eq!(
        (plan.floor.as_deref(), plan.bundle_floor.as_deref()),
        (Some(NEW), None)
    );
    let own = UpdatePlan {
        floor: plan.bundle_floor.clone(),
        ..plan
    };
    bench.refuses(RefusalCode::FloorRaised, |bench| {
        plan_start(bench, &terms(&own))
    });
    let raises = bench.stage(&signed_again(&first, 3, Some(NEW)));
    let raises = raises.expect("staged");
    assert_eq!(raises.floor, raises.bundle_floor);
    assert_eq!(plan_start(&bench, &terms(&raises)), Ok(()));
}

/// The node restarted after the version was staged: its plan is made of what PID 1 knows.
#[test]
fn the_facts_have_the_floor_of_the_version_that_waits() {
    let bench = UpdateBench::new();
    let first = TestRelease::new(NEW, 1);
    let seen = bench.stage(&first).expect("staged");
    let esp_bytes = BlockDevice::len(bench.disk.volume().device());
    let (_disk, partitions) = in_files(&bench.disk, esp_bytes);
    let data = tempfile::tempdir().expect("a temporary directory");
    let folder = data.path().join("update");
    fs::create_dir(&folder).expect("a new folder");
    let mut system = UpdateSystem::on_disk(partitions, BootSlot::A);
    assert!(system.set_data(Some(data.path())));
    let copy_notes = || {
        for file in ["programs.json", "staged.json", "trust.json"] {
            let copied = fs::copy(bench.folder.path().join(file), folder.join(file));
            copied.expect("a note");
        }
    };
    copy_notes();
    let status = system.inspect();
    assert_eq!((&*status.state, status.other_floor), ("staged", None));
    assert!(system.plan_apply(&terms(&seen)).is_ok());
    stage_for_client(&bench, &signed_again(&first, 2, Some(NEW)));
    copy_notes();
    let status = system.inspect();
    assert_eq!(status.other_sha256, Some(seen.sha256.clone()));
    assert_eq!(status.other_floor.as_deref(), Some(NEW));
    let refused = system.plan_apply(&terms(&seen));
    assert_eq!(
        refused.expect_err("it is raised").code,
        RefusalCode::FloorRaised
    );
}

/// A caller that may start versions takes the version of another one over, and raises its floor in the same bundle.
#[test]
fn the_log_names_each_caller_that_raises_the_floor_of_a_staged_version() {
    let bench = UpdateBench::new();
    let data = tempfile::tempdir().expect("a temporary directory");
    fs::create_dir(data.path().join("update")).expect("a new folder");
    let mut system = UpdateSystem::absent(&bench.log);
    assert!(system.set_data(Some(data.path())));
    let stage = |release: &TestRelease, by: &str| {
        let bundle = bench.publisher.bundle(release);
        let stream = framed(&bundle, 65_536);
        let staged = bench.staged_stream(&bench.disk, &*stream, &order(&bundle));
        system.log_staged(&staged.expect("staged"), by, false);
    };
    let first = TestRelease::new(NEW, 1);
    stage(&first, "admin");
    stage(&signed_again(&first, 2, Some("0.9.0")), "ada");
    stage(&signed_again(&first, 3, Some(NEW)), "ada");
    let records = system.records().into_iter();
    let lines: Vec<_> = records
        .map(|it| format!("{} by {}: {}", it.event, it.by, it.reason))
        .collect();
    let by_ada = |event: &str, floor: &str| {
        format!("{event} by ada: once it is confirmed, no version before {floor} runs here")
    };
    let expected = [
        "staged by admin: ".to_owned(),
        by_ada("staged", "0.9.0"),
        by_ada("noted", "0.9.0"),
        by_ada("noted", NEW),
    ];
    assert_eq!(lines, expected);
}

/// The attack: the client stages the program first, with its floor. Then the machine or a hub stages the same program, which
/// changes no note, and its start is refused because of the floor. The refusal leads to the log.
#[test]
fn the_log_names_the_caller_that_brought_the_floor_with_the_program() {
    for is_taken_back in [false, true] {
        let bench = UpdateBench::new();
        let data = tempfile::tempdir().expect("a temporary directory");
        fs::create_dir(data.path().join("update")).expect("a new folder");
        let mut system = UpdateSystem::absent(&bench.log);
        assert!(system.set_data(Some(data.path())));
        let stage = |release: &TestRelease, by: &str, limited| {
            let bundle = bench.publisher.bundle(release);
            let stream = framed(&bundle, 65_536);
            let order = StageOrder {
                other_source: limited,
                limited,
                ..order(&bundle)
            };
            let staged = bench.staged_stream(&bench.disk, &*stream, &order);
            let staged = staged.expect("staged");
            system.log_staged(&staged, by, limited);
            staged.plan
        };
        let first = TestRelease::new(NEW, 1);
        stage(&signed_again(&first, 2, Some(NEW)), "eve", true);
        if is_taken_back {
            let back = apply::plan_rollback(&mut bench.disk.open(), BootSlot::A, bench.rules());
            assert_eq!(back, Ok(RollbackPlan::TakenBack));
        }
        let plan = stage(&first, "the machine", false);
        let own = UpdatePlan {
            floor: plan.bundle_floor.clone(),
            ..plan
        };
        bench.refuses(RefusalCode::FloorRaised, |bench| {
            plan_start(bench, &terms(&own))
        });
        let records = system.records().into_iter();
        let lines: Vec<_> = records
            .map(|it| format!("{} by {}: {}", it.event, it.by, it.reason))
            .collect();
        let by_eve =
            format!("staged by eve: once it is confirmed, no version before {NEW} runs here");
        let by_machine = "staged by the machine: ".to_owned();
        assert_eq!(lines, [by_eve, by_machine], "{is_taken_back}");
    }
}
