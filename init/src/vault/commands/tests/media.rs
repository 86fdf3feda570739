//! What media bring to a vault, at its first start and later.

use super::*;

#[test]
fn a_medium_gets_a_key_and_the_last_passphrase_goes_with_the_words_only() {
    let machine = CommandMachine::new();
    machine.done("slot add passphrase", vec![new("one")]);
    let said = machine.done("slot add provisioning", vec![]);
    assert!(said.contains("seed.key is on fw_cfg"), "{said}");
    let again = machine.refused("slot add provisioning", vec![]);
    assert!(again.contains("already"), "{again}");
    assert!(machine.done("slot test 2", vec![]).contains("opens"));
    machine.done("slot remove 0", vec![]);
    let wants = machine.typed("slot remove 1", vec![passphrase("one")]);
    assert!(
        matches!(wants, CommandOutcome::Wants(CommandPrompt::Consent, _)),
        "{wants:?}"
    );
    machine.done(
        "slot remove 1",
        vec![passphrase("one"), PromptResponse::HasWords],
    );
    assert_eq!(machine.slots(), [(2, SlotType::Provisioning)]);
    // A thief of the machine with its stick sees nothing, whether the owner confirmed the words or not.
    assert!(!machine.vault.facts().words_kept);
    let phrase = machine.phrase();
    let mut session = CommandSession::new(VaultCommand::SlotAdd(SlotType::None));
    let mut asked = Vec::new();
    let wrong = || std::fs::read_to_string(machine.dir.path().join("config/words-wrong")).ok();
    loop {
        match machine.run(&mut session) {
            CommandOutcome::Wants(CommandPrompt::Word(at), why) => {
                // PID 1 does not say which word is wrong: the console shows nothing before the third.
                assert_eq!(why.is_empty(), asked.len() != 3, "{why}");
                let right = phrase[at - 1].as_str();
                let other = if right == "zoo" { "zero" } else { "zoo" };
                let word = if asked.is_empty() { other } else { right };
                session.give(PromptResponse::Word(SecretStr::from(word)));
                asked.push(at);
            }
            CommandOutcome::Wants(CommandPrompt::Confirmation { .. }, _) => break,
            other => panic!("{other:?}"),
        }
        if asked.len() == 4 {
            assert_eq!(wrong().as_deref(), Some("1"), "it is on the disk");
        }
    }
    assert_eq!(
        asked.len(),
        6,
        "three were wrong, and three right: {asked:?}"
    );
    assert_eq!(asked[..3], asked[3..], "always the same");
    assert_eq!(wrong().as_deref(), Some("0"));
    // Wrong tries before a restart cause a wait after it.
    std::fs::write(machine.dir.path().join("config/words-wrong"), "4").expect("writable");
    let three = (0..3).map(|_| PromptResponse::Word(SecretStr::from("zoo")));
    machine.typed("words show", three.collect());
    assert_eq!(machine.vault.wrong_count(), 5);
    assert_eq!(wrong().as_deref(), Some("5"));
    let wants = machine.typed("words show", vec![]);
    assert!(
        matches!(wants, CommandOutcome::Wants(CommandPrompt::Word(_), _)),
        "{wants:?}"
    );
    // Without the medium nothing here opens it for a change.
    std::fs::remove_dir_all(machine.paths().fw_cfg).expect("it is there");
    let why = machine.refused("slot remove 2", vec![]);
    assert!(why.contains("attach the medium"), "{why}");
}

/// An attacker left a medium in a machine before its first start, with the attacker's words or key.
#[test]
fn what_a_medium_brings_unasked_is_not_taken_at_a_first_start() {
    let machine = CommandMachine::new();
    let words = Entropy::generate(WordCount::TwentyFour).expect("random numbers");
    machine.put_secrets(&format!("words = \"{}\"", words.phrase().expose()));
    for init in [VaultInit::Generate, VaultInit::Prompt] {
        let why = machine.first(&opened_by(VaultUnlock::None, init));
        let why = why.expect_err("they were not asked for");
        assert!(why.contains("vault.init does not ask"), "{why}");
    }
    let asked = opened_by(VaultUnlock::None, VaultInit::Provisioned);
    assert_eq!(machine.first(&asked), Ok(()));

    let key = || SeedKey::generate(VaultId::generate().expect("random numbers"));
    let [own, forged] = [key(), key()].map(|key| key.expect("random numbers"));
    let line = forged.to_text();
    machine.put_secrets(&format!("seed_key = \"{}\"", line.expose().trim()));
    machine.put(&own, false).expect("written");
    let by_key = opened_by(VaultUnlock::Provisioning, VaultInit::Generate);
    let why = machine.first(&by_key).expect_err("which is it?");
    assert!(why.contains("several seed.keys"), "{why}");
    std::fs::remove_dir_all(machine.paths().fw_cfg.join("node")).expect("it is there");
    assert_eq!(machine.first(&by_key), Ok(()));

    // A configuration does not say what opens the vault. PID 1 does not take a key that did not come with it, nor
    // does it leave the vault open to every user of the console.
    let unsaid = VaultSection::default();
    let why = machine.first(&unsaid).expect_err("it has no configuration");
    assert!(why.contains("fw_cfg has a seed.key"), "{why}");
    machine.put_strings("");
    let why = machine.first(&unsaid).expect_err("it came by itself");
    assert!(why.contains("nor the medium of the configuration"), "{why}");
    machine.put_secrets("");
    assert_eq!(
        machine.kinds(&unsaid),
        ["provisioning"],
        "it came with that"
    );
    std::fs::remove_dir_all(machine.paths().fw_cfg).expect("it is there");
    assert_eq!(
        machine.kinds(&unsaid),
        ["none"],
        "the console says UNSEALED"
    );
}

