//! The harness against real machines. The guest is one boot sector, so that nothing needs to be
//! built: it prints `ready`, echoes what is typed, and obeys `w` (write a sector), `o` (power off)
//! and `r` (reset).

mod snapshot;

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use alknet_qemu::{
    Accel, ConsoleMark, DhcpLease, DiskController, DiskFormat, DiskRecorder, Error, Lan, LanEvent,
    LanSettings, MachineKind, Nic, NicModel, VirtioDisk, Vm, VmBuilder, blank,
};
use alknet_test_support::eventually;

/// The guest, assembled from `tests/guest.s`.
const GUEST: [u8; 133] = *include_bytes!("../guest.bin");

/// The first sector that the guest writes. Each write goes one further.
const FIRST_SECTOR: usize = 8;

const LIMIT: Duration = Duration::from_secs(10);

/// The file in which swtpm stores the memory of a chip.
const TPM_MEMORY: &str = "tpm2-00.permall";

struct QemuBench {
    dir: tempfile::TempDir,
}

impl QemuBench {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("the temporary directory is writable");
        let bench = Self { dir };
        let mut sector = [0; 512];
        sector[..GUEST.len()].copy_from_slice(&GUEST);
        sector[510..].copy_from_slice(&[0x55, 0xaa]);
        blank(&bench.disk(), 1 << 20).expect("the directory is ours");
        let file = fs::File::options()
            .write(true)
            .open(bench.disk())
            .expect("just made");
        std::os::unix::fs::FileExt::write_all_at(&file, &sector, 0).expect("just made");
        bench
    }

    fn disk(&self) -> PathBuf {
        self.dir.path().join("disk")
    }

    fn machine(&self) -> VmBuilder {
        Vm::builder(MachineKind::Q35)
            .memory_mib(32)
            .accel(Accel::Tcg)
    }

    fn boot(&self) -> Vm {
        let vm = self
            .machine()
            .disk(VirtioDisk::file(self.disk()))
            .start()
            .expect("QEMU is installed");
        vm.wait_for("ready", LIMIT).expect("the guest boots");
        vm
    }
}

fn sector(image: &Path, number: usize) -> Vec<u8> {
    let bytes = fs::read(image).expect("the image is there");
    bytes[number * 512..(number + 1) * 512].to_vec()
}

#[test]
fn a_tpm_goes_from_one_machine_to_the_next() {
    let bench = QemuBench::new();
    let folder = bench.dir.path().join("chip");
    let start = || {
        let vm = bench
            .machine()
            .disk(VirtioDisk::file(bench.disk()))
            .tpm(&folder)
            .start()
            .expect("QEMU and swtpm are installed");
        vm.wait_for("ready", LIMIT).expect("the guest boots");
        vm
    };
    let mut vm = start();
    let memory = fs::read(folder.join(TPM_MEMORY)).expect("a new chip was made");
    vm.cut_power().expect("it runs");
    // The first one has ended, so its folder is free.
    let second = start();
    drop(vm);
    drop(second);
    let again = fs::read(folder.join(TPM_MEMORY)).expect("it is still there");
    assert!(!memory.is_empty() && !again.is_empty());
    drop(start());
}

#[test]
fn the_guest_answers_on_the_console_and_powers_off() {
    let bench = QemuBench::new();
    let mut vm = bench.boot();
    vm.console().send("hi!").expect("the console is open");
    vm.wait_for("hi!", LIMIT).expect("the guest echoes");
    let line = vm.wait_line("ready", LIMIT).expect("the guest boots");
    assert!(
        !line.cpu.is_zero() && Some(line.cpu) <= vm.cpu_time(),
        "{line:?}"
    );
    assert!(vm.resident_bytes().is_some_and(|bytes| bytes > 1 << 20));
    vm.console().send("o").expect("the console is open");
    let exit = vm.wait_exit(LIMIT).expect("the guest powers off");
    assert_eq!(exit.reason(), Some("guest-shutdown"), "{exit}");
    assert!(exit.status.success());
}

