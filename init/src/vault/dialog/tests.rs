use std::collections::BTreeSet;

use super::*;

fn line(text: &str) -> ConsoleInput {
    ConsoleInput::Line(Zeroizing::new(text.to_owned()))
}

fn waits(ask: UnlockPrompt) -> VaultWait {
    VaultWait::new(ask, "vault-locked", "the vault is locked", "")
}

#[test]
fn a_new_passphrase_is_typed_twice() {
    let mut asking = VaultDialog::default();
    asking.wait_for(Some(&waits(UnlockPrompt::NewPassphrase)));
    for answer in ["", "one", "two"] {
        assert!(matches!(asking.answer(line(answer)), DialogStep::Next));
    }
    assert!(matches!(asking.answer(line("three")), DialogStep::Next));
    // The same question asked again does not restart the conversation.
    asking.wait_for(Some(&waits(UnlockPrompt::NewPassphrase)));
    assert!(matches!(
        asking.answer(line("three")),
        DialogStep::NewPassphrase(_)
    ));
}

#[test]
fn a_new_pin_is_one_that_a_tpm_can_have_typed_twice() {
    let mut asking = VaultDialog::default();
    asking.wait_for(Some(&waits(UnlockPrompt::NewPin)));
    let longer = "1".repeat(33);
    for answer in ["", longer.as_str(), "schlüssel", "1234", "1235", "1234"] {
        assert!(
            matches!(asking.answer(line(answer)), DialogStep::Next),
            "{answer}"
        );
        asking.wait_for(Some(&waits(UnlockPrompt::NewPin)));
    }
    let DialogStep::NewPin(pin) = asking.answer(line("1234")) else {
        panic!("the same twice");
    };
    assert_eq!(pin.expose(), "1234");
}

#[test]
fn enter_leads_from_the_pin_to_the_passphrase_and_back() {
    let mut asking = VaultDialog::default();
    let both = |ask| waits(ask).with_other_way();
    let prompt = |asking: &VaultDialog| format!("{:?}", asking.question());
    asking.wait_for(Some(&both(UnlockPrompt::Pin)));
    assert!(prompt(&asking).contains("\"PIN of the TPM, or Enter for the passphrase"));
    assert!(matches!(asking.answer(line("")), DialogStep::Next));
    // An attempt without input does not replace the question that the user chose.
    asking.wait_for(Some(&both(UnlockPrompt::Pin)));
    assert!(prompt(&asking).contains("\"passphrase of the vault, or Enter for the PIN"));
    assert!(matches!(
        asking.answer(line("right")),
        DialogStep::Passphrase(_)
    ));
    asking.wait_for(Some(&both(UnlockPrompt::Passphrase)));
    assert!(matches!(asking.answer(line("")), DialogStep::Retry));
    asking.wait_for(Some(&both(UnlockPrompt::Pin)));
    assert!(matches!(asking.answer(line("1234")), DialogStep::Pin(_)));
    // The TPM is locked, so only the passphrase is left.
    asking.wait_for(Some(&waits(UnlockPrompt::Passphrase)));
    assert!(prompt(&asking).contains("or Enter where it opens by itself"));
    asking.wait_for(Some(&waits(UnlockPrompt::Pin)));
    assert!(matches!(asking.answer(line("")), DialogStep::Retry));
    assert!(matches!(
        asking.answer(line("not ascii: ä")),
        DialogStep::Next
    ));
    assert!(prompt(&asking).contains("\"PIN of the TPM\""));
}

#[test]
fn words_are_checked_before_they_are_taken() {
    let mut asking = VaultDialog::default();
    asking.wait_for(Some(&waits(UnlockPrompt::Words)));
    assert!(matches!(
        asking.answer(line("abandon abandon")),
        DialogStep::Next
    ));
    assert!(asking.question().is_some());
    let phrase = format!("{}about", "abandon ".repeat(11));
    assert!(matches!(
        asking.answer(line(&phrase)),
        DialogStep::Words(WordsSource::These(_))
    ));
    asking.wait_for(Some(&waits(UnlockPrompt::Words)));
    assert!(matches!(
        asking.answer(line(" ")),
        DialogStep::Words(WordsSource::Make)
    ));
}

