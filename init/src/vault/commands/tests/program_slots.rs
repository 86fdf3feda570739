//! Slots of the TPM for the programs of updates: what their removal leaves, also if the power fails in it.

use alknet_tpm::predict::MeasuredImage;
use alknet_vault::slots::{Kek, SlotParams, Tpm2Params};

use super::*;

/// PCR 11 of the program that runs, and of the one before the update.
const RUNNING: u8 = 1;
const BEFORE: u8 = 2;

/// A program by the bytes of its PCR 11.
fn image(pcr_11: u8) -> MeasuredImage {
    MeasuredImage::from_digests([[pcr_11; 32], [8; 32], [9; 32]])
}

impl CommandMachine {
    /// A machine whose vault opens unattended, and also has a slot of the TPM for each of these programs.
    fn with_programs(programs: &[u8]) -> Self {
        let mut open = vault();
        for program in programs {
            let params = Tpm2Params::new(vec![1], vec![2], vec![11], [3; 32], false);
            let params = params.and_then(|params| params.with_values(vec![[*program; 32]]));
            let kek = Kek::copy_of(&[4; 32]);
            let slot = NewSlot::Tpm2(params.expect("within bounds"), &kek);
            open.add(slot).expect("there is room");
        }
        Self::with_vault(&open)
    }

    /// The machine after a power cut. Its start writes the newest copy of the vault over the other one, and opens it.
    fn restart(self) -> Self {
        let mut copies = data::copies(&self.device());
        let found = copies.load().expect("readable").expect("a vault");
        let open = found.open(&mut UnlockKey::Stored);
        let open = open.expect("its key lies beside it");
        copies.save(&open).expect("written");
        let vault = VaultHandle::new().expect("memory");
        vault.admit(&open).expect("it has a place");
        Self { vault, ..self }
    }

    /// Removes the slots of `program`, for which those of `keep` have to stay.
    fn remove_slots(&self, program: u8, keep: u8) -> Result<usize, String> {
        self.with_context(|place| remove_program_slots(place, &image(program), &image(keep)))
    }

    /// The programs for which both copies of the vault have a slot of the TPM.
    fn programs(&self) -> Vec<u8> {
        let found = data::copies(&self.device()).load();
        let found = found.expect("readable").expect("a vault");
        assert!(found.other.is_none() && found.damaged.is_none());
        let slots = found.newest.slots().iter();
        let programs = slots.filter_map(|slot| match slot.params() {
            SlotParams::Tpm2(params) => Some(params.values()[0][0]),
            _ => None,
        });
        programs.collect()
    }
}

/// The TPM would open the vault for no program that starts.
#[test]
fn without_a_slot_for_what_runs_no_slot_is_removed() {
    for (programs, program, keep) in [
        (&[BEFORE][..], BEFORE, RUNNING),
        (&[RUNNING], BEFORE, RUNNING),
        (&[RUNNING], RUNNING, RUNNING),
        (&[], BEFORE, RUNNING),
    ] {
        let machine = CommandMachine::with_programs(programs);
        let removed = machine.remove_slots(program, keep);
        assert_eq!(removed, Ok(0), "{programs:?}");
        assert_eq!(machine.programs(), programs);
    }
}

#[test]
fn a_locked_vault_keeps_the_slots_of_both_programs() {
    let machine = CommandMachine::with_programs(&[BEFORE, RUNNING]);
    machine.vault.lock();
    let refused = machine.remove_slots(BEFORE, RUNNING);
    assert_eq!(refused, Err(LOCKED.to_owned()));
    assert_eq!(machine.programs(), [BEFORE, RUNNING]);
}

/// The removal writes both copies of the vault. The power fails before it, within a write, or between them.
#[test]
fn a_removal_that_a_power_cut_ended_is_completed_after_the_next_start() {
    let mut machine = CommandMachine::with_programs(&[BEFORE, RUNNING]);
    let old = machine.copy_at(VAULT_A_AT);
    assert_eq!(machine.remove_slots(BEFORE, RUNNING), Ok(1));
    assert_eq!(machine.programs(), [RUNNING]);
    let new = machine.copy_at(VAULT_A_AT);
    let (old, new) = (Some(&old), Some(&new));
    for (a, b, left) in [
        (old, old, 1),
        (None, old, 1),
        (old, None, 1),
        (new, old, 0),
        (old, new, 0),
        (new, None, 0),
        (None, new, 0),
    ] {
        for (at, copy) in [(VAULT_A_AT, a), (VAULT_B_AT, b)] {
            match copy {
                Some(text) => machine.put_copy(at, text),
                // A write that ended within the copy.
                None => {
                    let half = machine.file().write_all_at(&[0xff; COPY_BYTES / 2], at);
                    half.expect("writable");
                }
            }
        }
        machine = machine.restart();
        let removed = machine.remove_slots(BEFORE, RUNNING);
        assert_eq!(removed, Ok(left));
        assert_eq!(machine.programs(), [RUNNING]);
    }
}
