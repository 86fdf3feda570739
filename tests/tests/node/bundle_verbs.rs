//! `alknet image root`, `alknet image bundle` and `alknet image cosign`: what a build machine makes, read by the
//! library of the machines.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use alknet_delta::apply_delta;
use alknet_image::{ImageForm, OutputRole, ProgramParts};
use alknet_tests::tools::tool;
use alknet_tests::{BuiltImageFolder, CliOutput, TestBench, binary, run_with_input};
use alknet_tpm::predict::{authenticode, measured_sections};
use alknet_update::{
    BundleReader, DowngradeConsent, TrustAnchor, UnixSeconds, UpdateClock, UpdateError,
    UpdateMachine, UpdateTrust,
};
use data_encoding::HEXLOWER;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::cosign_verb::assert_replaced_together;
use crate::image_page::cosign_as_on_the_page;

const PAGE: &str = include_str!("../../../docs/image.md");

/// Words of a vault that exists in tests only.
const WORDS: &str = "abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon about\n";
/// Exit code of docs/command-line.md.
const USAGE: i32 = 2;
/// Seconds since 1970, before everything here expires.
const NOW: UnixSeconds = UnixSeconds(1_800_000_000);
pub(crate) const EXPIRES: [&str; 4] = [
    "--expires",
    "2032-01-31",
    "--timestamp-expires",
    "2031-01-31",
];

/// A build machine with keys.
pub(crate) struct BuildMachine {
    bench: TestBench,
}

impl BuildMachine {
    pub(crate) fn new() -> Self {
        let machine = Self {
            bench: TestBench::new(),
        };
        for name in ["ada.pem", "ben.pem"] {
            machine.make_key(name);
        }
        machine
    }

    pub(crate) fn make_key(&self, name: &str) {
        let out = self.file(name).display().to_string();
        let words = ["genpkey", "-algorithm", "ed25519", "-out", &out];
        let made = tool("openssl", &words);
        assert!(made.status.success(), "{made:?}");
    }

    /// The public key of a private one.
    pub(crate) fn public_key(&self, name: &str) -> String {
        let words = [
            "root",
            "--expires",
            "2032-01-31",
            "--out",
            "x",
            "--key",
            name,
        ];
        let made = self.run(&words, "").json();
        made["keys"][0].as_str().expect("a key").to_owned()
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.bench.path().join(name)
    }

    pub(crate) fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.file(name)).expect("it was made")
    }

    pub(crate) fn run(&self, words: &[&str], input: &str) -> CliOutput {
        run_with_input(self.command(&[words, &["--json"]].concat()), input)
    }

    /// What a person reads.
    pub(crate) fn shown(&self, words: &[&str]) -> CliOutput {
        let shown = run_with_input(self.command(words), "");
        assert_eq!(shown.status, 0, "{shown:?}");
        shown
    }

    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command.arg("image").args(words);
        command.current_dir(self.bench.path());
        command
    }

    fn refused(&self, words: &[&str]) -> String {
        let refused = self.run(words, "");
        assert_eq!(refused.status, USAGE, "{refused:?}");
        refused.errors
    }

    fn bundle(
        &self,
        program: &str,
        roots: &[&str],
        number: &str,
        keys: &[&str],
        out: &str,
    ) -> CliOutput {
        let mut words = vec!["bundle", program, "--number", number, "--out", out];
        words.extend(EXPIRES);
        words.extend(roots.iter().flat_map(|root| ["--root", root]));
        words.extend(keys.iter().flat_map(|key| ["--key", key]));
        self.run(&words, "")
    }
}