#[test]
fn a_reset_boots_again_or_ends_as_asked() {
    let bench = QemuBench::new();
    let vm = bench.boot();
    let mark = vm.console().mark();
    vm.console().send("r").expect("the console is open");
    vm.wait_for_after(mark, "ready", LIMIT)
        .expect("the guest boots again");
    drop(vm);
    let once = bench
        .machine()
        .disk(VirtioDisk::snapshot(bench.disk()))
        .exit_on_reset()
        .start();
    let mut once = once.expect("QEMU is installed");
    once.wait_for("ready", LIMIT).expect("the guest boots");
    once.reset_button().expect("QEMU obeys");
    let exit = once.wait_exit(LIMIT).expect("a reset ends it");
    assert!(
        exit.reason().is_some_and(|reason| reason.contains("reset")),
        "{exit}"
    );
}

#[test]
fn waiting_for_what_is_not_said_quotes_the_console() {
    let bench = QemuBench::new();
    let mut vm = bench.boot();
    let error = vm
        .wait_for("never", Duration::ZERO)
        .expect_err("it is not said");
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    assert!(error.to_string().contains("ready"), "{error}");
    vm.cut_power().expect("QEMU can be killed");
    let error = vm
        .wait_for_after(ConsoleMark::default(), "never", LIMIT)
        .expect_err("it ended");
    assert!(matches!(error, Error::Ended { .. }), "{error}");
}

#[test]
fn a_machine_is_gone_with_its_owner() {
    let bench = QemuBench::new();
    let vm = bench.boot();
    let (pid, scratch) = (vm.pid(), vm.scratch().to_owned());
    assert!(scratch.exists());
    drop(vm);
    assert!(!scratch.exists());
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
}

#[test]
fn a_refusal_of_qemu_is_quoted() {
    let bench = QemuBench::new();
    let error = bench
        .machine()
        .argument("-no-such-option")
        .start()
        .expect_err("it is refused");
    assert!(
        matches!(&error, Error::NotStarted { stderr, .. } if stderr.contains("no-such-option"))
    );
    let error = bench
        .machine()
        .disk(VirtioDisk::file("/nowhere"))
        .start()
        .expect_err("it is not there");
    assert!(matches!(error, Error::Missing { .. }), "{error}");
}

#[test]
fn every_card_gets_ports_of_its_own_and_obeys() {
    let bench = QemuBench::new();
    let builder = bench.machine().disk(VirtioDisk::snapshot(bench.disk()));
    let builder = builder
        .nic(Nic::user().forward(80).link_down())
        .nic(Nic::user().unplugged());
    let vm = builder.start().expect("QEMU is installed");
    let mut ports: Vec<u16> = vm
        .forwards()
        .iter()
        .map(|forward| forward.host.port())
        .collect();
    ports.sort_unstable();
    ports.dedup();
    assert_eq!(ports.len(), 3, "{:?}", vm.forwards());
    assert_eq!(vm.address(), Some(vm.forwards()[0].host));
    vm.set_link(0, true).expect("the first card is there");
    let error = vm.set_link(1, true).expect_err("the second is not");
    assert!(matches!(error, Error::Qmp { .. }), "{error}");
    vm.wait_for("ready", LIMIT).expect("the guest boots");
    vm.plug(1).expect("its slot is there");
    vm.set_link(1, false).expect("now it is there");
}

#[test]
fn instructions_are_counted() {
    let bench = QemuBench::new();
    let builder = bench
        .machine()
        .disk(VirtioDisk::snapshot(bench.disk()))
        .count_instructions();
    let vm = builder
        .start()
        .expect("QEMU and a C compiler are installed");
    vm.wait_for("ready", LIMIT).expect("the guest boots");
    let line = vm.wait_line("ready", LIMIT).expect("the guest boots");
    let counted = line.instructions.expect("it is counted");
    assert!(
        counted > 1_000_000,
        "SeaBIOS alone needs more than {counted}"
    );
    vm.console().send("!").expect("the console is open");
    vm.wait_for("!", LIMIT).expect("the guest echoes");
    // A processor passes its number on when it has nothing to do, which may be after the echo.
    eventually("an echo takes instructions", LIMIT, || {
        (vm.instructions() > Some(counted)).then_some(())
    });
}

