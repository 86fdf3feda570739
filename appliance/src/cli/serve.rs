//! `alknet serve`: the node on this computer.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};

use alknet_core::config::{ConfigError, NodeConfig};
use alknet_endpoint::EndpointError;
use clap::Args;
use serde_json::json;

use super::{CommandError, CommandExit, StateArgs, output};
use crate::node::{self, ConfigOverlay, NodeActivity, ServeFile, StartupConfig, StateLock};

/// Arguments of `alknet serve`.
#[derive(Clone, Debug, Args)]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    state: StateArgs,
    /// The configuration file (see 'alknet config schema'). The node reads it again when it changes, and at SIGHUP.
    /// '--port' and '--listen' win over the file, and '--admin' adds to it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The port, UDP and TCP; 0 takes a free one [default: that of the configuration, or 443]
    #[arg(long)]
    port: Option<u16>,
    /// An address to listen on. Repeat the option for more [default: all addresses]
    #[arg(long, value_name = "ADDRESS")]
    listen: Vec<IpAddr>,
    /// The key of an administrator, as 'alknet identity' prints it, besides those of the file. Repeat the option for
    /// more.
    #[arg(long, value_name = "KEY")]
    admin: Vec<String>,
    /// Log debug records, too.
    #[arg(long, short)]
    verbose: bool,
}

impl ServeArgs {
    /// Where the node keeps its state.
    pub(crate) fn state_dir(&self) -> Result<PathBuf, CommandError> {
        self.state.dir()
    }
}

/// Serves until a signal stops it.
pub(crate) fn run(args: ServeArgs, json: bool) -> Result<CommandExit, CommandError> {
    // A first start that cannot have its port leaves no folder and no key behind.
    if !args.state.path()?.exists() {
        let listen = configuration(args.clone())?.config.listen;
        refuse_taken(&listen.addrs, listen.port)?;
    }
    let state_dir = args.state.dir()?;
    // Before the configuration: two nodes with one state directory would write over each other.
    let lock = StateLock::take(&state_dir)?;
    run_locked(args, lock, json)
}

