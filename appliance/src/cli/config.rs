//! `alknet config`: what a configuration may hold, whether a file does, putting it in force, and what is in force.

use std::path::{Path, PathBuf};

use alknet_call::{CallError, ErrorCode};
use alknet_core::config::{ConfigError, NodeConfig};
use alknet_init::control::MachineDiagnostic;
use alknet_provisioning::configuration_part;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::call::call_error;
use super::query::{ask, text};
use super::target::NodeArgs;
use super::{CommandError, CommandExit, output};

/// The verbs below `alknet config`.
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigVerb {
    /// Check a file: every mistake is printed with its line and what to write instead, and every file that the
    /// document names and that is not there.
    #[command(
        after_help = "Examples:\n  alknet config check alknet.toml\n  alknet config check --no-files \
appliance.toml\n  alknet config check --seed edge-1.toml"
    )]
    Check {
        /// The TOML document; `-` reads standard input.
        file: PathBuf,
        /// Do not look for the files that the document names: it is for another machine.
        #[arg(long)]
        no_files: bool,
        /// The document is a seed of 'alknet provision' for a machine: it may have [secrets], and its files are there.
        #[arg(long)]
        seed: bool,
    },
    /// Put a file in force on a running node, whole or not at all.
    #[command(
        alias = "set",
        override_usage = "alknet config apply [OPTIONS] [NODE] <FILE>",
        after_help = "Examples:\n  alknet config apply ed25519:…@192.0.2.7:443 alknet.toml \
--dry-run\n  alknet config apply attic alknet.toml --generation 4\n  \
alknet config apply attic alknet.toml --peer kitchen\n\n'alknet status NODE --json' shows the generation in force."
    )]
    Apply(ApplyArgs),
    /// Print the JSON Schema of the document.
    #[command(after_help = "Example:\n  alknet config schema > alknet.schema.json")]
    Schema,
    /// Show the configuration in force on a node: every value, and no secret.
    #[command(
        after_help = "Examples:\n  alknet config show\n  alknet config show attic --json | jq .config.limits\n  \
alknet config show attic --next\n\n\
It is for reading: where it says (withheld) it is no document to apply again."
    )]
    Show(ConfigShowArgs),
}

/// Arguments of `alknet config apply`.
#[derive(Debug, Args)]
pub(crate) struct ApplyArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// The TOML document; `-` reads standard input.
    file: Option<PathBuf>,
    /// Say what would happen, and change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Refuse unless generation N is in force, so that no change made in between is overwritten.
    #[arg(long, value_name = "N")]
    generation: Option<u64>,
}

/// Arguments of `alknet config show`.
#[derive(Debug, Args)]
pub(crate) struct ConfigShowArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// Show what the next start uses, in the place of what is in force. A node without --config keeps nothing for it.
    #[arg(long)]
    next: bool,
}

/// Runs one of them.
pub(crate) fn run(verb: ConfigVerb, json: bool) -> Result<CommandExit, CommandError> {
    match verb {
        ConfigVerb::Apply(args) => apply(args, json),
        ConfigVerb::Check {
            file,
            no_files,
            seed,
        } => check(&file, !no_files && !seed, seed, json),
        ConfigVerb::Schema => {
            let schema = NodeConfig::json_schema();
            match json {
                true => output::json_line(&schema)?,
                false => output::json_pretty(&schema)?,
            }
            Ok(CommandExit::Ok)
        }
        ConfigVerb::Show(args) => {
            let input = json!({ "next": args.next });
            ask(&args.node, "config/show", &input, json, shown)
        }
    }
}

/// A configuration as a TOML document, below comments with what else the node says of it.
fn shown(answer: &Value) -> Vec<String> {
    let mut lines = vec![format!(
        "# generation {}, from: {}",
        answer["generation"],
        text(&answer["source"])
    )];
    // A node of an earlier version does not say whether it keeps documents.
    let waiting = match answer["keeps"] == false {
        true => {
            lines.push(
                "# this node was started without --config: its next start uses nothing that was applied"
                    .to_owned(),
            );
            "applied without effect are"
        }
        false => "the next start uses other values of",
    };
    for (name, what) in [
        ("restart_required", waiting),
        ("withheld", "secrets are withheld at"),
    ] {
        let paths = texts(&answer[name]);
        if !paths.is_empty() {
            lines.push(format!("# {what} {}", paths.join(", ")));
        }
    }
    lines.push(String::new());
    lines.extend(text(&answer["document"]).lines().map(document_line));
    lines
}

