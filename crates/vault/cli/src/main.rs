//! The verbs of `alknet vault` as a program of their own, for tests and for users without a node.

use std::io::Write as _;
use std::process::ExitCode;

use alknet_vault_cli::{OfflineVaultVerb, TerminalPrompt, run};
use clap::Parser;

#[derive(Parser)]
#[command(
    name = "alknet-vault-tool",
    about = "Keys and secrets of a node, on this computer"
)]
struct VaultCommandLine {
    /// Print one line of JSON instead of text for people.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    verb: OfflineVaultVerb,
}

fn main() -> ExitCode {
    let VaultCommandLine { json, verb } = VaultCommandLine::parse();
    let mut out = std::io::stdout().lock();
    match run(verb, json, &mut out, &mut TerminalPrompt::new()) {
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
            // The result is dropped, because an error about standard error cannot be shown.
            writeln!(std::io::stderr(), "{text}").ok();
            ExitCode::from(error.exit())
        }
    }
}
