//! Machines that already serve. Each is booted once, saved while it serves, kept in the cache, and
//! given to tests as copies, which start in a tenth of a second.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use alknet_qemu::{Error, Vm, VmBuilder};

use crate::bench::{DATA_BYTES, TestBench};
use crate::image::BuiltImageFolder;
use crate::node::{BootVariant, MachineBuilder, MachineNode};
use crate::store::SnapshotStore;

/// PID 1 prints this when the machine has its own address.
const ADDRESS: &str = "alknet: address ";

/// Longest wait for one step of making a snapshot, on a processor that runs guests natively.
const MADE_WITHIN: Duration = Duration::from_secs(30);

/// Longest wait from power-on to the kernel. Firmware alone takes long in emulation.
const FIRMWARE_WITHIN: Duration = Duration::from_secs(30);

/// How long the kernel may unpack its initial file system before it is saved. Tried again with less
/// if the host was so busy that the kernel gave up on its TPM meanwhile. Copies unpack the rest.
const UNPACKS_FOR: [Duration; 3] = [
    Duration::from_millis(1500),
    Duration::from_millis(500),
    Duration::ZERO,
];

/// The data disk in the folder of a saved machine.
const DISK: &str = "disk";

/// The state of a TPM, in its folder and in that of a machine that is set up.
const CHIP_STATE: &str = "tpm2-00.permall";

/// The identity of the node on that disk, if no machine is saved with it.
const IDENTITY: &str = "identity";

/// A serving machine on QEMU's network that was booted from a blank disk.
///
/// Tests that describe the same machine get copies of the same one. A copy and its disk belong to
/// one test, and other tests do not see its changes.
///
/// All copies have the same identity, keys and administrator, and copies of other snapshots have
/// the same administrator too. Their clocks show the time of the save, at most a day ago. The log
/// and the console have the output of the boot. No client was connected yet.
#[derive(Clone, Debug)]
#[must_use]
pub struct MachineSnapshot<'a> {
    bench: &'a TestBench,
    boot: BootVariant,
    faults: bool,
    data_bytes: u64,
    config: String,
}

impl<'a> MachineSnapshot<'a> {
    pub(crate) fn new(bench: &'a TestBench, boot: BootVariant) -> Self {
        Self {
            bench,
            boot,
            faults: false,
            data_bytes: DATA_BYTES,
            config: String::new(),
        }
    }

    /// Adds to the configuration, as [`MachineBuilder::configured`].
    pub fn configured(mut self, toml: &str) -> Self {
        self.config = format!("{}\n{toml}", self.config);
        self
    }

    /// Without a vault, as [`MachineBuilder::plain`].
    pub fn plain(self) -> Self {
        self.configured("[vault]\ninit = \"off\"")
    }

    /// Switches `node/fault` on, as [`MachineBuilder::faults`].
    pub fn faults(mut self) -> Self {
        self.faults = true;
        self
    }

    /// With a data disk of this size.
    pub fn data_bytes(mut self, bytes: u64) -> Self {
        self.data_bytes = bytes;
        self
    }

    /// A copy of the machine, which serves. Its disk belongs to the bench, and a machine that the
    /// test boots later continues with it.
    ///
    /// # Panics
    /// The machine cannot be made.
    pub fn restore(self) -> MachineNode {
        // The first caller of the disk determines its size.
        let disk = self.disk(self.bench);
        let make = |folder: &Path| self.make(folder);
        let vm = SnapshotStore::open().restore(&self.recipe(), make, |folder| {
            alknet_qemu::copy(&folder.join(DISK), &disk)?;
            let machine = self.machine(self.bench);
            machine.with(|vm| vm.restore(folder)).try_start()
        });
        MachineNode::new(vm, self.boot, self.bench.admin().clone())
    }

    /// The bench's disk after a clean power-off of a copy, and the identity of its node. One copy
    /// is ended for all tests, because its first call and its end take longer than all the rest.
    ///
    /// # Panics
    /// As [`restore`](Self::restore).
    pub fn switched_off(self) -> String {
        let disk = self.disk(self.bench);
        let recipe = format!("switched off\n{}", self.recipe());
        let make = |folder: &Path| {
            let bench = TestBench::new();
            bench.take_administrator();
            let copy = MachineSnapshot {
                bench: &bench,
                ..self.clone()
            };
            let node = copy.restore();
            let identity = node.identity().to_owned();
            node.end();
            let copied = alknet_qemu::copy(&self.disk(&bench), &folder.join(DISK));
            copied.unwrap_or_else(|error| panic!("{error}"));
            fs::write(folder.join(IDENTITY), identity).expect("the cache can be written");
        };
        SnapshotStore::open().restore(&recipe, make, |folder| {
            alknet_qemu::copy(&folder.join(DISK), &disk)?;
            let identity = fs::read_to_string(folder.join(IDENTITY));
            Ok(identity.expect("it was written with the disk"))
        })
    }

