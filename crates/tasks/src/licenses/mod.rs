//! `licenses`: the list of components and licence texts that the binary contains.

mod parts;
mod texts;

use std::fs;
use std::path::Path;

use alknet_licenses::{ComponentLocation, LicenseInventory, SoftwareComponent};

use self::texts::TextCollection;
use crate::context::XtaskContext;
use crate::failure::{Result, TaskError};
use crate::linked::{self, LinkedCrate};

/// The packed inventory and the readable list, from the root of the tree.
const PACKED: &str = "crates/licenses/licenses.zst";
const LIST: &str = "crates/licenses/components.json";

/// The licence of a crate whose manifest has none.
const UNKNOWN: &str = "NOASSERTION";

/// The licence of alknet itself, and its texts.
const OWN: (&str, &str, [&str; 2]) = (
    "alknet",
    "Apache-2.0 OR MIT",
    ["LICENSE-APACHE", "LICENSE-MIT"],
);

/// Arguments of `licenses`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLE)]
pub(crate) struct LicensesArgs {
    /// Write the list and the texts into the tree
    #[arg(long)]
    write: bool,
}

const EXAMPLE: &str = "\
Example: after a dependency changed

  cargo xtask licenses          # what the files in the tree lack; exit code 1 if they lack something
  cargo xtask licenses --write

The files are crates/licenses/licenses.zst, which the binary contains, and
crates/licenses/components.json, the list for people.";

/// Compares the inventory of the tree with the crates that are linked, or writes it.
pub(crate) fn run(cx: &mut XtaskContext, arguments: &LicensesArgs) -> Result<()> {
    let root = cx.root().to_owned();
    let inventory = cx.step("licences", |_| collect(&root))?;
    if arguments.write {
        return write(&root, &inventory);
    }
    let differences = differences(&LicenseInventory::own().unwrap_or_default(), &inventory);
    for line in &differences {
        println!("{line}");
    }
    match differences.len() {
        0 => Ok(()),
        count => Err(TaskError::Workspace(format!(
            "{count} differences: run `cargo xtask licenses --write`"
        ))),
    }
}

fn write(root: &Path, inventory: &LicenseInventory) -> Result<()> {
    let packed = inventory
        .pack()
        .map_err(|error| TaskError::Workspace(error.to_string()))?;
    let list = list(&inventory.components)?;
    for (file, bytes) in [(PACKED, packed.as_slice()), (LIST, list.as_bytes())] {
        let path = root.join(file);
        fs::write(&path, bytes).map_err(TaskError::io(format!("write {}", path.display())))?;
        println!("{:>9}  {file}", bytes.len());
    }
    Ok(())
}

/// The components as JSON, one a line, so that a diff shows which ones changed.
fn list(components: &[SoftwareComponent]) -> Result<String> {
    let lines = components.iter().map(serde_json::to_string);
    let lines: Vec<String> = lines
        .collect::<std::result::Result<_, _>>()
        .map_err(|error| TaskError::Workspace(error.to_string()))?;
    Ok(format!("[\n{}\n]\n", lines.join(",\n")))
}

/// What the sources on this machine say: alknet, the other parts, and the crates.
pub(crate) fn collect(root: &Path) -> Result<LicenseInventory> {
    let crates = linked::linked_crates(root)?;
    let mut texts = TextCollection::new(root);
    let mut components = vec![own(root, &mut texts)?];
    components.extend(parts::components(root, &crates, &mut texts)?);
    for linked in crates.iter().filter(|linked| !linked.is_own()) {
        components.push(component(linked, ComponentLocation::Binary, &mut texts)?);
    }
    // A crate of both is listed once, as a part of the binary: name, version and licence are the same.
    let of_loader = linked::loader_crates(root)?;
    let of_loader = of_loader.iter().filter(|linked| !crates.contains(linked));
    for linked in of_loader.filter(|linked| !linked.is_own()) {
        components.push(component(linked, ComponentLocation::Loader, &mut texts)?);
    }
    Ok(LicenseInventory::new(components, texts.into_texts()))
}

fn own(root: &Path, texts: &mut TextCollection) -> Result<SoftwareComponent> {
    let (name, license, files) = OWN;
    let mut component = SoftwareComponent::new(name, ComponentLocation::Binary, license);
    component.version = Some(env!("CARGO_PKG_VERSION").to_owned());
    for file in files {
        component.texts.push(texts.file(&root.join(file))?);
    }
    Ok(component)
}

