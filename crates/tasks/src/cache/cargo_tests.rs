//! The behaviour of the real cargo with a target folder that was pruned.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use xtask::last_use::{BuildSet, LastUse};

use super::candidates::{CandidateKind, EvictionRank, list};
use super::marked::{MarkedCache, mark};
use super::needs::CacheNeeds;
use super::prune::prune;
use super::units;
use crate::scratch::ScratchFolder;

/// A workspace with a library, a build script, a procedural macro, a program, its test and its
/// example, beside a foreign package that is no member.
const FILES: [(&str, &str); 12] = [
    (
        "own/Cargo.toml",
        "[workspace]\nresolver = \"3\"\nmembers = [\"app\", \"lib\", \"derive\"]\n",
    ),
    // As in the real workspace: programs that run while building get their own folder.
    (
        "own/.cargo/config.toml",
        "[build]\ntarget = \"host-tuple\"\n",
    ),
    (
        "own/lib/Cargo.toml",
        "[package]\nname = \"made-lib\"\nversion = \"1.0.0\"\nedition = \"2024\"\n\
         [features]\nextra = []\n[dependencies]\nmade-third = { path = \"../../third\" }\n",
    ),
    (
        "own/lib/build.rs",
        "fn main() {\n println!(\"cargo::rerun-if-changed=build.rs\");\n \
         let out = std::env::var(\"OUT_DIR\").unwrap();\n \
         std::fs::write(format!(\"{out}/number.rs\"), \"7\").unwrap();\n}\n",
    ),
    (
        "own/lib/src/lib.rs",
        "pub fn number() -> u8 { made_third::one() * \
         include!(concat!(env!(\"OUT_DIR\"), \"/number.rs\")) }\n",
    ),
    (
        "own/derive/Cargo.toml",
        "[package]\nname = \"made-derive\"\nversion = \"1.0.0\"\nedition = \"2024\"\n\
         [lib]\nproc-macro = true\n",
    ),
    (
        "own/derive/src/lib.rs",
        "use proc_macro::TokenStream;\n#[proc_macro]\npub fn nothing(_: TokenStream) -> TokenStream \
         { TokenStream::new() }\n",
    ),
    (
        "own/app/src/main.rs",
        "made_derive::nothing!();\nfn main() { println!(\"{}\", made_lib::number()); }\n",
    ),
    (
        "own/app/examples/show.rs",
        "fn main() { made_lib::number(); }\n",
    ),
    (
        "own/app/tests/it.rs",
        "#[test]\nfn it() { assert_eq!(made_lib::number(), 7); }\n",
    ),
    (
        "third/Cargo.toml",
        "[package]\nname = \"made-third\"\nversion = \"1.0.0\"\nedition = \"2024\"\n\
         [features]\nmore = []\n[workspace]\n",
    ),
    ("third/src/lib.rs", "pub fn one() -> u8 { 1 }\n"),
];

/// The program's manifest in two versions: another feature gives new hashes to the library with the
/// feature and to everything above it.
fn manifest(lib: &str, third: &str) -> String {
    format!(
        "[package]\nname = \"made-app\"\nversion = \"1.0.0\"\nedition = \"2024\"\n[dependencies]\n\
         made-derive = {{ path = \"../derive\" }}\n\
         made-lib = {{ path = \"../lib\", features = [{lib}] }}\n\
         made-third = {{ path = \"../../third\", features = [{third}] }}\n"
    )
}

/// A folder in the cache, in which no other user can write, nor in any above it. Cargo takes
/// settings from all of them, and one setting is the name of a program to start. Any user could
/// write such a setting in the folder of temporary files.
struct PrivateCargoTree {
    base: ScratchFolder,
}

impl PrivateCargoTree {
    fn new() -> Self {
        let cache = xtask::cache::folder().expect("the run's cache");
        let base = ScratchFolder::new(&cache, "cargo-test-").expect("a folder in the cache");
        let tree = Self { base };
        mark(&tree.cache());
        for (name, text) in FILES {
            tree.write(name, text);
        }
        tree
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.base.path().join(name);
        fs::create_dir_all(path.parent().expect("it lies in a folder")).expect("writable");
        fs::write(path, text).expect("writable");
    }

