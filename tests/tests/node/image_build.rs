//! `alknet image build` with the inputs of the image under test makes the files of that image.

use std::fs;
use std::os::unix::fs::symlink;

use alknet_image::{ImageForm, Manifest, OutputRole};
use alknet_tests::BuiltImageFolder;
use alknet_tests::tools::{tool_says, variable};
use serde_json::Value;

use crate::image_verbs::{BUILDS, ImageUser};
use crate::judged_image::accepted_bill;
use crate::page_commands::blocks;

const PAGE: &str = include_str!("../../../docs/image.md");

/// A user with the inputs of the image, by the names that the page has for them.
fn user_with_inputs() -> ImageUser {
    let user = ImageUser::new();
    let built = BuiltImageFolder::get();
    let disk = built.file(ImageForm::Raw, OutputRole::Disk);
    for (name, input) in [
        ("bzImage", built.file(ImageForm::Direct, OutputRole::Kernel)),
        ("linuxx64.efi.stub", variable("ALKNET_TEST_STUB").into()),
        ("grub", variable("ALKNET_TEST_GRUB").into()),
        ("shipped", built.folder().to_owned()),
        ("shipped.raw", disk.clone()),
        ("shipped.efi", built.file(ImageForm::Uki, OutputRole::Uki)),
    ] {
        symlink(input, user.file(name)).expect("the folder is ours");
    }
    let volume = format!("{}@@1M", disk.display());
    let loader = user.file("alknet-loader.efi").display().to_string();
    let copy = ["-i", &volume, "::/EFI/BOOT/BOOTX64.EFI", &loader];
    tool_says("mcopy", &copy);
    let [public, secret] = ["minisign.pub", "minisign.key"].map(|name| user.file(name));
    let [public, secret] = [&public, &secret].map(|path| path.to_str().expect("text"));
    tool_says("minisign", &["-G", "-W", "-p", public, "-s", secret]);
    user
}

/// The blocks of the page that build: one packs the disk, and the other one signs for Secure Boot.
fn blocks_of_page() -> [String; 2] {
    let blocks = blocks(PAGE).into_iter();
    let building = blocks.filter(|(info, code)| *info == "sh" && code.starts_with(BUILDS));
    let found: Vec<_> = building.map(|(_, code)| code).collect();
    found.try_into().expect("the page has two blocks")
}