fn component(
    linked: &LinkedCrate,
    place: ComponentLocation,
    texts: &mut TextCollection,
) -> Result<SoftwareComponent> {
    let license = linked
        .license
        .as_deref()
        .map_or_else(|| UNKNOWN.to_owned(), expression);
    let mut component = SoftwareComponent::new(&linked.name, place, &license);
    component.version = Some(linked.version.clone());
    component.is_crate = true;
    component.sha256.clone_from(&linked.checksum);
    for file in texts::files(&linked.folder, linked.license_file.as_deref())? {
        let name = texts.file(&file)?;
        if !component.texts.contains(&name) {
            component.texts.push(name);
        }
    }
    if component.texts.is_empty() {
        for id in identifiers(&license) {
            let text = texts.standard(id);
            let text = text.map_err(|error| {
                TaskError::Workspace(format!(
                    "the crate {} has no licence file, and the tree has no text: {error}",
                    linked.name
                ))
            })?;
            component.texts.push(text);
        }
    }
    Ok(component)
}

/// The licence of a manifest as an SPDX expression. Older manifests have a slash between licences.
fn expression(license: &str) -> String {
    let license = license.replace('/', " OR ");
    let words: Vec<&str> = license.split_whitespace().collect();
    words.join(" ")
}

/// The licences that an expression names.
fn identifiers(expression: &str) -> impl Iterator<Item = &str> {
    let words = expression.split([' ', '(', ')']);
    words.filter(|word| !matches!(*word, "" | "AND" | "OR" | "WITH"))
}

/// What `new` has and `old` lacks, and the other way round, one line for each.
fn differences(old: &LicenseInventory, new: &LicenseInventory) -> Vec<String> {
    let line = |sign: char, it: &SoftwareComponent| {
        let version = it.version.as_deref().unwrap_or_default();
        format!("{sign} {} {version} ({})", it.name, it.license)
    };
    let lacks =
        |inventory: &LicenseInventory, it: &SoftwareComponent| !inventory.components.contains(it);
    let gone = old.components.iter().filter(|it| lacks(new, it));
    let mut lines: Vec<String> = gone.map(|it| line('-', it)).collect();
    let fresh = new.components.iter().filter(|it| lacks(old, it));
    lines.extend(fresh.map(|it| line('+', it)));
    if lines.is_empty() && old != new {
        lines.push("the texts differ, or the order".to_owned());
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
    }

    /// The binary would tell about crates that it does not have, and not about those that it has.
    #[test]
    fn the_licences_in_the_tree_are_those_of_the_linked_crates() {
        let fresh = collect(&root()).expect("cargo knows the sources of all crates");
        let kept = LicenseInventory::own().expect("whole");
        let differences = differences(&kept, &fresh);
        assert!(
            differences.is_empty(),
            "run `cargo xtask licenses --write`: {differences:#?}"
        );
        let list = list(&fresh.components).expect("JSON");
        let kept = fs::read_to_string(root().join(LIST)).expect("in the tree");
        assert!(kept == list, "{LIST}: run `cargo xtask licenses --write`");
    }

    #[test]
    fn a_component_that_changed_is_a_difference_and_so_is_a_text() {
        let linux = SoftwareComponent::new("Linux", ComponentLocation::Kernel, "GPL-2.0-only");
        let mut newer = linux.clone();
        newer.version = Some("6.12".to_owned());
        let text = alknet_licenses::LicenseText::new("a".to_owned(), "b".to_owned());
        let inventory = |component: &SoftwareComponent, texts| {
            LicenseInventory::new(vec![component.clone()], texts)
        };
        let old = inventory(&linux, Vec::new());
        assert!(differences(&old, &old).is_empty());
        let lines = differences(&old, &inventory(&newer, Vec::new()));
        let expected = ["- Linux  (GPL-2.0-only)", "+ Linux 6.12 (GPL-2.0-only)"];
        assert_eq!(lines, expected);
        assert_eq!(differences(&old, &inventory(&linux, vec![text])).len(), 1);
    }

    #[test]
    fn the_older_notation_of_licences_becomes_an_expression() {
        for older in ["MIT/Apache-2.0", "MIT / Apache-2.0", "MIT OR Apache-2.0"] {
            assert_eq!(expression(older), "MIT OR Apache-2.0", "{older}");
        }
    }

    #[test]
    fn an_expression_names_its_licences() {
        let named = |text| identifiers(text).collect::<Vec<_>>();
        assert_eq!(named("MIT OR Apache-2.0"), ["MIT", "Apache-2.0"]);
        let nested = "(MIT OR Zlib) AND Apache-2.0 WITH LLVM-exception";
        let expected = ["MIT", "Zlib", "Apache-2.0", "LLVM-exception"];
        assert_eq!(named(nested), expected);
    }
}
