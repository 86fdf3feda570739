//! Builds Mesa's Vulkan drivers as sealed archives, and sets which of them the workspace's build
//! links.
//!
//! Each driver is one archive with one object in it, which exports two functions and hides
//! everything else, LLVM included. It lies in the cache under a name of everything that decides its
//! bytes. docs/driver.md explains the steps.

mod build;
mod ninja;
mod recipe;
mod seal;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::slice;

use self::build::DriverBuild;
pub use self::recipe::DriverSelection;
use self::recipe::{DriverRecipe, DriverRecipes, LlvmRecipe};
use crate::context::XtaskContext;
use crate::digest;
use crate::failure::{Result, TaskError};
use crate::{debian, kernel, sources, steps, third_party};

/// The code that builds a driver, which is a part of its name.
const STEPS: [&str; 4] = [
    include_str!("build.rs"),
    include_str!("ninja.rs"),
    include_str!("seal.rs"),
    include_str!("../steps.rs"),
];

/// Mesa's build tool, pinned by SHA-256.
pub(crate) const MESON: &str = include_str!("../../../../compute/driver/meson.txt");

/// The file that the build of `alknet-vulkan` reads.
const LINKED: &str = "compute/driver/linked-drivers";

/// The file beside an archive with the version of its LLVM.
const LLVM_NOTE: &str = "llvm";

/// The file beside an archive with the hash of LLVM's archives. It is empty if LLVM came from no Debian package.
const LLVM_HASH: &str = "llvm-sha256";

/// The choice of drivers, for the commands that build an image.
#[derive(Clone, Debug, clap::Args)]
pub struct DriverArgs {
    /// Vulkan drivers to link: llvmpipe, v3dv and panvk, separated by commas, or none
    #[arg(long, value_name = "DRIVERS", default_value_t = DriverSelection::usual())]
    pub vulkan: DriverSelection,
}

/// A driver in the cache.
#[derive(Clone, Debug)]
pub struct SealedDriver {
    /// The name that `--vulkan` has.
    pub name: String,
    /// The folder of the archive.
    pub folder: PathBuf,
}

impl SealedDriver {
    fn at(cache: &Path, name: &str, key: &str) -> Self {
        Self {
            name: name.to_owned(),
            folder: cache.join("vulkan").join(format!("{name}-{key}")),
        }
    }

    /// The archive.
    pub fn archive(&self) -> PathBuf {
        self.folder.join(archive_name(&self.name))
    }
}

fn archive_name(driver: &str) -> String {
    format!("libvulkan_{driver}.a")
}

/// The drivers of this tree that are in the cache, of those in `selection`.
pub(crate) fn cached(cx: &XtaskContext, selection: &DriverSelection) -> Result<Vec<SealedDriver>> {
    let recipes = DriverRecipes::own().map_err(TaskError::Arguments)?;
    let wanted = |recipe: &&DriverRecipe| selection.names().contains(&recipe.name);
    let mut drivers = Vec::new();
    for recipe in recipes.drivers.iter().filter(wanted) {
        let patches = read_patches(cx.root(), recipe)?;
        let tools = known_tools(cx.cache(), &recipes.llvm, recipe)?;
        drivers.extend(find(cx, &recipes, recipe, &patches, &tools)?);
    }
    Ok(drivers)
}

/// The folders of the drivers that the last build linked.
pub(crate) fn linked(cx: &XtaskContext) -> Vec<PathBuf> {
    linked_in(&cx.mirror())
}

/// Finds the drivers in the cache or builds them.
pub fn ensure(cx: &XtaskContext, selection: &DriverSelection) -> Result<Vec<SealedDriver>> {
    let recipes = DriverRecipes::own().map_err(TaskError::Arguments)?;
    let wanted = |recipe: &&DriverRecipe| selection.names().contains(&recipe.name);
    let mut drivers = Vec::new();
    for recipe in recipes.drivers.iter().filter(wanted) {
        drivers.push(ensure_one(cx, &recipes, recipe)?);
    }
    Ok(drivers)
}

fn ensure_one(
    cx: &XtaskContext,
    recipes: &DriverRecipes,
    recipe: &DriverRecipe,
) -> Result<SealedDriver> {
    let patches = read_patches(cx.root(), recipe)?;
    let known = known_tools(cx.cache(), &recipes.llvm, recipe)?;
    // This precedes the installation of the packages for compiling, which a driver from the cache
    // does not need.
    if let Some(sealed) = find(cx, recipes, recipe, &patches, &known)? {
        note_llvm(&recipes.llvm, recipe, &sealed)?;
        // A driver from an older cache lacks the hash, and LLVM has to be installed to compute it.
        if !recipe.llvm || sealed.folder.join(LLVM_HASH).exists() {
            return Ok(sealed);
        }
    }
    cx.install_compilers()?;
    let tools = installed_tools(&recipes.llvm, recipe)?;
    // With LLVM installed, the full name of the driver is known, and the cache may have it all the
    // same.
    let found = find(cx, recipes, recipe, &patches, slice::from_ref(&tools))?;
    let sealed = match found {
        Some(sealed) => sealed,
        None => build(cx, recipes, recipe, &patches, &tools)?,
    };
    note_llvm(&recipes.llvm, recipe, &sealed)?;
    Ok(sealed)
}