/// What a machine finds in a bundle: the version, and the program.
pub(crate) fn installed(trust: UpdateTrust, bundle: &[u8]) -> (UpdateTrust, String, Vec<u8>) {
    let mut reader = BundleReader::open(bundle).expect("a bundle");
    let (trust, verified) = trust.refresh(UpdateClock::Known(NOW)).run(&mut reader);
    let verified = verified.unwrap_or_else(|error| panic!("{error}"));
    let machine = UpdateMachine {
        arch: "x86_64".to_owned(),
        board: "generic".to_owned(),
        form: "raw".to_owned(),
        provides: Vec::new(),
    };
    let running = "0.0.1".parse().expect("a version");
    let consent = DowngradeConsent::NotGiven;
    let chosen = verified.choose(&machine, &running, trust.floor(), consent);
    let chosen = chosen.unwrap_or_else(|error| panic!("{error}"));
    let release = chosen.target.release.clone().expect("a program");
    let mut program = Vec::new();
    let copied = reader.copy_target(&verified, &mut program);
    copied.unwrap_or_else(|error| panic!("{error}"));
    let sections = measured_sections(&program).expect("a unified kernel image");
    for (name, content) in &sections {
        let hash = HEXLOWER.encode(&Sha256::digest(content));
        assert_eq!(release.sections.get(*name), Some(&hash), "{name}");
    }
    assert_eq!(release.sections.len(), sections.len());
    let hash = HEXLOWER.encode(&authenticode(&program).expect("a program"));
    assert_eq!(release.authenticode, Some(hash));
    (trust, release.version.to_string(), program)
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("temporary paths are UTF-8")
}

#[test]
fn a_machine_takes_a_release_also_after_the_keys_were_replaced() {
    let machine = BuildMachine::new();
    let root = |words: &[&str]| {
        let made = machine.run(&[&["root", "--expires", "2032-01-31"], words].concat(), "");
        made.json()
    };
    let first = root(&["--key", "ada.pem", "--out", "1.root.json"]);
    assert_eq!(
        (&first["version"], &first["threshold"]),
        (&1.into(), &1.into())
    );
    let built = BuiltImageFolder::get();
    let program = built.file(ImageForm::Uki, OutputRole::Uki);
    let made = machine.bundle(
        text(&program),
        &["1.root.json"],
        "1",
        &["ada.pem"],
        "1.bundle",
    );
    let version = built.manifest().version.as_str();
    assert_eq!(made.json()["version"], version, "{made:?}");
    let trust = UpdateTrust::new(TrustAnchor::root(&machine.read("1.root.json")).expect("a root"));
    let (trust, found, bytes) = installed(trust, &machine.read("1.bundle"));
    assert_eq!(found, version);
    assert!(bytes == fs::read(&program).expect("it was built"));

    // The same inputs, from the folder of the image.
    let folder = text(built.folder());
    machine
        .bundle(folder, &["1.root.json"], "1", &["ada.pem"], "again.bundle")
        .json();
    assert!(machine.read("again.bundle") == machine.read("1.bundle"));

    // Both sign from now on. The old key signs the change, too.
    let changed = ["--key", "ada.pem", "--key", "ben.pem", "--threshold", "2"];
    let second = root(
        &[
            &changed[..],
            &["--previous", "1.root.json", "--out", "2.root.json"],
        ]
        .concat(),
    );
    assert_eq!(
        (&second["version"], &second["threshold"]),
        (&2.into(), &2.into())
    );
    let roots = ["2.root.json", "1.root.json"];
    let one = machine.bundle(folder, &roots, "2", &["ada.pem"], "x");
    assert_eq!(one.status, USAGE, "{one:?}");
    assert!(one.errors.contains("2 have to sign"), "{one:?}");
    machine
        .bundle(folder, &roots, "2", &["ada.pem", "ben.pem"], "2.bundle")
        .json();
    installed(trust, &machine.read("2.bundle"));
}

