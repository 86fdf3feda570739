//! `alknet image build` with the inputs of the image under test makes the files of that image.

use std::fs;
use std::os::unix::fs::symlink;

use alknet_image::{ImageForm, Manifest, OutputRole};
use alknet_tests::BuiltImageFolder;
use alknet_tests::tools::{tool_says, variable};
use serde_json::Value;

use crate::image_verbs::{ImageUser, PAGE};
use crate::page_commands::blocks;

/// The beginning of the page's command.
const COMMAND: &str = "alknet image build ";

/// A user with the inputs of the image, by the names that the page has for them.
fn user_with_inputs() -> ImageUser {
    let user = ImageUser::new();
    let built = BuiltImageFolder::get();
    let disk = built.file(ImageForm::Raw, OutputRole::Disk);
    for (name, input) in [
        ("bzImage", built.file(ImageForm::Direct, OutputRole::Kernel)),
        ("linuxx64.efi.stub", variable("ALKNET_TEST_STUB").into()),
        ("grub", variable("ALKNET_TEST_GRUB").into()),
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

/// The command of the page with more words.
fn command_of_page(more: &str) -> String {
    let mut found = blocks(PAGE)
        .into_iter()
        .filter_map(|(_, code)| Some(code.split_once(COMMAND)?.1.trim_end().to_owned()));
    let rest = found.next().expect("the page has the command");
    assert_eq!(found.next(), None);
    format!("{COMMAND}{rest} {more}")
}

#[test]
fn the_command_of_the_page_builds_the_shipped_disk_and_program() {
    let user = user_with_inputs();
    let shipped = BuiltImageFolder::get().manifest();
    user.shell(&command_of_page(&format!(
        "--form uki --commit {}",
        shipped.git
    )));
    let folder = user.file("out");
    let made = Manifest::read(&folder).expect("it was built");
    for (form, role) in [
        (ImageForm::Raw, OutputRole::Disk),
        (ImageForm::Raw, OutputRole::Notice),
        (ImageForm::Uki, OutputRole::Uki),
    ] {
        let [ours, theirs] = [&made, shipped].map(|manifest| {
            let mut outputs = manifest.outputs.iter();
            outputs.find(|output| output.form == form && output.role == role)
        });
        assert!(ours.is_some(), "{form} {role:?}");
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
