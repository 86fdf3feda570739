//! `--since REF`: the packages that a change can have broken.
//!
//! These are the packages with changed files, and all that depend on them. A file that is in no package touches
//! every package whose source names it. A page of the docs touches their tests alone, and the program that reads
//! all pages. Tests that start the binary or boot an image depend on everything that is in it, and those that use a
//! third party's program on the commands that fetch it. Cargo knows neither.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;

use super::metadata;
use crate::context::XtaskContext;
use crate::failure::{Result, TaskError};

/// Files that decide about every package.
const EVERYTHING: [&str; 4] = [
    ".cargo/config.toml",
    "Cargo.lock",
    "Cargo.toml",
    "deny.toml",
];

/// The texts in a package's source if its tests start the binary or an image with it.
const STARTS_THE_BINARY: [&str; 3] = ["ALKNET_TEST_BIN", "ALKNET_TEST_IMAGE_DIR", "alknet_tests::"];

/// The prefix of variables that name programs and packages of third parties for tests, and the rest of those that
/// mean something else.
const TEST_VARIABLES: &str = "ALKNET_TEST_";
const NO_PROGRAM: [&str; 5] = ["SKIPS", "SLOWDOWN", "MACHINES_", "SUPPORT_", "GROUP_"];

/// The folder of pages and of examples. [`HOUSE`] reads all pages, and any other reader of a file there names it.
const DOCUMENTATION: &str = "docs";

/// The extension of a page of the docs. Tests read pages, and no library contains one.
const PAGE: &str = "md";

/// Packages that decide the bytes of the binary and of the images. The first is the binary's own. Cargo knows no
/// dependency between the others and the tests, which find the files in the cache.
const MAKE_THE_IMAGE: [&str; 5] = [
    "alknet",
    "alknet-gpu",
    "alknet-image",
    COMMANDS,
    "alknet-vulkan",
];

/// The package of the commands, which builds the kernel, assembles images and fetches the programs that tests use
/// as clients.
const COMMANDS: &str = "alknet-tasks";

/// The folder of the kernel's configuration. It is in no package, and [`COMMANDS`] reads it.
const KERNEL_CONFIGURATION: &str = "kernel-config";

/// The package whose program [`HOUSE`] reads every package's sources and manifest. A change to a package that is
/// not in the image does not select it: that would bring the machines' tests as well.
const READS_EVERY_PACKAGE: &str = "alknet-tests";

/// Its program that reads the tree, and all pages of the docs. It starts no machine.
const HOUSE: &str = "house";

/// The folder of that program's source, in its package's folder.
const HOUSE_SOURCES: &str = "tests/house";

/// A package of the workspace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct WorkspacePackage {
    folder: PathBuf,
    /// Packages of the workspace that it depends on, for tests too.
    needs: BTreeSet<String>,
    /// All of its Rust source.
    text: String,
    /// The part of that which is [`HOUSE`]'s, which runs for every page.
    house: String,
}

impl WorkspacePackage {
    /// Whether a program other than [`HOUSE`] names a page.
    fn names_page(&self, name: &str) -> bool {
        self.text.matches(name).count() > self.house.matches(name).count()
    }
}

/// What to test and what not, by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PackageChoice {
    pub(super) taken: BTreeSet<String>,
    pub(super) left_out: BTreeSet<String>,
    /// Whether only [`HOUSE`] of [`READS_EVERY_PACKAGE`] runs: a page has changed, and nothing that its other
    /// programs test.
    house_alone: bool,
}

impl PackageChoice {
    /// Whether the tests of a program run, if its package is taken.
    pub(super) fn takes(&self, package: &str, target: &str) -> bool {
        !self.house_alone || package != READS_EVERY_PACKAGE || target == HOUSE
    }

    /// A line about what does not run besides the packages that are left out.
    fn beyond_packages(&self) -> String {
        let mut text = "left out: examples in the documentation".to_owned();
        if self.left_out.contains(READS_EVERY_PACKAGE) {
            text += ", and what `alknet-tests house` holds of the sources and manifests of all packages";
        } else if self.house_alone {
            text += ", and every program of `alknet-tests` but `house`, which reads the pages of the docs";
        }
        text
    }
}

#[derive(Deserialize)]
struct WorkspaceMetadata {
    /// In cargo's form: without symbolic links, which the cache's path may have.
    workspace_root: PathBuf,
    packages: Vec<PackageEntry>,
}

#[derive(Deserialize)]
struct PackageEntry {
    name: String,
    manifest_path: PathBuf,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
}

