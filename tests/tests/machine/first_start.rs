//! An attacker has a machine before its first start, or leaves media in it: no vault is made that the attacker can open
//! or whose words the attacker knows.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use alknet_qemu::{VirtioDisk, Vm};
use alknet_tests::tools::fat_volume;
use alknet_tests::{BootVariant, MachineBuilder, MachineNode, TestBench};
use data_encoding::BASE64;
use serde_json::{Value, json};

use crate::chip::with_chip;
use crate::console::typed;
use crate::knock;
use crate::media::{KEY, OTHER_VAULT, drive, looked_at, pull, put, stick};
use crate::stolen::FORGED;
use crate::vault::{IDENTITY, PHRASE, type_line};

/// Time from power-on, or from a change of the media, until the console says what the machine waits for. The machine
/// looks at the media every 3 s.
const SAID_WITHIN: Duration = Duration::from_secs(30);
/// `TPM2_HierarchyChangeAuth` of the owner, who has no password, to a password of 8 characters.
const SET_PASSWORD: [u8; 37] = [
    0x80, 0x02, 0, 0, 0, 37, 0, 0, 0x01,
    0x29, // A command with a session, its bytes, its code.
    0x40, 0, 0, 0x01, // The owner.
    0, 0, 0, 9, 0x40, 0, 0, 0x09, 0, 0, 0, 0, 0, // An empty password.
    0, 8, b'a', b't', b't', b'a', b'c', b'k', b'e', b'r',
];
/// The attacker's words.
const ATTACKERS_PHRASE: &str =
    "legal winner thank year wave sausage worth useful legal winner thank yellow";
/// The vault that the owner's medium names, and the byte that its key is made of.
const VAULT: &str = "27209049-2f6c-46bf-a462-c718ee429cc0";
const OWNERS_KEY: u8 = 0x0e;
const PASSPHRASE: &str = "correct horse";
/// The console's question for a passphrase of the vault that is to be made.
const NEW_PASSPHRASE: &str = "alknet: asks: new passphrase";
/// Numbers of the machine's disks, of which the first is the data disk. Two are the attacker's.
const DATA: usize = 0;
const ATTACKERS_KEY: usize = 1;
const ATTACKERS_WORDS: usize = 2;
const DOCUMENT: usize = 3;
const OWNERS: usize = 4;

/// The owner's configuration does not say what opens the vault, and a medium in the machine has a key. The machine has a
/// TPM, in which the attacker set an owner's password, or its firmware measures nothing. It does not take the TPM for
/// an absent one.
#[test]
fn a_tpm_that_refuses_leaves_no_vault_to_a_medium() {
    for (has_password, told) in [
        (true, "the owner hierarchy of the TPM has a password"),
        (false, "is empty: nothing was measured into it"),
    ] {
        let bench = TestBench::new();
        let chip = bench.path().join("own.tpm");
        if has_password {
            set_password(&chip);
        }
        let medium = stick(&bench, "attackers", OTHER_VAULT, KEY);
        // SeaBIOS starts the kernel, and no program measures the kernel.
        let machine = bench.machine(BootVariant::Q35Initramfs);
        let machine = machine.with(|vm| vm.tpm(&chip));
        let vm = machine.disk(VirtioDisk::file(medium).read_only()).start();
        waits(&vm, "the TPM does not take the key: ");
        waits(&vm, told);
        knock::serves_nothing(&vm);
        drop(vm);
        makes_no_vault(&bench);
    }
}

/// Sets a password of the owner in a TPM.
fn set_password(chip: &Path) {
    with_chip(chip, |tpm| {
        let mut wire = tpm.into_inner();
        wire.write_all(&SET_PASSWORD).expect("it listens");
        let mut answer = [0; 10];
        wire.read_exact(&mut answer).expect("it answers");
        assert_eq!(answer[6..], [0; 4], "the TPM's code");
    });
}

