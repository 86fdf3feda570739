//! A machine that is being reset, and whose disk has no mark of it yet.

use super::*;

/// A machine that is being reset, and never gets the result of the mark. Its shutdown counts as begun, because a
/// real one starts a thread that restarts the system after 25 s, which would be this host.
fn being_reset() -> (InitMachine, tempfile::NamedTempFile) {
    let mut machine = machine();
    machine.shutdown = Some(Shutdown::new(PowerAction::Poweroff, 0));
    let disk = tempfile::NamedTempFile::new().expect("a temporary file");
    machine.vault_at = Some(disk.path().to_owned());
    machine.factory_reset(0);
    assert!(!machine.vault.is_open(), "its keys go at once");
    let reset = machine.reset.as_ref().expect("it is under way");
    assert_eq!(reset.device(), disk.path());
    (machine, disk)
}

const SILENT: &str = "the disk does not answer";
const GOES_DOWN: &str = "a factory reset: the machine goes down";

/// The disk hangs before it has the mark. After a restart the machine would come back as it was, so it waits, says
/// so, and opens nothing.
#[tokio::test]
async fn a_reset_waits_for_the_mark_of_a_disk_that_hangs() {
    let (mut machine, _disk) = being_reset();
    for (now, times) in [
        (4_999, 0),
        (5_000, 1),
        (34_999, 1),
        (35_000, 2),
        (3_600_000, 3),
    ] {
        machine.wait_for_mark(now);
        assert_eq!(
            (said(&machine, SILENT), said(&machine, GOES_DOWN)),
            (times, 0)
        );
    }
    // Events of what was under way, and of what is typed now.
    machine.waiting = Some(VaultWait::new(
        UnlockPrompt::Passphrase,
        "vault-locked",
        "locked",
        "type",
    ));
    machine.open();
    assert!(!machine.opening);
    machine.handle(MachineEvent::Unlocked(None));
    let line = Zeroizing::new("a passphrase".to_owned());
    machine.handle(MachineEvent::Answered {
        console: console(),
        input: ConsoleInput::Line(line),
    });
    assert_eq!(machine.supervisor.order(0, 0), None);
    assert!(machine.offer.passphrase.is_none());
    // The disk answers in the end, twice.
    for _ in 0..2 {
        machine.reset_marked(Ok(()), 3_600_001);
        machine.wait_for_mark(7_200_000);
        assert_eq!((said(&machine, SILENT), said(&machine, GOES_DOWN)), (3, 1));
    }
}

#[tokio::test]
async fn a_reset_tries_a_disk_again_that_refuses_the_mark() {
    let (mut machine, _disk) = being_reset();
    let refuse = |machine: &mut InitMachine, now| {
        machine.reset_marked(Err("an I/O error".to_owned()), now);
        machine.reset.as_ref().and_then(Reset::deadline)
    };
    for try_at in [2_000, 4_000, 6_000, 8_000] {
        assert_eq!(refuse(&mut machine, try_at - 2_000), Some(try_at));
        machine.wait_for_mark(try_at);
        assert_eq!(said(&machine, GOES_DOWN), 0);
        let due = machine.reset.as_ref().and_then(Reset::deadline);
        assert_eq!(due, Some(try_at + 5_000), "it is being marked");
    }
    assert_eq!(refuse(&mut machine, 8_000), None);
    assert_eq!((said(&machine, SILENT), said(&machine, GOES_DOWN)), (0, 1));
}

#[tokio::test]
async fn a_machine_that_is_switched_off_before_the_mark_says_that_it_was_not_erased() {
    let (mut machine, _disk) = being_reset();
    machine.end_wait_for_mark();
    let not_marked = "the disk is not marked; if it comes back as it was, reset it again";
    assert_eq!(said(&machine, not_marked), 1);
    machine.wait_for_mark(5_000);
    machine.reset_marked(Ok(()), 5_000);
    assert_eq!((said(&machine, SILENT), said(&machine, GOES_DOWN)), (0, 0));
    assert_eq!(said(&machine, "the next start erases it"), 1);
}
