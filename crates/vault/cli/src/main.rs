//! The verbs of `alknet vault` as a program of their own: for tests, and for whoever has no node.

use std::io::Write as _;
use std::process::ExitCode;

use alknet_vault_cli::{Terminal, Verb, run};
use clap::Parser;

#[derive(Parser)]
#[command(
    name = "alknet-vault-tool",
    about = "Keys and secrets of a node, on this computer"
)]
struct Arguments {
    /// Print one line of JSON instead of text for people.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    verb: Verb,
}

fn main() -> ExitCode {
    let Arguments { json, verb } = Arguments::parse();
    let mut out = std::io::stdout().lock();
    match run(verb, json, &mut out, &mut Terminal::new()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let text = match json {
                true => {
                    let error =
                        serde_json::json!({ "code": error.code(), "message": error.to_string() });
                    serde_json::json!({ "error": error }).to_string()
                }
                false => format!("alknet: {}: {error}", error.code()),
            };
            // Where standard error is gone there is nobody left to tell.
            writeln!(std::io::stderr(), "{text}").ok();
            ExitCode::from(error.exit())
        }
    }
}
