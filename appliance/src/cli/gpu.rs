//! `alknet gpu`: this computer's GPU, or its processor as one, without a node.

use std::convert::Infallible;
use std::ffi::{CString, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use alknet_embedded_exe::EmbeddedExeError;

use super::{CommandError, CommandExit};

/// What the program calls itself in its help.
const NAME: &str = "alknet gpu";

/// Arguments of `alknet gpu`.
#[derive(Debug, clap::Args)]
pub(crate) struct GpuArgs {
    /// The verb (bench, info, run or selftest) and its arguments; 'alknet gpu help' lists them.
    #[arg(
        value_name = "COMMAND",
        trailing_var_arg = true,
        allow_hyphen_values = true,
        required = true
    )]
    command: Vec<OsString>,
}

/// Becomes the program that this executable carries; its exit codes are its own.
pub(crate) fn run(args: GpuArgs, json: bool) -> Result<CommandExit, CommandError> {
    let program = crate::gpu::program().map_err(|error| match error {
        EmbeddedExeError::None => CommandError::usage(error),
        error => CommandError::local(error),
    })?;
    let mut command = vec![OsString::from(NAME)];
    command.extend(args.command);
    // clap took the option from the command line before the rest was passed on.
    command.extend(json.then(|| OsString::from("--json")));
    let arguments = texts(command)?;
    let environment = std::env::vars_os().map(|(mut name, value)| {
        name.push("=");
        name.push(value);
        name
    });
    let environment = texts(environment)?;
    // From the open file: it has no name in a file system.
    let become_it: Result<Infallible, _> = nix::unistd::fexecve(&program, &arguments, &environment);
    match become_it {
        Ok(never) => match never {},
        Err(errno) => Err(CommandError::local(format!(
            "the program for GPUs could not be started: {errno}"
        ))),
    }
}

fn texts(texts: impl IntoIterator<Item = OsString>) -> Result<Vec<CString>, CommandError> {
    let text = |text: OsString| {
        let shown = String::from_utf8_lossy(text.as_bytes()).into_owned();
        CString::new(text.into_vec())
            .map_err(|_| CommandError::usage(format!("'{shown}' holds a null character")))
    };
    texts.into_iter().map(text).collect()
}
