//! The command line.

mod batch;
mod call;
mod call_hint;
mod completion;
mod config;
mod confirmation;
mod credential;
mod decision;
mod dial;
mod disk;
mod duration;
mod enroll;
mod escrow;
mod exit;
mod file;
mod fs;
mod gpu;
mod help;
mod hub;
mod identity;
mod image;
mod js;
mod key;
mod license;
mod machine;
mod man;
mod name_hint;
mod node;
mod node_book;
mod node_caller;
mod open;
mod ops;
pub(crate) mod output;
mod peers;
mod pin;
mod promotion;
mod proposal_list;
mod provision;
mod query;
mod review;
mod row_args;
mod second_key;
mod serve;
mod status;
mod target;
mod tensor;
mod test_report;
mod token;
mod update;
mod vault;

use std::path::PathBuf;
use std::process::ExitCode;

use alknet_init::helper_task::HELPER_VERB;
use clap::{Args, FromArgMatches, Parser, Subcommand};

pub(crate) use dial::DialArgs;
pub(crate) use exit::{CommandError, CommandExit, chain_text};
use machine::PowerVerb;

/// One binary, one port, a whole machine.
#[derive(Debug, Parser)]
#[command(
    name = "alknet",
    version = alknet_init::image_version(),
    propagate_version = true,
    disable_help_subcommand = true
)]
#[command(
    after_help = "Nodes: NODE is a name of 'alknet node list', ed25519:<64 hex>@HOST:PORT (the key pins \
the node), HOST[:PORT] of a node with a public certificate, or PEER@HUB. A command without NODE means the \
node of 'alknet node use', else the one that 'alknet serve' runs with this state directory.\n\n\
'alknet help VERB' says more about a verb."
)]
struct AlknetCli {
    /// Print answers and errors as JSON, one value a line.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    verb: AlknetCommand,
}

#[derive(Debug, Subcommand)]
enum AlknetCommand {
    /// Call an operation of a node.
    #[command(
        after_help = "Examples:\n  alknet call ed25519:…@192.0.2.7:443 node/info\n  \
alknet call ed25519:…@192.0.2.7:443 node/log '{\"follow\":true}'\n  \
alknet call ed25519:…@192.0.2.7:443 services/schema @names.json\n  \
echo '{}' | alknet call ed25519:…@192.0.2.7:443 services/list -\n  \
alknet call ed25519:…@192.0.2.7:443 node/info --also ed25519:…@192.0.2.8:443\n  \
alknet call attic node/info --peer kitchen\n  alknet call node/info\n  \
echo '{\"operation\":\"node/info\"}' | alknet call ed25519:…@192.0.2.7:443 --batch -"
    )]
    Call(call::CallArgs),
    /// Print a completion script for a shell.
    #[command(after_help = "Example:\n  alknet completions bash > \
