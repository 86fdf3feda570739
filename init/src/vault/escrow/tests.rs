use alknet_vault::slots::{Alkv, NewSlot, NewVault, OpenAlkv, SlotError, SlotType, UnlockKey};
use alknet_vault::{Entropy, WordCount};

use super::*;

fn peer() -> String {
    format!("ed25519:{}", "ab".repeat(32))
}

fn deposited() -> Result<HelperOutcome, String> {
    Ok(HelperOutcome::Deposited {
        peer: peer(),
        addresses: vec!["192.0.2.1:443".to_owned()],
        id: "0123456789ab".to_owned(),
    })
}

fn wanted() -> VaultKms {
    VaultKms {
        code: Some("alkjoin1_A".to_owned()),
        ..VaultKms::default()
    }
}

/// A vault with a slot whose share a helper task deposited, and the share.
fn made(escrow: &EscrowClient) -> (OpenAlkv, HexSecret) {
    escrow.set_network(true);
    let waiting = escrow.deposited(&wanted(), Some("kitchen"), None);
    assert!(waiting.expect_err("no node was asked").retries);
    let (of, task) = escrow.next(0).expect("it is wanted");
    let HelperTask::Deposit { share, name, .. } = task else {
        panic!("{task:?}")
    };
    assert_eq!(name.as_deref(), Some("kitchen-vault"));
    assert!(escrow.next(0).is_none(), "one at a time");
    assert!(escrow.came(&of, deposited(), 0));
    assert!(escrow.next(0).is_none() && escrow.deadline().is_none());
    let slot = escrow.deposited(&wanted(), None, None);
    let (vault, params, kek) = slot.expect("it is there");
    let words = Entropy::generate(WordCount::TwentyFour).expect("randomness");
    let new = NewVault::new(words, 0);
    let open = OpenAlkv::create_as(vault, new, |_| Ok(NewSlot::Kms(params, &kek)));
    escrow.clear();
    (open.expect("made"), share)
}

fn open(escrow: &EscrowClient, alkv: &Alkv) -> Result<OpenAlkv, (String, bool)> {
    let mut source = escrow.source();
    let mut key = UnlockKey::Source(SlotType::Kms, &mut source);
    let opened = alkv.open(alkv.slots()[0].id(), &mut key);
    opened.map_err(|error| match error {
        SlotError::Kek { .. } => (source.refusals(), source.was_refused()),
        other => (other.to_string(), false),
    })
}

#[test]
fn what_was_deposited_opens_the_slot_again() {
    let escrow = EscrowClient::default();
    let (vault, share) = made(&escrow);
    let alkv = vault.alkv().clone();
    escrow.set_network(false);
    let why = open(&escrow, &alkv).expect_err("nothing is there");
    assert_eq!(why, ("the network is not up yet".to_owned(), false));
    assert!(escrow.next(0).is_none() && escrow.deadline().is_none());
    assert!(escrow.set_network(true) && !escrow.set_network(true));
    assert_eq!(
        open(&escrow, &alkv).expect_err("not yet").0,
        "it is being asked"
    );
    let (of, task) = escrow.next(5).expect("it is wanted");
    assert!(matches!(&task, HelperTask::Release { id, .. } if id == "0123456789ab"));

    let denied = HelperOutcome::refused(HelperRefusal::Denied, "it was revoked");
    assert!(!escrow.came(&of, Ok(denied), 5));
    let why = open(&escrow, &alkv).expect_err("refused");
    assert_eq!(why, ("it was revoked".to_owned(), true));
    let again = 5 + HelperRefusal::Denied.pause_ms();
    assert_eq!(escrow.deadline(), Some(again));
    assert!(escrow.next(again - 1).is_none());
    let (of, _) = escrow.next(again).expect("it is tried again");
    assert!(!escrow.came(&of, Err("it did not answer in time".to_owned()), again));

    // A wrong share opens nothing. The right one opens, and is used once.
    for (bytes, opens) in [([9; 32], false), (*share.expose(), true)] {
        let (of, _) = escrow.next(again * 9).expect("it is tried again");
        let share = HexSecret::copy_of(&bytes);
        assert!(escrow.came(&of, Ok(HelperOutcome::Released { share }), 0));
        assert_eq!(open(&escrow, &alkv).is_ok(), opens);
    }
    escrow.clear();
    assert!(escrow.next(u64::MAX).is_none());
    assert!(open(&escrow, &alkv).is_err());
}

#[test]
fn one_deposit_stays_the_same_until_the_vault_is_made() {
    let escrow = EscrowClient::default();
    escrow.set_network(true);
    let ask = |wanted: &VaultKms| drop(escrow.deposited(wanted, None, None));
    let sent = |now| match escrow.next(now) {
        Some((of, HelperTask::Deposit { share, vault, .. })) => (of, share, vault),
        other => panic!("{other:?}"),
    };
    ask(&wanted());
    let (of, share, vault) = sent(0);
    let refused = HelperOutcome::refused(HelperRefusal::Enrolment, "ENROLL_INVALID");
    assert!(!escrow.came(&of, Ok(refused), 0));
    ask(&wanted());
    assert_eq!(escrow.deadline(), Some(HelperRefusal::Enrolment.pause_ms()));
    let (of, again, same) = sent(HelperRefusal::Enrolment.pause_ms());
    assert!(share == again && vault == same);
    // The administrator corrects the configuration meanwhile, so the answer to the earlier request
    // counts for nothing.
    let other = VaultKms {
        code: Some("alkjoin1_B".to_owned()),
        ..VaultKms::default()
    };
    ask(&other);
    assert!(!escrow.came(&of, deposited(), 0));
    let (_, third, _) = sent(0);
    assert!(third != share);
}

#[test]
fn what_a_child_brings_is_checked() {
    let escrow = EscrowClient::default();
    escrow.set_network(true);
    drop(escrow.deposited(&wanted(), None, None));
    let mut now = 0;
    for wrong in [
        HelperOutcome::Deposited {
            peer: "somebody".to_owned(),
            addresses: vec!["a:1".to_owned()],
            id: "a".to_owned(),
        },
        HelperOutcome::Deposited {
            peer: peer(),
            addresses: Vec::new(),
            id: "a".to_owned(),
        },
        HelperOutcome::Released {
            share: HexSecret::copy_of(&[1; 32]),
        },
    ] {
        let (of, _) = escrow.next(now).expect("it is wanted");
        assert!(!escrow.came(&of, Ok(wrong), now));
        now += HelperRefusal::Unreachable.pause_ms();
    }
    assert_eq!(peer_name(&"x".repeat(90)).len(), NAME_CHARS_MAX);
}
