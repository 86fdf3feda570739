//! The programs that start now and next.

use std::os::unix::fs::symlink;

use alknet_boot_state::BootSlot;

use super::*;

fn refused(machine: &DirectoryMachine) -> String {
    let refused = programs(&machine.paths, &machine.volumes);
    refused.expect_err("no update is there").to_string()
}

#[test]
fn the_next_program_is_of_a_medium_or_of_the_boot_partition() {
    let mut machine = DirectoryMachine::new();
    assert!(refused(&machine).contains("no alknet-next.efi"));
    machine.disk("vda2", fat16_volume("ALKESP", None), &[]);
    machine.disk("vdb", fat16_volume("OTHER", None), &[(NEXT, "not ours")]);
    assert!(refused(&machine).contains("no alknet-next.efi"));
    let boot = machine.root.path().join("content-vda2");
    fs::write(boot.join(NEXT), "of the partition").expect(FILE);
    assert!(refused(&machine).contains("no EFI/BOOT/"));
    let name = if cfg!(target_arch = "aarch64") {
        "BOOTAA64.EFI"
    } else {
        "BOOTX64.EFI"
    };
    let started = boot.join("EFI/BOOT").join(name);
    fs::create_dir_all(boot.join("EFI/BOOT")).expect(FILE);
    fs::write(&started, "runs").expect(FILE);
    let of = |machine: &DirectoryMachine| {
        let found = programs(&machine.paths, &machine.volumes).expect("both are there");
        assert_eq!((found.started, found.loader), (b"runs".to_vec(), None));
        (found.next_from, found.next)
    };
    assert_eq!(
        of(&machine),
        ("vda2".to_owned(), b"of the partition".to_vec())
    );
    machine.disk(
        "vdc",
        fat16_volume("CIDATA", None),
        &[(NEXT, "of a medium")],
    );
    // A thief's medium does not replace the owner's program.
    let both = refused(&machine);
    assert!(both.contains("on vdc and vda2"), "{both}");
    fs::remove_file(boot.join(NEXT)).expect(FILE);
    assert_eq!(of(&machine), ("vdc".to_owned(), b"of a medium".to_vec()));

    // A sparse file, which is not read.
    let long = fs::File::create(&started).expect(FILE);
    long.set_len(PROGRAM_BYTES_MAX + 1).expect(FILE);
    assert!(refused(&machine).contains("more than 89478485 bytes"));
    fs::remove_file(&started).expect(FILE);
    symlink(boot.join("elsewhere"), &started).expect(FILE);
    assert!(refused(&machine).contains("cannot be read"));
    fs::remove_file(&started).expect(FILE);
    fs::create_dir(&started).expect(FILE);
    assert!(refused(&machine).contains("no regular file"));
}

/// What the stub says of the program that firmware started.
fn stub_says(machine: &DirectoryMachine, name: &str, path: &str) {
    variable_says(machine, name, path, [6, 0, 0, 0]);
}

fn variable_says(machine: &DirectoryMachine, name: &str, path: &str, attributes: [u8; 4]) {
    let folder = machine.paths.efi.join("efivars");
    fs::create_dir_all(&folder).expect(FILE);
    let units = path.encode_utf16().chain([0]).flat_map(u16::to_le_bytes);
    let value: Vec<u8> = attributes.into_iter().chain(units).collect();
    let file = format!("{name}-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f");
    fs::write(folder.join(file), value).expect(FILE);
}

#[test]
fn firmware_names_the_slot_that_runs_and_without_it_grub_does() {
    let machine = DirectoryMachine::new();
    let slot = || running_slot(&machine.paths);
    assert_eq!(slot(), None);
    let grub = |line| fs::write(&machine.paths.command_line, line).expect(FILE);
    grub("BOOT_IMAGE=(uki)2+2 alknet.slot=b quiet\n");
    assert_eq!(slot(), Some(BootSlot::B));
    grub("alknet.slot=c quiet\n");
    assert_eq!(slot(), None);
    // Under UEFI a boot entry can have any words.
    grub("alknet.slot=b\n");
    fs::create_dir(&machine.paths.efi).expect(FILE);
    assert_eq!(slot(), None);
    for (path, expected) in [
        (r"\EFI\ALKNET\A.EFI", Some(BootSlot::A)),
        (r"\efi\alknet\b.efi", Some(BootSlot::B)),
        (r"\EFI\BOOT\BOOTX64.EFI", None),
        (r"\OTHER\EFI\ALKNET\A.EFI", None),
    ] {
        stub_says(&machine, "LoaderImageIdentifier", path);
        assert_eq!(slot(), expected, "{path}");
    }
    // What the stub says itself counts before what a loader may have set.
    stub_says(&machine, "StubImageIdentifier", r"\EFI\ALKNET\A.EFI");
    assert_eq!(slot(), Some(BootSlot::A));
    // A variable that outlives a start was not written by the stub of this one.
    let stays = [7, 0, 0, 0];
    for name in ["StubImageIdentifier", "LoaderImageIdentifier"] {
        variable_says(&machine, name, r"\EFI\ALKNET\B.EFI", stays);
    }
    assert_eq!(slot(), None);
}

/// PCR 4 counts the loader and the program that runs, which need not be the one of the first slot.
#[test]
fn the_program_is_that_of_the_slot_that_runs() {
    let mut machine = DirectoryMachine::new();
    machine.disk("vda2", fat16_volume("ALKESP", None), &[(NEXT, "next")]);
    let boot = machine.root.path().join("content-vda2");
    for folder in ["EFI/ALKNET", "EFI/BOOT"] {
        fs::create_dir_all(boot.join(folder)).expect(FILE);
    }
    fs::write(boot.join("EFI/ALKNET/A.EFI"), "first").expect(FILE);
    stub_says(&machine, "StubImageIdentifier", r"\EFI\ALKNET\B.EFI");
    assert!(refused(&machine).contains("no EFI/ALKNET/B.EFI"));
    fs::write(boot.join("EFI/ALKNET/B.EFI"), "second").expect(FILE);
    // Without the loader the prediction would be of another start.
    assert!(refused(&machine).contains("no EFI/BOOT/"));
    let name = if cfg!(target_arch = "aarch64") {
        "BOOTAA64.EFI"
    } else {
        "BOOTX64.EFI"
    };
    fs::write(boot.join("EFI/BOOT").join(name), "loader").expect(FILE);
    let found = programs(&machine.paths, &machine.volumes).expect("all are there");
    assert_eq!(found.loader.as_deref(), Some(&b"loader"[..]));
    assert_eq!(
        (found.started, found.next),
        (b"second".to_vec(), b"next".to_vec())
    );
}
