//! `reproduce --programs`: builds the programs of an image once more, in another folder, and compares them with those
//! that the cache has of the same tree.

use std::fs;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::{PLACES, compile, copy_entry, first_difference};
use crate::context::XtaskContext;
use crate::failure::{Result, TaskError};
use crate::group::ProcessGroup;
use crate::scratch::ScratchFolder;
use crate::{binary, gpu, loader};

/// The programs that cargo links for this machine. A cache in which an image was built has both.
const LINKED: [&str; 2] = [binary::NAME, gpu::NAME];

/// Folders of the second build: its copy of the tree, and cargo's target folder.
const TREE: &str = "tree";
const TARGET: &str = "target";

/// What cargo says before it compiles a package.
const COMPILING: &str = "Compiling ";

/// Builds, reports each program, and fails if one differs.
pub(super) fn run(cx: &mut XtaskContext, as_json: bool) -> Result<()> {
    // Without a program there is nothing to wait for.
    linked_programs(cx)?;
    let scratch = ScratchFolder::new(cx.cache(), "reproduce-")?;
    let [first, second] = PLACES.map(|place| scratch.path().join(place));
    let cached = cx.step("programs of the cache", |cx| {
        CachedPrograms::copy(cx, &first, &second.join(TREE))
    })?;
    let built = cx.step("second build", |cx| cached.build_again(cx, &second))?;
    let pairs = cached.names().into_iter().zip(&built);
    let compared = pairs.map(|(name, again)| ComparedProgram::new(name, &first.join(name), again));
    let compared: Vec<ComparedProgram> = compared.collect::<Result<_>>()?;
    if as_json {
        println!("{:#}", report_json(&compared, &cached.missing()));
    } else {
        for line in report_lines(&compared, &cached.missing()) {
            println!("{line}");
        }
    }
    verdict(&compared)
}

/// Programs that the cache has of this tree.
#[derive(Debug)]
struct CachedPrograms {
    linked: Vec<&'static str>,
    /// It has both programs for UEFI.
    has_loaders: bool,
}

impl CachedPrograms {
    /// Copies the programs to `folder`, and the tree that they are of to `tree`, so that other commands may build
    /// meanwhile.
    fn copy(cx: &XtaskContext, folder: &Path, tree: &Path) -> Result<Self> {
        let _lock = cx.claim()?;
        let linked = linked_programs(cx)?;
        let loaders = loader::cached_programs(cx);
        let cached = Self {
            has_loaders: loaders.iter().all(|program| program.exists()),
            linked,
        };
        check_is_built(&mut linked_build(cx, &cached.linked))?;
        if cached.has_loaders {
            check_is_built(&mut loader::cached_build(cx)?)?;
        }
        let making = || TaskError::io(format!("make {}", folder.display()));
        fs::create_dir_all(folder).map_err(making())?;
        let linked = cached.linked.iter().map(|name| cx.executable(name));
        // The names and the paths have the same order.
        for (name, program) in cached.names().into_iter().zip(linked.chain(loaders)) {
            fs::copy(&program, folder.join(name)).map_err(making())?;
        }
        // The mirror is this tree as long as the lock is held, with the list of the drivers that were linked.
        let mirror = cx.mirror();
        copy_folder(&mirror, tree).map_err(TaskError::io(format!("copy {}", mirror.display())))?;
        Ok(cached)
    }

    /// Builds the same programs of the copy of the tree in `folder`. Returns their paths in the order of their
    /// [names](Self::names).
    fn build_again(&self, cx: &XtaskContext, folder: &Path) -> Result<Vec<PathBuf>> {
        let [tree, target] = [TREE, TARGET].map(|name| folder.join(name));
        let linked = self.linked.iter();
        let linked = linked.map(|name| compile(cx, &tree, &target, name));
        let mut built: Vec<PathBuf> = linked.collect::<Result<_>>()?;
        if self.has_loaders {
            loader::build_in(cx, &tree, &target)?;
            built.extend(loader::programs_in(&target));
        }
        Ok(built)
    }

    fn names(&self) -> Vec<&'static str> {
        let mut names = self.linked.clone();
        if self.has_loaders {
            names.extend(loader::PROGRAMS);
        }
        names
    }

    /// Programs of an image that the cache does not have.
    fn missing(&self) -> Vec<&'static str> {
        let names = self.names();
        let all = LINKED.into_iter().chain(loader::PROGRAMS);
        all.filter(|name| !names.contains(name)).collect()
    }
}

/// Those programs for this machine that the cache has, of whichever tree.
fn linked_programs(cx: &XtaskContext) -> Result<Vec<&'static str>> {
    let built = LINKED.into_iter();
    let built: Vec<_> = built.filter(|name| cx.executable(name).exists()).collect();
    if built.contains(&binary::NAME) {
        return Ok(built);
    }
    Err(TaskError::Arguments(format!(
        "the cache has no {}: build it by `cargo xtask image` and run this again",
        binary::NAME
    )))
}

