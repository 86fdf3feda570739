//! Every source of a configuration on a booted machine, correct and damaged: which one counts, and
//! that the console has one line for each mistake.

use std::path::PathBuf;
use std::time::Duration;

use alknet_qemu::{VirtioDisk, VmBuilder};
use alknet_tests::tools::{fat_volume, tool_says};
use alknet_tests::{BootVariant, MachineBuilder, MachineNode, TestBench, eventually};
use data_encoding::BASE64URL_NOPAD;
use serde_json::json;

use super::configuration::{NO_VAULT, document};
use super::secure_boot::boot_partition;

/// How long after its message that the node serves the console may report a problem.
const SAID_WITHIN: Duration = Duration::from_secs(10);

/// The text before a problem on the console.
const PROBLEM: &str = "alknet: problem ";
/// The last problem if a document was refused.
const LAST_GOOD: &str = "config-last-good: the node runs with the stored configuration, not with the \
                         refused document";

/// The sources of a machine besides its stored configuration, and the expected result.
#[derive(Default)]
struct SourceCase<'a> {
    /// Whether only the quickest machine is needed, without anything that only a PC has.
    quick: bool,
    /// The document of fw_cfg. Empty for none.
    fw_cfg: &'a str,
    volumes: &'a [PathBuf],
    /// OEM strings of the firmware.
    strings: Vec<String>,
    /// A word of the kernel's command line. Empty for none.
    word: String,
    name: &'a str,
    source: &'a str,
    /// In the form of the console.
    problems: &'a [&'a str],
}

impl SourceCase<'_> {
    fn machine<'b>(&self, bench: &'b TestBench) -> MachineBuilder<'b> {
        let volumes = self.volumes.iter();
        let volumes = volumes.map(|volume| VirtioDisk::file(volume).read_only());
        if self.quick {
            let machine = bench.machine(BootVariant::MicrovmErofs).config("");
            return volumes.fold(machine.append(&self.word), MachineBuilder::disk);
        }
        let machine = bench.machine(BootVariant::Q35Initramfs).config(self.fw_cfg);
        let strings = self.strings.iter();
        let strings = strings.flat_map(|it| ["-smbios".to_owned(), format!("type=11,value={it}")]);
        let machine = machine.with(|vm| volumes.fold(vm, VmBuilder::disk));
        let machine = machine.with(|vm| strings.fold(vm, VmBuilder::argument));
        machine.append(&self.word)
    }
}

/// One disk starts with one source after the other. Of the sources, one counts by its rank, and is
/// stored unless it was refused. A volume that stays attached is known, and does not count as new.
#[test]
fn each_source_is_taken_by_its_rank_and_each_damaged_one_is_a_line_of_the_console() {
    let bench = TestBench::new();
    let document = |name: &str| document(&bench, name) + NO_VAULT;
    let newer = format!("version = 2\n{}", document("of-next-year"));
    let (long, of_fw_cfg) = (too_long(&bench), document("of-fw-cfg"));
    let damaged = [half_of_nocloud(&bench), boot_with_a_folder(&bench)];
    let whole = [fat_volume(&bench, "volume", &document("of-a-volume"))];
    let cases = [
        SourceCase {
            strings: parts(&document("of-strings"), [0, 1]),
            name: "of-strings",
            source: "smbios",
            ..SourceCase::default()
        },
        SourceCase {
            quick: true,
            word: word(&document("of-a-word")),
            name: "of-a-word",
            source: "kernel command line",
            ..SourceCase::default()
        },
        SourceCase {
            strings: parts(&newer, [0, 1]),
            word: word(&document("of-another-word")),
            name: "of-a-word",
            source: "config.toml",
            problems: &[
                "provisioning-conflict: smbios counts; other documents are not used: kernel command \
                 line",
                "config-refused: smbios: line 1, version: the document has version 2, which is newer \
                 than this program; it knows 1",
                LAST_GOOD,
            ],
            ..SourceCase::default()
        },
        SourceCase {
            fw_cfg: &of_fw_cfg,
            volumes: &whole,
            name: "of-fw-cfg",
            source: "fw_cfg",
            problems: &[
                "provisioning-conflict: fw_cfg counts; other documents are not used: nocloud (vda)",
            ],
            ..SourceCase::default()
        },
        // All of them at once, each damaged in another way.
        SourceCase {
            fw_cfg: &long,
            volumes: &damaged,
            strings: parts(&document("of-strings"), [0, 2]),
            word: "alknet.node=Y*".to_owned(),
            name: "of-fw-cfg",
            source: "config.toml",
            problems: &[
                "nocloud-incomplete: /dev/vda: the NoCloud volume has no meta-data, and its settings are not used",
                "provisioning-unreadable: alknet.toml (vdb): /run/alknet/nocloud/alknet.toml is no \
                 regular file; put a plain file there",
                "provisioning-unreadable: smbios: alknet.node.1 is missing",
                "provisioning-unreadable: kernel command line: the document is no base64url \
                 (character 2)",
                "config-refused: fw_cfg: the document is longer than 65536 bytes",
                LAST_GOOD,
            ],
            ..SourceCase::default()
        },
        SourceCase {
            quick: true,
            volumes: &whole,
            name: "of-a-volume",
            source: "nocloud (vdc)",
            ..SourceCase::default()
        },
        SourceCase {
            quick: true,
            volumes: &whole,
            name: "of-a-volume",
            source: "config.toml",
            ..SourceCase::default()
        },
        // Only the stored configuration.
        SourceCase {
            quick: true,
            name: "of-a-volume",
            source: "config.toml",
            ..SourceCase::default()
        },
    ];
    for case in cases {
        let node = case.machine(&bench).boot();
        runs(&node, case.name, case.source, case.problems);
        node.end();
    }
}

