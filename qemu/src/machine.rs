//! The parts of a machine, and the arguments that give them to QEMU.

mod devices;

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::accel::Accel;
use crate::disk::VirtioDisk;
use crate::error::{Error, Result};
use crate::nic::Nic;
use crate::tpm::Interposer;
use crate::tsc;

/// The kind of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MachineKind {
    /// Small and quick: virtio over MMIO, no PCI, no ACPI. It can reboot but not power off, and has
    /// no power button and no watchdog.
    Microvm,
    /// An older PC with SeaBIOS, PCI and ACPI (i440FX), without hot-plug.
    Pc,
    /// An ordinary PC with SeaBIOS, PCI Express and ACPI.
    Q35,
    /// The same with UEFI firmware, whose variables are fresh unless they are kept.
    Q35Uefi,
}

/// What the watchdog device does if the guest does not feed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchdogAction {
    /// Powers the machine off.
    Poweroff,
    /// Resets the machine.
    Reset,
}

/// The place of the guest's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum GuestMemory {
    /// Memory that ends with the machine.
    Anonymous,
    /// A file of the machine, so that the machine can be saved.
    Saveable,
    /// The file of a saved machine, of which this one has a private copy.
    Restored(PathBuf),
}

/// Everything about a machine that is known before it starts.
#[derive(Clone, Debug)]
pub(crate) struct MachineSpec {
    pub(crate) kind: MachineKind,
    pub(crate) kernel: Option<PathBuf>,
    pub(crate) initrd: Option<PathBuf>,
    pub(crate) append: String,
    pub(crate) memory_mib: u32,
    pub(crate) memory: GuestMemory,
    pub(crate) cpus: u32,
    pub(crate) disks: Vec<VirtioDisk>,
    /// Image in the CD drive, from which firmware boots first.
    pub(crate) cd: Option<PathBuf>,
    pub(crate) fw_cfg: Vec<(String, Vec<u8>)>,
    pub(crate) seed: Option<Vec<u8>>,
    pub(crate) nics: Vec<Nic>,
    pub(crate) watchdog: Option<WatchdogAction>,
    /// Folder of the TPM's memory.
    pub(crate) tpm: Option<PathBuf>,
    /// The interposer on the wires to the TPM.
    pub(crate) interposer: Option<Arc<dyn Interposer>>,
    /// File that keeps the firmware's variables.
    pub(crate) variables: Option<PathBuf>,
    /// Whether the firmware can be made to start only signed programs.
    pub(crate) secure_boot: bool,
    pub(crate) exit_on_reset: bool,
    pub(crate) counted: bool,
    pub(crate) extra: Vec<OsString>,
}

/// What is known only at the start: ports, files, descriptors.
#[derive(Debug)]
pub(crate) struct MachineResources {
    pub(crate) accel: Accel,
    /// File of the guest's memory, and whether the guest's writes go there.
    pub(crate) memory: Option<(PathBuf, bool)>,
    pub(crate) console_fd: i32,
    pub(crate) qmp_fd: i32,
    /// One per card on a harness network, in the order of the cards.
    pub(crate) lan_fds: Vec<i32>,
    /// Host ports, one per forward, in the order of the cards and their forwards.
    pub(crate) ports: Vec<u16>,
    /// Firmware code and this machine's copy of the variables.
    pub(crate) firmware: Option<(PathBuf, PathBuf)>,
    /// Files that hold `MachineSpec::fw_cfg`, in its order.
    pub(crate) fw_cfg_files: Vec<PathBuf>,
    /// Folder of the files that `MachineSpec::seed` needs.
    pub(crate) seed: Option<PathBuf>,
    /// QEMU's end of the TPM's control channel.
    pub(crate) tpm_fd: Option<i32>,
    /// Argument of `-plugin`.
    pub(crate) plugin: Option<String>,
}

/// The emulated processor: what QEMU emulates, without flags that promise speed and cost it.
///
/// `erms` and `fsrm` promise fast `rep movsb` and `rep stosb`. Emulation does those a byte at a
/// time, so a kernel that trusts them clears a page in 4096 steps instead of 512. For AVX and what
/// builds on it, emulation calls a function for most instructions that move lanes. With AVX, an
/// attempt at a passphrase (Argon2id, 64 MiB, three passes) took 4.9 s, and without it takes 1.4.
pub const TCG_CPU: &str = "max,-erms,-fsrm,-avx,-avx2,-f16c,-fma,-vaes,-vpclmulqdq";

