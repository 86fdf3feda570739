//! A thief has a sealed machine. The thief can write to its disk but cannot read it, attaches media, and sits at the
//! console: the machine opens nothing, shows nothing, and serves no key of another node.

mod forgery;
mod medium;
mod words;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use alknet_qemu::{ConsoleMark, DiskRecorder, DiskRecording, Interposer, VirtioDisk, Vm};
use alknet_tests::tools::RAW_DATA_AT;
use alknet_tests::{
    BootVariant, CliRunner, MachineBuilder, MachineNode, READY, TestBench, eventually,
};
use alknet_vault::slots::{Alkv, Argon2Params, NewSlot, NewVault, OpenAlkv};
use alknet_vault::{Entropy, SecretStr, WordCount};
use data_encoding::HEXLOWER;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use self::medium::{ThiefsMedium, document, pasted, secrets, thiefs_document};
use self::words::shown_words;
use crate::console::{commands, typed};
use crate::knock::{self, SecondCard};
use crate::memory::{MemoryScan, Opener};
use crate::rescue;
use crate::tpm::{DONE_WITHIN, TPM_ALONE, leave_commands, measured, set_up, type_line};
use crate::vault::{VAULT_A_AT, VAULT_B_AT, asked, write_down};

use forgery::{after_first_boot, forged, head, moved, write};

pub(crate) use forgery::forged_beside;

/// Longest wait from power-on until the console says what is wrong. Emulated firmware alone takes long.
const SAID_WITHIN: Duration = Duration::from_secs(60);
/// Where the second copy of a header begins (docs/sealed.md).
const SECOND_HEADER_AT: u64 = 16_384;
/// Where the encrypted data begin.
const DATA_AT: u64 = 16 << 20;
/// Where the superblock inside the encrypted data counts errors, aligned to a block of the cipher (ext4's
/// `s_error_count`, at 0x194 of the superblock).
const ERROR_COUNT_AT: u64 = DATA_AT + 1024 + 0x190;
/// Bytes that the cipher encrypts together. An attacker without the key changes whole blocks, to other random bytes.
const CIPHER_BLOCK: usize = 16;
/// Where the descriptors of the block groups lie inside the encrypted data.
const GROUPS_AT: u64 = DATA_AT + 4096;
/// Bytes of a copy of the vault.
const COPY_BYTES: usize = 64 << 10;
/// Text in the first sector while a machine formats the partition.
const FORMATTING: &[u8] = b"alknet: this partition is being formatted\n";

/// A line of the document from which the administrator removed another administrator.
const WITHOUT_FORMER: &str = "# one administrator less: 5d1c0c7e-without-the-former-one";
/// `TPM2_NV_Increment`.
const NV_INCREMENT: [u8; 4] = [0, 0, 1, 0x34];
/// The file in a TPM's folder with the state that the TPM keeps while it is off.
const CHIP_STATE: &str = "tpm2-00.permall";
/// The passphrase of a vault that a thief made.
pub(crate) const FORGED: &str = "xyzzy";

/// The console's words about a damaged file system in a sealed partition.
const NO_FILE_SYSTEM: &str = "was decrypted, and no file system known here is in it";
/// Text above the words on the console.
const WORDS: &str = "These words are this node";
/// The end of the console's question for proof.
const PROOF: &str = "of its recovery words: _";
/// The console's answer to three wrong words, once the user has typed all of them.
const WRONG_WORDS: &str = "these are not the words";
/// Id of the vault that a medium opens. The medium lies beside the machine.
const VAULT: &str = "27209049-2f6c-46bf-a462-c718ee429cc0";
/// The medium's key for this vault.
const SEED_KEY: [u8; 32] = [0x5e; 32];

