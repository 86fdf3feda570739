//! Every source, correct and damaged, and all of them at once.

use alknet_core::config::CONFIG_BYTES_MAX;
use data_encoding::BASE64URL_NOPAD;

use super::*;

impl DirectoryMachine {
    fn boot_partition(&mut self, name: &str, files: &[(&str, &str)]) {
        self.disk(name, fat32_boot_sector("ALKESP"), &[]);
        let content = self.root.path().join(format!("content-{name}"));
        fs::create_dir(content.join("alknet")).expect(FILE);
        for (name, text) in files {
            fs::write(content.join(name), text).expect(FILE);
        }
    }

    /// OEM strings, in one structure.
    fn smbios(&self, number: usize, strings: &[&str]) {
        let dir = self.paths.dmi.join(format!("11-{number}"));
        fs::create_dir_all(&dir).expect(FILE);
        let mut raw = vec![11, 5, 0, 11, strings.len() as u8];
        strings
            .iter()
            .for_each(|it| raw.extend([it.as_bytes(), b"\0"].concat()));
        raw.push(0);
        fs::write(dir.join("raw"), raw).expect(FILE);
    }

    fn command_line(&self, document: &str) {
        let encoded = BASE64URL_NOPAD.encode(document.as_bytes());
        let line = format!("console=ttyS0 quiet alknet.node={encoded} panic=10\n");
        fs::write(&self.paths.command_line, line).expect(FILE);
    }

    fn secure_boot(&self, value: &[u8]) {
        let dir = self.paths.efi.join("efivars");
        fs::create_dir_all(&dir).expect(FILE);
        let name = "SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c";
        fs::write(dir.join(name), value).expect(FILE);
    }

    fn paste(&self, document: &str) -> LoadedConfig {
        let line = ConsoleDocument::line(document.as_bytes());
        let pasted = ConsoleDocument::parse(&line).expect("whole");
        load_console(&self.paths, &self.volumes, pasted)
    }
}

fn parts(document: &str, bytes: usize) -> Vec<String> {
    let strings = strings(document.as_bytes(), bytes);
    strings.iter().map(|it| it.to_string()).collect()
}

#[test]
fn a_file_on_the_boot_partition_is_a_configuration() {
    let mut machine = DirectoryMachine::new();
    machine.boot_partition("vda2", &[("alknet.toml", &document(7))]);
    let loaded = machine.load();
    assert_eq!((name(&loaded), codes(&loaded)), ("node-7", vec![]));
    assert_eq!(loaded.source.to_string(), "alknet.toml (vda2)");
    assert_eq!(loaded.source.trust(), "boot-partition");
    assert_eq!(
        loaded.summary(),
        "alknet.toml (vda2) (boot-partition) set node"
    );
}

#[test]
fn a_boot_partition_without_a_file_is_no_problem() {
    let mut machine = DirectoryMachine::new();
    machine.boot_partition("vda2", &[]);
    let loaded = machine.load();
    assert_eq!(
        (loaded.source, loaded.problems),
        (ConfigOrigin::Default, vec![])
    );
}

/// The installed disk has the document without the order. Both documents are the same configuration.
#[test]
fn an_order_to_install_is_no_part_of_the_configuration() {
    let mut machine = DirectoryMachine::new();
    machine.fw_cfg(document(1) + "[install]\ndisk = \"a\"\n");
    let loaded = machine.load();
    assert_eq!((name(&loaded), codes(&loaded)), ("node-1", vec![]));
    let stored = machine.stored("config.toml").expect("it was taken");
    assert_eq!(stored.trim_end(), document(1).trim_end());
    let request = install_request(&machine.paths, &machine.volumes, &[]).expect("an order");
    assert_eq!(request.source, ConfigOrigin::FwCfg);
    assert_eq!(request.order.expect("no mistake").disk, "a");
    let installed = String::from_utf8(request.document).expect("still text");
    machine.boot_partition("vda2", &[("alknet.toml", &installed)]);
    assert_eq!(codes(&machine.load()), Vec::<&str>::new());
}

#[test]
fn a_mistake_in_the_order_refuses_the_document() {
    let machine = DirectoryMachine::new();
    machine.fw_cfg(document(1) + "[install]\nforce = true\n");
    let loaded = machine.load();
    assert!(loaded.salvaged);
    let first = &loaded.problems[0];
    assert_eq!(first.code, "config-refused");
    assert_eq!(first.text, "fw_cfg: line 5, install.force: unknown key");
}