/// The attacker leaves media with a key and with words in a machine whose configuration asks for neither. Then the
/// owner's configuration comes, which asks for both, and for a passphrase. The attacker types one before the owner
/// attaches the medium with the owner's words, beside which the attacker's words lie. The machine makes its vault once
/// these are gone, and asks for a passphrase then.
#[test]
fn what_an_attacker_leaves_or_types_before_the_first_start_is_in_no_vault() {
    let bench = TestBench::new();
    let media = media(&bench);
    let media = media
        .iter()
        .map(|image| VirtioDisk::file(image).read_only().unplugged());
    let data = VirtioDisk::file(bench.data()).data().unplugged();
    let machine = bench.machine(BootVariant::Q35Initramfs).config("");
    let machine = media.fold(machine.data(Some(data)), MachineBuilder::disk);
    let vm = machine.start();
    waits(&vm, "no disk with serial alk-data");

    found(&vm, ATTACKERS_KEY);
    plug(&vm, DATA);
    waits(&vm, "has a seed.key, and neither vault.unlock nor");
    found(&vm, ATTACKERS_WORDS);
    pull(&vm, ATTACKERS_KEY);
    waits(&vm, "has words, and vault.init does not ask for those");
    plug(&vm, DOCUMENT);
    waits(&vm, "no medium with a seed.key is attached");
    for _ in 0..2 {
        type_line(&vm, FORGED);
    }
    plug(&vm, OWNERS);
    waits(&vm, "there are different words (");
    knock::serves_nothing(&vm);
    makes_no_vault(&bench);
    let said = vm.console().text();
    assert!(!said.contains("alknet: asks: "), "{said}");

    let mark = vm.console().mark();
    pull(&vm, ATTACKERS_WORDS);
    let asks = vm.wait_for_after(mark, NEW_PASSPHRASE, SAID_WITHIN);
    asks.unwrap_or_else(|error| panic!("{error}"));
    typed(&vm, PASSPHRASE, "the same again");
    type_line(&vm, PASSPHRASE);
    let node = MachineNode::new(vm, BootVariant::Q35Initramfs, bench.admin().clone());
    assert_eq!(node.identity(), IDENTITY, "the node of the owner's words");
    let status = node.call("vault/status", &Value::Null);
    let slots = json!(["provisioning", "passphrase"]);
    assert_eq!(status["slots"], slots, "{status:#}");
    assert_eq!(status["words_kept"], true, "{status:#}");
}

/// The media of the attacker and the owner, by their numbers from [`ATTACKERS_KEY`] on.
fn media(bench: &TestBench) -> [PathBuf; 4] {
    let attackers_key = stick(bench, "attackers-key", OTHER_VAULT, KEY);
    let attackers_words = drive(bench, "attackers-words");
    put(bench, &attackers_words, "vault.words", ATTACKERS_PHRASE);
    let admin = bench.admin().identity();
    let document = format!(
        "[node]\nname = \"alknet\"\nadmin_keys = [\"{admin}\"]\n\
         [vault]\ninit = \"provisioned\"\nunlock = [\"provisioning\", \"passphrase\"]\n"
    );
    let document = fat_volume(bench, "document", &document);
    let owners = drive(bench, "owners");
    let key = BASE64.encode(&[OWNERS_KEY; 32]);
    let key = format!("alknet-seed-1 {VAULT} {key}\n");
    put(bench, &owners, "vault.words", PHRASE);
    put(bench, &owners, "seed.key", &key);
    [attackers_key, attackers_words, document, owners]
}

/// Waits until the console has a line with `why`.
fn waits(vm: &Vm, why: &str) {
    let line = vm.wait_line(why, SAID_WITHIN);
    line.unwrap_or_else(|error| panic!("{error}"));
}

fn plug(vm: &Vm, disk: usize) {
    vm.plug_disk(disk).unwrap_or_else(|error| panic!("{error}"));
}

/// Plugs a medium, and waits until the machine has looked at it.
fn found(vm: &Vm, medium: usize) {
    plug(vm, medium);
    looked_at(vm, medium, 1);
}

/// The machine has written nothing to its data disk.
fn makes_no_vault(bench: &TestBench) {
    let written = alknet_qemu::content(&bench.data());
    let written = written.unwrap_or_else(|error| panic!("{error}"));
    assert!(written.is_empty(), "{} bytes were written", written.len());
}