/// The TPM would open this machine for every person who switches it on. The machine stays closed after a thief blanks
/// its header, marks it as half formatted or overwrites it, moves the data or damages the file system. A drive with a
/// document that names other administrators and other recipients of the words does not open it either.
#[test]
fn a_damaged_disk_opens_nothing_and_admits_no_administrator() {
    let (bench, identity) = set_up(TPM_ALONE);
    let medium = ThiefsMedium::new(&bench, TPM_ALONE);
    let machine = || medium.machine(&bench, "own");
    let disk = bench.raw();
    let whole = head(&disk);
    let zeroes = vec![0; 1 << 20];
    let mut mark = vec![0; 512];
    mark[..FORMATTING.len()].copy_from_slice(FORMATTING);
    let garbage = [0xa5; 8192];
    let blanked = "was blanked or half overwritten";
    for (what, places, told) in [
        ("blank", vec![(0, &zeroes[..])], blanked),
        (
            "half formatted",
            vec![(0, &zeroes[..]), (0, &mark[..])],
            blanked,
        ),
        (
            "without headers",
            vec![(0, &garbage[..]), (SECOND_HEADER_AT, &garbage[..])],
            "the header of the encrypted data disk vda3 was overwritten",
        ),
    ] {
        for (at, bytes) in places {
            write(&disk, at, bytes);
        }
        let damaged = head(&disk);
        let vm = machine().start();
        stays_closed(&vm, "data-damaged", told);
        drop(vm);
        assert!(head(&disk) == damaged, "a disk {what} was written to");
        write(&disk, 0, &whole);
    }

    // The damage loses no data: with its old bytes back the machine opens, and it ignores the thief's medium.
    let mut node = machine().boot();
    assert_eq!(node.identity(), identity);
    let info = with_problem(&node, "provisioning-ignored");
    let codes = info["problems"].as_array().into_iter().flatten();
    let codes: Vec<_> = codes.filter_map(|one| one["code"].as_str()).collect();
    assert!(codes.contains(&"provisioning-ignored"), "{info:#}");
    let status = node.call("vault/status", &Value::Null);
    assert_eq!(status["slots"], json!(["tpm2"]), "{status:#}");
    assert_eq!(status["words_age"], Value::Null, "{status:#}");
    let entropy = Entropy::parse(&shown_words(node.vm())).expect("they are the vault's");
    let look = MemoryScan::new(&bench, &entropy, Opener::Tpm, &disk, RAW_DATA_AT);
    look.sees_what_is_there(node.vm());
    loses_no_slot_without_proof(&mut node);
    node.end();

    forgets_what_opened_unattended(&disk, machine, &look);
}

/// Before this start the console had not reminded the owner of the words. The owner adds a slot that opens by a key on
/// the boot partition. After a hard lock only this slot opens the vault. A thief at the console who made a new master
/// key would then remove the TPM's slot, so the console asks for the words first. It also asks before it shows the
/// words, which it showed without proof before the lock.
fn loses_no_slot_without_proof(node: &mut MachineNode) {
    commands(node.vm());
    typed(node.vm(), "slot add provisioning", "type BOOT to go on: _");
    typed(node.vm(), "BOOT", "slot 1 (provisioning) was added");
    leave_commands(node.vm());
    let mark = node.vm().console().mark();
    node.try_call("vault/lock", &json!({ "hard": true }), &[]);
    let line = "alknet: asks: passphrase of the vault";
    let asks = node.vm().wait_for_after(mark, line, DONE_WITHIN);
    let mark = asks.unwrap_or_else(|error| panic!("{error}"));
    type_line(node.vm(), "");
    node.wait_ready(mark);
    let slots = json!(["tpm2", "provisioning"]);
    let status = node.call("vault/status", &Value::Null);
    assert_eq!(status["opened_by"], "provisioning", "{status:#}");
    assert_eq!(status["slots"], slots, "{status:#}");
    for command in ["words", "rekey"] {
        commands(node.vm());
        typed(node.vm(), command, PROOF);
    }
    let status = node.call("vault/status", &Value::Null);
    assert_eq!(status["slots"], slots, "{status:#}");
}

/// The vault opens by itself although the file system is damaged, and the closed machine forgets what it opened. The
/// damage may be as small as a count of errors in the superblock, whose checksum the machine repairs like that of a torn
/// write. If the header places the data elsewhere, the machine opens nothing.
fn forgets_what_opened_unattended<'a>(
    disk: &Path,
    machine: impl Fn() -> MachineBuilder<'a>,
    look: &MemoryScan,
) {
    let whole = head(disk);
    let elsewhere = "places the data where this machine does not put them";
    let counted = "errors are recorded in it";
    for (at, bytes, told) in [
        (ERROR_COUNT_AT, &[0xa5; CIPHER_BLOCK][..], counted),
        (GROUPS_AT, &[0xa5; 4096][..], "cannot be mounted"),
        (0, &moved(&whole)[..], elsewhere),
    ] {
        write(disk, at, bytes);
        let damaged = head(disk);
        let vm = machine().start();
        stays_closed(&vm, "data-damaged", told);
        look.sees_only(&vm, &[]);
        drop(vm);
        let is_torn_write = told == counted;
        let is_left_alone = head(disk) == damaged;
        assert!(is_torn_write || is_left_alone, "it was written to: {told}");
        write(disk, 0, &whole);
    }
}

