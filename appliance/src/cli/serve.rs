//! `alknet serve`: the node on this computer.

use std::net::IpAddr;
use std::path::PathBuf;

use alknet_core::config::NodeConfig;
use clap::Args;
use serde_json::json;

use super::{Exit, Failure, StateArgs, output};
use crate::node::{self, ServeFile};

/// Arguments of `alknet serve`.
#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    state: StateArgs,
    /// Configuration file (see 'alknet config schema'); options below win over it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The one port, UDP and TCP; 0 takes a free one [default: the configuration's, or 443]
    #[arg(long)]
    port: Option<u16>,
    /// Address to listen on; may be given more than once [default: all]
    #[arg(long, value_name = "ADDRESS")]
    listen: Vec<IpAddr>,
    /// Key that may do everything, as 'alknet identity' prints it; may be given more than once.
    #[arg(long, value_name = "KEY")]
    admin: Vec<String>,
    /// Log more.
    #[arg(long, short)]
    verbose: bool,
}

/// Serves until it is told to stop.
pub(crate) fn run(args: ServeArgs, json: bool) -> Result<Exit, Failure> {
    let state_dir = args.state.dir()?;
    let verbose = args.verbose;
    let config = configuration(args)?;
    node::serve(&config, &state_dir, verbose, |file| {
        started(file, &config, json)
    })
}

fn configuration(args: ServeArgs) -> Result<NodeConfig, Failure> {
    let mut config = match &args.config {
        None => NodeConfig::default(),
        Some(file) => {
            let name = file.display();
            let bytes = std::fs::read(file)
                .map_err(|error| Failure::usage(format!("cannot read {name}: {error}")))?;
            NodeConfig::parse(&bytes).map_err(|errors| {
                let lines: Vec<_> = errors.iter().map(|e| format!("{name}: {e}")).collect();
                Failure::usage(lines.join("\n"))
            })?
        }
    };
    for key in args.admin {
        key.parse::<alknet_core::PeerKey>()
            .map_err(Failure::usage)?;
        if !config.node.admin_keys.contains(&key) {
            config.node.admin_keys.push(key);
        }
    }
    if !args.listen.is_empty() {
        config.listen.addrs = args.listen;
    }
    config.listen.port = args.port.unwrap_or(config.listen.port);
    Ok(config)
}

/// Says where the node is and what to do next.
fn started(file: &ServeFile, config: &NodeConfig, json: bool) -> Result<(), Failure> {
    if json {
        return output::json_line(&json!({ "target": file.target, "pid": file.pid }));
    }
    output::line(&format!("serving {}", file.target))?;
    output::line(&if config.node.admin_keys.is_empty() {
        "nobody may administer it yet: start it with --admin \"$(alknet identity)\"".to_owned()
    } else {
        format!("try: alknet call {} node/info", file.target)
    })
}
