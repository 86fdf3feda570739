//! Each form, read by standard tools and by the node.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use alknet_provisioning::{ConsoleDocument, KernelMounter, LoadedConfig, load_console, load_with};
use alknet_vault::Entropy;

use crate::workstation::{AdminWorkstation, IDENTITY, OWN_KEY, WORDS, tool};

const OPTIONS: &str = "--name edge-1 --domain edge.example.org --words-file @words.txt";

/// The node has the configuration, the words, and the vault's seed key.
fn check(loaded: &LoadedConfig, vault: Option<&str>) {
    assert_eq!(loaded.problems, []);
    assert_eq!(loaded.config.node.name.as_deref(), Some("edge-1"));
    assert_eq!(loaded.config.node.admin_keys, [OWN_KEY]);
    assert_eq!(loaded.set, ["node", "vault"]);
    let words = loaded.secrets.words.as_ref().expect("words");
    assert_eq!(words.entropy, Entropy::parse(WORDS).expect("words"));
    match vault {
        None => assert!(loaded.secrets.seed_keys.is_empty()),
        Some(vault) => {
            let vault = vault.parse().expect("an id");
            assert!(loaded.secrets.seed_keys_of(vault).next().is_some());
        }
    }
}

#[test]
fn a_cd_is_one_to_stock_tools_and_to_the_node() {
    let workstation = AdminWorkstation::new();
    let answer = workstation.json(&format!("{OPTIONS} --out @seed.iso"));
    let image = workstation.path("seed.iso");
    let name = image.to_str().expect("text");
    let toc = tool("xorriso", &["-indev", name, "-toc"]);
    assert!(toc.contains("'CIDATA'"), "{toc}");
    let listed = tool("xorriso", &["-indev", name, "-find", "/"]);
    for file in ["user-data", "meta-data", "vault.words", "seed.key"] {
        assert!(listed.contains(&format!("'/{file}'")), "{listed}");
    }
    assert_eq!(answer["identity"], IDENTITY);
    assert_eq!(
        answer["uri"],
        format!("alknet:{IDENTITY}@edge.example.org:443")
    );
    check(&workstation.boot_with(&image), answer["vault"].as_str());
}

#[test]
fn a_stick_is_one_to_stock_tools_and_to_the_node() {
    let workstation = AdminWorkstation::new();
    let answer = workstation.json(&format!("{OPTIONS} --form nocloud-fat --out @seed.img"));
    let image = workstation.path("seed.img");
    tool("fsck.vfat", &["-n", "-v", image.to_str().expect("text")]);
    check(&workstation.boot_with(&image), answer["vault"].as_str());
}

#[test]
fn a_large_document_fits_on_both() {
    let workstation = AdminWorkstation::new();
    let long = format!("# {}\n", "x".repeat(60_000));
    fs::write(workstation.path("base.toml"), &long).expect("writable");
    for form in ["nocloud-iso", "nocloud-fat"] {
        let options = format!("{OPTIONS} --config @base.toml --force --form {form} --out @seed");
        let answer = workstation.json(&options);
        let loaded = workstation.boot_with(&workstation.path("seed"));
        check(&loaded, answer["vault"].as_str());
        let stored = fs::read_to_string(workstation.path("config/config.toml")).expect("stored");
        assert!(stored.starts_with(&long));
    }
    tool(
        "fsck.vfat",
        &["-n", "-v", workstation.path("seed").to_str().expect("text")],
    );
}

#[test]
fn files_for_the_boot_partition_lie_where_the_node_looks() {
    let workstation = AdminWorkstation::new();
    fs::create_dir(workstation.path("esp")).expect("writable");
    let answer = workstation.json(&format!(
        "{OPTIONS} --unlock tpm2,provisioning --form esp --out @esp"
    ));
    assert!(
        answer["warnings"]
            .to_string()
            .contains("seed key is not on a medium of its own")
    );
    // As users do it: the folder's files on a volume with the image's label.
    let image = workstation.path("esp.img");
    let name = image.to_str().expect("text");
    fs::File::create(&image)
        .and_then(|file| file.set_len(40 << 20))
        .expect("writable");
    tool("mkfs.vfat", &["-F", "32", "-n", "ALKESP", name]);
    let file = |name: &str| workstation.path("esp").join(name).display().to_string();
    tool(
        "mcopy",
        &[
            "-s",
            "-i",
            name,
            &file("alknet.toml"),
            &file("alknet"),
            "::",
        ],
    );
    let loaded = workstation.boot_with(&image);
    assert_eq!(loaded.source.trust(), "boot-partition");
    check(&loaded, answer["vault"].as_str());
}

