//! A sealed key opens only on the same machine in the same state.

use alknet_tpm::{ExpectedPcrs, PcrChoice, PcrValues, Tpm, TpmError, TpmSource};
use alknet_vault::slots::{
    Alkv, KekError, NewSlot, NewVault, OpenAlkv, SlotError, SlotType, UnlockKey,
};
use alknet_vault::{Entropy, WordCount};

use crate::machine::SwtpmMachine;
use crate::tap::TpmTap;
use crate::{choice, kek, pin};

#[test]
fn a_key_comes_back_after_the_same_boot_and_not_after_another() {
    let mut machine = SwtpmMachine::booted();
    let secret = kek();
    let mut tpm = machine.tpm();
    let slot = tpm
        .seal(&secret, &choice(), ExpectedPcrs::Current, None)
        .expect("sealed");
    assert_eq!(slot.pcrs(), [7, 11, 12]);
    assert_eq!(tpm.unseal(&slot, None).expect("unsealed"), secret);
    drop(tpm);
    machine.assert_clean();

    machine.extend(11, &[0xee; 32]);
    let refused = machine.tpm().unseal(&slot, None);
    assert!(
        matches!(refused, Err(TpmError::WrongPcrs { .. })),
        "{refused:?}"
    );

    machine.reset();
    machine.boot();
    assert_eq!(machine.tpm().unseal(&slot, None).expect("unsealed"), secret);
    machine.assert_clean();
}

#[test]
fn nothing_secret_crosses_the_bus() {
    let machine = SwtpmMachine::booted();
    let (secret, pin) = (kek(), pin("correct horse 1"));
    let tap = TpmTap::new(machine.connect());
    let heard = tap.heard.clone();
    let mut tpm = Tpm::new(tap);
    let slot = tpm
        .seal(&secret, &choice(), ExpectedPcrs::Current, Some(&pin))
        .expect("sealed");
    assert_eq!(tpm.unseal(&slot, Some(&pin)).expect("unsealed"), secret);
    let all = heard.borrow().all();
    let has = |needle: &[u8]| all.windows(needle.len()).any(|part| part == needle);
    for at in 0..=24 {
        assert!(
            !has(&secret.expose()[at..at + 8]),
            "a part of the key is on the bus"
        );
    }
    assert!(!has(b"correct") && !has(b"horse"), "the PIN is on the bus");
    assert!(has(slot.policy()), "the tap hears what is public");
}

#[test]
fn a_third_party_parser_reads_every_message() {
    use tpm2_protocol::frame::{TpmCommand, TpmResponse};
    let machine = SwtpmMachine::booted();
    let tap = TpmTap::new(machine.connect());
    let heard = tap.heard.clone();
    let mut tpm = Tpm::new(tap);
    let pin = pin("1234");
    let slot = tpm
        .seal(&kek(), &choice(), ExpectedPcrs::Current, Some(&pin))
        .expect("sealed");
    tpm.unseal(&slot, Some(&pin)).expect("unsealed");
    tpm.make_counter().expect("a counter");
    tpm.advance_counter().expect("a counter");
    tpm.remove_counter().expect("a counter");
    tpm.lockout().expect("readable");
    let heard = heard.borrow();
    assert_eq!(heard.commands.len(), heard.answers.len());
    assert!(heard.commands.len() > 30);
    for (command, answer) in heard.commands.iter().zip(&heard.answers) {
        let command = TpmCommand::cast(command).expect("a command");
        command.validate().expect("a command without fault");
        let code = command.cc().expect("a known command");
        let answer = TpmResponse::cast(answer).expect("an answer");
        answer.validate(code).expect("an answer without fault");
    }
}