/// What a release needs is a signed part of its description, and a machine that does not know a name takes no byte of it.
#[test]
fn a_machine_refuses_a_release_that_needs_what_it_does_not_know() {
    let machine = BuildMachine::new();
    let root = ["root", "--expires", "2032-01-31", "--key", "ada.pem"];
    let root = machine.run(&[&root[..], &["--out", "1.root.json"]].concat(), "");
    assert_eq!(root.status, 0, "{root:?}");
    let program = BuiltImageFolder::get().file(ImageForm::Uki, OutputRole::Uki);
    let words = [
        &["bundle", text(&program), "--number", "1"][..],
        &["--key", "ada.pem", "--root", "1.root.json"],
        &["--out", "1.bundle"],
        &EXPIRES,
    ]
    .concat();
    let wrong = machine.refused(&[&words[..], &["--needs", "Loader 9"]].concat());
    assert!(wrong.contains("'needs' has"), "{wrong}");
    let needs = ["--needs", "loader-9", "--needs", "shelf"];
    let made = machine.run(&[&words[..], &needs].concat(), "");
    assert_eq!(made.status, 0, "{made:?}");

    let trust = UpdateTrust::new(TrustAnchor::root(&machine.read("1.root.json")).expect("a root"));
    let bundle = machine.read("1.bundle");
    let mut reader = BundleReader::open(&*bundle).expect("a bundle");
    let (_, verified) = trust.refresh(UpdateClock::Known(NOW)).run(&mut reader);
    let verified = verified.unwrap_or_else(|error| panic!("{error}"));
    let mut kind = UpdateMachine {
        arch: "x86_64".to_owned(),
        board: "generic".to_owned(),
        form: "raw".to_owned(),
        provides: vec!["shelf".to_owned()],
    };
    let running = "0.0.1".parse().expect("a version");
    let consent = DowngradeConsent::NotGiven;
    let chosen = verified.choose(&kind, &running, None, consent);
    let refused = chosen.expect_err("one name is not known").to_string();
    assert!(refused.contains(" needs loader-9, which"), "{refused}");
    kind.provides.push("loader-9".to_owned());
    let chosen = verified.choose(&kind, &running, None, consent);
    chosen.unwrap_or_else(|error| panic!("{error}"));
}

/// The key of the timestamp cannot make a release, and makes its timestamp again.
#[test]
fn a_timestamp_is_renewed_by_its_key_alone() {
    let machine = BuildMachine::new();
    let root = |words: &[&str]| {
        let expires = ["root", "--expires", "2032-01-31"];
        machine.run(&[&expires[..], words].concat(), "").json()
    };
    let of_ben = root(&["--key", "ben.pem", "--out", "ben.json"]);
    let ben = of_ben["keys"][0].as_str().expect("a key");
    root(&[
        "--key",
        "ada.pem",
        "--timestamp-key",
        ben,
        "--out",
        "1.root.json",
    ]);
    let program = BuiltImageFolder::get().file(ImageForm::Uki, OutputRole::Uki);
    let bundle =
        |keys: &[&str]| machine.bundle(text(&program), &["1.root.json"], "1", keys, "1.bundle");
    assert_eq!(bundle(&["ben.pem"]).status, USAGE);
    bundle(&["ada.pem", "ben.pem"]).json();

    let renew = |key: &str, release: &str, number: &str| {
        let words = [
            &["renew", "1.bundle", "--root", "1.root.json"][..],
            &["--key", key, "--release", release, "--number", number],
            &["--timestamp-expires", "2031-06-30", "--out", "2.bundle"],
        ];
        machine.run(&words.concat(), "")
    };
    for (key, release, number, said) in [
        ("ada.pem", "1", "2", "belong to the role 'timestamp'"),
        ("ben.pem", "1", "1", "is not higher"),
        ("ben.pem", "2", "3", "is that of release 1"),
    ] {
        let refused = renew(key, release, number);
        assert_eq!(refused.status, USAGE, "{refused:?}");
        assert!(refused.errors.contains(said), "{refused:?}");
    }
    assert!(!machine.file("2.bundle").exists());
    let renewed = renew("ben.pem", "1", "2").json();
    assert_eq!(
        (&renewed["release"], &renewed["number"]),
        (&1.into(), &2.into())
    );
    assert_eq!(renewed["timestamp_expires"], "2031-06-30T00:00:00Z");
    let anchor = TrustAnchor::root(&machine.read("1.root.json")).expect("a root");
    let (trust, ..) = installed(UpdateTrust::new(anchor), &machine.read("1.bundle"));
    let (.., renewed) = installed(trust, &machine.read("2.bundle"));
    assert!(renewed == fs::read(&program).expect("it was built"));
}

/// Two people with one key each, on one computer each. Only public keys and unfinished files go from one to the other.
struct TwoSigners {
    ada: BuildMachine,
    ben: BuildMachine,
    /// The public keys.
    of_ada: String,
    of_ben: String,
}

impl TwoSigners {
    fn new() -> Self {
        let [ada, ben] = [BuildMachine::new(), BuildMachine::new()];
        Self {
            of_ada: ada.public_key("ada.pem"),
            of_ben: ben.public_key("ben.pem"),
            ada,
            ben,
        }
    }

