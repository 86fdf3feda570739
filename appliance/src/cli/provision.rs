//! `alknet provision`: makes what a node reads at its first start, on the computer of the node's
//! owner.

use std::io::{self, IsTerminal, Read};

use alknet_init::console::{Charset, qr_code};
use alknet_provision_cli::{
    ControllingTerminal, ProvisionArgs, ProvisionError, ProvisionHost, WordsTerminal,
    run as run_here,
};
use clap::Args;

use super::{CommandError, CommandExit, StateArgs, output};

/// Arguments of `alknet provision`, and where this computer's key is.
#[derive(Debug, Args)]
pub(crate) struct ProvisionCliArgs {
    #[command(flatten)]
    what: ProvisionArgs,
    #[command(flatten)]
    state: StateArgs,
}

/// Runs it.
pub(crate) fn run(args: &ProvisionCliArgs, json: bool) -> Result<CommandExit, CommandError> {
    let mut host = CliHost { state: &args.state };
    let ended = run_here(&args.what, json, &mut host, &mut output::bytes());
    ended
        .map(|()| CommandExit::Ok)
        .map_err(|error| of_provision(&error))
}

/// This computer.
struct CliHost<'a> {
    state: &'a StateArgs,
}

impl ProvisionHost for CliHost<'_> {
    fn admin_key(&mut self) -> Result<String, String> {
        let key = self.state.key().map_err(|failure| failure.message)?;
        Ok(key.public().to_string())
    }

    fn qr_code(&self, text: &str) -> Option<Vec<String>> {
        qr_code(text, Charset::Utf8)
    }

    fn stdin(&mut self, bytes: usize) -> io::Result<Vec<u8>> {
        let mut read = Vec::with_capacity(bytes);
        io::stdin()
            .lock()
            .take(bytes as u64)
            .read_to_end(&mut read)?;
        Ok(read)
    }

    fn tell(&mut self, line: &str) {
        output::note(&format!("alknet: {line}"));
    }

    /// The terminal, only where a person sits at it: standard input and standard error are
    /// terminals. A program that is started from a terminal has a controlling terminal as well.
    fn terminal(&mut self) -> Option<Box<dyn WordsTerminal>> {
        // A pipe or a script beside a terminal: the words would be shown to a person who does not expect them.
        let is_there = io::stdin().is_terminal() && io::stderr().is_terminal();
        let tty = ControllingTerminal::open().filter(|_| is_there)?;
        Some(Box::new(tty))
    }
}

fn of_provision(error: &ProvisionError) -> CommandError {
    let exit = match error.exit() {
        0 => CommandExit::Ok,
        2 => CommandExit::Usage,
        12 => CommandExit::BadWords,
        130 => CommandExit::Aborted,
        _ => CommandExit::Failed,
    };
    CommandError::new(exit, error.code(), error)
}