#[test]
fn sealing_to_a_prediction_opens_after_the_next_boot_only() {
    let mut machine = SwtpmMachine::booted();
    let after = machine.tpm().pcr_values(&[7]).expect("readable");
    machine.extend(11, &[0x22; 32]);
    let next = machine.tpm().pcr_values(&[11]).expect("readable");
    machine.reset();
    machine.boot();

    let secret = kek();
    let slot = machine
        .tpm()
        .seal(&secret, &choice(), ExpectedPcrs::Predicted(&next), None)
        .expect("sealed");
    let early = machine.tpm().unseal(&slot, None);
    assert!(
        matches!(early, Err(TpmError::WrongPcrs { .. })),
        "{early:?}"
    );
    machine.extend(11, &[0x22; 32]);
    assert_eq!(machine.tpm().pcr_values(&[7]).expect("readable"), after);
    assert_eq!(machine.tpm().unseal(&slot, None).expect("unsealed"), secret);
}

#[test]
fn values_that_bind_to_nothing_are_refused() {
    let machine = SwtpmMachine::new();
    let mut tpm = machine.tpm();
    let seal = |tpm: &mut Tpm<_>, choice: &PcrChoice, expected: ExpectedPcrs<'_>| {
        tpm.seal(&kek(), choice, expected, None)
    };
    let empty = seal(&mut tpm, &choice(), ExpectedPcrs::Current);
    assert!(matches!(empty, Err(TpmError::NotMeasured(7))), "{empty:?}");
    let zero = PcrValues::from([(7, [1; 32]), (11, [0; 32])]);
    let empty = seal(&mut tpm, &choice(), ExpectedPcrs::Predicted(&zero));
    assert!(matches!(empty, Err(TpmError::NotMeasured(11))), "{empty:?}");
    let other = PcrValues::from([(4, [1; 32])]);
    let other = seal(&mut tpm, &choice(), ExpectedPcrs::Predicted(&other));
    assert!(matches!(other, Err(TpmError::BadPcrs(_))), "{other:?}");
    for bad in [[].as_slice(), &[24], &[0, 1, 2, 3, 4, 5, 6, 7, 8]] {
        let bad = tpm.pcr_values(bad);
        assert!(matches!(bad, Err(TpmError::BadPcrs(_))), "{bad:?}");
    }
    drop(tpm);
    machine.assert_clean();
}

#[test]
fn a_refusal_names_what_changed_and_so_does_a_look() {
    let machine = SwtpmMachine::booted();
    let mut tpm = machine.tpm();
    let slot = tpm
        .seal(&kek(), &choice(), ExpectedPcrs::Current, None)
        .expect("sealed");
    tpm.check(&slot).expect("nothing changed");
    drop(tpm);
    for (pcr, expected) in [(11, vec![11]), (7, vec![7, 11])] {
        machine.extend(pcr, &[1; 32]);
        let mut tpm = machine.tpm();
        for refused in [tpm.unseal(&slot, None).err(), tpm.check(&slot).err()] {
            let Some(TpmError::WrongPcrs { changed }) = refused else {
                panic!("{refused:?}");
            };
            assert_eq!(changed, expected);
        }
        drop(tpm);
        machine.assert_clean();
    }
    let other = SwtpmMachine::booted().tpm().check(&slot);
    assert!(matches!(other, Err(TpmError::OtherTpm)), "{other:?}");
}

#[test]
fn a_slot_that_stays_shut_is_renewed_in_one_change() {
    let machine = SwtpmMachine::booted();
    let vault = NewVault::new(
        Entropy::generate(WordCount::TwentyFour).expect("random numbers"),
        1_767_225_600,
    );
    let mut open = OpenAlkv::create(vault, NewSlot::None).expect("a vault");
    let none = open.alkv().slots()[0].id();
    let first = machine
        .tpm()
        .add_slot(&mut open, &choice(), None)
        .expect("added");
    machine.extend(11, &[1; 32]);
    let opens = |open: &OpenAlkv, id| {
        let mut source = TpmSource::new(machine.tpm(), None);
        let mut key = UnlockKey::Source(SlotType::Tpm2, &mut source);
        open.alkv().open(id, &mut key).is_ok()
    };
    assert!(!opens(&open, first));
    let (before, pin) = (open.alkv().generation(), pin("1234"));
    // One connection at a time: a TPM without a kernel before it serves one.
    let second = machine
        .tpm()
        .renew_slot(&mut open, first, &choice(), Some(&pin))
        .expect("renewed");
    assert_eq!(open.alkv().generation(), before + 1);
    assert!(!opens(&open, second), "without its PIN");
    let third = machine
        .tpm()
        .renew_slot(&mut open, second, &choice(), None)
        .expect("renewed");
    assert!(opens(&open, third));
    assert_eq!(open.alkv().slots().len(), 2);
    for (id, text) in [(second, "there is no slot"), (none, "of another type")] {
        let refused = machine.tpm().renew_slot(&mut open, id, &choice(), None);
        let refused = refused.expect_err("no such slot of a TPM").to_string();
        assert!(refused.contains(text), "{refused}");
    }
}

