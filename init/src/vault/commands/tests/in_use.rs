//! An attacker who controls the disk makes it answer the running machine otherwise than at its
//! start.
//!
//! On a booted machine the kernel keeps the blocks of the vault in memory for as long as the data
//! are mounted, and asks the disk again when it needs that memory for something else. No test can
//! wait for that: here the disk is a file, and it is read each time.

use alknet_vault::slots::{Argon2Params, VaultId};

use super::*;
use crate::data::DataAccess;
use crate::vault::{NotInUse, UnlockCredentials, UnlockPrompt};

/// The note of the newest vault, beside the data.
const NOTE: &str = "config/vault-newest.json";
/// Changes of an attacker's vault, which make it newer than any other.
const CHANGES: usize = 8;

impl CommandMachine {
    /// A machine that is sealed by the passphrase "one" and was configured, and its vault from
    /// before it was sealed, which opens unattended.
    fn sealed() -> (Self, String) {
        let machine = Self::new();
        machine.done("slot add passphrase", vec![new("one")]);
        let before = machine.copy_at(VAULT_A_AT);
        machine.done("slot remove 0", vec![]);
        machine.assert_in_use();
        (machine, before)
    }

    /// Asserts that nothing is taken from a medium, and nothing is shown or added without the
    /// passphrase.
    #[track_caller]
    fn assert_in_use(&self) {
        let facts = self.vault.facts();
        assert!(self.vault.is_sealed(), "{facts:?}");
        assert!(self.vault.is_configured(), "{facts:?}");
        assert_eq!(self.vault.asks(), UnlockPrompt::Passphrase);
        assert_eq!(facts.slots, ["passphrase"]);
    }

    /// Makes both copies say this from now on.
    fn answers(&self, text: &str) {
        for at in [VAULT_A_AT, VAULT_B_AT] {
            self.put_copy(at, text);
        }
    }

    /// Tries to open the vault once more, with what was typed. Otherwise the reason why it stays
    /// locked.
    fn reopened(&self, typed: Option<&str>) -> Result<(), String> {
        self.tried(typed, false)
    }

    /// Does the same with what was typed after the console had said that the copy is older.
    fn confirmed(&self, typed: &str) -> Result<(), String> {
        self.tried(Some(typed), true)
    }

    fn tried(&self, typed: Option<&str>, knows_of_age: bool) -> Result<(), String> {
        let offer = UnlockCredentials {
            passphrase: typed.map(SecretStr::from),
            knows_of_age,
            ..UnlockCredentials::default()
        };
        let access = DataAccess {
            vault: &self.vault,
            offer: &offer,
            log: &self.log,
            takes_blank: false,
        };
        self.vault.begin_attempt();
        let opened = data::reopen(
            &self.device(),
            self.dir.path(),
            FirstBootPermissions::default(),
            access,
        );
        assert_eq!(opened.is_ok(), self.vault.is_open());
        opened.map_err(|waiting| waiting.problem.text)
    }

    fn note(&self) -> PathBuf {
        self.dir.path().join(NOTE)
    }

    /// Makes the data beside the vault those of a later one.
    fn outdate(&self) {
        let noted = std::fs::read_to_string(self.note()).expect("it was changed");
        let mut noted = json(&noted);
        noted["generation"] = 1000.into();
        std::fs::write(self.note(), noted.to_string()).expect("writable");
    }
}

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).expect("JSON")
}

/// A vault of an attacker's words that opens unattended, is newer than any other, and permits what
/// a first boot does.
fn made_as(id: VaultId) -> OpenAlkv {
    let words = Entropy::generate(WordCount::TwentyFour).expect("random bytes");
    let vault = NewVault {
        pending: FirstBootPermissions::ALL,
        ..NewVault::new(words, 0)
    };
    let open = OpenAlkv::create_as(id, vault, |_| Ok(NewSlot::None));
    let mut open = open.expect("made");
    for _ in 0..CHANGES {
        open.add(NewSlot::None).expect("there is room");
    }
    open
}

/// The same with its own id.
fn attackers() -> OpenAlkv {
    made_as(VaultId::generate().expect("random bytes"))
}

/// The same with the id of the machine's vault, which its header has in the clear.
fn forged(machine: &CommandMachine) -> OpenAlkv {
    let open = made_as(on_listed(machine).uuid());
    let newest = on_listed(machine).generation();
    assert!(open.alkv().generation() > newest, "an older copy");
    open
}

/// A vault of an attacker's words with this id, as old as any, which the passphrase opens.
fn of_passphrase(id: VaultId, passphrase: &str) -> OpenAlkv {
    let words = Entropy::generate(WordCount::TwentyFour).expect("random bytes");
    let (cost, passphrase) = (Argon2Params::FLOOR, SecretStr::from(passphrase));
    let slot = NewSlot::Passphrase {
        passphrase: &passphrase,
        cost,
        cap_kib: cost.kib(),
    };
    let open = OpenAlkv::create_as(id, NewVault::new(words, 0), |_| Ok(slot));
    open.expect("made")
}

