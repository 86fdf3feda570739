mod in_use;
mod master_key;
mod media;
mod program_slots;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use alknet_core::config::{VaultInit, VaultKms, VaultSection, VaultUnlock};
use alknet_provisioning::{KernelMounter, SourcePaths, load_with};
use alknet_sealed::SealedPartition;
use alknet_sealed::limits::{DATA_AT, VAULT_A_AT, VAULT_B_AT};
use alknet_tpm::predict::file_digest;
use alknet_vault::audit::{AuditLog, AuditRecord, BootId};
use alknet_vault::limits::COPY_BYTES;
use alknet_vault::slots::{
    FirstBootPermissions, KmsParams, NewSlot, NewVault, SlotType, UnlockKey, VaultId,
};
use alknet_vault::{Entropy, WordCount};
use data_encoding::{BASE64URL_NOPAD, HEXLOWER};

use super::*;
use crate::data::keyslot_tests::{format, vault};
use crate::helper_task::{self, HelperRefusal, HexSecret};
use crate::vault::first_boot::NewVaultFile;
use crate::vault::{FirstBoot, UnlockCredentials, create};

const BYTES: u64 = DATA_AT + (1 << 20);

/// A machine with a file as disk, and a folder as medium.
struct CommandMachine {
    dir: tempfile::TempDir,
    vault: VaultHandle,
    log: InitLog,
    /// The program to be started next, on a medium.
    next: std::cell::Cell<Option<&'static [u8]>>,
}

impl CommandMachine {
    /// A machine with a vault that opens unattended.
    fn new() -> Self {
        Self::with_vault(&vault())
    }

