//! A sealed machine in the hands of a thief, who cannot read its disk and can write to it, who attaches media, and
//! sits at the console: nothing opens, nothing is shown, and no key of another node is served.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use alknet_qemu::{Disk, Mark, Recorder, Recording, Vm};
use alknet_tests::tools::{RAW_DATA_AT, age, tool_says};
use alknet_tests::{Bench, Boot, Machine, Node, READY, eventually};
use alknet_vault::slots::{NewSlot, NewVault, OpenAlkv};
use alknet_vault::{Entropy, WordCount};
use data_encoding::{BASE64, HEXLOWER};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::console::{commands, typed};
use crate::knock::{self, SecondCard};
use crate::memory::{Look, Opener};
use crate::rescue;
use crate::tpm::{DONE_WITHIN, TPM_ALONE, leave_commands, measured, set_up, type_line};
use crate::vault::{VAULT_A_AT, VAULT_B_AT};

/// From power-on until the console says what is wrong; firmware alone takes long when it is emulated.
const SAID_WITHIN: Duration = Duration::from_secs(60);
/// Where the second copy of a header begins (docs/sealed.md).
const SECOND_HEADER_AT: u64 = 16_384;
/// Bytes of one copy of it.
const HEADER_BYTES: usize = 16_384;
/// Where the checksum of a copy lies, and its field ends.
const CHECKSUM: std::ops::Range<usize> = 448..512;
/// Where the encrypted data begin.
const DATA_AT: u64 = 16 << 20;
/// What a machine does not write to while it is closed: everything before the data, and their beginning.
const HEAD_BYTES: usize = (16 << 20) + (64 << 10);
/// Bytes of a copy of the vault.
const COPY_BYTES: usize = 64 << 10;
/// What the first sector says while the partition is being formatted.
const FORMATTING: &[u8] = b"alknet: this partition is being formatted\n";

/// What stands above words that the console shows.
const WORDS: &str = "These words are this node";
/// How the console asks for proof.
const PROOF: &str = "of its recovery words: _";
/// What the console says of three words once all of them are typed.
const WRONG_WORDS: &str = "these are not the words";
/// Of the vault that a medium opens, which lies beside the machine.
const VAULT: &str = "27209049-2f6c-46bf-a462-c718ee429cc0";
/// What the medium has for it.
const SEED_KEY: [u8; 32] = [0x5e; 32];

/// The TPM would open this machine for anyone who switches it on. With a header that was blanked, marked as half
/// formatted, or overwritten, and with a damaged file system, it stays closed; so it does for a medium that names
/// other administrators, and other recipients of the words.
#[test]
fn a_damaged_disk_opens_nothing_and_takes_nobody_in() {
    let (bench, identity) = set_up(TPM_ALONE);
    let machine = |document: &str| measured(&bench, "own").after_firmware().config(document);
    let disk = bench.raw();
    let whole = head(&disk);
    let thiefs = thiefs_document(&bench, TPM_ALONE);
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
        (
            "with a damaged file system",
            vec![(DATA_AT, &garbage[..])],
            "was decrypted, and no file system known here is in it",
        ),
    ] {
        for (at, bytes) in places {
            write(&disk, at, bytes);
        }
        let damaged = head(&disk);
        let vm = machine(&thiefs).start();
        stays_closed(&vm, "data-damaged", told);
        drop(vm);
        assert!(head(&disk) == damaged, "a disk {what} was written to");
        write(&disk, 0, &whole);
    }

    write(&disk, 0, &moved(&whole));
    let vm = machine(&thiefs).start();
    let told = "places the data where this machine does not put them";
    stays_closed(&vm, "data-damaged", told);
    drop(vm);
    write(&disk, 0, &whole);

    // Nothing is lost: with what was there, the machine opens, and the thief's medium counts for nothing.
    let mut node = machine(&thiefs).boot();
    assert_eq!(node.identity(), identity);
    let info = node.info();
    let codes = info["problems"].as_array().into_iter().flatten();
    let codes: Vec<_> = codes.filter_map(|one| one["code"].as_str()).collect();
    assert!(codes.contains(&"provisioning-ignored"), "{info:#}");
    let status = node.call("vault/status", &Value::Null);
    assert_eq!(status["slots"], json!(["tpm2"]), "{status:#}");
    assert_eq!(status["words_age"], Value::Null, "{status:#}");
    loses_no_slot_without_proof(&mut node);
    node.end();
}

