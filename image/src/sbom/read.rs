//! Reads the components in a bill of materials of this library.

use std::collections::BTreeMap;

use alknet_licenses::SoftwareComponent;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{CRATE, DEBIAN, IMAGE, PLACE, UNKNOWN};

/// The components of a document, in its order, and its time in seconds since 1970. The texts of the licences are not in
/// a document.
pub(crate) fn parse(document: &[u8]) -> Result<(Vec<SoftwareComponent>, i64), String> {
    let document: Value = serde_json::from_slice(document).map_err(|error| error.to_string())?;
    let packages = list(&document, "packages")?;
    let within = within(packages, list(&document, "relationships")?);
    let packages = packages.iter().filter(|it| it["SPDXID"] != IMAGE);
    let components: Option<Vec<_>> = packages.map(|it| component(it, &within)).collect();
    let components = components.ok_or(
        "it does not say of every part where in the image it is, as images since 2026-11-28 do; \
         name the folder of a newer image",
    )?;
    let created = document["creationInfo"]["created"].as_str();
    let created = created.and_then(|it| it.parse::<Timestamp>().ok());
    let created = created.ok_or("it has no time")?;
    Ok((components, created.as_second()))
}

fn list<'a>(document: &'a Value, name: &str) -> Result<&'a [Value], String> {
    let found = document[name].as_array();
    found
        .map(Vec::as_slice)
        .ok_or_else(|| format!("it has no {name}"))
}

/// The names of the crates that carry components, by the identifiers of these components.
fn within<'a>(packages: &'a [Value], relations: &'a [Value]) -> BTreeMap<&'a str, &'a str> {
    let names = packages
        .iter()
        .filter_map(|it| Some((it["SPDXID"].as_str()?, it["name"].as_str()?)));
    let names: BTreeMap<&str, &str> = names.collect();
    let contained = relations
        .iter()
        .filter(|it| it["relationshipType"] == "CONTAINS" && it["spdxElementId"] != IMAGE);
    let within = contained.filter_map(|it| {
        let container = names.get(it["spdxElementId"].as_str()?)?;
        Some((it["relatedSpdxElement"].as_str()?, *container))
    });
    within.collect()
}

/// `None` if the package lacks what every component has.
fn component(package: &Value, within: &BTreeMap<&str, &str>) -> Option<SoftwareComponent> {
    let text = |name: &str| package[name].as_str().map(str::to_owned);
    let id = package["SPDXID"].as_str()?;
    let place = package["comment"].as_str()?.strip_prefix(PLACE)?;
    let place = serde_json::from_value(json!(place)).ok()?;
    let mut component = SoftwareComponent::new(text("name")?, place, text("licenseDeclared")?);
    component.is_crate = id.starts_with(CRATE);
    component.version = text("versionInfo");
    component.homepage = text("homepage");
    component.sha256 = package["checksums"][0]["checksumValue"]
        .as_str()
        .map(str::to_owned);
    component.within = within.get(id).map(|name| (*name).to_owned());
    if !component.is_crate {
        component.source = text("downloadLocation").filter(|address| address != UNKNOWN);
    }
    let locator = package["externalRefs"][0]["referenceLocator"].as_str();
    let debian = locator.and_then(|it| it.strip_prefix(DEBIAN)?.split_once('@'));
    component.debian = debian.map(|(name, _)| name.to_owned());
    Some(component)
}

#[cfg(test)]
mod tests {
    use alknet_licenses::LicenseInventory;

    use super::super::document;
    use super::*;
    use crate::ids::BuildIds;

    fn written(components: &[SoftwareComponent]) -> Vec<u8> {
        let ids = BuildIds::new("0.1.0", "abc");
        document(components, 1_764_115_200, "0.1.0", "abc", &ids)
    }

    /// The bill of `alknet image build` has to be the one of the image from which the files come.
    #[test]
    fn what_is_read_is_written_again_as_the_same_bytes() {
        let mut inventory = LicenseInventory::own().expect("whole");
        // Versions of Debian's packages are in bills only.
        for component in &mut inventory.components {
            component.version.get_or_insert_with(|| "1:2+3".to_owned());
        }
        let bill = written(&inventory.components);
        let (read, seconds) = parse(&bill).expect("ours");
        assert_eq!(seconds, 1_764_115_200);
        assert!(written(&read) == bill, "another document");
        for component in &mut inventory.components {
            component.texts.clear();
            if component.is_crate {
                component.source = None;
            }
        }
        assert_eq!(read, inventory.components);
    }

    #[test]
    fn a_document_of_another_program_is_refused_with_a_reason() {
        let bill = written(&[]);
        let refused = |document: &Value| {
            let refused = parse(document.to_string().as_bytes());
            refused.expect_err("it lacks something")
        };
        let whole: Value = serde_json::from_slice(&bill).expect("JSON");
        let mut other = whole.clone();
        let package = json!({ "SPDXID": "SPDXRef-a", "name": "a", "licenseDeclared": "MIT" });
        other["packages"] = json!([package]);
        assert!(refused(&other).contains("where in the image"));
        let mut timeless = whole.clone();
        timeless["creationInfo"] = Value::Null;
        assert!(refused(&timeless).contains("no time"));
        let mut empty = whole;
        empty["relationships"] = Value::Null;
        assert!(refused(&empty).contains("no relationships"));
        parse(b"spdx").expect_err("not JSON");
    }
}
