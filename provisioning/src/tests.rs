use std::collections::HashMap;
use std::fs;
use std::io;

use tempfile::TempDir;

use super::*;

mod clouds;
mod media;
mod sealed;
mod updates;
mod words;

const FILE: &str = "a writable directory";

fn key(n: u8) -> String {
    format!("ed25519:{}", format!("{n:02x}").repeat(32))
}

fn document(n: u8) -> String {
    format!(
        "[node]\nname = \"node-{n}\"\nadmin_keys = [\"{}\"]\n",
        key(n)
    )
}

fn misspelt(n: u8) -> String {
    document(n) + "nmae = \"x\"\n"
}

/// A machine made of directories.
struct DirectoryMachine {
    root: TempDir,
    volumes: HashMap<PathBuf, PathBuf>,
    paths: SourcePaths,
}

impl Mounter for HashMap<PathBuf, PathBuf> {
    fn mount(&self, device: &Path, _: FileSystem, _: &Path) -> io::Result<Mounted> {
        let content = self.get(device).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Mounted::directory(content.clone()))
    }

    fn mount_writable(&self, device: &Path, kind: FileSystem, at: &Path) -> io::Result<Mounted> {
        self.mount(device, kind, at)
    }
}

impl DirectoryMachine {
    fn new() -> Self {
        let root = tempfile::tempdir().expect("a temporary directory");
        let at = |name: &str| root.path().join(name);
        let paths = SourcePaths {
            fw_cfg: at("fw_cfg"),
            block_class: at("class"),
            dev: at("dev"),
            dmi: at("dmi"),
            efi: at("efi"),
            command_line: at("cmdline"),
            mount_point: at("mnt"),
            metadata: at("metadata"),
            config_dir: Some(at("config")),
            is_sealed: false,
            is_configured: false,
        };
        for dir in [&paths.fw_cfg, &paths.block_class, &paths.dev] {
            fs::create_dir(dir).expect(FILE);
        }
        Self {
            root,
            volumes: HashMap::new(),
            paths,
        }
    }

    fn fw_cfg(&self, content: impl AsRef<[u8]>) {
        self.fw_cfg_entry("node", content);
    }

    fn fw_cfg_entry(&self, name: &str, content: impl AsRef<[u8]>) {
        let dir = self.paths.fw_cfg.join(name);
        fs::create_dir_all(&dir).expect(FILE);
        fs::write(dir.join("raw"), content).expect(FILE);
    }

    fn no_fw_cfg(&self) {
        fs::remove_dir_all(self.paths.fw_cfg.join("node")).expect(FILE);
    }

    fn disk(&mut self, name: &str, bytes: Vec<u8>, files: &[(&str, &str)]) {
        fs::create_dir(self.paths.block_class.join(name)).expect(FILE);
        let sectors = bytes.len() / 512;
        let size = self.paths.block_class.join(name).join("size");
        fs::write(size, format!("{sectors}\n")).expect(FILE);
        let device = self.paths.dev.join(name);
        fs::write(&device, bytes).expect(FILE);
        let content = self.root.path().join(format!("content-{name}"));
        fs::create_dir(&content).expect(FILE);
        for (name, text) in files {
            fs::write(content.join(name), text).expect(FILE);
        }
        self.volumes.insert(device, content);
    }

    fn store(&self, name: &str, content: impl AsRef<[u8]>) {
        let dir = self.paths.config_dir.as_ref().expect("a data partition");
        fs::create_dir_all(dir).expect(FILE);
        fs::write(dir.join(name), content).expect(FILE);
    }

    fn stored(&self, name: &str) -> Option<String> {
        let dir = self.paths.config_dir.as_ref().expect("a data partition");
        fs::read_to_string(dir.join(name)).ok()
    }

    fn load(&self) -> LoadedConfig {
        load_with(&self.paths, &self.volumes)
    }
}

fn codes(loaded: &LoadedConfig) -> Vec<&str> {
    loaded.problems.iter().map(|problem| problem.code).collect()
}

fn name(loaded: &LoadedConfig) -> &str {
    loaded.config.node.name.as_deref().unwrap_or_default()
}

