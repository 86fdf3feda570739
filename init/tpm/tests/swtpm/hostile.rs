//! A TPM, or an attacker between it and us, that answers anything at all.

use alknet_tpm::{ExpectedPcrs, Tpm, TpmError};
use alknet_vault::slots::Tpm2Params;

use crate::machine::SwtpmMachine;
use crate::tap::{ScriptedTpm, TpmTap};
use crate::{choice, kek, pin};

/// Numbers that look random and are the same in every run (Marsaglia's xorshift).
struct ByteRng(u64);

impl ByteRng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next() as u8).collect()
    }
}

fn everything(tpm: &mut Tpm<ScriptedTpm>, slot: &Tpm2Params) -> [Option<TpmError>; 6] {
    [
        tpm.unseal(slot, Some(&pin("1"))).err(),
        tpm.seal(&kek(), &choice(), ExpectedPcrs::Current, None)
            .err(),
        tpm.lockout().err(),
        tpm.counter().err(),
        tpm.pcr_values(&[11]).err(),
        tpm.check(slot).err(),
    ]
}

#[test]
fn noise_in_place_of_a_tpm_ends_in_errors() {
    let machine = SwtpmMachine::booted();
    let slot = machine
        .tpm()
        .seal(&kek(), &choice(), ExpectedPcrs::Current, Some(&pin("1")))
        .expect("sealed");
    let mut noise = ByteRng(0x9e37_79b9_7f4a_7c15);
    for round in 0..4000 {
        let count = (noise.next() % 600) as usize;
        let mut answers = noise.bytes(count);
        if round % 4 != 0 {
            // Plausible headers, so that the noise reaches the code that reads the parameters.
            answers = (0..6)
                .flat_map(|_| {
                    let body = (noise.next() % 200) as usize;
                    let tag = [0x80, 1 + (noise.next() % 2) as u8];
                    let size = (10 + body as u32).to_be_bytes();
                    [tag.as_slice(), &size, &[0; 4], &noise.bytes(body)].concat()
                })
                .collect();
        }
        let mut tpm = Tpm::new(ScriptedTpm::new(answers));
        let [unsealed, sealed, ..] = everything(&mut tpm, &slot);
        assert!(unsealed.is_some() && sealed.is_some());
    }
}

#[test]
fn sizes_that_no_answer_has_are_refused() {
    for size in [0_u32, 9, 4097, u32::MAX] {
        let answer = [&[0x80, 1], size.to_be_bytes().as_slice(), &[0; 9000]].concat();
        let refused = Tpm::new(ScriptedTpm::new(answer)).lockout();
        assert!(
            matches!(refused, Err(TpmError::Malformed(_))),
            "{size}: {refused:?}"
        );
    }
    let longer = [[0x80, 1, 0, 0, 0, 10].as_slice(), &[0; 5]].concat();
    let refused = Tpm::new(ScriptedTpm::new(longer)).lockout();
    assert!(
        matches!(refused, Err(TpmError::Malformed(_))),
        "{refused:?}"
    );
    let cut = Tpm::new(ScriptedTpm::new(vec![0x80, 1, 0, 0])).lockout();
    assert!(matches!(cut, Err(TpmError::Transport(_))), "{cut:?}");
}

