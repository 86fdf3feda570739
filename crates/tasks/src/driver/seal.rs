//! From objects and archives to one archive that hides what is in it.
//!
//! Two drivers have much in common, LLVM's names are many, and other C++ may come into the program:
//! only what has no name cannot clash. So everything that a driver needs, down to the C++ library, is
//! linked into one object in which two names stay visible, and these two carry the driver's own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::first_line;
use super::ninja::NinjaLinkInputs;
use super::recipe::LlvmRecipe;
use crate::failure::{Result, TaskError};
use crate::steps;

/// What every Vulkan driver shows to a loader, and what we call it behind the driver's name.
const ENTRIES: [(&str, &str); 2] = [
    ("vk_icdGetInstanceProcAddr", "icd_functions"),
    ("vk_icdNegotiateLoaderICDInterfaceVersion", "icd_negotiate"),
];

/// Libraries of the system that go in. What remains outside is the C library with its mathematics, and
/// the compiler's own support, of which there may be one in a program only.
const LIBRARIES: [&str; 3] = ["libstdc++.a", "libz.a", "libzstd.a"];

/// Tables for unwinding, 4 MB with LLVM. Neither Mesa nor LLVM handles an exception: one thrown by the
/// C++ library ends the program, with tables or without.
const UNWINDING: [&str; 4] = [
    ".eh_frame",
    ".rela.eh_frame",
    ".gcc_except_table*",
    ".rela.gcc_except_table*",
];

/// What a driver is made of.
pub(super) struct DriverInputs<'a> {
    pub(super) driver: &'a str,
    /// Mesa's build folder.
    pub(super) folder: &'a Path,
    pub(super) parts: &'a NinjaLinkInputs,
    pub(super) llvm: Option<&'a LlvmRecipe>,
    pub(super) libdrm: Option<PathBuf>,
}

/// Writes `archive`, working in `scratch`; `step` runs a program.
pub(super) fn seal(
    scratch: &Path,
    inputs: &DriverInputs<'_>,
    archive: &Path,
    step: impl Fn(&mut Command, &str) -> Result<()>,
) -> Result<()> {
    let [linked, named, hidden] =
        ["linked.o", "named.o", "hidden.o"].map(|name| scratch.join(name));
    step(&mut link(inputs, &linked)?, "link")?;
    step(
        steps::program("strip").arg("--strip-debug").arg(&linked),
        "strip",
    )?;
    let unique = scratch.join("unique");
    fs::write(&unique, unique_names(&linked)?)
        .map_err(TaskError::io(format!("write {}", unique.display())))?;
    // One after the other: hiding goes by what renaming made. C++'s unique names (static variables of
    // templates) cannot be hidden, weak ones can.
    let mut rename = steps::program("objcopy");
    rename.arg(format!("--weaken-symbols={}", unique.display()));
    let mut hide = steps::program("objcopy");
    for (entry, own) in ENTRIES {
        let own = format!("{}_{own}", inputs.driver);
        rename.arg(format!("--redefine-sym={entry}={own}"));
        hide.arg(format!("--keep-global-symbol={own}"));
    }
    step(rename.arg(&linked).arg(&named), "rename")?;
    hide.args(UNWINDING.map(|section| format!("--remove-section={section}")));
    step(hide.arg(&named).arg(&hidden), "hide")?;
    let mut pack = steps::program("ar");
    // D: no times and owners, so that two builds give the same bytes.
    pack.arg("rcsD").arg(archive).arg(&hidden);
    step(&mut pack, "pack")
}

/// One relocatable object out of everything. Sections stay apart, so that the last link can still drop
/// what is not called; C++'s groups of equal functions are resolved here, because hidden names in them
/// would clash with the next sealed object's.
fn link(inputs: &DriverInputs<'_>, output: &Path) -> Result<Command> {
    let mut command = steps::program("ld");
    command
        .current_dir(inputs.folder)
        .args(["-r", "--force-group-allocation"]);
    for (entry, _) in ENTRIES {
        command.args(["-u", entry]);
    }
    // Tables of entry points name functions weakly, which takes nothing out of an archive.
    command
        .args(&inputs.parts.objects)
        .arg("--whole-archive")
        .args(&inputs.parts.whole)
        .arg("--no-whole-archive")
        .arg("--start-group")
        .args(&inputs.parts.archives)
        .args(&inputs.libdrm);
    if let Some(llvm) = inputs.llvm {
        command.args(llvm_archives(llvm)?);
    }
    for library in LIBRARIES {
        command.arg(library_file(library)?);
    }
    command.arg("--end-group").arg("-o").arg(output);
    Ok(command)
}

/// Names of an object that are unique in the sense of C++, one to a line.
fn unique_names(object: &Path) -> Result<String> {
    let output = steps::program("nm")
        .arg("--defined-only")
        .arg(object)
        .output()
        .map_err(TaskError::io("run nm"))?;
    if !output.status.success() {
        return Err(TaskError::Step {
            what: "nm".to_owned(),
            how: output.status.to_string(),
            log: None,
        });
    }
    Ok(unique_in(&String::from_utf8_lossy(&output.stdout)))
}

fn unique_in(symbols: &str) -> String {
    let name = |line: &str| Some(line.split_once(" u ")?.1.to_owned() + "\n");
    symbols.lines().filter_map(name).collect()
}

/// LLVM's own program knows which archives the components need.
fn llvm_archives(llvm: &LlvmRecipe) -> Result<Vec<String>> {
    let ask = |what: &str| {
        let mut command = steps::program(&llvm.config);
        command.args(["--link-static", what]).args(&llvm.components);
        first_line(&mut command)
    };
    let files = ask("--libfiles")?;
    Ok(files.split_whitespace().map(str::to_owned).collect())
}

/// Where the compiler has a static library; its bare name when it has none, which the linker then
/// reports as missing.
fn library_file(name: &str) -> Result<String> {
    first_line(steps::program("g++").arg(format!("-print-file-name={name}")))
}

#[cfg(test)]
mod tests;