    /// A machine with this vault, which is open.
    fn with_vault(open: &OpenAlkv) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let machine = Self {
            vault: VaultHandle::new().expect("memory"),
            log: InitLog::default(),
            next: std::cell::Cell::default(),
            dir,
        };
        let disk = File::create_new(machine.device()).expect("a new file");
        disk.set_len(BYTES).expect("a sparse file");
        data::copies(&machine.device())
            .create(open)
            .expect("written");
        format(machine.file(), BYTES, open);
        machine.vault.admit(open).expect("it has a place");
        machine
    }

    fn device(&self) -> PathBuf {
        self.dir.path().join("disk")
    }

    fn audit(&self) -> PathBuf {
        self.dir.path().join("audit")
    }

    fn file(&self) -> File {
        let file = File::options().read(true).write(true).open(self.device());
        file.expect("it is there")
    }

    fn paths(&self) -> SourcePaths {
        let mut paths = SourcePaths::system();
        paths.fw_cfg = self.dir.path().join("fw_cfg");
        paths.block_class = self.dir.path().join("none");
        paths.dmi = self.dir.path().join("dmi");
        paths.command_line = self.dir.path().join("none");
        paths
    }

    fn run(&self, session: &mut CommandSession) -> CommandOutcome {
        self.with_context(|place| session.run(place))
    }

    fn with_context<T>(&self, act: impl FnOnce(&CommandContext<'_>) -> T) -> T {
        act(&CommandContext {
            audit: &self.audit(),
            device: &self.device(),
            vault: &self.vault,
            log: &self.log,
            state_dir: self.dir.path(),
            sources: self,
        })
    }

    /// Makes fw_cfg bring a document with these secrets.
    fn put_secrets(&self, secrets: &str) {
        let folder = self.paths().fw_cfg.join("node");
        std::fs::create_dir_all(&folder).expect("writable");
        std::fs::write(folder.join("raw"), with_secrets(secrets)).expect("writable");
    }

    /// Makes the firmware's strings bring a document, which come after fw_cfg.
    fn put_strings(&self, secrets: &str) {
        let folder = self.paths().dmi.join("11-0");
        std::fs::create_dir_all(&folder).expect("writable");
        let text = BASE64URL_NOPAD.encode(with_secrets(secrets).as_bytes());
        let head = &b"\x0b\x05\x00\x0b\x01alknet.node="[..];
        let raw = [head, text.as_bytes(), &b"\0\0"[..]].concat();
        std::fs::write(folder.join("raw"), raw).expect("writable");
    }

    /// Whether a machine without a vault makes one from the media, or why it waits.
    fn first(&self, config: &VaultSection) -> Result<(), String> {
        self.made(config).map(drop)
    }

    /// The kinds of the slots of the vault that it makes.
    fn kinds(&self, config: &VaultSection) -> Vec<&'static str> {
        let made = self.made(config).expect("it makes one");
        let slots = made.open().alkv().slots().iter();
        slots.map(|slot| slot.kind().name()).collect()
    }

    fn made(&self, config: &VaultSection) -> Result<NewVaultFile, String> {
        let loaded = load_with(&self.paths(), &KernelMounter);
        let first = FirstBoot {
            config,
            from: &loaded.source,
            media: &loaded.secrets,
            offer: &UnlockCredentials::default(),
            name: None,
            escrow: self.vault.escrow(),
        };
        let made = create(&first, &self.log);
        made.map_err(|waiting| waiting.problem.text)
    }

    /// Runs a command with all the answers that it asks for, and returns its outcome.
    fn typed(&self, line: &str, given: Vec<PromptResponse>) -> CommandOutcome {
        let mut session = CommandSession::new(VaultCommand::parse(line).expect(line));
        for one in given {
            let wants = self.run(&mut session);
            assert!(
                matches!(wants, CommandOutcome::Wants(..)),
                "{line}: {wants:?}"
            );
            session.give(one);
        }
        self.run(&mut session)
    }

    #[track_caller]
    fn done(&self, line: &str, given: Vec<PromptResponse>) -> String {
        match self.typed(line, given) {
            CommandOutcome::Done(lines) => lines.join("\n"),
            other => panic!("{line}: {other:?}"),
        }
    }

    #[track_caller]
    fn refused(&self, line: &str, given: Vec<PromptResponse>) -> String {
        match self.typed(line, given) {
            CommandOutcome::Refused(why) => why,
            other => panic!("{line}: {other:?}"),
        }
    }

    /// Numbers and types of the slots.
    fn slots(&self) -> Vec<(u32, SlotType)> {
        let found = data::copies(&self.device()).load().expect("good");
        let found = found.expect("a vault");
        assert!(found.other.is_none() && found.damaged.is_none());
        let slots = found.newest.slots().iter();
        slots
            .map(|slot| (slot.id().number(), slot.kind()))
            .collect()
    }

    /// The text of a copy of the vault.
    fn copy_at(&self, at: u64) -> String {
        let mut bytes = vec![0; COPY_BYTES];
        let read = self.file().read_exact_at(&mut bytes, at);
        read.expect("it has a vault");
        let end = bytes.iter().position(|byte| *byte == b'\n');
        bytes.truncate(end.expect("it is whole"));
        String::from_utf8(bytes).expect("JSON")
    }

    /// Replaces a copy by a text, as an attacker who writes to the disk can.
    fn put_copy(&self, at: u64, text: &str) {
        let hash = HEXLOWER.encode(&file_digest(text.as_bytes()));
        let mut bytes = format!("{text}\n{hash}\n").into_bytes();
        bytes.resize(COPY_BYTES, 0);
        self.file().write_all_at(&bytes, at).expect("writable");
    }

    /// Adds a slot whose share another node has, and returns that share.
    fn add_kms(&self) -> [u8; 32] {
        let found = data::copies(&self.device()).load().expect("good");
        let mut open = found
            .expect("a vault")
            .open(&mut UnlockKey::Stored)
            .expect("its key lies beside it");
        let (share, vault) = ([2; 32], open.alkv().uuid());
        let peer = format!("ed25519:{}", "ab".repeat(32));
        let at = vec!["192.0.2.1:443".to_owned()];
        let params = KmsParams::new(peer, at, "0123456789ab".to_owned(), [3; 32], [1; 32]);
        let params = params.expect("within bounds");
        let kek = params.kek(&SecretArr::copy_of(&share), vault);
        let slot = NewSlot::Kms(params, &kek);
        open.add(slot).expect("there is room");
        data::copies(&self.device()).save(&open).expect("written");
        share
    }

    /// Gives the result of asking the other node for its share.
    fn answer(&self, outcome: helper_task::HelperOutcome) {
        let escrow = self.vault.escrow();
        let (of, _) = escrow.next(0).expect("it is wanted");
        escrow.came(&of, Ok(outcome), 0);
    }

    fn phrase(&self) -> Vec<String> {
        let found = data::copies(&self.device()).load().expect("good");
        let media = self.secrets();
        let seed = &media.seed_keys[0].key;
        let open = found.expect("a vault").open(&mut UnlockKey::Seed(seed));
        let phrase = open.expect("its key").entropy().phrase();
        phrase.expose().split(' ').map(str::to_owned).collect()
    }

    fn events(&self) -> String {
        let events = self.vault.events();
        let fresh = events.fresh();
        events.handed(fresh.len());
        fresh.join("\n")
    }
}