/// A folder that was mistyped is not where the boot partition is mounted, so the command says that it made one.
#[test]
fn a_folder_for_the_boot_partition_is_made_if_the_one_around_it_exists() {
    let workstation = AdminWorkstation::new();
    let usage = |line: &str| workstation.json(line)["usage"].to_string();
    let made = usage("--init off --form esp --out @boot");
    assert!(made.contains("is a new folder"), "{made}");
    assert!(workstation.path("boot/alknet.toml").is_file());
    let mounted = usage("--init off --form esp --force --out @boot");
    assert!(mounted.contains("unmount the boot partition"), "{mounted}");
    assert!(!workstation.path("one").exists());
    let deeper = workstation.run("--init off --form esp --out @one/two", false);
    assert_eq!(deeper.expect_err("two are missing").exit(), 2);
    assert!(!workstation.path("one").exists());
}

#[test]
fn entries_of_fw_cfg_are_what_the_options_name() {
    let workstation = AdminWorkstation::new();
    let answer = workstation.json(&format!("{OPTIONS} --form fw-cfg --out @fw"));
    let paths = workstation.machine();
    let options = answer["usage"].as_array().expect("a list");
    assert_eq!(options.len(), 3);
    for option in options {
        let (_, rest) = option
            .as_str()
            .and_then(|it| it.split_once("org.alknet/"))
            .expect("ours");
        let (entry, file) = rest.split_once(",file=").expect("a file");
        fs::create_dir_all(paths.fw_cfg.join(entry)).expect("writable");
        fs::copy(file, paths.fw_cfg.join(entry).join("raw")).expect("made");
    }
    check(&load_with(&paths, &KernelMounter), answer["vault"].as_str());
}

#[test]
fn strings_for_the_firmware_are_put_together() {
    let workstation = AdminWorkstation::new();
    let base = format!("# {}\n", "x".repeat(4000));
    fs::write(workstation.path("base.toml"), base).expect("writable");
    let answer = workstation.json(&format!(
        "{OPTIONS} --config @base.toml --unlock provisioning --form smbios --out @strings"
    ));
    let files = answer["files"].as_array().expect("a list");
    assert!(files.len() > 4);
    let mut raw = vec![11, 5, 0, 11, files.len() as u8];
    for file in files {
        raw.extend(fs::read(file.as_str().expect("a path")).expect("made"));
        raw.push(0);
    }
    raw.push(0);
    let paths = workstation.machine();
    fs::create_dir_all(paths.dmi.join("11-0")).expect("writable");
    fs::write(paths.dmi.join("11-0/raw"), raw).expect("writable");
    let loaded = load_with(&paths, &KernelMounter);
    check(&loaded, answer["vault"].as_str());
}

#[test]
fn a_word_of_the_command_line_is_taken() {
    let workstation = AdminWorkstation::new();
    let word = workstation
        .run(&format!("{OPTIONS} --form cmdline"), false)
        .expect("it fits");
    assert_eq!(word.split_whitespace().count(), 1);
    let paths = workstation.machine();
    fs::write(&paths.command_line, format!("quiet {word}")).expect("writable");
    check(&load_with(&paths, &KernelMounter), None);
}

#[test]
fn a_line_of_the_console_is_taken() {
    let workstation = AdminWorkstation::new();
    let line = workstation
        .run(&format!("{OPTIONS} --form console --out -"), false)
        .expect("text");
    let pasted = ConsoleDocument::parse(&line).expect("whole");
    check(
        &load_console(&workstation.machine(), &KernelMounter, pasted),
        None,
    );
}