/// The thief puts the vault back as it was during the first boot, beside a blank header, and the TPM opens that vault.
/// This looks like an interrupted first boot, but the TPM has counted changes since. The thief adds a forged copy with
/// the machine's id, locks the vault to get a question, and types that copy's passphrase: this proves nothing. With the
/// TPM's old state the same disk is an interrupted first boot, which the machine completes. The thief's drive, with
/// other administrators and recipients of the words, is attached.
#[test]
fn a_vault_as_in_its_first_boot_opens_nothing_once_the_tpm_has_counted() {
    let bench = TestBench::new();
    let disk = bench.raw();
    let chip = bench.path().join("own.tpm").join(CHIP_STATE);
    let early = Arc::new(EarlyCopy::new(&disk, &chip));
    let between = Arc::clone(&early);
    let machine = || measured(&bench, "own").after_firmware();
    let first = machine().configured(TPM_ALONE);
    let node = first.with(|vm| vm.interposer(between)).boot();
    let identity = node.identity().to_owned();
    node.end();
    let (early, counted) = early.taken();
    let medium = ThiefsMedium::new(&bench, TPM_ALONE);
    write(&disk, VAULT_A_AT, &early);
    write(&disk, VAULT_B_AT, &forged_beside(&early));
    write(&disk, 0, &vec![0; 1 << 20]);
    let blanked = head(&disk);
    let vm = medium.machine(&bench, "own").start();
    let told = "the TPM has counted changes of the vault since";
    stays_closed(&vm, "vault-old", told);
    typed(&vm, "lock", "passphrase of the vault");
    let mark = vm.console().mark();
    type_line(&vm, FORGED);
    let told = "what was typed does not open it";
    let told = vm.wait_for_after(mark, told, DONE_WITHIN);
    told.unwrap_or_else(|error| panic!("{error}"));
    let text = vm.console().text();
    for shown in [READY, "BEGIN AGE", WORDS] {
        assert!(!text.contains(shown), "{shown:?} in {text}");
    }
    drop(vm);
    assert!(head(&disk) == blanked, "it was written to");

    std::fs::write(&chip, counted).expect("the folder is ours");
    let node = machine().configured(TPM_ALONE).boot();
    assert_eq!(node.identity(), identity);
    assert_eq!(node.info()["problems"], json!([]));
}

/// Copies the vault and the TPM's state when the machine first asks the TPM to count after it wrote the vault: its
/// first boot has not ended then. In a TPM's messages the command's code is at byte 6.
#[derive(Debug)]
struct EarlyCopy {
    disk: PathBuf,
    chip: PathBuf,
    taken: Mutex<Option<(Vec<u8>, Vec<u8>)>>,
}

impl EarlyCopy {
    fn new(disk: &Path, chip: &Path) -> Self {
        Self {
            disk: disk.to_owned(),
            chip: chip.to_owned(),
            taken: Mutex::default(),
        }
    }

    fn taken(&self) -> (Vec<u8>, Vec<u8>) {
        let taken = self.taken.lock().expect("whole").take();
        taken.expect("the TPM counted a vault")
    }
}

impl Interposer for EarlyCopy {
    fn exchange(
        &self,
        command: &[u8],
        chip: &mut dyn FnMut(&[u8]) -> io::Result<Vec<u8>>,
    ) -> io::Result<Vec<u8>> {
        let mut taken = self.taken.lock().expect("whole");
        if taken.is_none() && command[6..].starts_with(&NV_INCREMENT) {
            let mut copy = vec![0; COPY_BYTES];
            let disk = File::open(&self.disk)?;
            disk.read_exact_at(&mut copy, RAW_DATA_AT + VAULT_B_AT)?;
            // The TPM's counter rises once before the machine has a vault.
            if copy.starts_with(b"{") {
                *taken = Some((copy, std::fs::read(&self.chip)?));
            }
        }
        drop(taken);
        chip(command)
    }
}

