//! Copies of a machine that was saved while it ran.

use std::fs;
use std::path::PathBuf;

use alknet_qemu::{ConsoleMark, Error, VirtioDisk, Vm};

use super::{FIRST_SECTOR, LIMIT, QemuBench, sector};

/// A bench, and the folder of a machine on it that printed `a-ha` and wrote one sector.
fn saved() -> (QemuBench, PathBuf) {
    let bench = QemuBench::new();
    let folder = bench.dir.path().join("saved");
    fs::create_dir(&folder).expect("the directory is ours");
    let disk = VirtioDisk::file(bench.disk());
    let vm = bench.machine().saveable().disk(disk).start();
    let vm = vm.expect("QEMU is installed");
    vm.wait_for("ready", LIMIT).expect("the guest boots");
    vm.console().send("a-ha").expect("the console is open");
    vm.wait_for("a-ha", LIMIT).expect("the guest echoes");
    writes(&vm, 1);
    vm.save(&folder, LIMIT).expect("QEMU saves it");
    (bench, folder)
}

/// Makes the guest write `sectors` sectors. It counts in its memory which one is next.
fn writes(vm: &Vm, sectors: usize) {
    for _ in 0..sectors {
        let mark = vm.console().mark();
        vm.console().send("w").expect("the console is open");
        vm.wait_for_after(mark, "wrote", LIMIT)
            .expect("the guest writes");
    }
}

#[test]
fn copies_go_on_where_the_machine_stood_and_apart_from_each_other() {
    let (bench, folder) = saved();
    let copy = |name: &str| {
        let disk = bench.dir.path().join(name);
        alknet_qemu::copy(&bench.disk(), &disk).expect("the directory is ours");
        let machine = bench.machine().restore(&folder);
        let vm = machine.disk(VirtioDisk::file(&disk)).start();
        (vm.expect("QEMU reads what it saved"), disk)
    };
    let memory = fs::read(folder.join("memory")).expect("it is a file");
    // Two at the same time, and a third when one of them has ended.
    let ((one, first), (two, second)) = (copy("one"), copy("two"));
    for vm in [&one, &two] {
        let said = vm.console().text();
        assert!(said.contains("ready") && said.contains("a-ha"), "{said}");
        assert!(!said.contains("then"), "{said}");
        let before = vm.wait_for("a-ha", LIMIT);
        assert!(before.is_ok(), "what was said before counts as said");
    }
    one.console().send("then").expect("the console is open");
    one.wait_for("then", LIMIT).expect("the guest echoes");
    writes(&one, 3);
    writes(&two, 1);
    drop(one);
    let (three, third) = copy("three");
    writes(&three, 2);
    drop((two, three));
    for (disk, sectors) in [(&first, 4), (&second, 2), (&third, 3)] {
        let written = (0..8).map(|n| sector(disk, FIRST_SECTOR + n));
        let written = written.take_while(|sector| sector.iter().any(|byte| *byte != 0));
        assert_eq!(written.count(), sectors, "{}", disk.display());
    }
    let after = fs::read(folder.join("memory")).expect("it is a file");
    assert!(memory == after, "a copy wrote to what was saved");
}

#[test]
fn only_a_machine_that_was_built_for_it_is_saved() {
    let bench = QemuBench::new();
    let vm = bench.boot();
    let folder = bench.dir.path().join("saved");
    let error = vm.save(&folder, LIMIT).expect_err("it has no file");
    assert!(matches!(error, Error::BadMachine(_)), "{error}");
    // The machine goes on.
    vm.console().send("still").expect("the console is open");
    let echoed = vm.wait_for_after(ConsoleMark::default(), "still", LIMIT);
    echoed.expect("the guest echoes");
}

#[test]
fn an_error_of_qemu_about_a_device_is_quoted() {
    let (bench, folder) = saved();
    fs::write(folder.join("devices"), b"nothing of QEMU's").expect("the directory is ours");
    let machine = bench.machine().restore(&folder);
    let refused = machine.disk(VirtioDisk::file(bench.disk())).start();
    let error = refused.expect_err("it is damaged");
    assert!(
        matches!(&error, Error::NotStarted { stderr, .. } if stderr.contains("igration")),
        "{error}"
    );
}
