use std::collections::BTreeSet;

use super::new_words::{CHECKED, table};
use super::*;

/// The id of the console with this number, which the tests of this process share.
fn at(number: usize) -> ConsoleId {
    static CONSOLES: std::sync::OnceLock<[ConsoleId; 2]> = std::sync::OnceLock::new();
    CONSOLES.get_or_init(|| [ConsoleId::unique(), ConsoleId::unique()])[number - 1]
}

/// A conversation in which console 1 runs a command.
fn running() -> VaultDialog {
    let mut asking = VaultDialog::default();
    asking.answer(at(1), ConsoleInput::Begin);
    let step = asking.answer(at(1), line("words show"));
    assert!(matches!(step, DialogStep::Run(_)));
    asking
}

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
        assert!(matches!(
            asking.answer(at(1), line(answer)),
            DialogStep::Next
        ));
    }
    assert!(matches!(
        asking.answer(at(1), line("three")),
        DialogStep::Next
    ));
    // The same question asked again does not restart the conversation.
    asking.wait_for(Some(&waits(UnlockPrompt::NewPassphrase)));
    assert!(matches!(
        asking.answer(at(1), line("three")),
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
            matches!(asking.answer(at(1), line(answer)), DialogStep::Next),
            "{answer}"
        );
        asking.wait_for(Some(&waits(UnlockPrompt::NewPin)));
    }
    let DialogStep::NewPin(pin) = asking.answer(at(1), line("1234")) else {
        panic!("the same twice");
    };
    assert_eq!(pin.expose(), "1234");
}

#[test]
fn enter_leads_from_the_pin_to_the_passphrase_and_back() {
    let mut asking = VaultDialog::default();
    let both = |ask| waits(ask).with_other_way();
    let prompt = |asking: &VaultDialog| format!("{:?}", asking.question(at(1)));
    asking.wait_for(Some(&both(UnlockPrompt::Pin)));
    assert!(prompt(&asking).contains("\"PIN of the TPM, or Enter for the passphrase"));
    assert!(matches!(asking.answer(at(1), line("")), DialogStep::Next));
    // An attempt without input does not replace the question that the user chose.
    asking.wait_for(Some(&both(UnlockPrompt::Pin)));
    assert!(prompt(&asking).contains("\"passphrase of the vault, or Enter for the PIN"));
    assert!(matches!(
        asking.answer(at(1), line("right")),
        DialogStep::Passphrase(_)
    ));
    asking.wait_for(Some(&both(UnlockPrompt::Passphrase)));
    assert!(matches!(asking.answer(at(1), line("")), DialogStep::Retry));
    asking.wait_for(Some(&both(UnlockPrompt::Pin)));
    assert!(matches!(
        asking.answer(at(1), line("1234")),
        DialogStep::Pin(_)
    ));
    // The TPM is locked, so only the passphrase is left.
    asking.wait_for(Some(&waits(UnlockPrompt::Passphrase)));
    assert!(prompt(&asking).contains("or Enter where it opens by itself"));
    asking.wait_for(Some(&waits(UnlockPrompt::Pin)));
    assert!(matches!(asking.answer(at(1), line("")), DialogStep::Retry));
    assert!(matches!(
        asking.answer(at(1), line("not ascii: ä")),
        DialogStep::Next
    ));
    assert!(prompt(&asking).contains("\"PIN of the TPM\""));
}

#[test]
fn words_are_checked_before_they_are_taken() {
    let mut asking = VaultDialog::default();
    asking.wait_for(Some(&waits(UnlockPrompt::Words)));
    assert!(matches!(
        asking.answer(at(1), line("abandon abandon")),
        DialogStep::Next
    ));
    assert!(asking.question(at(1)).is_some());
    let phrase = format!("{}about", "abandon ".repeat(11));
    assert!(matches!(
        asking.answer(at(1), line(&phrase)),
        DialogStep::Words(WordsSource::These(_))
    ));
    asking.wait_for(Some(&waits(UnlockPrompt::Words)));
    assert!(matches!(
        asking.answer(at(1), line(" ")),
        DialogStep::Words(WordsSource::Make)
    ));
}

#[test]
fn three_words_show_that_they_were_written_down() {
    let words: Vec<String> = (1..=24).map(|n| format!("word{n}")).collect();
    let mut asking = VaultDialog::default();
    asking.show(SecretStr::from(words.join(" ").as_str()), vec![3, 24, 1]);
    assert!(matches!(
        asking.answer(at(1), ConsoleInput::Look),
        DialogStep::Next
    ));
    assert!(asking.question(at(1)).is_some());
    for (typed, goes_on) in [("word4", true), (" WORD3 ", true), ("word24", true)] {
        assert_eq!(
            matches!(asking.answer(at(1), line(typed)), DialogStep::Next),
            goes_on
        );
    }
    // The user may begin something else meanwhile.
    asking.answer(at(1), ConsoleInput::Begin);
    assert!(matches!(
        asking.answer(at(1), line("status")),
        DialogStep::Run(_)
    ));
    asking.tell(Vec::new());
    asking.answer(at(1), ConsoleInput::Cancel);
    assert!(matches!(
        asking.answer(at(1), line("word1")),
        DialogStep::WordsKept
    ));
    assert!(asking.question(at(1)).is_none());
}