    /// Ada begins a root document or a bundle, which is refused unless she says that others sign, too.
    fn begun(&self, words: &[&str], refusal: &str) -> Value {
        let said = self.ada.refused(words);
        assert!(said.contains(refusal), "{said}");
        let made = self.ada.run(&[words, &["--incomplete"]].concat(), "");
        made.json()
    }

    /// Ben signs what Ada has begun, and Ada gets it back.
    fn completed(&self, file: &str, options: &[&str]) -> Value {
        fs::write(self.ben.file(file), self.ada.read(file)).expect("the folder is ours");
        // Another key, which has the name of Ada's on this computer.
        let foreign = ["cosign", file, "--key", "ada.pem"];
        let foreign = self.ben.refused(&[&foreign[..], options].concat());
        assert!(foreign.contains("does not name"), "{foreign}");
        let words = [&["cosign", file, "--key", "ben.pem"][..], options].concat();
        let whole = self.ben.run(&words, "").json();
        assert_eq!(whole["missing"].as_array().map(Vec::len), Some(0));
        let done = self.ben.refused(&words);
        assert!(done.contains("nothing is missing"), "{done}");
        fs::write(self.ada.file(file), self.ben.read(file)).expect("the folder is ours");
        whole
    }

    fn trust(&self) -> UpdateTrust {
        let anchor = TrustAnchor::root(&self.ada.read("1.root.json"));
        UpdateTrust::new(anchor.expect("both have signed"))
    }

    /// The bundle is signed only beside the root in the signer's own files, and not beside one that the first signer made.
    fn assert_other_root_refused(&self) {
        let other = [
            &["root", "--key", "ada.pem", "--trust", &self.of_ada][..],
            &["--trust", &self.of_ben, "--expires", "2031-12-31"],
            &["--out", "other.json"],
        ];
        self.ada.run(&other.concat(), "").json();
        let words = ["cosign", "1.bundle", "--key", "ada.pem"];
        let refused = self.ada.refused(&words);
        assert!(refused.contains("add --root"), "{refused}");
        let refused = self
            .ada
            .refused(&[&words[..], &["--root", "other.json"]].concat());
        for root in ["1.root.json", "other.json"] {
            let hash = HEXLOWER.encode(&Sha256::digest(self.ada.read(root)));
            assert!(refused.contains(&hash), "{root}: {refused}");
        }
    }

    /// A machine finds one of two signatures on Ada's bundle.
    fn assert_half_signed(&self) {
        let bundle = self.ada.read("1.bundle");
        let mut reader = BundleReader::open(&*bundle).expect("a bundle");
        let clock = UpdateClock::Known(NOW);
        let (_, verified) = self.trust().refresh(clock).run(&mut reader);
        let error = verified.expect_err("one signature is missing");
        assert!(
            matches!(error, UpdateError::Signatures { valid: 1, .. }),
            "{error}"
        );
    }
}

#[test]
fn two_people_sign_a_root_and_a_release_on_two_computers() {
    let people = TwoSigners::new();
    let root = [
        &["root", "--key", "ada.pem", "--threshold", "2"][..],
        &["--trust", &people.of_ada, "--trust", &people.of_ben],
        &["--expires", "2032-01-31", "--out", "1.root.json"],
    ];
    let begun = people.begun(&root.concat(), "has 1 valid signatures");
    let missing = &begun["missing"][0];
    assert_eq!(
        (&missing["valid"], &missing["threshold"]),
        (&1.into(), &2.into()),
        "{begun:#}"
    );
    assert_eq!(missing["keys"][0], people.of_ben, "{begun:#}");
    let whole = people.completed("1.root.json", &[]);
    assert_eq!(whole["roles"]["targets"]["threshold"], 2, "{whole:#}");

    let program = BuiltImageFolder::get().file(ImageForm::Uki, OutputRole::Uki);
    let bundle = [
        &["bundle", text(&program), "--number", "1"][..],
        &["--key", "ada.pem", "--root", "1.root.json"],
        &["--out", "1.bundle"],
        &EXPIRES,
    ];
    let begun = people.begun(&bundle.concat(), "2 have to sign");
    assert_eq!(begun["missing"].as_array().map(Vec::len), Some(3));
    people.assert_half_signed();
    people.assert_other_root_refused();
    let own_root = ["--root", "1.root.json"];
    let twice = ["cosign", "1.bundle", "--key", "ada.pem"];
    let twice = [&twice[..], &own_root].concat();
    let twice = people.ada.refused(&twice);
    assert!(twice.contains("have signed already"), "{twice}");
    people.assert_half_signed();
    let whole = people.completed("1.bundle", &own_root);
    let content = fs::read(&program).expect("it was built");
    let hash = HEXLOWER.encode(&Sha256::digest(&content));
    let described = &whole["targets"][0];
    assert_eq!(described["sha256"], hash, "{whole:#}");
    assert_eq!(described["floor"], Value::Null, "{whole:#}");
    assert_eq!(
        described["needs"].as_array().map(Vec::len),
        Some(0),
        "{whole:#}"
    );
    let (.., found) = installed(people.trust(), &people.ada.read("1.bundle"));
    assert!(found == content);
}

