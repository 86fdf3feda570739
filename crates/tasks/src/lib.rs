//! The project's commands. `cargo xtask` prepares the machine and starts this program.

pub mod binary;
mod build;
pub mod cache;
mod cached;
pub mod context;
mod debian;
mod digest;
pub mod driver;
mod emulator;
pub mod failure;
mod fuzz;
pub mod gpu;
mod group;
mod grub;
pub mod image;
mod installer;
pub mod kernel;
mod licenses;
mod linked;
pub mod loader;
pub mod node;
pub mod parts;
mod provenance;
mod reproduce;
mod scratch;
mod sizes;
mod soak;
pub mod sources;
mod steps;
mod terminal;
pub mod test;
pub mod third_party;
mod up;
mod webdav;

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use clap::{Parser, Subcommand};
pub(crate) use xtask::git::git;
use xtask::last_use::BuildSet;

use crate::context::XtaskContext;
use crate::failure::{Result, TaskError};

/// The program of the benchmarks.
const BENCH: &str = "alknet-bench";

/// The commands of this project.
#[derive(Debug, Parser)]
#[command(
    name = "xtask",
    bin_name = "cargo xtask",
    version,
    disable_help_subcommand = true
)]
struct XtaskCli {
    /// Folder to look for sources in before any other place
    #[arg(long, global = true, value_name = "DIR")]
    sources: Option<PathBuf>,
    #[command(subcommand)]
    task: XtaskCommand,
}

#[derive(Debug, Subcommand)]
enum XtaskCommand {
    /// Measure, and print rows; exit code 1 when a bound is missed that docs/SPECIFICATION.md promises
    #[command(disable_help_flag = true)]
    Bench {
        /// For the benchmarks' own program
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Build the one binary, or find it in the cache, and say where it is
    Build(build::BuildArgs),
    /// Say how large the cache is, or make it smaller
    Cache(cache::CacheArgs),
    /// Build Vulkan drivers and the program that uses them, or find them in the cache, and say where
    Driver(driver::DriverArgs),
    /// Write image files and their manifest
    Image(image::ImageArgs),
    /// Build the kernel, or find it in the cache, and say where it is
    Kernel,
    /// Compare the list of licences that the binary contains with its crates, or write it
    Licenses(licenses::LicensesArgs),
    /// Build every form twice, in two places, and compare the bytes
    Reproduce(reproduce::ReproduceArgs),
    /// Get everything the other commands need, and stop there
    Setup,
    /// Print what each crate, the kernel, the program for GPUs and each form weigh, and what changed
    Sizes(sizes::SizesArgs),
    /// Run the long campaigns at full count, and write a summary
    Soak(soak::SoakArgs),
    /// Everything continuous integration runs
    Test(test::TestArgs),
    /// Boot the appliance in QEMU, make one call, stay with its console
    Up(up::UpArgs),
}

/// Runs the command of the command line.
#[must_use]
pub fn main() -> ExitCode {
    exit_code(run(XtaskCli::parse()))
}

/// Prints the error, if there is one.
#[must_use]
pub fn exit_code(done: Result<()>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("xtask: {failure}");
            ExitCode::from(failure.exit_code())
        }
    }
}

fn run(line: XtaskCli) -> Result<()> {
    if let XtaskCommand::Test(_) | XtaskCommand::Soak(_) = line.task {
        group::end_with_this_process().map_err(TaskError::io("wait for signals"))?;
    }
    let mut cx = XtaskContext::from_environment(line.sources)?;
    // Pruning waits for all other commands.
    let _in_use = match line.task {
        XtaskCommand::Cache(_) => None,
        _ => Some(cache::in_use(&cx)?),
    };
    // `cache` has no steps, and `test` prints more below its table.
    let has_table = !matches!(line.task, XtaskCommand::Cache(_) | XtaskCommand::Test(_));
    let result = perform(&mut cx, line.task);
    if has_table {
        eprint!("{}", cx.table());
    }
    result
}

fn perform(cx: &mut XtaskContext, task: XtaskCommand) -> Result<()> {
    match task {
        XtaskCommand::Bench { arguments } => bench(cx, &arguments),
        XtaskCommand::Build(arguments) => build::run(cx, &arguments),
        XtaskCommand::Cache(arguments) => cache::run(cx, &arguments),
        XtaskCommand::Driver(arguments) => {
            let gpu = cx.step("gpu", |cx| gpu::ensure(cx, &arguments.vulkan))?;
            println!("{}\n{}", gpu.executable.display(), gpu.packed.display());
            Ok(())
        }
        XtaskCommand::Image(arguments) => image::run(cx, &arguments),
        XtaskCommand::Kernel => {
            let kernel = cx.step("kernel", |cx| kernel::ensure(cx))?;
            println!(
                "{}\n{}\n{}",
                kernel.bzimage.display(),
                kernel.vmlinux.display(),
                kernel.config.display()
            );
            Ok(())
        }
        XtaskCommand::Licenses(arguments) => licenses::run(cx, &arguments),
        XtaskCommand::Reproduce(arguments) => reproduce::run(cx, &arguments),
        XtaskCommand::Setup => {
            test::BootArtifacts::ensure(cx, &driver::DriverSelection::usual()).map(drop)
        }
        XtaskCommand::Sizes(arguments) => sizes::run(cx, &arguments),
        XtaskCommand::Soak(arguments) => soak::run(cx, &arguments),
        XtaskCommand::Test(arguments) => test::run(cx, &arguments),
        XtaskCommand::Up(arguments) => up::run(cx, &arguments),
    }
}