~/.local/share/bash-completion/completions/alknet")]
    Completions {
        /// The shell: bash, zsh, fish, elvish or powershell.
        shell: clap_complete::Shell,
    },
    /// Show the configuration of a node, check a file, put it in force, or print its schema.
    #[command(subcommand)]
    Config(config::ConfigVerb),
    /// Keep secrets towards other servers for the node of this computer: set one from standard input, list them.
    #[command(subcommand)]
    Credential(credential::CredentialVerb),
    /// List the disks of a node with their health; check them, the boot slots and the stored files now.
    #[command(subcommand)]
    Disk(disk::DiskVerb),
    /// Join a hub by a join string, and give the hub a name on this computer.
    #[command(
        alias = "join",
        after_help = "Examples:\n  alknet enroll alkjoin1_… --name ada\n  \
alknet enroll - --hub attic < join.txt\n  alknet call attic node/info --peer kitchen\n\n\
A node that serves joins by its configuration instead: [[join]] code = \"alkjoin1_…\"."
    )]
    Enroll(enroll::EnrollArgs),
    /// List and change the shares of vault keys that a node keeps for other machines, and approve their release.
    #[command(subcommand)]
    Escrow(escrow::EscrowVerb),
    /// Store what the configuration of a node names: static sites, certificates with their keys, roots, documents of
    /// imports.
    #[command(subcommand)]
    File(file::StoredFileVerb),
    /// Keep files on a node, in buckets with branches, snapshots and a history.
    #[command(subcommand)]
    Fs(fs::FsVerb),
    /// Test the GPU of this computer, or its processor as a GPU, and run shaders.
    #[command(subcommand)]
    Gpu(gpu::GpuCliVerb),
    /// Print the help of a verb.
    #[command(after_help = "Examples:\n  alknet help\n  alknet help token add")]
    Help(help::HelpArgs),
    /// Invite, list, approve, change and remove the peers of a hub.
    #[command(subcommand)]
    Hub(hub::HubVerb),
    /// Print the public key of this command line. The first use makes the key.
    #[command(after_help = "Example:\n  alknet identity --json")]
    Identity(StateArgs),
    /// Write an image to a disk; build images; check and sign them.
    #[command(subcommand)]
    Image(image::ImageVerb),
    /// Run scripts on a node.
    #[command(subcommand)]
    Js(js::JsVerb),
    /// Show or replace the key of this command line.
    #[command(subcommand)]
    Key(key::KeyVerb),
    /// List the parts of this program and of its image with their licences, and show the texts of one.
    #[command(subcommand)]
    License(license::LicenseVerb),
    /// As 'alknet license list' and 'alknet license show NAME'.
    #[command(
        hide = true,
        after_help = "Examples:\n  alknet licenses\n  alknet licenses Linux"
    )]
    Licenses(license::LicenseLookupArgs),
    /// Print the log of a node, and with -f each new record.
    #[command(
        after_help = "Examples:\n  alknet logs attic -f\n  alknet logs --since 1h\n  \
alknet logs attic --last 20 --json"
    )]
    Logs(machine::LogsArgs),
    /// Write one manual page for each verb into a folder.
    #[command(after_help = "Example:\n  alknet man ~/.local/share/man/man1")]
    Man(man::ManArgs),
    /// Give nodes names on this computer, and choose the default node.
    #[command(subcommand)]
    Node(node::NodeVerb),
    /// List and show operations of a node; propose, promote and roll back operations that are scripts.
    #[command(after_help = "Examples:\n  alknet ops ed25519:…@192.0.2.7:443\n  \
alknet ops ed25519:…@192.0.2.7:443 node/info\n  alknet ops --peer kitchen\n  \
alknet ops propose ed25519:…@192.0.2.7:443 ./total --as ada")]
    Ops(ops::OpsArgs),
    /// Open the status page of a node in a browser, by a link that works once.
    #[command(after_help = "Examples:\n  alknet open ed25519:…@192.0.2.7:443\n  \
alknet open attic --print\n  alknet open attic --action reboot")]
    Open(open::PageOpenArgs),
    /// Add, change and remove the peers of a node, and list their connections.
    #[command(subcommand)]
    Peer(peers::PeerVerb),
    /// As 'alknet peer list'.
    #[command(
        hide = true,
        after_help = "Example:\n  alknet peers ed25519:…@192.0.2.7:443"
    )]
    Peers(target::NodeArgs),
    /// Print what curl, OpenSSL and an MCP client need to trust a node by its key.
    #[command(
        after_help = "Examples:\n  alknet pin attic\n  alknet pin ed25519:…@192.0.2.7:443 --json\n  \
alknet pin kitchen@attic --cert kitchen.pem"
    )]
    Pin(pin::PinArgs),
    /// Switch off the machine of a node.
    #[command(after_help = "Example:\n  alknet poweroff attic --yes")]
    Poweroff(machine::PowerArgs),
    /// Make the configuration, the recovery words and the seed that a new node reads at its first start.
    #[command(
        after_help = "Examples:\n  alknet provision --name edge-1 --domain edge.example.org \
--out seed.iso\n  alknet provision --form esp --config node.toml --out /media/ALKESP\n  \
alknet provision --words-to age1… --name far-away --out seed.iso"
    )]
    Provision(provision::ProvisionCliArgs),
    /// Restart the machine of a node.
    #[command(after_help = "Examples:\n  alknet reboot attic\n  alknet reboot kitchen@attic --yes")]
    Reboot(machine::PowerArgs),
    /// Return a node to the version before its last update, or take back a version that waits.
    #[command(
        after_help = "Examples:\n  alknet rollback edge-1\n  alknet rollback kitchen@attic --yes"
    )]
    Rollback(update::NodeRollbackArgs),
    /// Serve a node on this computer, without root's rights.
    #[command(after_help = "Example:\n  alknet serve --port 4433 --admin \"$(alknet identity)\"")]
    Serve(serve::ServeArgs),
    /// Show the state of a node. The exit code is 1 if the node has a problem.
    #[command(
        after_help = "Examples:\n  alknet status\n  alknet status ed25519:…@192.0.2.7:443\n  \
alknet status kitchen --via attic"
    )]
    Status(status::NodeStatusArgs),
    /// Read, check and convert tensor files; fetch them from nodes, and store them there.
    #[command(subcommand)]
    Tensor(tensor::TensorVerb),
    /// Add, list, show and remove the bearer tokens of a node.
    #[command(subcommand)]
    Token(token::TokenVerb),
    /// Bring another version of alknet to appliances: send it, start it, and wait until it has proved itself.
    #[command(after_help = "Examples:\n  alknet update edge-1 bundle.tar\n  \
