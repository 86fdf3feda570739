//! A second machine, which keeps shares of the keys of others: what a slot of type `kms` is opened by.

use std::path::Path;

use alknet_image::ImageForm;
use alknet_qemu::{Accel, VirtioDisk, Vm, VmBuilder, blank};
use serde_json::json;

use super::machines::DISK_BYTES;
use alknet_tasks::failure::{Result, TaskError};
use alknet_tasks::image::ImageFiles;
use alknet_tasks::kernel::KernelFiles;
use alknet_tasks::node::{self, MachineType, NodeCli, ReachableNode};

/// Where a machine on QEMU's network finds the host, and so the ports of the other machine.
const GATEWAY: &str = "10.0.2.2";

/// What lets others leave their shares there.
const ROLE: &str =
    "\n[hub]\nenabled = true\n\n[[hub.role]]\nname = \"escrow\"\nscopes = [\"escrow\"]\n";

/// A machine that keeps shares. It stands still while no benchmark needs it.
#[derive(Debug)]
pub(super) struct ShareServerMachine {
    vm: Vm,
    code: String,
}

impl ShareServerMachine {
    pub(super) fn start(
        image: &ImageFiles,
        kernel: &KernelFiles,
        cli: &NodeCli,
        admin: &str,
        folder: &Path,
    ) -> Result<Self> {
        let disk = folder.join("share-server");
        blank(&disk, DISK_BYTES)?;
        let builder = node::builder(image, kernel, ImageForm::Erofs, MachineType::Microvm, admin)?;
        let vm = patient(builder, image)
            .accel(Accel::Tcg)
            .config(format!("{}{ROLE}", node::config(admin)))
            .disk(VirtioDisk::file(&disk).data())
            .start()?;
        let node = node::wait_ready(&vm)?;
        let code = invite(cli, &node)?;
        vm.pause()?;
        Ok(Self { vm, code })
    }

    /// What the document of a machine says that leaves a share there.
    pub(super) fn code(&self) -> &str {
        &self.code
    }

    /// Does something for which it has to run.
    pub(super) fn awake<T>(&self, act: impl FnOnce() -> Result<T>) -> Result<T> {
        self.vm.resume()?;
        let done = act();
        // Also where that failed: it would take processor time from what comes next.
        self.vm.pause()?;
        done
    }
}

/// Two emulated machines are slow enough for the kernel to find its timer broken, and to stop.
pub(super) fn patient(builder: VmBuilder, image: &ImageFiles) -> VmBuilder {
    let line = image.manifest.cmdline(ImageForm::Erofs).unwrap_or_default();
    builder.append(format!("{line} reboot=t no_timer_check"))
}

/// A join string for one machine that leaves a share.
fn invite(cli: &NodeCli, node: &ReachableNode) -> Result<String> {
    let address = format!("{GATEWAY}:{}", node.address.port());
    let input = json!({ "role": "escrow", "addresses": [address] });
    let mut command = cli.command("call");
    command.args(["--json", "--carriage", "quic", "--timeout", "60"]);
    command.args([&node.target(), "hub/invite", &input.to_string()]);
    let output = command
        .output()
        .map_err(TaskError::io("run alknet call hub/invite"))?;
    // What is no JSON has no code, and is reported with what was said besides.
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let code = told["join"].as_str().map(str::to_owned);
    code.ok_or_else(|| TaskError::Step {
        what: "alknet call hub/invite".to_owned(),
        how: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        log: None,
    })
}