/// Chooses by what differs from `reference`, committed or not.
pub(super) fn choose(cx: &XtaskContext, reference: &str) -> Result<PackageChoice> {
    let changed = changed(cx.root(), reference)?;
    let choice = choice(&packages(&mut cx.cargo("metadata"))?, &changed);
    cx.board().print(&choice.beyond_packages());
    Ok(choice)
}

/// Every file that differs from `reference`, or that only one of both has. Both names of a moved file count: the
/// package that it came from has changed, too.
fn changed(root: &Path, reference: &str) -> Result<Vec<String>> {
    let mut files = git(
        root,
        &[
            "diff",
            "--name-only",
            "--no-renames",
            "-z",
            // The reference comes from the command line: "--output=FILE" would write a file.
            "--end-of-options",
            reference,
            "--",
        ],
    )?;
    files.extend(git(
        root,
        &["ls-files", "-z", "--others", "--exclude-standard"],
    )?);
    Ok(files)
}

fn git(root: &Path, arguments: &[&str]) -> Result<Vec<String>> {
    let output = crate::git(root)
        .args(arguments)
        .output()
        .map_err(TaskError::io("run git"))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        return Err(TaskError::Arguments(format!(
            "--since wants a commit, a branch or a tag of this clone: {}",
            stderr.trim()
        )));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let names = text.split('\0').filter(|name| !name.is_empty());
    Ok(names.map(str::to_owned).collect())
}

/// The packages of a workspace, from `cargo metadata`.
fn packages(cargo_metadata: &mut Command) -> Result<BTreeMap<String, WorkspacePackage>> {
    let metadata: WorkspaceMetadata = metadata::read_metadata(cargo_metadata)?;
    let names: BTreeSet<String> = metadata.packages.iter().map(|p| p.name.clone()).collect();
    let root = &metadata.workspace_root;
    let package = |listed: PackageEntry| {
        let folder = listed.manifest_path.parent().unwrap_or(root).to_owned();
        let mut text = String::new();
        read_sources(&folder, &mut text)
            .map_err(TaskError::io(format!("read {}", folder.display())))?;
        let mut house = String::new();
        if listed.name == READS_EVERY_PACKAGE {
            let folder = folder.join(HOUSE_SOURCES);
            read_sources(&folder, &mut house)
                .map_err(TaskError::io(format!("read {}", folder.display())))?;
        }
        let needs = listed.dependencies.into_iter().map(|needed| needed.name);
        let package = WorkspacePackage {
            needs: needs.filter(|name| names.contains(name)).collect(),
            folder: folder.strip_prefix(root).unwrap_or(&folder).to_owned(),
            text,
            house,
        };
        Ok((listed.name, package))
    };
    metadata.packages.into_iter().map(package).collect()
}

/// The Rust source below a folder, without that of packages in it.
fn read_sources(folder: &Path, text: &mut String) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            if !path.join("Cargo.toml").exists() {
                read_sources(&path, text)?;
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text.push_str(&fs::read_to_string(&path)?);
        }
    }
    Ok(())
}

fn choice(packages: &BTreeMap<String, WorkspacePackage>, changed: &[String]) -> PackageChoice {
    let mut taken = BTreeSet::new();
    let mut read_pages = BTreeSet::new();
    for file in changed {
        if EVERYTHING.contains(&file.as_str()) {
            taken.extend(packages.keys().cloned());
        }
        if Path::new(file).starts_with(KERNEL_CONFIGURATION) {
            taken.insert(COMMANDS.to_owned());
        }
        if is_page(file) {
            let name = file_name(file);
            let read = packages
                .iter()
                .filter(|(_, package)| package.names_page(name));
            read_pages.extend(read.map(|(name, _)| name.clone()));
        } else {
            taken.extend(touched(packages, file));
        }
    }
    spread(packages, &mut taken);
    taken.extend(read_pages);
    // If its other programs name a page, all of them run.
    let house_alone = changed.iter().any(|file| is_read_by_house(file))
        && packages.contains_key(READS_EVERY_PACKAGE)
        && taken.insert(READS_EVERY_PACKAGE.to_owned());
    let left_out = packages.keys().filter(|name| !taken.contains(*name));
    PackageChoice {
        left_out: left_out.cloned().collect(),
        taken,
        house_alone,
    }
}

/// Whether a file is a page of the docs, or one at the root like README.md.
fn is_read_by_house(file: &str) -> bool {
    let is_at_root = Path::new(file).components().count() == 1;
    is_page(file) && (is_at_root || Path::new(file).starts_with(DOCUMENTATION))
}