    fn machine<'b>(&self, bench: &'b TestBench) -> MachineBuilder<'b> {
        let machine = bench.machine(self.boot);
        // An empty addition would add a line, and the document would differ from that of a machine
        // booted later.
        let machine = if self.config.is_empty() {
            machine
        } else {
            machine.configured(&self.config)
        };
        if self.faults {
            machine.faults()
        } else {
            machine
        }
    }

    fn disk(&self, bench: &TestBench) -> PathBuf {
        match self.boot {
            BootVariant::UefiRaw => bench.raw(),
            BootVariant::MicrovmErofs | BootVariant::Q35Initramfs => bench.data_of(self.data_bytes),
        }
    }

    /// Boots the machine and saves it in `folder`.
    fn make(&self, folder: &Path) {
        let bench = TestBench::of_snapshots();
        let disk = self.disk(&bench);
        let machine = self.machine(&bench).with(VmBuilder::saveable);
        let node = machine.with(|vm| vm.name("snapshot")).boot();
        let vm = node.vm();
        let saved = vm
            .wait_for(ADDRESS, MADE_WITHIN)
            .and_then(|_| vm.save(folder, MADE_WITHIN));
        saved.unwrap_or_else(|error| panic!("{error}"));
        let copied = alknet_qemu::copy(&disk, &folder.join(DISK));
        copied.unwrap_or_else(|error| panic!("{error}"));
    }

    /// Everything that distinguishes this machine from others.
    fn recipe(&self) -> String {
        let Self {
            boot,
            faults,
            data_bytes,
            ..
        } = self;
        let boot = format!("{boot:?} faults={faults} data_bytes={data_bytes}");
        let image = BuiltImageFolder::get().digests(self.boot.form());
        let admin = self.bench.admin().identity();
        let machine = self.machine(self.bench).recipe();
        format!("{boot}\n{admin}\n{image}\n{}\n{machine}", self.config)
    }
}

impl TestBench {
    /// A machine that already serves, administered by the key of all snapshots.
    ///
    /// # Panics
    /// The bench has used its own key.
    pub fn snapshot(&self, boot: BootVariant) -> MachineSnapshot<'_> {
        self.take_administrator();
        MachineSnapshot::new(self, boot)
    }

    /// A bench with the data disk of a machine that was booted and switched off before. It has a
    /// vault that opens without a passphrase, and the partition is sealed. Making both takes as
    /// long as the rest of a boot. For tests that do not need a first boot.
    ///
    /// Nodes on such benches have the same identity.
    ///
    /// # Panics
    /// The machine cannot be made.
    pub fn set_up() -> Self {
        // One disk for every accelerator and processor, because its content does not depend on
        // them.
        let image = BuiltImageFolder::get().digests(BootVariant::MicrovmErofs.form());
        let recipe = format!("a data disk that is set up\n{image}");
        let make = |folder: &Path| {
            let bench = Self::new();
            bench.snapshot(BootVariant::MicrovmErofs).switched_off();
            let copied = alknet_qemu::copy(&bench.data(), &folder.join(DISK));
            copied.unwrap_or_else(|error| panic!("{error}"));
        };
        let bench = Self::new();
        let copy = |folder: &Path| alknet_qemu::copy(&folder.join(DISK), &bench.data());
        SnapshotStore::open().restore(&recipe, make, copy);
        bench
    }

    /// A bench with the UEFI disk and the TPM `own` of a machine that was switched off before, and
    /// that machine's identity. `first` boots it, on another bench, configured by `config` and by
    /// what it types. For tests that do not need a first boot. Tests with the same `config` get
    /// copies of one machine.
    ///
    /// # Panics
    /// The machine cannot be made.
    pub fn set_up_measured(
        config: &str,
        first: impl Fn(&Self, MachineBuilder<'_>) -> MachineNode,
    ) -> (Self, String) {
        let image = BuiltImageFolder::get().digests(BootVariant::UefiRaw.form());
        let recipe = format!("a measured machine that is set up\n{image}\n{config}");
        let chip = |bench: &Self| bench.path().join("own.tpm");
        let make = |folder: &Path| {
            let bench = Self::of_snapshots();
            let machine = bench.machine(BootVariant::UefiRaw).measured("own");
            let node = first(&bench, machine.after_firmware().configured(config));
            let identity = node.identity().to_owned();
            node.end();
            let kept = alknet_qemu::copy(&bench.raw(), &folder.join(DISK))
                .map_err(io::Error::other)
                .and_then(|()| {
                    let state = fs::read(chip(&bench).join(CHIP_STATE))?;
                    fs::write(folder.join(CHIP_STATE), state)?;
                    fs::write(folder.join(IDENTITY), identity)
                });
            kept.unwrap_or_else(|error| panic!("{error}"));
        };
        let bench = Self::of_snapshots();
        let copy = |folder: &Path| {
            alknet_qemu::copy(&folder.join(DISK), &bench.raw())?;
            let files = || {
                fs::create_dir(chip(&bench))?;
                let state = fs::read(folder.join(CHIP_STATE))?;
                fs::write(chip(&bench).join(CHIP_STATE), state)?;
                fs::read_to_string(folder.join(IDENTITY))
            };
            Ok(files().expect("both folders are ours"))
        };
        let identity = SnapshotStore::open().restore(&recipe, make, copy);
        (bench, identity)
    }

    /// A bench with the administrator of all snapshots.
    fn of_snapshots() -> Self {
        let bench = Self::new();
        bench.take_administrator();
        bench
    }

    /// Copies the administrator's key from the cache. The first test that needs it creates it.
    fn take_administrator(&self) {
        let (from, to) = (SnapshotStore::open().administrator(), self.admin().state());
        let key = |state: &Path| state.join("identity.key");
        if let Ok(own) = fs::read(key(to)) {
            let known = fs::read(key(&from)).expect("the administrator has a key");
            assert!(own == known, "the bench has used a key of its own");
            return;
        }
        let copy = || {
            fs::create_dir_all(to)?;
            fs::set_permissions(to, fs::metadata(&from)?.permissions())?;
            fs::copy(key(&from), key(to))
        };
        copy().expect("the folder is ours");
    }
}