#[test]
fn three_words_show_that_they_were_written_down() {
    let words: Vec<String> = (1..=24).map(|n| format!("word{n}")).collect();
    let mut asking = VaultDialog::default();
    asking.show(SecretStr::from(words.join(" ").as_str()), vec![3, 24, 1]);
    assert!(asking.question().is_some());
    for (typed, goes_on) in [("word4", true), (" WORD3 ", true), ("word24", true)] {
        assert_eq!(
            matches!(asking.answer(line(typed)), DialogStep::Next),
            goes_on
        );
    }
    // The user may begin something else meanwhile.
    asking.answer(ConsoleInput::Begin);
    assert!(matches!(asking.answer(line("status")), DialogStep::Run(_)));
    asking.resume();
    assert!(matches!(
        asking.answer(line("word1")),
        DialogStep::WordsKept
    ));
    assert!(asking.question().is_none());
}

#[test]
fn a_reset_needs_its_word_and_can_be_left() {
    let mut asking = VaultDialog::default();
    assert!(matches!(
        asking.answer(ConsoleInput::Begin),
        DialogStep::Next
    ));
    assert!(matches!(
        asking.answer(line("factory-reset")),
        DialogStep::Next
    ));
    assert!(matches!(asking.answer(line("reset")), DialogStep::Next));
    assert!(matches!(
        asking.answer(line("factory-reset")),
        DialogStep::Next
    ));
    assert!(matches!(
        asking.answer(line("RESET")),
        DialogStep::FactoryReset
    ));
    assert!(matches!(
        asking.answer(ConsoleInput::Begin),
        DialogStep::Next
    ));
    asking.answer(ConsoleInput::Cancel);
    assert!(asking.question().is_none());
}

#[test]
fn a_command_is_recognised_and_its_inputs_are_prompted() {
    let mut asking = VaultDialog::default();
    asking.answer(ConsoleInput::Begin);
    assert!(matches!(
        asking.answer(line("slot add x")),
        DialogStep::Next
    ));
    assert!(asking.question().is_some(), "the mistake is shown");
    assert!(matches!(
        asking.answer(line("slot set")),
        DialogStep::Run(VaultCommand::SlotSet)
    ));
    assert!(asking.is_idle());
    asking.want(CommandPrompt::NewPassphrase, String::new());
    for typed in ["", "one", "two", "one"] {
        assert!(
            matches!(asking.answer(line(typed)), DialogStep::Next),
            "{typed}"
        );
    }
    assert!(matches!(
        asking.answer(line("one")),
        DialogStep::Given(PromptResponse::NewPassphrase(_))
    ));
    asking.want(CommandPrompt::Consent, String::new());
    assert!(matches!(asking.answer(line("yes")), DialogStep::Next));
    // The vault was locked meanwhile, so the console asks for its passphrase and not for the command's.
    asking.wait_for(Some(&waits(UnlockPrompt::Passphrase)));
    assert!(matches!(
        asking.answer(line("one")),
        DialogStep::Passphrase(_)
    ));
}

#[test]
fn shown_words_go_with_the_next_line_and_a_command_can_be_dropped() {
    let mut asking = VaultDialog::default();
    asking.reveal(SecretStr::from("one two three"));
    assert!(matches!(asking.answer(line("")), DialogStep::Next));
    assert!(asking.is_idle());
    asking.want(CommandPrompt::Passphrase, String::new());
    assert!(matches!(
        asking.answer(ConsoleInput::Cancel),
        DialogStep::Drop
    ));
    assert!(asking.is_idle());
    // A user who has forgotten the passphrase that the console asks for can reset the machine.
    asking.wait_for(Some(&waits(UnlockPrompt::Passphrase)));
    asking.answer(ConsoleInput::Begin);
    assert!(matches!(
        asking.answer(line("factory-reset")),
        DialogStep::Next
    ));
    assert!(matches!(
        asking.answer(line("RESET")),
        DialogStep::FactoryReset
    ));
}

#[test]
fn places_differ_and_the_table_has_every_word() {
    let mut n = 0;
    let drawn = places(24, || {
        n += 1;
        n / 2
    });
    assert_eq!(drawn.len(), CHECKED);
    assert!(drawn.iter().all(|place| (1..=24).contains(place)));
    let different: BTreeSet<_> = drawn.iter().collect();
    assert_eq!(different.len(), CHECKED, "{drawn:?}");
    let words: Vec<String> = (1..=24).map(|n| format!("w{n}")).collect();
    let table = table(&SecretStr::from(words.join(" ").as_str()));
    assert_eq!(table.len(), 6);
    assert!(table[0].starts_with("  1 w1 ") && table[0].contains(" 19 w19"));
}