fn text_of(open: &OpenAlkv) -> String {
    open.alkv().to_text()
}

/// A locked machine would take a configuration from the console if its vault were not sealed.
#[test]
fn slots_that_only_the_disk_lists_take_nothing_from_a_locked_vault() {
    let (machine, _) = CommandMachine::sealed();
    let newest = machine.copy_at(VAULT_A_AT);
    let mut forged = json(&newest);
    forged["slots"] = json(&vault().alkv().to_text())["slots"].take();
    machine.vault.lock();
    machine.answers(&forged.to_string());
    assert!(!on_listed(&machine).is_sealed(), "it is forged");
    for typed in [None, Some("one")] {
        let why = machine.reopened(typed).expect_err("no slot opens");
        assert!(why.contains("the vault is locked"), "{why}");
        machine.assert_in_use();
    }
    machine.answers(&newest);
    assert_eq!(machine.reopened(Some("one")), Ok(()));
    machine.assert_in_use();
}

#[test]
fn a_locked_vault_opens_by_no_older_copy_and_by_no_other_vault() {
    let (machine, before) = CommandMachine::sealed();
    let newest = machine.copy_at(VAULT_A_AT);
    let older = "the vault on the disk is older than the one that this machine opened";
    let another = "the vault on the disk is another one than this machine opened";
    let copied = "the vault on the disk is forged: it has the id of the one in use and other words";
    let [attackers, forged] = [attackers(), forged(&machine)].map(|open| text_of(&open));
    machine.vault.lock();
    for (text, told) in [(&before, older), (&attackers, another), (&forged, copied)] {
        machine.answers(text);
        for typed in [None, Some("one")] {
            assert_eq!(machine.reopened(typed), Err(told.to_owned()));
            machine.assert_in_use();
        }
    }
    machine.answers(&newest);
    assert_eq!(machine.reopened(Some("one")), Ok(()));
}

/// The note beside the data counts as at a start.
#[test]
fn a_locked_vault_that_is_older_than_the_data_opens_for_its_owner_only() {
    let machine = CommandMachine::new();
    machine.done("slot add passphrase", vec![new("one")]);
    machine.outdate();
    machine.vault.lock();
    let why = machine.reopened(None).expect_err("it opens by itself");
    assert!(why.contains("older than the data beside it"), "{why}");
    assert_eq!(machine.confirmed("one"), Ok(()));
}

/// The owner types the passphrase at each start, and has not heard of the older copy that an attacker put back.
#[test]
fn a_passphrase_that_opens_an_older_vault_proves_nothing_before_the_console_said_so() {
    let (machine, _) = CommandMachine::sealed();
    machine.outdate();
    let noted = std::fs::read(machine.note()).expect("it was changed");
    machine.vault.lock();
    for _ in 0..2 {
        let why = machine.reopened(Some("one")).expect_err("it is older");
        assert!(why.contains("older than the data beside it"), "{why}");
        assert!(why.contains("type it once more"), "{why}");
        assert_eq!(machine.vault.wrong_count(), 0, "it is the right one");
        assert_eq!(std::fs::read(machine.note()).expect("it is there"), noted);
    }
    assert_eq!(machine.confirmed("one"), Ok(()));
    machine.vault.lock();
    assert_eq!(machine.reopened(Some("one")), Ok(()), "it is the newest");
}

/// The attacker writes their own vault as the second copy, with the id of the machine's, which lies
/// in the clear, and types what opens it. That proves nothing about the older copy, which opens by
/// a slot that needs no person.
#[test]
fn a_passphrase_of_a_forged_copy_proves_nothing_about_an_older_vault() {
    let machine = CommandMachine::new();
    machine.done("slot add passphrase", vec![new("one")]);
    machine.outdate();
    let newest = on_listed(&machine);
    let forged = of_passphrase(newest.uuid(), "x");
    assert!(forged.alkv().generation() <= newest.generation());
    machine.put_copy(VAULT_B_AT, &text_of(&forged));
    machine.vault.lock();
    for wrong in 1..=2 {
        let why = machine.confirmed("x").expect_err("it is the attacker's");
        assert!(why.contains("older than the data beside it"), "{why}");
        assert_eq!(
            machine.vault.wrong_count(),
            wrong,
            "it counts as a wrong one"
        );
    }
    assert_eq!(machine.confirmed("one"), Ok(()));
    assert_eq!(machine.vault.wrong_count(), 0);
}