#[test]
fn a_file_on_the_boot_partition_of_a_flashed_image_is_taken() {
    let bench = TestBench::new();
    let boot = || {
        bench
            .machine(BootVariant::UefiRaw)
            .after_firmware()
            .config("")
            .boot()
    };
    edit(&bench, &(document(&bench, "of-a-file") + NO_VAULT));
    let node = boot();
    runs(&node, "of-a-file", "alknet.toml (vda2)", &[]);
    node.end();

    edit(&bench, &too_long(&bench));
    let node = boot();
    let refused = "config-refused: alknet.toml (vda2): the document is longer than 65536 bytes";
    runs(&node, "of-a-file", "config.toml", &[refused, LAST_GOOD]);
}

/// Asserts that the node has this name from this source, and that exactly these problems are in
/// `node/info`, and on the console once each.
fn runs(node: &MachineNode, name: &str, source: &str, problems: &[&str]) {
    for problem in problems {
        let line = format!("{PROBLEM}{problem}");
        let waited = node.vm().wait_for(&line, SAID_WITHIN);
        waited.unwrap_or_else(|error| panic!("{error}"));
    }
    // PID 1 tells the consoles before the node.
    let info = eventually("the node knows the problems", || {
        let info = node.info();
        let known = info["problems"].as_array().map(Vec::len);
        (known >= Some(problems.len())).then_some(info)
    });
    assert_eq!(
        (&info["name"], &info["config"]["source"]),
        (&json!(name), &json!(source)),
        "{info:#}"
    );
    let told = info["problems"].as_array().expect("a list").iter();
    let told: Vec<_> = told
        .map(|one| {
            let [code, text] = ["code", "text"].map(|key| one[key].as_str().unwrap_or_default());
            format!("{code}: {text}")
        })
        .collect();
    assert_eq!(told, problems);
    let text = node.vm().console().text();
    let lines = text.lines().map(str::trim_end);
    let said: Vec<_> = lines
        .filter_map(|line| line.strip_prefix(PROBLEM))
        .collect();
    assert_eq!(said, problems);
}

/// Two strings that form a document, if their numbers are 0 and 1.
fn parts(document: &str, numbers: [usize; 2]) -> Vec<String> {
    let text = BASE64URL_NOPAD.encode(document.as_bytes());
    let (head, tail) = text.split_at(text.len() / 2);
    let parts = numbers.iter().zip([head, tail]);
    parts
        .map(|(number, part)| format!("alknet.node.{number}={part}"))
        .collect()
}

fn word(document: &str) -> String {
    let text = BASE64URL_NOPAD.encode(document.as_bytes());
    format!("alknet.node={text}")
}

/// A document that is correct except for its length.
fn too_long(bench: &TestBench) -> String {
    format!(
        "{}# {}\n",
        document(bench, "too-long"),
        "x".repeat(64 << 10)
    )
}

/// A NoCloud volume with only its document.
fn half_of_nocloud(bench: &TestBench) -> PathBuf {
    let (image, path) = volume(bench, "CIDATA");
    let file = bench.path().join("user-data");
    std::fs::write(&file, document(bench, "of-half")).expect("the folder is ours");
    tool_says("mcopy", &["-i", &path, &file.display().to_string(), "::"]);
    image
}

/// A boot partition with a folder instead of the document.
fn boot_with_a_folder(bench: &TestBench) -> PathBuf {
    let (image, path) = volume(bench, "ALKESP");
    tool_says("mmd", &["-i", &path, "::alknet.toml"]);
    image
}

/// An empty volume with FAT, and its name for mtools. The partition table that mformat writes onto
/// a floppy disk would double each problem: for the disk, and for its partition.
fn volume(bench: &TestBench, label: &str) -> (PathBuf, String) {
    let image = bench.path().join(format!("{label}.img"));
    let path = image.display().to_string();
    tool_says("mkfs.vfat", &["-C", "-n", label, &path, "1440"]);
    (image, path)
}

/// Puts the document where users edit it after flashing.
fn edit(bench: &TestBench, document: &str) {
    let file = bench.path().join("alknet.toml");
    std::fs::write(&file, document).expect("the folder is ours");
    let (disk, file) = (boot_partition(bench), file.display().to_string());
    tool_says("mcopy", &["-o", "-i", &disk, &file, "::alknet.toml"]);
}