/// The medium that opens the vault lies beside it. During the start at which the console reminds the owner of
/// unconfirmed words, the console shows them. After the next start it shows them only to a user who has them, even if a
/// thief puts the vault back as it was during the first boot, and names other recipients on another medium. A thief who
/// cannot read the encrypted data can damage it: a medium's document never replaces the stored one, although the medium
/// opens the vault.
#[test]
fn a_medium_that_opens_the_vault_gives_no_words_after_the_reminder_and_no_configuration() {
    let bench = TestBench::new();
    let unlock = "[vault]\nunlock = [\"provisioning\"]\n";
    let former = bench.user("former");
    let admins = [bench.admin(), &former]
        .map(CliRunner::identity)
        .join("\", \"");
    let owners = document(&admins, &format!("{unlock}{}", secrets()));
    // The shipped image has the same option on its command line.
    let machine = |document: &str| {
        let machine = bench.machine(BootVariant::MicrovmErofs).config(document);
        machine.append("init_on_free=1")
    };
    let start = |document: &str| machine(document).start();
    let boot = || {
        MachineNode::new(
            start(&owners),
            BootVariant::MicrovmErofs,
            bench.admin().clone(),
        )
    };
    let recorder = DiskRecorder::serve(&bench.data()).unwrap_or_else(|error| panic!("{error}"));
    let recorded = VirtioDisk::recorded(&recorder).data();
    let node = machine(&owners).data(Some(recorded)).boot();
    assert_eq!(node.info()["problems"], json!([]), "the first ten minutes");
    node.end();
    let early = after_first_boot(&bench, &recorder.recording());
    drop(recorder);

    let reminded = |node: &MachineNode| {
        let info = with_problem(node, "words-unconfirmed");
        let problems = info["problems"].as_array().into_iter().flatten();
        let mut problems = problems.filter(|one| one["code"] == "words-unconfirmed");
        let found = problems.next();
        found.unwrap_or_else(|| panic!("no reminder: {info:#}"));
        // The medium opened the vault, and no user has locked it: a user can ask the console for the words.
        let status = node.call("vault/status", &Value::Null);
        assert_eq!(status["state"], "unlocked", "{status:#}");
    };
    let node = boot();
    reminded(&node);
    let words = shown_words(node.vm());
    node.end();

    let node = boot();
    reminded(&node);
    remove(&bench, &node, &former, unlock);
    commands(node.vm());
    let first = words_are_judged_together(node.vm(), &words);
    // The console also refuses to let a thief add a slot.
    commands(node.vm());
    typed(node.vm(), "slot add passphrase", PROOF);
    let entropy = Entropy::parse(&words).expect("they are the vault's");
    let look = MemoryScan::new(&bench, &entropy, Opener::Medium(SEED_KEY), &bench.data(), 0);
    look.sees_what_is_there(node.vm());
    node.end();
    put_back(&bench, &early, first);
    forgets_what_it_opened(&bench, machine(&owners), &look);

    // An attacker without the words would try places; the test uses the words to find those that matter. No older
    // document is left that names the former administrator.
    let damaged = rescue::damage(&bench, &bench.data(), &words, WITHOUT_FORMER);
    assert!(
        damaged > 1,
        "the configuration and its copy are in the encrypted data"
    );
    let thief = bench.user("thief").identity();
    let link = SecondCard::new();
    let vm = link.join(machine(&document(&thief, &secrets()))).start();
    let told = "the stored configuration of this sealed node cannot be read";
    stays_closed(&vm, "config-lost", told);
    look.sees_only(&vm, &[]);
    link.hears(&vm, "config-lost");
}

/// Returns the first `node/info` with this problem, of which PID 1 may tell the node after its start.
fn with_problem(node: &MachineNode, code: &str) -> Value {
    eventually(&format!("the problem {code}"), || {
        let info = node.info();
        let problems = info["problems"].as_array();
        let has = problems.is_some_and(|all| all.iter().any(|one| one["code"] == code));
        has.then_some(info)
    })
}