/// The owner, who was not reminded of the words before this start, adds a slot that opens by a key on the boot partition.
/// After a hard lock it alone opens the vault. A thief at the console who has a new master key made then would have the
/// TPM's slot removed: the console asks for the words first.
fn loses_no_slot_without_proof(node: &mut Node) {
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
    commands(node.vm());
    typed(node.vm(), "rekey", PROOF);
    let status = node.call("vault/status", &Value::Null);
    assert_eq!(status["slots"], slots, "{status:#}");
}

/// The medium that opens the vault lies beside it. Words that the owner never confirmed can be read during the start
/// at which the console reminds of that; after the next one only by who has them, also where the vault is put back as
/// it was during the first boot, and with recipients that another medium names. Who cannot read the encrypted data can
/// damage what is in them: no document of a medium takes the place of the stored one, although the medium opens the
/// vault.
#[test]
fn a_medium_that_opens_the_vault_gives_no_words_after_the_reminder_and_no_configuration() {
    let bench = Bench::new();
    let owners = document(
        &bench.admin().identity(),
        &format!("[vault]\nunlock = [\"provisioning\"]\n{}", secrets()),
    );
    // As the image that is shipped has it on its command line.
    let machine = |document: &str| {
        let machine = bench.machine(Boot::MicrovmErofs).config(document);
        machine.append("init_on_free=1")
    };
    let start = |document: &str| machine(document).start();
    let boot = || Node::new(start(&owners), Boot::MicrovmErofs, bench.admin().clone());
    let recorder = Recorder::serve(&bench.data()).unwrap_or_else(|error| panic!("{error}"));
    let recorded = Disk::recorded(&recorder).data();
    let node = machine(&owners).data(Some(recorded)).boot();
    assert_eq!(node.info()["problems"], json!([]), "the first ten minutes");
    node.end();
    let early = after_first_boot(&bench, &recorder.recording());
    drop(recorder);

    let reminded = |node: &Node| {
        let info = node.info();
        let problems = info["problems"].as_array().into_iter().flatten();
        let mut problems = problems.filter(|one| one["code"] == "words-unconfirmed");
        let found = problems.next();
        found.unwrap_or_else(|| panic!("no reminder: {info:#}"));
        // The medium opened it, and nothing has locked it: the console can be asked for the words.
        let status = node.call("vault/status", &Value::Null);
        assert_eq!(status["state"], "unlocked", "{status:#}");
    };
    let node = boot();
    reminded(&node);
    commands(node.vm());
    typed(node.vm(), "words", "type SHOW to go on: _");
    let mark = node.vm().console().mark();
    typed(node.vm(), "SHOW", "Enter wipes them: _");
    let shown = node.vm().console().since(mark);
    let (_, table) = shown.split_once(WORDS).expect("they are shown");
    let words = words_in(table);
    // That they were shown is no confirmation.
    typed(node.vm(), "", "[ok] node");
    node.end();

    let node = boot();
    reminded(&node);
    commands(node.vm());
    let first = words_are_judged_together(node.vm(), &words);
    // Nor does the console let anybody add what opens it.
    commands(node.vm());
    typed(node.vm(), "slot add passphrase", PROOF);
    let entropy = Entropy::parse(&words).expect("they are the vault's");
    let look = Look::new(&bench, &entropy, Opener::Medium(SEED_KEY), &bench.data(), 0);
    look.sees_what_is_there(node.vm());
    node.end();
    put_back(&bench, &early, first);
    forgets_what_it_opened(&bench, machine(&owners), &look);

    // An attacker without the words tries places; they say which ones matter.
    let damaged = rescue::damage(&bench, &bench.data(), &words, "admin_keys");
    assert!(damaged > 0, "the configuration is in the encrypted data");
    let thief = bench.somebody("thief").identity();
    let link = SecondCard::new();
    let vm = link.join(machine(&document(&thief, &secrets()))).start();
    let told = "the stored configuration of this sealed node cannot be read";
    stays_closed(&vm, "config-lost", told);
    look.sees_only(&vm, &[]);
    link.hears(&vm, "config-lost");
}

/// The medium opens the vault of a disk whose file system was damaged since. The machine stays closed, and nothing of what
/// it opened is in its memory: not the words, the seed, a key that is derived from it, or the master key.
fn forgets_what_it_opened(bench: &Bench, machine: Machine<'_>, look: &Look) {
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
    let told = "was decrypted, and no file system known here is in it";
    stays_closed(&vm, "data-damaged", told);
    look.sees_only(&vm, &[]);
    drop(vm);
    put(&whole);
}

