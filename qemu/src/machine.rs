//! What a machine consists of, and how QEMU is told.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use crate::accel::Accel;
use crate::disk::{Backing, Disk};
use crate::error::{Error, Result};
use crate::nic::{Nic, Wire};
use crate::tsc;

/// Kind of machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MachineKind {
    /// Small and quick: virtio over MMIO, no PCI, no ACPI. It cannot power off, only reboot, has no
    /// power button and no watchdog.
    Microvm,
    /// An ordinary PC with SeaBIOS, PCI Express and ACPI.
    Q35,
    /// The same with UEFI firmware, whose variables are fresh unless they are kept.
    Q35Uefi,
}

/// What the watchdog device does when it is not fed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchdogAction {
    /// Powers the machine off.
    Poweroff,
    /// Resets the machine.
    Reset,
}

/// Where the guest's memory lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Memory {
    /// Nowhere that outlives the machine.
    Anonymous,
    /// In a file of the machine's own, so that it can be saved.
    Saveable,
    /// In the file of a saved machine, of which this one has a private copy.
    Restored(PathBuf),
}

/// Everything about a machine that is known before it starts.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    pub(crate) kind: MachineKind,
    pub(crate) kernel: Option<PathBuf>,
    pub(crate) initrd: Option<PathBuf>,
    pub(crate) append: String,
    pub(crate) memory_mib: u32,
    pub(crate) memory: Memory,
    pub(crate) cpus: u32,
    pub(crate) disks: Vec<Disk>,
    pub(crate) fw_cfg: Vec<(String, Vec<u8>)>,
    pub(crate) seed: Option<Vec<u8>>,
    pub(crate) nics: Vec<Nic>,
    pub(crate) watchdog: Option<WatchdogAction>,
    /// Folder of the TPM's memory.
    pub(crate) tpm: Option<PathBuf>,
    /// File that keeps the firmware's variables.
    pub(crate) variables: Option<PathBuf>,
    /// The firmware can be made to start signed programs only.
    pub(crate) secure_boot: bool,
    pub(crate) exit_on_reset: bool,
    pub(crate) counted: bool,
    pub(crate) extra: Vec<OsString>,
}

/// What is only known at the start: ports, files, descriptors.
#[derive(Debug)]
pub(crate) struct Layout {
    pub(crate) accel: Accel,
    /// File of the guest's memory, and whether what the guest writes goes there.
    pub(crate) memory: Option<(PathBuf, bool)>,
    pub(crate) console_fd: i32,
    pub(crate) qmp_fd: i32,
    /// One per card on a harness network, in the order of the cards.
    pub(crate) lan_fds: Vec<i32>,
    /// Host ports, one per forward, in the order of the cards and their forwards.
    pub(crate) ports: Vec<u16>,
    /// Firmware code and this machine's copy of the variables.
    pub(crate) firmware: Option<(PathBuf, PathBuf)>,
    /// Files that hold `Machine::fw_cfg`, in its order.
    pub(crate) fw_cfg_files: Vec<PathBuf>,
    /// Folder of the files that `Machine::seed` needs.
    pub(crate) seed: Option<PathBuf>,
    /// QEMU's end of the TPM's control channel.
    pub(crate) tpm_fd: Option<i32>,
    /// Argument of `-plugin`.
    pub(crate) plugin: Option<String>,
}

/// The emulated processor: what QEMU emulates, less flags that promise speed and cost it.
///
/// Without `erms` and `fsrm`, which promise fast `rep movsb` and `rep stosb`: emulation does those a byte
/// at a time, so that a kernel that believes them clears a page in 4096 steps instead of 512. Without
/// AVX and what builds on it: emulation calls a function for most instructions that move lanes, so that an
/// attempt at a passphrase (Argon2id, 64 MiB, three passes) took 4.9 s, and takes 1.4.
pub const TCG_CPU: &str = "max,-erms,-fsrm,-avx,-avx2,-f16c,-fma,-vaes,-vpclmulqdq";

