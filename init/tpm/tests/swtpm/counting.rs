//! The counter only rises, whatever an attacker does to it.

use alknet_tpm::TpmError;

use crate::machine::SwtpmMachine;

const HANDLE: &str = "0x180414c";

#[test]
fn it_rises_over_resets_and_removal() {
    let mut machine = SwtpmMachine::new();
    let mut tpm = machine.tpm();
    assert_eq!(tpm.counter().expect("readable"), None);
    let missing = tpm.advance_counter();
    assert!(
        matches!(missing, Err(TpmError::CounterMissing)),
        "{missing:?}"
    );
    let first = tpm.make_counter().expect("a counter");
    assert_eq!(tpm.make_counter().expect("is there"), first);
    let second = tpm.advance_counter().expect("a counter");
    assert_eq!(second, first + 1);
    drop(tpm);
    machine.assert_clean();
    machine.reset();
    assert_eq!(machine.tpm().counter().expect("readable"), Some(second));

    let mut tpm = machine.tpm();
    tpm.remove_counter().expect("removed");
    tpm.remove_counter().expect("nothing to remove");
    assert_eq!(tpm.counter().expect("readable"), None);
    assert!(tpm.make_counter().expect("a counter") > second);
}

/// An attacker copies disks before a factory reset, one of them when its note was written and the
/// counter had not risen.
#[test]
fn it_outruns_every_note_once_and_again() {
    let mut machine = SwtpmMachine::new();
    let mut tpm = machine.tpm();
    tpm.outrun_notes().expect("nothing to outrun");
    assert_eq!(tpm.counter().expect("readable"), None, "none is made");
    let noted = tpm.make_counter().expect("a counter") + 1;
    tpm.outrun_notes().expect("it rises");
    let count = tpm.counter().expect("readable").expect("a counter");
    assert!(count > noted, "{count}, {noted}");
    // The power fails, so the next start does it again.
    drop(tpm);
    machine.reset();
    machine.tpm().outrun_notes().expect("it rises");
    assert_eq!(machine.tpm().counter().expect("readable"), Some(count + 2));
}

#[test]
fn others_read_it_and_it_cannot_be_set() {
    let machine = SwtpmMachine::new();
    let value = machine.tpm().make_counter().expect("a counter");
    let read = machine.tool("tpm2_nvread", &[HANDLE, "--print-yaml"]);
    assert!(read.contains(&format!("counter: {value}")), "{read}");
    std::fs::write(machine.path("zero"), [0; 8]).expect("a writable directory");
    let set = machine.try_tool("tpm2_nvwrite", &[HANDLE, "-C", HANDLE, "-i", "zero"]);
    assert!(!set.status.success());
    assert_eq!(machine.tpm().counter().expect("readable"), Some(value));
}

#[test]
fn one_that_was_made_but_never_raised_gets_its_first_value() {
    let machine = SwtpmMachine::new();
    let attributes = "authread|authwrite|no_da|nt=counter";
    machine.tool("tpm2_nvdefine", &[HANDLE, "-C", "o", "-a", attributes]);
    assert!(machine.tpm().counter().expect("readable").is_some());
}

#[test]
fn foreign_nv_indices_are_left_alone() {
    let machine = SwtpmMachine::new();
    machine.tool(
        "tpm2_nvdefine",
        &[
            HANDLE,
            "-C",
            "o",
            "-s",
            "8",
            "-a",
            "ownerread|ownerwrite|authread|authwrite",
        ],
    );
    let mut tpm = machine.tpm();
    for refused in [
        tpm.counter().map(|_| ()),
        tpm.make_counter().map(|_| ()),
        tpm.advance_counter().map(|_| ()),
        tpm.remove_counter(),
    ] {
        assert!(
            matches!(refused, Err(TpmError::CounterForeign(_))),
            "{refused:?}"
        );
    }
    tpm.outrun_notes().expect("it is not ours");
    drop(tpm);
    machine.assert_clean();
}
