//! The forms that hold the raw disk for a hypervisor or a cloud: other programs read each of them back as that disk.

use std::env;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use alknet_image::{
    DISK_BYTES, ImageForm, Manifest, OutputRole, VirtualDiskFormat, write_virtual_disk,
};
use serde_json::Value;
use tempfile::TempDir;

use crate::support::{InputFolder, largest_blob, run, text};

/// The variables that name the folders with the Common OVF Tool in Python, and with a package that it needs.
const COT_VARS: [&str; 2] = ["ALKNET_TEST_COT", "ALKNET_TEST_SCHEMATHESIS"];
/// Prints what this tool reads in an archive, and what it finds wrong there.
const COT_PROGRAM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/clients/ovf.py");

/// The variables that name the folders with botocore in Python, and with a package that it needs.
const BOTOCORE_VARS: [&str; 2] = ["ALKNET_TEST_MOTO", "ALKNET_TEST_SCHEMATHESIS"];
/// Prints what Amazon's model of the call finds wrong in parameters.
const BOTOCORE_PROGRAM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/clients/aws.py");

struct BuiltDisks {
    source: InputFolder,
    out: TempDir,
    manifest: Manifest,
}

impl BuiltDisks {
    fn new(forms: &[ImageForm]) -> Self {
        let source = InputFolder::new();
        let out = tempfile::tempdir().expect("a temporary folder");
        let forms = [forms, &[ImageForm::Raw]].concat();
        let manifest = source.build(&forms, out.path());
        Self {
            source,
            out,
            manifest,
        }
    }

    fn path(&self, form: ImageForm, role: OutputRole) -> PathBuf {
        let found = self.manifest.path(self.out.path(), form, role);
        found.expect("the form was built")
    }

    fn raw(&self) -> PathBuf {
        self.path(ImageForm::Raw, OutputRole::Disk)
    }

    /// qemu-img reads the same disk from `file` as from the raw one.
    fn is_the_raw_disk(&self, file: &Path, format: &str) {
        let told = run(
            "qemu-img",
            &[
                "compare",
                "-f",
                "raw",
                "-F",
                format,
                text(&self.raw()),
                text(file),
            ],
        );
        assert!(told.contains("Images are identical"), "{told}");
        let info = info(file, format);
        assert_eq!(info["virtual-size"], DISK_BYTES, "{info}");
    }

    /// Unpacks an archive into a new folder.
    fn unpacked(&self, archive: &Path) -> PathBuf {
        let folder = self.source.dir.path().join("unpacked");
        fs::create_dir(&folder).expect("a new folder");
        run(
            "tar",
            &["-x", "-S", "-f", text(archive), "-C", text(&folder)],
        );
        folder
    }
}

fn info(file: &Path, format: &str) -> Value {
    let told = run(
        "qemu-img",
        &["info", "--output=json", "-f", format, text(file)],
    );
    serde_json::from_str(&told).expect("JSON")
}

/// A disk with these bytes at these places, and holes everywhere else.
fn sparse_disk(path: &Path, bytes: u64, places: &[u64]) {
    let file = File::create(path).expect("a new file");
    file.set_len(bytes).expect("a sparse file");
    for (place, byte) in places.iter().zip(1_u8..) {
        let content = [byte; 700];
        let end = usize::try_from((bytes - place).min(700)).expect("at most 700");
        file.write_all_at(&content[..end], *place)
            .expect("writable");
    }
}

/// Tables of a container cover so many bytes, so a disk that ends beside such a border has one table more or fewer.
#[test]
fn qemu_img_reads_disks_of_any_length() {
    let folder = tempfile::tempdir().expect("a folder");
    let (raw, out) = (folder.path().join("raw"), folder.path().join("out"));
    // A VMDK's table has 32 MiB, a qcow2's 512 MiB; each 4 GiB a VHDX has an entry more.
    for bytes in [512_u64, 32 << 20, (32 << 20) + 512] {
        sparse_disk(
            &raw,
            bytes,
            &[0, bytes / 2, bytes.saturating_sub(65_600), bytes - 512],
        );
        for format in VirtualDiskFormat::ALL {
            qemu_img_finds_the_same(&raw, &out, format);
        }
    }
    let bytes = (512 << 20) + 1024;
    sparse_disk(&raw, bytes, &[0, bytes / 2, bytes - 65_600, bytes - 512]);
    qemu_img_finds_the_same(&raw, &out, VirtualDiskFormat::Qcow2);
    let bytes = (4 << 30) + (1 << 20) + 512;
    sparse_disk(&raw, bytes, &[4 << 30, (4 << 30) - 300, bytes - 512]);
    qemu_img_finds_the_same(&raw, &out, VirtualDiskFormat::Vhdx);
}

