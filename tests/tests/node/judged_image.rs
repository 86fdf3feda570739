//! The files of the image under test, as `cargo xtask image` makes them, judged by programs of other projects. The tests
//! of `image` ask more of these programs, about small images of made-up parts.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use alknet_embedded_exe::EmbeddedExe;
use alknet_image::{DISK_BYTES, ImageForm, OutputRole, PackOptions, pack};
use alknet_tests::tools::{client, tool, tool_says, variable};
use alknet_tests::{BuiltImageFolder, TestBench, binary};
use data_encoding::HEXLOWER;
use serde_json::{Value, json};

use crate::page_commands::blocks;

/// A gibibyte, of which the disk for Google's cloud has a whole number.
const GIB: u64 = 1 << 30;
/// Largest EFI program in bytes, with llvmpipe. `cargo xtask sizes` has the same limit.
const IMAGE_BYTES_MAX: u64 = 48_000_000;
/// The same without the program for GPUs, as it is packed in the image.
const IMAGE_WITHOUT_DRIVER_BYTES_MAX: u64 = 36_000_000;
/// Bytes of a sector, by which the tools count.
const SECTOR_BYTES: u64 = 512;

/// Prints what SPDX's own tools find wrong in a bill of materials, and then how many packages it has.
const SPDX_JUDGE: &str = "\
import sys
sys.path.insert(0, sys.argv[1])
from spdx_tools.spdx.parser.parse_anything import parse_file
from spdx_tools.spdx.validation.document_validator import validate_full_spdx_document
document = parse_file(sys.argv[2])
for message in validate_full_spdx_document(document, 'SPDX-2.3'):
    print(message.validation_message, message.context.spdx_id)
print(len(document.packages))
";

fn built(form: ImageForm, role: OutputRole) -> String {
    let path = BuiltImageFolder::get().file(form, role);
    path.to_str().expect("text").to_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("text")
}

/// The number behind a name in what sgdisk prints.
fn number(said: &str, name: &str) -> u64 {
    let rest = said.split_once(name).map(|(_, rest)| rest);
    let rest = rest.unwrap_or_else(|| panic!("no {name}: {said}"));
    let digits = rest.split(|letter: char| !letter.is_ascii_digit()).next();
    digits.and_then(|it| it.parse().ok()).expect("a number")
}

/// `sgdisk` accepts the partition table, and `fsck.vfat` the EFI system partition, which is the second one.
fn accepts_disk(bench: &TestBench, disk: &str) {
    let verdict = tool_says("sgdisk", &["-v", disk]);
    assert!(verdict.contains("No problems found"), "{disk}: {verdict}");
    let about = tool_says("sgdisk", &["-i", "2", disk]);
    let [first, sectors] = ["First sector: ", "Partition size: "].map(|name| number(&about, name));
    let volume = bench.path().join("volume");
    let cut = [
        format!("if={disk}"),
        format!("of={}", volume.display()),
        "bs=1M".to_owned(),
        format!("skip={}", first * SECTOR_BYTES),
        format!("count={}", sectors * SECTOR_BYTES),
        "iflag=skip_bytes,count_bytes".to_owned(),
        "conv=sparse".to_owned(),
    ];
    tool_says("dd", &cut);
    let said = tool_says("fsck.vfat", &["-n", text(&volume)]);
    let is_clean = !said.contains("Dirty") && !said.contains("differ");
    assert!(is_clean, "{disk}: {said}");
}

/// `qemu-img` finds the disk of the form raw in the file, and nothing wrong with the file.
fn accepts_container(file: &str, driver: &str) {
    let raw = built(ImageForm::Raw, OutputRole::Disk);
    let compare = ["compare", "-f", "raw", "-F", driver, &raw, file];
    let said = tool_says("qemu-img", &compare);
    assert!(said.contains("Images are identical"), "{file}: {said}");
    // The checker knows no fixed VHD.
    if driver != "vpc" {
        let said = tool_says("qemu-img", &["check", "-f", driver, file]);
        assert!(said.contains("No errors were found"), "{file}: {said}");
    }
}

#[test]
fn sgdisk_and_fsck_accept_the_built_disks() {
    let bench = TestBench::new();
    let raw = built(ImageForm::Raw, OutputRole::Disk);
    assert_eq!(fs::metadata(&raw).expect("built").len(), DISK_BYTES);
    accepts_disk(&bench, &raw);
    accepts_disk(&bench, &built(ImageForm::Iso, OutputRole::Disk));
    let archive = built(ImageForm::Gce, OutputRole::Archive);
    tool_says("tar", &["-xSf", &archive, "-C", text(bench.path())]);
    let disk = bench.path().join("disk.raw");
    let bytes = fs::metadata(&disk).expect("unpacked").len();
    assert!(bytes > 0 && bytes.is_multiple_of(GIB), "{bytes}");
    accepts_disk(&bench, text(&disk));
    tool_says("fsck.erofs", &[built(ImageForm::Erofs, OutputRole::Root)]);
}

