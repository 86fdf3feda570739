//! `cargo xtask COMMAND`: prepares the machine, builds `alknet-tasks`, and becomes it.

use std::env;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::thread;

use xtask::last_use::BuildSet;
use xtask::locks::{self, Sharing};
use xtask::memory::{self, MemoryWatch};
use xtask::mirror;
use xtask::packages::{self, PackagePurpose};
use xtask::progress::{self, Board, StepTime};
use xtask::workspace::{BuildLock, Workspace};
use xtask::{cache, front, rustc};

/// The program that does the commands' work.
const TASKS: &str = "alknet-tasks";

const HELP: &str = "\
cargo xtask COMMAND

  build   build the one binary, and say where it is; with --install DIR, copy it there
  up      build, boot the appliance in QEMU, make one call, stay with its console
  test    everything continuous integration runs
  soak    the long campaigns at full count
  bench   measure, and print rows of JSON
  image   write image files and their manifest
  driver  build Vulkan drivers and the program that uses them, and say where they are
  kernel  build (or find in the cache) the kernel, and say where it is
  sizes   print what each crate, the kernel and each form weigh, and what changed
  reproduce  build every form, or the programs, in two places, and compare the bytes
  licenses   compare the licences that the binary contains with its crates, or write them
  setup   get everything the other commands need, and stop there
  cache   say how large the cache is; with --prune, bring it below 15 GiB
  cargo   cargo itself, in the folder where the commands build: `cargo xtask cargo check -p alknet-core`

Each command takes --help. Missing system packages are installed when you are root; otherwise the
line to run is printed. Heavy outputs live in ${ALKNET_CACHE:-${XDG_CACHE_HOME:-~/.cache}/alknet};
deleting that folder is safe while no command runs, but `up/` in it has the identity and the data of
the machine that `up` keeps.";

/// Wrong arguments, or something on this machine that the user must change.
const EXIT_USAGE: u8 = 2;

fn main() -> ExitCode {
    // This comes first, because cargo starts this program under another name as the compiler.
    if let Some(text) = rustc::stand_in() {
        eprintln!("{text}");
        return ExitCode::from(EXIT_USAGE);
    }
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        None | Some("help" | "--help" | "-h") => {
            println!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Some(_) => {}
    }
    let text = if arguments[0] == "cargo" {
        match cargo(&arguments[1..]) {
            Ok(code) => return code,
            Err(text) => text,
        }
    } else {
        run(&arguments)
    };
    eprintln!("xtask: {text}");
    ExitCode::from(EXIT_USAGE)
}

/// Returns only on an error, with its text.
fn run(arguments: &[String]) -> String {
    let memory = MemoryWatch::watch();
    match prepare(arguments) {
        Ok(prepared) => hand_over(&prepared, arguments, &memory),
        Err(text) => text,
    }
}

/// Runs cargo in the mirror, where it finds what the commands compiled, and copies back what it
/// changed there.
fn cargo(arguments: &[String]) -> Result<ExitCode, String> {
    let workspace = Workspace::new(&clone_root()?, &cache::folder()?)?;
    if is_clean(arguments) {
        return Err(
            "the build folder is shared by every clone on this machine, and they may be using it: \
             `cargo xtask cache --prune` removes what no clone needs"
                .to_owned(),
        );
    }
    let (subcommand, rest) = arguments
        .split_first()
        .ok_or("give cargo something to do: `cargo xtask cargo check --package NAME`")?;
    workspace.open_cache()?;
    let running = workspace.cache().join(cache::RUNNING_COMMANDS);
    let _running = locks::take(&running, Sharing::Shared, |_| {
        eprintln!("waiting for `cargo xtask cache --prune` ...");
    })
    .map_err(|error| format!("cannot lock {}: {error}", running.display()))?;
    let lock = claim(&workspace)?;
    let status = workspace.cargo(subcommand).args(rest).status();
    let status = status.map_err(|error| format!("cannot run cargo: {error}"))?;
    // Even if cargo failed: it may have written its lock file before.
    bring_back(&workspace, &lock)?;
    drop(lock);
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(ExitCode::from(code.unwrap_or(1)))
}

/// Whether cargo would delete the build folder. Options and a toolchain's name may come first.
fn is_clean(arguments: &[String]) -> bool {
    let mut words = arguments
        .iter()
        .filter(|word| !word.starts_with(['-', '+']));
    words.next().is_some_and(|word| word == "clean")
}

fn bring_back(workspace: &Workspace, lock: &BuildLock) -> Result<(), String> {
    for line in workspace.bring_back(lock)?.lines(&workspace.mirror()) {
        eprintln!("xtask: {line}");
    }
    Ok(())
}

/// Which packages a command needs. An unknown command reports itself with the fewest.
///
/// A cache without a kernel or without a driver means a first start. Then what compiles them is
/// installed while `alknet-tasks` is built. Later they are compiled only when their inputs change,
/// and the step that compiles one installs what is missing. The same holds for the step that
/// fetches from npm's registry: Debian's npm is 350 packages, and what it fetches stays in the
/// cache. It also holds for programs with which two benchmarks compare. A user who is not root installs everything at once, since the message at the start lists
/// it.
fn purpose_of(command: &str, cache: &Path, is_root: bool) -> PackagePurpose {
    let test = matches!(command, "bench" | "setup" | "soak" | "test");
    PackagePurpose {
        // Packages only for compiling are not installed if nothing will be compiled.
        compile: command == "setup" || !cache::has_kernel_and_driver(cache),
        test,
        npm: command == "setup" || (test && !is_root),
        peers: command == "setup" || (command == "bench" && !is_root),
    }
}

