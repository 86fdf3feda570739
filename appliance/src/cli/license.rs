//! `alknet license`: the parts of this program and of its image, with their licences.

use alknet_licenses::{LicenseInventory, SoftwareComponent};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{CommandError, CommandExit, output};

/// Likeness from which on a name is proposed in the place of one that does not exist.
const SIMILAR_MIN: f64 = 0.8;

/// The verbs of `alknet license`.
#[derive(Debug, Subcommand)]
pub(crate) enum LicenseVerb {
    /// List the components, with version, place and licence.
    #[command(
        after_help = "Examples:\n  alknet license list\n  alknet license list --texts --json"
    )]
    List {
        /// Also print the text of each licence once, below the list.
        #[arg(long)]
        texts: bool,
    },
    /// Show a component with the texts of its licences.
    #[command(after_help = "Example:\n  alknet license show Linux")]
    Show {
        /// A component of 'alknet license list'.
        name: String,
    },
}

/// Arguments of `alknet licenses`, the earlier spelling of both verbs.
#[derive(Debug, Args)]
pub(crate) struct LicenseLookupArgs {
    /// A component of the list.
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// Also print the text of each licence once, below the list.
    #[arg(long, conflicts_with = "name")]
    texts: bool,
}

impl From<LicenseLookupArgs> for LicenseVerb {
    fn from(args: LicenseLookupArgs) -> Self {
        match args.name {
            Some(name) => Self::Show { name },
            None => Self::List { texts: args.texts },
        }
    }
}

/// Runs a verb of `alknet license`.
pub(crate) fn run(verb: &LicenseVerb, json: bool) -> Result<CommandExit, CommandError> {
    let inventory = LicenseInventory::own().map_err(CommandError::local)?;
    match verb {
        LicenseVerb::Show { name } => show(&inventory, name, json)?,
        LicenseVerb::List { texts } if json => output::json_line(&listed(&inventory, *texts))?,
        LicenseVerb::List { texts } => {
            output::text(rows(&inventory).trim_end())?;
            if *texts {
                output::text(&all_texts(&inventory))?;
            }
        }
    }
    Ok(CommandExit::Ok)
}

fn listed(inventory: &LicenseInventory, with_texts: bool) -> Value {
    match with_texts {
        true => json!(inventory),
        false => json!({ "components": inventory.components }),
    }
}

/// One line for each component: name, version, place and licence.
fn rows(inventory: &LicenseInventory) -> String {
    let components = &inventory.components;
    let names = output::column(components.iter().map(|it| it.name.as_str()));
    let versions = output::column(components.iter().map(version));
    let row = |it: &SoftwareComponent| {
        let (version, place) = (version(it), it.place.name());
        format!(
            "{:names$}  {version:versions$}  {place:6}  {}\n",
            it.name, it.license
        )
    };
    components.iter().map(row).collect()
}

/// Parts of the machine that builds have their versions in the SBOM of an image.
fn version(component: &SoftwareComponent) -> &str {
    component.version.as_deref().unwrap_or("-")
}

/// Every text, below the components to which it applies.
fn all_texts(inventory: &LicenseInventory) -> String {
    let mut shown = String::new();
    for text in &inventory.texts {
        let users = inventory.components.iter();
        let users = users.filter(|it| it.texts.contains(&text.name));
        let users: Vec<String> = users.map(title).collect();
        shown += &format!("\n==== {}\n\n{}", users.join(", "), text.text);
    }
    shown
}

fn title(component: &SoftwareComponent) -> String {
    format!("{} {}", component.name, version(component))
}

/// Prints each version of a component with its texts.
fn show(inventory: &LicenseInventory, name: &str, json: bool) -> Result<(), CommandError> {
    let found = components_named(inventory, name);
    if found.is_empty() {
        return Err(CommandError::usage(unknown(inventory, name)));
    }
    for component in found {
        let texts = inventory.texts_of(component);
        if json {
            let texts: Vec<&str> = texts.map(|it| it.text.as_str()).collect();
            output::json_line(&json!({ "component": component, "texts": texts }))?;
            continue;
        }
        output::text(&details(component))?;
        for text in texts {
            output::text(&text.text)?;
        }
    }
    Ok(())
}