fn build(
    cx: &XtaskContext,
    recipes: &DriverRecipes,
    recipe: &DriverRecipe,
    patches: &[(String, String)],
    tools: &str,
) -> Result<SealedDriver> {
    let mesa = sources::obtain(cx, "mesa")?;
    let key = key(recipes, recipe, &mesa.pin.sha256, patches, tools)?;
    let sealed = SealedDriver::at(cx.cache(), &recipe.name, &key);
    let meson = third_party::python_folder(cx, MESON)?;
    DriverBuild::new(cx, recipes, recipe, meson)?.run(&mesa.path, patches, &sealed)?;
    Ok(sealed)
}

/// The driver in the cache that was made with one of these tools.
fn find(
    cx: &XtaskContext,
    recipes: &DriverRecipes,
    recipe: &DriverRecipe,
    patches: &[(String, String)],
    tools: &[String],
) -> Result<Option<SealedDriver>> {
    for pin in sources::accepted("mesa")? {
        for tools in tools {
            let key = key(recipes, recipe, &pin.sha256, patches, tools)?;
            let sealed = SealedDriver::at(cx.cache(), &recipe.name, &key);
            if sealed.archive().exists() {
                return Ok(Some(sealed));
            }
        }
    }
    Ok(None)
}

/// Everything that decides an archive's bytes, as a short name.
fn key(
    recipes: &DriverRecipes,
    recipe: &DriverRecipe,
    mesa: &str,
    patches: &[(String, String)],
    tools: &str,
) -> Result<String> {
    let own = serde_json::to_string(recipe)
        .map_err(|error| TaskError::Arguments(format!("drivers.toml: {error}")))?;
    let mut parts: Vec<String> = STEPS.map(str::to_owned).into();
    parts.extend([mesa.to_owned(), tools.to_owned(), own]);
    parts.extend([recipes.mesa.options.join(" "), MESON.to_owned()]);
    if recipe.llvm {
        parts.push(recipes.llvm.components.join(" "));
    }
    if recipe.libdrm {
        parts.extend(
            // All accepted versions count, because the one that is fetched is known only later.
            sources::accepted("libdrm")?
                .into_iter()
                .map(|pin| pin.sha256),
        );
    }
    // Only the changes of a patch count, not its description.
    let diffs = patches.iter().map(|(_, text)| text.split_once("\ndiff "));
    parts.extend(diffs.map(|diff| diff.map_or_else(String::new, |diff| diff.1.to_owned())));
    Ok(digest::key(parts.iter().map(String::as_bytes)))
}

/// Name and text of each patch.
fn read_patches(root: &Path, recipe: &DriverRecipe) -> Result<Vec<(String, String)>> {
    let read = |name: &String| {
        let path = root
            .join("compute/driver/patches")
            .join(format!("{name}.patch"));
        let text =
            fs::read_to_string(&path).map_err(TaskError::io(format!("read {}", path.display())))?;
        Ok((name.clone(), text))
    };
    recipe.patches.iter().map(read).collect()
}

/// Compiler, linker, and LLVM if the driver uses it: the tools that compile a driver on this
/// machine.
fn installed_tools(llvm: &LlvmRecipe, recipe: &DriverRecipe) -> Result<String> {
    let tools = kernel::tool_versions()?;
    if !recipe.llvm {
        return Ok(tools);
    }
    let installed = installed_llvm(llvm)?.ok_or_else(|| {
        TaskError::Arguments(format!(
            "{} is not there: install LLVM {}",
            llvm.config, llvm.version
        ))
    })?;
    Ok(tools + &installed)
}

/// The tools of a driver from the cache, which are those of this machine. If LLVM is not installed,
/// this has every build of the demanded version that a driver in the cache contains.
fn known_tools(cache: &Path, llvm: &LlvmRecipe, recipe: &DriverRecipe) -> Result<Vec<String>> {
    let tools = kernel::tool_versions()?;
    if !recipe.llvm {
        return Ok(vec![tools]);
    }
    if let Some(installed) = installed_llvm(llvm)? {
        return Ok(vec![tools + &installed]);
    }
    let noted = noted_llvms(cache, llvm, recipe).into_iter();
    Ok(noted.map(|noted| format!("{tools}{noted}")).collect())
}