/// Emulation of all processors of a machine by one thread.
const ONE_THREAD: &str = "tcg,thread=single";

/// The kernel option with the speed of its time-stamp counter, in kHz.
const TSC_SPEED: &str = "tsc_early_khz=";

/// Makes the kernel watch PCI Express slots itself, even if the firmware owns them.
const NATIVE_HOT_PLUG: &str = "pcie_ports=native";

impl MachineSpec {
    /// A machine of the usual size without any device.
    pub(crate) fn new(kind: MachineKind) -> Self {
        Self {
            kind,
            kernel: None,
            initrd: None,
            append: String::new(),
            memory_mib: 512,
            memory: GuestMemory::Anonymous,
            cpus: 1,
            disks: vec![],
            cd: None,
            fw_cfg: vec![],
            seed: None,
            nics: vec![],
            watchdog: None,
            tpm: None,
            interposer: None,
            variables: None,
            secure_boot: false,
            exit_on_reset: false,
            counted: false,
            extra: vec![],
        }
    }

    /// Refuses what QEMU would refuse less clearly, or silently ignore.
    pub(crate) fn check(&self) -> Result<()> {
        let microvm = self.kind == MachineKind::Microvm;
        let refuse = |why: &str| Err(Error::BadMachine(why.to_owned()));
        if microvm && self.watchdog.is_some() {
            return refuse("microvm has no PCI and so no watchdog; use q35");
        }
        if microvm && self.tpm.is_some() {
            return refuse("microvm has no TPM that its firmware measures into; use q35");
        }
        if self.variables.is_some() && self.kind != MachineKind::Q35Uefi {
            return refuse("only UEFI firmware has variables to keep");
        }
        if self.secure_boot && self.kind != MachineKind::Q35Uefi {
            return refuse("only UEFI firmware has Secure Boot");
        }
        if microvm && self.hot_plugs() {
            return refuse("microvm cannot hot-plug; use q35");
        }
        if self.kind == MachineKind::Pc && self.hot_plugs() {
            return refuse("this PC has no slots of PCI Express to hot-plug; use q35");
        }
        if microvm && self.cd.is_some() {
            return refuse("microvm has no CD drive; use q35");
        }
        if let Some(why) = self.unfit_device() {
            return refuse(why);
        }
        if self.kernel.is_none() && (self.initrd.is_some() || !self.append.is_empty()) {
            return refuse("an initrd or a command line needs a kernel");
        }
        if self.cpus == 0 || self.memory_mib == 0 {
            return refuse("a machine needs memory and a processor");
        }
        let files = [self.kernel.as_deref(), self.initrd.as_deref()];
        let disks = self.disks.iter().filter_map(VirtioDisk::path);
        files
            .into_iter()
            .flatten()
            .chain(disks)
            .chain(self.cd.as_deref())
            .try_for_each(file_is_there)
    }

    /// Whether cards must be set before the processor starts.
    pub(crate) fn starts_paused(&self) -> bool {
        self.nics.iter().any(|nic| nic.plugged && !nic.link_up)
    }

    /// QEMU's arguments.
    pub(crate) fn arguments(&self, layout: &MachineResources) -> Vec<OsString> {
        let mut args = QemuArguments::default();
        self.board(layout, &mut args);
        self.firmware_and_kernel(layout, &mut args);
        self.add_channel_arguments(layout, &mut args);
        for (index, disk) in self.disks.iter().enumerate() {
            self.disk(index, disk, &mut args);
        }
        if let Some(path) = &self.cd {
            let drive = "if=none,id=cd,media=cdrom,format=raw,readonly=on,file=";
            args.pair("-drive", option(drive, path));
            // A machine with a kernel of its own boots from no drive, and QEMU gives the kernel this index.
            let boots = if self.kernel.is_none() {
                "ide-cd,drive=cd,bootindex=0"
            } else {
                "ide-cd,drive=cd"
            };
            args.pair("-device", boots);
        }
        if let Some(folder) = &layout.seed {
            self.seed(folder, &mut args);
        }
        self.cards(layout, &mut args);
        self.fw_cfg_files(layout, &mut args);
        self.watchdog(&mut args);
        if let Some(fd) = layout.tpm_fd {
            args.pair("-chardev", format!("socket,id=tpm,fd={fd}"));
            args.pair("-tpmdev", "emulator,id=tpm0,chardev=tpm");
            args.pair("-device", "tpm-crb,tpmdev=tpm0");
        }
        args.0.extend(self.extra.iter().cloned());
        args.0
    }

