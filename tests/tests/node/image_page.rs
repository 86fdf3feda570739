//! The commands of docs/image.md that take an image from a server, write a disk by other programs, or sign with a vault:
//! files stand for the disks, and standard input for the terminal. The commands of docs/tpm.md sign for firmware.

use std::fs;

use alknet_image::{PackOptions, pack};
use alknet_tests::FileServer;
use serde_json::Value;

use crate::image_verbs::{ImageUser, WORDS};
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

/// The block with this text in one of its commands.
fn block(command: &str) -> String {
    let found = blocks(PAGE)
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
