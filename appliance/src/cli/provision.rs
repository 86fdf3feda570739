//! `alknet provision`: what a node is told at its first start, made on the desk of whoever owns it.

use std::io::{self, IsTerminal, Read, Write};

use alknet_init::console::{Charset, qr_code};
use alknet_provision_cli::{Host, ProvisionArgs, ProvisionError, Terminal, Tty, run as run_here};
use clap::Args;

use super::{Exit, Failure, StateArgs, output};

/// Arguments of `alknet provision`, and where this computer's key is.
#[derive(Debug, Args)]
pub(crate) struct OwnArgs {
    #[command(flatten)]
    what: ProvisionArgs,
    #[command(flatten)]
    state: StateArgs,
}

/// Runs it.
pub(crate) fn run(args: &OwnArgs, json: bool) -> Result<Exit, Failure> {
    let mut host = Here { state: &args.state };
    let ended = run_here(&args.what, json, &mut host, &mut output::bytes());
    ended
        .map(|()| Exit::Ok)
        .map_err(|error| of_provision(&error))
}

/// This computer.
struct Here<'a> {
    state: &'a StateArgs,
}

impl Host for Here<'_> {
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
        // Where standard error is gone there is nobody left to tell.
        writeln!(io::stderr(), "alknet: {line}").ok();
    }

    /// Only where somebody is there: a program that is started from a terminal has one as well.
    fn terminal(&mut self) -> Option<Box<dyn Terminal>> {
        let is_there = io::stdin().is_terminal() && io::stderr().is_terminal();
        let tty = Tty::open().filter(|_| is_there)?;
        Some(Box::new(tty))
    }
}

fn of_provision(error: &ProvisionError) -> Failure {
    let exit = match error.exit() {
        0 => Exit::Ok,
        2 => Exit::Usage,
        12 => Exit::BadWords,
        _ => Exit::Failed,
    };
    Failure::new(exit, error.code(), error)
}