    fn cache(&self) -> PathBuf {
        self.base.path().join("cache")
    }

    fn target(&self) -> PathBuf {
        self.cache().join("target")
    }

    /// Builds, checks and builds the tests, and records the used units. Returns how many crates
    /// were compiled.
    fn build(&self) -> usize {
        let sets: [(BuildSet, &[&str]); 3] = [
            (BuildSet::Binary, &["build", "--workspace"]),
            // The lints of a user.
            (
                BuildSet::Commands,
                &["check", "--workspace", "--all-targets"],
            ),
            (BuildSet::Tests, &["test", "--workspace", "--no-run"]),
        ];
        sets.map(|(set, words)| {
            let messages = self.cargo(words);
            LastUse::for_target(&self.target())
                .note(set, &messages)
                .expect("writable");
            messages.matches("\"fresh\":false").count()
        })
        .iter()
        .sum()
    }

    fn cargo(&self, words: &[&str]) -> String {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(cargo);
        command
            .args(words)
            .args(["--release", "--offline"])
            .arg("--message-format=json")
            .current_dir(self.base.path().join("own"))
            .env("CARGO_TARGET_DIR", self.target());
        for variable in ["CARGO_BUILD_TARGET", "CARGO_ENCODED_RUSTFLAGS", "RUSTFLAGS"] {
            command.env_remove(variable);
        }
        let output = command.output().expect("cargo runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        let messages = String::from_utf8(output.stdout).expect("JSON");
        // Cargo runs the build script again, and writes no message about it.
        let compiled = said.contains("Compiling") || said.contains("Checking");
        assert_eq!(compiled, messages.contains("\"fresh\":false"), "{said}");
        messages
    }

    fn needs(&self) -> CacheNeeds {
        CacheNeeds {
            units: LastUse::for_target(&self.target())
                .read()
                .expect("readable"),
            members: ["made-app", "made-derive", "made-lib"]
                .map(str::to_owned)
                .into(),
            ..CacheNeeds::default()
        }
    }
}

#[test]
fn after_pruning_a_build_of_the_same_tree_compiles_nothing() {
    let tree = PrivateCargoTree::new();
    tree.write("own/app/Cargo.toml", &manifest("", ""));
    assert!(tree.build() > 10, "everything is new");
    every_unit_is_named_in_its_messages(&tree);
    assert_eq!(tree.build(), 0, "and then it is not");
    let first = units::find(&tree.target()).expect("readable").len();
    tree.write("own/app/Cargo.toml", &manifest("\"extra\"", "\"more\""));
    assert!(tree.build() > 5, "another version");

    let needs = tree.needs();
    assert_eq!(needs.units.missing, [BuildSet::Gpu]);
    let candidates = list(&tree.cache(), &needs).expect("readable");
    let of_rank = |rank| {
        candidates
            .iter()
            .filter(move |candidate| candidate.rank == rank)
    };
    assert_eq!(
        candidates.len(),
        units::find(&tree.target()).expect("readable").len()
    );
    assert!(
        of_rank(EvictionRank::Former).count() > 3 && of_rank(EvictionRank::Unneeded).count() > 0
    );
    // Unchanged units are needed in both versions.
    assert!(candidates.len() < 2 * first && of_rank(EvictionRank::Needed).count() >= first);
    let other = |name: &str| name.contains("made-third") || name.contains("made_third");
    assert!(of_rank(EvictionRank::Unneeded).all(|candidate| other(&candidate.name)));
    assert!(of_rank(EvictionRank::Former).all(|candidate| candidate.kind == CandidateKind::FormerUnit && !other(&candidate.name)));

    // The limit cannot be met, so everything goes that may.
    let cache = tree.cache();
    let cache = MarkedCache::find(&cache).expect("marked");
    let pruned = prune(cache, &needs, 1, false).expect("it can be pruned");
    pruned.check().expect_err("the rest is needed");
    let left = list(&tree.cache(), &needs).expect("readable");
    assert_eq!(left.len(), of_rank(EvictionRank::Needed).count());
    assert!(
        left.iter()
            .all(|candidate| candidate.rank == EvictionRank::Needed)
    );

    assert_eq!(tree.build(), 0, "nothing that this tree needs was removed");
    let program = program(&tree.target());
    let output = Command::new(&program).output().expect("it runs");
    assert_eq!(output.stdout, b"7\n");
    tree.write("own/app/Cargo.toml", &manifest("", ""));
    assert!(tree.build() > 5, "the former version was removed");
}

/// The program outside of `deps`.
fn program(target: &Path) -> PathBuf {
    let layouts = units::layouts(target).expect("readable");
    let mut programs = layouts.iter().map(|layout| layout.join("made-app"));
    programs.find(|path| path.exists()).expect("it was built")
}

/// Checks this right after a build of all.
fn every_unit_is_named_in_its_messages(tree: &PrivateCargoTree) {
    let recorded = LastUse::for_target(&tree.target())
        .read()
        .expect("readable");
    let found = units::find(&tree.target()).expect("readable");
    for (unit, artefacts) in &found {
        assert!(recorded.needed.contains(unit), "{unit:?} {artefacts:?}");
        assert!(artefacts.package.is_some(), "{unit:?} {artefacts:?}");
    }
    assert_eq!(found.len(), recorded.needed.len());
}

/// Set in the process that builds the tree while others write among temporary files.
const BUILDS: &str = "ALKNET_TEST_BUILDS";

/// A setting among temporary files, which every user can write there.
#[test]
fn settings_among_temporary_files_start_no_program() {
    let test = "cache::cargo_tests::settings_among_temporary_files_start_no_program";
    if std::env::var_os(BUILDS).is_some() {
        let tree = PrivateCargoTree::new();
        tree.write("own/app/Cargo.toml", &manifest("", ""));
        tree.cargo(&["check", "--package", "made-derive"]);
    } else {
        let temporary = tempfile::tempdir().expect("a temporary folder");
        let at = |name: &str| temporary.path().join(name);
        let write = |name: &str, text: &str| {
            fs::create_dir_all(at(name).parent().expect("it lies in a folder")).expect("writable");
            fs::write(at(name), text).expect("writable");
        };
        write(
            "wrapper",
            &format!("#!/bin/sh\ntouch {}\nexec \"$@\"\n", at("it-ran").display()),
        );
        fs::set_permissions(at("wrapper"), fs::Permissions::from_mode(0o755)).expect("ours");
        let program = at("wrapper").display().to_string();
        write(
            ".cargo/config.toml",
            &format!("[build]\nrustc-wrapper = {program:?}\n"),
        );
        // The effect of the setting on a developer who runs cargo below it.
        write(
            "made/Cargo.toml",
            "[package]\nname = \"made\"\n[lib]\npath = \"lib.rs\"\n[workspace]\n",
        );
        write("made/lib.rs", "");
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut check = Command::new(cargo);
        check.args(["check", "--offline"]).current_dir(at("made"));
        check.env("CARGO_TARGET_DIR", at("target"));
        let checked = check.output().expect("cargo runs");
        assert!(at("it-ran").exists(), "{checked:?}");
        fs::remove_file(at("it-ran")).expect("it is there");

        let child = Command::new("/proc/self/exe")
            .args(["--exact", test])
            .env(BUILDS, "1")
            .env("TMPDIR", temporary.path())
            .output()
            .expect("this program runs");
        assert!(child.status.success(), "{child:?}");
        // With another name the process would run no test, and end as well.
        let said = String::from_utf8_lossy(&child.stdout);
        assert!(said.contains("1 passed"), "{said}");
        assert!(!at("it-ran").exists(), "a program of others ran");
    }
}