impl VaultMediaAccess for CommandMachine {
    fn secrets(&self) -> MediaSecrets {
        load_with(&self.paths(), &KernelMounter).secrets
    }

    fn put(&self, key: &SeedKey, boot: bool) -> Result<ConfigOrigin, PutSeedKeyError> {
        assert!(!boot);
        let folder = self.paths().fw_cfg.join("seed.key");
        std::fs::create_dir_all(&folder).expect("writable");
        std::fs::write(folder.join("raw"), key.to_text().expose()).expect("writable");
        Ok(ConfigOrigin::FwCfg)
    }

    fn programs(&self) -> Result<UpdatePrograms, ProvisioningError> {
        match self.next.get() {
            None => alknet_provisioning::programs(&self.paths(), &KernelMounter),
            Some(next) => Ok(UpdatePrograms {
                loader: None,
                started: b"what runs".to_vec(),
                next: next.to_vec(),
                next_from: "vdb".to_owned(),
            }),
        }
    }
}

fn with_secrets(secrets: &str) -> String {
    format!("version = 1\n[secrets]\n{secrets}\n")
}

/// The configuration of a vault with one slot.
fn opened_by(unlock: VaultUnlock, init: VaultInit) -> VaultSection {
    VaultSection {
        unlock: vec![unlock],
        init,
        ..VaultSection::default()
    }
}

fn new(text: &str) -> PromptResponse {
    PromptResponse::NewPassphrase(SecretStr::from(text))
}

fn passphrase(text: &str) -> PromptResponse {
    PromptResponse::Passphrase(SecretStr::from(text))
}

fn of_slot(id: u32, text: Option<&str>) -> PromptResponse {
    PromptResponse::OfSlot(SlotId::new(id), text.map(SecretStr::from))
}

#[test]
fn a_machine_that_opens_by_itself_becomes_one_with_a_passphrase() {
    let machine = CommandMachine::new();
    assert!(machine.done("slot list", vec![]).contains("UNSEALED"));
    let said = machine.done("slot add passphrase", vec![new("one")]);
    assert!(said.contains("slot 1 (passphrase)"), "{said}");
    assert!(!machine.vault.is_sealed());
    machine.done("slot remove 0", vec![]);
    assert!(machine.vault.is_sealed());
    assert_eq!(machine.slots(), [(1, SlotType::Passphrase)]);
    assert!(
        machine
            .done("slot test 1", vec![of_slot(1, Some("one"))])
            .contains("opens")
    );

    // From now on every change needs it, and the last slot stays.
    let wrong = machine.typed("slot remove 1", vec![passphrase("two")]);
    assert!(
        matches!(&wrong, CommandOutcome::Wants(CommandPrompt::Passphrase, why) if why.contains("wrong")),
        "{wrong:?}"
    );
    let last = machine.refused("slot remove 1", vec![passphrase("one")]);
    assert!(last.contains("is the last"), "{last}");
    machine.done("slot set", vec![passphrase("one"), new("three")]);
    assert_eq!(machine.slots(), [(2, SlotType::Passphrase)]);
    let old = machine.typed("slot test 2", vec![of_slot(2, Some("one"))]);
    assert!(matches!(old, CommandOutcome::Wants(..)), "{old:?}");
    let shown = machine.typed("words show", vec![passphrase("three")]);
    let CommandOutcome::Words(words) = shown else {
        panic!("{shown:?}");
    };
    assert_eq!(words.expose().split(' ').count(), 24);
    let events = machine.events();
    for event in [
        r#""detail":{"id":1,"type":"passphrase"},"ev":"slot_added""#,
        r#""detail":{"id":0,"type":"none"},"ev":"slot_removed""#,
        r#""ev":"unlock_failed""#,
        r#""detail":{"reason":"console","what":"phrase"},"ev":"exported""#,
    ] {
        assert!(events.contains(event), "{event} in {events}");
    }
    assert!(!events.contains("three"));
}