/// A FAT16 volume with a label in the boot sector and one in the root directory.
pub(crate) fn fat16_volume(boot: &str, root: Option<&str>) -> Vec<u8> {
    let mut volume = vec![0; 16 * 512];
    let root_offset = (1 + 2 * 4) * 512;
    volume[11..13].copy_from_slice(&512u16.to_le_bytes());
    volume[13..17].copy_from_slice(&[1, 1, 0, 2]);
    volume[17..19].copy_from_slice(&32u16.to_le_bytes());
    volume[22..24].copy_from_slice(&4u16.to_le_bytes());
    volume[43..54].copy_from_slice(format!("{boot:<11}").as_bytes());
    volume[510..512].copy_from_slice(&[0x55, 0xaa]);
    if let Some(label) = root {
        volume[root_offset..root_offset + 11].copy_from_slice(format!("{label:<11}").as_bytes());
        volume[root_offset + 11] = 0x08;
    }
    volume
}

pub(crate) fn fat32_boot_sector(label: &str) -> Vec<u8> {
    let mut volume = fat16_volume("", None);
    volume[17..19].fill(0);
    volume[22..24].fill(0);
    volume[36..40].copy_from_slice(&4u32.to_le_bytes());
    volume[44..48].copy_from_slice(&2u32.to_le_bytes());
    volume[71..82].copy_from_slice(format!("{label:<11}").as_bytes());
    volume
}

pub(crate) fn iso_volume(label: &str) -> Vec<u8> {
    let mut volume = vec![0; 17 * 2048];
    volume[32_768..32_775].copy_from_slice(b"\x01CD001\x01");
    volume[32_808..32_840].copy_from_slice(format!("{label:<32}").as_bytes());
    volume
}

#[test]
fn nothing_anywhere_is_the_default() {
    let loaded = DirectoryMachine::new().load();
    assert_eq!(loaded.config, NodeConfig::default());
    assert_eq!(
        (loaded.source, loaded.problems),
        (ConfigOrigin::Default, vec![])
    );
    let nowhere = SourcePaths {
        fw_cfg: "/nonexistent".into(),
        block_class: "/nonexistent".into(),
        dmi: "/nonexistent".into(),
        command_line: "/nonexistent".into(),
        ..SourcePaths::system()
    };
    assert_eq!(load(&nowhere).source, ConfigOrigin::Default);
}

#[test]
fn fw_cfg_is_taken_and_kept() {
    let machine = DirectoryMachine::new();
    machine.fw_cfg(document(1));
    let first = machine.load();
    assert_eq!(
        (name(&first), &first.source),
        ("node-1", &ConfigOrigin::FwCfg)
    );
    assert!(first.problems.is_empty());
    assert_eq!(machine.stored("config.toml"), Some(document(1)));
    machine.no_fw_cfg();
    let second = machine.load();
    assert_eq!(
        (name(&second), &second.source),
        ("node-1", &ConfigOrigin::Stored)
    );
}

#[test]
fn a_medium_left_in_place_does_not_undo_a_later_change() {
    let machine = DirectoryMachine::new();
    machine.fw_cfg(document(1));
    machine.load();
    machine.store("config.toml", document(2));
    let loaded = machine.load();
    assert_eq!(
        (name(&loaded), &loaded.source),
        ("node-2", &ConfigOrigin::Stored)
    );
}

#[test]
fn a_new_medium_replaces_the_stored_configuration_and_its_copy() {
    let machine = DirectoryMachine::new();
    machine.fw_cfg(document(1));
    machine.load();
    machine.fw_cfg(document(2));
    let loaded = machine.load();
    assert_eq!(
        (name(&loaded), &loaded.source),
        ("node-2", &ConfigOrigin::FwCfg)
    );
    assert_eq!(machine.stored("config.toml"), Some(document(2)));
    assert_eq!(machine.stored("config.last-good.toml"), Some(document(2)));
}

/// An older program stored the previous document as the copy, and a power cut between the two writes leaves it
/// there.
#[test]
fn a_start_makes_the_copy_say_what_the_live_document_says() {
    let machine = DirectoryMachine::new();
    machine.store("config.toml", document(2));
    machine.store("config.last-good.toml", document(1));
    // Taken from a medium again, and then from the disk alone.
    machine.fw_cfg(document(2));
    assert!(machine.load().problems.is_empty());
    assert_eq!(machine.stored("config.last-good.toml"), Some(document(2)));
    assert_eq!(machine.stored("provisioned.toml"), Some(document(2)));
    machine.no_fw_cfg();
    machine.store("config.last-good.toml", document(1));
    assert_eq!(codes(&machine.load()), Vec::<&str>::new());
    assert_eq!(machine.stored("config.last-good.toml"), Some(document(2)));
    // A damaged document is not copied.
    machine.store("config.toml", misspelt(1));
    assert_eq!(name(&machine.load()), "node-2");
    assert_eq!(machine.stored("config.last-good.toml"), Some(document(2)));
}