/// A thief at the console, who knows some of the words, types them one by one, and learns of none of them whether it is
/// right: the console asks for three, says nothing before the third, and asks for the same ones again. Returns which word
/// it asks for first.
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

/// Which of the words the console asks for after this mark, but for one: pictures of the question before may still be on
/// their way.
fn asked_word(vm: &Vm, mark: Mark, before: Option<usize>) -> usize {
    eventually("the console asks for a word", || {
        let text = vm.console().since(mark);
        let (text, _) = text.rsplit_once(PROOF)?;
        let (_, place) = text.rsplit_once("word ")?;
        let place = place.trim().parse().ok()?;
        (Some(place) != before).then_some(place)
    })
}

/// Has the bench's disk what a recorded one has after the first boot, and answers with the vault as it was during that:
/// with all that it permits.
fn after_first_boot(bench: &Bench, recording: &Recording) -> Vec<u8> {
    let image = bench.path().join("recorded.raw");
    let cut = |at: usize| {
        let cut = recording.cut(at, 0, &image);
        cut.unwrap_or_else(|error| panic!("{error}"));
    };
    let writes = |at: u64| recording.writes_in(at..at + COPY_BYTES as u64);
    let made = writes(VAULT_B_AT)[0];
    let mut changed = writes(VAULT_A_AT).into_iter();
    let changed = changed.find(|moment| *moment > made);
    // The other copy is as it was made then.
    cut(changed.expect("the end of the first boot is noted"));
    let file = File::open(&image).expect("it was made");
    let mut early = vec![0; COPY_BYTES];
    let read = file.read_exact_at(&mut early, VAULT_B_AT);
    read.expect("the disk is longer");
    cut(recording.len());
    alknet_qemu::copy(&image, &bench.data()).unwrap_or_else(|error| panic!("{error}"));
    early
}

