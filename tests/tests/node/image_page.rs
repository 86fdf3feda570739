//! The commands of docs/image.md that take an image from a server, write a disk by other programs, or sign with a vault
//! or with several keys: files stand for the disks, and standard input for the terminal. The commands of docs/tpm.md sign
//! for firmware.

use std::fs;
use std::path::Path;

use alknet_image::{ImageForm, OutputRole, PackOptions, pack};
use alknet_test_support::limited;
use alknet_tests::{BuiltImageFolder, CliOutput, FileServer, binary, run_with_input};
use alknet_update::{TrustAnchor, UpdateTrust};
use serde_json::Value;

use crate::bundle_verbs::{installed, text};
use crate::image_verbs::{BLOCK_MAX, ImageUser, WORDS};
use crate::page_commands::blocks;

const PAGE: &str = include_str!("../../../docs/image.md");
const TPM_PAGE: &str = include_str!("../../../docs/tpm.md");
/// Prints which programs on the EFI system partition of the disk this certificate verifies.
const VERIFIED: &str = "\
for program in BOOT/BOOTX64.EFI ALKNET/A.EFI; do
    mcopy -o -i out/alknet_VERSION.raw@@1M ::/EFI/$program checked.efi
    if sbverify --cert CERTIFICATE checked.efi >sbverify.log; then echo $program; fi
done 2>sbverify.err
";

/// Files of private keys, and their text in PEM: the keys of tests 1 and 2 in section 7.1 of RFC 8032, whose public keys
/// the page names.
const SIGNERS: [(&str, &str); 2] = [
    (
        "ada.pem",
        "MC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g",
    ),
    (
        "ben.pem",
        "MC4CAQAwBQYDK2VwBCIEIEzNCJso/5banbbDRuwRTg9bijGfNaumJNqM9u1PuKb7",
    ),
];

/// The block of the page with this text in one of its commands.
fn block(command: &str) -> String {
    block_of(PAGE, command)
}

fn block_of(page: &'static str, command: &str) -> String {
    let found = blocks(page)
        .into_iter()
        .find(|(info, code)| *info == "bash" && code.contains(command));
    let (_, code) = found.unwrap_or_else(|| panic!("the page has no {command}"));
    code
}

/// The commands with these texts in the place of the page's, each of which the page has.
fn replaced(mut code: String, values: &[(&str, &str)]) -> String {
    for (written, value) in values {
        assert!(code.contains(written), "no {written} in\n{code}");
        code = code.replace(written, value);
    }
    assert!(!code.contains("/dev/"), "{code}");
    code
}

/// The shipped disk in `out`, packed, and its version and SHA-256.
fn packed(user: &ImageUser) -> (String, String) {
    let version = user.release();
    let out = user.file("out");
    let made = pack(&out, &PackOptions::default(), &mut |_| {});
    made.unwrap_or_else(|error| panic!("{error}"));
    let sum = fs::read_to_string(out.join(format!("alknet_{version}.raw.sha256")));
    let sum = sum.expect("it was built");
    let sum = sum.split_whitespace().next().expect("a sum").to_owned();
    (version, sum)
}

#[test]
fn the_page_of_images_writes_from_a_server_and_by_other_programs() {
    let user = ImageUser::new();
    let (version, sum) = packed(&user);
    let is_image = |name: &str| {
        let raw = format!("out/alknet_{version}.raw");
        user.shell(&format!("cmp -n \"$(stat -c %s {raw})\" {name} {raw}"));
    };

    let code = replaced(
        block("bmaptool copy"),
        &[
            ("VERSION", &version),
            ("of=/dev/sdX", "of=copied.raw"),
            ("/dev/sdX", "mapped.raw"),
        ],
    );
    user.shell(&code);
    is_image("copied.raw");
    is_image("mapped.raw");
    for name in ["copied.raw", "mapped.raw"] {
        fs::remove_file(user.file(name)).expect("just written");
    }

    fs::create_dir(user.file("seed")).expect("the folder is ours");
    let document = "[node]\nname = \"edge-1\"\n";
    fs::write(user.file("seed/alknet.toml"), document).expect("the folder is ours");
    let server = FileServer::start(user.bench.path());
    let url = format!(
        "http://127.0.0.1:{}/out/alknet_{version}.raw.zst",
        server.port()
    );
    let code = replaced(
        block("alknet image write -"),
        &[
            ("https://example.org/alknet_0.1.0.raw.zst", &url),
            (
                "/dev/nvme0n1 --serial S4EVNX0N --yes",
                "fetched.raw --to-file",
            ),
            ("/dev/sdb", "seeded.raw --to-file"),
            (
                "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
                &sum,
            ),
        ],
    );
    let said = user.shell(&code);
    assert!(said.contains("placed: alknet.toml"), "{said}");
    is_image("fetched.raw");
    let checked = user.shell("alknet image verify seeded.raw --disk --manifest out/manifest.json");
    assert!(checked.contains("other     alknet.toml"), "{checked}");
}

/// The key of the words, as the vault shows it to minisign.
fn public_key(user: &ImageUser) -> String {
    let said = user.shell("alknet image sign words.txt --mnemonic-stdin --json <words.txt");
    let said: Value = serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"));
    said["public_key"].as_str().expect("a key").to_owned()
}

