//! The description of a machine before it starts.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use crate::accel::Accel;
use crate::disk::VirtioDisk;
use crate::error::{Error, Result};
use crate::machine::{GuestMemory, MachineKind, MachineSpec, WatchdogAction};
use crate::nic::Nic;
use crate::permits::MachinePermit;
use crate::tpm::Interposer;
use crate::vm::Vm;

/// The firmware configuration file in which the node finds its configuration.
const CONFIG_FILE: &str = "opt/org.alknet/node";

/// How often QEMU is started at most. The harness asks the kernel for free ports of the host and
/// passes their numbers to QEMU, which cannot take an open socket for them. Another process may
/// take one in between. QEMU then ends before the guest has run an instruction, and the harness
/// tries other ports: nothing of the machine is lost or hidden.
const PORT_ATTEMPTS: u32 = 8;

/// QEMU's message about a taken port.
const PORT_TAKEN: &str = "Could not set up host forwarding rule";

/// Describes a machine. [`Vm::builder`] makes one.
#[derive(Clone, Debug)]
#[must_use]
pub struct VmBuilder {
    pub(crate) machine: MachineSpec,
    pub(crate) name: String,
    accel: Option<Accel>,
    probe_kernel: Option<PathBuf>,
}

impl VmBuilder {
    pub(crate) fn new(kind: MachineKind) -> Self {
        // The thread of a test has the test's path as its name.
        let name = std::thread::current()
            .name()
            .unwrap_or("vm")
            .replace("::", ".");
        Self {
            machine: MachineSpec::new(kind),
            name,
            accel: None,
            probe_kernel: None,
        }
    }

    /// Sets the name in logs. The default is the name of the running thread, which in a test is the
    /// test's.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Boots this kernel directly: bzImage, or on microvm the quicker ELF with a PVH entry.
    pub fn kernel(mut self, path: impl Into<PathBuf>) -> Self {
        self.machine.kernel = Some(path.into());
        self
    }

    /// Sets the initial file system.
    pub fn initrd(mut self, path: impl Into<PathBuf>) -> Self {
        self.machine.initrd = Some(path.into());
        self
    }

    /// Sets the kernel's command line.
    pub fn append(mut self, line: impl Into<String>) -> Self {
        self.machine.append = line.into();
        self
    }

    /// Sets the memory in MiB. The default is 512.
    pub fn memory_mib(mut self, mib: u32) -> Self {
        self.machine.memory_mib = mib;
        self
    }