#[test]
fn the_document_alone_is_whole() {
    let workstation = AdminWorkstation::new();
    fs::write(workstation.path("pass"), "TREZ\"OR\\\n").expect("writable");
    let line = format!(
        "{OPTIONS} --passphrase-file @pass --unlock provisioning --form text --out @node.toml"
    );
    let answer = workstation.json(&line);
    assert_ne!(
        answer["identity"], IDENTITY,
        "the passphrase makes other keys"
    );
    let mode = fs::metadata(workstation.path("node.toml"))
        .expect("made")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let paths = workstation.machine();
    fs::create_dir_all(paths.fw_cfg.join("node")).expect("writable");
    fs::copy(workstation.path("node.toml"), paths.fw_cfg.join("node/raw")).expect("made");
    let loaded = load_with(&paths, &KernelMounter);
    check(&loaded, answer["vault"].as_str());
    let words = loaded.secrets.words.expect("words");
    assert_eq!(words.passphrase.expose(), "TREZ\"OR\\");
}

#[test]
fn a_passphrase_goes_with_files_as_well() {
    let workstation = AdminWorkstation::new();
    fs::write(workstation.path("pass"), "TREZOR").expect("writable");
    workstation.json(&format!(
        "{OPTIONS} --passphrase-file @pass --form nocloud-fat --out @seed"
    ));
    let loaded = workstation.boot_with(&workstation.path("seed"));
    assert_eq!(loaded.problems, []);
    assert_eq!(
        loaded.secrets.words.expect("words").passphrase.expose(),
        "TREZOR"
    );
}

#[test]
fn the_same_words_are_the_same_node_and_devices_differ() {
    let workstation = AdminWorkstation::new();
    let of = |more: &str| {
        workstation.json(&format!("{OPTIONS} --force --out @seed {more}"))["identity"].clone()
    };
    assert_eq!(of(""), of("--form nocloud-fat"));
    let first = of("--device 1");
    assert_eq!(
        first, "ed25519:733961f7573657324f22e91f06ea4f0b359e2efa0ccffc954616dadee7444daa",
        "as the brief's table has it"
    );
}

#[test]
fn credentials_go_with_the_seed_in_a_table_of_their_own() {
    let workstation = AdminWorkstation::new();
    let base = "[[credentials]]\nname = \"openai\"\nkind = \"bearer\"\n\
                [[credentials]]\nname = \"mint\"\nkind = \"signer\"\n\
                [[credentials]]\nname = \"box\"\nkind = \"aead\"\n";
    fs::write(workstation.path("base.toml"), base).expect("writable");
    fs::write(workstation.path("key"), "sk-\"hush\\").expect("writable");
    fs::write(workstation.path("pem"), "BEGIN\nhush\nEND\n").expect("writable");
    let given = |name: &str, file: &str| {
        format!(" --credential {name}={}", workstation.path(file).display())
    };
    let line = format!("{OPTIONS} --config @base.toml") + &given("openai", "key");
    for form in ["nocloud-fat", "nocloud-iso"] {
        let line = format!("{line} --form {form} --out @{form}") + &given("mint", "pem");
        let answer = workstation.json(&line);
        assert!(!answer.to_string().contains("hush"), "{answer:#}");
        let loaded = workstation.boot_with(&workstation.path(form));
        assert_eq!(loaded.problems, []);
        let found = loaded.secrets.credentials.iter();
        let found: Vec<_> = found
            .map(|it| (it.name.as_str(), it.secret.expose()))
            .collect();
        assert_eq!(
            found,
            [("mint", "BEGIN\nhush\nEND\n"), ("openai", "sk-\"hush\\")]
        );
    }
    for (more, word) in [
        (given("openai", "key"), "once"),
        (given("box", "key"), "takes a secret"),
        (given("other", "key"), "[[credentials]]"),
        (given("mint", "nowhere"), "cannot read"),
        (" --credential sk-hush".to_owned(), "NAME=FILE"),
        (given("mint", "key") + " --init off", "words"),
    ] {
        let error = workstation.run(&format!("{line}{more} --out @seed"), true);
        let error = error.expect_err(&more).to_string();
        assert!(error.contains(word) && !error.contains("hush"), "{error}");
        assert!(!workstation.path("seed").exists());
    }
}