/// The first signer keeps the bundle with the delta back, and the second one gets the program alone.
fn assert_delta_needed(machine: &BuildMachine, file: &str) {
    let before = machine.read("1.bundle");
    let words = [
        "cosign",
        "1.bundle",
        "--root",
        "1.root.json",
        "--key",
        "ben.pem",
    ];
    let unseen = machine.refused(&words);
    let base = file.strip_prefix("from-").expect("the name of a delta");
    for said in [
        &*format!("alknet.from_{}.delta", &base[..16]),
        "name all bundles of the release in one call",
    ] {
        assert!(unseen.contains(said), "{said}: {unseen}");
    }
    assert!(machine.read("1.bundle") == before, "nothing was signed");
}

/// The second of two signers, who sees the program beside the delta.
fn cosign_with_delta(machine: &BuildMachine, file: &str) {
    let own_root = ["--root", "1.root.json", "--key", "ben.pem"];
    let unseen = machine.refused(&[&["cosign", file][..], &own_root].concat());
    assert!(
        unseen.contains("Do not sign what you cannot see"),
        "{unseen}"
    );
    let twice = ["cosign", "1.bundle", file, file];
    let twice = machine.refused(&[&twice[..], &own_root].concat());
    assert!(twice.contains("give each bundle once"), "{twice}");
    assert_delta_needed(machine, file);
    assert_replaced_together(machine, file);
    let signed = cosign_as_on_the_page(PAGE, &machine.file("")).json();
    assert_eq!(signed["missing"].as_array().map(Vec::len), Some(0));
    assert_eq!(signed["others"][0]["file"], file, "{signed:#}");
    let targets = signed["targets"].as_array().expect("a list");
    assert_eq!(targets.len(), 2, "{signed:#}");
}

