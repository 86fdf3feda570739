//! `alknet image` in a folder in which another person can make files, links and pipes.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use alknet_image::{ImageForm, MANIFEST_FILE, OutputRole, PackOptions, pack};
use alknet_test_support::limited;
use alknet_tests::{BuiltImageFolder, CliOutput, binary, run_with_input};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::bundle_verbs::{BuildMachine, EXPIRES, text};
use super::image_verbs::{ImageUser, WORDS};

/// Limit for a command that has nothing to wait for.
const COMMAND_MAX: Duration = Duration::from_secs(60);
/// Content of a file of the signer to which the links lead.
const OWN_KEYS: &str = "ssh-ed25519 AAAA owner\n";
/// Words of another vault.
const OTHER_WORDS: &str =
    "legal winner thank year wave sausage worth useful legal winner thank yellow\n";

/// `alknet image` with these words, the recovery words as its input, and a limit: it might wait for a pipe.
fn run(user: &ImageUser, words: &[&str]) -> CliOutput {
    let mut command = limited(COMMAND_MAX, binary());
    command
        .arg("image")
        .args(words)
        .current_dir(user.bench.path());
    run_with_input(command, WORDS)
}

/// The manifest of an image of one disk with this content.
fn manifest_of(name: &str, disk: &[u8]) -> Value {
    let built = fs::read(BuiltImageFolder::get().folder().join(MANIFEST_FILE));
    let mut manifest: Value = serde_json::from_slice(&built.expect("it was built")).expect("JSON");
    let sha256 = hash_of(disk);
    manifest["outputs"] = json!([{
        "form": "raw", "role": "disk", "file": name, "bytes": disk.len(), "sha256": sha256
    }]);
    manifest
}

/// Puts links to a file at a name and at every name under which a command may write it first.
fn link_all(folder: &Path, name: &str, target: &Path) {
    for link in [
        name.to_owned(),
        format!(".{name}.part"),
        format!(".{name}.new"),
    ] {
        let link = folder.join(link);
        // The manifest itself is what the command reads.
        if !link.ends_with(MANIFEST_FILE) {
            symlink(target, link).expect("the folder is ours");
        }
    }
}

/// The attack: the links lead to the signer's list of keys that may log in.
#[test]
fn a_link_in_the_folder_of_an_image_leads_no_signature_elsewhere() {
    let user = ImageUser::new();
    let version = user.release();
    let out = user.file("out");
    let keys = user.file("authorized_keys");
    fs::write(&keys, OWN_KEYS).expect("the folder is ours");
    let disk = format!("alknet_{version}.raw");
    let packed = [".zst", ".bmap"].map(|ending| format!("{disk}{ending}"));
    let files = [&*disk, &packed[0], &packed[1], "rpi-imager.json"];
    let mut written = Vec::new();
    for file in files {
        let signature = format!("{file}.minisig");
        written.extend([format!("{signature}.sha256"), signature]);
        // The disk is there before.
        if file != disk {
            written.extend([file.to_owned(), format!("{file}.sha256")]);
        }
    }
    written.extend([MANIFEST_FILE, "manifest.json.minisig"].map(str::to_owned));
    for name in &written {
        link_all(&out, name, &keys);
    }
    let made = pack(&out, &PackOptions::default(), &mut |_| {});
    made.unwrap_or_else(|error| panic!("{error}"));
    run(&user, &["sign", "out", "--mnemonic-stdin", "--json"]).json();
    for name in &written {
        let found = fs::symlink_metadata(out.join(name)).expect("it was written");
        assert!(found.is_file(), "{name} is a link");
    }

    // A single file, and an EFI program.
    fs::write(user.file("file"), "what is signed").expect("the folder is ours");
    for name in ["file.minisig", "signed.efi"] {
        link_all(user.bench.path(), name, &keys);
    }
    run(&user, &["sign", "file", "--mnemonic-stdin", "--json"]).json();
    user.shell(&format!(
        "openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=owner -keyout owner.key -out owner.pem
mcopy -o -i out/{disk}@@1M ::/EFI/BOOT/BOOTX64.EFI unsigned.efi
alknet image sign unsigned.efi --efi-key owner.key --efi-cert owner.pem --out signed.efi"
    ));
    for name in ["file.minisig", "signed.efi"] {
        assert!(!user.file(name).is_symlink(), "{name} is a link");
    }
    let left = fs::read_to_string(&keys).expect("it stays");
    assert_eq!(left, OWN_KEYS, "a command wrote through a link");
}