#[test]
fn a_refused_medium_leaves_the_stored_configuration_in_force() {
    let machine = DirectoryMachine::new();
    machine.store("config.toml", document(1));
    machine.fw_cfg(misspelt(2));
    let loaded = machine.load();
    assert_eq!(
        (name(&loaded), &loaded.source),
        ("node-1", &ConfigOrigin::Stored)
    );
    assert_eq!(codes(&loaded), ["config-refused", "config-last-good"]);
    assert_eq!(
        loaded.problems[0].text,
        "fw_cfg: line 4, node.nmae: unknown key 'nmae'"
    );
    assert_eq!(loaded.problems[0].hint, "did you mean 'name'?");
    assert_eq!(machine.stored("config.toml"), Some(document(1)));
    machine.fw_cfg(document(2));
    assert_eq!(
        name(&machine.load()),
        "node-2",
        "picks up the corrected one"
    );
}

#[test]
fn a_refused_medium_alone_still_lets_its_administrators_in() {
    let machine = DirectoryMachine::new();
    machine.fw_cfg(misspelt(3));
    let loaded = machine.load();
    assert!(loaded.salvaged && !loaded.refuses_stored);
    assert_eq!(loaded.config.node.admin_keys, [key(3)]);
    assert_eq!(codes(&loaded), ["config-refused", "config-salvaged"]);
    assert_eq!(machine.stored("config.toml"), None);
}

#[test]
fn a_document_without_a_readable_key_says_so() {
    let machine = DirectoryMachine::new();
    machine.fw_cfg("[node\n");
    let loaded = machine.load();
    assert_eq!(loaded.config, NodeConfig::default());
    let last = loaded.problems.last().expect("a problem");
    assert!(last.text.contains("no administrator key"), "{last:?}");
}

#[test]
fn a_damaged_stored_configuration_falls_back_step_by_step() {
    let machine = DirectoryMachine::new();
    machine.store("config.toml", misspelt(2));
    let salvaged = machine.load();
    assert_eq!(
        (salvaged.salvaged, &salvaged.source),
        (true, &ConfigOrigin::Stored)
    );
    assert!(salvaged.refuses_stored);
    machine.store("config.last-good.toml", document(1));
    let last_good = machine.load();
    assert!(!last_good.refuses_stored, "its copy is taken");
    assert_eq!(
        (name(&last_good), &last_good.source),
        ("node-1", &ConfigOrigin::LastGood)
    );
    assert_eq!(codes(&last_good), ["config-refused", "config-last-good"]);
}

#[test]
fn a_medium_in_place_repairs_a_damaged_store() {
    let machine = DirectoryMachine::new();
    machine.fw_cfg(document(1));
    machine.load();
    machine.store("config.toml", b"\0\0\0");
    assert_eq!(machine.load().source, ConfigOrigin::LastGood);
    machine.store("config.last-good.toml", b"\0\0\0");
    let loaded = machine.load();
    assert_eq!(
        (name(&loaded), &loaded.source),
        ("node-1", &ConfigOrigin::FwCfg)
    );
    // What an administrator changed since is not in force.
    assert!(!loaded.salvaged && loaded.refuses_stored);
}

#[test]
fn without_a_data_partition_the_medium_counts_every_time() {
    let mut machine = DirectoryMachine::new();
    machine.paths.config_dir = None;
    machine.fw_cfg(document(1));
    for _ in 0..2 {
        let loaded = machine.load();
        assert_eq!(
            (name(&loaded), &loaded.source),
            ("node-1", &ConfigOrigin::FwCfg)
        );
        assert!(loaded.problems.is_empty());
    }
}