/// The machine runs a program that differs by a byte behind its end.
#[test]
fn a_bundle_with_a_delta_makes_the_program_from_an_earlier_one() {
    let machine = BuildMachine::new();
    let root = [
        &["root", "--key", "ada.pem", "--key", "ben.pem"][..],
        &["--threshold", "2", "--expires", "2032-01-31"],
        &["--out", "1.root.json"],
    ];
    machine.run(&root.concat(), "").json();
    let built = BuiltImageFolder::get();
    let program = built.file(ImageForm::Uki, OutputRole::Uki);
    let content = fs::read(&program).expect("it was built");
    let old = [&content[..], &[7]].concat();
    fs::write(machine.file("old.efi"), &old).expect("the folder is ours");
    let base = HEXLOWER.encode(&Sha256::digest(&old));
    let words = [
        &[
            "bundle",
            text(&program),
            "--number",
            "1",
            "--out",
            "1.bundle",
        ][..],
        &["--key", "ada.pem", "--root", "1.root.json"],
        &["--incomplete"],
        &EXPIRES,
    ];
    let bundle = |from: &[&str]| machine.run(&[&words.concat()[..], from].concat(), "");
    let made = bundle(&["--from", "old.efi"]).json();
    let file = format!("from-{base}.tar");
    assert_eq!(made["deltas"][0]["base"], base, "{made:#}");
    assert!(
        made["deltas"][0]["file"]
            .as_str()
            .is_some_and(|it| it.ends_with(&file)),
        "{made:#}"
    );
    cosign_with_delta(&machine, &file);

    let anchor = || TrustAnchor::root(&machine.read("1.root.json")).expect("a root");
    let (trust, _, whole) = installed(UpdateTrust::new(anchor()), &machine.read("1.bundle"));
    assert!(whole == content, "a bundle beside a delta is as before");
    let delta = machine.read(&file);
    assert!(delta.len() < 100_000, "{} bytes", delta.len());
    let mut reader = BundleReader::open(&*delta).expect("a bundle");
    let (_, verified) = trust.refresh(UpdateClock::Known(NOW)).run(&mut reader);
    let verified = verified.expect("the documents of the other bundle");
    let target = reader.next_target(&verified).expect("signed").cloned();
    let described = target.and_then(|target| target.delta).expect("a delta");
    assert_eq!(described.base, base);
    let wanted = verified.target(&described.target).expect("named");
    let parts = ProgramParts::unpack(&old).expect("a program");
    let mut program = Vec::new();
    let applied = reader.read_delta(&verified, |delta| {
        apply_delta(delta, &parts.as_old(), wanted.bytes, &mut program)
    });
    applied.expect("the signed delta").expect("it fits");
    assert!(program == content);

    for (from, said) in [
        (
            &["--from", text(&machine.file("1.bundle"))][..],
            "no EFI program",
        ),
        (
            &["--from", "old.efi", "--from", "old.efi"],
            "is the same program",
        ),
        (
            &["--from", text(&built.file(ImageForm::Uki, OutputRole::Uki))],
            "itself",
        ),
    ] {
        let refused = bundle(from);
        assert_eq!(refused.status, USAGE, "{refused:?}");
        assert!(refused.errors.contains(said), "{said}: {refused:?}");
    }
}

#[test]
fn the_words_of_a_vault_make_the_root_document() {
    let machine = BuildMachine::new();
    let words = [
        "root",
        "--mnemonic-stdin",
        "--expires",
        "2032-01-31",
        "--out",
        "root.json",
    ];
    let made = machine.run(&words, WORDS).json();
    let key = made["keys"][0].as_str().expect("a key").to_owned();
    let mut show = Command::new(binary());
    show.args([
        "vault",
        "key",
        "show",
        "image-signing",
        "--mnemonic-stdin",
        "--json",
    ]);
    let shown = run_with_input(show, WORDS).json();
    assert_eq!(
        key,
        format!("ed25519:{}", shown["hex"].as_str().expect("hex"))
    );
}

#[test]
fn each_bad_input_is_one_error_and_leaves_no_bundle() {
    let machine = BuildMachine::new();
    let root = [
        "root",
        "--key",
        "ada.pem",
        "--expires",
        "2032-01-31",
        "--out",
        "1.root.json",
    ];
    machine.run(&root, "").json();
    fs::write(machine.file("text"), "no program").expect("the folder is ours");
    let base = [
        "bundle", "text", "--number", "1", "--out", "x", "--key", "ada.pem",
    ];
    let with = |words: &[&str]| machine.refused(&[&base[..], &EXPIRES, words].concat());
    for (words, said) in [
        (&["--root", "1.root.json"][..], "text cannot be released"),
        (&["--root", "text"], "no root document"),
        (
            &["--root", "1.root.json", "--root", "1.root.json"],
            "has version 1, too",
        ),
        (&[], "--root"),
        (
            &["--root", "1.root.json", "--floor", "newest"],
            "is no version",
        ),
    ] {
        let errors = with(words);
        assert!(errors.contains(said), "{words:?}: {errors}");
    }
    let said =
        machine.refused(&[&["root", "--key", "text"][..], &root[3..5], &["--out", "x"]].concat());
    assert!(said.contains("private Ed25519 key"), "{said}");
    let late = ["--expires", "soon"];
    let said = machine.refused(&[&root[..3], &late, &root[5..]].concat());
    assert!(said.contains("2028-01-31"), "{said}");
    let said = machine.refused(&[&root[..], &["--threshold", "2"]].concat());
    assert!(said.contains("threshold"), "{said}");
    assert!(!machine.file("x").exists());
}