    /// Sets the number of processors. The default is one.
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.machine.cpus = cpus;
        self
    }

    /// Lets [`Vm::save`] save the machine. Its memory is a file then.
    pub fn saveable(mut self) -> Self {
        self.machine.memory = GuestMemory::Saveable;
        self
    }

    /// Starts a copy of the machine that [`Vm::save`] saved in `folder`, which continues where that
    /// one was. It has to be built in the same way. Files of disks may be copies, ports of the host
    /// differ, and a network of the harness may replace another.
    pub fn restore(mut self, folder: impl Into<PathBuf>) -> Self {
        self.machine.memory = GuestMemory::Restored(folder.into());
        self
    }

    /// Adds a disk. The guest names them in this order: `/dev/vda`, `/dev/vdb` ….
    pub fn disk(mut self, disk: VirtioDisk) -> Self {
        self.machine.disks.push(disk);
        self
    }

    /// Puts an image into a CD drive, from which firmware boots first. Not on microvm.
    pub fn cd(mut self, image: impl Into<PathBuf>) -> Self {
        self.machine.cd = Some(image.into());
        self
    }

    /// Adds a network card. A machine without a card gets one on QEMU's own network only on
    /// request.
    pub fn nic(mut self, nic: Nic) -> Self {
        self.machine.nics.push(nic);
        self
    }

    /// Adds a file of the firmware configuration device, `opt/…`.
    pub fn fw_cfg(mut self, name: impl Into<String>, content: impl Into<Vec<u8>>) -> Self {
        self.machine.fw_cfg.push((name.into(), content.into()));
        self
    }

    /// Gives the node its configuration, in the way that costs this kind of machine least. A
    /// microvm gets a NoCloud volume as its last disk, which QEMU makes: the firmware configuration
    /// device needs ACPI, which takes a third of a microvm's boot. The last configuration counts.
    pub fn config(mut self, document: impl Into<Vec<u8>>) -> Self {
        if self.machine.kind == MachineKind::Microvm {
            self.machine.seed = Some(document.into());
            return self;
        }
        // An earlier configuration goes, because the last one counts.
        self.machine.fw_cfg.retain(|(name, _)| name != CONFIG_FILE);
        self.fw_cfg(CONFIG_FILE, document)
    }

    /// Adds a watchdog device. Not on microvm.
    pub fn watchdog(mut self, action: WatchdogAction) -> Self {
        self.machine.watchdog = Some(action);
        self
    }

    /// Adds the TPM 2.0 whose memory is in `folder`, or a new one if that is empty. It keeps keys
    /// and counters from one machine to the next, which may not run at the same time. Not on
    /// microvm.
    pub fn tpm(mut self, folder: impl Into<PathBuf>) -> Self {
        self.machine.tpm = Some(folder.into());
        self
    }

    /// Puts an interposer onto the wires to the [`tpm`](Self::tpm).
    pub fn interposer(mut self, interposer: Arc<dyn Interposer>) -> Self {
        self.machine.interposer = Some(interposer);
        self
    }

    /// Keeps the UEFI firmware's variables in `file`, which is made at the first start. Without
    /// this each start has fresh ones. UEFI only.
    pub fn variables(mut self, file: impl Into<PathBuf>) -> Self {
        self.machine.variables = Some(file.into());
        self
    }

    /// Takes firmware that knows Secure Boot. It enforces it if the kept
    /// [`variables`](Self::variables) have keys, see
    /// [`PlatformOwner::enroll`](crate::PlatformOwner::enroll). UEFI only.
    pub fn secure_boot(mut self) -> Self {
        self.machine.secure_boot = true;
        self
    }

    /// Makes a reset end the machine instead of booting it again.
    pub fn exit_on_reset(mut self) -> Self {
        self.machine.exit_on_reset = true;
        self
    }

    /// Makes the machine boot again after a reset, which is the default.
    pub fn boot_after_reset(mut self) -> Self {
        self.machine.exit_on_reset = false;
        self
    }

    /// Counts the guest's instructions, see [`Vm::instructions`]. Each takes one nanosecond of the
    /// guest's clock, so that loops that wait for time take the same number of turns however loaded
    /// the host is. An idle guest keeps the host's time. TCG only.
    pub fn count_instructions(mut self) -> Self {
        self.machine.counted = true;
        self
    }

    /// Uses this accelerator, whatever the environment says.
    pub fn accel(mut self, accel: Accel) -> Self {
        self.accel = Some(accel);
        self
    }

    /// Sets the kernel with which the harness probes KVM, if the machine itself boots from a disk.
    pub fn probe_kernel(mut self, path: impl Into<PathBuf>) -> Self {
        self.probe_kernel = Some(path.into());
        self
    }

    /// Adds an argument for QEMU as it is.
    pub fn argument(mut self, argument: impl Into<OsString>) -> Self {
        self.machine.extra.push(argument.into());
        self
    }

    /// What a machine must have in common with a saved one to be [`restore`](Self::restore)d from
    /// it: accelerator, processor, and QEMU's arguments without paths and ports of the host. The
    /// content of its disks and files is not part of it, nor the version of QEMU, which
    /// [`version`](crate::version) returns.
    ///
    /// # Errors
    /// `ALKNET_QEMU_ACCEL` is invalid.
    pub fn recipe(&self) -> Result<String> {
        let accel = self.choose_accel()?;
        let (name, shape) = (accel.name(), self.machine.shape(accel));
        Ok(format!("{name}\n{}\n{shape}", accel.processor()))
    }

    /// Starts the machine, as soon as there are processors and memory for it. Machines of all
    /// processes of this user count.
    pub fn start(self) -> Result<Vm> {
        self.machine.check()?;
        let accel = self.choose_accel()?;
        let permit = self.permit()?;
        let mut attempt = 1;
        let mut vm = loop {
            match Vm::start(&self, accel) {
                // The harness chooses the ports before QEMU binds them, so another process may be
                // quicker.
                Err(error) => match port_taken(&error) {
                    Some(message) if attempt < PORT_ATTEMPTS => {
                        attempt += 1;
                        let why = format!(
                            "{}, with other ports ({attempt} of {PORT_ATTEMPTS}): another process took one of this \
                             host: {message}",
                            self.name
                        );
                        alknet_test_support::started_again("QEMU", why);
                    }
                    _ => return Err(error),
                },
                Ok(vm) => break vm,
            }
        };
        vm.hold(permit);
        Ok(vm)
    }

    /// Waits for a permit. A copy of a saved machine has its own copies of the pages that it
    /// writes, and shares the others.
    fn permit(&self) -> Result<MachinePermit> {
        let restored = matches!(self.machine.memory, GuestMemory::Restored(_));
        let mib = self.machine.memory_mib;
        let mib = if restored { mib / 2 } else { mib };
        MachinePermit::acquire(mib, restored, alknet_test_support::machines_mib())
    }

    fn choose_accel(&self) -> Result<Accel> {
        let only_tcg = self.machine.counted;
        match self.accel {
            Some(Accel::Kvm) if only_tcg => Err(Error::NoCounter(
                "KVM does not show single instructions; use TCG".to_owned(),
            )),
            Some(accel) => Ok(accel),
            None if only_tcg => Ok(Accel::Tcg),
            None => Accel::detect(
                self.machine
                    .kernel
                    .as_deref()
                    .or(self.probe_kernel.as_deref()),
            ),
        }
    }
}

/// QEMU's message about a port that another process has, if that is why it did not start.
fn port_taken(error: &Error) -> Option<&str> {
    match error {
        Error::NotStarted { stderr, .. } => stderr.lines().find(|line| line.contains(PORT_TAKEN)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qemu_is_started_again_for_a_port_and_for_nothing_else() {
        let not_started = |stderr: &str| Error::NotStarted {
            status: "exit status: 1".to_owned(),
            stderr: stderr.to_owned(),
        };
        let said =
            "qemu: -nic user: Could not set up host forwarding rule 'tcp:127.0.0.1:4000-:443'";
        let taken = not_started(&format!("qemu: warning: slow\n{said}\n"));
        assert_eq!(port_taken(&taken), Some(said));
        let other = not_started("qemu: could not open disk image");
        assert_eq!(port_taken(&other), None);
        assert_eq!(port_taken(&Error::NoCounter(PORT_TAKEN.to_owned())), None);
    }

    #[test]
    fn a_machine_under_kvm_is_no_copy_of_one_that_is_emulated() {
        let recipe = |accel| {
            let vm = VmBuilder::new(MachineKind::Microvm)
                .accel(accel)
                .kernel("/k");
            vm.recipe().expect("the accelerator is given")
        };
        assert_eq!(recipe(Accel::Tcg), recipe(Accel::Tcg));
        assert_ne!(recipe(Accel::Kvm), recipe(Accel::Tcg));
    }
}
