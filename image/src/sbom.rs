//! The software bill of materials: SPDX 2.3 as JSON.
//!
//! The document has no time but that of the commit and no random number, so the same build writes the
//! same bytes.

mod read;

use std::collections::BTreeMap;

use alknet_licenses::{ComponentLocation, SoftwareComponent};
use jiff::Timestamp;
use serde_json::{Value, json};

pub(crate) use self::read::parse;
use crate::ids::BuildIds;

/// What SPDX writes where a document does not say something.
pub(crate) const UNKNOWN: &str = "NOASSERTION";

/// The beginning of the comment on a component; its place in the image follows.
const PLACE: &str = "place in the image: ";

/// The beginning of the identifier of a crate.
const CRATE: &str = "SPDXRef-crate-";

/// The beginning of the identifier of another component.
const PART: &str = "SPDXRef-part-";

/// The beginning of the package URL of a Debian package.
const DEBIAN: &str = "pkg:deb/debian/";

/// The element that stands for the whole image.
const IMAGE: &str = "SPDXRef-image";

/// The element that stands for the document itself.
const DOCUMENT: &str = "SPDXRef-DOCUMENT";

/// Where documents have their names whose makers run no server for them (SPDX 2.3 section 6.5).
const NAMESPACE: &str = "https://spdx.org/spdxdocs";

/// The file's name for a version of the image.
pub(crate) fn file_name(version: &str) -> String {
    format!("alknet_{version}.spdx.json")
}

/// The document about an image of this version and commit. `seconds` is its time, since 1970.
pub(crate) fn document(
    components: &[SoftwareComponent],
    seconds: i64,
    version: &str,
    git: &str,
    ids: &BuildIds,
) -> Vec<u8> {
    let mut packages = vec![image(version, git)];
    packages.extend(components.iter().map(package));
    let namespace = format!("{NAMESPACE}/alknet-{version}-{}", ids.uuid("sbom"));
    let document = json!({
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": DOCUMENT,
        "name": format!("alknet_{version}"),
        "documentNamespace": namespace,
        "creationInfo": {
            "created": created(seconds),
            "creators": [format!("Tool: alknet-image-{}", env!("CARGO_PKG_VERSION"))],
        },
        "packages": packages,
        "relationships": relationships(components),
    });
    let mut text = serde_json::to_vec_pretty(&document)
        .expect("texts, numbers and lists always have a JSON form");
    text.push(b'\n');
    text
}

/// SPDX's form of a time, to the second.
fn created(seconds: i64) -> String {
    // A clock beyond the calendar is as good as none.
    let time = Timestamp::from_second(seconds).unwrap_or(Timestamp::UNIX_EPOCH);
    time.strftime("%FT%TZ").to_string()
}

fn image(version: &str, git: &str) -> Value {
    json!({
        "SPDXID": IMAGE,
        "name": "alknet-image",
        "versionInfo": version,
        "sourceInfo": format!("built from commit {git}"),
        "downloadLocation": UNKNOWN,
        "filesAnalyzed": false,
        "licenseConcluded": UNKNOWN,
        "licenseDeclared": UNKNOWN,
        "copyrightText": UNKNOWN,
        "primaryPackagePurpose": "OPERATING_SYSTEM",
    })
}

fn package(component: &SoftwareComponent) -> Value {
    let mut package = json!({
        "SPDXID": element(component),
        "name": component.name,
        "downloadLocation": component.download_location().unwrap_or_else(|| UNKNOWN.to_owned()),
        "filesAnalyzed": false,
        "licenseConcluded": component.license,
        "licenseDeclared": component.license,
        "copyrightText": UNKNOWN,
        "primaryPackagePurpose": purpose(component.place),
        "comment": format!("{PLACE}{}", component.place.name()),
    });
    if let Some(version) = &component.version {
        package["versionInfo"] = json!(version);
    }
    if let Some(homepage) = &component.homepage {
        package["homepage"] = json!(homepage);
    }
    if let Some(hash) = &component.sha256 {
        package["checksums"] = json!([{ "algorithm": "SHA256", "checksumValue": hash }]);
    }
    if let Some(locator) = locator(component) {
        package["externalRefs"] = json!([{
            "referenceCategory": "PACKAGE-MANAGER",
            "referenceType": "purl",
            "referenceLocator": locator,
        }]);
    }
    package
}

/// The package URL, by which tools look up known vulnerabilities.
fn locator(component: &SoftwareComponent) -> Option<String> {
    let version = encoded(component.version.as_deref()?);
    match &component.debian {
        Some(package) => Some(format!("{DEBIAN}{package}@{version}")),
        None if component.is_crate => Some(format!("pkg:cargo/{}@{version}", component.name)),
        None => None,
    }
}

/// A version in a package URL: `+` would be read as a space.
fn encoded(version: &str) -> String {
    let mut text = String::with_capacity(version.len());
    for c in version.chars() {
        match c {
            '+' => text.push_str("%2B"),
            ':' => text.push_str("%3A"),
            c => text.push(c),
        }
    }
    text
}

const fn purpose(place: ComponentLocation) -> &'static str {
    match place {
        ComponentLocation::Kernel => "OPERATING_SYSTEM",
        ComponentLocation::Loader | ComponentLocation::Stub => "FIRMWARE",
        _ => "LIBRARY",
    }
}