/// Removes an administrator from the configuration of a running machine.
fn remove(bench: &TestBench, node: &MachineNode, former: &CliRunner, more: &str) {
    let info = || former.call(&node.target(), "node/info", &Value::Null, &[]);
    info().json();
    let file = bench.path().join("applied.toml");
    let document = document(&bench.admin().identity(), more);
    std::fs::write(&file, format!("{WITHOUT_FORMER}\n{document}")).expect("the folder is ours");
    let mut apply = bench.admin().command(&["config", "apply", &node.target()]);
    apply.arg(&file);
    let applied = bench.admin().run(apply).json();
    assert_eq!(applied["kept"], true, "{applied:#}");
    assert_eq!(info().code(), "UNAUTHENTICATED");
}

/// The owner opens this sealed machine's vault only by typing, and pastes its first configuration while it runs. A
/// thief damages that configuration and leaves a medium in the machine. The owner opens the machine, which ignores the
/// medium's document.
#[test]
fn a_first_configuration_that_was_pasted_gives_way_to_no_medium() {
    let bench = TestBench::new();
    let mut node = bench.machine(BootVariant::MicrovmErofs).config("").boot();
    let words = write_down(node.vm());
    commands(node.vm());
    typed(node.vm(), "slot add passphrase", "new passphrase: _");
    typed(node.vm(), "correct horse", "the same again: _");
    typed(node.vm(), "correct horse", "slot 1 (passphrase) was added");
    typed(node.vm(), "slot rm 0", "slot 0 (none) was removed");
    leave_commands(node.vm());
    let mark = node.vm().console().mark();
    type_line(node.vm(), &pasted(&bench, bench.admin()));
    node.wait_ready(mark);
    let told = "the vault permits no configuration from a medium";
    eventually("the permission is withdrawn", || {
        let log = node.try_call("node/log", &json!({ "last": 1000 }), &[]);
        log.output.contains(told).then_some(())
    });
    assert_eq!(node.info()["problems"], json!([]));
    node.end();

    let damaged = rescue::damage(&bench, &bench.data(), &words, "admin_keys");
    assert!(damaged > 0, "the configuration is in the encrypted data");
    let thief = bench.user("thief").identity();
    let machine = bench.machine(BootVariant::MicrovmErofs);
    let vm = machine.config(document(&thief, "")).start();
    asked(&vm, "passphrase of the vault");
    type_line(&vm, "correct horse");
    let told = "the stored configuration of this sealed node cannot be read";
    stays_closed(&vm, "config-lost", told);
}

/// A thief damaged the file system of a disk whose vault the medium opens. The machine stays closed, and its memory has
/// nothing of what it opened: no words, seed, key derived from the seed, master key, or key of the data.
fn forgets_what_it_opened(bench: &TestBench, machine: MachineBuilder<'_>, look: &MemoryScan) {
    let disk = File::options().read(true).write(true).open(bench.data());
    let disk = disk.expect("the disk is ours");
    let mut whole = [0; 8192];
    let read = disk.read_exact_at(&mut whole, DATA_AT);
    read.expect("the disk is longer");
    let put = |bytes: &[u8]| {
        let put = disk.write_all_at(bytes, DATA_AT);
        put.expect("the disk is ours");
    };
    put(&[0xa5; 8192]);
    let vm = machine.start();
    stays_closed(&vm, "data-damaged", NO_FILE_SYSTEM);
    look.sees_only(&vm, &[]);
    drop(vm);
    put(&whole);
}

/// A thief at the console knows some of the words, and types them one by one. The console judges them together: it asks
/// for three, answers after the third, and asks for the same words again. Returns the number of the first.
fn words_are_judged_together(vm: &Vm, words: &str) -> usize {
    let words: Vec<&str> = words.split(' ').collect();
    let mark = vm.console().mark();
    typed(vm, "words", PROOF);
    let first = asked_word(vm, mark, None);
    let wrong = if words[first - 1] == "zoo" {
        "zero"
    } else {
        "zoo"
    };
    let from_the_first = vm.console().mark();
    type_line(vm, wrong);
    let second = asked_word(vm, from_the_first, Some(first));
    let mark = vm.console().mark();
    type_line(vm, words[second - 1]);
    let third = asked_word(vm, mark, Some(second));
    let told = vm.console().since(from_the_first);
    assert!(!told.contains(WRONG_WORDS), "after two of three: {told}");
    let mark = vm.console().mark();
    typed(vm, words[third - 1], WRONG_WORDS);
    let again = asked_word(vm, mark, Some(third));
    assert_eq!(again, first, "other words would be asked for");
    first
}