/// The administrator expects a node on the disk. A start without the order would be another node, from the medium.
#[test]
fn an_order_in_utf_16_is_refused_by_name() {
    let machine = DirectoryMachine::new();
    let order = document(1) + "[install]\ndisk = \"a\"\n";
    for mark in ["\u{feff}", ""] {
        for bytes in [u16::to_le_bytes, u16::to_be_bytes] {
            let utf_16 = |text: &str| -> Vec<u8> {
                let text = format!("{mark}{text}");
                text.encode_utf16().flat_map(bytes).collect()
            };
            machine.fw_cfg(utf_16(&order));
            let request = install_request(&machine.paths, &machine.volumes, &[]).expect("an order");
            assert_eq!(request.source, ConfigOrigin::FwCfg);
            let refused = request.order.expect_err("it is no UTF-8");
            assert_eq!(refused.len(), 1, "{refused:?}");
            assert!(
                refused[0].contains("UTF-16") && refused[0].contains("UTF-8"),
                "{refused:?}"
            );
            // Without an order the reader of the configuration says it.
            machine.fw_cfg(utf_16(&document(1)));
            assert!(install_request(&machine.paths, &machine.volumes, &[]).is_none());
        }
    }
}

/// A later source has an order, and its document does not count.
#[test]
fn only_the_document_that_counts_gives_an_order() {
    let mut machine = DirectoryMachine::new();
    let order = document(2) + "[install]\ndisk = \"a\"\n";
    machine.boot_partition("vda2", &[("alknet.toml", &order)]);
    assert!(install_request(&machine.paths, &machine.volumes, &[]).is_some());
    machine.fw_cfg("\n");
    assert!(install_request(&machine.paths, &machine.volumes, &[]).is_some());
    machine.fw_cfg(document(1));
    assert!(install_request(&machine.paths, &machine.volumes, &[]).is_none());
}

#[test]
fn the_media_are_whole_devices_with_their_label() {
    let mut machine = DirectoryMachine::new();
    let media = |machine: &DirectoryMachine| medium_devices(&machine.paths, "ALKNET");
    assert_eq!(media(&machine), Vec::<String>::new());
    machine.disk("sda1", iso_volume("ALKNET"), &[]);
    let partition = machine.paths.block_class.join("sda1/partition");
    fs::write(partition, "1\n").expect(FILE);
    machine.disk("sdb", iso_volume("cidata"), &[]);
    assert_eq!(media(&machine), Vec::<String>::new());
    machine.disk("sr0", iso_volume("ALKNET"), &[]);
    assert_eq!(media(&machine), ["sr0"]);
    // A stick that an attacker left has a name before that of the CD drive.
    machine.disk("sdc", iso_volume("ALKNET"), &[]);
    assert_eq!(media(&machine), ["sdc", "sr0"]);
}

/// The disk of an earlier node has a document of its own, and the stick that starts the machine has an order.
#[test]
fn an_order_on_the_medium_counts_whichever_names_the_devices_have() {
    for (disk, stick) in [("sda", "sdb"), ("sdb", "sda")] {
        let mut machine = DirectoryMachine::new();
        let order = document(2) + "[install]\ndisk = \"a\"\n";
        for (device, text) in [(disk, document(1)), (stick, order)] {
            let partition = format!("{device}2");
            machine.boot_partition(&partition, &[("alknet.toml", &text)]);
            let listed = machine.paths.block_class.join(device).join(&partition);
            fs::create_dir_all(listed).expect(FILE);
        }
        let asked = |media: &[String]| install_request(&machine.paths, &machine.volumes, media);
        let request = asked(&[stick.to_owned()]).expect("the order of the stick");
        let device = format!("{stick}2");
        assert_eq!(request.source, ConfigOrigin::BootPartition { device });
        // The other way round the document of the medium has no order, and that on the disk does not count.
        assert!(asked(&[disk.to_owned()]).is_none(), "{disk} is the medium");
    }
}

