//! Versions that fail. After each the first version serves with its identity, and says why.
//!
//! The version that panics runs by a BIOS in each run of the tests, and the versions that hang or do not serve run under
//! UEFI. `cargo xtask soak update-cuts` runs each under the other firmware as well: PID 1 does the same under both, and
//! only the loader differs. There the version that hangs has all of its tries, and in each run of the tests the last one:
//! the version that panics has three, and so has one under UEFI in `loader.rs`.

use std::time::Duration;

use alknet_boot_state::{BootPhase, BootSlot, TRIES};
use alknet_qemu::{
    Accel, ConsoleMark, DiskController, MachineKind, VirtioDisk, Vm, VmBuilder, WatchdogAction,
};
use alknet_test_support::skip;
use alknet_tests::{MachineNode, READY, TestBench, curl};
use serde_json::Value;

use crate::power::is_full;
use crate::update::bundle::{ReleaseDraft, ReleaseKeys};
use crate::update::disk::SlotDiskImage;
use crate::update::program::{AddedFile, FOLDER, PROGRAM, changed, hanging_program, kernel_alone};
use crate::update::{
    FIRST, ONLY_CAMPAIGN, SECOND, config, failed_update, has_token, machine, make_token, serving,
    stands, start_after_firmware,
};

/// The note of a token that the first version made.
const KEPT: &str = "stays";
/// Longest wait until the first version serves again.
const BACK_WITHIN: Duration = Duration::from_secs(120);
/// Leaves out the protocols of the internet, and two parts of the kernel that need them: PID 1 runs, and the node ends
/// because it has no port to serve.
const NO_PORT: &str =
    "initcall_blacklist=inet_init,inet6_init,inet_blackhole_dev_init,cubictcp_register";
/// A kernel that panicked restarts the machine after a second. The words of an image say ten, through which an emulated
/// processor spins; the last ones count.
const QUICK_RESTART: &str = "panic=1";
/// The guest's clock goes on to the next timer whenever the guest waits, so the five minutes after which PID 1 restarts a
/// machine without a node pass at once.
const QUICK_CLOCK: [&str; 2] = ["-icount", "shift=3,sleep=off"];

#[test]
fn update_that_panics_at_boot_returns_and_says_so() {
    panics_at_boot(&BIOS, |bench, config| {
        let sata = VirtioDisk::file(bench.raw()).on(DiskController::Ahci);
        serving(bench, machine(MachineKind::Q35, sata, config))
    });
}

#[test]
fn update_that_panics_at_boot_returns_by_uefi() {
    if !is_full() {
        skip!("campaign", "{ONLY_CAMPAIGN}");
    }
    panics_at_boot(&UEFI, start_after_firmware);
}

/// From `alknet update`, on the machine that `start` makes of a configuration: the kernel finds no program that it can
/// start, three times.
fn panics_at_boot(loader: &LoaderUnderTest, start: impl FnOnce(&TestBench, &str) -> MachineNode) {
    let bench = TestBench::new();
    let keys = ReleaseKeys::one(7);
    let disk = SlotDiskImage::new(bench.raw());
    let first = disk.program(BootSlot::A).expect("the image has it");
    let bad = panicking(&first, SECOND);
    let bundle = keys.bundle(bench.path(), &ReleaseDraft::new(1, SECOND), &bad);
    let mut node = start(&bench, &config(&bench, &keys));
    make_token(&node, KEPT);
    let mark = node.vm().console().mark();
    let failed = failed_update(bench.admin(), &mut node, &bundle);
    assert!(failed.errors.contains("did not start"), "{failed:?}");
    let said = node.vm().console().since(mark);
    for left in [2, 1, 0] {
        let trial = format!("{}{left}", loader.trial);
        assert!(said.contains(&trial), "{trial} in {said}");
    }
    assert_failed(&bench, &node, &NEVER_STARTED);
    assert!(
        disk.program(BootSlot::A) == Some(first),
        "slot a was changed"
    );
}

