mod clouds;
mod consoles;
mod erasing;

use std::fs::File;

use alknet_provisioning::{ConfigOrigin, MediaSecrets};
use alknet_sealed::limits::DATA_AT;
use alknet_vault::slots::{
    Argon2Params, KmsParams, LoadedCopies, NewSlot, NewVault, OpenAlkv, UnlockKey, VaultId,
};
use alknet_vault::{Entropy, SecretArr, SecretStr};
use zeroize::Zeroizing;

use super::*;
use crate::{
    control::DataState,
    data::{self, keyslot_tests},
    facts::ClockState,
    helper_task::HexSecret,
    settings::tests::{settings, with_words},
    supervise::SupervisorAction,
    vault::{self, UnlockPrompt, VaultCommand},
};

/// The id of a console, the same in all tests.
fn console() -> ConsoleId {
    static CONSOLE: std::sync::OnceLock<ConsoleId> = std::sync::OnceLock::new();
    *CONSOLE.get_or_init(ConsoleId::unique)
}

/// A machine at rest whose vault is open and whose disk is gone.
pub(super) fn machine() -> InitMachine {
    machine_with_vault().0
}

/// The same with the content of its disk.
pub(super) fn machine_with_vault() -> (InitMachine, LoadedCopies) {
    let log = InitLog::default();
    let vault = VaultHandle::new().expect("memory");
    let dir = tempfile::tempdir().expect("a temporary directory");
    let disk = dir.path().join("disk");
    let file = File::create_new(&disk).expect("a new file");
    file.set_len(DATA_AT).expect("a sparse file");
    let made = keyslot_tests::vault();
    data::copies(&disk).create(&made).expect("written");
    let found = data::copies(&disk).load().expect("good");
    let found = found.expect("a vault");
    let media = MediaSecrets::default();
    let (offer, permits) = (UnlockCredentials::default(), |_: &OpenAlkv| Ok(()));
    let opened = vault::open(&found, &vault, &offer, &media, &log, &permits);
    opened.map(drop).expect("its key lies beside it");
    let (events, _) = mpsc::channel(EVENTS_MAX);
    let vault = Arc::new(vault);
    let machine = InitMachine::at_rest(InitFacts::default(), vault, settings(None), log, events);
    (machine, found)
}

