//! A new master key, and which slots stay with it.

use super::*;

/// A visitor at the console of a machine that opens by its medium, and by another node as well.
#[test]
fn a_new_master_key_loses_no_slot_without_proof() {
    let machine = CommandMachine::new();
    machine.done("slot add provisioning", vec![]);
    machine.add_kms();
    machine.done("slot remove 0", vec![]);
    machine.vault.escrow().set_network(true);
    let phrase = machine.phrase();
    let mut session = begun_with(&machine, "rekey");
    session.give(PromptResponse::WithoutShares);
    let mut asked = 0;
    let last = loop {
        match machine.run(&mut session) {
            CommandOutcome::Wants(CommandPrompt::Word(at), _) => {
                let word = SecretStr::from(phrase[at - 1].as_str());
                session.give(PromptResponse::Word(word));
                asked += 1;
            }
            CommandOutcome::Wants(CommandPrompt::Confirmation { .. }, _) => {
                assert_eq!(asked, 3, "the words come first");
                session.give(PromptResponse::Confirmed);
            }
            other => break other,
        }
    };
    assert!(matches!(last, CommandOutcome::Done(_)), "{last:?}");
    assert_eq!(machine.slots(), [(1, SlotType::Provisioning)]);
}

#[test]
fn a_new_master_key_changes_the_data_partition_with_it() {
    let machine = CommandMachine::new();
    machine.done("slot add passphrase", vec![new("one")]);
    machine.done("slot add passphrase", vec![new("two")]);
    let wants = machine.typed("rekey", vec![of_slot(1, Some("one")), of_slot(2, None)]);
    let CommandOutcome::Wants(CommandPrompt::Confirmation { lines, .. }, _) = &wants else {
        panic!("{wants:?}");
    };
    let lines = lines.join("\n");
    assert!(
        lines.contains("slot 1 (passphrase) stays")
            && lines.contains("slot 2 (passphrase) is LOST"),
        "{lines}"
    );
    let given = || {
        vec![
            of_slot(1, Some("one")),
            of_slot(2, None),
            PromptResponse::Confirmed,
        ]
    };
    machine.done("rekey", given());
    assert_eq!(
        machine.slots(),
        [(0, SlotType::None), (1, SlotType::Passphrase)]
    );
    let found = data::copies(&machine.device()).load().expect("good");
    let open = found
        .expect("a vault")
        .open(&mut UnlockKey::Stored)
        .expect("open");
    let [own, words] = open.data_phrases().expect("words");
    let sealed = SealedPartition::load(machine.file(), BYTES).expect("a header");
    let numbers: Vec<_> = sealed
        .summary()
        .slots
        .iter()
        .map(|one| one.number)
        .collect();
    assert_eq!(numbers, [1, 2]);
    assert!(sealed.unlock(2, own.expose().as_bytes()).is_ok());
    assert!(sealed.unlock(1, words.expose().as_bytes()).is_ok());
    let events = machine.events();
    assert!(events.contains(r#""ev":"rekeyed""#), "{events}");
    // The console asks again for every wrong passphrase, and the wrong one loses no slot.
    let wrong = machine.typed("rekey", vec![of_slot(1, Some("two"))]);
    assert!(
        matches!(&wrong, CommandOutcome::Wants(CommandPrompt::PassphraseOf { .. }, why) if why.contains("wrong")),
        "{wrong:?}"
    );
}

#[test]
fn a_new_master_key_keeps_the_slot_of_another_node_that_gives_its_share() {
    let machine = CommandMachine::new();
    let share = machine.add_kms();
    let escrow = machine.vault.escrow();
    escrow.set_network(true);
    let begun = || begun_with(&machine, "rekey");
    let warned = |session: &mut CommandSession| match machine.run(session) {
        CommandOutcome::Wants(CommandPrompt::Confirmation { lines, .. }, _) => lines.join("\n"),
        other => panic!("{other:?}"),
    };

    // The user does not wait for the node, or the node refuses.
    let mut session = begun();
    session.give(PromptResponse::WithoutShares);
    let lines = warned(&mut session);
    assert!(
        lines.contains("slot 1 (kms) is LOST: it is being asked"),
        "{lines}"
    );
    escrow.clear();
    let mut session = begun();
    let denied = helper_task::HelperOutcome::refused(HelperRefusal::Denied, "it was revoked");
    machine.answer(denied);
    let lines = warned(&mut session);
    assert!(
        lines.contains("slot 1 (kms) is LOST: it was revoked"),
        "{lines}"
    );
    escrow.clear();

    // A helper asks once, however often the command is tried.
    let mut session = begun();
    let released = || helper_task::HelperOutcome::Released {
        share: HexSecret::copy_of(&share),
    };
    machine.answer(released());
    let lines = warned(&mut session);
    assert!(lines.contains("slot 1 (kms) stays"), "{lines}");
    session.give(PromptResponse::Confirmed);
    let done = machine.run(&mut session);
    assert!(matches!(done, CommandOutcome::Done(_)), "{done:?}");
    escrow.clear();
    assert_eq!(machine.slots(), [(0, SlotType::None), (1, SlotType::Kms)]);

    // The other half is unchanged, and opens the present vault. No passphrase proves who types: the words do.
    let found = data::copies(&machine.device()).load().expect("good");
    let open = found.expect("a vault").open(&mut UnlockKey::Stored);
    let phrase = open.expect("the slot without a secret").entropy().phrase();
    let phrase: Vec<&str> = phrase.expose().split(' ').collect();
    machine.done("slot remove 0", vec![]);
    let mut session = begun_with(&machine, "slot remove 1");
    machine.answer(released());
    let mut last = machine.run(&mut session);
    while let CommandOutcome::Wants(CommandPrompt::Word(at), _) = &last {
        session.give(PromptResponse::Word(SecretStr::from(phrase[at - 1])));
        last = machine.run(&mut session);
    }
    assert!(
        matches!(&last, CommandOutcome::Refused(why) if why.contains("is the last")),
        "{last:?}"
    );
}

fn begun_with(machine: &CommandMachine, line: &str) -> CommandSession {
    let mut session = CommandSession::new(VaultCommand::parse(line).expect(line));
    let wants = machine.run(&mut session);
    assert!(
        matches!(wants, CommandOutcome::Wants(CommandPrompt::Share, _)),
        "{wants:?}"
    );
    assert!(session.waits_for_share());
    session
}
