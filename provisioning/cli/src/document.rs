//! The configuration document: the given one with the options added.

use alknet_core::config::NodeConfig;
use alknet_provisioning::split_install;
use toml_edit::{Array, ArrayOfTables, DocumentMut, Item, Table, TableLike, Value, table, value};

use crate::{ProvisionArgs, ProvisionError, WordsOrigin};

/// A document's text and its parsed configuration.
pub(crate) struct SeedDocument {
    pub(crate) text: String,
    pub(crate) config: NodeConfig,
}

/// Puts the options into `base`. `own_key` is called only if neither contains an administrator's
/// key.
pub(crate) fn build(
    args: &ProvisionArgs,
    base: &str,
    own_key: impl FnOnce() -> Result<String, ProvisionError>,
) -> Result<SeedDocument, ProvisionError> {
    // Some Windows editors write a byte order mark, which would be a TOML error inside the new
    // document.
    let base = base.strip_prefix('\u{feff}').unwrap_or(base);
    // The first check, before the options are added, so that its errors are about the
    // administrator's own text.
    let given = parse(base)?;
    let syntax = |error: toml_edit::TomlError| ProvisionError::Document(error.message().to_owned());
    let mut document: DocumentMut = base.parse().map_err(syntax)?;
    // Comments without a key would otherwise come after everything that is added.
    let mut head = String::new();
    if document.is_empty() {
        document = DocumentMut::new();
        head.push_str(base);
        if !base.trim().is_empty() {
            head.push_str(if base.ends_with('\n') { "\n" } else { "\n\n" });
        }
    }
    let node = section(&mut document, "node")?;
    if let Some(name) = &args.name {
        set(node, "name", name);
    }
    if let Some(domain) = &args.domain {
        set(node, "domain", domain);
    }
    let admins = match (&args.admin[..], &given.node.admin_keys[..]) {
        ([], []) => Some(vec![own_key()?]),
        ([], _) => None,
        // Keys on the command line replace the document's keys, rather than add to them.
        (keys, _) => Some(keys.to_vec()),
    };
    if let Some(keys) = admins {
        set(node, "admin_keys", list(&keys));
    }
    network(&mut document, &args.network)?;
    let says_init = document
        .get("vault")
        .is_some_and(|it| it.get("init").is_some());
    let vault = section(&mut document, "vault")?;
    let init = match args.init {
        Some(init) => Some(init),
        // Without the option, the document's setting counts.
        None if says_init => None,
        // The node itself must make the words that it encrypts to recipients.
        None if args.words_to.is_empty() && given.vault.words_to.is_empty() => {
            Some(WordsOrigin::Provisioned)
        }
        None => Some(WordsOrigin::Generate),
    };
    if let Some(init) = init {
        set(vault, "init", init.name());
    }
    if !args.unlock.is_empty() {
        set(vault, "unlock", list(&args.unlock));
    }
    if let Some(device) = args.device {
        set(vault, "device", i64::from(device));
    }
    if !args.words_to.is_empty() {
        set(vault, "words_to", list(&args.words_to));
    }
    let text = format!("{head}{document}");
    // Checked again with the options, because otherwise the node would refuse it only at its start.
    let config = parse(&text)?;
    Ok(SeedDocument { text, config })
}

fn parse(text: &str) -> Result<NodeConfig, ProvisionError> {
    // The order to install stays in the document for the medium, and is no part of the configuration.
    let (configuration, mut mistakes) = split_install(text.as_bytes());
    match NodeConfig::parse(&configuration) {
        Ok(config) if mistakes.is_empty() => return Ok(config),
        Ok(_) => {}
        Err(errors) => mistakes.extend(errors.iter().map(ToString::to_string)),
    }
    Err(ProvisionError::Document(mistakes.join("\n")))
}

fn section<'d>(
    document: &'d mut DocumentMut,
    name: &str,
) -> Result<&'d mut dyn TableLike, ProvisionError> {
    let item = document.entry(name).or_insert_with(table);
    let table = item.as_table_like_mut();
    table.ok_or_else(|| ProvisionError::Document(format!("{name}: expected a table")))
}

fn list(texts: &[String]) -> Value {
    Array::from_iter(texts).into()
}

/// Sets a value, and keeps the comment beside the old one.
fn set(table: &mut dyn TableLike, key: &str, new: impl Into<Value>) {
    let mut new = new.into();
    match table.get_mut(key) {
        Some(item) => {
            if let Some(old) = item.as_value() {
                *new.decor_mut() = old.decor().clone();
            }
            *item = Item::Value(new);
        }
        None => {
            table.insert(key, Item::Value(new));
        }
    }
}

/// Adds a card for each description.
fn network(document: &mut DocumentMut, cards: &[String]) -> Result<(), ProvisionError> {
    if cards.is_empty() {
        return Ok(());
    }
    let item = document
        .entry("network")
        .or_insert_with(|| Item::ArrayOfTables(ArrayOfTables::new()));
    // An inline array is equivalent TOML, but tables cannot be added to it.
    let entries = item.as_array_of_tables_mut().ok_or_else(|| {
        ProvisionError::usage("write network of the document as [[network]] to add to it")
    })?;
    for text in cards {
        entries.push(card(text)?);
    }
    Ok(())
}

fn card(text: &str) -> Result<Table, ProvisionError> {
    let mut card = Table::new();
    for pair in text.split(',') {
        let known = pair.split_once('=').and_then(|(key, text)| {
            let key = match key {
                "match" | "method" => return Some((key, text, false)),
                "address" => "addresses",
                "gateway" => "gateways",
                "dns" => "dns",
                _ => return None,
            };
            Some((key, text, true))
        });
        let Some((key, text, is_list)) = known else {
            return Err(ProvisionError::usage(format!(
                "--network: '{pair}' is not one of match=, method=, address=, gateway=, dns="
            )));
        };
        if !is_list {
            if card.insert(key, value(text)).is_some() {
                return Err(ProvisionError::usage(format!(
                    "--network: {key}= is there twice"
                )));
            }
            continue;
        }
        let item = card.entry(key).or_insert_with(|| value(Array::new()));
        if let Some(array) = item.as_array_mut() {
            array.push(Value::from(text));
        }
    }
    Ok(card)
}