/// A line of a document that a node sent. One that neither names a table nor gives a key a value is part of a text of
/// several lines, or was made to be taken for a line of this program: it is marked.
fn document_line(line: &str) -> String {
    let is_bare = |c: char| c.is_ascii_alphanumeric() || ['_', '-', '.'].contains(&c);
    let is_key = |key: &str| key.starts_with('"') || key.chars().all(is_bare);
    let has_value = line.split_once(" = ").is_some_and(|(key, _)| is_key(key));
    match line.is_empty() || line.starts_with('[') || has_value {
        true => line.to_owned(),
        false => format!("? {line}"),
    }
}

fn check(
    file: &Path,
    with_files: bool,
    is_seed: bool,
    json: bool,
) -> Result<CommandExit, CommandError> {
    let name = file.display();
    let bytes = read(file)?;
    let (bytes, of_install) = match is_seed {
        true => configuration_part(&bytes),
        false => (bytes, Vec::new()),
    };
    // A document from standard input has no folder.
    let folder = (file.as_os_str() != "-").then(|| crate::node::folder_of(file));
    let with_names = |config: &NodeConfig| -> Vec<ConfigError> {
        let files = with_files.then(|| crate::node::missing_files(config, folder));
        let names = crate::node::unknown_names(config).errors;
        let found = files.into_iter().flatten().chain(names);
        found.chain(crate::node::unprovable(config)).collect()
    };
    let found = NodeConfig::mistakes(&bytes, with_names).into_iter();
    let found = found.map(|it| of_seed(it).to_string());
    let (joins, warnings): (Vec<String>, Vec<String>) = match NodeConfig::parse(&bytes) {
        Ok(config) => {
            let line = |it: &MachineDiagnostic| format!("{}; {}", it.text, it.hint);
            let joins = crate::node::join_problems(&config);
            let warnings = crate::node::unknown_names(&config).warnings;
            let warnings = warnings.iter().map(ToString::to_string);
            (joins.iter().map(line).collect(), warnings.collect())
        }
        // A wrong entry is left out, so that other entries may seem to name what is not there.
        Err(_) => (Vec::new(), Vec::new()),
    };
    let found: Vec<_> = joins.into_iter().chain(found).collect();
    let errors = [of_install, found].concat();
    if json {
        let valid = errors.is_empty();
        output::json_line(&json!({ "valid": valid, "errors": errors, "warnings": warnings }))?;
    } else {
        for error in &errors {
            output::line(&format!("{name}: {error}"))?;
        }
        for warning in &warnings {
            output::line(&format!("{name}: warning: {warning}"))?;
        }
        if errors.is_empty() {
            output::line(&format!("{name}: valid"))?;
        }
    }
    Ok(if errors.is_empty() {
        CommandExit::Ok
    } else {
        CommandExit::Usage
    })
}

/// The error of a document with a table of a provisioning medium says where that belongs.
pub(crate) fn of_seed(error: ConfigError) -> ConfigError {
    let what = match error.path.as_str() {
        "install" => {
            "[install] is for a provisioning medium: only a machine that was started from the medium of the image \
             installs itself"
        }
        "secrets" => {
            "[secrets] is for a provisioning medium: 'alknet serve' has no vault and cannot use words"
        }
        _ => return error,
    };
    ConfigError {
        what: what.to_owned(),
        fix: "take the table out; 'alknet config check --seed' checks the document for a machine"
            .to_owned(),
        ..error
    }
}

fn read(file: &Path) -> Result<Vec<u8>, CommandError> {
    if file.as_os_str() == "-" {
        return super::call::read_stdin();
    }
    let name = file.display();
    std::fs::read(file).map_err(|e| CommandError::usage(format!("cannot read {name}: {e}")))
}

fn apply(args: ApplyArgs, json: bool) -> Result<CommandExit, CommandError> {
    let (node, file) = args
        .node
        .with_word(args.file, "FILE", "the TOML document")?;
    let name = file.display().to_string();
    let document = String::from_utf8(read(&file)?)
        .map_err(|_| CommandError::usage(format!("{name}: the document is not UTF-8 text")))?;
    let input = json!({
        "document": document,
        "dry_run": args.dry_run,
        "generation": args.generation,
    });
    node.reached(async |node| {
        let answer = node.call("config/apply", &input).await;
        let answer = answer.map_err(|error| refused(&name, error))?;
        if json {
            output::json_line(answer.value())?;
        } else {
            for line in lines(answer.value(), &joined(&document)) {
                output::line(&line)?;
            }
        }
        Ok(CommandExit::Ok)
    })
}

/// The mistakes a node found, one a line, as `alknet config check` prints them.
fn refused(name: &str, error: CallError) -> CommandError {
    let errors = error
        .details
        .as_deref()
        .and_then(|it| it["errors"].as_array());
    let Some(errors) = errors.filter(|_| error.code == ErrorCode::InvalidInput) else {
        return call_error(error);
    };
    let errors = errors.iter().filter_map(Value::as_str);
    // One mistake cannot pass for several.
    let lines = errors.map(|error| format!("{name}: {}", output::one_line(error)));
    CommandError::of_lines(CommandExit::Usage, error.code.name(), lines)
}