/// The point of the boot at which a machine was saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotPoint {
    /// Firmware is about to boot, but has not read what it will start.
    ReadyToBoot,
    /// Firmware has handed over to the kernel, which has not looked for its devices yet.
    Kernel,
}

impl SnapshotPoint {
    /// Brings a machine there and saves it in `folder`.
    fn save<'a>(self, machine: impl Fn() -> MachineBuilder<'a>, folder: &Path) {
        let mut tries = UNPACKS_FOR.into_iter().peekable();
        while let Some(meanwhile) = tries.next() {
            let machine = machine().with(VmBuilder::saveable);
            let vm = machine.with(|vm| vm.name("firmware")).start();
            let stopped = match self {
                Self::ReadyToBoot => vm.wait_ready_to_boot(FIRMWARE_WITHIN),
                Self::Kernel => vm.wait_kernel(FIRMWARE_WITHIN, meanwhile),
            };
            match stopped.and_then(|()| vm.save(folder, MADE_WITHIN)) {
                Ok(()) => return,
                Err(error) => match too_late(&error) {
                    Some(why) if tries.peek().is_some() => {
                        alknet_test_support::started_again("firmware", why);
                    }
                    _ => panic!("{error}"),
                },
            }
        }
    }
}

/// Why a machine was stopped too late, if that was the error. No other error is a reason to try
/// again.
fn too_late(error: &Error) -> Option<&str> {
    match error {
        Error::TooLate(why) => Some(why),
        _ => None,
    }
}

/// Starts `vm` at the point that a machine with the shipped image and new variables reached.
pub(crate) fn after(point: SnapshotPoint, boot: BootVariant, measured: bool, vm: &VmBuilder) -> Vm {
    let bench = TestBench::new();
    let machine = || {
        let machine = bench.machine(boot);
        if measured {
            machine.measured("chip")
        } else {
            machine
        }
    };
    let image = BuiltImageFolder::get().digests(boot.form());
    let built = machine().with(VmBuilder::saveable).recipe();
    let recipe = format!("{boot:?} measured={measured} at {point:?}\n{image}\n{built}");
    let make = |folder: &Path| point.save(machine, folder);
    SnapshotStore::open().restore(&recipe, make, |folder| vm.clone().restore(folder).start())
}

impl TestBench {
    /// Runs the firmware of a machine once, for machines of this test that are built the same. They
    /// are [`resumed`](MachineBuilder::resumed) from the returned folder. The test should not use
    /// its TPM further.
    ///
    /// # Panics
    /// The machine does not reach that point, or the temporary directory cannot be written.
    pub fn record<'a>(
        &'a self,
        name: &str,
        point: SnapshotPoint,
        machine: impl Fn() -> MachineBuilder<'a>,
    ) -> PathBuf {
        let folder = self.path().join(name);
        fs::create_dir(&folder).expect("the folder is ours");
        point.save(machine, &folder);
        folder
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn firmware_is_recorded_again_where_it_came_too_far_and_for_nothing_else() {
        let late = Error::TooLate("the kernel ran on".to_owned());
        assert_eq!(too_late(&late), Some("the kernel ran on"));
        // Errors of a machine that cannot be saved, and of one that cannot be built.
        let bad = Error::BadMachine("QEMU did not save it".to_owned());
        assert_eq!(too_late(&bad), None);
        assert_eq!(too_late(&Error::NoCounter(String::new())), None);
    }
}