/// Whether a file is a page, in whatever folder.
fn is_page(file: &str) -> bool {
    Path::new(file).extension().is_some_and(|end| end == PAGE)
}

/// The package that contains a file. Without such a package, the packages whose source names it.
fn touched(packages: &BTreeMap<String, WorkspacePackage>, file: &str) -> Vec<String> {
    let path = Path::new(file);
    let around = packages
        .iter()
        .filter(|(_, package)| path.starts_with(&package.folder));
    let innermost = around.max_by_key(|(_, package)| package.folder.components().count());
    if let Some((name, _)) = innermost {
        return vec![name.clone()];
    }
    // A test may read a whole folder: kernel-config/*.config.
    let folder = path
        .components()
        .next()
        .map_or("", |first| first.as_os_str().to_str().unwrap_or_default());
    let name = file_name(file);
    let mut all = naming(packages, name);
    if folder != name && folder != DOCUMENTATION {
        all.extend(naming(packages, &format!("\"{folder}\"")));
    }
    all
}

fn file_name(file: &str) -> &str {
    let name = Path::new(file).file_name();
    name.and_then(|name| name.to_str()).unwrap_or(file)
}

/// The packages whose source contains `text`.
fn naming(packages: &BTreeMap<String, WorkspacePackage>, text: &str) -> Vec<String> {
    let naming = packages
        .iter()
        .filter(|(_, package)| package.text.contains(text));
    naming.map(|(name, _)| name.clone()).collect()
}

/// Whether tests in `text` use what [`COMMANDS`] fetches.
fn uses_programs(text: &str) -> bool {
    let mut variables = text.split(TEST_VARIABLES).skip(1);
    variables.any(|name| !NO_PROGRAM.iter().any(|other| name.starts_with(other)))
        || text.contains(alknet_qemu::FIRMWARE_VARIABLE)
}