/// The vault in use is open. A command would change what the disk answers, and note it as the
/// newest.
#[test]
fn commands_change_no_other_vault() {
    let (machine, _) = CommandMachine::sealed();
    let newest = machine.copy_at(VAULT_A_AT);
    let noted = std::fs::read(machine.note()).expect("it was changed");
    for (open, told) in [
        (attackers(), "another one"),
        (forged(&machine), "is forged"),
    ] {
        let text = text_of(&open);
        machine.answers(&text);
        for line in [
            "slot add none",
            "slot add passphrase",
            "slot remove 0",
            "words",
        ] {
            let why = machine.refused(line, vec![]);
            assert!(why.contains(told), "{line}: {why}");
            assert!(why.contains("put "), "what to do about it: {why}");
            machine.assert_in_use();
        }
        assert_eq!(machine.copy_at(VAULT_A_AT), text);
        assert_eq!(std::fs::read(machine.note()).expect("it is there"), noted);
    }
    machine.answers(&newest);
    let shown = machine.typed("words", vec![passphrase("one")]);
    assert!(matches!(shown, CommandOutcome::Words(_)), "{shown:?}");
}

/// Ten minutes after the first start, or when the words are confirmed, PID 1 changes the vault
/// while no owner types.
#[test]
fn the_end_of_the_first_boot_makes_no_older_copy_the_newest() {
    let words = Entropy::generate(WordCount::TwentyFour).expect("random bytes");
    let first = NewVault {
        pending: FirstBootPermissions::ALL,
        ..NewVault::new(words, 0)
    };
    let first = OpenAlkv::create(first, NewSlot::None).expect("made");
    let machine = CommandMachine::with_vault(&first);
    let before = machine.copy_at(VAULT_A_AT);
    machine.done("slot add passphrase", vec![new("one")]);
    let newest = machine.copy_at(VAULT_A_AT);
    let noted = std::fs::read(machine.note()).expect("it was changed");
    let conclude = || {
        let (vault, log) = (&machine.vault, &machine.log);
        data::conclude_vault(
            &machine.device(),
            machine.dir.path(),
            FirstBootPermissions::ALL,
            vault,
            log,
        )
    };
    let [attackers, forged] = [attackers(), forged(&machine)].map(|open| text_of(&open));
    for (text, told) in [
        (&before, "older than"),
        (&attackers, "another one"),
        (&forged, "is forged"),
    ] {
        machine.answers(text);
        let why = conclude().expect_err("it is not in use");
        assert!(why.contains(told), "{why}");
        assert_eq!(machine.copy_at(VAULT_A_AT), *text, "it was changed");
        assert_eq!(std::fs::read(machine.note()).expect("it is there"), noted);
    }
    machine.answers(&newest);
    assert_eq!(conclude(), Ok(FirstBootPermissions::default()));
    // A copy that permits more than the newest is an older copy from then on.
    machine.answers(&newest);
    let why = machine.refused("slot add none", vec![]);
    assert!(why.contains("older than"), "{why}");
}

/// The vault was opened, its data were closed again, and the machine looks for them: another disk
/// may be there by now.
#[test]
fn nothing_is_taken_from_what_a_disk_lists_after_a_vault_opened() {
    let (machine, _) = CommandMachine::sealed();
    machine.vault.lock();
    for open in [attackers(), forged(&machine)] {
        machine.vault.note(open.alkv());
        machine.assert_in_use();
    }
}

/// A vault that opens unattended does not replace the vault in use, neither while that is open nor
/// after a lock. The data judge an older copy of it.
#[test]
fn no_vault_of_other_words_takes_the_place_of_one_that_opened() {
    let (machine, before) = CommandMachine::sealed();
    let vault = &machine.vault;
    let before = Alkv::parse(before.as_bytes()).expect("it is our own");
    let slot = before.slots()[0].id();
    let before = before.open(slot, &mut UnlockKey::Stored).expect("its key");
    let others = [
        (attackers(), NotInUse::Another),
        (forged(&machine), NotInUse::Forged),
    ];
    for (open, _) in &others {
        assert!(vault.admit(open).is_err(), "another is open");
        machine.assert_in_use();
    }
    vault.lock();
    for (open, which) in &others {
        assert_eq!(vault.check_words(open), Err(*which));
        assert_eq!(vault.check_in_use(open), Err(*which));
        vault.is_now(open);
        machine.assert_in_use();
    }
    assert_eq!(vault.check_words(&before), Ok(()));
    assert_eq!(vault.check_in_use(&before), Err(NotInUse::Older));
    // The owner made the machine make a new vault.
    vault.forget();
    let (forged, _) = &others[1];
    assert_eq!(vault.check_words(forged), Ok(()));
    assert!(vault.check_in_use(forged).is_err(), "none is in use");
    vault.begin_attempt();
    vault.admit(forged).expect("it has a place");
    assert_eq!(vault.check_in_use(forged), Ok(()));
    assert_eq!(vault.check_in_use(&before), Err(NotInUse::Forged));
}