/// Returns the number of the word that the console asks for after `mark`, other than `before`: pictures of the previous
/// question may still arrive.
fn asked_word(vm: &Vm, mark: ConsoleMark, before: Option<usize>) -> usize {
    eventually("the console asks for a word", || {
        let text = vm.console().since(mark);
        let (text, _) = text.rsplit_once(PROOF)?;
        let (_, place) = text.rsplit_once("word ")?;
        let place = place.trim().parse().ok()?;
        (Some(place) != before).then_some(place)
    })
}

/// A thief puts one copy of the vault back as it was during the first boot, spoils the other, and names the thief as
/// the recipient of the words. The machine refuses that. Then the disk answers with the thief's vault, which has the
/// same id and opens by itself, and the machine tries again; then the disk answers with its own bytes. The console asks
/// for the same words as before the restart, and for word `first` first.
fn put_back(bench: &TestBench, early: &[u8], first: usize) {
    let disk = File::options().read(true).write(true).open(bench.data());
    let disk = disk.expect("the disk is ours");
    let mut newest = vec![0; 2 * COPY_BYTES];
    let read = disk.read_exact_at(&mut newest, VAULT_A_AT);
    read.expect("the disk is longer");
    assert!(
        newest[..COPY_BYTES] != *early,
        "the vault was changed since"
    );
    let put = |copies: &[u8]| {
        let put = disk.write_all_at(copies, VAULT_A_AT);
        put.expect("the disk is ours");
    };
    let mut spoilt = newest[COPY_BYTES..].to_vec();
    let last = spoilt.iter().rposition(|byte| *byte != 0);
    spoilt[last.expect("it says something")] ^= 1;
    put(&[early, &spoilt].concat());
    let thiefs = format!("{}{}", thiefs_document(bench, "[vault]"), secrets());
    let link = SecondCard::new();
    let machine = bench.machine(BootVariant::MicrovmErofs).config(thiefs);
    let vm = link.join(machine).start();
    let told = "the vault is older than the data beside it";
    stays_closed(&vm, "vault-old", told);
    link.hears(&vm, "vault-old");
    let mut left = vec![0; COPY_BYTES];
    let read = disk.read_exact_at(&mut left, VAULT_B_AT);
    read.expect("the disk is longer");
    assert!(
        left == spoilt,
        "an older copy is not written over the other one"
    );
    let forged = forged();
    put(&[&forged[..], &forged].concat());
    type_line(&vm, &pasted(bench, &bench.user("thief")));
    let told = "the vault on the disk is forged";
    let line = vm.wait_line(told, SAID_WITHIN);
    line.unwrap_or_else(|error| panic!("{error}"));
    // The machine goes on by itself, with the pasted document.
    put(&newest);
    let node = MachineNode::new(vm, BootVariant::MicrovmErofs, bench.admin().clone());
    let status = node.call("vault/status", &Value::Null);
    assert_eq!(status["words_age"], Value::Null, "{status:#}");
    commands(node.vm());
    let mark = node.vm().console().mark();
    typed(node.vm(), "words", PROOF);
    assert_eq!(asked_word(node.vm(), mark, None), first, "after a restart");
    let text = node.vm().console().text();
    for shown in ["BEGIN AGE", WORDS] {
        assert!(!text.contains(shown), "{shown:?} in {text}");
    }
    node.end();
}

/// Waits until the machine reports the problem `code`, and then tries what a thief would at its port and its console.
fn stays_closed(vm: &Vm, code: &str, told: &str) {
    let problem = vm.wait_for(&format!("alknet: problem {code}: "), SAID_WITHIN);
    problem.unwrap_or_else(|error| panic!("{error}"));
    let line = vm.wait_line(told, SAID_WITHIN);
    line.unwrap_or_else(|error| panic!("{error}"));
    knock::serves_nothing(vm);
    // A machine that took this state for its first boot would show the words at one key.
    commands(vm);
    typed(vm, "words", "the vault is locked; open it first");
    typed(vm, "rekey", "the vault is locked; open it first");
    let text = vm.console().text();
    for shown in [READY, "BEGIN AGE", WORDS] {
        assert!(!text.contains(shown), "{shown:?} in {text}");
    }
}