/// What is ready when `alknet-tasks` can start.
struct PreparedWorkspace {
    workspace: Workspace,
    steps: Vec<StepTime>,
    /// Released when this process becomes `alknet-tasks`. Until then no other clone can overwrite
    /// the program.
    _lock: BuildLock,
}

/// Installs packages and builds `alknet-tasks` at the same time, because one waits for downloads
/// and the other for the processor.
fn prepare(arguments: &[String]) -> Result<PreparedWorkspace, String> {
    let workspace = Workspace::new(&clone_root()?, &cache::folder()?)?;
    let cache = workspace.cache();
    let purpose = purpose_of(&arguments[0], cache, packages::is_root());
    let wanted = packages::to_install(purpose)?;
    let lock = claim(&workspace)?;
    let board = Board::new(&cache.join(progress::HISTORY));
    if let Some(command) = progress::TimedCommand::from_arguments(arguments) {
        board.announce_rest(command);
    }
    let steps = thread::scope(|scope| {
        let installing = (!wanted.is_empty()).then(|| {
            scope.spawn(|| {
                let row = board.start("system packages");
                packages::install(&wanted, purpose, &cache.join("logs"), &row)?;
                Ok::<StepTime, String>(row.finish())
            })
        });
        let row = board.start("project commands");
        let built = workspace.build(TASKS, BuildSet::Commands, &row);
        let built = built.map(|_| row.finish());
        let installed = installing.map(|thread| {
            let joined = thread.join();
            joined.unwrap_or_else(|_| Err("installing packages ended in a panic".to_owned()))
        });
        let mut steps: Vec<StepTime> = installed.transpose()?.into_iter().collect();
        steps.push(built?);
        Ok::<_, String>(steps)
    })?;
    drop(board);
    // Cargo writes its lock file after a manifest was edited.
    bring_back(&workspace, &lock)?;
    Ok(PreparedWorkspace {
        workspace,
        steps,
        _lock: lock,
    })
}

/// Takes the build folder, and installs the compiler's front.
fn claim(workspace: &Workspace) -> Result<BuildLock, String> {
    let lock = workspace.claim()?;
    for file in lock.left_out() {
        eprintln!(
            "xtask: not built with: {}, which git does not track and which is larger than {} MiB",
            file.display(),
            mirror::LARGEST_UNTRACKED >> 20
        );
    }
    env::current_exe()
        .and_then(|this| front::install(&this, workspace.cache()))
        .map_err(|error| format!("cannot put the compiler's front into the cache: {error}"))?;
    Ok(lock)
}

/// Cargo passes its package's folder to a program that it runs.
fn clone_root() -> Result<PathBuf, String> {
    let package = env::var_os("CARGO_MANIFEST_DIR")
        .ok_or("run this as `cargo xtask COMMAND` inside the clone")?;
    Ok(PathBuf::from(package).join("../.."))
}

fn hand_over(prepared: &PreparedWorkspace, arguments: &[String], memory: &MemoryWatch) -> String {
    let program = prepared.workspace.executable(TASKS);
    let error = Command::new(&program)
        .args(arguments)
        .env("ALKNET_ROOT", prepared.workspace.root())
        .env("ALKNET_CACHE", prepared.workspace.cache())
        .env(
            progress::STEPS_VARIABLE,
            progress::encode_steps(&prepared.steps),
        )
        .envs(memory.encoded().map(|seen| (memory::MEMORY_VARIABLE, seen)))
        // The same process continues, so that only one program gets the terminal's signals.
        .exec();
    format!("cannot start {}: {error}", program.display())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_first_start_gets_what_compiles_kernel_and_driver() {
        let cache = tempfile::tempdir().expect("a folder of this test's own");
        let purpose = |command| purpose_of(command, cache.path(), true);
        let compiles = |command| purpose(command).compile;
        assert!(compiles("up") && compiles("test"));
        for file in ["kernel/0/bzImage", "vulkan/llvmpipe-0/libvulkan_llvmpipe.a"] {
            assert!(compiles("up"), "one of the two is not there yet");
            let file = cache.path().join(file);
            fs::create_dir_all(file.parent().expect("a folder")).expect("writable");
            fs::write(file, "").expect("writable");
        }
        assert!(!compiles("up") && !compiles("test"));
        assert!(compiles("setup"), "it gets everything");
        assert!(!purpose("up").test && purpose("test").test);
    }

    #[test]
    fn npm_comes_when_it_fetches_where_this_may_install_it() {
        let cache = tempfile::tempdir().expect("a folder of this test's own");
        let npm = |command, is_root| purpose_of(command, cache.path(), is_root).npm;
        assert!(!npm("test", true) && npm("test", false) && !npm("up", false));
        assert!(npm("setup", true), "it gets everything");
    }

    #[test]
    fn peers_come_with_the_benchmark_where_this_may_install_them() {
        let cache = tempfile::tempdir().expect("a folder of this test's own");
        let peers = |command, is_root| purpose_of(command, cache.path(), is_root).peers;
        assert!(!peers("bench", true) && peers("bench", false) && !peers("test", false));
        assert!(peers("setup", true), "it gets everything");
    }

    #[test]
    fn cleaning_is_found_behind_options() {
        let clean = |line: &str| {
            let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            is_clean(&words)
        };
        assert!(clean("clean") && clean("--offline clean -p a") && clean("+nightly clean"));
        assert!(!clean("check --package clean") && !clean("fmt"));
    }
}