#[test]
fn a_store_that_cannot_be_written_is_announced_and_survived() {
    let mut machine = DirectoryMachine::new();
    machine.fw_cfg(document(1));
    machine.paths.config_dir = Some("/dev/null/config".into());
    let loaded = machine.load();
    assert_eq!(
        (name(&loaded), codes(&loaded)),
        ("node-1", vec!["config-not-stored"])
    );
}

#[test]
fn a_note_of_the_medium_that_cannot_be_read_is_said() {
    let machine = DirectoryMachine::new();
    machine.fw_cfg(document(1));
    machine.load();
    let dir = machine.paths.config_dir.as_ref().expect("a data partition");
    let note = dir.join("provisioned.toml");
    fs::remove_file(&note).expect("it was taken");
    fs::create_dir(&note).expect(FILE);
    let loaded = machine.load();
    assert_eq!(name(&loaded), "node-1");
    assert_eq!(codes(&loaded), ["config-unreadable", "config-not-stored"]);
    assert!(loaded.problems[0].text.contains("provisioned.toml"));
}

#[test]
fn stored_files_are_private() {
    use std::os::unix::fs::PermissionsExt;
    let machine = DirectoryMachine::new();
    machine.fw_cfg(document(1));
    machine.load();
    let dir = machine.paths.config_dir.as_ref().expect("a data partition");
    for (path, mode) in [(dir.clone(), 0o700), (dir.join("config.toml"), 0o600)] {
        let found = fs::metadata(path).expect("there").permissions().mode();
        assert_eq!(found & 0o777, mode);
    }
    assert!(!dir.join(".config.toml.new").exists());
}

#[test]
fn nocloud_volumes_of_every_kind_are_found() {
    let volumes = [
        fat16_volume("CIDATA", None),
        fat16_volume("NO NAME", Some("cidata")),
        iso_volume("cidata"),
        iso_volume("CIDATA"),
    ];
    for volume in volumes {
        let mut machine = DirectoryMachine::new();
        machine.disk("vda", vec![0xa5; 70_000], &[]);
        let files = [("meta-data", ""), ("user-data", &document(4))];
        machine.disk("vdb", volume, &files);
        let loaded = machine.load();
        assert_eq!(name(&loaded), "node-4");
        assert_eq!(loaded.source.to_string(), "nocloud (vdb)");
        assert_eq!(loaded.source.trust(), "medium");
        assert!(loaded.problems.is_empty());
    }
}

#[test]
fn fw_cfg_goes_before_nocloud() {
    let mut machine = DirectoryMachine::new();
    machine.fw_cfg(document(1));
    machine.disk(
        "vdb",
        iso_volume("cidata"),
        &[("meta-data", ""), ("user-data", &document(4))],
    );
    assert_eq!(machine.load().source, ConfigOrigin::FwCfg);
}

#[test]
fn an_incomplete_nocloud_volume_is_skipped_for_the_next() {
    let mut machine = DirectoryMachine::new();
    machine.disk("vda", iso_volume("cidata"), &[("user-data", &document(1))]);
    machine.disk(
        "vdb",
        iso_volume("cidata"),
        &[("meta-data", ""), ("user-data", &document(2))],
    );
    let loaded = machine.load();
    assert_eq!(
        (name(&loaded), codes(&loaded)),
        ("node-2", vec!["nocloud-incomplete"])
    );
    assert!(loaded.problems[0].text.contains("has no meta-data"));
}

#[test]
fn what_is_not_read_is_announced() {
    let mut machine = DirectoryMachine::new();
    let document = document(1);
    let files = [
        ("meta-data", "instance-id: x"),
        ("user-data", document.as_str()),
        ("network-config", "version: 2"),
        ("vendor-data", ""),
    ];
    machine.disk("sr0", iso_volume("cidata"), &files);
    let loaded = machine.load();
    assert_eq!(
        (name(&loaded), codes(&loaded)),
        ("node-1", vec!["nocloud-ignored"; 2])
    );
}

#[test]
fn cloud_config_is_refused_by_name() {
    let mut machine = DirectoryMachine::new();
    let files = [
        ("meta-data", ""),
        ("user-data", "#cloud-config\nhostname: x\n"),
    ];
    machine.disk("sr0", iso_volume("cidata"), &files);
    let loaded = machine.load();
    assert_eq!(codes(&loaded), ["config-refused", "config-salvaged"]);
    assert!(loaded.problems[0].text.contains("cloud-init"));
}