/// The notes of the driver's archives of the demanded version, those of later builds of the package
/// first.
fn noted_llvms(cache: &Path, llvm: &LlvmRecipe, recipe: &DriverRecipe) -> Vec<String> {
    let prefix = format!("{}-", recipe.name);
    let version = format!("LLVM {} ", llvm.version);
    let folders = fs::read_dir(cache.join("vulkan")).into_iter().flatten();
    let notes = folders.flatten().filter_map(|folder| {
        let name = folder.file_name();
        name.to_str().filter(|name| name.starts_with(&prefix))?;
        let note = fs::read_to_string(folder.path().join(LLVM_NOTE)).ok()?;
        note.starts_with(&version).then_some(note)
    });
    let notes: BTreeSet<String> = notes.collect();
    notes.into_iter().rev().collect()
}

/// Writes the installed LLVM's version and hash beside a driver, unless the notes are there. The driver
/// was made with that LLVM.
fn note_llvm(llvm: &LlvmRecipe, recipe: &DriverRecipe, sealed: &SealedDriver) -> Result<()> {
    let [version, hash] = [LLVM_NOTE, LLVM_HASH].map(|name| sealed.folder.join(name));
    if !recipe.llvm || (version.exists() && hash.exists()) {
        return Ok(());
    }
    let Some(installed) = installed_llvm(llvm)? else {
        return Ok(());
    };
    let sum = debian::archives_sha256(&llvm_package(&llvm.version))?;
    for (note, text) in [(version, installed), (hash, sum.unwrap_or_default())] {
        if !note.exists() {
            fs::write(&note, text).map_err(TaskError::io(format!("write {}", note.display())))?;
        }
    }
    Ok(())
}

/// A line about the installed LLVM: the recipe demands its version, and the package's version is
/// noted. `None` if it is not installed.
fn installed_llvm(llvm: &LlvmRecipe) -> Result<Option<String>> {
    if !Path::new(&llvm.config).exists() {
        return Ok(None);
    }
    let version = first_line(steps::program(&llvm.config).arg("--version"))?;
    if version != llvm.version {
        return Err(TaskError::Arguments(format!(
            "{} is LLVM {version}, but compute/driver/drivers.toml asks for {}",
            llvm.config, llvm.version
        )));
    }
    let package = llvm_package(&version);
    // Systems other than Debian have no such package, and its version stays out of the name.
    let built =
        first_line(steps::program("dpkg-query").args(["-W", "-f=${Version}", package.as_str()]));
    Ok(Some(format!(
        "LLVM {version} {}\n",
        built.unwrap_or_default()
    )))
}

/// The package with the static archives of a version.
fn llvm_package(version: &str) -> String {
    let major = version.split('.').next().unwrap_or(version);
    format!("llvm-{major}-dev")
}

/// The first line of a program's output.
fn first_line(command: &mut Command) -> Result<String> {
    let what = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .map_err(TaskError::io(format!("run {what}")))?;
    let text = String::from_utf8_lossy(&output.stdout);
    match text.lines().next() {
        Some(line) if output.status.success() => Ok(line.trim().to_owned()),
        _ => Err(TaskError::Step {
            what,
            how: output.status.to_string(),
            log: None,
        }),
    }
}

/// The note in a driver's folder about its LLVM: version and version of the package.
pub(crate) fn llvm_of(folder: &Path) -> Option<String> {
    fs::read_to_string(folder.join(LLVM_NOTE)).ok()
}

/// The hash of LLVM's archives that is noted in a driver's folder.
pub(crate) fn llvm_sha256_of(folder: &Path) -> Option<String> {
    let noted = fs::read_to_string(folder.join(LLVM_HASH)).ok()?;
    (!noted.is_empty()).then_some(noted)
}

/// Makes the next build in the mirror link these drivers. The caller holds the lock.
pub fn link(cx: &XtaskContext, drivers: &[SealedDriver]) -> Result<()> {
    write_linked(&cx.mirror(), drivers)
}

fn linked_in(root: &Path) -> Vec<PathBuf> {
    let text = fs::read_to_string(root.join(LINKED)).unwrap_or_default();
    let folder = |line: &str| Some(PathBuf::from(line.split_once('=')?.1));
    text.lines().filter_map(folder).collect()
}