fn qemu_img_finds_the_same(raw: &Path, out: &Path, format: VirtualDiskFormat) {
    let output = File::create(out).expect("a new file");
    let disk = File::open(raw).expect("written");
    write_virtual_disk(format, disk, &output).expect("written");
    let driver = match format {
        VirtualDiskFormat::Qcow2 => "qcow2",
        VirtualDiskFormat::Vhd => "vpc",
        VirtualDiskFormat::Vhdx => "vhdx",
        VirtualDiskFormat::VmdkSparse | VirtualDiskFormat::VmdkStream => "vmdk",
    };
    let compare = ["compare", "-f", "raw", "-F", driver, text(raw), text(out)];
    let told = run("qemu-img", &compare);
    assert!(told.contains("Images are identical"), "{format:?}: {told}");
    // The checker knows no fixed VHD.
    if format != VirtualDiskFormat::Vhd {
        let told = run("qemu-img", &["check", "-f", driver, text(out)]);
        assert!(told.contains("No errors were found"), "{format:?}: {told}");
    }
}

#[test]
fn qemu_img_reads_each_disk_and_finds_nothing_wrong() {
    let disks = [
        (ImageForm::Qcow2, "qcow2"),
        (ImageForm::Vmdk, "vmdk"),
        (ImageForm::Vhd, "vpc"),
        (ImageForm::Vhdx, "vhdx"),
        (ImageForm::Aws, "vmdk"),
    ];
    let built = BuiltDisks::new(&disks.map(|(form, _)| form));
    let raw_bytes = fs::metadata(built.raw()).expect("written").len();
    for (form, format) in disks {
        let file = built.path(form, OutputRole::Disk);
        built.is_the_raw_disk(&file, format);
        // The checker knows no fixed VHD.
        if form != ImageForm::Vhd {
            let told = run("qemu-img", &["check", "-f", format, text(&file)]);
            assert!(told.contains("No errors were found"), "{form}: {told}");
        }
        // The disk is mostly empty, and only a fixed VHD has all of it.
        let bytes = fs::metadata(&file).expect("written").len();
        let is_whole = bytes > raw_bytes / 2;
        assert_eq!(is_whole, form == ImageForm::Vhd, "{form}: {bytes} bytes");
    }
    let kind = |form| {
        let info = info(&built.path(form, OutputRole::Disk), "vmdk");
        let kind = &info["format-specific"]["data"]["create-type"];
        kind.as_str().map(str::to_owned)
    };
    assert_eq!(kind(ImageForm::Vmdk).as_deref(), Some("monolithicSparse"));
    assert_eq!(kind(ImageForm::Aws).as_deref(), Some("streamOptimized"));
    let qcow2 = info(&built.path(ImageForm::Qcow2, OutputRole::Disk), "qcow2");
    let version = &qcow2["format-specific"]["data"]["compat"];
    assert_eq!(version, "1.1", "{qcow2}");
}

/// Azure takes whole MiB in front of the footer.
#[test]
fn a_vhd_has_whole_mebibytes_and_a_footer() {
    let built = BuiltDisks::new(&[ImageForm::Vhd]);
    let file = built.path(ImageForm::Vhd, OutputRole::Disk);
    let content = fs::read(&file).expect("written");
    let (disk, footer) = content.split_at(content.len() - 512);
    assert_eq!(disk.len() % (1 << 20), 0);
    assert!(footer.starts_with(b"conectix"));
    assert!(disk == fs::read(built.raw()).expect("written"));
}