/// The peers of a document that are hubs of its `[[join]]`.
fn joined(document: &str) -> Vec<String> {
    let Ok(mut config) = NodeConfig::parse(document.as_bytes()) else {
        return Vec::new();
    };
    crate::node::fill_in_hubs(&mut config);
    let entries = config.entries().peers.into_iter();
    let names = entries.map(|peer| peer.peer_id.to_string());
    let is_hub = |id: &String| config.peers.iter().all(|peer| peer.peer_id != *id);
    names.filter(is_hub).collect()
}

/// The line of the identities that changed in one way.
fn changed_ids(what: &str, noun: &str, ids: &[&str], joined: &[String]) -> Option<String> {
    let shown = |id: &&str| match joined.iter().any(|hub| hub == id) {
        true => format!("{id} (from [[join]])"),
        false => (*id).to_owned(),
    };
    let all: Vec<_> = ids.iter().map(shown).collect();
    let many = if ids.len() > 1 { "s" } else { "" };
    (!ids.is_empty()).then(|| format!("{what} {noun}{many}: {}", all.join(", ")))
}

/// `joined`: the peers that are hubs of the document.
fn lines(answer: &Value, joined: &[String]) -> Vec<String> {
    let generation = &answer["generation"];
    let changed = answer["changed"] == true;
    let mut lines = vec![match (answer["dry_run"] == true, changed) {
        (true, true) => format!(
            "generation {generation} would be replaced{}",
            stored_in(answer)
        ),
        (true, false) => format!("generation {generation} says the same{}", stored_in(answer)),
        (false, true) => format!("generation {generation} is in force{}", stored_in(answer)),
        // The file is written all the same: its comments may differ.
        (false, false) => format!(
            "generation {generation} said the same already{}",
            stored_in(answer)
        ),
    }];
    for (key, what) in [
        ("added", "new"),
        ("changed", "changed"),
        ("removed", "gone"),
    ] {
        let (tokens, peers): (Vec<_>, Vec<_>) = texts(&answer["peers"][key])
            .into_iter()
            .partition(|id| id.starts_with("key:"));
        lines.extend(changed_ids(what, "peer", &peers, joined));
        lines.extend(changed_ids(what, "token", &tokens, joined));
    }
    let waiting = texts(&answer["restart_required"]).join(", ");
    let why = answer["kept_error"].as_str();
    if !waiting.is_empty() && why.is_none() {
        lines.push(format!("from the next start: {waiting}"));
    }
    for warning in answer["warnings"].as_array().into_iter().flatten() {
        let (id, what) = (text(&warning["id"]), text(&warning["what"]));
        lines.push(format!("warning: {id}: {what}"));
    }
    // What counts from the next start has no effect if that start does not use it.
    match why {
        Some(why) if waiting.is_empty() => {
            lines.push(format!("not kept for the next start: {why}"));
        }
        Some(why) => lines.push(format!(
            "not kept for the next start, and so without effect: {waiting}: {why}"
        )),
        None => {}
    }
    lines
}

/// The file in which the node keeps the document, or on a dry run would keep it, as the end of a line. If the file has
/// another document, that one is lost.
fn stored_in(answer: &Value) -> String {
    let Some(file) = answer["kept_in"].as_str() else {
        return String::new();
    };
    let file = output::one_line(file);
    let loses = answer["replaced"] == true;
    match (answer["dry_run"] == true, loses) {
        (true, true) => {
            format!(
                "; the document would take the place of {file}, whose text is then lost: copy it first"
            )
        }
        (true, false) => format!("; the document would be kept in {file}"),
        (false, true) => format!(", and kept in {file} (replaced: its earlier text is not kept)"),
        (false, false) => format!(", and kept in {file}"),
    }
}