#[test]
fn a_man_in_the_middle_changes_a_byte_and_gains_nothing() {
    let machine = SwtpmMachine::booted();
    let (secret, pin) = (kek(), pin("1"));
    machine.tool(
        "tpm2_dictionarylockout",
        &["-s", "-n", "100000", "-t", "1", "-l", "1"],
    );
    let slot = machine
        .tpm()
        .seal(&secret, &choice(), ExpectedPcrs::Current, Some(&pin))
        .expect("sealed");
    // The first time that it counts PINs, a TPM requests a second try.
    let first = machine.tpm().unseal(&slot, Some(&pin));
    assert_eq!(first.expect("unsealed"), secret);
    let plain = TpmTap::new(machine.connect());
    let heard = plain.heard.clone();
    Tpm::new(plain).unseal(&slot, Some(&pin)).expect("unsealed");
    let lengths: Vec<_> = heard.borrow().answers.iter().map(Vec::len).collect();

    let unsealed = heard
        .borrow()
        .commands
        .iter()
        .position(|command| command[6..10] == [0, 0, 1, 0x5e])
        .expect("unsealed");
    let mut refused = 0;
    for (answer, length) in lengths.iter().enumerate() {
        let step = if answer == unsealed { 1 } else { 11 };
        for byte in (0..*length).step_by(step) {
            let mut tap = TpmTap::new(machine.connect());
            tap.change = Some((answer, byte, 0x41));
            let mut tpm = Tpm::new(tap);
            let result = tpm.unseal(&slot, Some(&pin));
            drop(tpm);
            match result {
                Ok(unsealed) => assert_eq!(unsealed, secret),
                Err(_) => {
                    refused += 1;
                    // A kernel would flush what our code could not, since its handle was changed.
                    machine.flush();
                }
            }
        }
    }
    assert!(refused > 100, "{refused}");
}

/// An attacker's TPM in the place of the machine's. The attacker may also have written the name of its own storage key
/// into the record on the disk.
#[test]
fn a_tpm_in_the_place_of_the_required_one_gets_nothing() {
    const START_AUTH_SESSION: [u8; 4] = [0, 0, 1, 0x76];
    let (own, impostor) = (SwtpmMachine::booted(), SwtpmMachine::booted());
    let (secret, pin) = (kek(), pin("1234"));
    let key = own.tpm().storage_key().expect("a TPM");
    let seal = |tpm: Tpm<_>| {
        let mut tpm = tpm.require(key);
        tpm.seal(&secret, &choice(), ExpectedPcrs::Current, Some(&pin))
    };
    let slot = seal(own.tpm()).expect("sealed");
    let unsealed = own.tpm().require(key).unseal(&slot, Some(&pin));
    assert_eq!(unsealed.expect("unsealed"), secret);
    let mut posing = impostor.tpm();
    let forged = posing.seal(&kek(), &choice(), ExpectedPcrs::Current, Some(&pin));
    let forged = forged.expect("sealed");
    drop(posing);

    let is_foreign = |error: &TpmError| matches!(error, TpmError::ForeignStorageKey);
    assert!(seal(impostor.tpm()).is_err_and(|error| is_foreign(&error)));
    let tap = TpmTap::new(impostor.connect());
    let heard = tap.heard.clone();
    let mut tpm = Tpm::new(tap).require(key);
    assert!(tpm.storage_key().is_err_and(|error| is_foreign(&error)));
    let unsealed = tpm.unseal(&slot, Some(&pin));
    assert!(unsealed.is_err_and(|error| is_foreign(&error)));
    let unsealed = tpm.unseal(&forged, Some(&pin));
    assert!(matches!(unsealed, Err(TpmError::OtherTpm)), "{unsealed:?}");
    // No session, which would be salted to its key, began.
    let heard = heard.borrow();
    let codes: Vec<_> = heard.commands.iter().map(|it| &it[6..10]).collect();
    assert!(!codes.is_empty() && !codes.contains(&&START_AUTH_SESSION[..]));
}

#[test]
fn a_changed_record_does_not_open() {
    let machine = SwtpmMachine::booted();
    let slot = machine
        .tpm()
        .seal(&kek(), &choice(), ExpectedPcrs::Current, None)
        .expect("sealed");
    let parts = [slot.public().to_vec(), slot.private().to_vec()];
    let mut tpm = machine.tpm();
    for part in 0..2 {
        for at in 0..parts[part].len() {
            let mut changed = parts.clone();
            changed[part][at] ^= 1;
            let [public, private] = changed;
            let pcrs = slot.pcrs().to_vec();
            let changed = Tpm2Params::new(public, private, pcrs, *slot.policy(), false);
            let refused = tpm.unseal(&changed.expect("of a size that may be"), None);
            let is_told = matches!(
                refused,
                Err(TpmError::Damaged(_) | TpmError::OtherTpm | TpmError::Refused { .. })
            );
            assert!(is_told, "{part} {at}: {refused:?}");
        }
    }
    drop(tpm);
    machine.assert_clean();
}