/// Adds all that depends on the taken packages, until there is no more.
fn spread(packages: &BTreeMap<String, WorkspacePackage>, taken: &mut BTreeSet<String>) {
    loop {
        let before = taken.len();
        let image_differs = MAKE_THE_IMAGE.iter().any(|name| taken.contains(*name));
        let programs_differ = taken.contains(COMMANDS);
        for (name, package) in packages {
            // A search in all of a package's source takes long, so it comes last and where it decides.
            let starts = || {
                let mut words = STARTS_THE_BINARY.iter();
                words.any(|word| package.text.contains(word))
            };
            if taken.contains(name)
                || package.needs.iter().any(|needed| taken.contains(needed))
                || (image_differs && starts())
                || (programs_differ && uses_programs(&package.text))
            {
                taken.insert(name.clone());
            }
        }
        if taken.len() == before {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workspace() -> BTreeMap<String, WorkspacePackage> {
        let package = |folder: &str, needs: &[&str], text: &str| WorkspacePackage {
            folder: PathBuf::from(folder),
            needs: needs.iter().map(|name| (*name).to_owned()).collect(),
            text: text.to_owned(),
            house: String::new(),
        };
        [
            ("core", package("crates/core", &[], "")),
            ("call", package("crates/call", &["core"], "")),
            ("gateway", package("crates/http/gateway", &[], "")),
            ("http", package("crates/http", &["gateway"], "")),
            ("alknet", package("appliance", &["call"], "")),
            ("alknet-gpu", package("compute/gpu", &["alknet-vulkan"], "")),
            ("alknet-image", package("image", &[], "")),
            (
                "alknet-tasks",
                package("crates/tasks", &["alknet-image"], ""),
            ),
            ("alknet-vulkan", package("compute/driver", &[], "")),
            (
                "alknet-tests",
                package(
                    "tests",
                    &[],
                    "variable(\"ALKNET_TEST_BIN\") docs/testing.md",
                ),
            ),
            ("tensor", package("tensor", &[], "")),
        ]
        .map(|(name, mut package)| {
            if name == READS_EVERY_PACKAGE {
                package.house = "docs/promises.md".to_owned();
                package.text += &package.house;
            }
            (name.to_owned(), package)
        })
        .into()
    }

    fn taken(file: &str) -> Vec<String> {
        let choice = choice(&workspace(), &[file.to_owned()]);
        assert_eq!(
            choice.taken.len() + choice.left_out.len(),
            workspace().len()
        );
        choice.taken.into_iter().collect()
    }

    #[test]
    fn what_depends_on_a_change_is_tested_and_the_binarys_tests_are() {
        let names = ["alknet", "alknet-tests", "call", "core"];
        assert_eq!(taken("crates/core/src/lib.rs"), names);
        assert_eq!(taken("tensor/src/lib.rs"), ["tensor"]);
    }

    #[test]
    fn what_is_in_the_image_concerns_the_tests_that_boot_it() {
        for file in [
            "kernel-config/base.config",
            "compute/gpu/src/main.rs",
            "compute/driver/patches/one.patch",
            "crates/tasks/sources.toml",
            "image/src/lib.rs",
        ] {
            let taken = taken(file);
            assert!(
                taken.iter().any(|name| name == "alknet-tests"),
                "{file}: {taken:?}"
            );
            assert!(!taken.iter().any(|name| name == "tensor"), "{file}");
        }
    }

    #[test]
    fn what_no_package_stands_for_is_named() {
        let said = |file: &str| choice(&workspace(), &[file.to_owned()]).beyond_packages();
        for file in ["tensor/src/lib.rs", "appliance/src/main.rs"] {
            assert!(said(file).contains("examples in the documentation"));
        }
        assert!(said("tensor/src/lib.rs").contains("alknet-tests house"));
        assert!(!said("appliance/src/main.rs").contains("alknet-tests house"));
        assert!(said("docs/tensor.md").contains("every program of `alknet-tests` but `house`"));
    }

    #[test]
    fn a_page_that_no_source_names_is_read_by_one_program() {
        let of = |files: &[&str]| {
            let files = files.iter().map(|file| (*file).to_owned());
            choice(&workspace(), &files.collect::<Vec<_>>())
        };
        let choice = of(&["docs/tensor.md"]);
        assert_eq!(choice.taken, BTreeSet::from(["alknet-tests".to_owned()]));
        assert!(choice.takes("alknet-tests", "house") && choice.takes("tensor", "lib"));
        assert!(!choice.takes("alknet-tests", "machine"));
        // A change that selects the package selects all of its programs.
        for files in [
            &["docs/testing.md"][..],
            &["docs/tensor.md", "appliance/src/main.rs"],
        ] {
            assert!(of(files).takes("alknet-tests", "machine"), "{files:?}");
        }
        for file in ["README.md", "docs/promises.md"] {
            assert_eq!(of(&[file]), of(&["docs/tensor.md"]), "{file}");
        }
        assert!(of(&["docs/examples/alknet.js"]).taken.is_empty());
    }

    fn root() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
    }

    fn of_this_workspace() -> BTreeMap<String, WorkspacePackage> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut metadata = Command::new(cargo);
        metadata.arg("metadata").current_dir(root());
        packages(&mut metadata).expect("cargo lists the packages")
    }

    #[test]
    fn in_this_workspace_the_machines_are_tested_when_their_image_differs() {
        let packages = of_this_workspace();
        for name in MAKE_THE_IMAGE {
            assert!(packages.contains_key(name), "{name} has another name now");
        }
        for file in [
            "appliance/src/main.rs",
            "compute/driver/drivers.toml",
            "compute/gpu/src/main.rs",
            "crates/tasks/python.txt",
            "crates/tasks/sources.toml",
            "crates/tasks/src/image.rs",
            "crates/xtask/src/rustc.rs",
            "image/src/lib.rs",
            "kernel-config/base.config",
        ] {
            let there = root().join(file).exists();
            assert!(there, "{file} was moved: name another one here");
            let choice = choice(&packages, &[file.to_owned()]);
            for tests in ["alknet-tests", "alknet-sealed", "alknet-tpm"] {
                assert!(choice.taken.contains(tests), "{file}: {choice:?}");
            }
        }
    }

    #[test]
    fn in_this_workspace_a_pin_concerns_the_tests_of_what_it_pins() {
        let packages = of_this_workspace();
        let taken = choice(&packages, &["crates/tasks/sources.toml".to_owned()]).taken;
        let using = [
            "alknet-gpu",
            "alknet-image",
            "alknet-mcp",
            "alknet-init-net",
            "alknet-openapi",
            "alknet-qemu",
            "alknet-runtime",
            "alknet-tensor",
            "alknet-typedef",
        ];
        for name in using {
            assert!(taken.contains(name), "{name} is not in {taken:?}");
        }
        assert!(!taken.contains("alknet-call"), "{taken:?}");
    }

    #[test]
    fn in_this_workspace_a_page_concerns_the_tests_that_read_it_alone() {
        let packages = of_this_workspace();
        for (page, reads) in [
            ("docs/scripts.md", "alknet-runtime"),
            ("docs/configuration.md", "alknet-core"),
        ] {
            let choice = choice(&packages, &[page.to_owned()]);
            assert!(choice.taken.contains(reads), "{page}: {choice:?}");
            for other in ["alknet", "alknet-sealed", "alknet-tpm"] {
                assert!(!choice.taken.contains(other), "{page}: {choice:?}");
            }
        }
    }

    #[test]
    fn in_this_workspace_every_page_selects_the_program_that_reads_all() {
        let packages = of_this_workspace();
        let mut folders = vec![root().join(DOCUMENTATION)];
        let mut pages = 0;
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).expect("a folder of this repository") {
                let path = entry.expect("readable").path();
                let file = path.strip_prefix(root()).expect("it lies there");
                let file = file.to_str().expect("a plain name").to_owned();
                if path.is_dir() {
                    folders.push(path);
                } else if is_page(&file) {
                    pages += 1;
                    let choice = choice(&packages, std::slice::from_ref(&file));
                    let is_read = choice.taken.contains(READS_EVERY_PACKAGE)
                        && choice.takes(READS_EVERY_PACKAGE, HOUSE);
                    assert!(is_read, "{file}: {choice:?}");
                }
            }
        }
        assert!(pages > 30, "{pages} pages");
        let house = root().join("tests/tests").join(HOUSE);
        assert!(house.join("main.rs").exists(), "it has another name now");
    }

    /// A repository with one commit, which has `before`.
    fn repository(before: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join(before);
        fs::create_dir_all(file.parent().expect("it lies in a folder")).expect("writable");
        fs::write(&file, "the same line\n".repeat(20)).expect("writable");
        for words in [
            &["init", "--quiet"][..],
            &["add", "."],
            &["commit", "--quiet", "--message", "first"],
        ] {
            let done = crate::git(folder.path())
                .args(["-c", "user.name=a", "-c", "user.email=a@example.org"])
                .args(["-c", "commit.gpgsign=false"])
                .args(words)
                .status();
            assert!(done.expect("git runs").success(), "{words:?}");
        }
        folder
    }

    #[test]
    fn a_moved_file_concerns_the_package_that_it_left() {
        let folder = repository("crates/core/src/moved.rs");
        let [from, to] = ["crates/core/src/moved.rs", "tensor/src/moved.rs"];
        fs::create_dir_all(folder.path().join("tensor/src")).expect("writable");
        fs::rename(folder.path().join(from), folder.path().join(to)).expect("moved");
        let add = crate::git(folder.path()).args(["add", "--all"]).status();
        assert!(add.expect("git runs").success());
        let mut files = changed(folder.path(), "HEAD").expect("a commit");
        files.sort();
        assert_eq!(files, [from, to]);
        let choice = choice(&workspace(), &files);
        assert!(choice.taken.contains("core") && choice.taken.contains("tensor"));
    }

    #[test]
    fn a_hook_of_another_repository_changes_nothing() {
        let other = repository("other");
        let log = || {
            let log = crate::git(other.path()).args(["log", "--oneline"]).output();
            log.expect("git runs").stdout
        };
        let before = log();
        let tests = [
            "image::tests::a_folder_without_history_has_no_commit",
            "test::since::tests::a_moved_file_concerns_the_package_that_it_left",
        ];
        let child = Command::new("/proc/self/exe")
            .arg("--exact")
            .args(tests)
            .env("GIT_DIR", other.path().join(".git"))
            .output()
            .expect("this program runs");
        let said = String::from_utf8_lossy(&child.stdout);
        assert!(
            child.status.success() && said.contains("2 passed"),
            "{said}"
        );
        assert_eq!(log(), before);
    }

    #[test]
    fn a_reference_is_no_option_of_git() {
        let folder = repository("file");
        let written = folder.path().join("written");
        let error = changed(folder.path(), &format!("--output={}", written.display()))
            .expect_err("it names no commit");
        assert_eq!(error.exit_code(), 2);
        assert!(!written.exists(), "git wrote the file");
    }

    #[test]
    fn a_package_within_another_is_separate() {
        assert_eq!(taken("crates/http/gateway/src/lib.rs"), ["gateway", "http"]);
        assert_eq!(taken("crates/http/src/lib.rs"), ["http"]);
    }

    #[test]
    fn a_page_touches_those_that_name_it_and_the_lock_file_everything() {
        assert_eq!(taken("docs/testing.md"), ["alknet-tests"]);
        assert!(taken("LICENSE-MIT").is_empty());
        assert_eq!(taken("Cargo.lock").len(), workspace().len());
    }
}