#[test]
fn the_built_program_is_within_its_limit() {
    let program = built(ImageForm::Uki, OutputRole::Uki);
    let bytes = fs::metadata(&program).expect("built").len();
    assert!(
        bytes <= IMAGE_BYTES_MAX,
        "{bytes} bytes: `cargo xtask sizes` says what grew"
    );
    // The program for GPUs does not shrink in the image: it is packed already.
    let alknet = File::open(binary()).expect("built");
    let gpu = EmbeddedExe::find(&alknet).unwrap_or_else(|error| panic!("{error}"));
    let without = bytes.saturating_sub(gpu.packed);
    assert!(
        without <= IMAGE_WITHOUT_DRIVER_BYTES_MAX,
        "{without} bytes without the program for GPUs: `cargo xtask sizes` says what grew"
    );
}

#[test]
fn qemu_img_finds_the_built_disk_in_each_container() {
    for (form, driver) in [
        (ImageForm::Aws, "vmdk"),
        (ImageForm::Qcow2, "qcow2"),
        (ImageForm::Vhd, "vpc"),
        (ImageForm::Vhdx, "vhdx"),
        (ImageForm::Vmdk, "vmdk"),
    ] {
        accepts_container(&built(form, OutputRole::Disk), driver);
    }
    let bench = TestBench::new();
    let archive = built(ImageForm::Ova, OutputRole::Archive);
    tool_says("tar", &["-xf", &archive, "-C", text(bench.path())]);
    let version = &BuiltImageFolder::get().manifest().version;
    let disk = bench.path().join(format!("alknet_{version}.vmdk"));
    accepts_container(text(&disk), "vmdk");
}

