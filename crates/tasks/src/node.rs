//! Starts an image in QEMU with the command line's own identity as administrator, and calls it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use alknet_image::{ImageForm, OutputRole};
use alknet_qemu::{ConsoleMark, MachineKind, Nic, READY_WITHIN, VirtioDisk, Vm, VmBuilder};

use crate::failure::{Result, TaskError};
use crate::image::ImageFiles;
use crate::kernel::KernelFiles;

/// The prefix of PID 1's line, printed once, when the node serves its port: host name, identity,
/// port.
const READY: &str = "alknet: ready ";

/// The prefix of the line that PID 1 prints once the node can be reached.
const ADDRESS: &str = "alknet: address ";

/// Longest wait for one call.
const CALL_SECONDS: &str = "60";

/// Longest wait from the power button to power off: PID 1 promises 10 s, and firmware adds some.
const OFF_WITHIN: Duration = Duration::from_secs(20);

/// Machine that carries a form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum MachineType {
    /// Small and quick, without firmware
    Microvm,
    /// An ordinary PC
    Q35,
    /// An ordinary PC with UEFI firmware
    Uefi,
}

impl MachineType {
    /// The default machine of a form.
    pub const fn usual(form: ImageForm) -> Self {
        match form {
            ImageForm::Erofs => Self::Microvm,
            ImageForm::Raw | ImageForm::Uki => Self::Uefi,
            _ => Self::Q35,
        }
    }

    const fn kind(self) -> MachineKind {
        match self {
            Self::Microvm => MachineKind::Microvm,
            Self::Q35 => MachineKind::Q35,
            Self::Uefi => MachineKind::Q35Uefi,
        }
    }
}

/// The command line of the built binary.
#[derive(Clone, Debug)]
pub struct NodeCli {
    program: PathBuf,
    state: Option<PathBuf>,
}

impl NodeCli {
    /// The command line with the user's own keys, or those in `state`.
    pub fn new(program: &Path, state: Option<&Path>) -> Self {
        Self {
            program: program.to_owned(),
            state: state.map(Path::to_owned),
        }
    }

    /// A given binary with the keys in `state`.
    pub fn at(program: &Path, state: &Path) -> Self {
        Self {
            program: program.to_owned(),
            state: Some(state.to_owned()),
        }
    }

    /// The public key of its identity.
    pub fn identity(&self) -> Result<String> {
        let output = self.output(self.command("identity"))?;
        Ok(output.trim().to_owned())
    }

    /// Calls one operation and returns its answer as JSON text.
    pub fn call(&self, node: &ReachableNode, operation: &str) -> Result<String> {
        let mut command = self.command("call");
        // The call names QUIC: on a slow guest the command line falls back to TCP after 400 ms.
        command.args(["--json", "--carriage", "quic", "--timeout", CALL_SECONDS]);
        command.args([&node.target(), operation]);
        self.output(command)
    }

    /// The binary with a verb, and with the keys to use.
    pub fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.arg(verb);
        if let Some(state) = &self.state {
            command.arg("--state").arg(state);
        }
        command
    }

    fn output(&self, mut command: Command) -> Result<String> {
        let shown = format!("{command:?}");
        let output = command
            .output()
            .map_err(TaskError::io(format!("run {shown}")))?;
        stdout_of(output, &shown)
    }
}

fn stdout_of(output: Output, shown: &str) -> Result<String> {
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let how = format!(
        "{}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Err(TaskError::Step {
        what: shown.to_owned(),
        how,
        log: None,
    })
}

/// The identity and the address of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReachableNode {
    /// `ed25519:` and 64 hexadecimal digits.
    pub identity: String,
    /// The host's end of the forwarded port.
    pub address: SocketAddr,
}

impl ReachableNode {
    /// Parses the first line of `alknet serve --json`.
    pub fn of_serve(line: &str) -> Option<Self> {
        let fields: serde_json::Value = serde_json::from_str(line).ok()?;
        let (identity, address) = fields["target"].as_str()?.split_once('@')?;
        Some(Self {
            identity: identity.to_owned(),
            address: address.parse().ok()?,
        })
    }

    /// The form that `alknet call` takes.
    pub fn target(&self) -> String {
        format!("{}@{}", self.identity, self.address)
    }
}

/// The document that names `admin` as administrator.
pub fn config(admin: &str) -> String {
    format!("[node]\nname = \"alknet\"\nadmin_keys = [\"{admin}\"]\n")
}