    /// QEMU's arguments that determine the guest: without paths and ports of the host, and without
    /// the measured speed of its processor.
    pub(crate) fn shape(&self, accel: Accel) -> String {
        let generic_path = |name: &str| PathBuf::from(format!("/{name}"));
        let machine = Self {
            kernel: self.kernel.as_ref().map(|_| generic_path("kernel")),
            initrd: self.initrd.as_ref().map(|_| generic_path("initrd")),
            disks: self.disks.iter().map(VirtioDisk::anywhere).collect(),
            cd: self.cd.as_ref().map(|_| generic_path("cd")),
            ..self.clone()
        };
        let is_uefi = self.kind == MachineKind::Q35Uefi;
        let layout = MachineResources {
            accel,
            memory: Some((generic_path("memory"), true)),
            console_fd: 0,
            qmp_fd: 0,
            lan_fds: vec![0; self.nics.len()],
            ports: vec![0; self.nics.iter().map(|nic| nic.forwards().len()).sum()],
            firmware: is_uefi.then(|| (generic_path("code"), generic_path("variables"))),
            fw_cfg_files: vec![generic_path("file"); self.fw_cfg.len()],
            seed: self.seed.as_ref().map(|_| generic_path("seed")),
            tpm_fd: self.tpm.as_ref().map(|_| 0),
            plugin: self.counted.then(|| "counter".to_owned()),
        };
        let words = machine.arguments(&layout);
        let words = words.iter().map(|word| word.to_string_lossy());
        let words: Vec<_> = words.map(|word| without_speed(&word)).collect();
        words.join("\n")
    }

    fn board(&self, layout: &MachineResources, args: &mut QemuArguments) {
        let takes_turns = self.takes_turns(layout.accel);
        // QEMU refuses both forms of the option together.
        let accel = if takes_turns {
            String::new()
        } else {
            format!(",accel={}", layout.accel.name())
        };
        let machine = match self.kind {
            MachineKind::Microvm => {
                let acpi = if self.has_acpi() { "on" } else { "off" };
                format!("microvm{accel},acpi={acpi},rtc=on")
            }
            // Only the firmware writes its variables, from a mode of the processor of its own.
            MachineKind::Q35Uefi if self.secure_boot => format!("q35{accel},smm=on"),
            MachineKind::Q35 | MachineKind::Q35Uefi => format!("q35{accel}"),
            MachineKind::Pc => format!("pc{accel}"),
        };
        let machine = match &layout.memory {
            None => machine,
            Some(_) => format!("{machine},memory-backend=memory"),
        };
        let machine = match self.leaves_out_hpet(layout.accel) {
            true => format!("{machine},hpet=off"),
            false => machine,
        };
        args.pair("-M", machine);
        if takes_turns {
            args.pair("-accel", ONE_THREAD);
        }
        if let Some((file, shared)) = &layout.memory {
            let share = if *shared { "on" } else { "off" };
            let size = self.memory_mib;
            let head =
                format!("memory-backend-file,id=memory,size={size}M,share={share},mem-path=");
            args.pair("-object", option(&head, file));
        }
        args.pair(
            "-cpu",
            if layout.accel == Accel::Kvm {
                "host"
            } else {
                TCG_CPU
            },
        );
        args.pair("-m", format!("{}M", self.memory_mib));
        args.pair("-smp", self.cpus.to_string());
        args.all(["-nodefaults", "-no-user-config", "-display", "none"]);
        if self.exit_on_reset {
            args.all(["-no-reboot"]);
        }
        if self.hot_plugs() {
            // PCI Express's own hot-plug needs no firmware, and QEMU prefers ACPI's.
            args.pair(
                "-global",
                "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off",
            );
        }
        if self.starts_paused() {
            args.all(["-S"]);
        }
        if let GuestMemory::Restored(_) = self.memory {
            // A command loads the memory once QEMU runs.
            args.pair("-incoming", "defer");
        }
        if self.counted {
            args.pair("-icount", "shift=0");
        }
        if let Some(plugin) = &layout.plugin {
            args.pair("-plugin", plugin);
        }
    }

