//! What a stub measures that does not come from the image: a command line of the boot entry, or of
//! SMBIOS.

use alknet_tpm::{ExpectedPcrs, PcrChoice, PcrValues, TpmError, TpmSource};
use alknet_vault::slots::{NewSlot, NewVault, OpenAlkv, SlotId, SlotParams, SlotType, UnlockKey};
use alknet_vault::{Entropy, WordCount};

use crate::machine::SwtpmMachine;
use crate::{kek, pin};

/// The choice of slots from before they covered it.
fn former() -> PcrChoice {
    PcrChoice::from_pcrs(vec![4, 11]).expect("two of them")
}

/// The same under Secure Boot.
fn former_enforced() -> PcrChoice {
    PcrChoice::from_pcrs(vec![7, 11]).expect("two of them")
}

fn vault() -> OpenAlkv {
    let entropy = Entropy::generate(WordCount::TwentyFour).expect("random numbers");
    OpenAlkv::create(NewVault::new(entropy, 1_767_225_600), NewSlot::None).expect("a vault")
}

#[test]
fn it_opens_nothing_and_nothing_is_sealed_to_it() {
    let machine = SwtpmMachine::booted();
    let seal = |choice: &PcrChoice| {
        let sealed = machine
            .tpm()
            .seal(&kek(), choice, ExpectedPcrs::Current, None);
        sealed.expect("sealed")
    };
    let choices = [PcrChoice::measured(), PcrChoice::enforced()];
    let slots = choices.each_ref().map(&seal);
    let uncovered = [former(), former_enforced()].each_ref().map(&seal);
    assert_eq!(slots[0].pcrs(), [4, 11, 12]);
    assert_eq!(slots[1].pcrs(), [7, 11, 12]);
    for slot in &slots {
        assert_eq!(slot.values()[2], [0; 32]);
    }
    for slot in slots.iter().chain(&uncovered) {
        machine.tpm().unseal(slot, None).expect("unsealed");
        machine.tpm().check(slot).expect("nothing changed");
    }
    machine.extend(12, &[1; 32]);
    let mut tpm = machine.tpm();
    for slot in &slots {
        for refused in [tpm.unseal(slot, None).err(), tpm.check(slot).err()] {
            let Some(TpmError::WrongPcrs { changed }) = refused else {
                panic!("{refused:?}");
            };
            assert_eq!(changed, [12]);
        }
    }
    for slot in &uncovered {
        for refused in [tpm.unseal(slot, None).err(), tpm.check(slot).err()] {
            assert!(matches!(refused, Some(TpmError::FromBeside)), "{refused:?}");
        }
    }
    // Predicted or not.
    let then = PcrValues::from([(12, [2; 32])]);
    for choice in &choices {
        for expected in [ExpectedPcrs::Current, ExpectedPcrs::Predicted(&then)] {
            let refused = tpm.seal(&kek(), choice, expected, None);
            assert!(matches!(refused, Err(TpmError::FromBeside)), "{refused:?}");
        }
    }
    drop(tpm);
    machine.assert_clean();
}

#[test]
fn slots_that_do_not_cover_it_are_renewed_for_the_same_programs() {
    let mut machine = SwtpmMachine::booted();
    let (other, wanted) = (SwtpmMachine::booted(), pin("1234"));
    let mut open = vault();
    let add = |machine: &SwtpmMachine, open: &mut OpenAlkv, choice: &PcrChoice, pin| {
        let added = machine.tpm().add_slot(open, choice, pin);
        added.expect("added")
    };
    let own = add(&machine, &mut open, &former(), None);
    let enforced = add(&machine, &mut open, &former_enforced(), None);
    let with_pin = add(&machine, &mut open, &former(), Some(&wanted));
    let of_other = add(&other, &mut open, &former(), None);
    // For the image before, or the one after.
    machine.extend(11, &[3; 32]);
    let values = machine.tpm().pcr_values(&[4, 11]).expect("readable");
    machine.reset();
    machine.boot();
    let secret = kek();
    let params = machine
        .tpm()
        .seal(&secret, &former(), ExpectedPcrs::Predicted(&values), None)
        .expect("sealed");
    let of_next = open.add(NewSlot::Tpm2(params, &secret)).expect("added");

    let done = machine.tpm().cover_slots(&mut open, None).expect("covered");
    let old: Vec<_> = done.iter().map(|(old, _)| *old).collect();
    assert_eq!(old, [own, enforced, of_next]);
    let bound_to = |open: &OpenAlkv, id: SlotId| {
        let slot = open.alkv().slots().iter().find(|slot| slot.id() == id)?;
        match slot.params() {
            SlotParams::Tpm2(params) => Some(params.pcrs().to_vec()),
            _ => None,
        }
    };
    for id in [with_pin, of_other] {
        assert_eq!(bound_to(&open, id), Some(vec![4, 11]));
    }
    for id in [own, enforced, of_next] {
        assert_eq!(bound_to(&open, id), None);
    }
    let pcrs = done.iter().map(|(_, id)| bound_to(&open, *id));
    let pcrs: Vec<_> = pcrs.map(|pcrs| pcrs.expect("it is there")).collect();
    assert_eq!(pcrs, [[4, 11, 12], [7, 11, 12], [4, 11, 12]]);
    let again = machine
        .tpm()
        .cover_slots(&mut open, None)
        .expect("nothing to do");
    assert_eq!(again, []);

    let opens = |machine: &SwtpmMachine, open: &OpenAlkv, id, pin| {
        let mut source = TpmSource::new(machine.tpm(), pin);
        let mut key = UnlockKey::Source(SlotType::Tpm2, &mut source);
        open.alkv().open(id, &mut key)
    };
    let [(_, own), (_, enforced), (_, of_next)] = done[..] else {
        panic!("{done:?}");
    };
    assert!(opens(&machine, &open, own, None).is_ok());
    assert!(opens(&machine, &open, enforced, None).is_ok());
    assert!(opens(&machine, &open, of_next, None).is_err());
    // With a typed PIN, only the slot that it opened.
    let mut by_pin = opens(&machine, &open, with_pin, Some(pin("1234"))).expect("opens");
    let done = machine
        .tpm()
        .cover_slots(&mut by_pin, Some(&wanted))
        .expect("covered");
    let [(old, covered)] = done[..] else {
        panic!("{done:?}");
    };
    assert_eq!(old, with_pin);
    assert!(opens(&machine, &by_pin, covered, Some(pin("1234"))).is_ok());
    assert!(opens(&machine, &by_pin, covered, None).is_err());

    machine.extend(11, &[3; 32]);
    assert!(opens(&machine, &open, of_next, None).is_ok());
    assert!(opens(&machine, &open, own, None).is_err());
    machine.extend(12, &[1; 32]);
    assert!(opens(&machine, &open, of_next, None).is_err());
    machine.assert_clean();
}