alknet update edge-1 hall https://updates.example.org/stable/bundle.tar --yes\n  \
alknet update edge-1 --dry-run\n  alknet update edge-1 --channel beta --stage\n  \
alknet update edge-1 --from attic\n  alknet update edge-1 bundle.tar --at 2027-01-31T02:00:00Z\n  \
alknet update --workers attic bundle.tar --rings 1,5,all")]
    Update(update::UpdateArgs),
    /// Keep recovery words, keys and sealed records in a vault; show or lock the vault of a node.
    #[command(subcommand)]
    Vault(vault::VaultVerb),
}

/// Where this computer keeps its keys.
#[derive(Clone, Debug, Args)]
pub(crate) struct StateArgs {
    /// The directory of keys and state [default: $XDG_STATE_HOME/alknet or ~/.local/state/alknet]
    #[arg(long, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,
}

/// The verb that PID 1 starts its child with. It is compared before the parser runs, so that a good part of what would
/// start is left out. The parser has a noun of the same name, which takes more words.
const NODE_VERB: &str = "node";

/// Runs the command line of this process.
pub(crate) fn main() -> ExitCode {
    if std::env::args_os().skip(1).eq([NODE_VERB]) {
        return ended(crate::node::supervised(), false);
    }
    if std::env::args_os().skip(1).eq([HELPER_VERB]) {
        return ended(crate::node::run_helper(), false);
    }
    completion::answer_shell();
    let parsed = help::command().try_get_matches().and_then(|matches| {
        AlknetCli::from_arg_matches(&matches).map_err(|error| error.format(&mut help::command()))
    });
    match parsed {
        Ok(cli) => ended(run(cli.verb, cli.json), cli.json),
        Err(error) => help::refused(error),
    }
}

fn ended(result: Result<CommandExit, CommandError>, json: bool) -> ExitCode {
    match result {
        Ok(exit) => ExitCode::from(exit as u8),
        Err(failure) => {
            // A reader that went away is no failure, and `| head` wants no word about it.
            if failure.exit != CommandExit::Ok {
                output::failure(&failure, json);
            }
            ExitCode::from(failure.exit as u8)
        }
    }
}