/// The identifier of a component: letters, digits, dots and hyphens (SPDX 2.3 section 7.2). Versions
/// of one name differ, and parts have another beginning than crates.
fn element(component: &SoftwareComponent) -> String {
    let kind = if component.is_crate { CRATE } else { PART };
    let version = component.version.as_deref().unwrap_or("unknown");
    let name: String = format!("{}-{version}", component.name)
        .chars()
        .map(|c| match c {
            'a'..='z' | 'A'..='Z' | '0'..='9' | '.' => c,
            _ => '-',
        })
        .collect();
    format!("{kind}{name}")
}

/// The document describes the image. The image contains the components, but for those that lie within
/// a crate: the crate contains them.
fn relationships(components: &[SoftwareComponent]) -> Vec<Value> {
    let crates = components.iter().filter(|it| it.is_crate);
    let crates: BTreeMap<&str, String> = crates.map(|it| (it.name.as_str(), element(it))).collect();
    let relation = |from: &str, kind: &str, to: &str| json!({ "spdxElementId": from, "relationshipType": kind, "relatedSpdxElement": to });
    let mut relations = vec![relation(DOCUMENT, "DESCRIBES", IMAGE)];
    for component in components {
        let within = component.within.as_deref();
        let within = within.and_then(|name| crates.get(name));
        let container = within.map_or(IMAGE, String::as_str);
        relations.push(relation(container, "CONTAINS", &element(component)));
    }
    relations
}

#[cfg(test)]
mod tests {
    use super::*;

    fn components() -> Vec<SoftwareComponent> {
        let mut linux = SoftwareComponent::new("Linux", ComponentLocation::Kernel, "GPL-2.0-only");
        linux.version = Some("6.12".to_owned());
        linux.sha256 = Some("0".repeat(64));
        let mut sys = SoftwareComponent::new("zstd-sys", ComponentLocation::Binary, "MIT");
        sys.version = Some("2.1.2+zstd.1.5.7".to_owned());
        sys.is_crate = true;
        let mut within = SoftwareComponent::new("Zstandard", ComponentLocation::Binary, "MIT");
        within.within = Some("zstd-sys".to_owned());
        let mut libc = SoftwareComponent::new("GNU C Library", ComponentLocation::Binary, "MIT");
        libc.version = Some("2.36-9+deb12u13".to_owned());
        libc.debian = Some("libc6-dev".to_owned());
        vec![linux, sys, within, libc]
    }

    fn parsed() -> Value {
        let ids = BuildIds::new("0.1.0", "abc");
        let text = document(&components(), 1_764_115_200, "0.1.0", "abc", &ids);
        serde_json::from_slice(&text).expect("JSON")
    }

    #[test]
    fn the_document_has_the_time_of_the_commit_and_a_name_of_the_build() {
        let document = parsed();
        assert_eq!(document["creationInfo"]["created"], "2025-11-26T00:00:00Z");
        let namespace = document["documentNamespace"].as_str().expect("a text");
        let id = BuildIds::new("0.1.0", "abc").uuid("sbom").to_string();
        assert!(namespace.ends_with(&id), "{namespace}");
        assert_eq!(parsed(), document, "the same build is the same document");
        assert_eq!(created(i64::MAX), "1970-01-01T00:00:00Z");
    }

    #[test]
    fn a_component_has_its_address_hash_and_package_url() {
        let document = parsed();
        let linux = &document["packages"][1];
        assert_eq!(linux["checksums"][0]["checksumValue"], "0".repeat(64));
        assert_eq!(linux["downloadLocation"], UNKNOWN);
        assert_eq!(linux["comment"], "place in the image: kernel");
        let sys = &document["packages"][2];
        assert_eq!(sys["SPDXID"], "SPDXRef-crate-zstd-sys-2.1.2-zstd.1.5.7");
        assert_eq!(
            sys["downloadLocation"],
            "https://static.crates.io/crates/zstd-sys/zstd-sys-2.1.2+zstd.1.5.7.crate"
        );
        let url =
            |at: usize| document["packages"][at]["externalRefs"][0]["referenceLocator"].clone();
        assert_eq!(url(2), "pkg:cargo/zstd-sys@2.1.2%2Bzstd.1.5.7");
        assert_eq!(url(4), "pkg:deb/debian/libc6-dev@2.36-9%2Bdeb12u13");
        assert_eq!(document["packages"][3].get("versionInfo"), None);
    }

    #[test]
    fn the_image_contains_what_no_crate_contains() {
        let document = parsed();
        let relations = document["relationships"].as_array().expect("a list");
        let texts = relations.iter().map(|it| {
            let part = |name: &str| it[name].as_str().unwrap_or_default().to_owned();
            [
                part("spdxElementId"),
                part("relationshipType"),
                part("relatedSpdxElement"),
            ]
        });
        let texts: Vec<_> = texts.collect();
        let sys = "SPDXRef-crate-zstd-sys-2.1.2-zstd.1.5.7";
        let expected = [
            [DOCUMENT, "DESCRIBES", IMAGE],
            [IMAGE, "CONTAINS", "SPDXRef-part-Linux-6.12"],
            [IMAGE, "CONTAINS", sys],
            [sys, "CONTAINS", "SPDXRef-part-Zstandard-unknown"],
            [
                IMAGE,
                "CONTAINS",
                "SPDXRef-part-GNU-C-Library-2.36-9-deb12u13",
            ],
        ];
        assert_eq!(texts, expected);
    }
}