/// A thief has one copy of the vault say what it did during the first boot, spoils the other, and names himself as the
/// recipient of the words. When the machine has refused that, the disk answers with a vault of the thief's under the same id, which
/// opens by itself, and the machine is made to try again; then with what it had. The console asks for the same words as
/// before the restart, and for `first` of them first.
fn put_back(bench: &Bench, early: &[u8], first: usize) {
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
    let machine = bench.machine(Boot::MicrovmErofs).config(thiefs);
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
    type_line(&vm, &pasted(bench));
    let told = "the vault on the disk is forged";
    let line = vm.wait_line(told, SAID_WITHIN);
    line.unwrap_or_else(|error| panic!("{error}"));
    // It goes on by itself, with what was pasted.
    put(&newest);
    let node = Node::new(vm, Boot::MicrovmErofs, bench.admin().clone());
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

/// A copy of a vault that a thief made: it has the id of the machine's, which lies in the clear, opens by itself, and
/// is newer than that.
fn forged() -> Vec<u8> {
    let words = Entropy::generate(WordCount::TwentyFour).expect("random bytes");
    let id = VAULT.parse().expect("a vault's id");
    let vault = NewVault::new(words, 0);
    let open = OpenAlkv::create_as(id, vault, |_| Ok(NewSlot::None));
    let mut open = open.expect("made");
    for _ in 0..8 {
        open.add(NewSlot::None).expect("there is room");
    }
    let text = open.alkv().to_text();
    let hash = HEXLOWER.encode(&Sha256::digest(text.as_bytes()));
    let mut copy = format!("{text}\n{hash}\n").into_bytes();
    copy.resize(COPY_BYTES, 0);
    copy
}

/// A document as it is pasted at a console.
fn pasted(bench: &Bench) -> String {
    let [file, line] = ["thief.toml", "thief.line"].map(|name| bench.path().join(name));
    let thief = bench.somebody("thief");
    std::fs::write(&file, document(&thief.identity(), "")).expect("the folder is ours");
    let mut provision = thief.command(&["provision", "--form", "console"]);
    provision.arg("--config").arg(&file).arg("--out").arg(&line);
    provision.args(["--words-to", &recipient(bench)]);
    thief.run(provision).json();
    let line = std::fs::read_to_string(&line).expect("it was written");
    line.trim().to_owned()
}

/// The words of a table of them, each behind its number.
fn words_in(table: &str) -> String {
    let cells: Vec<_> = table.split_whitespace().collect();
    let is_word = |cell: &str| cell.bytes().all(|byte| byte.is_ascii_lowercase());
    let word = |number: usize| {
        let number = number.to_string();
        let mut cells = cells.windows(2);
        let found = cells.find(|cell| cell[0] == number && is_word(cell[1]));
        found.unwrap_or_else(|| panic!("no word {number} in {table}"))[1]
    };
    (1..=24).map(word).collect::<Vec<_>>().join(" ")
}

/// What a medium has that opens the vault.
fn secrets() -> String {
    let key = BASE64.encode(&SEED_KEY);
    format!("[secrets]\nseed_key = \"alknet-seed-1 {VAULT} {key}\"\n")
}

/// The document of an owner.
fn document(admin: &str, more: &str) -> String {
    format!("[node]\nname = \"alknet\"\nadmin_keys = [\"{admin}\"]\n{more}")
}

/// One by which the thief would be the administrator, and get the words. `vault` says how that is opened.
fn thiefs_document(bench: &Bench, vault: &str) -> String {
    let key = bench.path().join("thief.key").display().to_string();
    tool_says(&age("age-keygen"), &["-o", &key]);
    let recipient = recipient(bench);
    let thief = bench.somebody("thief").identity();
    document(&thief, &format!("{vault}\nwords_to = [\"{recipient}\"]\n"))
}

/// Whom the thief would have the words encrypted to.
fn recipient(bench: &Bench) -> String {
    let key = std::fs::read_to_string(bench.path().join("thief.key"));
    let key = key.expect("it was made for the document");
    let mut lines = key.lines();
    let recipient = lines.find_map(|line| line.strip_prefix("# public key: "));
    recipient.expect("a public key").to_owned()
}

/// Waits until the machine says what is wrong, and tries what a thief would at its port and its console.
fn stays_closed(vm: &Vm, code: &str, told: &str) {
    let wait = |what: &str| {
        let waited = vm.wait_for(what, SAID_WITHIN);
        waited.unwrap_or_else(|error| panic!("{error}"));
    };
    wait(&format!("alknet: problem {code}: "));
    let line = vm.wait_line(told, SAID_WITHIN);
    line.unwrap_or_else(|error| panic!("{error}"));
    // Later than a machine that serves says so.
    wait("alknet: address ");
    knock::nobody_answers(vm.address().expect("a card forwards the port"));
    // One key showed the words of a machine that took this for its first boot.
    commands(vm);
    typed(vm, "words", "the vault is locked; open it first");
    typed(vm, "rekey", "the vault is locked; open it first");
    let text = vm.console().text();
    for shown in [READY, "BEGIN AGE", WORDS] {
        assert!(!text.contains(shown), "{shown:?} in {text}");
    }
}

/// Both copies of the header of `head`, by which the data begin a sector later and decrypt as before.
fn moved(head: &[u8]) -> Vec<u8> {
    let mut headers = head[..2 * HEADER_BYTES].to_vec();
    for copy in headers.chunks_exact_mut(HEADER_BYTES) {
        for (from, to) in [
            ("\"offset\":\"16777216\"", "\"offset\":\"16781312\""),
            ("\"iv_tweak\":\"0\"", "\"iv_tweak\":\"8\""),
        ] {
            let mut places = copy.windows(from.len());
            let at = places.position(|bytes| bytes == from.as_bytes());
            let at = at.expect("it describes the data");
            copy[at..at + to.len()].copy_from_slice(to.as_bytes());
        }
        copy[CHECKSUM].fill(0);
        let sum = Sha256::digest(&*copy);
        copy[CHECKSUM.start..CHECKSUM.start + sum.len()].copy_from_slice(&sum);
    }
    headers
}

/// What is before the data on the partition, and their beginning.
fn head(disk: &Path) -> Vec<u8> {
    let mut head = vec![0; HEAD_BYTES];
    let file = File::open(disk).expect("the disk is ours");
    file.read_exact_at(&mut head, RAW_DATA_AT)
        .expect("it is longer");
    head
}

fn write(disk: &Path, at: u64, bytes: &[u8]) {
    let file = File::options().write(true).open(disk);
    let file = file.expect("the disk is ours");
    file.write_all_at(bytes, RAW_DATA_AT + at)
        .expect("it is a file");
}
