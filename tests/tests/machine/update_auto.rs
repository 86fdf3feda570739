//! A machine that updates itself: it follows the channel of its configuration, and restarts within the window there. From
//! its start to that of the new version no client calls it.

use std::time::{Duration, SystemTime};

use alknet_boot_state::BootSlot;
use alknet_qemu::{MachineKind, VirtioDisk};
use alknet_test_support::skip;
use alknet_tests::{MachineNode, TestBench};
use serde_json::{Value, json};

use crate::power::is_full;
use crate::update::administrator::ReleaseChannel;
use crate::update::bundle::{ReleaseDraft, ReleaseKeys};
use crate::update::disk::SlotDiskImage;
use crate::update::program::versioned;
use crate::update::{
    FIRST, ONLY_CAMPAIGN, SECOND, config, has_token, machine, make_token, serving, stands,
};

/// The note of a token that the update keeps.
const KEPT: &str = "stays";
/// Longest wait until the machine restarts: it decides once a minute, and first looks at the channel, then stages the
/// version, and then starts it.
const RESTARTS_WITHIN: Duration = Duration::from_secs(600);
/// The console, when the machine restarts.
const RESTARTS: &str = "alknet: going down";
/// Seconds of an hour, and hours of a day.
const HOUR_S: u64 = 3600;
const DAY_HOURS: u64 = 24;

#[test]
fn update_of_a_channel_is_applied_by_the_machine_itself() {
    if !is_full() {
        skip!("campaign", "{ONLY_CAMPAIGN}");
    }
    let bench = TestBench::new();
    let keys = ReleaseKeys::one(7);
    let disk = SlotDiskImage::new(bench.raw());
    let first = disk.program(BootSlot::A).expect("the image has it");
    let second = versioned(&first, SECOND);
    let bundle = keys.bundle(bench.path(), &ReleaseDraft::new(1, SECOND), &second);
    let channel = ReleaseChannel::new(&bench, &bundle);
    let of_channel = format!(
        "auto = \"apply\"\nwindow = \"{}\"\njitter = \"0s\"\n{}",
        open_window(),
        channel.config()
    );
    let config = config(&bench, &keys) + &of_channel;
    // It starts by its own firmware: a copy of a saved machine may go on with the time at which that one was saved.
    let builder = || machine(MachineKind::Q35, VirtioDisk::file(disk.path()), &config);
    let node = serving(&bench, builder());
    let identity = node.identity().to_owned();
    make_token(&node, KEPT);
    // The machine trusts the server from its next start on.
    channel.store_root(bench.admin(), &node);
    node.end();

    let mut node = serving(&bench, builder());
    let restarts = node.vm().wait_for(RESTARTS, RESTARTS_WITHIN);
    let restarts = restarts.unwrap_or_else(|error| panic!("{error}"));
    node.wait_ready(restarts);
    assert_eq!(node.identity(), identity);
    // The gate confirms the version without a call by any client.
    let status = stands(
        &node,
        &[
            ("version", SECOND),
            ("slot", "b"),
            ("other_version", FIRST),
            ("state", "good"),
        ],
    );
    assert_eq!(status["last"]["outcome"], "confirmed", "{status:#}");
    has_token(&node, KEPT);
    is_of_machine_itself(&node);
    for (slot, program) in BootSlot::ALL.into_iter().zip([&first, &second]) {
        let has_it = disk.has_program(slot, program);
        assert_eq!(has_it, Some(true), "slot {slot} has other bytes");
    }
}

/// The machine itself has staged the version and started it.
fn is_of_machine_itself(node: &MachineNode) {
    let log = node.call("update/log", &json!({}));
    let records = log["records"].as_array().expect("a list");
    for event in ["staged", "applied"] {
        let mut of_event = records.iter().filter(|record| record["event"] == event);
        let by_machine = |record: &&Value| record["by"] == "the machine";
        assert!(of_event.next().as_ref().is_some_and(by_machine), "{log:#}");
        assert_eq!(of_event.next(), None, "{log:#}");
    }
}

/// A window that has begun, and goes on for two hours at least.
fn open_window() -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let hour = now.expect("it is after 1970").as_secs() / HOUR_S % DAY_HOURS;
    format!("{hour:02}:00-{:02}:00", (hour + 3) % DAY_HOURS)
}