/// A machine that would start this form of the image. The caller adds disks and memory.
pub fn builder(
    image: &ImageFiles,
    kernel: &KernelFiles,
    form: ImageForm,
    machine: MachineType,
    admin: &str,
) -> Result<VmBuilder> {
    let file = |role| image.manifest.path(&image.folder, form, role);
    let mut builder = Vm::builder(machine.kind())
        .nic(Nic::user())
        .config(config(admin))
        .probe_kernel(&kernel.vmlinux);
    let mut line = image.manifest.cmdline(form).unwrap_or_default().to_owned();
    if machine == MachineType::Microvm {
        // Without ACPI only a triple fault resets, and a reset is the only end of this machine.
        line += " reboot=t";
        builder = builder.exit_on_reset();
    }
    let role = if machine == MachineType::Microvm {
        OutputRole::Vmlinux
    } else {
        OutputRole::Kernel
    };
    if matches!(form, ImageForm::Direct | ImageForm::Erofs) {
        let kernel = file(role).ok_or_else(|| lacks(form, role))?;
        builder = builder.kernel(kernel).append(line);
    }
    match form {
        ImageForm::Direct => Ok(builder
            .initrd(file(OutputRole::Initrd).ok_or_else(|| lacks(form, OutputRole::Initrd))?)),
        ImageForm::Erofs => {
            let root = file(OutputRole::Root).ok_or_else(|| lacks(form, OutputRole::Root))?;
            Ok(builder.disk(VirtioDisk::file(root).read_only()))
        }
        // The disk has its own boot loader, so QEMU gets no kernel.
        ImageForm::Raw if machine == MachineType::Uefi => Ok(builder),
        _ => Err(TaskError::Arguments(format!(
            "form {form} does not start on this machine: use direct or erofs on microvm or q35, raw on uefi"
        ))),
    }
}

fn lacks(form: ImageForm, role: OutputRole) -> TaskError {
    TaskError::Arguments(format!("the {form} image has no {role:?}: build it again"))
}

/// Waits until the node serves its port, and reads its identity from the console.
pub fn wait_ready(vm: &Vm) -> Result<ReachableNode> {
    wait_ready_after(vm, ConsoleMark::default())
}

/// Like `wait_ready`, for what the console prints after `mark`, such as after a restart.
pub fn wait_ready_after(vm: &Vm, mark: ConsoleMark) -> Result<ReachableNode> {
    vm.wait_for_after(mark, READY, READY_WITHIN)?;
    // The line is complete once its port follows.
    vm.wait_for_after(mark, " port ", READY_WITHIN)?;
    // The node does not wait for the network. A call that comes before the address is sent again
    // only after seconds.
    vm.wait_for_after(mark, ADDRESS, READY_WITHIN)?;
    let text = vm.console().since(mark);
    let identity = ready_identity(&text).ok_or_else(|| TaskError::Boot {
        why: "the ready line names no identity".into(),
        log: text_log(vm),
    })?;
    let address = vm
        .address()
        .ok_or_else(|| TaskError::Arguments("the machine has no card".into()))?;
    Ok(ReachableNode { identity, address })
}

fn text_log(vm: &Vm) -> PathBuf {
    vm.keep_log()
        .unwrap_or_else(|_| PathBuf::from("(not kept)"))
}

fn ready_identity(console: &str) -> Option<String> {
    let line = console.split(READY).nth(1)?.lines().next()?;
    line.split_whitespace()
        .find(|word| word.starts_with("ed25519:"))
        .map(str::to_owned)
}

/// Makes the machine end, in the way of its kind, and waits for the end.
pub fn power_off(
    vm: &mut Vm,
    machine: MachineType,
    cli: &NodeCli,
    node: &ReachableNode,
) -> Result<()> {
    // This machine has no power button.
    if machine == MachineType::Microvm {
        cli.call(node, "node/reboot")?;
    } else {
        vm.power_button()?;
    }
    vm.wait_exit(OFF_WITHIN)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ready_line_names_who_serves() {
        let id = format!("ed25519:{}", "a".repeat(64));
        let text = format!("noise\nalknet: ready box {id} port 443\nmore");
        assert_eq!(ready_identity(&text), Some(id));
        assert_eq!(
            ready_identity("alknet: ready box\ned25519:late port 443"),
            None
        );
        assert_eq!(ready_identity("quiet"), None);
    }

    #[test]
    fn a_target_is_identity_at_address() {
        let node = ReachableNode {
            identity: "ed25519:ab".into(),
            address: ([127, 0, 0, 1], 4433).into(),
        };
        assert_eq!(node.target(), "ed25519:ab@127.0.0.1:4433");
    }

    #[test]
    fn the_document_is_toml_with_one_administrator() {
        let table: toml::Table = config("ed25519:ab").parse().expect("it is TOML");
        assert_eq!(table["node"]["admin_keys"][0].as_str(), Some("ed25519:ab"));
    }
}