/// The lines above the texts of a component.
fn details(component: &SoftwareComponent) -> String {
    let mut lines = format!("{}: {}\n", title(component), component.license);
    let source = component.download_location();
    let facts = [
        ("source", source),
        ("SHA-256 of the source", component.sha256.clone()),
        ("in the source of", component.within.clone()),
        ("project", component.homepage.clone()),
    ];
    for (name, value) in facts {
        if let Some(value) = value {
            lines += &format!("{name}: {value}\n");
        }
    }
    lines
}

/// The components of a name, in which case, hyphens and underscores do not count.
fn components_named<'a>(inventory: &'a LicenseInventory, name: &str) -> Vec<&'a SoftwareComponent> {
    let wanted = folded(name);
    let components = inventory.components.iter();
    components.filter(|it| folded(&it.name) == wanted).collect()
}

fn folded(name: &str) -> String {
    name.to_lowercase().replace('_', "-")
}

/// The error for a name that no component has, with the one that is most like it.
fn unknown(inventory: &LicenseInventory, name: &str) -> String {
    let wanted = folded(name);
    let near = inventory.components.iter().map(|it| {
        let likeness = strsim::jaro_winkler(&folded(&it.name), &wanted);
        (likeness, it.name.as_str())
    });
    let near = near.filter(|(likeness, _)| *likeness > SIMILAR_MIN);
    let nearest = near.max_by(|one, other| one.0.total_cmp(&other.0));
    match nearest {
        Some((_, near)) => format!("'{name}' is no part of this program; did you mean '{near}'?"),
        None => {
            format!("'{name}' is no part of this program; 'alknet license list' lists all parts")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inventory() -> LicenseInventory {
        LicenseInventory::own().expect("whole")
    }

    #[test]
    fn the_list_has_a_row_for_each_component() {
        let inventory = inventory();
        let rows = rows(&inventory);
        assert_eq!(rows.lines().count(), inventory.components.len());
        let row = |name: &str| rows.lines().find(|row| row.starts_with(name));
        let linux = row("Linux ").expect("the kernel");
        assert!(
            linux.contains(" kernel ") && linux.contains("GPL-2.0-only"),
            "{linux}"
        );
        let tokio = row("tokio ").expect("a crate");
        assert!(tokio.ends_with("MIT"), "{tokio}");
    }

    #[test]
    fn every_text_stands_once_below_its_components() {
        let inventory = inventory();
        let shown = all_texts(&inventory);
        assert_eq!(shown.matches("\n==== ").count(), inventory.texts.len());
        let gpl = "GNU GENERAL PUBLIC LICENSE\n                       Version 2, June 1991";
        assert_eq!(shown.matches(gpl).count(), 1);
    }

    #[test]
    fn a_component_is_found_however_its_name_is_written() {
        let inventory = inventory();
        for name in ["serde_json", "Serde-JSON", "serde-json"] {
            let found = components_named(&inventory, name);
            let found: Vec<_> = found.iter().map(|it| it.name.as_str()).collect();
            assert_eq!(found, ["serde_json"], "{name}");
        }
        let facts = details(components_named(&inventory, "serde_json")[0]);
        assert!(
            facts.contains("source: https://static.crates.io/"),
            "{facts}"
        );
        let near = unknown(&inventory, "serde_jsn");
        assert!(near.contains("did you mean 'serde_json'"), "{near}");
        let far = unknown(&inventory, "0123456789");
        assert!(far.contains("lists all parts"), "{far}");
    }

    /// Scripts have the earlier spelling.
    #[test]
    fn the_earlier_spelling_lists_and_shows() {
        let verb = |name: Option<&str>, texts| {
            let name = name.map(str::to_owned);
            LicenseVerb::from(LicenseLookupArgs { name, texts })
        };
        let shown = verb(Some("Linux"), false);
        assert!(matches!(&shown, LicenseVerb::Show { name } if name == "Linux"));
        let listed = verb(None, true);
        assert!(matches!(listed, LicenseVerb::List { texts: true }));
    }

    #[test]
    fn json_has_the_texts_on_demand() {
        let inventory = inventory();
        let list = listed(&inventory, false);
        let components = list["components"].as_array().map(Vec::len);
        assert_eq!(components, Some(inventory.components.len()));
        assert_eq!(list.get("texts"), None);
        let whole = listed(&inventory, true);
        let texts = whole["texts"].as_array().map(Vec::len);
        assert_eq!(texts, Some(inventory.texts.len()));
    }
}