/// fw_cfg and NoCloud volumes stay before the medium, and the firmware's tables stay behind it.
#[test]
fn the_medium_takes_no_place_of_another_source() {
    let mut machine = DirectoryMachine::new();
    let order = |n: u8| document(n) + "[install]\ndisk = \"a\"\n";
    let media = ["sdb".to_owned()];
    let source = |machine: &DirectoryMachine| {
        let request = install_request(&machine.paths, &machine.volumes, &media);
        request.map(|request| request.source.to_string())
    };
    machine.smbios(0, &[&parts(&order(5), 4096)[0]]);
    assert_eq!(source(&machine).as_deref(), Some("smbios"));
    machine.boot_partition("sdb2", &[("alknet.toml", &order(4))]);
    fs::create_dir_all(machine.paths.block_class.join("sdb/sdb2")).expect(FILE);
    assert_eq!(source(&machine).as_deref(), Some("alknet.toml (sdb2)"));
    let files = [("meta-data", ""), ("user-data", &*order(3))];
    machine.disk("sr0", iso_volume("cidata"), &files);
    assert_eq!(source(&machine).as_deref(), Some("nocloud (sr0)"));
    machine.fw_cfg(order(2));
    assert_eq!(source(&machine).as_deref(), Some("fw_cfg"));
}

#[test]
fn an_order_is_seen_in_each_form_of_a_document() {
    let order = document(1) + "[install]\nforce = 1\n";
    let utf_16: Vec<u8> = order.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let marked = format!("\u{feff}{order}\0");
    let beside = document(1) + "[secrets]\nwords = \"a\"\n[install]\n";
    let key = "install.disk = \"a\"\n".to_owned() + &document(1);
    for with in [
        order.as_bytes(),
        &utf_16,
        marked.as_bytes(),
        beside.as_bytes(),
        key.as_bytes(),
    ] {
        assert!(has_install(with), "{}", String::from_utf8_lossy(with));
    }
    for without in [document(1), String::new(), "# [install]\n".to_owned()] {
        assert!(!has_install(without.as_bytes()), "{without}");
    }
}

#[test]
fn editors_of_every_system_may_write_it() {
    let written = document(7).replace('\n', "\r\n");
    for text in [
        format!("\u{feff}{written}"),
        format!("{written}\0\0\0\0"),
        format!("\u{feff}# mine\r\n{written}\0"),
    ] {
        let mut machine = DirectoryMachine::new();
        machine.boot_partition("vda2", &[("alknet.toml", &text)]);
        let loaded = machine.load();
        assert_eq!(
            (name(&loaded), codes(&loaded)),
            ("node-7", vec![]),
            "{text:?}"
        );
        let stored = machine.stored("config.toml").expect("stored");
        assert!(!stored.contains(['\0', '\u{feff}']));
        // A document that is found again counts as the same.
        assert_eq!(machine.load().source, ConfigOrigin::Stored);
    }
}

#[test]
fn utf_16_is_refused_by_name() {
    let mut machine = DirectoryMachine::new();
    machine.boot_partition("vda2", &[]);
    let utf_16: Vec<u8> = "\u{feff}[node]"
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    let path = machine.root.path().join("content-vda2/alknet.toml");
    fs::write(path, utf_16).expect(FILE);
    let loaded = machine.load();
    assert_eq!(codes(&loaded), ["config-refused", "config-salvaged"]);
    assert!(loaded.problems[0].text.contains("UTF-16"));
    assert!(loaded.problems[0].hint.contains("UTF-8"));
}

#[test]
fn strings_of_the_firmware_are_put_together() {
    let machine = DirectoryMachine::new();
    let long = format!("{}# {}\n", document(5), "x".repeat(3000));
    let strings = parts(&long, 60);
    assert!(strings.len() > 50);
    let (some, rest) = strings.split_at(20);
    let texts = |list: &'_ [String]| list.iter().rev().cloned().collect::<Vec<_>>();
    let (some, rest) = (texts(some), texts(rest));
    let some: Vec<_> = some
        .iter()
        .map(String::as_str)
        .chain(["Vendor: x"])
        .collect();
    let rest: Vec<_> = rest.iter().map(String::as_str).collect();
    machine.smbios(0, &some);
    machine.smbios(1, &rest);
    let loaded = machine.load();
    assert_eq!((name(&loaded), codes(&loaded)), ("node-5", vec![]));
    assert_eq!(
        (&loaded.source, loaded.source.trust()),
        (&ConfigOrigin::Smbios, "hypervisor")
    );
    assert_eq!(machine.stored("config.toml"), Some(long));
}