#[test]
fn a_reset_needs_its_word_and_can_be_left() {
    let mut asking = VaultDialog::default();
    assert!(matches!(
        asking.answer(at(1), ConsoleInput::Begin),
        DialogStep::Next
    ));
    assert!(matches!(
        asking.answer(at(1), line("factory-reset")),
        DialogStep::Next
    ));
    assert!(matches!(
        asking.answer(at(1), line("reset")),
        DialogStep::Next
    ));
    assert!(matches!(
        asking.answer(at(1), line("factory-reset")),
        DialogStep::Next
    ));
    assert!(matches!(
        asking.answer(at(1), line("RESET")),
        DialogStep::FactoryReset
    ));
    assert!(matches!(
        asking.answer(at(1), ConsoleInput::Begin),
        DialogStep::Next
    ));
    asking.answer(at(1), ConsoleInput::Cancel);
    assert!(asking.question(at(1)).is_none());
}

#[test]
fn a_command_is_recognised_and_its_inputs_are_prompted() {
    let mut asking = VaultDialog::default();
    asking.answer(at(1), ConsoleInput::Begin);
    assert!(matches!(
        asking.answer(at(1), line("slot add x")),
        DialogStep::Next
    ));
    assert!(asking.question(at(1)).is_some(), "the mistake is shown");
    assert!(matches!(
        asking.answer(at(1), line("slot set")),
        DialogStep::Run(VaultCommand::SlotSet)
    ));
    assert!(asking.question(at(1)).is_none(), "it is being tried");
    asking.want(CommandPrompt::NewPassphrase, String::new());
    for typed in ["", "one", "two", "one"] {
        assert!(
            matches!(asking.answer(at(1), line(typed)), DialogStep::Next),
            "{typed}"
        );
    }
    assert!(matches!(
        asking.answer(at(1), line("one")),
        DialogStep::Given(PromptResponse::NewPassphrase(_))
    ));
    asking.want(CommandPrompt::Consent, String::new());
    assert!(matches!(
        asking.answer(at(1), line("yes")),
        DialogStep::Next
    ));
    // The vault was locked meanwhile, so the console asks for its passphrase and not for the command's.
    asking.wait_for(Some(&waits(UnlockPrompt::Passphrase)));
    assert!(matches!(
        asking.answer(at(1), line("one")),
        DialogStep::Passphrase(_)
    ));
}

#[test]
fn shown_words_go_with_the_next_line_and_a_command_can_be_dropped() {
    let mut asking = running();
    asking.reveal(SecretStr::from("one two three"));
    assert!(matches!(asking.answer(at(1), line("")), DialogStep::Next));
    assert!(asking.question(at(1)).is_none() && !asking.has_command());
    let mut asking = running();
    asking.want(CommandPrompt::Passphrase, String::new());
    assert!(matches!(
        asking.answer(at(1), ConsoleInput::Cancel),
        DialogStep::Drop
    ));
    assert!(!asking.has_command());
    // A user who has forgotten the passphrase that the console asks for can reset the machine.
    asking.wait_for(Some(&waits(UnlockPrompt::Passphrase)));
    asking.answer(at(1), ConsoleInput::Begin);
    assert!(matches!(
        asking.answer(at(1), line("factory-reset")),
        DialogStep::Next
    ));
    assert!(matches!(
        asking.answer(at(1), line("RESET")),
        DialogStep::FactoryReset
    ));
}