/// Builds the program of the benchmarks and replaces this process by it.
fn bench(cx: &XtaskContext, arguments: &[String]) -> Result<()> {
    let lock = cx.claim()?;
    let program = cx.build(BENCH, BuildSet::Part)?;
    let mut command = Command::new(&program);
    if let Some(sources) = &cx.sources {
        command.arg("--sources").arg(sources);
    }
    let error = command.args(arguments).exec();
    // Only a failed `exec` gets here. The lock is held until then.
    drop(lock);
    Err(TaskError::io(format!("start {}", program.display()))(error))
}

#[cfg(test)]
mod tests {
    use std::iter;
    use std::path::Path;

    use xtask::memory::MEMORY_VARIABLE;
    use xtask::progress::STEPS_VARIABLE;

    use super::*;

    /// The prefix of a page's line that is a command of this program.
    const PAGE_COMMAND: &str = "cargo xtask ";

    #[test]
    fn each_command_of_a_page_is_one_of_this_program() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let docs = std::fs::read_dir(root.join("docs")).expect("the docs");
        let docs = docs.map(|entry| entry.expect("a readable entry").path());
        let docs = docs.filter(|path| path.extension().is_some_and(|end| end == "md"));
        let mut commands = 0;
        for page in docs.chain([root.join("README.md")]) {
            let text = std::fs::read_to_string(&page).expect("a readable page");
            for line in text.lines().filter_map(|it| it.strip_prefix(PAGE_COMMAND)) {
                // The text behind `#` is for people. No command of a page has a space within
                // quotation marks.
                let command = line.split('#').next().unwrap_or_default();
                let words = command
                    .split_whitespace()
                    .map(|word| word.trim_matches('"'));
                let parsed = XtaskCli::try_parse_from(iter::once("xtask").chain(words));
                let refused = parsed.err().map(|error| error.to_string());
                assert_eq!(refused, None, "{}: {command}", page.display());
                commands += 1;
            }
        }
        assert!(commands > 15, "{commands} commands");
    }

    /// Set in the process that runs a failing command.
    const FAILING: &str = "ALKNET_TEST_FAILING";

    /// What the command of `words` prints on stderr when it fails, in a folder that is no clone.
    /// `test` is the calling test, which runs again in a process that has no steps but one of the
    /// front's.
    fn said_by_failing(test: &str, words: &[&str]) -> Option<String> {
        if std::env::var_os(FAILING).is_some() {
            let line = XtaskCli::parse_from(iter::once(&"xtask").chain(words));
            run(line).expect_err("the folder is no clone");
            return None;
        }
        let folder = tempfile::tempdir().expect("a temporary folder");
        let [root, cache] = ["root", "cache"].map(|name| folder.path().join(name));
        std::fs::create_dir(&root).expect("writable");
        let child = Command::new("/proc/self/exe")
            .args(["--exact", &format!("tests::{test}"), "--nocapture"])
            .env(FAILING, "1")
            .env("ALKNET_ROOT", root)
            .env("ALKNET_CACHE", cache)
            .env("ALKNET_TEST_SLOWDOWN", "1")
            .env(STEPS_VARIABLE, "system packages=2.500")
            .env(MEMORY_VARIABLE, "1000000000000:31457280")
            .output()
            .expect("this program runs");
        let said = String::from_utf8_lossy(&child.stderr).into_owned();
        assert!(child.status.success(), "{said}");
        Some(said)
    }

    #[test]
    fn the_table_of_steps_stands_at_the_end_of_a_command_that_failed() {
        let test = "the_table_of_steps_stands_at_the_end_of_a_command_that_failed";
        if let Some(said) = said_by_failing(test, &["kernel"]) {
            let table = said.rsplit_once("  kernel ").map(|(_, end)| end);
            assert!(
                table.is_some_and(|end| end.contains("\n  total ")),
                "{said}"
            );
        }
    }

    #[test]
    fn the_binary_is_built_without_a_kernel() {
        let test = "the_binary_is_built_without_a_kernel";
        if let Some(said) = said_by_failing(test, &["build"]) {
            let (_, table) = said.rsplit_once("  system packages  ").expect("a table");
            for step in ["Vulkan driver", "workspace", "total"] {
                assert!(table.contains(&format!("\n  {step} ")), "{step}: {said}");
            }
            assert!(!table.contains("\n  kernel "), "{said}");
        }
    }

    /// `test` prints its own table, with more below.
    #[test]
    fn the_table_of_steps_stands_at_the_end_of_tests_that_failed() {
        let test = "the_table_of_steps_stands_at_the_end_of_tests_that_failed";
        if let Some(said) = said_by_failing(test, &["test"]) {
            let table = said.rsplit_once("  system packages  ");
            let table = table.and_then(|(_, end)| end.split_once("\n  total "));
            assert!(
                table.is_some_and(|(_, below)| below.contains("\n  slowdown: ")),
                "{said}"
            );
            // The memory that was in use while the front worked.
            assert!(said.contains("\n  memory: at most 30.0 GiB"), "{said}");
        }
    }
}