fn run(verb: AlknetCommand, json: bool) -> Result<CommandExit, CommandError> {
    match verb {
        AlknetCommand::Call(args) => call::call(args, json),
        AlknetCommand::Completions { shell } => completion::run(shell, json),
        AlknetCommand::Config(verb) => config::run(verb, json),
        AlknetCommand::Credential(verb) => credential::run(verb, json),
        AlknetCommand::Disk(verb) => disk::run(verb, json),
        AlknetCommand::Enroll(args) => enroll::run(&args, json),
        AlknetCommand::Escrow(verb) => escrow::run(verb, json),
        AlknetCommand::File(verb) => file::run(verb, json),
        AlknetCommand::Fs(verb) => fs::run(verb, json),
        AlknetCommand::Gpu(verb) => gpu::run(verb, json),
        AlknetCommand::Help(args) => help::run(&args, json),
        AlknetCommand::Hub(verb) => hub::run(verb, json),
        AlknetCommand::Identity(args) => identity::run(&args, json),
        AlknetCommand::Image(verb) => image::run(verb, json),
        AlknetCommand::Js(verb) => js::run(verb, json),
        AlknetCommand::Key(verb) => key::run(verb, json),
        AlknetCommand::License(verb) => license::run(&verb, json),
        AlknetCommand::Licenses(args) => license::run(&args.into(), json),
        AlknetCommand::Logs(args) => machine::logs(&args, json),
        AlknetCommand::Man(args) => man::run(&args, json),
        AlknetCommand::Node(verb) => node::run(verb, json),
        AlknetCommand::Open(args) => open::run(&args, json),
        AlknetCommand::Ops(args) => ops::run(args, json),
        AlknetCommand::Peer(verb) => peers::run_verb(verb, json),
        AlknetCommand::Peers(args) => peers::run(&args, json),
        AlknetCommand::Pin(args) => pin::run(&args, json),
        AlknetCommand::Poweroff(args) => machine::power(PowerVerb::Poweroff, &args, json),
        AlknetCommand::Provision(args) => provision::run(&args, json),
        AlknetCommand::Reboot(args) => machine::power(PowerVerb::Reboot, &args, json),
        AlknetCommand::Rollback(args) => update::rollback(&args, json),
        AlknetCommand::Serve(args) => serve::run(args, json),
        AlknetCommand::Status(args) => status::run(&args, json),
        AlknetCommand::Tensor(verb) => tensor::run(verb, json),
        AlknetCommand::Token(verb) => token::run(verb, json),
        AlknetCommand::Update(args) => update::run(args, json),
        AlknetCommand::Vault(verb) => vault::run(verb, json),
    }
}