/// The attack: the name of the output is a line for the file to which the link leads.
#[test]
fn no_file_of_an_image_is_named_by_two_lines() {
    let user = ImageUser::new();
    let out = user.file("out");
    fs::create_dir(&out).expect("the folder is ours");
    let keys = user.file("authorized_keys");
    fs::write(&keys, OWN_KEYS).expect("the folder is ours");
    let name = "a\nssh-ed25519 AAAA eve";
    fs::write(out.join(name), "disk").expect("the folder is ours");
    symlink(&keys, out.join(format!("{name}.minisig.sha256"))).expect("the folder is ours");
    let manifest = manifest_of(name, b"disk").to_string();
    fs::write(out.join(MANIFEST_FILE), manifest).expect("the folder is ours");
    let refused = run(&user, &["sign", "out", "--mnemonic-stdin", "--json"]);
    assert_ne!(refused.status, 0, "{refused:?}");
    assert!(
        refused.errors.contains("no control character"),
        "{refused:?}"
    );
    assert_eq!(fs::read_to_string(&keys).expect("it stays"), OWN_KEYS);
    assert!(!out.join(format!("{name}.minisig")).exists());
}

/// The attack: a pipe that no process writes to is in the place of an output.
#[test]
fn a_pipe_in_the_place_of_a_file_of_an_image_keeps_no_command_waiting() {
    let user = ImageUser::new();
    let disk = b"the disk";
    fs::create_dir(user.file("out")).expect("the folder is ours");
    let path = user.file("out/disk.raw");
    fs::write(&path, disk).expect("the folder is ours");
    let manifest = manifest_of("disk.raw", disk).to_string();
    fs::write(user.file("out/manifest.json"), manifest).expect("the folder is ours");
    let signed = run(
        &user,
        &["sign", "out/disk.raw", "--mnemonic-stdin", "--json"],
    )
    .json();
    let key = signed["public_key"].as_str().expect("a key");
    fs::remove_file(&path).expect("it is ours");
    mkfifo(&path, Mode::S_IRWXU).expect("the folder is ours");
    let manifest = ["--manifest", "out/manifest.json"];
    for (words, more) in [
        (&["sign", "out", "--mnemonic-stdin"][..], &[][..]),
        (&["sign", "out/disk.raw", "--mnemonic-stdin"], &[]),
        (&["verify", "out/disk.raw", "--key", key], &[]),
        (&["verify", "out/disk.raw"], &manifest),
        (&["verify", "out/disk.raw", "--disk"], &manifest),
    ] {
        let refused = run(&user, &[words, more, &["--json"]].concat());
        assert!([1, 2].contains(&refused.status), "{words:?}: {refused:?}");
        assert!(
            refused.errors.contains("no regular file"),
            "{words:?}: {refused:?}"
        );
    }
    let refused = pack(&user.file("out"), &PackOptions::default(), &mut |_| {});
    let refused = refused.expect_err("a pipe").to_string();
    assert!(refused.contains("no regular file"), "{refused}");
}

/// A person who can write to the folder could have another manifest ready for a second read of its name. The kernel
/// reports each open, so the test does not have to hit the moment between two.
#[test]
fn a_manifest_is_read_once_for_its_signature_and_its_content() {
    let user = ImageUser::new();
    fs::create_dir(user.file("out")).expect("the folder is ours");
    let manifest = user.file("out/manifest.json");
    let (good, evil) = (&b"the disk"[..], &b"evil one"[..]);
    fs::write(&manifest, manifest_of("disk.raw", good).to_string()).expect("the folder is ours");
    let said = run(
        &user,
        &["sign", "out/manifest.json", "--mnemonic-stdin", "--json"],
    )
    .json();
    let key = said["public_key"].as_str().expect("a key");
    let words = [
        "verify",
        "disk.raw",
        "--manifest",
        "out/manifest.json",
        "--key",
        key,
    ];
    for (disk, status) in [(good, 0), (evil, 1)] {
        fs::write(user.file("disk.raw"), disk).expect("the folder is ours");
        let ended = run_with_one_open(&manifest, || run(&user, &words));
        assert_eq!(ended.status, status, "{ended:?}");
    }
}