/// The cargo command that links these programs in the cache, as every command does.
fn linked_build(cx: &XtaskContext, programs: &[&str]) -> Command {
    let mut command = cx.cargo("build");
    command.args(["--release", "--workspace"]);
    for program in programs {
        command.arg("--bin").arg(program);
    }
    command
}

/// Fails if this cargo command would compile a package, because then the programs in the cache are of another tree.
/// Only cargo knows that. It is ended as soon as it says so, and what it began to compile it compiles in its next run.
fn check_is_built(command: &mut Command) -> Result<()> {
    command
        .args(["--locked", "--offline"])
        // The user's settings could hide the line.
        .env("CARGO_TERM_COLOR", "never")
        .env("CARGO_TERM_PROGRESS_WHEN", "never")
        .env("CARGO_TERM_QUIET", "false")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let cargo = ProcessGroup::start(command, Command::spawn);
    let mut cargo = cargo.map_err(TaskError::io("run cargo"))?;
    let mut said = String::new();
    if let Some(stderr) = cargo.child().stderr.take() {
        for line in BufReader::new(stderr).split(b'\n') {
            let line = line.map_err(TaskError::io("read what cargo says"))?;
            let line = String::from_utf8_lossy(&line);
            if let Some(package) = line.trim_start().strip_prefix(COMPILING) {
                // With the group cargo and its compilers end.
                return Err(other_tree(&format!("cargo would compile {package}")));
            }
            said += &line;
            said.push('\n');
        }
    }
    let status = cargo.reap().map_err(TaskError::io("wait for cargo"))?;
    if status.success() {
        return Ok(());
    }
    Err(other_tree(said.trim_end()))
}

fn other_tree(why: &str) -> TaskError {
    TaskError::Arguments(format!(
        "the programs in the cache are not those of this tree: {why}\nBuild them by `cargo xtask image` and run this again."
    ))
}

/// Copies all files and symbolic links below `from`.
fn copy_folder(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type()?.is_dir() {
            copy_folder(&from, &to)?;
        } else {
            copy_entry(&from, &to)?;
        }
    }
    Ok(())
}

/// One program of both builds.
#[derive(Debug, PartialEq, Eq)]
struct ComparedProgram {
    name: &'static str,
    /// Of the program in the cache, and of the other one.
    bytes: [u64; 2],
    /// Offset of the first difference. A program that ends earlier differs at its end.
    differs_at: Option<u64>,
}

impl ComparedProgram {
    fn new(name: &'static str, first: &Path, second: &Path) -> Result<Self> {
        let comparing = || TaskError::io(format!("compare {name}"));
        let (_, differs_at) = first_difference(first, second).map_err(comparing())?;
        let length = |path: &Path| {
            let data = fs::metadata(path).map_err(comparing());
            data.map(|data| data.len())
        };
        Ok(Self {
            name,
            bytes: [length(first)?, length(second)?],
            differs_at,
        })
    }

    fn line(&self) -> String {
        let (name, [first, second]) = (self.name, self.bytes);
        match self.differs_at {
            None => format!("equal: {name}, {first} bytes"),
            Some(offset) => format!("differs: {name} at byte {offset} of {first} and {second}"),
        }
    }

    fn json(&self) -> Value {
        let [first, second] = self.bytes;
        json!({
            "name": self.name,
            "bytes": first,
            "second_bytes": second,
            "differs_at": self.differs_at,
        })
    }
}

fn report_lines(compared: &[ComparedProgram], missing: &[&str]) -> Vec<String> {
    let mut lines: Vec<String> = compared.iter().map(ComparedProgram::line).collect();
    let missing = missing.iter();
    lines
        .extend(missing.map(|name| format!("not compared: {name}, which the cache does not have")));
    lines
}

fn report_json(compared: &[ComparedProgram], missing: &[&str]) -> Value {
    let programs: Vec<Value> = compared.iter().map(ComparedProgram::json).collect();
    json!({
        "equal": verdict(compared).is_ok(),
        "programs": programs,
        "not_compared": missing,
    })
}

