//! `cargo xtask COMMAND`: gets the machine ready, builds everything once, hands over to
//! `alknet-tasks`.

use std::env;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Instant;

use xtask::progress::{self, StepTime};
use xtask::workspace::Workspace;
use xtask::{cache, packages};

const HELP: &str = "\
cargo xtask COMMAND

  up      build, boot the appliance in QEMU, make one call, stay with its console
  test    everything continuous integration runs
  soak    the long campaigns at full count
  bench   measure, and print rows of JSON
  image   write image files and their manifest
  driver  build Vulkan drivers and the program that uses them, and say where they are
  kernel  build (or find in the cache) the kernel, and say where it is
  setup   get everything the other commands need, and stop there

Each command takes --help. Missing system packages are installed when you are root; otherwise the
line to run is printed. Heavy outputs live in ${ALKNET_CACHE:-${XDG_CACHE_HOME:-~/.cache}/alknet};
deleting that folder is always safe.";

/// Wrong arguments, or something on this machine that the user must change.
const EXIT_USAGE: u8 = 2;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        None | Some("help" | "--help" | "-h") => {
            println!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Some(_) => {}
    }
    let text = run(&arguments);
    eprintln!("xtask: {text}");
    ExitCode::from(EXIT_USAGE)
}

/// Returns only when something is wrong, with what it is.
fn run(arguments: &[String]) -> String {
    match prepare() {
        Ok((workspace, steps)) => hand_over(&workspace, &steps, arguments),
        Err(text) => text,
    }
}

fn prepare() -> Result<(Workspace, Vec<StepTime>), String> {
    let cache = cache::folder()?;
    let workspace = Workspace::new(&clone_root()?, &cache)?;
    let mut steps = Vec::new();
    let started = Instant::now();
    let installed = packages::ensure(&cache.join("logs"))?;
    if installed > 0 {
        record(
            &mut steps,
            &format!("system packages ({installed})"),
            started,
        );
    }
    let started = Instant::now();
    eprintln!("building the workspace ...");
    let lock = workspace.claim()?;
    workspace.build(&lock)?;
    record(&mut steps, "build", started);
    Ok((workspace, steps))
}

fn record(steps: &mut Vec<StepTime>, name: &str, started: Instant) {
    steps.push(StepTime {
        name: name.to_owned(),
        seconds: started.elapsed().as_secs_f64(),
    });
}

/// Cargo tells a program it runs where its package lies.
fn clone_root() -> Result<PathBuf, String> {
    let package = env::var_os("CARGO_MANIFEST_DIR")
        .ok_or("run this as `cargo xtask COMMAND` inside the clone")?;
    Ok(PathBuf::from(package).join("../.."))
}

fn hand_over(workspace: &Workspace, steps: &[StepTime], arguments: &[String]) -> String {
    let program = workspace.executable("alknet-tasks");
    let error = Command::new(&program)
        .args(arguments)
        .env("ALKNET_ROOT", workspace.root())
        .env("ALKNET_CACHE", workspace.cache())
        .env(progress::STEPS_VARIABLE, progress::encode_steps(steps))
        .exec();
    format!("cannot start {}: {error}", program.display())
}