/// What a program of `tests/clients` prints as JSON, with the packages in the folder of this variable.
fn printed_by_python(program: &str, packages: &str, words: &[String]) -> Value {
    let folders = [packages, "ALKNET_TEST_SCHEMATHESIS"].map(variable);
    let said = Command::new("python3")
        .arg(client(program))
        .args(words)
        .env("PYTHONPATH", folders.join(":"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .expect("python3 is installed");
    serde_json::from_slice(&said.stdout).unwrap_or_else(|error| panic!("{error}: {said:?}"))
}

#[test]
fn botocore_accepts_the_built_parameters_for_amazon() {
    let parameters = built(ImageForm::Aws, OutputRole::Registration);
    let found = printed_by_python("aws.py", "ALKNET_TEST_MOTO", &[parameters]);
    assert_eq!(found, json!([]));
}

/// The tool also compares the sizes and the hashes of the files, and each disagreement is a finding.
#[test]
fn the_common_ovf_tool_reads_the_machine_of_the_built_archive() {
    let archive = built(ImageForm::Ova, OutputRole::Archive);
    let version = &BuiltImageFolder::get().manifest().version;
    let words = [archive, format!("alknet_{version}.vmdk")];
    let found = printed_by_python("ovf.py", "ALKNET_TEST_COT", &words);
    let expected = json!({
        "findings": [],
        "product": "alknet",
        "version": version,
        "processors": "1",
        "mebibytes": "512",
        "cards": 1,
        "card": ["E1000"],
        "network": "network",
        "networks": ["network"],
        "disk": DISK_BYTES.to_string(),
        "controller": "sata",
        "drive": "harddisk",
    });
    assert_eq!(found, expected);
}

#[test]
fn xorriso_reads_the_built_medium_and_skopeo_the_built_containers() {
    let medium = built(ImageForm::Iso, OutputRole::Disk);
    let said = tool_says("xorriso", &["-no_rc", "-indev", &medium, "-toc"]);
    for part in ["El Torito", "grub2-mbr", "GPT", "'ALKNET'"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    for (form, role) in [
        (ImageForm::Containerdisk, OutputRole::OciImage),
        (ImageForm::Kernelboot, OutputRole::OciImage),
        (ImageForm::Linuxkit, OutputRole::OciAppliance),
        (ImageForm::Linuxkit, OutputRole::OciKernel),
        (ImageForm::Oci, OutputRole::OciImage),
    ] {
        let archive = format!("oci-archive:{}", built(form, role));
        let said = tool("skopeo", &["inspect", &archive]);
        let about: Value = serde_json::from_slice(&said.stdout)
            .unwrap_or_else(|error| panic!("{archive}: {error}: {said:?}"));
        assert_eq!(about["Architecture"], "amd64", "{archive}: {about}");
        assert_eq!(about["Os"], "linux", "{archive}: {about}");
    }
}

/// SPDX's own tools find nothing wrong in a bill of materials, and read all of its packages. Returns the bill.
pub(crate) fn accepted_bill(path: &Path) -> Value {
    let folder = variable("ALKNET_TEST_SPDX");
    let said = tool("python3", &["-c", SPDX_JUDGE, &folder, text(path)]);
    let content = fs::read(path).expect("built");
    let content: Value = serde_json::from_slice(&content).expect("JSON");
    let packages = content["packages"].as_array().expect("a list").len();
    let printed = String::from_utf8_lossy(&said.stdout);
    assert_eq!(printed.trim(), packages.to_string(), "{said:?}");
    content
}

#[test]
fn sha256sum_and_the_tools_of_spdx_accept_the_built_files() {
    let folder = BuiltImageFolder::get().folder();
    let check = format!("cd '{}' && sha256sum --strict -c ./*.sha256", text(folder));
    tool_says("sh", &["-c", &check]);
    let bill = accepted_bill(&BuiltImageFolder::get().file(ImageForm::Raw, OutputRole::Sbom));
    let packages = bill["packages"].as_array().expect("a list");
    assert!(packages.len() > 300, "{} parts", packages.len());
    for package in packages {
        let name = package["name"].as_str().expect("a name");
        let hash = package["checksums"][0]["checksumValue"].as_str();
        let hash = hash.unwrap_or_default();
        // The commit stands for the hash of what is in the repository.
        let bytes = if ["alknet-image", "alknet"].contains(&name) {
            0
        } else {
            32
        };
        let decoded = HEXLOWER.decode(hash.as_bytes()).expect("hexadecimal");
        assert_eq!(decoded.len(), bytes, "{name}: {hash:?}");
    }
    let sources = &BuiltImageFolder::get().manifest().sources;
    let llvm = sources.iter().find(|source| source.name == "llvm");
    let llvm = llvm.expect("the built image has llvmpipe");
    assert!(llvm.sha256.is_some(), "{llvm:?}");
}

/// The C library is linked from the package of this computer, and each computer finds the same bytes there.
#[test]
fn sha256sum_finds_the_hash_of_the_c_library_by_the_command_of_the_page() {
    let blocks = blocks(include_str!("../../../docs/image.md"));
    let mut blocks = blocks.into_iter();
    let command = blocks.find(|(_, code)| code.starts_with("dpkg-query -L libc6-dev"));
    let (_, command) = command.expect("the page has it");
    let said = tool_says("bash", &["-c", &command]);
    let bill = BuiltImageFolder::get().file(ImageForm::Raw, OutputRole::Sbom);
    let bill: Value = serde_json::from_slice(&fs::read(bill).expect("built")).expect("JSON");
    let packages = bill["packages"].as_array().expect("a list");
    let libc = packages.iter().find(|it| it["name"] == "GNU C Library");
    let hash = &libc.expect("a part")["checksums"][0]["checksumValue"];
    assert_eq!(said.split_whitespace().next(), hash.as_str(), "{said}");
}

#[test]
fn zstd_and_bmaptool_write_the_built_disk() {
    let bench = TestBench::new();
    let built_folder = BuiltImageFolder::get();
    let raw = built(ImageForm::Raw, OutputRole::Disk);
    tool_says("cp", &["--sparse=always", &raw, text(bench.path())]);
    let manifest = built_folder.folder().join(alknet_image::MANIFEST_FILE);
    tool_says("cp", &[text(&manifest), text(bench.path())]);
    let packed = pack(bench.path(), &PackOptions::default(), &mut |_| {});
    let packed = packed.unwrap_or_else(|error| panic!("{error}"));
    let file = |role| {
        let path = packed.path(bench.path(), ImageForm::Raw, role);
        path.expect("it was packed")
    };
    let [disk, map] = [OutputRole::PackedDisk, OutputRole::BlockMap].map(file);
    let [unpacked, written] = ["unpacked", "written"].map(|name| bench.path().join(name));
    tool_says("zstd", &["-dqo", text(&unpacked), text(&disk)]);
    // It compares the checksum of the map, and of each range that it reads.
    let copy = ["copy", "--bmap", text(&map), &raw, text(&written)];
    tool_says("bmaptool", &copy);
    for copy in [unpacked, written] {
        tool_says("cmp", &[text(&copy), &raw]);
    }
}