/// Writes the list of drivers that builds of the tree at `root` link, unless it is there already: a new file means a new
/// build.
pub(crate) fn write_linked(root: &Path, drivers: &[SealedDriver]) -> Result<()> {
    let line = |driver: &SealedDriver| format!("{}={}\n", driver.name, driver.folder.display());
    let text: String = drivers.iter().map(line).collect();
    let file = root.join(LINKED);
    // Cargo compiles the reader of the file again if the file's time changes.
    if fs::read_to_string(&file).is_ok_and(|there| there == text) {
        return Ok(());
    }
    fs::write(&file, text).map_err(TaskError::io(format!("write {}", file.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_decides_the_bytes_decides_the_name() {
        let recipes = DriverRecipes::own().expect("it parses");
        let patch = |diff: &str| vec![("p".to_owned(), format!("Why.\n\ndiff {diff}"))];
        let name = |recipes: &DriverRecipes, mesa: &str, diff: &str, tools: &str| {
            key(recipes, &recipes.drivers[0], mesa, &patch(diff), tools).expect("a name")
        };
        let base = name(&recipes, "m", "d", "t");
        assert_eq!(base, name(&recipes, "m", "d", "t"));
        assert_ne!(base, name(&recipes, "n", "d", "t"));
        assert_ne!(base, name(&recipes, "m", "e", "t"));
        assert_ne!(base, name(&recipes, "m", "d", "u"));
        let mut others = recipes.clone();
        others.drivers[0].options.push("-Dx=y".into());
        assert_ne!(base, name(&others, "m", "d", "t"));
        // Another driver's recipe does not change this driver's name.
        let mut others = recipes;
        others.drivers[1].options.push("-Dx=y".into());
        assert_eq!(base, name(&others, "m", "d", "t"));
    }

    #[test]
    fn a_driver_is_found_where_its_llvm_is_not_installed() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let cx = XtaskContext::in_folder(folder.path());
        let mut recipes = DriverRecipes::own().expect("it parses");
        recipes.llvm.config = "/nonexistent/llvm-config".to_owned();
        let recipe = recipes.drivers[0].clone();
        assert!(recipe.llvm, "the first one is the processor's");
        let known =
            |llvm: &LlvmRecipe| known_tools(cx.cache(), llvm, &recipe).expect("gcc is there");
        assert_eq!(known(&recipes.llvm), [""; 0]);
        assert!(installed_tools(&recipes.llvm, &recipe).is_err());

        let line = format!("LLVM {} 1:19-3\n", recipes.llvm.version);
        let tools = kernel::tool_versions().expect("gcc is there") + &line;
        let mesa = sources::accepted("mesa").expect("pinned");
        let name = key(&recipes, &recipe, &mesa[0].sha256, &[], &tools).expect("a name");
        let sealed = SealedDriver::at(cx.cache(), &recipe.name, &name);
        fs::create_dir_all(&sealed.folder).expect("writable");
        fs::write(sealed.archive(), "").expect("writable");
        fs::write(sealed.folder.join(LLVM_NOTE), line).expect("writable");
        let tools = known(&recipes.llvm);
        let found = find(&cx, &recipes, &recipe, &[], &tools).expect("a look");
        let found = found.map(|found| found.folder);
        assert_eq!(found.as_ref(), Some(&sealed.folder));

        // What an older command kept has no hash, and a system without Debian's packages keeps none.
        assert_eq!(llvm_sha256_of(&sealed.folder), None);
        for (noted, expected) in [("", None), ("ab", Some("ab"))] {
            fs::write(sealed.folder.join(LLVM_HASH), noted).expect("writable");
            assert_eq!(llvm_sha256_of(&sealed.folder).as_deref(), expected);
        }
        assert_eq!(known(&recipes.llvm), tools, "the hash decides no name");

        recipes.llvm.version = "1.2.3".to_owned();
        assert_eq!(known(&recipes.llvm), [""; 0]);
    }

    #[test]
    fn each_linked_library_is_printed_once() {
        let root = tempfile::tempdir().expect("a temporary folder");
        fs::create_dir_all(root.path().join("compute/driver")).expect("writable");
        let drivers = [SealedDriver::at(Path::new("/c"), "llvmpipe", "0")];
        write_linked(root.path(), &drivers).expect("writable");
        let file = root.path().join(LINKED);
        let old = std::time::SystemTime::UNIX_EPOCH;
        fs::File::open(&file)
            .and_then(|file| file.set_modified(old))
            .expect("ours to date");
        write_linked(root.path(), &drivers).expect("writable");
        let data = fs::metadata(&file).expect("it is there");
        assert_eq!(data.modified().expect("dated"), old, "it was not touched");
        let text = fs::read_to_string(&file).expect("readable");
        assert_eq!(text, "llvmpipe=/c/vulkan/llvmpipe-0\n");
        assert_eq!(linked_in(root.path()), [Path::new("/c/vulkan/llvmpipe-0")]);
        write_linked(root.path(), &[]).expect("writable");
        assert_eq!(fs::read_to_string(&file).expect("readable"), "");
    }

    #[test]
    fn the_package_is_that_of_the_major_version() {
        assert_eq!(llvm_package("19.1.7"), "llvm-19-dev");
    }
}