/// Runs a command that has to open this file once.
fn run_with_one_open(file: &Path, command: impl FnOnce() -> CliOutput) -> CliOutput {
    let opens = Inotify::init(InitFlags::IN_NONBLOCK).expect("inotify");
    // Without the reports of a close, the kernel would report two opens as one.
    let flags = AddWatchFlags::IN_OPEN | AddWatchFlags::IN_CLOSE_NOWRITE;
    opens.add_watch(file, flags).expect("it is there");
    let ended = command();
    let events = opens.read_events().expect("the command opens it");
    let is_open = |mask: AddWatchFlags| mask.contains(AddWatchFlags::IN_OPEN);
    let count = events.iter().filter(|event| is_open(event.mask)).count();
    assert_eq!(count, 1, "{events:?}: {ended:?}");
    ended
}

/// A computer on which releases are made, with the program of the built image in the folder `out`.
struct BundledFolder {
    machine: BuildMachine,
    /// The program in the folder.
    program: PathBuf,
}

impl BundledFolder {
    fn new() -> Self {
        let machine = BuildMachine::new();
        let root = ["root", "--key", "ada.pem", "--expires", "2032-01-31"];
        let root = [&root[..], &["--out", "1.root.json"]].concat();
        machine.run(&root, "").json();
        let built = BuiltImageFolder::get();
        let from = built.file(ImageForm::Uki, OutputRole::Uki);
        let out = machine.file("out");
        fs::create_dir(&out).expect("the folder is ours");
        fs::copy(built.folder().join(MANIFEST_FILE), out.join(MANIFEST_FILE))
            .expect("it was built");
        let program = out.join(from.file_name().expect("a file"));
        fs::copy(from, &program).expect("it was built");
        Self { machine, program }
    }

    /// The words that make the file `1.tar`, signed by this key.
    fn words<'a>(words: &[&'a str], key: &'a str) -> Vec<&'a str> {
        let options = ["--number", "1", "--root", "1.root.json", "--out", "1.tar"];
        [&["bundle"][..], words, &options, &EXPIRES, &["--key", key]].concat()
    }

    fn bundle(&self, words: &[&str]) -> CliOutput {
        self.machine.run(&Self::words(words, "ada.pem"), "")
    }

    /// Makes a release, takes it away and returns what the command printed.
    fn released(&self, words: &[&str]) -> Value {
        let made = self.bundle(words).json();
        fs::remove_file(self.machine.file("1.tar")).expect("it was written");
        made
    }

    /// Returns the text of the error with which the command ends.
    fn refused(&self, words: &[&str], status: i32, code: &str) -> String {
        let refused = self.bundle(words);
        let ended = (refused.status, &*refused.code());
        assert_eq!(ended, (status, code), "{words:?}: {refused:?}");
        assert!(!self.machine.file("1.tar").exists(), "{words:?}");
        refused.errors
    }

    /// Puts another program into the folder, and returns its SHA-256.
    fn exchange_program(&self) -> String {
        let mut content = fs::read(&self.program).expect("it was copied");
        // A byte of the last section.
        *content.last_mut().expect("a program") ^= 1;
        fs::write(&self.program, &content).expect("the folder is ours");
        hash_of(&content)
    }

    /// Signs a file by the image key of these recovery words, and returns the public key.
    fn sign(&self, file: &str, words: &str) -> String {
        let signed = self.machine.run(&["sign", file, "--mnemonic-stdin"], words);
        let signed = signed.json();
        signed["public_key"].as_str().expect("a key").to_owned()
    }
}

/// SHA-256 in hex.
fn hash_of(content: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(&Sha256::digest(content))
}

/// The attack: another person has changed the program in the folder, and left the manifest.
#[test]
fn a_program_that_is_not_the_one_of_the_manifest_is_not_released() {
    let folder = BundledFolder::new();
    let built = BuiltImageFolder::get().file(ImageForm::Uki, OutputRole::Uki);
    let content = fs::read(&built).expect("it was built");
    let made = folder.released(&["out"]);
    assert_eq!(made["program_sha256"], hash_of(&content), "{made:#}");
    let other = folder.exchange_program();
    for words in [&["out"][..], &[text(&built), "--from", "out"]] {
        let refused = folder.refused(words, 1, "IMAGE_DIFFERS");
        assert!(refused.contains(&other), "{refused}");
    }
}