#[cfg(test)]
mod tests {
    mod documented;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        help::command().debug_assert();
        each_option_is_one(&mut help::command());
    }

    #[test]
    fn every_verb_shows_an_example() {
        shows_an_example(&help::command());
    }

    fn shows_an_example(command: &clap::Command) {
        let below = command.get_subcommands();
        // Help does not list earlier spellings.
        let mut below = below.filter(|below| !below.is_hide_set()).peekable();
        if below.peek().is_some() {
            return below.for_each(shows_an_example);
        }
        let help = command.get_after_help();
        let help = help.map(ToString::to_string).unwrap_or_default();
        let name = command.get_name();
        assert!(help.contains("Example"), "alknet {name} has no example");
    }

    #[test]
    fn every_verb_and_every_argument_has_a_text() {
        has_texts(&help::command());
    }

    fn has_texts(command: &clap::Command) {
        let name = command.get_name();
        assert!(command.get_about().is_some(), "alknet {name} has no text");
        for argument in command.get_arguments().filter(|it| !it.is_hide_set()) {
            let id = argument.get_id();
            assert!(argument.get_help().is_some(), "alknet {name}: {id}");
        }
        let below = command.get_subcommands();
        below.filter(|it| !it.is_hide_set()).for_each(has_texts);
    }

    /// Verbs that dial and name no single node: by its join string a hub, and several nodes.
    const WITHOUT_NODE: [&str; 2] = ["enroll", "rotate"];

    /// Checks each verb that dials, and returns how many there are.
    fn takes_a_node_as_all_do(command: &clap::Command) -> usize {
        let has = |name: &str| command.get_arguments().any(|it| it.get_id() == name);
        let name = command.get_name();
        let dials = has("carriage") && !WITHOUT_NODE.contains(&name);
        if dials {
            // Files have their node among other words.
            assert!(has("node") || has("what"), "alknet {name} takes no NODE");
            assert!(
                has("peer_of_hub") && has("via"),
                "alknet {name} takes no peer"
            );
            assert!(has("state") && has("timeout"), "alknet {name} differs");
        } else {
            assert!(!has("peer_of_hub"), "alknet {name} dials nothing");
        }
        let below = command.get_subcommands().map(takes_a_node_as_all_do);
        usize::from(dials) + below.sum::<usize>()
    }

    #[test]
    fn every_verb_that_dials_takes_a_node_in_the_same_way() {
        let verbs = takes_a_node_as_all_do(&help::command());
        assert!(verbs > 40, "{verbs} verbs");
    }

    /// `alknet node` alone is what PID 1 starts; with more it is a noun of the command line.
    #[test]
    fn the_noun_and_the_child_of_pid_1_share_a_name() {
        assert!(AlknetCli::try_parse_from(["alknet", NODE_VERB]).is_err());
        let parsed = AlknetCli::try_parse_from(["alknet", NODE_VERB, "list"]);
        let verb = parsed.expect("it is a verb").verb;
        assert!(matches!(verb, AlknetCommand::Node(node::NodeVerb::List(_))));
    }

    /// Verbs that every noun may have.
    const GRAMMAR: [&str; 5] = ["add", "list", "remove", "set", "show"];

    /// The verbs that help lists, with their nouns, but for those of [`GRAMMAR`].
    fn other_verbs(command: &clap::Command, path: &str, found: &mut Vec<String>) {
        for below in command.get_subcommands().filter(|it| !it.is_hide_set()) {
            let name = format!("{path}{}", below.get_name());
            if below.has_subcommands() {
                other_verbs(below, &format!("{name} "), found);
            } else if path.is_empty() || !GRAMMAR.contains(&below.get_name()) {
                found.push(name);
            }
        }
    }

    #[test]
    fn the_page_has_a_reason_for_each_verb_of_another_name() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/command-line.md");
        let page = std::fs::read_to_string(page).expect("the page exists");
        let section = page
            .split("\n### ")
            .find(|it| it.starts_with("Other verbs\n"));
        let section = section.and_then(|it| it.split("\n## ").next());
        let rows = section.expect("the section").lines();
        let rows = rows.filter_map(|row| row.strip_prefix("| `")?.split(" | ").next());
        let mut listed: Vec<String> = rows
            .flat_map(|cell| cell.split('`').step_by(2).map(str::to_owned))
            .filter(|verb| !verb.is_empty())
            .collect();
        listed.sort_unstable();
        let mut found = Vec::new();
        other_verbs(&help::command(), "", &mut found);
        found.sort_unstable();
        assert_eq!(listed, found, "docs/command-line.md, \"Other verbs\"");
    }

    /// Every spelling that a script may have from an earlier version.
    #[test]
    fn earlier_spellings_are_read() {
        for line in [
            "peers attic",
            "config set attic node.toml",
            "gpu help bench",
            "gpu resolve sinf",
            "gpu worker --role gpu",
            "hub peers attic",
            "hub label attic kitchen pool=indoor",
            "token make attic --scope a:b",
            "token revoke attic k3v9a2mb",
            "token new",
            "credential list attic",
            "credential show attic forge",
            "escrow change attic kitchen --anywhere",
            "escrow revoke attic kitchen",
            "escrow approve attic kitchen --seconds 600",
            "config apply attic node.toml --dry-run",
            "ops attic node/info",
            "ops attic",
            "join alkjoin1_a",
            "identity",
            "call attic node/info --timeout 0.5",
            "vault list --dir vault",
            "vault passwd --slot 1",
            "vault recovery-key --mnemonic-stdin",
            "vault slot rm 1",
            "vault successor next/successor.json",
        ] {
            let words = std::iter::once("alknet").chain(line.split(' '));
            let parsed = AlknetCli::try_parse_from(words);
            assert!(parsed.is_ok(), "{line}: {:?}", parsed.err());
        }
    }

    /// What clap itself looks at in debug builds only: of two options with one name, one is lost.
    fn each_option_is_one(command: &mut clap::Command) {
        command.build();
        let mut seen = std::collections::BTreeSet::new();
        for argument in command.get_arguments() {
            let names = [
                argument.get_long().map(str::to_owned),
                argument.get_short().map(String::from),
            ];
            for name in names
                .into_iter()
                .flatten()
                .chain([format!("id {}", argument.get_id())])
            {
                assert!(seen.insert(name.clone()), "{}: {name}", command.get_name());
            }
        }
        command.get_subcommands_mut().for_each(each_option_is_one);
    }
}