/// The same as NoCloud's label, in FAT's letters.
const SEED_LABEL: &str = "CIDATA";

/// Tells the kernel how fast its time-stamp counter runs, in kHz.
const TSC_SPEED: &str = "tsc_early_khz=";

/// The kernel watches PCI Express slots itself, whatever firmware says about whose they are.
const NATIVE_HOT_PLUG: &str = "pcie_ports=native";

impl Machine {
    /// One with nothing in it, of the usual size.
    pub(crate) fn new(kind: MachineKind) -> Self {
        Self {
            kind,
            kernel: None,
            initrd: None,
            append: String::new(),
            memory_mib: 512,
            memory: Memory::Anonymous,
            cpus: 1,
            disks: vec![],
            fw_cfg: vec![],
            seed: None,
            nics: vec![],
            watchdog: None,
            tpm: None,
            variables: None,
            secure_boot: false,
            exit_on_reset: false,
            counted: false,
            extra: vec![],
        }
    }

    /// Refuses what QEMU would refuse less clearly, or silently not do.
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
        if self.kernel.is_none() && (self.initrd.is_some() || !self.append.is_empty()) {
            return refuse("an initrd or a command line needs a kernel");
        }
        if self.cpus == 0 || self.memory_mib == 0 {
            return refuse("a machine needs memory and a processor");
        }
        let files = [self.kernel.as_deref(), self.initrd.as_deref()];
        let disks = self.disks.iter().filter_map(Disk::path);
        files
            .into_iter()
            .flatten()
            .chain(disks)
            .try_for_each(file_is_there)
    }

    /// Whether cards must be set before the processor starts.
    pub(crate) fn starts_paused(&self) -> bool {
        self.nics.iter().any(|nic| nic.plugged && !nic.link_up)
    }

    /// QEMU's arguments.
    pub(crate) fn arguments(&self, layout: &Layout) -> Vec<OsString> {
        let mut args = Arguments::default();
        self.board(layout, &mut args);
        self.firmware_and_kernel(layout, &mut args);
        self.channels(layout, &mut args);
        for (index, disk) in self.disks.iter().enumerate() {
            self.disk(index, disk, &mut args);
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

    /// QEMU's arguments as far as they make the guest what it is: without paths and ports of the host, and
    /// without the measured speed of its processor.
    pub(crate) fn shape(&self, accel: Accel) -> String {
        let place = |name: &str| PathBuf::from(format!("/{name}"));
        let machine = Self {
            kernel: self.kernel.as_ref().map(|_| place("kernel")),
            initrd: self.initrd.as_ref().map(|_| place("initrd")),
            disks: self.disks.iter().map(Disk::anywhere).collect(),
            ..self.clone()
        };
        let is_uefi = self.kind == MachineKind::Q35Uefi;
        let layout = Layout {
            accel,
            memory: Some((place("memory"), true)),
            console_fd: 0,
            qmp_fd: 0,
            lan_fds: vec![0; self.nics.len()],
            ports: vec![0; self.nics.iter().map(|nic| nic.forwards().len()).sum()],
            firmware: is_uefi.then(|| (place("code"), place("variables"))),
            fw_cfg_files: vec![place("file"); self.fw_cfg.len()],
            seed: self.seed.as_ref().map(|_| place("seed")),
            tpm_fd: self.tpm.as_ref().map(|_| 0),
            plugin: self.counted.then(|| "counter".to_owned()),
        };
        let words = machine.arguments(&layout);
        let words = words.iter().map(|word| word.to_string_lossy());
        let words: Vec<_> = words.map(|word| without_speed(&word)).collect();
        words.join("\n")
    }

    fn board(&self, layout: &Layout, args: &mut Arguments) {
        let accel = layout.accel.name();
        let machine = match self.kind {
            MachineKind::Microvm => {
                let acpi = if self.has_acpi() { "on" } else { "off" };
                format!("microvm,accel={accel},acpi={acpi},rtc=on")
            }
            // The firmware alone writes its variables, from a mode of the processor of its own.
            MachineKind::Q35Uefi if self.secure_boot => format!("q35,accel={accel},smm=on"),
            MachineKind::Q35 | MachineKind::Q35Uefi => format!("q35,accel={accel}"),
        };
        let machine = match &layout.memory {
            None => machine,
            Some(_) => format!("{machine},memory-backend=memory"),
        };
        args.pair("-M", machine);
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
            // PCI Express's own hot-plug needs no firmware; QEMU prefers ACPI's.
            args.pair(
                "-global",
                "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off",
            );
        }
        if self.starts_paused() {
            args.all(["-S"]);
        }
        if let Memory::Restored(_) = self.memory {
            args.pair("-incoming", "defer");
        }
        if self.counted {
            args.pair("-icount", "shift=0");
        }
        if let Some(plugin) = &layout.plugin {
            args.pair("-plugin", plugin);
        }
    }

    fn firmware_and_kernel(&self, layout: &Layout, args: &mut Arguments) {
        if self.secure_boot {
            args.pair("-global", "driver=cfi.pflash01,property=secure,value=on");
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

    /// ACPI costs a microvm some start-up time. Without it, though, a kernel that knows ACPI cannot
    /// read the firmware configuration: its driver takes ACPI's global lock first.
    fn has_acpi(&self) -> bool {
        self.kind != MachineKind::Microvm || !self.fw_cfg.is_empty()
    }

    fn hot_plugs(&self) -> bool {
        self.nics.iter().any(|nic| !nic.plugged) || self.disks.iter().any(|disk| !disk.plugged)
    }

    fn channels(&self, layout: &Layout, args: &mut Arguments) {
        args.pair(
            "-chardev",
            format!("socket,id=console,fd={}", layout.console_fd),
        );
        args.pair("-serial", "chardev:console");
        args.pair("-chardev", format!("socket,id=qmp,fd={}", layout.qmp_fd));
        args.pair("-mon", "chardev=qmp,mode=control");
    }

    fn disk(&self, index: usize, disk: &Disk, args: &mut Arguments) {
        let head = format!("if=none,id=disk{index},format=raw,discard=unmap");
        let read_only = if disk.read_only { ",readonly=on" } else { "" };
        let drive = match &disk.backing {
            // The host's page cache survives QEMU, so nothing is gained by syncing it.
            Backing::File(path) => option(&format!("{head}{read_only},cache=unsafe,file="), path),
            Backing::Snapshot(path) => {
                option(&format!("{head},snapshot=on,cache=unsafe,file="), path)
            }
            // Here the guest's flushes must arrive.
            Backing::Recorder(socket) => option(
                &format!(
                    "{head}{read_only},cache=writeback,file.driver=nbd,file.server.type=unix,file.server.path="
                ),
                socket,
            ),
        };
        args.pair("-drive", drive);
        if !disk.plugged {
            // Numbers of slots are the machine's, so they begin behind those of the cards.
            let slot = self.nics.len() + index + 1;
            args.pair(
                "-device",
                format!("pcie-root-port,id=diskslot{index},chassis={slot},slot={slot}"),
            );
            return;
        }
        let mut device = format!("{},drive=disk{index}", self.device("virtio-blk"));
        if let Some(serial) = &disk.serial {
            device.push_str(&format!(",serial={serial}"));
        }
        if self.kind != MachineKind::Microvm && self.kernel.is_none() {
            device.push_str(&format!(",bootindex={index}"));
        }
        args.pair("-device", device);
    }

    /// A FAT volume that QEMU makes of a folder.
    fn seed(&self, folder: &Path, args: &mut Arguments) {
        let head =
            format!("if=none,id=seed,driver=vvfat,floppy=on,label={SEED_LABEL},read-only=on,dir=");
        args.pair("-drive", option(&head, folder));
        args.pair(
            "-device",
            format!("{},drive=seed", self.device("virtio-blk")),
        );
    }

    fn cards(&self, layout: &Layout, args: &mut Arguments) {
        let (mut lan_fds, mut ports) = (layout.lan_fds.iter(), layout.ports.iter());
        for (index, nic) in self.nics.iter().enumerate() {
            args.pair("-netdev", netdev(index, nic, &mut lan_fds, &mut ports));
            if nic.plugged {
                args.pair("-device", self.card(index, nic));
            } else {
                let slot = index + 1;
                args.pair(
                    "-device",
                    format!("pcie-root-port,id=slot{index},chassis={slot},slot={slot}"),
                );
            }
        }
    }

    fn card(&self, index: usize, nic: &Nic) -> String {
        let rom = if self.kind == MachineKind::Microvm {
            ""
        } else {
            ",romfile="
        };
        let mac = nic.mac(index);
        format!(
            "{},id=nic{index},netdev=net{index},mac={mac}{rom}",
            self.device("virtio-net")
        )
    }

    fn fw_cfg_files(&self, layout: &Layout, args: &mut Arguments) {
        for ((name, _), path) in self.fw_cfg.iter().zip(&layout.fw_cfg_files) {
            args.pair("-fw_cfg", option(&format!("name={name},file="), path));
        }
    }

    fn watchdog(&self, args: &mut Arguments) {
        let Some(action) = self.watchdog else { return };
        args.pair("-device", "i6300esb");
        args.pair(
            "-action",
            match action {
                WatchdogAction::Poweroff => "watchdog=poweroff",
                WatchdogAction::Reset => "watchdog=reset",
            },
        );
    }

    fn device(&self, base: &str) -> String {
        let transport = if self.kind == MachineKind::Microvm {
            "device"
        } else {
            "pci"
        };
        format!("{base}-{transport}")
    }
}

fn without_speed(argument: &str) -> String {
    let is_speed = |word: &&str| word.starts_with(TSC_SPEED);
    let kept = argument.split(' ').filter(|word| !is_speed(word));
    kept.collect::<Vec<_>>().join(" ")
}

fn netdev<'a>(
    index: usize,
    nic: &Nic,
    lan_fds: &mut impl Iterator<Item = &'a i32>,
    ports: &mut impl Iterator<Item = &'a u16>,
) -> String {
    match &nic.wire {
        Wire::Lan(_) => {
            let fd = lan_fds.next().copied().unwrap_or(-1);
            format!("socket,id=net{index},fd={fd}")
        }
        Wire::User {
            ipv4,
            ipv6,
            forwards,
        } => {
            let on = |on: &bool| if *on { "on" } else { "off" };
            let mut text = format!("user,id=net{index},ipv4={},ipv6={}", on(ipv4), on(ipv6));
            for (guest, host) in forwards.iter().zip(ports) {
                for protocol in ["udp", "tcp"] {
                    text.push_str(&format!(",hostfwd={protocol}:127.0.0.1:{host}-:{guest}"));
                }
            }
            text
        }
    }
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

/// An option that ends in a path; QEMU splits at commas unless they are doubled.
fn option(head: &str, path: &Path) -> OsString {
    let mut text = OsString::from(head);
    text.push(path.to_string_lossy().replace(',', ",,"));
    text
}

#[derive(Default)]
struct Arguments(Vec<OsString>);

impl Arguments {
    fn pair(&mut self, name: &str, value: impl AsRef<OsStr>) {
        self.0.push(name.into());
        self.0.push(value.as_ref().to_owned());
    }

    fn all<const N: usize>(&mut self, values: [&str; N]) {
        self.0.extend(values.map(OsString::from));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(kind: MachineKind) -> Machine {
        Machine {
            memory_mib: 128,
            exit_on_reset: true,
            ..Machine::new(kind)
        }
    }

    fn layout() -> Layout {
        Layout {
            accel: Accel::Tcg,
            memory: None,
            console_fd: 3,
            qmp_fd: 4,
            lan_fds: vec![5],
            ports: vec![1001, 1002],
            firmware: None,
            fw_cfg_files: vec!["/x,y".into()],
            seed: None,
            tpm_fd: Some(6),
            plugin: None,
        }
    }

    fn line(machine: &Machine) -> String {
        let words = machine.arguments(&layout());
        words
            .iter()
            .map(|word| word.to_string_lossy())
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[test]
    fn microvm_uses_mmio_and_has_acpi_where_fw_cfg_needs_it() {
        let mut machine = machine(MachineKind::Microvm);
        machine.kernel = Some("/k".into());
        machine.append = "quiet".into();
        machine.fw_cfg = vec![("opt/x".into(), vec![])];
        machine.disks = vec![Disk::file("/d").read_only().serial("root")];
        machine.nics = vec![Nic::user()];
        let line = line(&machine);
        assert!(line.contains("acpi=on"), "{line}");
        assert!(
            line.contains("virtio-blk-device,drive=disk0,serial=root"),
            "{line}"
        );
        assert!(line.contains("virtio-net-device,id=nic0"), "{line}");
        assert!(line.contains("name=opt/x,file=/x,,y"), "{line}");
        machine.fw_cfg.clear();
        assert!(self::line(&machine).contains("acpi=off"));
    }

    #[test]
    fn memory_that_is_saved_is_shared_and_a_copy_is_private() {
        let mut machine = machine(MachineKind::Microvm);
        let mut layout = layout();
        layout.memory = Some(("/m".into(), true));
        let line = |machine: &Machine, layout: &Layout| {
            let words = machine.arguments(layout);
            let words = words.iter().map(|word| word.to_string_lossy());
            words.collect::<Vec<_>>().join(" ")
        };
        let saved = line(&machine, &layout);
        assert!(saved.contains("rtc=on,memory-backend=memory "), "{saved}");
        assert!(
            saved.contains("id=memory,size=128M,share=on,mem-path=/m"),
            "{saved}"
        );
        assert!(!saved.contains("-incoming"), "{saved}");
        machine.memory = Memory::Restored("/s".into());
        layout.memory = Some(("/s/memory".into(), false));
        let copy = line(&machine, &layout);
        assert!(copy.contains("share=off,mem-path=/s/memory"), "{copy}");
        assert!(copy.contains("-incoming defer"), "{copy}");
    }

    #[test]
    fn a_machine_is_described_without_the_paths_of_the_host() {
        let described = |folder: &str| {
            let at = |name: &str| PathBuf::from(format!("{folder}/{name}"));
            let mut machine = machine(MachineKind::Microvm);
            machine.kernel = Some(at("vmlinux"));
            machine.initrd = Some(at("initrd"));
            machine.append = "quiet".into();
            machine.disks = vec![Disk::file(at("a")).data(), Disk::snapshot(at("b"))];
            machine.nics = vec![Nic::user()];
            machine.tpm = Some(at("tpm"));
            machine
        };
        let one = described("/one");
        for accel in [Accel::Kvm, Accel::Tcg] {
            let shape = one.shape(accel);
            assert_eq!(shape, described("/two").shape(accel));
            assert!(
                !shape.contains("/one") && !shape.contains(TSC_SPEED),
                "{shape}"
            );
        }
        assert_ne!(one.shape(Accel::Kvm), one.shape(Accel::Tcg));
        let changes: [fn(&mut Machine); 5] = [
            |machine| machine.append.push_str(" panic=1"),
            |machine| machine.memory_mib += 1,
            |machine| machine.disks[0].read_only = true,
            |machine| machine.nics.push(Nic::user()),
            |machine| machine.fw_cfg.push(("opt/x".into(), vec![])),
        ];
        for (number, change) in changes.into_iter().enumerate() {
            let mut other = described("/one");
            change(&mut other);
            assert_ne!(other.shape(Accel::Tcg), one.shape(Accel::Tcg), "{number}");
        }
    }

    #[test]
    fn an_emulated_microvm_knows_how_fast_its_counter_runs() {
        let mut machine = machine(MachineKind::Microvm);
        machine.kernel = Some("/k".into());
        machine.append = "quiet".into();
        machine.counted = true;
        let line = line(&machine);
        assert!(
            line.contains("-append quiet tsc_early_khz=1000000"),
            "{line}"
        );
    }

    #[test]
    fn forwards_take_the_ports_in_order() {
        let mut machine = machine(MachineKind::Q35);
        machine.nics = vec![Nic::user(), Nic::user().forward(80)];
        let line = line(&machine);
        assert!(
            line.contains("udp:127.0.0.1:1001-:443,hostfwd=tcp:127.0.0.1:1001-:443"),
            "{line}"
        );
        assert!(line.contains("hostfwd=udp:127.0.0.1:1002-:443"), "{line}");
    }

    #[test]
    fn a_tpm_is_reached_over_its_descriptor() {
        let line = line(&machine(MachineKind::Q35Uefi));
        let wanted =
            "-chardev socket,id=tpm,fd=6 -tpmdev emulator,id=tpm0,chardev=tpm -device tpm-crb";
        assert!(line.contains(wanted), "{line}");
    }

    #[test]
    fn firmware_with_secure_boot_has_its_variables_for_itself() {
        let mut machine = machine(MachineKind::Q35Uefi);
        assert!(!line(&machine).contains("smm=on"));
        machine.secure_boot = true;
        let line = line(&machine);
        for wanted in ["smm=on", "property=secure,value=on", "disable_s3=1"] {
            assert!(line.contains(wanted), "{line}");
        }
    }

    #[test]
    fn a_card_for_later_gets_a_slot_only() {
        let mut machine = machine(MachineKind::Q35);
        machine.kernel = Some("/k".into());
        machine.nics = vec![Nic::user().unplugged()];
        let line = line(&machine);
        assert!(line.contains("-append pcie_ports=native"), "{line}");
        assert!(
            line.contains("pcie-root-port,id=slot0") && !line.contains("virtio-net"),
            "{line}"
        );
    }

    #[test]
    fn a_disk_for_later_has_its_drive_and_a_slot() {
        let mut machine = machine(MachineKind::Q35);
        machine.kernel = Some("/k".into());
        machine.nics = vec![Nic::user()];
        machine.disks = vec![Disk::file("/d").unplugged()];
        let line = line(&machine);
        assert!(line.contains("-append pcie_ports=native"), "{line}");
        assert!(
            line.contains("pcie-root-port,id=diskslot0,chassis=2,slot=2")
                && line.contains("id=disk0")
                && !line.contains("virtio-blk"),
            "{line}"
        );
    }

    #[test]
    fn what_a_machine_cannot_have_is_refused() {
        let mut watched = machine(MachineKind::Microvm);
        watched.watchdog = Some(WatchdogAction::Reset);
        let mut hot = machine(MachineKind::Microvm);
        hot.nics = vec![Nic::user().unplugged()];
        let mut headless = machine(MachineKind::Q35);
        headless.append = "quiet".into();
        let mut sealed = machine(MachineKind::Microvm);
        sealed.tpm = Some("/tpm".into());
        let mut kept = machine(MachineKind::Q35);
        kept.variables = Some("/vars".into());
        let mut enforcing = machine(MachineKind::Q35);
        enforcing.secure_boot = true;
        for machine in [watched, hot, headless, sealed, kept, enforcing] {
            let error = machine.check().expect_err("it cannot be built");
            assert!(matches!(error, Error::BadMachine(_)), "{error}");
        }
        let mut lost = machine(MachineKind::Q35);
        lost.kernel = Some("/nowhere/kernel".into());
        assert!(matches!(lost.check(), Err(Error::Missing { .. })));
    }
}