/// The attack: another person has changed the program in the folder, and what the manifest says of it.
#[test]
fn a_program_that_was_replaced_with_its_manifest_is_not_released_for_a_manifest_key() {
    let folder = BundledFolder::new();
    let manifest = folder.machine.file("out/manifest.json");
    let signature = folder.machine.file("out/manifest.json.minisig");
    fs::copy(&folder.program, folder.machine.file("own.efi")).expect("it was copied");
    let key = folder.sign("out/manifest.json", WORDS);
    assert_eq!(folder.sign("own.efi", WORDS), key);
    // What the owner signed is released, and passes for the origin of a delta.
    let signed = ["out", "--manifest-key", &key];
    let origin = ["own.efi", "--from", "out", "--manifest-key", &key];
    let own = run_with_one_open(&manifest, || folder.bundle(&signed)).json();
    assert_eq!(own["signature"], true, "{own:#}");
    let comment = own["trusted_comment"].as_str().expect("a comment");
    assert!(comment.starts_with("file:manifest.json "), "{own:#}");
    fs::remove_file(folder.machine.file("1.tar")).expect("it was written");
    let same = folder.refused(&origin, 2, "USAGE");
    assert!(same.contains("the program of the bundle itself"), "{same}");

    let other = folder.exchange_program();
    let content = fs::read(&manifest).expect("it was copied");
    let mut listed: Value = serde_json::from_slice(&content).expect("JSON");
    let outputs = listed["outputs"].as_array_mut().expect("a list");
    let mut outputs = outputs.iter_mut();
    let uki = outputs.find(|it| it["form"] == "uki" && it["role"] == "uki");
    let uki = uki.expect("the form was built");
    uki["sha256"] = other.as_str().into();
    uki["bytes"] = fs::metadata(&folder.program).expect("a file").len().into();
    fs::write(&manifest, listed.to_string()).expect("the folder is ours");
    // Without a key the command cannot know.
    let made = folder.released(&["out"]);
    assert_eq!(made["program_sha256"], other, "{made:#}");
    assert_eq!(made["signature"], false, "{made:#}");
    let name = "out/manifest.json.minisig";
    let assert_refused = |status: i32, code: &str, said: &str| {
        for words in [&signed[..], &origin] {
            let refused = folder.refused(words, status, code);
            for part in [name, said, &*key, "--manifest-key"] {
                assert!(refused.contains(part), "{words:?}: {part}: {refused}");
            }
        }
    };
    assert_refused(1, "IMAGE_DIFFERS", "is not the one that was signed");
    // A signature by the attacker's own key, and none at all.
    let attacker = folder.sign("out/manifest.json", OTHER_WORDS);
    assert_ne!(attacker, key);
    assert_refused(1, "IMAGE_DIFFERS", "did not make it");
    fs::remove_file(&signature).expect("it was written");
    assert_refused(2, "USAGE", "cannot read");
    // A program without a folder needs a signature of its own.
    let program = format!("{}.minisig", text(&folder.program));
    let alone = [text(&folder.program), "--manifest-key", &key];
    let refused = folder.refused(&alone, 2, "USAGE");
    assert!(refused.contains(&program), "{refused}");
}

/// Ben's key is not in the root document, so the command ends where it would sign.
#[test]
fn a_person_reads_the_hash_of_a_program_before_it_is_signed() {
    let folder = BundledFolder::new();
    let content = fs::read(&folder.program).expect("it was copied");
    let command = folder
        .machine
        .command(&BundledFolder::words(&["out"], "ben.pem"));
    let ended = run_with_input(command, "");
    assert_eq!((ended.status, &*ended.output), (2, ""), "{ended:?}");
    let first = ended.errors.lines().next().unwrap_or_default();
    assert!(first.ends_with(&hash_of(&content)), "{ended:?}");
    let warning = "no signature was checked";
    assert!(ended.errors.contains(warning), "{ended:?}");
    assert!(!folder.machine.file("1.tar").exists());
}
