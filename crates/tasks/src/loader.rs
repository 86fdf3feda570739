//! The UEFI loader, and the program that its tests put into the boot slots.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use xtask::c_flags::{CARGO_FOLDER, WORKSPACE_FOLDER, cargo_home};
use xtask::workspace::BuildLock;

use crate::context::XtaskContext;
use crate::failure::{Result, TaskError};
use crate::scratch::ScratchFolder;
use crate::third_party::{self, FLAGS_SEPARATOR, UEFI};
use crate::{cached, digest};

/// Largest loader in bytes. Its first version had 34,816; what would make it three times as large
/// does not belong into it.
pub const BYTES_MAX: u64 = 100_000;

/// The package of both programs, and its feature that they need.
const PACKAGE: &str = "alknet-loader";
const FEATURE: &str = "firmware";

/// The programs, in the order of [`LoaderPrograms`].
pub(crate) const PROGRAMS: [&str; 2] = ["alknet-loader.efi", "alknet-slot-probe.efi"];

/// Programs for UEFI, in the cache.
#[derive(Clone, Debug)]
pub struct LoaderPrograms {
    /// The loader, which becomes `\EFI\BOOT\BOOTX64.EFI` of a disk.
    pub loader: PathBuf,
    /// What tests put into the slots.
    pub slot_probe: PathBuf,
}

/// Builds both, or finds them in the cache.
pub fn ensure(cx: &XtaskContext) -> Result<LoaderPrograms> {
    let lock = cx.claim()?;
    let built = compile(cx, &lock)?;
    let hashes = built.iter().map(|path| {
        digest::of_file(path).map_err(TaskError::io(format!("read {}", path.display())))
    });
    let hashes: Vec<String> = hashes.collect::<Result<_>>()?;
    // Cargo has one folder for the programs of every clone, and the next clone replaces them there.
    let key = digest::key(hashes.iter().map(String::as_bytes));
    let folder = cx.cache().join("tools").join(format!("loader-{key}"));
    if !folder.exists() {
        store_programs(cx, &built, &folder)?;
    }
    let [loader, slot_probe] = PROGRAMS.map(|name| folder.join(name));
    Ok(LoaderPrograms { loader, slot_probe })
}

fn compile(cx: &XtaskContext, _lock: &BuildLock) -> Result<[PathBuf; 2]> {
    compile_tree(cx, &cx.mirror(), &cached_target(cx))
}

/// Where cargo puts both programs in the cache.
pub(crate) fn cached_programs(cx: &XtaskContext) -> [PathBuf; 2] {
    programs_in(&cached_target(cx))
}

/// The cargo command that builds both in the cache.
pub(crate) fn cached_build(cx: &XtaskContext) -> Result<Command> {
    let tree = cx.mirror();
    build_command(cx, &tree, &cached_target(cx), &folders(&tree)?)
}

fn cached_target(cx: &XtaskContext) -> PathBuf {
    cx.cache().join(xtask::cache::TARGET)
}

/// Where cargo puts both programs below the target folder `target`.
pub(crate) fn programs_in(target: &Path) -> [PathBuf; 2] {
    PROGRAMS.map(|name| target.join(UEFI.triple).join("release").join(name))
}

/// Builds the loader of another copy of the tree, in a build folder of its own.
pub(crate) fn build_in(cx: &XtaskContext, tree: &Path, target: &Path) -> Result<PathBuf> {
    let [loader, _] = compile_tree(cx, tree, target)?;
    Ok(loader)
}

fn compile_tree(cx: &XtaskContext, tree: &Path, target: &Path) -> Result<[PathBuf; 2]> {
    let folders = folders(tree)?;
    let mut command = build_command(cx, tree, target, &folders)?;
    cx.run(&mut command, "loader for UEFI", "loader")?;
    let built = programs_in(target);
    for program in &built {
        check(program, &folders)?;
    }
    Ok(built)
}

fn build_command(
    cx: &XtaskContext,
    tree: &Path,
    target: &Path,
    folders: &[(PathBuf, &str)],
) -> Result<Command> {
    let mut command = cx.cargo_in("build", tree, target);
    // With a named target, cargo gives these to no build script and no procedural macro.
    command
        .env(
            "CARGO_ENCODED_RUSTFLAGS",
            flags(cx, folders)?.join(FLAGS_SEPARATOR),
        )
        .args(["--release", "--target", UEFI.triple])
        .args(["--package", PACKAGE, "--features", FEATURE]);
    Ok(command)
}