fn verdict(compared: &[ComparedProgram]) -> Result<()> {
    let different = compared.iter().filter_map(|program| {
        let offset = program.differs_at?;
        Some(format!("{} at byte {offset}", program.name))
    });
    let different: Vec<String> = different.collect();
    if different.is_empty() {
        return Ok(());
    }
    let different = different.join(", ");
    Err(TaskError::Workspace(format!(
        "the builds differ: {different}"
    )))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// Programs with these bytes.
    fn compared(name: &'static str, first: &[u8], second: &[u8]) -> ComparedProgram {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let [one, other] = [("one", first), ("other", second)].map(|(name, bytes)| {
            let path = folder.path().join(name);
            fs::write(&path, bytes).expect("writable");
            path
        });
        ComparedProgram::new(name, &one, &other).expect("readable")
    }

    #[test]
    fn each_program_is_reported_with_its_first_difference() {
        let programs = [
            compared("alknet", b"ELF same", b"ELF same"),
            compared("alknet-gpu", b"ELF /a/b", b"ELF /c/b"),
            compared("alknet-loader.efi", b"MZ longer", b"MZ"),
        ];
        let missing = ["alknet-slot-probe.efi"];
        assert_eq!(
            report_lines(&programs, &missing),
            [
                "equal: alknet, 8 bytes",
                "differs: alknet-gpu at byte 5 of 8 and 8",
                "differs: alknet-loader.efi at byte 2 of 9 and 2",
                "not compared: alknet-slot-probe.efi, which the cache does not have",
            ]
        );
        let report = report_json(&programs, &missing);
        assert_eq!(report["equal"], false);
        assert_eq!(report["not_compared"], json!(missing));
        let second =
            json!({ "name": "alknet-gpu", "bytes": 8, "second_bytes": 8, "differs_at": 5 });
        assert_eq!(report["programs"][1], second);
        assert_eq!(report["programs"][0]["differs_at"], Value::Null);
        let error = verdict(&programs).expect_err("two differ");
        assert_eq!(error.exit_code(), 1);
        let said = "the builds differ: alknet-gpu at byte 5, alknet-loader.efi at byte 2";
        assert_eq!(error.to_string(), said);
        verdict(&programs[..1]).expect("it is equal");
        assert_eq!(report_json(&programs[..1], &[])["equal"], true);
    }

    #[test]
    fn what_the_cache_lacks_is_named_and_the_others_keep_their_order() {
        let cached = |linked: &[&'static str], has_loaders| CachedPrograms {
            linked: linked.to_vec(),
            has_loaders,
        };
        let all = cached(&LINKED, true);
        assert_eq!(all.names(), [&LINKED[..], &loader::PROGRAMS].concat());
        assert!(all.missing().is_empty());
        let plain = cached(&LINKED[..1], false);
        assert_eq!(plain.names(), ["alknet"]);
        let missing = [&LINKED[1..], &loader::PROGRAMS].concat();
        assert_eq!(plain.missing(), missing);
    }

    #[test]
    fn a_cache_without_the_binary_is_refused_with_the_command_that_builds_it() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let cx = XtaskContext::in_folder(folder.path());
        let error = linked_programs(&cx).expect_err("the cache is empty");
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("`cargo xtask image`"), "{error}");
        let program = cx.executable(binary::NAME);
        fs::create_dir_all(program.parent().expect("a folder")).expect("writable");
        fs::write(program, "ELF").expect("writable");
        assert_eq!(linked_programs(&cx).expect("one"), [binary::NAME]);
    }

    /// The script stands for cargo.
    fn checked(script: &str) -> Result<()> {
        // The options that cargo would get are arguments of the script.
        check_is_built(Command::new("sh").args(["-c", script, "cargo"]))
    }

    #[test]
    fn programs_of_another_tree_are_refused_before_cargo_has_compiled_them() {
        checked("echo '    Finished `release` profile' >&2").expect("of this tree");
        let compiles = "echo '   Compiling alknet v0.1.0 (/a)' >&2; exec sleep 1000";
        let error = checked(compiles).expect_err("of another one").to_string();
        let parts = [
            "not those of this tree",
            "cargo would compile alknet v0.1.0",
            "`cargo xtask image`",
        ];
        for part in parts {
            assert!(error.contains(part), "{error}");
        }
        let fails = "echo 'error: the lock file needs to be updated' >&2; exit 101";
        let error = checked(fails).expect_err("it fails").to_string();
        assert!(
            error.contains("the lock file needs to be updated"),
            "{error}"
        );
    }

    #[test]
    fn a_folder_is_copied_with_its_links() {
        let base = tempfile::tempdir().expect("a temporary folder");
        let [from, to] = ["from", "another/to"].map(|name| base.path().join(name));
        fs::create_dir_all(from.join("a/b")).expect("writable");
        fs::write(from.join("a/b/file"), "1").expect("writable");
        symlink("b/file", from.join("a/link")).expect("writable");
        copy_folder(&from, &to).expect("copied");
        let content = fs::read_to_string(to.join("a/b/file"));
        assert_eq!(content.expect("copied"), "1");
        let link = fs::read_link(to.join("a/link")).expect("copied");
        assert_eq!(link, Path::new("b/file"));
    }
}
