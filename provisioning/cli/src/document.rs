//! The document: what was given, with the options in it.

use alknet_core::config::NodeConfig;
use toml_edit::{Array, ArrayOfTables, DocumentMut, Item, Table, TableLike, Value, table, value};

use crate::{ProvisionArgs, ProvisionError, WordsOrigin};

/// A document and what it says.
pub(crate) struct SeedDocument {
    pub(crate) text: String,
    pub(crate) config: NodeConfig,
}

/// Puts the options into `base`. `own_key` is asked for only where neither names an administrator's
/// key.
pub(crate) fn build(
    args: &ProvisionArgs,
    base: &str,
    own_key: impl FnOnce() -> Result<String, ProvisionError>,
) -> Result<SeedDocument, ProvisionError> {
    // An editor of Windows writes a byte order mark, and inside the new document it would be no TOML.
    let base = base.strip_prefix('\u{feff}').unwrap_or(base);
    // Before anything is added, so that the error is about what the administrator wrote.
    let given = parse(base)?;
    let syntax = |error: toml_edit::TomlError| ProvisionError::Document(error.message().to_owned());
    let mut document: DocumentMut = base.parse().map_err(syntax)?;
    // Comments without a key to belong to would end up behind everything that is added.
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
        // Keys on the command line replace those of the document: they do not add to them.
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
        // What the document says of the words counts, where the command line says nothing.
        None if says_init => None,
        // Words that are to be handed to others must be made by the node itself.
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
    // Once more, with what the options added: the node would refuse it only at its start.
    let config = parse(&text)?;
    Ok(SeedDocument { text, config })
}

fn parse(text: &str) -> Result<NodeConfig, ProvisionError> {
    NodeConfig::parse(text.as_bytes()).map_err(|errors| {
        let lines: Vec<_> = errors.iter().map(ToString::to_string).collect();
        ProvisionError::Document(lines.join("\n"))
    })
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

/// Puts a value in place; the comment beside the old one stays.
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
    // An inline array is valid TOML for the same, but tables cannot be added to it.
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