/// SeaBIOS knows each of the controllers, and QEMU each of the formats.
#[test]
fn a_machine_starts_from_each_controller_and_each_format() {
    let bench = QemuBench::new();
    for (controller, format, model) in [
        (DiskController::VirtioBlk, DiskFormat::Raw, NicModel::Virtio),
        (
            DiskController::VirtioScsi,
            DiskFormat::Qcow2,
            NicModel::E1000,
        ),
        (DiskController::Ahci, DiskFormat::Vmdk, NicModel::Vmxnet3),
        (DiskController::Nvme, DiskFormat::Vhdx, NicModel::E1000e),
        (DiskController::UsbStorage, DiskFormat::Vhd, NicModel::E1000),
    ] {
        let image = bench.dir.path().join(format.driver());
        let mut convert = Command::new("qemu-img");
        convert.args(["convert", "-f", "raw", "-O", format.driver()]);
        let done = convert.arg(bench.disk()).arg(&image).status();
        assert!(done.expect("qemu-utils is installed").success());
        let disk = VirtioDisk::snapshot(&image).format(format);
        let machine = bench.machine().disk(disk.on(controller));
        let machine = machine.nic(Nic::user().model(model)).start();
        let vm = machine.unwrap_or_else(|error| panic!("{controller:?}, {format:?}: {error}"));
        let ready = vm.wait_for("ready", LIMIT);
        ready.unwrap_or_else(|error| panic!("{controller:?}, {format:?}: {error}"));
    }
}

#[test]
fn qemu_says_which_cards_it_has() {
    let is_emulated = |model: NicModel| model.is_emulated().expect("QEMU is installed");
    assert!(is_emulated(NicModel::Virtio) && is_emulated(NicModel::Vmxnet3));
    // Debian 12 has QEMU 7.2, and the card came with 8.0.
    let version = alknet_qemu::version().expect("QEMU is installed");
    let is_old = version.contains("version 7.");
    assert_eq!(is_emulated(NicModel::Igb), !is_old, "{version}");
}

#[test]
fn what_the_guest_writes_is_recorded_and_may_be_lost() {
    let bench = QemuBench::new();
    let recorder = DiskRecorder::serve(&bench.disk()).expect("the disk is there");
    let vm = bench
        .machine()
        .disk(VirtioDisk::recorded(&recorder))
        .start()
        .expect("QEMU is installed");
    vm.wait_for("ready", LIMIT).expect("the guest boots");
    let mut mark = vm.console().mark();
    for _ in 0..4 {
        vm.console().send("w").expect("the console is open");
        mark = vm
            .wait_for_after(mark, "wrote", LIMIT)
            .expect("the guest writes");
    }
    drop(vm);
    let recording = recorder.recording();
    assert_eq!((recording.bytes(), recording.is_empty()), (4 * 512, false));
    let image = bench.dir.path().join("cut");
    let left = |at, seed| {
        recording
            .cut(at, seed, &image)
            .expect("the directory is ours");
        let written = (0..4).map(|n| sector(&image, FIRST_SECTOR + n));
        written
            .take_while(|sector| sector.iter().any(|byte| *byte != 0))
            .count()
    };
    for seed in 0..20 {
        // SeaBIOS does not know flushes, so QEMU makes each write durable before it answers.
        assert_eq!(left(recording.len(), seed), 4, "seed {seed}");
        assert!(left(1, seed) <= 2, "seed {seed}");
    }
    assert!(
        (0..20).any(|seed| left(0, seed) == 0),
        "the write under way may be lost"
    );
    assert_eq!(
        sector(&bench.disk(), FIRST_SECTOR),
        vec![0; 512],
        "the base is untouched"
    );
}

#[test]
fn a_foreign_client_gets_an_address_on_our_network() {
    let address = Ipv4Addr::new(10, 9, 0, 20);
    let dhcp4 = Some(DhcpLease::for_address(address));
    let lan = Lan::new(LanSettings {
        dhcp4,
        ..LanSettings::default()
    });
    // The card brings the boot program of the package ipxe-qemu, which speaks DHCP.
    let card = "virtio-net-pci,netdev=net0,bootindex=0";
    let builder = QemuBench::new()
        .machine()
        .memory_mib(64)
        .nic(Nic::lan(&lan).unplugged());
    let vm = builder
        .argument("-device")
        .argument(card)
        .start()
        .expect("QEMU is installed");
    let given = lan.wait_event(LanEvent::Given(address), 0, vm.scale(LIMIT));
    assert!(given, "{:?}", lan.events());
    let own = lan.wait_neighbour(|address| address.is_ipv6(), vm.scale(LIMIT));
    assert!(own.is_some(), "it makes an address of its own");
}