/// An attacker left a medium with the attacker's words, and the owner's medium is there too. The attacker decides
/// which of them comes first.
#[test]
fn words_of_two_media_that_differ_make_no_vault() {
    let machine = CommandMachine::new();
    let words = || Entropy::generate(WordCount::TwentyFour).expect("random numbers");
    let [own, forged] = [words(), words()];
    let line = |words: &Entropy| format!("words = \"{}\"", words.phrase().expose());
    machine.put_secrets(&line(&forged));
    machine.put_strings(&line(&own));
    let asked = opened_by(VaultUnlock::None, VaultInit::Provisioned);
    let why = machine.first(&asked).expect_err("which are they?");
    assert!(
        why.contains("different words (fw_cfg, smbios)"),
        "both are named: {why}"
    );
    // The same words with another passphrase are another node's.
    let with_passphrase = format!("{}\nwords_passphrase = \"TREZOR\"", line(&own));
    machine.put_secrets(&with_passphrase);
    let why = machine.first(&asked).expect_err("which are they?");
    assert!(why.contains("different words"), "{why}");
    machine.put_secrets(&line(&own));
    assert_eq!(machine.first(&asked), Ok(()));
}

/// An attacker is at the console of a machine that waits for its owner's medium. What is typed then would open the
/// vault that is made from the owner's words.
#[test]
fn nothing_that_opens_a_new_vault_is_typed_before_its_words_are_there() {
    let machine = CommandMachine::new();
    let asked = opened_by(VaultUnlock::Passphrase, VaultInit::Provisioned);
    let by_pin = VaultSection {
        tpm_pin: true,
        ..opened_by(VaultUnlock::Tpm2, VaultInit::Provisioned)
    };
    for config in [&asked, &by_pin] {
        let why = machine.first(config).expect_err("it has no words");
        assert!(why.contains("no medium with the words"), "{why}");
    }
    let typed = opened_by(VaultUnlock::Passphrase, VaultInit::Prompt);
    let why = machine.first(&typed).expect_err("it has no words");
    assert!(why.contains("has no words yet"), "{why}");

    let words = Entropy::generate(WordCount::TwentyFour).expect("random numbers");
    machine.put_secrets(&format!("words = \"{}\"", words.phrase().expose()));
    let why = machine.first(&asked).expect_err("it has no passphrase");
    assert!(why.contains("needs a passphrase"), "{why}");
}

/// Another node keeps a share of the vault's key, and an attacker left a medium with a key that names another
/// vault.
#[test]
fn a_key_that_is_not_asked_for_does_not_name_the_vault_of_a_share() {
    let machine = CommandMachine::new();
    let named = VaultId::generate().expect("random numbers");
    let forged = SeedKey::generate(named).expect("random numbers");
    machine.put(&forged, false).expect("written");
    let escrow = machine.vault.escrow();
    escrow.set_network(true);
    let by_share = VaultSection {
        kms: Some(VaultKms {
            code: Some("alkjoin1_A".to_owned()),
            ..VaultKms::default()
        }),
        ..opened_by(VaultUnlock::Kms, VaultInit::Generate)
    };
    let why = machine
        .first(&by_share)
        .expect_err("no machine keeps it yet");
    assert!(why.contains("keep a share"), "{why}");
    let (_, wanted) = escrow.next(0).expect("it is wanted");
    let helper_task::HelperTask::Deposit { vault, .. } = wanted else {
        panic!("{wanted:?}")
    };
    assert_ne!(vault, named.to_string());
}

/// An attacker left a medium with the attacker's key, which names this vault, whose id lies in the clear.
#[test]
fn a_key_that_this_machine_did_not_make_becomes_no_slot_and_hides_no_other() {
    let machine = CommandMachine::new();
    let forged = SeedKey::generate(on_listed(&machine).uuid()).expect("random numbers");
    machine.put(&forged, false).expect("written");
    let why = machine.refused("slot add provisioning", vec![]);
    assert!(
        why.contains("fw_cfg has a seed.key") && why.contains("opens no slot"),
        "{why}"
    );
    assert_eq!(machine.slots(), [(0, SlotType::None)]);

    // The case in which PID 1 finds it before the right one.
    std::fs::remove_dir_all(machine.paths().fw_cfg).expect("it is there");
    machine.done("slot add provisioning", vec![]);
    let folder = machine.paths().fw_cfg.join("node");
    std::fs::create_dir_all(&folder).expect("writable");
    let line = forged.to_text();
    let document = format!(
        "version = 1\n[secrets]\nseed_key = \"{}\"\n",
        line.expose().trim()
    );
    std::fs::write(folder.join("raw"), document).expect("writable");
    let media = machine.secrets();
    assert_eq!(media.seed_keys.len(), 2);
    assert_eq!(media.seed_keys[0].key.to_text().expose(), line.expose());
    let why = machine.refused("slot add provisioning", vec![]);
    assert!(why.contains("opens no slot"), "{why}");
    assert!(machine.done("slot test 1", vec![]).contains("opens"));
    let found = data::copies(&machine.device()).load().expect("good");
    let found = found.expect("a vault");
    let kind = SlotType::Provisioning;
    let opened = crate::vault::open::unattended(&found, kind, &machine.vault, &media);
    assert!(opened.is_ok(), "{:?}", opened.err());
}
