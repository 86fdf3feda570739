//! What a machine takes from real volumes, and what it leaves on them.

use std::fs::{self, File};
use std::path::PathBuf;

use alknet_provisioning::{ConfigOrigin, LoadedConfig, SourcePaths, erase, load_with};
use tempfile::TempDir;

use crate::tools::{ImageExtractor, tool};

const WORDS: &str = "legal winner thank year wave sausage worth useful legal winner thank yellow";
const DOCUMENT: &str = "# mine\n[node]\nname = \"edge-1\"\n";

/// A machine with one drive.
struct DriveMachine {
    dir: TempDir,
    paths: SourcePaths,
    tools: ImageExtractor,
}

impl DriveMachine {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut paths = SourcePaths::system().with_config_dir(dir.path().join("config"));
        for (name, path) in [
            ("fw_cfg", &mut paths.fw_cfg),
            ("class", &mut paths.block_class),
            ("dev", &mut paths.dev),
            ("dmi", &mut paths.dmi),
            ("efi", &mut paths.efi),
            ("cmdline", &mut paths.command_line),
            ("mnt", &mut paths.mount_point),
        ] {
            *path = dir.path().join(name);
        }
        fs::create_dir_all(paths.block_class.join("sda1")).expect("writable");
        fs::create_dir(&paths.dev).expect("writable");
        Self {
            dir,
            paths,
            tools: ImageExtractor::default(),
        }
    }

    fn drive(&self) -> PathBuf {
        self.paths.dev.join("sda1")
    }

    /// A folder with these files, which becomes the volume.
    fn files(&self, files: &[(&str, &str)]) -> PathBuf {
        let folder = self.dir.path().join("content");
        fs::create_dir_all(folder.join("alknet")).expect("writable");
        for (name, text) in files {
            fs::write(folder.join(name), text).expect("writable");
        }
        folder
    }

    fn fat(&self, bits: &str, megabytes: u64, label: &str, files: &[(&str, &str)]) {
        let folder = self.files(files);
        let image = self.drive();
        let file = File::create(&image).expect("writable");
        file.set_len(megabytes << 20).expect("a sparse file");
        let name = image.to_str().expect("text");
        tool("mkfs.vfat", &["-F", bits, "-n", label, name], &folder);
        let mut args = vec!["-s", "-i", name];
        args.extend(files.iter().filter(|it| !it.0.contains('/')).map(|it| it.0));
        args.extend(["alknet", "::"]);
        tool("mcopy", &args, &folder);
    }

    fn load(&self) -> LoadedConfig {
        load_with(&self.paths, &self.tools)
    }
}

#[test]
fn a_boot_partition_is_read_and_its_words_are_erased() {
    let machine = DriveMachine::new();
    let document = format!("{DOCUMENT}\r\n[secrets]\r\nwords = \"{WORDS}\"\r\n");
    machine.fat(
        "32",
        40,
        "ALKESP",
        &[("alknet.toml", &document), ("alknet/vault.words", WORDS)],
    );
    let loaded = machine.load();
    assert!(loaded.problems.is_empty(), "{:?}", loaded.problems);
    assert_eq!(loaded.config.node.name.as_deref(), Some("edge-1"));
    let words = loaded.secrets.words.expect("words");
    assert_eq!((words.locations.len(), words.entropy.words()), (2, 12));
    let problems = erase(&machine.paths, &machine.tools, &words.locations);
    assert!(problems.is_empty(), "{problems:?}");
    machine.tools.settle();
    let name = machine.drive();
    let name = name.to_str().expect("text");
    tool("fsck.vfat", &["-n", name], machine.dir.path());
    let after = machine.load();
    assert!(after.problems.is_empty(), "{:?}", after.problems);
    assert!(after.secrets.words.is_none());
    assert_eq!(
        after.source,
        ConfigOrigin::Stored,
        "the document is the one that was taken"
    );
}

#[test]
fn nocloud_volumes_of_every_size_are_read() {
    for (bits, megabytes) in [("12", 1), ("16", 20), ("32", 40)] {
        let machine = DriveMachine::new();
        let files = [
            ("meta-data", ""),
            ("user-data", DOCUMENT),
            ("vault.words", WORDS),
        ];
        machine.fat(bits, megabytes, "CIDATA", &files);
        let loaded = machine.load();
        assert!(loaded.problems.is_empty(), "{:?}", loaded.problems);
        assert_eq!(loaded.source.to_string(), "nocloud (sda1)");
        assert!(loaded.secrets.words.is_some());
    }
}

#[test]
fn a_cd_is_read_and_keeps_its_words() {
    let machine = DriveMachine::new();
    let files = [
        ("meta-data", ""),
        ("user-data", DOCUMENT),
        ("vault.words", WORDS),
    ];
    let folder = machine.files(&files);
    let image = machine.drive();
    let image = image.to_str().expect("text");
    let args = [
        "-as", "mkisofs", "-quiet", "-o", image, "-V", "cidata", "-J", "-r", ".",
    ];
    tool("xorriso", &args, &folder);
    let loaded = machine.load();
    assert!(loaded.problems.is_empty(), "{:?}", loaded.problems);
    assert_eq!(loaded.config.node.name.as_deref(), Some("edge-1"));
    let words = loaded.secrets.words.expect("words");
    let problems = erase(&machine.paths, &machine.tools, &words.locations);
    assert_eq!(problems.len(), 1);
    assert_eq!(problems[0].code, "secrets-left");
}

#[test]
fn a_volume_that_cannot_be_mounted_is_one_clear_line() {
    let machine = DriveMachine::new();
    machine.fat(
        "12",
        1,
        "CIDATA",
        &[("meta-data", ""), ("user-data", DOCUMENT)],
    );
    let mut bytes = fs::read(machine.drive()).expect("made");
    // Overwrites the tables, and with them every cluster chain.
    bytes[512..8 << 10].fill(0xa5);
    fs::write(machine.drive(), bytes).expect("writable");
    let paths = machine.paths.clone();
    let broken = FailingMounter;
    let loaded = load_with(&paths, &broken);
    assert_eq!(loaded.problems[0].code, "provisioning-unreadable");
    assert_eq!(loaded.source, ConfigOrigin::Default);
}

/// Fails like the kernel for an invalid volume.
struct FailingMounter;

impl alknet_provisioning::Mounter for FailingMounter {
    fn mount(
        &self,
        _: &std::path::Path,
        _: alknet_provisioning::FileSystem,
        _: &std::path::Path,
    ) -> std::io::Result<alknet_provisioning::Mounted> {
        Err(std::io::Error::from_raw_os_error(libc::EINVAL))
    }

    fn mount_writable(
        &self,
        device: &std::path::Path,
        kind: alknet_provisioning::FileSystem,
        at: &std::path::Path,
    ) -> std::io::Result<alknet_provisioning::Mounted> {
        self.mount(device, kind, at)
    }
}
