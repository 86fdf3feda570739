//! Updates of a booted machine: from a signed bundle to a confirmed version, and back.
//!
//! What is refused, what fails, sealed machines and power cuts have modules of their own beside this one
//! (`update_refused.rs` and others), so that they run at the same time: a machine waits for a minute at its gate.
//!
//! The versions are the built program with another number in it, made by the test (`program.rs`), and the test signs
//! their bundles with keys that the machine's configuration names (`bundle.rs`).

pub(crate) mod administrator;
pub(crate) mod bundle;
pub(crate) mod damage;
pub(crate) mod disk;
pub(crate) mod good;
pub(crate) mod hub;
mod page;
pub(crate) mod program;
mod release;

use std::path::Path;
use std::time::Duration;

use alknet_boot_state::BootSlot;
use alknet_image::{ImageForm, OutputRole};
use alknet_qemu::{MachineKind, Nic, VirtioDisk, Vm, VmBuilder};
use alknet_tests::{BootVariant, BuiltImageFolder, CliOutput, CliRunner, MachineNode, TestBench};
use serde_json::{Value, json};

use crate::configuration::{NO_VAULT, document};
use bundle::ReleaseKeys;
use disk::SlotDiskImage;

/// The version of the built image, and of those that the tests make from it. All have the same length, because a
/// version is changed in its place.
pub(crate) const FIRST: &str = "0.1.0";
pub(crate) const SECOND: &str = "0.2.0";

/// How long a machine may take from its restart until it has confirmed a version: the minute of its gate, and the boot
/// of an emulated machine beside others.
pub(crate) const LIMIT: &str = "30m";

/// Why a run of all tests leaves some out.
pub(crate) const ONLY_CAMPAIGN: &str =
    "it starts machines for minutes: `cargo xtask soak update-cuts` runs it";

/// The operation by which a node lists its tokens.
pub(crate) const TOKENS: &str = "token/list";

/// Pause between two questions.
const PAUSE: Duration = Duration::from_millis(500);

/// A configuration without a vault whose updates these keys sign.
pub(crate) fn config(bench: &TestBench, keys: &ReleaseKeys) -> String {
    document(bench, "edge") + NO_VAULT + &keys.config()
}

/// A machine of this kind that starts from this disk by its own loader.
pub(crate) fn machine(kind: MachineKind, disk: VirtioDisk, config: &str) -> VmBuilder {
    Vm::builder(kind)
        .probe_kernel(BuiltImageFolder::get().file(ImageForm::Direct, OutputRole::Kernel))
        .disk(disk)
        .nic(Nic::user())
        .config(config)
}

/// The same machine with a BIOS, whose slot a has the program of the image, without its GRUB: QEMU starts the kernel of the
/// image with the words that GRUB gives it, and the record is as GRUB leaves it. To read 39 MB by a BIOS takes longer than
/// the rest of a start. A restart leaves GRUB out as well.
pub(crate) fn without_grub(machine: VmBuilder, disk: &SlotDiskImage) -> VmBuilder {
    assert_eq!(disk.pass_loader(), Some(BootSlot::A));
    let image = BuiltImageFolder::get();
    let file = |role| image.file(ImageForm::Direct, role);
    let words = image.command_line(ImageForm::Raw);
    machine
        .kernel(file(OutputRole::Kernel))
        .initrd(file(OutputRole::Initrd))
        .append(format!("{words} alknet.slot=a"))
}

/// The machine of [`machine`], from the moment at which it serves.
pub(crate) fn serving(bench: &TestBench, vm: VmBuilder) -> MachineNode {
    let vm = vm.start().unwrap_or_else(|error| panic!("{error}"));
    MachineNode::new(vm, BootVariant::UefiRaw, bench.admin().clone())
}

/// A machine with UEFI and the bench's disk, whose good slot has the program of the image, from the moment at which it
/// serves. Its first start goes on where firmware and the loader handed over to the kernel of another machine. Each
/// restart runs its own firmware and loader.
pub(crate) fn start_after_firmware(bench: &TestBench, config: &str) -> MachineNode {
    let disk = SlotDiskImage::new(bench.raw());
    assert_eq!(disk.pass_loader(), Some(BootSlot::A));
    let machine = bench.machine(BootVariant::UefiRaw).after_firmware();
    machine.config(config).boot()
}

