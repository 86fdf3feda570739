//! What a machine notices of its disk: a byte of a program that changed, and the disk's own warning.

use std::time::Duration;

use alknet_boot_state::BootSlot;
use alknet_qemu::{ConsoleMark, Vm};
use alknet_tests::{CliOutput, CliRunner, MachineNode, eventually};
use serde_json::{Value, json};

use super::disk::SlotDiskImage;
use super::{FIRST, SECOND};

/// How long an emulated machine may take to read two programs.
const CHECK_WITHIN: &str = "10m";
/// How long after a check the console may report its problems.
const SAID_WITHIN: Duration = Duration::from_secs(10);
/// A place within a program's code.
const FLIPPED_AT: u64 = 1 << 20;
/// NVMe's warning that the medium takes no more writes, as *Critical Warning* of the log page has it.
const READ_ONLY: u64 = 0x08;

/// Checks a machine on an NVMe disk whose slot b runs, and that has the version before in slot a: nothing is wrong, then
/// each fault is found alone, and both are problems of the node and on the console.
pub(super) fn finds_damage(admin: &CliRunner, node: &MachineNode, disk: &SlotDiskImage) {
    let well = disk_check(admin, node);
    assert_eq!(well.status, 0, "{well:?}\n{}", node.vm().report());
    let found = printed(&well);
    assert_eq!(
        slots(&found),
        [("a", FIRST, "whole"), ("b", SECOND, "whole")]
    );
    let nvme = &found["disks"][0];
    assert_eq!(
        found["disks"].as_array().map(Vec::len),
        Some(1),
        "{found:#}"
    );
    for (member, value) in [
        ("name", json!("nvme0n1")),
        ("kind", json!("nvme")),
        ("health", json!("ok")),
        // QEMU's device says that it has 50 °C, and that none of its life is used.
        ("temperature_c", json!(50)),
        ("wear_percent", json!(0)),
        ("filesystem_errors", json!(0)),
    ] {
        assert_eq!(nvme[member], value, "{member}: {found:#}");
    }
    // PID 1 tells the node right after its answer.
    let info = eventually("node/info has the disk", || {
        let info = node.info();
        let has_disk = info["storage"]["disks"][0]["name"] == "nvme0n1";
        has_disk.then_some(info)
    });
    let disks = &info["storage"]["disks"];
    assert_eq!(disks[0]["wear_percent"], json!(0), "{disks:#}");

    let mark = node.vm().console().mark();
    disk.flip(BootSlot::A, FLIPPED_AT);
    let changed = disk_check(admin, node);
    assert_eq!(changed.status, 1, "{changed:?}");
    let found = printed(&changed);
    assert_eq!(
        slots(&found),
        [("a", FIRST, "damaged"), ("b", SECOND, "whole")]
    );
    assert_eq!(codes(&found), ["slot-damaged"]);

    warn(node.vm());
    let both = disk_check(admin, node);
    assert_eq!(codes(&printed(&both)), ["slot-damaged", "disk-failing"]);
    says_both(admin, node, mark);

    // The disk gives the right byte again.
    disk.flip(BootSlot::A, FLIPPED_AT);
    let again = disk_check(admin, node);
    assert_eq!(codes(&printed(&again)), ["disk-failing"]);
}

/// Both problems are on the console since `mark`, in `alknet status` and in `alknet disk list`.
fn says_both(admin: &CliRunner, node: &MachineNode, mark: ConsoleMark) {
    for code in ["slot-damaged", "disk-failing"] {
        let line = format!("alknet: problem {code}: ");
        // The whole line: its text comes behind the code.
        let said = node.vm().wait_line(&line, SAID_WITHIN);
        said.unwrap_or_else(|error| panic!("{error}"));
    }
    let said = node.vm().console().since(mark);
    assert!(
        said.contains("in boot slot a, which does not run, is damaged"),
        "{said}"
    );
    assert!(said.contains("the disk takes no more writes"), "{said}");
    // PID 1 tells the node right after its answer.
    let status = eventually("a status with both problems", || {
        let status = admin.run(admin.command(&["status", &node.target()]));
        assert_eq!(status.status, 1, "{status:?}");
        let status = printed(&status);
        (codes(&status).len() == 2).then_some(status)
    });
    assert_eq!(codes(&status), ["slot-damaged", "disk-failing"]);
    let listed = admin.run(admin.command(&["disk", "list", &node.target()]));
    assert_eq!(listed.json()["disks"][0]["health"], "failing", "{listed:?}");
}

/// `alknet disk check NODE`
pub(crate) fn disk_check(admin: &CliRunner, node: &MachineNode) -> CliOutput {
    let mut command = admin.command(&["disk", "check", &node.target()]);
    command.args(["--timeout", CHECK_WITHIN]);
    admin.run(command)
}

/// What a command printed that ends with 1 for a problem.
fn printed(output: &CliOutput) -> Value {
    let read = serde_json::from_str(&output.output);
    read.unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

fn slots(found: &Value) -> Vec<(&str, &str, &str)> {
    let slots = found["slots"].as_array().expect("a list");
    slots
        .iter()
        .map(|slot| {
            let text = |name: &str| slot[name].as_str().unwrap_or_default();
            (text("slot"), text("version"), text("result"))
        })
        .collect()
}

fn codes(found: &Value) -> Vec<&str> {
    let problems = found["problems"].as_array().expect("a list");
    let codes = problems
        .iter()
        .filter_map(|problem| problem["code"].as_str());
    codes.collect()
}

/// Makes the machine's NVMe device warn.
fn warn(vm: &Vm) {
    const DEVICES: &str = "/machine/peripheral-anon";
    let listed = vm.qmp().execute("qom-list", json!({ "path": DEVICES }));
    let listed = listed.unwrap_or_else(|error| panic!("{error}"));
    let devices = listed.as_array().expect("a list");
    let nvme = devices.iter().find(|it| it["type"] == "child<nvme>");
    let nvme = nvme.and_then(|it| it["name"].as_str());
    let path = format!("{DEVICES}/{}", nvme.expect("an NVMe device"));
    let wish = json!({ "path": path, "property": "smart_critical_warning", "value": READ_ONLY });
    let set = vm.qmp().execute("qom-set", wish);
    set.unwrap_or_else(|error| panic!("{error}"));
}