/// Refuses a port that this process cannot have. The sockets are closed again: the node binds its own, and an error of
/// another kind is left to it, which knows more ways.
fn refuse_taken(addresses: &[IpAddr], port: u16) -> Result<(), CommandError> {
    // Port 0 stands for a free one.
    let addresses = addresses.iter().filter(|_| port != 0);
    for address in addresses.map(|ip| SocketAddr::new(*ip, port)) {
        let tcp = TcpListener::bind(address);
        let both = tcp.and_then(|_tcp| UdpSocket::bind(address).map(drop));
        match both {
            Err(source) if is_final(&source, address.ip()) => {
                return Err(CommandError::local(EndpointError::Bind { address, source }));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Whether the node would fail at this error as well.
fn is_final(error: &io::Error, ip: IpAddr) -> bool {
    match error.kind() {
        ErrorKind::AddrInUse | ErrorKind::PermissionDenied => true,
        // A kernel without IPv6 has the addresses of IPv4 all the same.
        ErrorKind::AddrNotAvailable => !ip.is_unspecified(),
        _ => false,
    }
}

/// Runs the node where this process has locked the state directory already.
pub(crate) fn run_locked(
    args: ServeArgs,
    lock: StateLock,
    json: bool,
) -> Result<CommandExit, CommandError> {
    let state_dir = args.state.dir()?;
    let verbose = args.verbose;
    let configured = configuration(args)?;
    let config = configured.config.clone();
    let started = |file: &ServeFile| started(file, &config, json);
    node::serve(
        configured,
        (&state_dir, lock),
        verbose,
        started,
        |activity| {
            output::note(&stopping(activity));
        },
    )
}

fn configuration(args: ServeArgs) -> Result<StartupConfig, CommandError> {
    for key in &args.admin {
        key.parse::<alknet_core::PeerKey>()
            .map_err(CommandError::usage)?;
    }
    let overlay = ConfigOverlay {
        admin_keys: args.admin,
        addrs: args.listen,
        port: args.port,
    };
    let mut configured = match args.config {
        None => StartupConfig {
            config: NodeConfig::default(),
            overlay: ConfigOverlay::default(),
            file: None,
            good: None,
            problems: Vec::new(),
        },
        Some(file) => from_file(file)?,
    };
    // Addresses and port of the command line win over the file. Its administrators are added to those of the file.
    overlay.put_over(&mut configured.config);
    configured.overlay = overlay;
    Ok(configured)
}

/// What the file says; where it is damaged, what it said when it last was not.
fn from_file(file: PathBuf) -> Result<StartupConfig, CommandError> {
    let document = node::read_document(&file).map_err(|error| vec![error]);
    let read = document.and_then(|good| Ok((NodeConfig::parse(&good)?, good)));
    let (config, good, problems) = match read {
        Ok((config, good)) => (config, Some(good), Vec::new()),
        Err(errors) => {
            let name = file.display().to_string();
            // A node far away should come up with its last good configuration, so that a person can mend it from
            // there.
            let config = last_good(&file).ok_or_else(|| refused(&name, &errors))?;
            (config, None, node::refusal(&name, &errors))
        }
    };
    Ok(StartupConfig {
        config,
        overlay: ConfigOverlay::default(),
        file: Some(file),
        good,
        problems,
    })
}

fn last_good(file: &Path) -> Option<NodeConfig> {
    let document = node::read_last_good(file)?;
    NodeConfig::parse(&document).ok()
}

fn refused(name: &str, errors: &[ConfigError]) -> CommandError {
    let errors = errors.iter().cloned().map(super::config::of_seed);
    let lines = errors.map(|e| format!("{name}: {e}"));
    CommandError::of_lines(CommandExit::Usage, "USAGE", lines)
}

/// Says what the node waits for that was asked to stop.
fn stopping(activity: NodeActivity) -> String {
    let count = |n: usize, what: &str| match n {
        1 => format!("1 {what}"),
        n => format!("{n} {what}s"),
    };
    format!(
        "stopping: waiting up to {} s for {} and {}; press Ctrl-C again to end at once",
        node::DRAIN.as_secs(),
        count(activity.calls, "running call"),
        count(activity.connections, "open connection"),
    )
}

/// Says where the node is and what to do next.
fn started(file: &ServeFile, config: &NodeConfig, json: bool) -> Result<(), CommandError> {
    if json {
        return output::json_line(&json!(file));
    }
    output::line(&format!("serving {}", file.target))?;
    if let Some(iroh) = &file.iroh {
        output::line(&format!("and over iroh {iroh}"))?;
    }
    output::line(&if config.node.admin_keys.is_empty() {
        "it has no administrator yet: start it with --admin \"$(alknet identity)\"".to_owned()
    } else {
        format!("try: alknet call {} node/info", file.target)
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct ServeTestCli {
        #[command(flatten)]
        args: ServeArgs,
    }

    #[test]
    fn a_first_start_without_its_port_makes_no_folder() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let state = dir.path().join("state");
        let tcp = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let udp = UdpSocket::bind("127.0.0.1:0").expect("a free port");
        let ports = [tcp.local_addr(), udp.local_addr()].map(|it| it.expect("bound").port());
        let serve = |listen: &str, port: u16| {
            let (port, state) = (port.to_string(), state.display().to_string());
            let words = [
                "serve", "--state", &state, "--listen", listen, "--port", &port,
            ];
            run(
                ServeTestCli::try_parse_from(words)
                    .expect("a command line")
                    .args,
                true,
            )
        };
        for port in ports {
            let refused = serve("127.0.0.1", port).expect_err("the port is taken");
            assert!(
                refused.message.contains("another program has the port"),
                "{refused}"
            );
            assert!(!state.exists());
        }
        // An address of documentation (RFC 5737), which no computer has.
        let refused = serve("192.0.2.77", 4433).expect_err("no such address");
        assert!(
            refused.message.contains("does not have the address"),
            "{refused}"
        );
        assert!(!state.exists());
    }

    #[test]
    fn a_node_that_stops_says_what_it_waits_for() {
        let text = |calls, connections| stopping(NodeActivity { calls, connections });
        assert_eq!(
            text(1, 2),
            "stopping: waiting up to 10 s for 1 running call and 2 open connections; press Ctrl-C again to \
             end at once"
        );
        assert!(text(0, 1).contains("0 running calls and 1 open connection;"));
    }
}