#[test]
fn another_tpm_and_a_cleared_one_say_so() {
    let (first, second) = (SwtpmMachine::booted(), SwtpmMachine::booted());
    let slot = first
        .tpm()
        .seal(&kek(), &choice(), ExpectedPcrs::Current, None)
        .expect("sealed");
    let other = second.tpm().unseal(&slot, None);
    assert!(matches!(other, Err(TpmError::OtherTpm)), "{other:?}");
    second.assert_clean();
    first.tool("tpm2_clear", &["-c", "p"]);
    let cleared = first.tpm().unseal(&slot, None);
    assert!(matches!(cleared, Err(TpmError::OtherTpm)), "{cleared:?}");
    first.assert_clean();
}

#[test]
fn a_tpm_without_the_bank_is_not_usable() {
    let mut machine = SwtpmMachine::new();
    machine.tool(
        "tpm2_pcrallocate",
        &["sha1:all+sha256:none+sha384:none+sha512:none"],
    );
    machine.reset();
    let refused = machine
        .tpm()
        .seal(&kek(), &choice(), ExpectedPcrs::Current, None);
    assert!(
        matches!(refused, Err(TpmError::Unsupported(_))),
        "{refused:?}"
    );
    machine.assert_clean();
}

#[test]
fn a_vault_opens_by_it_and_says_why_not() {
    let machine = SwtpmMachine::booted();
    let vault = NewVault::new(
        Entropy::generate(WordCount::TwentyFour).expect("random numbers"),
        1_767_225_600,
    );
    let secret = kek();
    let slot = machine
        .tpm()
        .seal(&secret, &PcrChoice::measured(), ExpectedPcrs::Current, None)
        .expect("sealed");
    let open = OpenAlkv::create(vault, NewSlot::Tpm2(slot, &secret)).expect("a vault");
    let read = Alkv::parse(open.alkv().to_text().as_bytes()).expect("a vault");
    let mut source = TpmSource::new(machine.tpm(), None);
    let id = read.slots()[0].id();
    let mut key = UnlockKey::Source(SlotType::Tpm2, &mut source);
    let again = read.open(id, &mut key).expect("opens");
    assert_eq!(again.entropy(), open.entropy());
    assert!(source.take_error().is_none());
    drop(source);

    machine.extend(4, &[1; 32]);
    let mut source = TpmSource::new(machine.tpm(), None);
    let refused = read.open(id, &mut UnlockKey::Source(SlotType::Tpm2, &mut source));
    let Err(SlotError::Kek { source: why, .. }) = refused else {
        panic!("must be refused by its source");
    };
    assert_eq!(why, KekError::Refused);
    assert!(matches!(
        source.take_error(),
        Some(TpmError::WrongPcrs { .. })
    ));
}

#[test]
fn slots_that_were_closed_open_after_the_next_boot() {
    let mut machine = SwtpmMachine::booted();
    let secret = kek();
    for choice in [PcrChoice::measured(), PcrChoice::enforced()] {
        let sealed = machine
            .tpm()
            .seal(&secret, &choice, ExpectedPcrs::Current, None);
        let slot = sealed.expect("sealed");
        machine.tpm().close_slots().expect("closed");
        let refused = machine.tpm().unseal(&slot, None);
        let Err(TpmError::WrongPcrs { changed }) = refused else {
            panic!("{refused:?}");
        };
        assert_eq!(changed, [11]);
        machine.assert_clean();
        machine.reset();
        machine.boot();
        assert_eq!(machine.tpm().unseal(&slot, None).expect("unsealed"), secret);
    }
}