#[test]
fn the_command_of_the_page_builds_the_shipped_disk_and_program() {
    let user = user_with_inputs();
    let shipped = BuiltImageFolder::get().manifest();
    let [packed, _] = blocks_of_page();
    let more = format!("--form uki --commit {}", shipped.git);
    user.shell(&format!("{} {more}", packed.trim_end()));
    let folder = user.file("out");
    let made = Manifest::read(&folder).expect("it was built");
    for (form, role) in [
        (ImageForm::Raw, OutputRole::Disk),
        (ImageForm::Raw, OutputRole::Example),
        (ImageForm::Raw, OutputRole::Notice),
        (ImageForm::Raw, OutputRole::Sbom),
        (ImageForm::Uki, OutputRole::Sbom),
        (ImageForm::Uki, OutputRole::Uki),
    ] {
        let [ours, theirs] = [&made, shipped].map(|manifest| {
            let outputs = manifest.outputs.iter();
            let of_role = outputs.filter(|output| output.form == form && output.role == role);
            of_role.collect::<Vec<_>>()
        });
        assert!(!ours.is_empty(), "{form} {role:?}");
        assert_eq!(ours, theirs);
    }
    for input in &made.inputs {
        assert!(shipped.inputs.contains(input), "{input:?}");
    }
    assert_eq!(made.disk, shipped.disk);
    let version = &shipped.version;
    user.shell(&format!(
        "cmp out/alknet_{version}.raw shipped.raw
        cmp out/alknet_{version}.efi shipped.efi
        cmp out/alknet_{version}.spdx.json shipped/alknet_{version}.spdx.json
        zstd -dqc out/alknet_{version}.raw.zst | cmp - shipped.raw
        cd out && sha256sum --quiet --strict -c ./*.sha256"
    ));
    let list = fs::read(folder.join("rpi-imager.json")).expect("it was packed");
    let list: Value = serde_json::from_slice(&list).expect("JSON");
    let entry = &list["os_list"][0];
    let disk = made.outputs.iter().find(|it| it.role == OutputRole::Disk);
    assert_eq!(
        entry["extract_sha256"],
        disk.expect("it was built").sha256.as_str()
    );
    assert_eq!(entry["release_date"], "2027-01-31");
}

#[test]
fn the_command_of_the_page_builds_forms_with_signed_programs() {
    let user = user_with_inputs();
    user.shell(
        "openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=owner -keyout owner.key -out owner.pem",
    );
    let [_, signed] = blocks_of_page();
    let said = user.shell(&signed);
    let made = Manifest::read(&user.file("signed")).expect("it was built");
    let version = &made.version;
    assert!(
        said.contains(&format!("checked   alknet_{version}.efi")),
        "{said}"
    );
    assert!(
        said.contains(&format!("left out  alknet_{version}.qcow2")),
        "{said}"
    );
    for program in ["BOOT/BOOTX64.EFI", "ALKNET/A.EFI"] {
        let checked = format!("checked   alknet_{version}.raw: EFI/{program}");
        assert!(said.contains(&checked), "{said}");
        // The foreign judge, and the same program in the other form.
        user.shell(&format!(
            "test -e other.raw || qemu-img convert -O raw signed/alknet_{version}.qcow2 other.raw
            mcopy -o -i other.raw@@1M ::/EFI/{program} other.efi
            mcopy -o -i signed/alknet_{version}.raw@@1M ::/EFI/{program} own.efi
            cmp own.efi other.efi
            sbverify --cert owner.pem other.efi"
        ));
    }
    user.shell(&format!(
        "cmp own.efi signed/alknet_{version}.efi
        cd signed && sha256sum --quiet --strict -c ./*.sha256"
    ));
    let shipped = BuiltImageFolder::get().manifest();
    for input in &made.inputs {
        assert!(shipped.inputs.contains(input), "{input:?}");
    }
}

/// The package of this name in a bill of materials.
fn package<'a>(bill: &'a Value, name: &str) -> Option<&'a Value> {
    let packages = bill["packages"].as_array().expect("a list");
    packages.iter().find(|it| it["name"] == name)
}

#[test]
fn the_bill_of_an_owner_says_of_each_file_what_is_known() {
    let user = user_with_inputs();
    let version = &BuiltImageFolder::get().manifest().version;
    let build = format!("alknet image build --form direct --image-version {version}");
    user.shell("cp bzImage other && printf x >>other");
    for words in [
        "--kernel bzImage --shipped shipped --out known",
        "--kernel other --shipped shipped --out changed",
        "--kernel other --shipped shipped --out again",
        "--kernel bzImage --out alone",
    ] {
        user.shell(&format!("{build} {words}"));
    }
    user.shell(&format!(
        "cmp changed/alknet_{version}.spdx.json again/alknet_{version}.spdx.json
        (cd changed && sha256sum --quiet --strict -c alknet_{version}.spdx.json.sha256)"
    ));
    let [shipped, known, changed, alone] = ["shipped", "known", "changed", "alone"].map(|folder| {
        let bill = user
            .file(folder)
            .join(format!("alknet_{version}.spdx.json"));
        accepted_bill(&bill)
    });
    for (bill, name) in [(&known, "Linux"), (&known, "tokio"), (&changed, "tokio")] {
        assert!(package(bill, name).is_some(), "{name}");
        assert_eq!(package(bill, name), package(&shipped, name));
    }
    assert!(package(&alone, "tokio").is_some(), "this program is known");
    for (bill, file) in [(&changed, "other"), (&alone, "bzImage")] {
        assert_eq!(package(bill, "Linux"), None, "{file}");
        let kernel = package(bill, "kernel").expect("an entry");
        assert_eq!(kernel["licenseDeclared"], "NOASSERTION", "{file}");
        let hash = kernel["checksums"][0]["checksumValue"].as_str();
        let sum = user.shell(&format!("sha256sum {file}"));
        assert_eq!(sum.split_whitespace().next(), hash, "{file}");
    }
}