/// How often the log of the vault says that the vault was locked.
fn locked(machine: &InitMachine) -> usize {
    let events = machine.vault.events().fresh();
    let locked = events
        .iter()
        .filter(|event| event.contains(r#""ev":"locked""#));
    locked.count()
}

#[test]
fn a_vault_locked_before_its_node_ended_prompts_again() {
    let mut machine = machine();
    machine.supervisor.start(0);
    assert_eq!(
        machine.supervisor.order(0, 0),
        Some(SupervisorAction::Spawn)
    );
    // The node has the same memory, and so it sees the lock.
    machine.vault.vault().lock();
    assert!(machine.asking.question(console()).is_none());
    machine.spawn(0);
    assert!(machine.node.is_none(), "it would make a key of its own");
    assert_eq!(machine.supervisor.order(0, 0), None);
    let waiting = machine.waiting.as_ref().expect("it waits");
    assert_eq!(waiting.ask, UnlockPrompt::Passphrase);
    let told = &machine.facts.problems.vault;
    assert_eq!(told.as_slice(), std::slice::from_ref(&waiting.problem));
    assert_eq!(told[0].code, "vault-locked");
    assert!(machine.asking.question(console()).is_some());
    assert_eq!(locked(&machine), 1);

    // One entry is enough, and what opens the vault starts the node.
    machine.spawn(0);
    assert_eq!(locked(&machine), 1);
    machine.vault.begin_attempt();
    machine.unlocked(None, 0);
    assert_eq!(
        machine.supervisor.order(0, 0),
        Some(SupervisorAction::Spawn)
    );
}

/// The result of an attempt to make a vault of `offer`, which needs more than that.
fn needs_more(offer: UnlockCredentials) -> OpenedData {
    let waiting = VaultWait::new(
        UnlockPrompt::NewPassphrase,
        "vault-waits",
        "the vault needs a passphrase",
        "type one on the console",
    );
    OpenedData {
        prepared: PreparedData {
            state_dir: std::path::PathBuf::new(),
            state: DataState {
                mode: "locked".to_owned(),
                ..DataState::default()
            },
            problems: Vec::new(),
            waiting: Some(waiting),
            vault_at: None,
            vault: None,
        },
        settings: settings(None),
        clock: ClockState::Unset,
        offer,
        update: None,
    }
}

/// The owner of a vault with a PIN or a passphrase types it at each start, and reads only then that the disk is older.
#[test]
fn only_what_answers_the_question_about_an_older_copy_knows_of_its_age() {
    let mut machine = machine();
    for (ask, code, knows) in [
        (UnlockPrompt::Pin, "vault-locked", false),
        (UnlockPrompt::Pin, "vault-old", true),
        (UnlockPrompt::Passphrase, "vault-old", true),
        (UnlockPrompt::Passphrase, "vault-locked", false),
    ] {
        let waiting = VaultWait::new(ask, code, "the vault stays closed", "type it");
        let mut opened = needs_more(UnlockCredentials::default());
        opened.prepared.waiting = Some(waiting);
        machine.opened(opened, 0);
        // The test must not open a disk of the host.
        machine.prepared = None;
        let line = Zeroizing::new("1234".to_owned());
        machine.answered(console(), ConsoleInput::Line(line), 0);
        let offer = &machine.offer;
        assert!(offer.pin.is_some() || offer.passphrase.is_some());
        assert_eq!(offer.knows_of_age, knows, "{ask:?} {code}");
    }
}

/// An attacker types a passphrase at a machine that waits for its first start, and leaves before its owner comes.
#[test]
fn what_is_typed_for_a_new_vault_is_forgotten_when_no_answer_follows() {
    let mut machine = machine();
    // The test must not change the settings of the host.
    machine.life = 1;
    machine.opened(needs_more(UnlockCredentials::default()), 0);
    let typed = |machine: &mut InitMachine| {
        // The test must not open a disk of the host.
        machine.prepared = None;
        for _ in 0..2 {
            let line = Zeroizing::new("an attacker's".to_owned());
            machine.answered(console(), ConsoleInput::Line(line), 0);
        }
        assert!(machine.offer.new_passphrase.is_some());
    };
    typed(&mut machine);
    machine.keep_open(119_999);
    assert!(machine.offer.new_passphrase.is_some(), "the owner types on");
    machine.keep_open(120_000);
    assert!(machine.offer.new_passphrase.is_none());

    // An attempt has it meanwhile.
    for (now, is_kept) in [(119_999, true), (120_000, false)] {
        typed(&mut machine);
        let tried = std::mem::take(&mut machine.offer);
        machine.keep_open(now);
        machine.opened(needs_more(tried), now);
        assert_eq!(machine.offer.new_passphrase.is_some(), is_kept);
    }
}

/// An administrator who locks hard relies on the TPM giving out no key any more.
#[test]
fn a_tpm_that_does_not_close_is_a_problem_until_it_does() {
    let mut machine = machine();
    let codes = |machine: &InitMachine| -> Vec<String> {
        let told = machine.facts.problems.vault.iter();
        told.map(|problem| problem.code.clone()).collect()
    };
    machine.lock(false, "a test", 0);
    machine.handle(MachineEvent::TpmClosed(
        Err("it does not answer".to_owned()),
    ));
    assert_eq!(codes(&machine), ["vault-locked", "tpm-not-closed"]);
    let text = &machine.facts.problems.vault[1].text;
    assert!(text.ends_with("it does not answer"), "{text}");
    machine.handle(MachineEvent::TpmClosed(Ok(())));
    assert_eq!(codes(&machine), ["vault-locked"]);
}

/// A machine without a configuration reads its sources every few seconds. Such a read finds on the disk what was
/// pasted in the meantime, and its words must count all the same.
#[tokio::test]
async fn sources_that_are_read_beside_a_paste_do_not_come_before_it() {
    let mut machine = machine();
    machine.settings = with_words(ConfigOrigin::Default);
    // The test must not open a disk of the host, whatever happens.
    let disk = tempfile::NamedTempFile::new().expect("a temporary file");
    machine.vault_at = Some(disk.path().to_owned());
    let line = ConsoleDocument::line(b"[node]\nname = \"pasted\"\n");
    machine.paste(&line);
    machine.timers.reread = Some(0);
    machine.reread(0);
    assert!(machine.timers.reread.is_some_and(|at| at > 0), "it waits");
    machine.reread_is_done(0, with_words(ConfigOrigin::Stored), 0);
    assert_eq!(machine.keeps_its_vault(), None);
    let document = ConsoleDocument::parse(&line).expect("whole");
    machine.pasted(with_words(ConfigOrigin::Console), document, 0);
    assert!(machine.remake_from.is_some(), "its words count");
    // The machine does not go back to the result of a read that began before.
    machine.reread_is_done(0, with_words(ConfigOrigin::Default), 0);
    assert!(machine.timers.reread.is_none());
}

#[tokio::test]
async fn what_the_node_took_is_not_undone_by_an_older_look_at_the_sources() {
    let mut machine = machine();
    machine.settings = with_words(ConfigOrigin::Default);
    machine.keep_config(1, "limits.connections_per_peer = 7\n".to_owned());
    machine.reread_is_done(0, with_words(ConfigOrigin::Default), 0);
    assert_eq!(machine.settings.config.limits.connections_per_peer, Some(7));
    assert!(machine.timers.reread.is_some(), "it looks again");
}

/// A node that was sealed before the owner configured it takes its first configuration while it runs. From then on
/// its vault says that it has one, whatever happens to the file.
#[tokio::test]
async fn a_configuration_that_came_while_the_machine_runs_is_noted_in_the_vault() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let disk = dir.path().join("disk");
    let file = File::create_new(&disk).expect("a new file");
    file.set_len(DATA_AT).expect("a sparse file");
    let vault = NewVault {
        pending: FirstBootPermissions::ALL,
        ..NewVault::new(Entropy::from_bytes(&[7; 32]).expect("32 bytes"), 0)
    };
    let made = OpenAlkv::create(vault, NewSlot::None).expect("made");
    data::copies(&disk).create(&made).expect("written");
    let found = || {
        let found = data::copies(&disk).load().expect("good");
        found.expect("a vault")
    };
    let log = InitLog::default();
    let vault_handle = VaultHandle::new().expect("memory");
    let (offer, media) = (UnlockCredentials::default(), MediaSecrets::default());
    let permits = |_: &OpenAlkv| Ok(());
    let opened = vault::open(&found(), &vault_handle, &offer, &media, &log, &permits);
    opened.map(drop).expect("its key lies beside it");
    let (events, mut arriving) = mpsc::channel(EVENTS_MAX);
    let vault_handle = Arc::new(vault_handle);
    let mut machine = InitMachine::at_rest(
        InitFacts::default(),
        vault_handle,
        settings(None),
        log,
        events,
    );
    machine.vault_at = Some(disk.clone());
    machine.state_dir = dir.path().to_owned();
    machine.config_stored(0, 1, None);
    // A lock at that moment delays it.
    machine.vault.lock();
    machine.conclude_now();
    assert!(!machine.working);
    machine.vault.begin_attempt();
    let reopened = vault::open(
        &found(),
        &machine.vault,
        &offer,
        &media,
        &machine.log,
        &permits,
    );
    reopened.map(drop).expect("its key lies beside it");
    machine.conclude_now();
    let outcome = loop {
        match arriving.recv().await.expect("the machine is there") {
            MachineEvent::Concluded(outcome) => break outcome,
            _ => continue,
        }
    };
    machine.concluded(outcome);
    let configuration = FirstBootPermissions {
        configuration: true,
        ..FirstBootPermissions::default()
    };
    let left = FirstBootPermissions::ALL.without(configuration);
    assert_eq!(machine.vault.pending(), left);
    let opened = found().open(&mut UnlockKey::Stored).expect("opened");
    assert_eq!(opened.pending(), left);
    assert!(!machine.working);
}

/// A vault of a first boot that opens by another node's share only.
fn opened_by_share(share: &[u8; 32]) -> OpenAlkv {
    let id = VaultId::generate().expect("random bytes");
    let peer = format!("ed25519:{}", "ab".repeat(32));
    let at = vec!["192.0.2.1:443".to_owned()];
    let params = KmsParams::new(peer, at, "0123456789ab".to_owned(), [3; 32], [1; 32]);
    let params = params.expect("within bounds");
    let kek = params.kek(&SecretArr::copy_of(share), id);
    let vault = NewVault {
        pending: FirstBootPermissions::ALL,
        ..NewVault::new(Entropy::from_bytes(&[7; 32]).expect("32 bytes"), 0)
    };
    OpenAlkv::create_as(id, vault, |_| Ok(NewSlot::Kms(params, &kek))).expect("made")
}

/// The other node gives its share, which an attempt to open the vault requested.
fn release(vault: &VaultHandle, share: &[u8; 32]) {
    let escrow = vault.escrow();
    escrow.set_network(true);
    let (of, _) = escrow.next(0).expect("it is wanted");
    let share = HexSecret::copy_of(share);
    escrow.came(&of, Ok(helper_task::HelperOutcome::Released { share }), 0);
    // The test's machine must start no child that asks a node.
    escrow.set_network(false);
}

/// Handles `count` events of the machine's threads.
async fn handle(
    machine: &mut InitMachine,
    arriving: &mut mpsc::Receiver<MachineEvent>,
    count: usize,
) {
    for _ in 0..count {
        let event = arriving.recv().await.expect("the machine is there");
        machine.handle(event);
    }
}

/// How the ten minutes end in which the console shows the words.
type WordsEnd = fn(&mut InitMachine);

/// An attacker locks the vault until the ten minutes after the first start are over, or has a vault that the
/// machine cannot open unattended, or the disk is full when the owner has typed the words. When the vault opens
/// again, it must not permit that its words are shown.
#[tokio::test]
async fn a_vault_that_could_not_be_changed_after_the_reminder_is_changed_when_it_opens_again() {
    let share = [2; 32];
    let left = FirstBootPermissions::ALL.without(FirstBootPermissions {
        words: true,
        ..FirstBootPermissions::default()
    });
    // The number of threads that it starts.
    let ways: [(WordsEnd, usize); 3] = [
        (|machine| machine.timers.words = Some(0), 2),
        (
            |machine| {
                machine.timers.words = Some(0);
                machine.lock(false, "an attacker", 0);
            },
            1,
        ),
        (
            |machine| machine.words_noted(Err("the disk is full".to_owned())),
            2,
        ),
    ];
    for (end, threads) in ways {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let reminded = dir.path().join("config/words-reminded");
        std::fs::create_dir(dir.path().join("config")).expect("writable");
        let disk = dir.path().join("disk");
        let file = File::create_new(&disk).expect("a new file");
        file.set_len(DATA_AT).expect("a sparse file");
        let made = opened_by_share(&share);
        data::copies(&disk).create(&made).expect("written");
        let found = data::copies(&disk).load().expect("good");
        let found = found.expect("a vault");
        let log = InitLog::default();
        let vault = VaultHandle::new().expect("memory");
        let (offer, media) = (UnlockCredentials::default(), MediaSecrets::default());
        let permits = |_: &OpenAlkv| Ok(());
        let opened = vault::open(&found, &vault, &offer, &media, &log, &permits);
        opened.map(drop).expect_err("no share is there yet");
        release(&vault, &share);
        let opened = vault::open(&found, &vault, &offer, &media, &log, &permits);
        opened.map(drop).expect("the share is there");
        assert!(vault.shows_words(), "the first ten minutes");

        let (events, mut arriving) = mpsc::channel(EVENTS_MAX);
        let vault = Arc::new(vault);
        let mut machine =
            InitMachine::at_rest(InitFacts::default(), vault, settings(None), log, events);
        machine.vault_at = Some(disk.clone());
        machine.state_dir = dir.path().to_owned();
        machine.prepared = Some(Box::new(PreparedData {
            state_dir: dir.path().to_owned(),
            state: DataState {
                mode: "mounted".to_owned(),
                ..DataState::default()
            },
            problems: Vec::new(),
            waiting: None,
            vault_at: Some(disk),
            vault: None,
        }));
        end(&mut machine);
        machine.keep_open(0);
        handle(&mut machine, &mut arriving, threads).await;
        assert!(reminded.exists(), "the next start asks for proof");
        assert_eq!(machine.vault.pending(), FirstBootPermissions::ALL);

        for _ in 0..2 {
            machine.lock(false, "an attacker", 0);
            machine.open();
            handle(&mut machine, &mut arriving, 1).await;
            assert!(machine.waiting.is_some(), "the share was not asked for yet");
            release(&machine.vault, &share);
            machine.open();
            handle(&mut machine, &mut arriving, 1).await;
            assert_eq!(machine.waiting, None);
            assert!(!machine.vault.shows_words());
            // The second time this is what the disk says: nothing is left to be withdrawn.
            assert_eq!(machine.vault.pending(), left);
            assert!(machine.concluding.is_empty());
        }
    }
}

/// An attempt to open the data is under way, on a disk that an attacker makes slow. The vault that the disk gave is
/// open, and may turn out to be an older one, or one whose owner was reminded.
#[tokio::test]
async fn no_command_uses_a_vault_before_the_attempt_that_opened_it_is_over() {
    let mut machine = machine();
    // The test must not open a disk of the host, whatever happens.
    let disk = tempfile::NamedTempFile::new().expect("a temporary file");
    machine.vault_at = Some(disk.path().to_owned());
    let text = "the vault is locked";
    machine.waiting = Some(VaultWait::new(
        UnlockPrompt::Nothing,
        "vault-locked",
        text,
        "wait",
    ));
    machine.opening = true;
    assert!(machine.vault.is_open());
    for line in ["words", "slot add passphrase", "rekey"] {
        machine.command(VaultCommand::parse(line).expect(line));
        assert!(!machine.working, "{line}: it was begun");
    }
    // This command began before the vault was locked.
    let words = SecretStr::from("abandon");
    machine.commanded(
        CommandSession::new(VaultCommand::Words),
        CommandOutcome::Words(words),
        0,
    );
    assert!(machine.timers.session.is_none(), "the words are shown");
}

/// How an attempt to open the vault ends.
type AttemptEnd = fn(&mut InitMachine);

/// The owner, or an administrator over the network, locks the vault while an attempt to open it waits for a TPM, a
/// slow disk or Argon2id.
#[test]
fn a_lock_that_is_given_while_an_attempt_is_under_way_holds() {
    let data = |machine: &mut InitMachine| {
        let mut opened = needs_more(UnlockCredentials::default());
        opened.prepared.waiting = None;
        opened.prepared.state.mode = "mounted".to_owned();
        machine.opened(opened, 0);
    };
    let vault = |machine: &mut InitMachine| machine.unlocked(None, 0);
    for (end, hard, is_late) in [
        (data as AttemptEnd, false, false),
        (data, true, true),
        (vault, false, true),
        (vault, true, false),
    ] {
        let (mut machine, found) = machine_with_vault();
        // The test must not change the settings of the host.
        machine.life = 1;
        let vault_handle = Arc::clone(&machine.vault);
        let log = InitLog::default();
        let open = || {
            let (offer, media) = (UnlockCredentials::default(), MediaSecrets::default());
            let permits = |_: &OpenAlkv| Ok(());
            vault::open(&found, &vault_handle, &offer, &media, &log, &permits).map(drop)
        };
        machine.lock(false, "an administrator", 0);
        vault_handle.begin_attempt();
        machine.opening = true;
        if is_late {
            open().expect("its key lies beside it");
        }
        machine.lock(hard, "its owner", 0);
        if !is_late {
            open().expect_err("it was locked");
        }
        assert!(!vault_handle.is_open());
        end(&mut machine);
        assert!(!vault_handle.is_open());
        assert_eq!(machine.supervisor.order(0, 0), None, "no node is started");
        let waiting = machine.waiting.as_ref().expect("it waits");
        assert_eq!(waiting.problem.text, "the vault was locked");
        assert!(machine.asking.question(console()).is_some());
        assert_eq!(machine.timers.open, None, "nor opens it by itself");

        vault_handle.begin_attempt();
        open().expect("its owner wants it open");
        machine.unlocked(None, 0);
        assert_eq!(
            machine.supervisor.order(0, 0),
            Some(SupervisorAction::Spawn)
        );
    }
}

/// The keys are wiped on the way down, and the console still takes answers.
#[test]
fn a_machine_that_goes_down_does_not_open_its_vault_again() {
    let (mut machine, found) = machine_with_vault();
    machine.shutdown = Some(Shutdown::new(PowerAction::Poweroff, 0));
    let vault = Arc::clone(&machine.vault);
    vault.begin_attempt();
    // The last step, and the bound if anything hangs before it.
    vault.lock();
    let (offer, media) = (UnlockCredentials::default(), MediaSecrets::default());
    let permits = |_: &OpenAlkv| Ok(());
    let opened = vault::open(&found, &vault, &offer, &media, &machine.log, &permits);
    opened.map(drop).expect_err("the attempt began before");
    let why = "the vault is locked";
    machine.waiting = Some(VaultWait::new(
        UnlockPrompt::Passphrase,
        "vault-locked",
        why,
        "type",
    ));
    machine.prepared = Some(Box::new(needs_more(UnlockCredentials::default()).prepared));
    machine.open();
    assert!(!machine.opening && !vault.is_open());
}

/// How often the machine's log has that text.
fn said(machine: &InitMachine, text: &str) -> usize {
    let ring = machine.log.ring();
    let lines = ring.since(0);
    lines
        .filter(|(_, line)| line.message.contains(text))
        .count()
}

/// The vault opens by its passphrase only, which is not typed when the first configuration comes. An attacker
/// damages that configuration while the machine is off, and leaves a medium in it. The vault must not permit the
/// configuration on that medium.
#[tokio::test]
async fn a_first_configuration_closes_a_vault_that_opens_by_typing_only() {
    let passphrase = || SecretStr::from("correct horse");
    let permitted = FirstBootPermissions {
        configuration: true,
        words: true,
        ..FirstBootPermissions::default()
    };
    let left = FirstBootPermissions {
        words: true,
        ..FirstBootPermissions::default()
    };
    for locks in [false, true] {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let disk = dir.path().join("disk");
        let file = File::create_new(&disk).expect("a new file");
        file.set_len(DATA_AT).expect("a sparse file");
        let vault = NewVault {
            pending: permitted,
            ..NewVault::new(Entropy::from_bytes(&[7; 32]).expect("32 bytes"), 0)
        };
        let slot = NewSlot::Passphrase {
            passphrase: &passphrase(),
            cost: Argon2Params::FLOOR,
            cap_kib: u32::MAX,
        };
        let made = OpenAlkv::create(vault, slot).expect("made");
        data::copies(&disk).create(&made).expect("written");
        let found = || {
            let found = data::copies(&disk).load().expect("good");
            found.expect("a vault")
        };
        let log = InitLog::default();
        let vault_handle = VaultHandle::new().expect("memory");
        let media = MediaSecrets::default();
        let offer = UnlockCredentials {
            passphrase: Some(passphrase()),
            ..UnlockCredentials::default()
        };
        let permits = |_: &OpenAlkv| Ok(());
        let opened = vault::open(&found(), &vault_handle, &offer, &media, &log, &permits);
        vault_handle.settle(&opened.expect("it was typed"));
        assert!(vault_handle.has_master_key() && !vault_handle.is_configured());
        let (events, mut arriving) = mpsc::channel(EVENTS_MAX);
        let vault_handle = Arc::new(vault_handle);
        let mut machine = InitMachine::at_rest(
            InitFacts::default(),
            vault_handle,
            settings(None),
            log,
            events,
        );
        machine.vault_at = Some(disk.clone());
        machine.state_dir = dir.path().to_owned();
        if locks {
            machine.lock(false, "an administrator", 0);
            assert!(!machine.vault.has_master_key());
        }
        machine.config_stored(0, 1, None);
        machine.conclude_now();
        assert_eq!(machine.working, !locks);
        if locks {
            // The next typed passphrase withdraws it. Until then nothing more is stored.
            assert_eq!(machine.vault.pending(), permitted);
            machine.facts.data.mode = "mounted".to_owned();
            machine.facts.data.cipher = Some("aes-xts-plain64".to_owned());
            machine.keep_config(2, "node.name = \"first\"\n".to_owned());
            machine.paste(&ConsoleDocument::line(b"node.name = \"first\"\n"));
            machine.timers.reread = Some(0);
            machine.reread(0);
            assert!(machine.timers.reread.is_some_and(|at| at > 0), "it waits");
            assert_eq!(said(&machine, "is not kept: the vault is locked"), 1);
            assert_eq!(said(&machine, "the vault is locked; open it"), 1);
            assert!(!dir.path().join("config").exists());
            continue;
        }
        handle(&mut machine, &mut arriving, 1).await;
        assert_eq!(machine.vault.pending(), left);
        assert!(machine.vault.is_configured() && !machine.vault.has_master_key());
        let mut key = UnlockKey::Passphrase {
            passphrase: &passphrase(),
            cap_kib: u32::MAX,
        };
        let opened = found().open(&mut key).expect("the passphrase");
        assert_eq!(opened.pending(), left);
    }
}
