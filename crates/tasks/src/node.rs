//! Starts an image in QEMU with the command line's own identity as administrator, and calls it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use alknet_image::{Form, Role};
use alknet_qemu::{Disk, MachineKind, Nic, READY_WITHIN, Vm, VmBuilder};

use crate::failure::{Failure, Result};
use crate::image::Image;
use crate::kernel::Kernel;

/// What PID 1 prints, once, when the port is served: host name, identity, port.
const READY: &str = "alknet: ready ";

/// What it says once it can be reached.
const ADDRESS: &str = "alknet: address ";

/// Longest wait for one call.
const CALL_SECONDS: &str = "60";

/// Longest wait from the power button to power off: PID 1 promises 10 s, firmware adds some.
const OFF_WITHIN: Duration = Duration::from_secs(20);

/// Machine that carries a form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Machine {
    /// Small and quick, without firmware
    Microvm,
    /// An ordinary PC
    Q35,
    /// An ordinary PC with UEFI firmware
    Uefi,
}

impl Machine {
    /// The machine a form is usually started on.
    pub const fn usual(form: Form) -> Self {
        match form {
            Form::Erofs => Self::Microvm,
            Form::Raw | Form::Uki => Self::Uefi,
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
pub struct Cli {
    program: PathBuf,
    state: Option<PathBuf>,
}

impl Cli {
    /// With the user's own keys, or those in `state`.
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

    /// The public key it acts with.
    pub fn identity(&self) -> Result<String> {
        let output = self.output(self.command("identity"))?;
        Ok(output.trim().to_owned())
    }

    /// Calls one operation and returns its answer as JSON text.
    pub fn call(&self, node: &Reached, operation: &str) -> Result<String> {
        let mut command = self.command("call");
        // QUIC by name: on a slow guest the command line turns to TCP after 400 ms.
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
            .map_err(Failure::io(format!("run {shown}")))?;
        said(output, &shown)
    }
}

fn said(output: Output, shown: &str) -> Result<String> {
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let how = format!(
        "{}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Err(Failure::Step {
        what: shown.to_owned(),
        how,
        log: None,
    })
}

/// Who answers where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reached {
    /// `ed25519:` and 64 hexadecimal digits.
    pub identity: String,
    /// The host's end of the forwarded port.
    pub address: SocketAddr,
}

impl Reached {
    /// From the line that `alknet serve --json` begins with.
    pub fn of_serve(line: &str) -> Option<Self> {
        let said: serde_json::Value = serde_json::from_str(line).ok()?;
        let (identity, address) = said["target"].as_str()?.split_once('@')?;
        Some(Self {
            identity: identity.to_owned(),
            address: address.parse().ok()?,
        })
    }

    /// As `alknet call` takes it.
    pub fn target(&self) -> String {
        format!("{}@{}", self.identity, self.address)
    }
}

/// The document that names `admin` as administrator.
pub fn config(admin: &str) -> String {
    format!("[node]\nname = \"alknet\"\nadmin_keys = [\"{admin}\"]\n")
}

/// A machine that would start this form of the image; disks and memory are the caller's.
pub fn builder(
    image: &Image,
    kernel: &Kernel,
    form: Form,
    machine: Machine,
    admin: &str,
) -> Result<VmBuilder> {
    let file = |role| image.manifest.path(&image.folder, form, role);
    let mut builder = Vm::builder(machine.kind())
        .nic(Nic::user())
        .config(config(admin))
        .probe_kernel(&kernel.vmlinux);
    let mut line = image.manifest.cmdline(form).unwrap_or_default().to_owned();
    if machine == Machine::Microvm {
        // Without ACPI only a triple fault resets, and a reset is all that ends this machine.
        line += " reboot=t";
        builder = builder.exit_on_reset();
    }
    let role = if machine == Machine::Microvm {
        Role::Vmlinux
    } else {
        Role::Kernel
    };
    if matches!(form, Form::Direct | Form::Erofs) {
        let kernel = file(role).ok_or_else(|| lacks(form, role))?;
        builder = builder.kernel(kernel).append(line);
    }
    match form {
        Form::Direct => {
            Ok(builder.initrd(file(Role::Initrd).ok_or_else(|| lacks(form, Role::Initrd))?))
        }
        Form::Erofs => {
            let root = file(Role::Root).ok_or_else(|| lacks(form, Role::Root))?;
            Ok(builder.disk(Disk::file(root).read_only()))
        }
        Form::Raw if machine == Machine::Uefi => Ok(builder),
        _ => Err(Failure::Arguments(format!(
            "form {form} does not start on this machine: use direct or erofs on microvm or q35, raw on uefi"
        ))),
    }
}

fn lacks(form: Form, role: Role) -> Failure {
    Failure::Arguments(format!("the {form} image has no {role:?}: build it again"))
}

/// Waits until the port is served, and reads from the console who serves it.
pub fn wait_ready(vm: &Vm) -> Result<Reached> {
    vm.wait_for(READY, READY_WITHIN)?;
    // The line is complete once its port follows.
    vm.wait_for(" port ", READY_WITHIN)?;
    // The node does not wait for the network; a call that does not is sent again after seconds.
    vm.wait_for(ADDRESS, READY_WITHIN)?;
    let text = vm.console().text();
    let identity = ready_identity(&text).ok_or_else(|| Failure::Boot {
        why: "the ready line names no identity".into(),
        log: text_log(vm),
    })?;
    let address = vm
        .address()
        .ok_or_else(|| Failure::Arguments("the machine has no card".into()))?;
    Ok(Reached { identity, address })
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

/// Asks the machine to end, as its kind allows, and waits until it did.
pub fn power_off(vm: &mut Vm, machine: Machine, cli: &Cli, node: &Reached) -> Result<()> {
    if machine == Machine::Microvm {
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
        let node = Reached {
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