#[test]
fn an_empty_medium_changes_nothing() {
    let machine = DirectoryMachine::new();
    machine.store("config.toml", document(1));
    machine.fw_cfg(" \n");
    let loaded = machine.load();
    assert_eq!(
        (name(&loaded), codes(&loaded)),
        ("node-1", vec!["provisioning-empty"])
    );
}

#[test]
fn hostile_media_are_survived() {
    let mut machine = DirectoryMachine::new();
    machine.fw_cfg(vec![0xff; 1 << 20]);
    assert_eq!(codes(&machine.load())[0], "config-refused");
    machine.no_fw_cfg();
    let link = machine.paths.fw_cfg.join("node");
    fs::create_dir(&link).expect(FILE);
    std::os::unix::fs::symlink("/dev/zero", link.join("raw")).expect(FILE);
    machine.disk("vda", iso_volume("cidata"), &[("meta-data", "")]);
    let content = machine.root.path().join("content-vda/user-data");
    std::os::unix::fs::symlink("/dev/zero", content).expect(FILE);
    machine.disk("vdb", fat32_boot_sector("CIDATA"), &[]);
    machine.volumes.remove(&machine.paths.dev.join("vdb"));
    let loaded = machine.load();
    assert_eq!(codes(&loaded), vec!["provisioning-unreadable"; 3]);
    assert_eq!(loaded.source, ConfigOrigin::Default);
    for problem in &loaded.problems {
        assert!(!problem.text.contains('\n') && !problem.hint.is_empty());
    }
}

#[test]
fn drives_without_a_medium_are_not_touched() {
    let mut machine = DirectoryMachine::new();
    let files = [("meta-data", ""), ("user-data", &document(1) as &str)];
    machine.disk("sr0", iso_volume("cidata"), &files);
    fs::write(machine.paths.block_class.join("sr0/size"), "0\n").expect(FILE);
    assert_eq!(machine.load().source, ConfigOrigin::Default);
}

/// A floppy disk from `mformat` looks like a partition table whose first partition is the disk.
#[test]
fn a_partition_that_is_its_whole_disk_is_listed_once() {
    let mut machine = DirectoryMachine::new();
    for (name, start) in [
        ("vdb", None),
        ("vdb1", Some("0\n")),
        ("vdc1", Some("2048\n")),
    ] {
        machine.disk(name, fat32_boot_sector("CIDATA"), &[]);
        machine.volumes.remove(&machine.paths.dev.join(name));
        if let Some(start) = start {
            fs::write(machine.paths.block_class.join(name).join("start"), start).expect(FILE);
        }
    }
    let loaded = machine.load();
    assert_eq!(codes(&loaded), vec!["provisioning-unreadable"; 2]);
    for (problem, name) in loaded.problems.iter().zip(["vdb", "vdc1"]) {
        assert!(
            problem.text.contains(&format!("({name})")),
            "{}",
            problem.text
        );
    }
}

#[test]
fn fault_injection_needs_its_switch() {
    let machine = DirectoryMachine::new();
    assert!(!fault_injection(&machine.paths));
    let dir = machine.paths.fw_cfg.join("test-faults");
    fs::create_dir(&dir).expect(FILE);
    for (content, on) in [("1", true), ("1\n", true), ("0", false), ("", false)] {
        fs::write(dir.join("raw"), content).expect(FILE);
        assert_eq!(fault_injection(&machine.paths), on, "{content:?}");
    }
}

#[test]
fn what_the_node_keeps_wins_over_the_medium_that_is_still_in_place() {
    let machine = DirectoryMachine::new();
    let node = machine.paths.fw_cfg.join("node");
    fs::create_dir(&node).expect(FILE);
    fs::write(node.join("raw"), document(1)).expect(FILE);
    assert_eq!(load(&machine.paths).source, ConfigOrigin::FwCfg);

    let dir = machine.paths.config_dir.clone().expect("given above");
    store_document(&dir, document(2).as_bytes()).expect(FILE);
    let loaded = load(&machine.paths);
    assert_eq!(loaded.source, ConfigOrigin::Stored);
    assert_eq!(loaded.config.node.name.as_deref(), Some("node-2"));
    let last_good = fs::read(dir.join("config.last-good.toml")).expect(FILE);
    assert_eq!(last_good, document(2).as_bytes());
}
