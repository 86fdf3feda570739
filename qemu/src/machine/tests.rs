use super::*;
use crate::controller::{DiskController, DiskFormat};
use crate::nic::NicModel;

fn machine(kind: MachineKind) -> MachineSpec {
    MachineSpec {
        memory_mib: 128,
        exit_on_reset: true,
        ..MachineSpec::new(kind)
    }
}

fn layout() -> MachineResources {
    MachineResources {
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

fn line(machine: &MachineSpec) -> String {
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
    machine.disks = vec![VirtioDisk::file("/d").read_only().serial("root")];
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
    let line = |machine: &MachineSpec, layout: &MachineResources| {
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
    machine.memory = GuestMemory::Restored("/s".into());
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
        machine.disks = vec![
            VirtioDisk::file(at("a")).data(),
            VirtioDisk::snapshot(at("b")),
        ];
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
    let changes: [fn(&mut MachineSpec); 5] = [
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

/// On a busy host a machine whose processors each had a thread lost its timer interrupt.
#[test]
fn one_thread_emulates_the_processors_of_a_machine_that_has_several() {
    let kinds = [
        MachineKind::Microvm,
        MachineKind::Pc,
        MachineKind::Q35,
        MachineKind::Q35Uefi,
    ];
    for (kind, accel) in kinds
        .into_iter()
        .flat_map(|kind| [(kind, Accel::Kvm), (kind, Accel::Tcg)])
    {
        for (cpus, secure_boot) in [(1, false), (2, false), (8, true)] {
            let mut machine = machine(kind);
            (machine.cpus, machine.secure_boot) = (cpus, secure_boot);
            let shape = machine.shape(accel);
            let several = accel == Accel::Tcg && cpus > 1;
            let in_turns = shape.contains("\n-accel\ntcg,thread=single\n");
            assert_eq!(in_turns, several, "{shape}");
            // QEMU refuses both.
            let named = shape.contains(&format!(",accel={}", accel.name()));
            assert_eq!(named, !several, "{shape}");
            assert!(shape.contains(&format!("\n-smp\n{cpus}\n")), "{shape}");
        }
    }
}

/// QEMU would emulate the timer's alarms, 250 a second, as long as the machine runs.
#[test]
fn an_emulated_pc_of_pci_express_has_no_high_precision_event_timer() {
    for (kind, is_left_out) in [
        (MachineKind::Microvm, false),
        (MachineKind::Pc, false),
        (MachineKind::Q35, true),
        (MachineKind::Q35Uefi, true),
    ] {
        let machine = machine(kind);
        for (accel, expected) in [(Accel::Kvm, false), (Accel::Tcg, is_left_out)] {
            let shape = machine.shape(accel);
            assert_eq!(shape.contains(",hpet=off\n"), expected, "{shape}");
        }
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
    let wanted = "-chardev socket,id=tpm,fd=6 -tpmdev emulator,id=tpm0,chardev=tpm -device tpm-crb";
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
    machine.disks = vec![VirtioDisk::file("/d").unplugged()];
    let line = line(&machine);
    assert!(line.contains("-append pcie_ports=native"), "{line}");
    assert!(
        line.contains("pcie-root-port,id=diskslot0,chassis=2,slot=2")
            && line.contains("id=disk0")
            && !line.contains("virtio-blk"),
        "{line}"
    );
}

/// Firmware that tried a disk first would take its time about one without a boot sector.
#[test]
fn firmware_boots_from_the_cd_before_it_looks_at_disks() {
    for kind in [MachineKind::Pc, MachineKind::Q35, MachineKind::Q35Uefi] {
        let mut machine = machine(kind);
        machine.disks = vec![VirtioDisk::file("/d")];
        let disk = |line: &str, index: u32| {
            let wanted = format!("virtio-blk-pci,drive=disk0,bootindex={index}");
            assert!(line.contains(&wanted), "{line}");
        };
        disk(&line(&machine), 0);
        machine.cd = Some("/c,d".into());
        let line = line(&machine);
        disk(&line, 1);
        assert!(line.contains("readonly=on,file=/c,,d -device"), "{line}");
        assert!(line.contains("ide-cd,drive=cd,bootindex=0"), "{line}");
        let old = line.contains("-M pc,accel=tcg");
        assert_eq!(old, kind == MachineKind::Pc, "{line}");
    }
}

#[test]
fn a_machine_with_a_kernel_of_its_own_starts_from_no_drive() {
    let mut machine = machine(MachineKind::Pc);
    machine.disks = vec![VirtioDisk::file("/d")];
    machine.cd = Some("/c".into());
    machine.kernel = Some("/k".into());
    let line = line(&machine);
    assert!(line.contains("-device ide-cd,drive=cd"), "{line}");
    assert!(!line.contains("bootindex"), "{line}");
}

#[test]
fn a_disk_hangs_on_the_controller_and_has_the_format_that_it_was_given() {
    let mut machine = machine(MachineKind::Q35Uefi);
    for (controller, wanted) in [
        (
            DiskController::VirtioBlk,
            "-device virtio-blk-pci,drive=disk0,bootindex=0",
        ),
        (
            DiskController::VirtioScsi,
            "-device virtio-scsi-pci,id=diskhost0 -device scsi-hd,bus=diskhost0.0,drive=disk0,bootindex=0",
        ),
        (
            DiskController::Ahci,
            "-device ahci,id=diskhost0 -device ide-hd,bus=diskhost0.0,drive=disk0,bootindex=0",
        ),
        (
            DiskController::Nvme,
            "-device nvme,drive=disk0,serial=disk0,bootindex=0",
        ),
        (
            DiskController::UsbStorage,
            "-device qemu-xhci,id=diskhost0 \
             -device usb-storage,removable=on,bus=diskhost0.0,drive=disk0,bootindex=0",
        ),
    ] {
        let disk = VirtioDisk::snapshot("/d").format(DiskFormat::Vhd);
        machine.disks = vec![disk.on(controller)];
        let line = line(&machine);
        assert!(line.contains(wanted), "{controller:?}: {line}");
        let drive = "-drive if=none,id=disk0,format=vpc,discard=unmap,snapshot=on";
        assert!(line.contains(drive), "{line}");
    }
    machine.disks = vec![VirtioDisk::file("/d").on(DiskController::Nvme).data()];
    let line = line(&machine);
    assert!(line.contains("nvme,drive=disk0,serial=alk-data"), "{line}");
}

#[test]
fn a_card_is_of_the_model_that_it_was_given() {
    let mut machine = machine(MachineKind::Q35);
    for (model, device) in [
        (NicModel::Virtio, "virtio-net-pci"),
        (NicModel::E1000, "e1000"),
        (NicModel::E1000e, "e1000e"),
        (NicModel::Igb, "igb"),
        (NicModel::Vmxnet3, "vmxnet3"),
    ] {
        machine.nics = vec![Nic::user().model(model)];
        let line = line(&machine);
        let wanted = format!("-device {device},id=nic0,netdev=net0,");
        assert!(line.contains(&wanted), "{line}");
        assert!(line.contains(",romfile="), "{line}");
    }
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
    let mut slotless = machine(MachineKind::Pc);
    slotless.nics = vec![Nic::user().unplugged()];
    let mut driveless = machine(MachineKind::Microvm);
    driveless.cd = Some("/cd".into());
    let mut small = machine(MachineKind::Microvm);
    small.disks = vec![VirtioDisk::file("/d").on(DiskController::Ahci)];
    let mut carded = machine(MachineKind::Microvm);
    carded.nics = vec![Nic::user().model(NicModel::E1000e)];
    let mut plugged_later = machine(MachineKind::Q35);
    let later = VirtioDisk::file("/d").on(DiskController::Nvme);
    plugged_later.disks = vec![later.unplugged()];
    let mut card_later = machine(MachineKind::Q35);
    card_later.nics = vec![Nic::user().model(NicModel::Vmxnet3).unplugged()];
    for machine in [
        watched,
        hot,
        headless,
        sealed,
        kept,
        enforcing,
        small,
        carded,
        plugged_later,
        card_later,
        slotless,
        driveless,
    ] {
        let error = machine.check().expect_err("it cannot be built");
        assert!(matches!(error, Error::BadMachine(_)), "{error}");
    }
    let mut lost = machine(MachineKind::Q35);
    lost.kernel = Some("/nowhere/kernel".into());
    assert!(matches!(lost.check(), Err(Error::Missing { .. })));
}