/// The folders whose names would be in the programs, each with what stands for it.
fn folders(tree: &Path) -> Result<[(PathBuf, &'static str); 2]> {
    let cargo = cargo_home().ok_or_else(|| {
        TaskError::Arguments("neither CARGO_HOME nor HOME names the folder of cargo".to_owned())
    })?;
    Ok([(tree.to_owned(), WORKSPACE_FOLDER), (cargo, CARGO_FOLDER)])
}

fn flags(cx: &XtaskContext, folders: &[(PathBuf, &str)]) -> Result<Vec<String>> {
    let mut flags = vec![
        // No other build would show what only this target leaves unused.
        "-Dwarnings".to_owned(),
        // The file of symbols has random names, and its name would be in the program.
        "-Cstrip=symbols".to_owned(),
        "-Clink-arg=/DEBUG:NONE".to_owned(),
        // A hash of the program in the place of the time.
        "-Clink-arg=/Brepro".to_owned(),
    ];
    let remap =
        |(from, to): &(PathBuf, &str)| format!("--remap-path-prefix={}={to}", from.display());
    flags.extend(folders.iter().map(remap));
    if let Some(sysroot) = third_party::sysroot(cx, &UEFI)? {
        flags.push(format!("--sysroot={}", sysroot.display()));
    }
    Ok(flags)
}

/// Checks that a program is small, and does not tell where it was built: then two builds of one
/// source are the same bytes.
fn check(program: &Path, folders: &[(PathBuf, &str)]) -> Result<()> {
    let bytes = fs::read(program).map_err(TaskError::io(format!("read {}", program.display())))?;
    let refuse = |why: String| {
        let text = format!("{}: {why}", program.display());
        Err(TaskError::Workspace(text))
    };
    if bytes.len() as u64 > BYTES_MAX {
        return refuse(format!("{} bytes, and at most {BYTES_MAX}", bytes.len()));
    }
    let names = folders
        .iter()
        .map(|(folder, _)| folder.display().to_string());
    let is_inside = |name: &String| {
        let mut parts = bytes.windows(name.len());
        parts.any(|part| part == name.as_bytes())
    };
    match names.into_iter().find(is_inside) {
        Some(name) => refuse(format!(
            "it contains {name}, which another build would not have"
        )),
        None => Ok(()),
    }
}

fn store_programs(cx: &XtaskContext, built: &[PathBuf], folder: &Path) -> Result<()> {
    let what = || TaskError::io(format!("make {}", folder.display()));
    let scratch = ScratchFolder::new(cx.cache(), "loader-")?;
    let fresh = scratch.path().join("ready");
    fs::create_dir(&fresh).map_err(what())?;
    for (program, name) in built.iter().zip(PROGRAMS) {
        fs::copy(program, fresh.join(name)).map_err(what())?;
    }
    cached::settle(&fresh, folder).map_err(what())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(content: &[u8]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        fs::write(file.path(), content).expect("writable");
        file
    }

    #[test]
    fn a_program_that_names_a_folder_of_its_build_is_refused() {
        let folders = [(PathBuf::from("/home/me/.cargo"), CARGO_FOLDER)];
        let good = written(b"MZ /cargo/registry/src/uefi/src/boot.rs");
        check(good.path(), &folders).expect("it names no folder");
        let bad = written(b"MZ /home/me/.cargo/registry/src/uefi/src/boot.rs");
        let error = check(bad.path(), &folders).expect_err("it names one");
        assert!(error.to_string().contains("/home/me/.cargo"), "{error}");
    }

    #[test]
    fn a_loader_has_at_most_100_kb() {
        let most = usize::try_from(BYTES_MAX).expect("it fits");
        check(written(&vec![0; most]).path(), &[]).expect("as much as it may have");
        let error = check(written(&vec![0; most + 1]).path(), &[]).expect_err("one more");
        assert!(error.to_string().contains("100001 bytes"), "{error}");
    }
}