#[test]
fn damaged_strings_of_the_firmware_are_one_clear_line() {
    let whole = parts(&document(5), 40);
    let first = whole[0].as_str();
    for (strings, word) in [
        (
            &whole[1..].iter().map(String::as_str).collect::<Vec<_>>()[..],
            "alknet.node.0 is missing",
        ),
        (&[first, first], "alknet.node.0 is there twice"),
        (&["alknet.node=a b"], "no base64url"),
    ] {
        let machine = DirectoryMachine::new();
        machine.smbios(0, strings);
        let loaded = machine.load();
        assert_eq!(codes(&loaded), ["provisioning-unreadable"]);
        let text = &loaded.problems[0].text;
        assert!(
            text.starts_with("smbios: ") && text.contains(word),
            "{text}"
        );
    }
}

#[test]
fn the_command_line_counts_on_an_unsigned_image() {
    let machine = DirectoryMachine::new();
    machine.command_line(&document(6));
    let loaded = machine.load();
    assert_eq!((name(&loaded), codes(&loaded)), ("node-6", vec![]));
    assert_eq!(loaded.source.to_string(), "kernel command line");
    assert_eq!(loaded.source.trust(), "boot-loader");

    let off = DirectoryMachine::new();
    off.command_line(&document(6));
    off.secure_boot(&[6, 0, 0, 0, 0]);
    assert_eq!(name(&off.load()), "node-6");
}

#[test]
fn the_command_line_of_a_signed_image_is_not_believed() {
    let values: [(&[u8], &str); 3] = [
        (&[6, 0, 0, 0, 1], "Secure Boot is on"),
        (&[6, 0, 0], "it is unknown"),
        (&[], "it is unknown"),
    ];
    for (value, why) in values {
        let machine = DirectoryMachine::new();
        machine.command_line(&document(6));
        machine.secure_boot(value);
        let loaded = machine.load();
        assert_eq!(
            (&loaded.source, codes(&loaded)),
            (&ConfigOrigin::Default, vec!["provisioning-ignored"])
        );
        assert!(
            loaded.problems[0].text.contains(why),
            "{:?}",
            loaded.problems
        );
        assert!(loaded.problems[0].is_notice());
    }
    let unmounted = DirectoryMachine::new();
    unmounted.command_line(&document(6));
    fs::create_dir(&unmounted.paths.efi).expect(FILE);
    assert_eq!(codes(&unmounted.load()), ["provisioning-ignored"]);

    let locked = DirectoryMachine::new();
    locked.command_line(&document(6));
    let line = fs::read_to_string(&locked.paths.command_line).expect(FILE);
    fs::write(
        &locked.paths.command_line,
        format!("lockdown=confidentiality {line}"),
    )
    .expect(FILE);
    let loaded = locked.load();
    assert!(
        loaded.problems[0].text.contains("locked down"),
        "{:?}",
        loaded.problems
    );
}

#[test]
fn a_damaged_command_line_is_one_clear_line() {
    let machine = DirectoryMachine::new();
    fs::write(&machine.paths.command_line, "alknet.node=*** quiet").expect(FILE);
    let loaded = machine.load();
    assert_eq!(codes(&loaded), ["provisioning-unreadable"]);
    assert!(loaded.problems[0].text.starts_with("kernel command line: "));
}

#[test]
fn a_document_pasted_at_the_console_is_stored() {
    let machine = DirectoryMachine::new();
    let loaded = machine.paste(&document(8));
    assert_eq!(
        (name(&loaded), &loaded.source),
        ("node-8", &ConfigOrigin::Console)
    );
    assert_eq!(loaded.source.trust(), "console");
    assert_eq!(machine.stored("config.toml"), Some(document(8)));
    let refused = machine.paste(&misspelt(9));
    assert_eq!(codes(&refused), ["config-refused", "config-last-good"]);
    assert_eq!(name(&refused), "node-8");
}