#[test]
fn an_ova_has_description_hashes_and_disk_in_this_order() {
    let built = BuiltDisks::new(&[ImageForm::Ova]);
    let archive = built.path(ImageForm::Ova, OutputRole::Archive);
    let listed = run("tar", &["-t", "-f", text(&archive)]);
    let names: Vec<&str> = listed.lines().collect();
    let expected = ["alknet_0.1.0.ovf", "alknet_0.1.0.mf", "alknet_0.1.0.vmdk"];
    assert_eq!(names, expected);
    let folder = built.unpacked(&archive);
    // The hashes are in the form that OpenSSL writes, which Perl's shasum and coreutils read with `--tag`'s order.
    let hashes = fs::read_to_string(folder.join("alknet_0.1.0.mf")).expect("unpacked");
    for name in ["alknet_0.1.0.ovf", "alknet_0.1.0.vmdk"] {
        let sum = run("sha256sum", &[text(&folder.join(name))]);
        let sum = sum.split_whitespace().next().expect("a hash");
        assert!(
            hashes.contains(&format!("SHA256({name})= {sum}\n")),
            "{hashes}"
        );
    }
    built.is_the_raw_disk(&folder.join("alknet_0.1.0.vmdk"), "vmdk");
    // Python's parser is not ours.
    let parse = "import sys, xml.dom.minidom as m; d = m.parse(sys.argv[1]); \
                 print(d.getElementsByTagName('Disk')[0].getAttribute('ovf:capacity'), \
                 d.getElementsByTagName('File')[0].getAttribute('ovf:href'))";
    let told = run(
        "python3",
        &["-c", parse, text(&folder.join("alknet_0.1.0.ovf"))],
    );
    assert_eq!(told.trim(), format!("{DISK_BYTES} alknet_0.1.0.vmdk"));
}

/// The bytes, with as many others in the place of the first `from`.
fn replaced(bytes: &[u8], from: &str, to: &str) -> Vec<u8> {
    let mut windows = bytes.windows(from.len());
    let at = windows.position(|window| window == from.as_bytes());
    let at = at.unwrap_or_else(|| panic!("no {from}"));
    let mut bytes = bytes.to_vec();
    bytes[at..at + from.len()].copy_from_slice(to.as_bytes());
    bytes
}