    fn firmware_and_kernel(&self, layout: &MachineResources, args: &mut QemuArguments) {
        if self.secure_boot {
            args.pair("-global", "driver=cfi.pflash01,property=secure,value=on");
            // Edk2 with SMM refuses to start if the machine can sleep, because its memory would
            // then be unprotected.
            args.pair("-global", "ICH9-LPC.disable_s3=1");
        }
        if let Some((code, vars)) = &layout.firmware {
            args.pair(
                "-drive",
                option("if=pflash,format=raw,unit=0,readonly=on,file=", code),
            );
            args.pair("-drive", option("if=pflash,format=raw,unit=1,file=", vars));
        }
        if let Some(kernel) = &self.kernel {
            args.pair("-kernel", kernel);
            args.pair("-append", self.command_line(layout.accel));
        }
        if let Some(initrd) = &self.initrd {
            args.pair("-initrd", initrd);
        }
    }

    fn command_line(&self, accel: Accel) -> String {
        let mut line = self.append.clone();
        let microvm = self.kind == MachineKind::Microvm;
        if microvm && accel == Accel::Tcg {
            let speed = tsc::emulated_khz(self.counted);
            line.extend(speed.map(|khz| format!(" {TSC_SPEED}{khz}")));
        }
        if self.hot_plugs() {
            line = format!("{line} {NATIVE_HOT_PLUG}");
        }
        line.trim().to_owned()
    }

    /// Whether one thread of QEMU emulates all processors, in turns. With a thread for each processor, a machine with
    /// several of them lost its timer interrupt on a host whose own two were busy: the host stopped one processor of the
    /// machine while another one ran on.
    fn takes_turns(&self, accel: Accel) -> bool {
        accel == Accel::Tcg && self.cpus > 1
    }

    /// Whether the machine has no high precision event timer, as many boards and most hypervisors have none. The kernel uses
    /// this timer until it has calibrated that of its processor, and QEMU lets it run on: its 250 alarms a second, which
    /// interrupt nothing, take half of the processor time of an emulated machine that waits. The older PC has the timer, so
    /// that the kernel starts with one as well.
    fn leaves_out_hpet(&self, accel: Accel) -> bool {
        let has_timer = matches!(self.kind, MachineKind::Q35 | MachineKind::Q35Uefi);
        accel == Accel::Tcg && has_timer
    }

    /// Whether the machine has ACPI, which costs a microvm some start-up time. Without it, a kernel
    /// that knows ACPI cannot read the firmware configuration: its driver takes ACPI's global lock
    /// first.
    fn has_acpi(&self) -> bool {
        self.kind != MachineKind::Microvm || !self.fw_cfg.is_empty()
    }

    fn hot_plugs(&self) -> bool {
        self.nics.iter().any(|nic| !nic.plugged) || self.disks.iter().any(|disk| !disk.plugged)
    }

    fn add_channel_arguments(&self, layout: &MachineResources, args: &mut QemuArguments) {
        args.pair(
            "-chardev",
            format!("socket,id=console,fd={}", layout.console_fd),
        );
        args.pair("-serial", "chardev:console");
        args.pair("-chardev", format!("socket,id=qmp,fd={}", layout.qmp_fd));
        args.pair("-mon", "chardev=qmp,mode=control");
    }

    fn fw_cfg_files(&self, layout: &MachineResources, args: &mut QemuArguments) {
        for ((name, _), path) in self.fw_cfg.iter().zip(&layout.fw_cfg_files) {
            args.pair("-fw_cfg", option(&format!("name={name},file="), path));
        }
    }
}

fn without_speed(argument: &str) -> String {
    // The speed is measured on each host. A saved machine must match all the same.
    let is_speed = |word: &&str| word.starts_with(TSC_SPEED);
    let kept = argument.split(' ').filter(|word| !is_speed(word));
    kept.collect::<Vec<_>>().join(" ")
}

fn file_is_there(path: &Path) -> Result<()> {
    if path.exists() {
        return Ok(());
    }
    Err(Error::Missing {
        what: "a file of the machine",
        path: path.to_owned(),
        hint: "build it first, or correct the path",
    })
}

/// An option that ends in a path. QEMU splits at commas unless they are doubled.
fn option(head: &str, path: &Path) -> OsString {
    let mut text = OsString::from(head);
    text.push(path.to_string_lossy().replace(',', ",,"));
    text
}

#[derive(Default)]
struct QemuArguments(Vec<OsString>);

impl QemuArguments {
    fn pair(&mut self, name: &str, value: impl AsRef<OsStr>) {
        self.0.push(name.into());
        self.0.push(value.as_ref().to_owned());
    }

    fn all<const N: usize>(&mut self, values: [&str; N]) {
        self.0.extend(values.map(OsString::from));
    }
}

#[cfg(test)]
mod tests;