#[test]
fn of_several_documents_the_order_decides_and_the_losers_are_named() {
    let mut machine = DirectoryMachine::new();
    machine.command_line(&document(6));
    assert_eq!(name(&machine.paste(&document(8))), "node-6");
    machine.smbios(0, &[&parts(&document(5), 4096)[0]]);
    assert_eq!(name(&machine.load()), "node-5");
    machine.boot_partition("vda2", &[("alknet.toml", &document(4))]);
    assert_eq!(name(&machine.load()), "node-4");
    machine.disk(
        "vdb",
        iso_volume("cidata"),
        &[("meta-data", ""), ("user-data", &document(3))],
    );
    assert_eq!(name(&machine.load()), "node-3");
    machine.fw_cfg(document(2));
    let loaded = machine.paste(&document(8));
    assert_eq!(
        (name(&loaded), codes(&loaded)),
        ("node-2", vec!["provisioning-conflict"])
    );
    let losers = "nocloud (vdb), alknet.toml (vda2), smbios, kernel command line, console";
    assert_eq!(
        loaded.problems[0].text,
        format!("fw_cfg counts; other documents are not used: {losers}")
    );
    assert!(loaded.problems[0].is_notice());
}

#[test]
fn the_same_document_twice_is_no_conflict() {
    let mut machine = DirectoryMachine::new();
    machine.fw_cfg(document(2));
    machine.boot_partition(
        "vda2",
        &[("alknet.toml", &format!("\u{feff}{}", document(2)))],
    );
    assert!(machine.load().problems.is_empty());
}

#[test]
fn an_empty_source_lets_the_next_one_count() {
    let machine = DirectoryMachine::new();
    machine.fw_cfg(" \n");
    machine.command_line(&document(6));
    let loaded = machine.load();
    assert_eq!(
        (name(&loaded), codes(&loaded)),
        ("node-6", vec!["provisioning-empty"])
    );
}

/// A document with this many bytes.
fn padded(bytes: usize) -> String {
    let document = document(1);
    let rest = bytes - document.len() - "#\n".len();
    format!("{document}#{}\n", "x".repeat(rest))
}

#[test]
fn an_over_long_document_is_one_clear_line_from_every_source() {
    let full = padded(CONFIG_BYTES_MAX);
    let long = padded(CONFIG_BYTES_MAX + 1);
    let sources: [fn(&str) -> LoadedConfig; 4] = [
        |text: &str| {
            let mut boot = DirectoryMachine::new();
            boot.boot_partition("vda2", &[("alknet.toml", text)]);
            boot.load()
        },
        |text: &str| {
            let fw_cfg = DirectoryMachine::new();
            fw_cfg.fw_cfg(text);
            fw_cfg.load()
        },
        |text: &str| {
            let mut nocloud = DirectoryMachine::new();
            let files = [("meta-data", ""), ("user-data", text)];
            nocloud.disk("sr0", iso_volume("cidata"), &files);
            nocloud.load()
        },
        |text: &str| {
            let firmware = DirectoryMachine::new();
            for (at, string) in parts(text, 60_000).iter().enumerate() {
                firmware.smbios(at, &[string]);
            }
            firmware.load()
        },
    ];
    for from in sources {
        let loaded = from(&full);
        assert_eq!((name(&loaded), codes(&loaded)), ("node-1", vec![]));
        let loaded = from(&long);
        let first = &loaded.problems[0];
        assert!(first.text.contains("longer than 65536 bytes"), "{first:?}");
        let lines = loaded.problems.iter();
        let about = lines.filter(|it| it.text.contains("longer")).count();
        assert_eq!(about, 1, "{:?}", loaded.problems);
    }
}

#[test]
fn a_document_of_a_newer_version_is_one_clear_line() {
    let machine = DirectoryMachine::new();
    machine.fw_cfg(format!("version = 9\nshape = 1\n{}", document(1)));
    let loaded = machine.load();
    assert_eq!(codes(&loaded), ["config-refused", "config-salvaged"]);
    assert!(
        loaded.problems[0]
            .text
            .contains("version 9, which is newer")
    );
    assert_eq!(loaded.config.node.admin_keys, [key(1)]);
}

#[test]
fn settings_are_reported_in_the_order_of_the_document() {
    let machine = DirectoryMachine::new();
    machine.fw_cfg(format!(
        "version = 1\n[log]\nlevel = \"debug\"\n{}[vault]\n",
        document(1)
    ));
    assert_eq!(machine.load().set, ["version", "log", "node", "vault"]);
    assert_eq!(
        machine.load().summary(),
        "config.toml (data-partition) set version, log, node, vault"
    );
    assert_eq!(
        DirectoryMachine::new().load().summary(),
        "default (built-in) set nothing"
    );
}
