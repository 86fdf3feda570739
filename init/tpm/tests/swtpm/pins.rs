//! The TPM counts wrong PINs, and their error differs from every other.

use alknet_tpm::{ExpectedPcrs, TpmError, TpmPin};
use alknet_vault::SecretStr;

use crate::machine::SwtpmMachine;
use crate::{choice, kek, pin};

#[test]
fn a_wrong_pin_costs_a_try_and_too_many_lock() {
    let machine = SwtpmMachine::booted();
    let secret = kek();
    // Three wrong ones lock. A try comes back after 1000 s, the owner's reset after 2000 s.
    machine.tool(
        "tpm2_dictionarylockout",
        &["-s", "-n", "3", "-t", "1000", "-l", "2000"],
    );
    let mut tpm = machine.tpm();
    let slot = tpm
        .seal(
            &secret,
            &choice(),
            ExpectedPcrs::Current,
            Some(&pin("1234")),
        )
        .expect("sealed");
    assert!(slot.pin());
    let missing = tpm.unseal(&slot, None);
    assert!(matches!(missing, Err(TpmError::PinMissing)), "{missing:?}");
    for left in [2, 1] {
        let wrong = tpm.unseal(&slot, Some(&pin("1235")));
        let Err(TpmError::WrongPin { tries_left }) = wrong else {
            panic!("{wrong:?}");
        };
        assert_eq!(tries_left, Some(left));
    }
    assert_eq!(
        tpm.unseal(&slot, Some(&pin("1234"))).expect("unsealed"),
        secret
    );
    let last = tpm.unseal(&slot, Some(&pin("12345")));
    let locks = matches!(
        last,
        Err(TpmError::WrongPin {
            tries_left: Some(0)
        } | TpmError::LockedOut(_))
    );
    assert!(locks, "{last:?}");
    let locked = tpm.unseal(&slot, Some(&pin("1234")));
    let Err(error @ TpmError::LockedOut(Some(state))) = locked else {
        panic!("{locked:?}");
    };
    assert!(error.to_string().contains("1000 s"), "{error}");
    assert!(state.locked);
    let looked = tpm.check(&slot);
    assert!(
        matches!(looked, Err(TpmError::LockedOut(Some(_)))),
        "{looked:?}"
    );
    let stated = (state.failed_max, state.interval_s, state.recovery_s);
    assert_eq!(stated, (3, 1000, 2000));
    drop(tpm);
    machine.assert_clean();

    machine.tool("tpm2_dictionarylockout", &["-c"]);
    assert_eq!(
        machine
            .tpm()
            .unseal(&slot, Some(&pin("1234")))
            .expect("unsealed"),
        secret
    );
}

#[test]
fn after_another_boot_no_pin_is_tried() {
    let machine = SwtpmMachine::booted();
    let slot = machine
        .tpm()
        .seal(&kek(), &choice(), ExpectedPcrs::Current, Some(&pin("1234")))
        .expect("sealed");
    machine.extend(7, &[1; 32]);
    let mut tpm = machine.tpm();
    let refused = tpm.unseal(&slot, Some(&pin("9999")));
    assert!(
        matches!(refused, Err(TpmError::WrongPcrs { .. })),
        "{refused:?}"
    );
    assert_eq!(tpm.lockout().expect("readable").failed, 0);
}

#[test]
fn a_slot_without_a_pin_is_not_locked_by_others() {
    let machine = SwtpmMachine::booted();
    machine.tool(
        "tpm2_dictionarylockout",
        &["-s", "-n", "1", "-t", "1000", "-l", "0"],
    );
    let (open, guarded) = (kek(), kek());
    let mut tpm = machine.tpm();
    let mut seal = |secret, pin: Option<&TpmPin>| {
        tpm.seal(secret, &choice(), ExpectedPcrs::Current, pin)
            .expect("sealed")
    };
    let (open_slot, guarded_slot) = (seal(&open, None), seal(&guarded, Some(&pin("1"))));
    assert!(tpm.unseal(&guarded_slot, Some(&pin("2"))).is_err());
    assert!(tpm.lockout().expect("readable").locked);
    assert_eq!(tpm.unseal(&open_slot, None).expect("unsealed"), open);
    // A PIN that no slot needs changes nothing.
    let with = tpm.unseal(&open_slot, Some(&pin("2")));
    assert_eq!(with.expect("unsealed"), open);
}

#[test]
fn pins_have_limits() {
    let good = |text: &str| TpmPin::new(SecretStr::from(text)).is_ok();
    assert!(good("1") && good(&"x".repeat(32)) && good("with space"));
    assert!(!good("") && !good(&"x".repeat(33)) && !good("schlüssel") && !good("a\0"));
    let machine = SwtpmMachine::booted();
    let longest = pin(&"~".repeat(32));
    let mut tpm = machine.tpm();
    let secret = kek();
    let slot = tpm
        .seal(&secret, &choice(), ExpectedPcrs::Current, Some(&longest))
        .expect("sealed");
    assert_eq!(tpm.unseal(&slot, Some(&longest)).expect("unsealed"), secret);
}
