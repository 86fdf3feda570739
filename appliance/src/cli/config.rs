//! `alknet config`: what a configuration may hold, and whether a file does.

use std::path::PathBuf;

use alknet_core::config::NodeConfig;
use clap::Subcommand;
use serde_json::json;

use super::{Exit, Failure, output};

/// The verbs below `alknet config`.
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigVerb {
    /// Check a file: every mistake is printed with its line and what to write instead.
    #[command(after_help = "Example:\n  alknet config check alknet.toml")]
    Check {
        /// The TOML document; `-` reads standard input.
        file: PathBuf,
    },
    /// Print the JSON Schema of the document.
    #[command(after_help = "Example:\n  alknet config schema > alknet.schema.json")]
    Schema,
}

/// Runs one of them.
pub(crate) fn run(verb: ConfigVerb, json: bool) -> Result<Exit, Failure> {
    match verb {
        ConfigVerb::Check { file } => check(&file, json),
        ConfigVerb::Schema => {
            let schema = serde_json::to_string_pretty(&NodeConfig::json_schema());
            output::line(&schema.map_err(Failure::local)?)?;
            Ok(Exit::Ok)
        }
    }
}

fn check(file: &std::path::Path, json: bool) -> Result<Exit, Failure> {
    let name = file.display();
    let bytes = if file.as_os_str() == "-" {
        super::call::read_stdin()?
    } else {
        std::fs::read(file).map_err(|e| Failure::usage(format!("cannot read {name}: {e}")))?
    };
    let errors = NodeConfig::parse(&bytes).err().unwrap_or_default();
    if json {
        let errors: Vec<_> = errors.iter().map(ToString::to_string).collect();
        output::json_line(&json!({ "valid": errors.is_empty(), "errors": errors }))?;
    } else if errors.is_empty() {
        output::line(&format!("{name}: valid"))?;
    } else {
        for error in &errors {
            output::line(&format!("{name}: {error}"))?;
        }
    }
    Ok(if errors.is_empty() {
        Exit::Ok
    } else {
        Exit::Usage
    })
}