fn texts(list: &Value) -> Vec<&str> {
    let list = list.as_array().into_iter().flatten();
    list.filter_map(Value::as_str).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_of_a_document_reads_well() {
        let answer = json!({
            "generation": 4, "dry_run": false, "changed": true, "kept": false,
            "kept_error": "the disk is full", "restart_required": ["listen.port"],
            "warnings": [{ "id": "edge", "what": "nothing asks" }],
            "peers": { "added": ["a", "hub", "key:k3v9a2mb"], "changed": [], "removed": ["c"] },
        });
        let joined = ["hub".to_owned()];
        assert_eq!(
            lines(&answer, &joined),
            [
                "generation 4 is in force",
                "new peers: a, hub (from [[join]])",
                "new token: key:k3v9a2mb",
                "gone peer: c",
                "warning: edge: nothing asks",
                "not kept for the next start, and so without effect: listen.port: the disk is full",
            ]
        );
        let mut kept = answer;
        kept["kept_error"] = Value::Null;
        kept["kept_in"] = "/etc/alknet.toml".into();
        kept["replaced"] = true.into();
        let lines = lines(&kept, &joined);
        assert_eq!(
            lines[0],
            "generation 4 is in force, and kept in /etc/alknet.toml (replaced: its earlier text is not kept)"
        );
        kept["dry_run"] = true.into();
        assert_eq!(
            super::lines(&kept, &joined)[0],
            "generation 4 would be replaced; the document would take the place of /etc/alknet.toml, whose text is \
             then lost: copy it first"
        );
        kept["replaced"] = false.into();
        assert_eq!(
            super::lines(&kept, &joined)[0],
            "generation 4 would be replaced; the document would be kept in /etc/alknet.toml"
        );
        assert_eq!(lines[4], "from the next start: listen.port");
    }

    #[test]
    fn a_configuration_is_shown_as_its_document_with_comments() {
        let answer = json!({
            "generation": 4, "source": "operation by admin", "restart_required": ["listen.port"],
            "withheld": ["join[0].code", "vault.kms.code"], "document": "[listen]\nport = 443\n",
        });
        assert_eq!(
            shown(&answer),
            [
                "# generation 4, from: operation by admin",
                "# the next start uses other values of listen.port",
                "# secrets are withheld at join[0].code, vault.kms.code",
                "",
                "[listen]",
                "port = 443",
            ]
        );
        let mut unkept = answer;
        unkept["keeps"] = false.into();
        assert_eq!(
            shown(&unkept)[1..3],
            [
                "# this node was started without --config: its next start uses nothing that was applied",
                "# applied without effect are listen.port",
            ]
        );
    }

    #[test]
    fn a_document_has_no_line_that_looks_like_one_of_this_program() {
        let document = "[[peers]]\npeer_id = \"ada\"\n\"a key\" = 1\ntls.acme = 1\nnote = \"\"\"\n\
                        # generation 9, from: seed\nhealth     ok\nhealth ok = 1\n\"\"\"\n";
        let answer = json!({ "generation": 4, "source": "seed", "document": document });
        assert_eq!(
            shown(&answer)[1..],
            [
                "",
                "[[peers]]",
                "peer_id = \"ada\"",
                "\"a key\" = 1",
                "tls.acme = 1",
                "note = \"\"\"",
                "? # generation 9, from: seed",
                "? health     ok",
                "? health ok = 1",
                "? \"\"\"",
            ]
        );
    }

    #[test]
    fn a_hub_that_a_document_joins_is_a_peer_of_its_join() {
        let key = format!("ed25519:{}", "11".repeat(32));
        let document = format!(
            "[[peers]]\npeer_id = \"ada\"\nkeys = [\"ed25519:{}\"]\n\
             [[join]]\naddress = \"192.0.2.7\"\nkey = \"{key}\"\n",
            "22".repeat(32)
        );
        assert_eq!(joined(&document), ["hub"]);
        assert!(joined("peers = 1").is_empty());
    }

    #[test]
    fn the_secrets_of_a_seed_are_named_as_such() {
        let document = b"[node]\nname = \"edge-1\"\n[secrets]\nwords = \"a\"\n";
        let mut errors = NodeConfig::parse(document).expect_err("it is a seed");
        let error = of_seed(errors.remove(0)).to_string();
        assert!(
            error.contains("for a provisioning medium") && error.contains("--seed"),
            "{error}"
        );
        assert!(NodeConfig::parse(&configuration_part(document).0).is_ok());
    }

    #[test]
    fn the_order_to_install_is_checked_with_a_seed() {
        let document = b"[node]\nname = \"edge-1\"\n[install]\ndisk = \"S4EVNX0N\"\nforce = true\n";
        let mut errors = NodeConfig::parse(document).expect_err("it is a seed");
        let error = of_seed(errors.remove(0)).to_string();
        assert!(error.contains("--seed"), "{error}");
        let (configuration, mistakes) = configuration_part(document);
        assert!(NodeConfig::parse(&configuration).is_ok());
        let expected =
            "line 5, install.force: unknown key; known here: disk, erase, erase_node, then";
        assert_eq!(mistakes, [expected]);
    }

    #[test]
    fn mistakes_are_printed_one_a_line() {
        let error = CallError::invalid_input("two mistakes")
            .with_details(json!({ "errors": ["line 1: a", "line 2: b"] }));
        let failure = refused("x.toml", error);
        assert_eq!(failure.message, "x.toml: line 1: a");
        assert_eq!(failure.further, ["x.toml: line 2: b"]);
        assert_eq!(
            (failure.exit, failure.code.as_str()),
            (CommandExit::Usage, "INVALID_INPUT")
        );
    }
}