#[test]
fn places_differ_and_the_table_has_every_word() {
    let mut n = 0;
    let drawn = positions(24, || {
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

/// A person at another console, or a keyboard that types by itself, waits for the owner's proof.
#[test]
fn what_a_proof_leads_to_is_for_the_console_where_it_was_typed() {
    let mut asking = running();
    for (want, typed) in [
        (CommandPrompt::Passphrase, "hush"),
        (CommandPrompt::NewPassphrase, "x"),
        (CommandPrompt::Word(3), "zoo"),
        (CommandPrompt::Consent, "I HAVE THE WORDS"),
        (CommandPrompt::Share, ""),
    ] {
        let text = format!("{want:?}");
        asking.want(want, String::new());
        assert!(asking.question(at(1)).is_some(), "{text}");
        assert!(asking.question(at(2)).is_none(), "{text}");
        for answer in [
            line(typed),
            line(typed),
            ConsoleInput::Cancel,
            ConsoleInput::Look,
        ] {
            let step = asking.answer(at(2), answer);
            assert!(matches!(step, DialogStep::Next), "{text}: {step:?}");
        }
        asking.answer(at(1), line(typed));
        asking.answer(at(1), line(typed));
        assert!(asking.question(at(1)).is_none(), "{text}: it was answered");
    }
    asking.reveal(SecretStr::from("one two three"));
    assert!(asking.question(at(2)).is_none());
    asking.answer(at(2), line(""));
    let shown = asking.question(at(1)).expect("still shown");
    assert!(shown.lines().any(|line| line.contains("three")));
}

/// What the owner does at one console keeps a person at another from commands, and from nothing else.
#[test]
fn a_second_console_may_lock_the_vault_while_a_command_runs_at_the_first() {
    let mut asking = running();
    asking.want(CommandPrompt::Passphrase, String::new());
    asking.answer(at(2), ConsoleInput::Begin);
    assert!(matches!(
        asking.answer(at(2), line("slot list")),
        DialogStep::Next
    ));
    let refused = asking.question(at(2)).expect("the list of commands");
    let refused: Vec<_> = refused.lines().map(str::to_owned).collect();
    assert_eq!(refused[0], command_line::IN_USE);
    assert!(matches!(
        asking.answer(at(2), line("lock hard")),
        DialogStep::Lock { hard: true }
    ));
    asking.answer(at(1), ConsoleInput::Cancel);
    asking.answer(at(2), ConsoleInput::Begin);
    assert!(matches!(
        asking.answer(at(2), line("slot list")),
        DialogStep::Run(_)
    ));
}

/// A try ends after its conversation: the result is not for a conversation that began meanwhile.
#[test]
fn a_late_result_is_for_no_other_conversation() {
    let mut asking = running();
    asking.try_begins();
    asking.end();
    asking.answer(at(2), ConsoleInput::Begin);
    asking.answer(at(2), line("words show"));
    assert!(!asking.try_ended());
    asking.try_begins();
    assert!(asking.try_ended());
}

#[test]
fn new_words_are_shown_and_checked_at_one_console() {
    let show = |asking: &mut VaultDialog| {
        asking.show(SecretStr::from("one two three"), vec![2]);
    };
    let has_words = |asking: &VaultDialog, console| {
        let question = asking.question(console);
        question.is_some_and(|asked| asked.lines().any(|line| line.contains("three")))
    };
    let mut asking = VaultDialog::default();
    show(&mut asking);
    for console in [at(1), at(2)] {
        assert!(asking.question(console).is_some() && !has_words(&asking, console));
        assert!(matches!(
            asking.answer(console, line("two")),
            DialogStep::Next
        ));
    }
    asking.answer(at(2), ConsoleInput::Look);
    assert!(has_words(&asking, at(2)) && asking.question(at(1)).is_none());
    assert!(matches!(
        asking.answer(at(1), ConsoleInput::Look),
        DialogStep::Elsewhere(_)
    ));
    assert!(matches!(
        asking.answer(at(1), line("two")),
        DialogStep::Next
    ));
    // The caller hangs up, and calls again.
    assert!(!asking.release(at(2)));
    assert!(asking.question(at(1)).is_some() && !has_words(&asking, at(1)));
    asking.answer(at(1), ConsoleInput::Look);
    assert!(matches!(
        asking.answer(at(1), line("two")),
        DialogStep::WordsKept
    ));

    // The user who typed what made the vault gets its words without another key.
    asking.wait_for(Some(&waits(UnlockPrompt::NewPassphrase)));
    asking.answer(at(1), line("hush"));
    assert!(asking.question(at(2)).is_some(), "it may begin as well");
    asking.answer(at(1), line("hush"));
    asking.wait_for(Some(&waits(UnlockPrompt::Words)));
    assert!(
        asking.question(at(2)).is_none(),
        "the rest is asked for at one"
    );
    assert!(matches!(asking.answer(at(2), line("")), DialogStep::Next));
    assert!(matches!(
        asking.answer(at(1), line("")),
        DialogStep::Words(_)
    ));
    asking.wait_for(None);
    show(&mut asking);
    assert!(has_words(&asking, at(1)) && !has_words(&asking, at(2)));
}

/// The halves of a new passphrase come from one console.
#[test]
fn what_is_typed_twice_is_typed_twice_at_one_console() {
    let mut asking = VaultDialog::default();
    asking.wait_for(Some(&waits(UnlockPrompt::NewPassphrase)));
    asking.answer(at(2), line("x"));
    for _ in 0..2 {
        assert!(matches!(asking.answer(at(1), line("x")), DialogStep::Next));
        assert!(matches!(asking.answer(at(2), line("x")), DialogStep::Next));
    }
    assert!(matches!(
        asking.answer(at(2), line("x")),
        DialogStep::NewPassphrase(_)
    ));
}

/// The share of another node comes while the console asks whether to go on without it.
#[test]
fn a_command_goes_on_with_what_another_node_gave() {
    let mut asking = running();
    asking.want(CommandPrompt::Share, String::new());
    asking.try_begins();
    assert!(asking.question(at(1)).is_none(), "it is being tried");
    assert!(asking.try_ended());
    asking.tell(vec!["done".to_owned()]);
    let told = asking.question(at(1)).expect("the result");
    assert!(told.lines().any(|line| line == "done"));
}

#[test]
fn a_caller_who_hangs_up_ends_the_command() {
    let mut asking = running();
    asking.want(CommandPrompt::Passphrase, String::new());
    assert!(!asking.release(at(2)));
    assert!(asking.release(at(1)));
    assert!(asking.question(at(1)).is_none());
}