/// What a program in Python prints as JSON, with the packages in the folders that these variables name.
fn printed_by_python(packages: [&str; 2], words: &[&str]) -> Value {
    let folders = packages.map(|name| {
        env::var(name)
            .unwrap_or_else(|_| panic!("{name} is not set: start the tests by cargo xtask test"))
    });
    let said = Command::new("python3")
        .args(words)
        .env("PYTHONPATH", folders.join(":"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .expect("python3 runs");
    serde_json::from_slice(&said.stdout).unwrap_or_else(|error| panic!("{error}: {said:?}"))
}

/// What the Common OVF Tool says about an archive.
fn read_by_cot(archive: &Path) -> Value {
    printed_by_python(COT_VARS, &[COT_PROGRAM, text(archive), "alknet_0.1.0.vmdk"])
}

/// Each damage is found, so the tool compares what the test of the good archive relies on.
#[test]
fn the_common_ovf_tool_accepts_an_ova_and_refuses_damaged_ones() {
    let built = BuiltDisks::new(&[ImageForm::Ova]);
    let archive = built.path(ImageForm::Ova, OutputRole::Archive);
    let found = read_by_cot(&archive);
    assert_eq!(found["findings"], Value::Array(Vec::new()), "{found:#}");
    assert_eq!(found["disk"], DISK_BYTES.to_string(), "{found:#}");
    let good = fs::read(&archive).expect("written");
    let damaged = built.source.dir.path().join("damaged.ova");
    for (from, to, finding) in [
        (
            "An alknet node",
            "An alknet mode",
            "checksum for file 'alknet_0.1.0.ovf'",
        ),
        (
            "SHA256(alknet_0.1.0.vmdk)",
            "SHA256(alknet_0.1.0.vmdx)",
            "not included in the manifest",
        ),
        (
            ">5</rasd:InstanceID>",
            ">4</rasd:InstanceID>",
            "Data conflict for instance 4",
        ),
        (">3</rasd:Parent>", ">9</rasd:Parent>", "no controller Item"),
    ] {
        fs::write(&damaged, replaced(&good, from, to)).expect("writable");
        let found = read_by_cot(&damaged);
        let found = found["findings"].to_string();
        assert!(found.contains(finding), "{from}: {found}");
    }
}

/// The disk in Google's archive is larger than the others, with the backup of its partition table at its own end.
#[test]
fn the_archive_for_gce_unpacks_to_a_disk_of_whole_gibibytes() {
    let built = BuiltDisks::new(&[ImageForm::Gce]);
    let archive = built.path(ImageForm::Gce, OutputRole::Archive);
    let bytes = fs::metadata(&archive).expect("written").len();
    assert!(bytes < 64 << 20, "{bytes} bytes");
    let listed = run("tar", &["-t", "-v", "-f", text(&archive)]);
    assert!(
        listed.contains("disk.raw") && listed.lines().count() == 1,
        "{listed}"
    );
    let disk = built.unpacked(&archive).join("disk.raw");
    assert_eq!(fs::metadata(&disk).expect("unpacked").len(), 1 << 30);
    let verdict = run("sgdisk", &["-v", text(&disk)]);
    assert!(verdict.contains("No problems found"), "{verdict}");
    let part = |disk: &Path| {
        let part = built.source.dir.path().join("part");
        let from = format!("if={}", text(disk));
        let to = format!("of={}", text(&part));
        run(
            "dd",
            &[&from, &to, "bs=1M", "skip=1", "count=256", "status=none"],
        );
        fs::read(&part).expect("copied")
    };
    assert!(
        part(&disk) == part(&built.raw()),
        "the system partition differs"
    );
}

#[test]
fn the_registration_for_amazon_is_json_with_the_firmware_of_the_disk() {
    let built = BuiltDisks::new(&[ImageForm::Aws]);
    let file = built.path(ImageForm::Aws, OutputRole::Registration);
    let parameters = fs::read(&file).expect("written");
    let parameters: Value = serde_json::from_slice(&parameters).expect("JSON");
    assert_eq!(parameters["BootMode"], "uefi");
    assert_eq!(parameters["EnaSupport"], true);
    let disk = &parameters["BlockDeviceMappings"][0]["Ebs"];
    assert_eq!(disk["SnapshotId"], "SNAPSHOT");
}

/// What botocore finds wrong in parameters of `register-image`.
fn read_by_botocore(parameters: &Path) -> Value {
    printed_by_python(BOTOCORE_VARS, &[BOTOCORE_PROGRAM, text(parameters)])
}

/// Each damage is found, so the model has the names and values that the test of the good file relies on.
#[test]
fn botocore_accepts_the_registration_for_amazon_and_refuses_damaged_ones() {
    let built = BuiltDisks::new(&[ImageForm::Aws]);
    let file = built.path(ImageForm::Aws, OutputRole::Registration);
    assert_eq!(read_by_botocore(&file), Value::Array(Vec::new()));
    let good = fs::read(&file).expect("written");
    let damaged = built.source.dir.path().join("damaged.json");
    for (from, to, finding) in [
        ("\"Name\"", "\"Nome\"", "Missing required parameter"),
        ("\"SnapshotId\"", "\"SnapshotID\"", "Unknown parameter in"),
        ("true", "1234", "Invalid type for parameter"),
        ("\"uefi\"", "\"efis\"", "BootMode: efis is not one of"),
        ("\"gp3\"", "\"gp9\"", "VolumeType: gp9 is not one of"),
        ("\"v2.0\"", "\"v9.0\"", "Support: v9.0 is not one of"),
    ] {
        fs::write(&damaged, replaced(&good, from, to)).expect("writable");
        let found = read_by_botocore(&damaged).to_string();
        assert!(found.contains(finding), "{from}: {found}");
    }
}

/// Unpacks a layout as other programs read it, and returns the root of the container.
fn container(built: &BuiltDisks, form: ImageForm, name: &str) -> PathBuf {
    let archive = built.path(form, OutputRole::OciImage);
    let layout = built.source.dir.path().join("layout");
    let bundle = built.source.dir.path().join("bundle");
    let from = format!("oci-archive:{}", text(&archive));
    let to = format!("oci:{}:image", text(&layout));
    run("skopeo", &["--insecure-policy", "copy", &from, &to]);
    let told = run("skopeo", &["inspect", &from]);
    let told: Value = serde_json::from_str(&told).expect("JSON");
    assert_eq!(told["Architecture"], "amd64", "{name}: {told}");
    let image = format!("{}:image", text(&layout));
    run(
        "umoci",
        &["unpack", "--rootless", "--image", &image, text(&bundle)],
    );
    bundle.join("rootfs")
}

#[test]
fn a_container_disk_has_one_file_that_the_user_of_qemu_reads() {
    let built = BuiltDisks::new(&[ImageForm::Containerdisk]);
    let root = container(&built, ImageForm::Containerdisk, "disk");
    let disk = root.join("disk/alknet.qcow2");
    let mode = fs::metadata(&disk).expect("unpacked").permissions();
    assert_eq!(
        std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777,
        0o444
    );
    built.is_the_raw_disk(&disk, "qcow2");
    assert_eq!(
        fs::read_dir(root.join("disk")).expect("unpacked").count(),
        1
    );
    // The owner that rootless unpacking leaves out.
    let layer = largest_blob(&built.source.dir.path().join("layout"));
    let listed = run("tar", &["-t", "-v", "--numeric-owner", "-f", text(&layer)]);
    assert!(
        listed.lines().all(|line| line.contains(" 107/107 ")),
        "{listed}"
    );
}

#[test]
fn a_kernel_boot_image_has_the_kernel_and_initramfs_of_direct() {
    let built = BuiltDisks::new(&[ImageForm::Kernelboot, ImageForm::Direct]);
    let root = container(&built, ImageForm::Kernelboot, "boot");
    for (name, role) in [
        ("boot/bzImage", OutputRole::Kernel),
        ("boot/initrd.cpio.lz4", OutputRole::Initrd),
    ] {
        let expected = fs::read(built.path(ImageForm::Direct, role)).expect("written");
        assert!(
            fs::read(root.join(name)).expect("unpacked") == expected,
            "{name}"
        );
    }
}

#[test]
fn a_service_runs_the_binary_as_a_user_without_rights() {
    let built = BuiltDisks::new(&[ImageForm::Oci]);
    let archive = built.path(ImageForm::Oci, OutputRole::OciImage);
    let from = format!("oci-archive:{}", text(&archive));
    let told = run("skopeo", &["inspect", "--config", &from]);
    let told: Value = serde_json::from_str(&told).expect("JSON");
    let config = &told["config"];
    assert_eq!(config["User"], "65532:65532", "{told}");
    assert_eq!(config["Entrypoint"], serde_json::json!(["/alknet"]));
    assert_eq!(config["Cmd"], serde_json::json!(["serve"]));
    let root = container(&built, ImageForm::Oci, "service");
    // It is this test program. Listing its tests shows that the kernel loads it.
    let listed = run(text(&root.join("alknet")), &["--list"]);
    assert!(listed.contains("a_service_runs_the_binary"));
    assert!(root.join("data").is_dir() && root.join("tmp").is_dir());
}

#[test]
fn the_scripts_for_a_network_boot_name_files_that_lie_beside_them() {
    let built = BuiltDisks::new(&[ImageForm::Pxe]);
    let line = built.manifest.cmdline(ImageForm::Pxe).expect("built");
    for role in [OutputRole::IpxeScript, OutputRole::PxelinuxConfig] {
        let script = built.path(ImageForm::Pxe, role);
        let script = fs::read_to_string(&script).expect("written");
        assert!(script.contains(line), "{script}");
        for role in [OutputRole::Kernel, OutputRole::Initrd] {
            let file = built.path(ImageForm::Pxe, role);
            let name = file.file_name().and_then(|name| name.to_str());
            assert!(script.contains(name.expect("plain names")), "{script}");
        }
    }
}