/// `alknet update NODE BUNDLE`, with more arguments.
pub(crate) fn update(
    user: &CliRunner,
    node: &MachineNode,
    bundle: &Path,
    more: &[&str],
) -> CliOutput {
    let bundle = bundle.display().to_string();
    let mut command = user.command(&["update", &node.target(), &bundle]);
    command.args(more);
    user.run(command)
}

/// `alknet rollback NODE`.
pub(crate) fn roll_back(user: &CliRunner, node: &MachineNode) -> CliOutput {
    roll_back_at(user, &node.target())
}

fn roll_back_at(user: &CliRunner, target: &str) -> CliOutput {
    let mut command = user.command(&["rollback", target, "--yes"]);
    command.args(["--limit", LIMIT]);
    user.run(command)
}

/// `alknet update confirm NODE`, for a version on trial. Its gate would take a minute.
fn confirm(user: &CliRunner, node: &MachineNode) {
    stands(node, &[("state", "trial")]);
    let confirmed = user.run(user.command(&["update", "confirm", &node.target()]));
    assert_eq!(confirmed.json(), json!({ "confirmed": true }));
    // The machine itself confirms a version that passes the gate.
    let log = node.call("update/log", &json!({}));
    let mut records = log["records"].as_array().expect("a list").iter();
    let last = records.rfind(|record| record["event"] == "confirmed");
    let last = last.expect("it was confirmed");
    assert_ne!(last["by"], "the machine", "{log:#}");
}

/// `alknet update NODE BUNDLE` of a version that fails its trial. The version before serves again when this returns.
pub(crate) fn failed_update(user: &CliRunner, node: &mut MachineNode, bundle: &Path) -> CliOutput {
    let identity = node.identity().to_owned();
    let mark = node.vm().console().mark();
    let failed = update(user, node, bundle, &["--yes", "--limit", LIMIT]);
    assert_eq!(
        failed.code(),
        "UPDATE_FAILED",
        "{failed:?}\n{}",
        node.vm().report()
    );
    node.wait_ready(mark);
    assert_eq!(node.identity(), identity);
    failed
}

/// The vault's one slot, which is the TPM's, binds these registers, and opened the vault.
pub(crate) fn opening_slot(node: &MachineNode, pcrs: &Value) -> Value {
    // The slot of the other program goes a moment after the trial.
    let status = alknet_tests::eventually("the vault has one slot", || {
        let status = node.call("vault/status", &Value::Null);
        (status["slots"] == json!(["tpm2"])).then_some(status)
    });
    assert_eq!(status["opened_by"], "tpm2", "{status:#}");
    assert_eq!(status["tpm2"][0]["pcrs"], *pcrs, "{status:#}");
    status["tpm2"][0].clone()
}

/// Makes a token with this note, so that a later version has something to keep.
pub(crate) fn make_token(node: &MachineNode, note: &str) {
    node.call(
        "token/make",
        &json!({ "scopes": ["node:read"], "note": note }),
    );
}

/// Checks that the node has a token with this note.
#[track_caller]
pub(crate) fn has_token(node: &MachineNode, note: &str) {
    lists_token(&node.call(TOKENS, &Value::Null), note);
}

/// The same of an answer to [`TOKENS`].
#[track_caller]
pub(crate) fn lists_token(tokens: &Value, note: &str) {
    let note = format!("\"{note}\"");
    assert!(tokens.to_string().contains(&note), "{note} in {tokens:#}");
}

pub(crate) fn status(node: &MachineNode) -> Value {
    node.call("update/status", &json!({}))
}

/// Waits until these members of `update/status` have these values: PID 1 looks at the disk beside the start of the node,
/// which answers meanwhile.
pub(crate) fn stands(node: &MachineNode, members: &[(&str, &str)]) -> Value {
    alknet_tests::eventually(&format!("{members:?}"), || {
        let last = status(node);
        let stands = members.iter().all(|(name, value)| last[name] == *value);
        if !stands {
            // Each question is a handshake, which an emulated processor computes for a while.
            std::thread::sleep(PAUSE);
            eprintln!("{last}");
        }
        stands.then_some(last)
    })
}

/// Checks that a command was refused with this error, and with this code in its details.
#[track_caller]
pub(crate) fn is_refused(output: &CliOutput, error: &str, code: &str) {
    assert_eq!(output.code(), error, "{output:?}");
    // The details are JSON within the JSON of the error.
    let plain = output.errors.replace('\\', "");
    let member = format!("\"code\":\"{code}\"");
    assert!(plain.contains(&member), "{code}: {output:?}");
}