/// The program `base` with this version, whose kernel finds no program that it can start, and panics.
pub(crate) fn panicking(base: &[u8], version: &str) -> Vec<u8> {
    let files: [AddedFile<'_>; 1] = [("init", PROGRAM, b"no program")];
    kernel_alone(base, version, QUICK_RESTART, &files)
}

#[test]
fn update_that_hangs_or_does_not_serve_returns_and_says_so() {
    hangs_or_does_not_serve(&UEFI);
}

#[test]
fn update_that_hangs_or_does_not_serve_returns_by_a_bios() {
    if !is_full() {
        skip!("campaign", "{ONLY_CAMPAIGN}");
    }
    hangs_or_does_not_serve(&BIOS);
}

/// A machine with one kind of firmware, and what its loader says.
pub(crate) struct LoaderUnderTest {
    pub(crate) kind: MachineKind,
    /// Before the number of tries that are left.
    pub(crate) trial: &'static str,
    pub(crate) good: &'static str,
}

pub(crate) const UEFI: LoaderUnderTest = LoaderUnderTest {
    kind: MachineKind::Q35Uefi,
    trial: "alknet-loader: starting slot b on trial, tries left after this one: ",
    good: "alknet-loader: starting slot a",
};
pub(crate) const BIOS: LoaderUnderTest = LoaderUnderTest {
    kind: MachineKind::Q35,
    trial: "alknet: GRUB starts slot b on trial, tries left after this one: ",
    good: "alknet: GRUB starts slot a",
};

impl LoaderUnderTest {
    /// The machine, from the moment at which it serves. Under UEFI its first start leaves firmware and loader out.
    fn serving(&self, bench: &TestBench, config: &str) -> MachineNode {
        match self.kind {
            MachineKind::Q35Uefi => start_after_firmware(bench, config),
            kind => serving(bench, machine(kind, VirtioDisk::file(bench.raw()), config)),
        }
    }

    /// Waits until the trial with so many tries is over and the first version serves.
    fn back(&self, builder: VmBuilder, tries: u8) -> Vm {
        let vm = builder.start().unwrap_or_else(|error| panic!("{error}"));
        let wait = |mark, line: &str| {
            let found = vm.wait_for_after(mark, line, BACK_WITHIN);
            found.unwrap_or_else(|error| panic!("{error}"))
        };
        let trial = (0..tries).rev().fold(ConsoleMark::default(), |mark, left| {
            wait(mark, &format!("{}{left}", self.trial))
        });
        let good = wait(trial, self.good);
        wait(good, READY);
        vm
    }
}

/// A version that hangs, and one that does not serve, whose last try is left, on the disk of a machine that served before.
fn hangs_or_does_not_serve(loader: &LoaderUnderTest) {
    let bench = TestBench::new();
    let keys = ReleaseKeys::one(7);
    let disk = SlotDiskImage::new(bench.raw());
    let config = config(&bench, &keys);
    let first = disk.program(BootSlot::A).expect("the image has it");
    let builder = || machine(loader.kind, VirtioDisk::file(disk.path()), &config);
    let node = loader.serving(&bench, &config);
    let identity = node.identity().to_owned();
    make_token(&node, KEPT);
    node.end();

    let hangs = hanging_program();
    let files: [AddedFile<'_>; 2] = [("dev", FOLDER, b""), ("init", PROGRAM, &hangs)];
    let hangs = kernel_alone(&first, SECOND, "", &files);
    let tries = if is_full() { TRIES } else { 1 };
    disk.put_on_trial(&hangs, tries, "absent");
    let vm = loader.back(quick(builder().watchdog(WatchdogAction::Reset)), tries);
    let events = vm.qmp().events().into_iter();
    let bites = events.filter(|event| event.name == "WATCHDOG").count();
    assert_eq!(bites, usize::from(tries), "{}", vm.report());
    drop(vm);
    let node = loader.serving(&bench, &config);
    assert_eq!(node.identity(), identity);
    stands(
        &node,
        &[
            ("version", FIRST),
            ("state", "failed"),
            ("other_version", SECOND),
        ],
    );
    assert_failed(&bench, &node, &NEVER_STARTED);
    node.end();

    let silent = changed(&first, SECOND, NO_PORT, &[]);
    disk.put_on_trial(&silent, 1, "absent");
    let vm = loader.back(quick(builder()), 1);
    let why = "problem update-failed: version 0.2.0 failed its trial";
    let told = vm.wait_for(why, BACK_WITHIN);
    told.unwrap_or_else(|error| panic!("{error}"));
    drop(vm);
    let record = disk.record().expect("a record");
    assert_eq!(record.phase(), BootPhase::Failed);
    let node = loader.serving(&bench, &config);
    assert_eq!(node.identity(), identity);
    assert_failed(&bench, &node, &NODE_ENDED);
    let has_it = disk.has_program(BootSlot::A, &first);
    assert_eq!(has_it, Some(true), "slot a was changed");
}

/// The machine with [`QUICK_CLOCK`], which only an emulated processor has.
pub(crate) fn quick(builder: VmBuilder) -> VmBuilder {
    QUICK_CLOCK
        .iter()
        .fold(builder.accel(Accel::Tcg), |vm, word| vm.argument(*word))
}

/// What the first version says of the trial of the second one.
struct TrialFailure {
    /// A part of the reason.
    why: &'static str,
    cause: &'static str,
    /// The last stage of the boot, and a problem. `None` if PID 1 did not run, so that there is neither.
    progress: Option<(&'static str, &'static str)>,
}

/// The kernel finds no program, or the program is not PID 1 of this project.
const NEVER_STARTED: TrialFailure = TrialFailure {
    why: "did not start",
    cause: "start",
    progress: None,
};
/// PID 1 starts a node again and again, which never serves.
const NODE_ENDED: TrialFailure = TrialFailure {
    why: "its node ended",
    cause: "restart",
    progress: Some(("node-start", "node-failed")),
};

/// Checks that the first version runs with what it acknowledged before, and says why the second one failed: in its state,
/// as a problem, in its metrics, and on its status page.
#[track_caller]
fn assert_failed(bench: &TestBench, node: &MachineNode, failure: &TrialFailure) {
    let status = stands(node, &[("version", FIRST), ("state", "failed")]);
    let last = &status["last"];
    assert_eq!(last["outcome"], "failed", "{status:#}");
    assert_eq!(last["version"], SECOND, "{status:#}");
    let reason = last["reason"].as_str().unwrap_or_default();
    assert!(reason.contains(failure.why), "{status:#}");
    assert_eq!(last["cause"], failure.cause, "{status:#}");
    let codes = last["problems"].as_array().expect("a list").iter();
    let codes: Vec<_> = codes.filter_map(Value::as_str).collect();
    let reached = match failure.progress {
        Some((stage, code)) => {
            assert_eq!(last["stage"], stage, "{status:#}");
            assert!(codes.contains(&code), "{status:#}");
            format!("it reached the stage '{stage}', with the problem")
        }
        None => {
            assert_eq!(last["stage"], "", "{status:#}");
            assert!(codes.is_empty(), "{status:#}");
            "it reached no stage of the boot: ".to_owned()
        }
    };
    let info = node.info();
    let problems = info["problems"].as_array().expect("a list").iter();
    let mut texts = problems
        .filter(|problem| problem["code"] == "update-failed")
        .filter_map(|problem| problem["text"].as_str());
    let says_all = |text: &str| {
        let has_codes = text.contains(&format!("{}: {reason}", codes.join(", ")));
        text.contains(&reached) && text.ends_with(reason) && has_codes
    };
    assert!(texts.any(says_all), "{reached}, {reason}: {info:#}");
    metrics_say(node, failure, &codes);
    page_says(bench, node, failure);
    has_token(node, KEPT);
}

/// The metrics have the cause, the stage and each of these codes.
#[track_caller]
fn metrics_say(node: &MachineNode, failure: &TrialFailure, codes: &[&str]) {
    let metrics = node.call("node/metrics", &Value::Null);
    let text = metrics["text"].as_str().unwrap_or_default();
    let cause = failure.cause;
    let stage = failure.progress.map_or("none", |(stage, _)| stage);
    let series = format!(
        "alknet_update_last_info{{outcome=\"failed\",cause=\"{cause}\",stage=\"{stage}\"}} 1\n"
    );
    assert!(text.contains(&series), "{series} in {text}");
    for code in codes {
        let series = format!("alknet_update_last_problem{{code=\"{code}\"}} 1\n");
        assert!(text.contains(&series), "{series} in {text}");
    }
    let count = text.matches("\nalknet_update_last_problem{").count();
    assert_eq!(count, codes.len(), "{text}");
}

/// The status page says why the second version failed, and how far it came.
#[track_caller]
fn page_says(bench: &TestBench, node: &MachineNode, failure: &TrialFailure) {
    let admin = bench.admin();
    let opened = admin.run(admin.command(&["open", "--print", &node.target()]));
    let opened = opened.json();
    let entered = curl(opened["url"].as_str().expect("a link"), &[]);
    let cookie = entered.header("set-cookie").expect("a cookie");
    let pair = cookie.split(';').next().unwrap_or_default();
    let url = format!("https://{}/", node.address());
    let page = curl(&url, &["--header", &format!("Cookie: {pair}")]).text();
    // The problem has no colon behind these words.
    let last = page.split_once(&format!("{SECOND} failed: "));
    let (_, reason) = last.unwrap_or_else(|| panic!("no reason in {page}"));
    let reason = reason.split('<').next().unwrap_or_default();
    let why = failure.why;
    assert!(reason.contains(why), "{why} in {reason:?}");
    for (name, value) in [
        (
            "Stage that the failed version reached",
            failure.progress.map(|it| it.0),
        ),
        (
            "Problems of the failed version",
            failure.progress.map(|it| it.1),
        ),
    ] {
        let shown = page.split_once(&format!("<dt>{name}</dt>"));
        let shown = shown.and_then(|(_, after)| after.split("</dd>").next());
        assert_eq!(shown.is_some(), value.is_some(), "{name}: {shown:?}");
        let has_value = shown
            .unwrap_or_default()
            .contains(value.unwrap_or_default());
        assert!(has_value, "{name} {value:?}: {shown:?}");
    }
}