#[test]
fn words_of_a_machine_without_a_passphrase_need_a_word() {
    let machine = CommandMachine::new();
    let wants = machine.typed("words show", vec![]);
    assert!(
        matches!(
            &wants,
            CommandOutcome::Wants(CommandPrompt::Confirmation { word: "SHOW", .. }, _)
        ),
        "{wants:?}"
    );
    let shown = machine.typed("words show", vec![PromptResponse::Confirmed]);
    assert!(matches!(shown, CommandOutcome::Words(_)), "{shown:?}");
    assert!(
        machine
            .refused("slot set", vec![])
            .contains("slot add passphrase")
    );
}

/// The disk answers the running machine with a copy that lists other slots, or with older copies.
#[test]
fn slots_that_only_the_disk_lists_replace_no_proof() {
    let machine = CommandMachine::new();
    machine.done("slot add passphrase", vec![new("one")]);
    machine.done("slot add provisioning", vec![]);
    let older = machine.copy_at(VAULT_A_AT);
    machine.done("slot remove 0", vec![]);
    let newest = machine.copy_at(VAULT_A_AT);

    let mut forged: serde_json::Value = serde_json::from_str(&older).expect("JSON");
    forged["gen"] = 1000.into();
    let slots = forged["slots"].as_array_mut().expect("a list");
    slots.retain(|slot| slot["type"] != "passphrase");
    machine.put_copy(VAULT_A_AT, &forged.to_string());
    let listed = on_listed(&machine);
    assert!(!listed.is_sealed() && !has_typed(&listed), "it is forged");
    for line in [
        "words",
        "slot add none",
        "slot add passphrase",
        "slot remove 2",
    ] {
        let wants = machine.typed(line, vec![]);
        assert!(
            matches!(wants, CommandOutcome::Wants(CommandPrompt::Passphrase, _)),
            "{line}: {wants:?}"
        );
    }
    let why = machine.refused("rekey", vec![]);
    assert!(why.contains("no slot opens"), "{why}");
    let shown = machine.typed("words show", vec![passphrase("one")]);
    assert!(
        matches!(shown, CommandOutcome::Words(_)),
        "the owner: {shown:?}"
    );

    for at in [VAULT_A_AT, VAULT_B_AT] {
        machine.put_copy(at, &older);
    }
    assert!(!on_listed(&machine).is_sealed(), "it was not");
    let why = machine.refused("slot add none", vec![]);
    assert!(why.contains("older than"), "{why}");
    let why = machine.refused("words show", vec![passphrase("one")]);
    assert!(why.contains("older than"), "{why}");
    for at in [VAULT_A_AT, VAULT_B_AT] {
        machine.put_copy(at, &newest);
    }
    let shown = machine.typed("words show", vec![passphrase("one")]);
    assert!(matches!(shown, CommandOutcome::Words(_)), "{shown:?}");
}

fn on_listed(machine: &CommandMachine) -> Alkv {
    let found = data::copies(&machine.device()).load().expect("good");
    found.expect("a vault").newest
}