#[test]
fn the_page_of_images_signs_with_a_vault_and_with_its_words() {
    let user = ImageUser::new();
    user.release();
    fs::write(user.file("words.txt"), WORDS).expect("the folder is ours");
    user.shell("alknet vault import --dir vault --slot none --mnemonic-stdin <words.txt");
    let key = public_key(&user);
    let code = replaced(
        block("alknet image sign out --dir"),
        &[("--mnemonic", "--mnemonic-stdin <words.txt")],
    );
    let commands: Vec<&str> = code.lines().collect();
    assert_eq!(commands.len(), 2, "{code}");
    let signature = user.file("out/manifest.json.minisig");
    for command in commands {
        user.shell(command);
        let verify = format!("alknet image verify out/manifest.json --key {key}");
        let said = user.shell(&verify);
        assert!(said.contains("the signature holds"), "{command}: {said}");
        // The next command has to write it again.
        fs::remove_file(&signature).expect("the command wrote it");
    }
}

/// The computer of a person who keeps one key.
fn signer((name, body): (&str, &str)) -> ImageUser {
    let user = ImageUser::new();
    let pem = format!("-----BEGIN PRIVATE KEY-----\n{body}\n-----END PRIVATE KEY-----\n");
    fs::write(user.file(name), pem).expect("the folder is ours");
    user
}

/// Runs a block whose last command is for the other computer. That one gets the file, and gives it back signed.
fn sign_by_two([first, second]: &[ImageUser; 2], code: &str, file: &str) {
    let hand_over = |from: &ImageUser, to: &ImageUser| {
        fs::copy(from.file(file), to.file(file)).expect("the command wrote it");
    };
    let commands = code.rsplit_once("\nalknet image cosign ");
    let (begin, complete) = commands.unwrap_or_else(|| panic!("no other computer in\n{code}"));
    first.shell(begin);
    hand_over(first, second);
    second.shell(&format!("alknet image cosign {complete}"));
    hand_over(second, first);
}

/// The folder of the built image in the place of the page's.
fn of_built_image(code: String) -> String {
    let folder = format!("image bundle {} ", text(BuiltImageFolder::get().folder()));
    replaced(code, &[("image bundle out ", &folder)])
}

/// A machine with the root document takes the program of the built image from these bundles, one after the other.
fn assert_installed(user: &ImageUser, bundles: &[&str]) {
    let built = BuiltImageFolder::get();
    let expected = fs::read(built.file(ImageForm::Uki, OutputRole::Uki)).expect("it was built");
    let root = fs::read(user.file("1.root.json")).expect("it was made");
    let mut trust = UpdateTrust::new(TrustAnchor::root(&root).expect("a root"));
    for name in bundles {
        let bundle = fs::read(user.file(name)).expect("it was made");
        let (seen, version, program) = installed(trust, &bundle);
        assert_eq!(version, built.manifest().version, "{name}");
        assert!(program == expected, "{name} has another program");
        trust = seen;
    }
}

#[test]
fn two_people_of_the_page_of_images_sign_a_root_and_a_release() {
    let people = SIGNERS.map(signer);
    let root = block("alknet image root --key ada.pem");
    sign_by_two(&people, &root, "1.root.json");
    let bundle = of_built_image(block("alknet image bundle out --key ada.pem"));
    sign_by_two(&people, &bundle, "bundle.tar");
    assert_installed(&people[0], &["bundle.tar"]);
}

/// Runs the command of the page that signs the bundles of a release together, for a bundle with another name.
pub(crate) fn cosign_as_on_the_page(page: &'static str, folder: &Path) -> CliOutput {
    let program = format!("'{}' image", binary().display());
    let code = replaced(
        block_of(page, "alknet image cosign bundle.tar from-"),
        &[
            ("bundle.tar", "1.bundle"),
            ("ben.pem", "ben.pem --json"),
            ("alknet image", &program),
        ],
    );
    let mut shell = limited(BLOCK_MAX, "bash");
    shell.args(["-euc", &code]).current_dir(folder);
    run_with_input(shell, "")
}

#[test]
fn the_page_of_images_renews_a_timestamp_by_its_key_alone() {
    let user = signer(SIGNERS[0]);
    user.shell("openssl genpkey -algorithm ed25519 -out timestamp.pem");
    let words = ["root", "--key", "timestamp.pem", "--expires", "2032-01-31"];
    let root = user.run(&[&words[..], &["--out", "x", "--json"]].concat());
    let root = root.json();
    let key = root["keys"][0].as_str().expect("a key");
    let release = format!(
        "alknet image root --key ada.pem --timestamp-key {key} --expires 2032-01-31 --out 1.root.json
        alknet image bundle out --key ada.pem --key timestamp.pem --root 1.root.json --number 1 \
            --expires 2032-01-31 --timestamp-expires 2031-01-31 --out bundle.tar"
    );
    user.shell(&of_built_image(release));
    let said = user.shell(&block("alknet image renew bundle.tar"));
    let renewed = "release 1 has timestamp 2, valid until 2027-05-31T00:00:00Z";
    assert!(said.contains(renewed), "{said}");
    assert_installed(&user, &["bundle.tar", "renewed.tar"]);
}

#[test]
fn the_page_of_the_tpm_signs_loader_and_program() {
    let user = ImageUser::new();
    let version = user.release();
    let blocks = blocks(TPM_PAGE);
    let mut signing = blocks.into_iter().filter(|(info, _)| *info == "sh");
    let (_, code) = signing.next().expect("the page signs");
    assert_eq!(signing.next(), None, "another block to run");
    let code = replaced(code, &[("VERSION", &version)]);
    let verified = |certificate: &str| {
        let values = [("VERSION", version.as_str()), ("CERTIFICATE", certificate)];
        user.shell(&replaced(VERIFIED.to_owned(), &values))
    };

    user.shell(&code);
    user.shell("mv owner.pem first.pem");
    assert_eq!(verified("first.pem"), "BOOT/BOOTX64.EFI\nALKNET/A.EFI\n");
    // Another owner, whose certificate is in no signature.
    user.shell(
        "openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=other \
         -keyout other.key -out other.pem",
    );
    assert_eq!(verified("other.pem"), "");
}
