//! The programs that start now and next.

use std::os::unix::fs::symlink;

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
        assert_eq!(found.started, b"runs");
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