#[test]
fn the_log_is_shown_with_whether_it_was_changed() {
    let machine = CommandMachine::new();
    assert_eq!(machine.done("audit", vec![]), "there is no line yet");
    let mut events = vec![AuditEvent::Created; 20];
    events.push(AuditEvent::Locked { hard: true });
    let boot: BootId = "a-boot".parse().expect("plain");
    let records: Vec<_> = events
        .into_iter()
        .map(|event| AuditRecord::new(1_700_000_000_000, boot.clone(), event))
        .collect();
    std::fs::create_dir(machine.audit()).expect("writable");
    let mut log = AuditLog::open(&machine.audit()).expect("opened");
    log.append(&machine.vault.vault(), &records)
        .expect("written");
    let shown = machine.done("audit", vec![]);
    let lines: Vec<_> = shown.lines().collect();
    assert_eq!(lines[0], "21 lines, from 1 to 21, are as they were written");
    assert_eq!(lines.len(), 16, "{shown}");
    assert!(lines[1].starts_with("     7  2023-11-14T22:13:20Z  created"));
    assert!(lines[15].ends_with(r#"  locked  {"hard":true}"#), "{shown}");
    let older = machine.done("audit 6", vec![]);
    let lines: Vec<_> = older.lines().collect();
    assert_eq!(lines.len(), 7, "{older}");
    assert!(lines[6].starts_with("     6  "), "{older}");

    let file = machine.audit().join("vault.log");
    let text = std::fs::read_to_string(&file).expect("written");
    let changed = text.replacen(r#"{"hard":true}"#, r#"{"hard":false}"#, 1);
    std::fs::write(&file, changed).expect("writable");
    let shown = machine.done("audit", vec![]);
    assert!(shown.starts_with("BROKEN: "), "{shown}");
    assert!(shown.contains("vault.log, line 21: "), "{shown}");
    // PID 1 does not follow what the node put in its place.
    let elsewhere = machine.dir.path().join("elsewhere");
    std::fs::rename(&file, &elsewhere).expect("writable");
    std::os::unix::fs::symlink(&elsewhere, &file).expect("writable");
    let why = machine.refused("audit", vec![]);
    assert!(why.contains("vault.log cannot be used"), "{why}");
}

#[test]
fn a_locked_vault_is_looked_at_and_not_changed() {
    let machine = CommandMachine::new();
    machine.vault.lock();
    for line in [
        "passwd",
        "words",
        "rekey",
        "slot add none",
        "slot remove 0",
        "slot test 0",
        "audit",
    ] {
        let why = machine.refused(line, vec![]);
        assert!(why.contains("locked"), "{line}: {why}");
    }
    assert!(machine.done("status", vec![]).contains("locked"));
    assert!(machine.refused("slot remove 9", vec![]).contains("locked"));
}

/// A vault whose new words are shown without proof says nothing about another disk's vault, nor about itself once
/// it was locked.
#[test]
fn words_are_shown_without_proof_only_by_the_vault_that_permits_it() {
    let vault_handle = VaultHandle::new().expect("memory");
    let permits = FirstBootPermissions {
        words: true,
        ..FirstBootPermissions::default()
    };
    let [new, other] = [permits, FirstBootPermissions::default()].map(|pending| {
        let words = Entropy::generate(WordCount::TwentyFour).expect("random bytes");
        let vault = NewVault {
            pending,
            ..NewVault::new(words, 0)
        };
        OpenAlkv::create(vault, NewSlot::None).expect("made")
    });
    vault_handle.admit(&new).expect("it has a place");
    assert!(vault_handle.shows_words());
    vault_handle.lock();
    assert!(!vault_handle.shows_words(), "of a vault that was locked");
    vault_handle.begin_attempt();
    vault_handle.admit(&new).expect("it was locked");
    assert!(vault_handle.shows_words());
    vault_handle.lock();
    vault_handle.begin_attempt();
    vault_handle.admit(&other).expect("it was locked");
    assert!(!vault_handle.shows_words(), "of another vault");
    for (ended, shows) in [
        (VaultHandle::words_are_kept as fn(&VaultHandle), false),
        (VaultHandle::owner_was_reminded, true),
    ] {
        let vault_handle = VaultHandle::new().expect("memory");
        vault_handle.admit(&new).expect("it has a place");
        ended(&vault_handle);
        assert_eq!(vault_handle.shows_words(), shows);
        vault_handle.lock();
        vault_handle.begin_attempt();
        vault_handle.admit(&new).expect("it was locked");
        assert!(
            !vault_handle.shows_words(),
            "the vault on the disk may not have been told yet"
        );
    }
}

#[test]
fn nothing_that_was_typed_is_shown_by_accident() {
    let mut session = CommandSession::new(VaultCommand::SlotSet);
    session.give(passphrase("hunter2"));
    session.give(new("hunter3"));
    let shown = format!("{session:?} {:?}", new("hunter4"));
    assert!(!shown.contains("hunter"), "{shown}");
}

/// The board of the machine was replaced, and its TPM with it.
#[test]
fn a_missing_tpm_is_reported_until_the_owner_removes_its_slot() {
    let machine = CommandMachine::new();
    let refused = machine.refused("tpm forget", Vec::new());
    assert!(refused.contains("no TPM without a slot"), "{refused}");
    let gone = ["ab".repeat(32)];
    data::set_counted_by(&machine.device(), &gone).expect("writable");
    machine.done("slot add none", vec![PromptResponse::Confirmed]);
    let told = || machine.vault.uncounted().len();
    assert_eq!(told(), 1);
    let mut session = CommandSession::new(VaultCommand::TpmForget);
    let wants = machine.run(&mut session);
    let CommandOutcome::Wants(CommandPrompt::Confirmation { lines, .. }, _) = &wants else {
        panic!("{wants:?}");
    };
    assert_eq!(lines[1], gone[0]);
    assert_eq!(data::counted_by(&machine.device()), gone);
    machine.done("tpm forget", vec![PromptResponse::Confirmed]);
    assert_eq!(told(), 0);
    assert_eq!(data::counted_by(&machine.device()), [""; 0]);
    machine.done("slot add none", vec![PromptResponse::Confirmed]);
    assert_eq!(told(), 0, "for good");
}

/// A thief attaches a medium while the owner updates the machine, or exchanges it after the owner read the digest.
#[test]
fn the_next_program_is_shown_and_is_the_one_that_was_shown() {
    let machine = CommandMachine::new();
    machine.next.set(Some(b"next"));
    let mut session = CommandSession::new(VaultCommand::SlotAddNext);
    let wants = machine.run(&mut session);
    let CommandOutcome::Wants(CommandPrompt::Confirmation { lines, word: "ADD" }, _) = &wants
    else {
        panic!("{wants:?}");
    };
    assert!(lines[1].contains("of vdb, 4 bytes"), "{lines:?}");
    assert_eq!(lines[2].len(), 64, "its digest: {lines:?}");
    machine.next.set(Some(b"of a thief"));
    session.give(PromptResponse::Confirmed);
    let refused = machine.run(&mut session);
    assert!(
        matches!(&refused, CommandOutcome::Refused(why) if why.contains("begin again")),
        "{refused:?}"
    );
    assert_eq!(machine.slots(), [(0, SlotType::None)]);
}

#[test]
fn an_image_that_is_nowhere_and_a_slot_that_is_no_tpms_are_named() {
    let machine = CommandMachine::new();
    let refused = machine.refused("slot add tpm2 next", Vec::new());
    assert!(refused.contains("no alknet-next.efi"), "{refused}");
    for (line, wrong) in [
        ("slot renew 7", "no slot"),
        ("slot renew 0", "another type"),
    ] {
        let refused = machine.refused(line, Vec::new());
        // The host of the tests may have no TPM.
        assert!(
            refused.contains(wrong) || refused.contains("no TPM"),
            "{refused}"
        );
    }
    assert_eq!(machine.slots(), [(0, SlotType::None)]);
}
