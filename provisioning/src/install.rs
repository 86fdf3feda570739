//! The order to install the image onto a disk: the table `[install]` of a document on a medium.
//!
//! The order is for one start from the medium of the form `iso`. So it is no part of the node's configuration: it is
//! removed from a document before the document is compared, kept or refused, as `[secrets]` is.

use alknet_core::config::{CONFIG_BYTES_MAX, NodeConfig};
use toml::de::{DeTable, DeValue};

use crate::label::{FileSystem, volume_label};
use crate::mount::{Mounter, devices};
use crate::secrets::{self, split::SecretSpans};
use crate::{ConfigOrigin, SourcePaths, file, sources, text};

/// The table's name.
const TABLE: &str = "install";
/// The key that permits to overwrite the data of a node.
const ERASE_NODE: &str = "erase_node";
/// Longest serial number in bytes. The longest that a disk has are those of its USB device, with 126 characters.
pub const DISK_SERIAL_BYTES_MAX: usize = 256;

/// What the table says.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct InstallOrder {
    /// The serial number of the disk, or its model and size if it has none.
    pub disk: String,
    /// Whether a disk with content may be overwritten.
    pub erase: bool,
    /// Whether this content may be the data of a node.
    pub erase_node: bool,
    /// What the machine does afterwards.
    pub then: AfterInstall,
}

/// What a machine does after it has written the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AfterInstall {
    /// It powers off.
    Poweroff,
    /// It restarts.
    #[default]
    Restart,
}

/// A document with an order.
#[derive(Debug)]
#[non_exhaustive]
pub struct InstallRequest {
    /// The order, or what is wrong with it or with the rest of the document.
    pub order: Result<InstallOrder, Vec<String>>,
    /// The document for the installed disk: without the order, and without secrets, which stay on their medium.
    pub document: Vec<u8>,
    /// The document with the order, and without secrets.
    pub with_order: Vec<u8>,
    /// The lines of the order alone, without white space at their ends and without empty lines.
    pub table: Vec<u8>,
    /// The source of the document.
    pub source: ConfigOrigin,
}

/// The kernel's names of the devices with an ISO 9660 volume of this label, in their order. Partitions are left out,
/// because the volume of the medium begins where its device begins.
#[must_use]
pub fn medium_devices(paths: &SourcePaths, label: &str) -> Vec<String> {
    let is_medium = |name: &String| {
        // sysfs writes a `/` in a device's name as `!`.
        let device = paths.dev.join(name.replace('!', "/"));
        let found = file::open_device(&device).and_then(|mut device| volume_label(&mut device));
        let found = found.ok().flatten();
        found.is_some_and(|it| it.file_system == FileSystem::Iso9660 && it.label == label)
    };
    let is_partition = |name: &String| paths.block_class.join(name).join("partition").exists();
    let names = devices(paths).into_iter();
    names
        .filter(|name| !is_partition(name) && is_medium(name))
        .collect()
}

/// The order of the document that counts on this machine: of the first one that is not empty. `None` if that one has no
/// order. Blocks on disks.
///
/// Of several boot partitions, those on the devices of `media` come first. So the names of the devices do not decide
/// between the document on the medium and the one on a disk that was installed earlier.
///
/// Metadata services and the console give no orders: a service would be asked at each start, and a person at the
/// console can attach a medium.
#[must_use]
pub fn install_request(
    paths: &SourcePaths,
    mounter: &dyn Mounter,
    media: &[String],
) -> Option<InstallRequest> {
    // The machine reads the sources again afterwards, and reports their problems then.
    let mut problems = Vec::new();
    let mut offers = sources::all(paths, mounter, None, &mut problems);
    // The sort is stable: the other sources keep their places.
    offers.sort_by_key(|offer| match &offer.source {
        ConfigOrigin::FwCfg | ConfigOrigin::NoCloud { .. } => OfferRank::BeforeBoot,
        ConfigOrigin::BootPartition { device } => {
            match media
                .iter()
                .any(|medium| has_partition(paths, medium, device))
            {
                true => OfferRank::BootOfMedium,
                false => OfferRank::Boot,
            }
        }
        _ => OfferRank::BehindBoot,
    });
    offers.iter().find_map(|offer| {
        let document = offer.document.as_ref()?;
        if let Some(text) = text::of_utf_16(document) {
            return Some(refused_text(&text, &offer.source));
        }
        let parted = secrets::part(document);
        let is_empty = parted.document.trim_ascii().is_empty() && parted.mistakes.is_empty();
        (!is_empty).then(|| request(parted.document, parted.mistakes, &offer.source))
    })?
}

/// The places of the sources where boot partitions are sorted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum OfferRank {
    BeforeBoot,
    BootOfMedium,
    Boot,
    BehindBoot,
}

/// Whether a device is this disk or a partition of it. In sysfs the folder of a disk has one for each partition.
fn has_partition(paths: &SourcePaths, disk: &str, device: &str) -> bool {
    disk == device || paths.block_class.join(disk).join(device).exists()
}

/// The refusal of a document in UTF-16 that has an order. Without one the machine refuses the document when it reads its
/// configuration.
fn refused_text(text: &str, source: &ConfigOrigin) -> Option<InstallRequest> {
    if SecretSpans::parse_table(text, TABLE).is_empty() {
        return None;
    }
    let (what, fix) = text::UTF_16;
    Some(InstallRequest {
        order: Err(vec![format!("{what}; {fix}")]),
        document: Vec::new(),
        with_order: Vec::new(),
        table: Vec::new(),
        source: source.clone(),
    })
}

fn request(
    with_order: Vec<u8>,
    mistakes: Vec<(String, String)>,
    source: &ConfigOrigin,
) -> Option<InstallRequest> {
    let mut document = with_order.clone();
    let table = take(&mut document)?;
    let line = |(what, fix): (String, String)| format!("{what}; {fix}");
    let mut wrong: Vec<String> = mistakes.into_iter().map(line).collect();
    let text = table.text;
    wrong.extend(table.mistakes.into_iter().map(line));
    // The installed machine would refuse it.
    if let Err(errors) = NodeConfig::parse(&document) {
        wrong.extend(errors.iter().map(ToString::to_string));
    }
    let order = table.order.filter(|_| wrong.is_empty()).ok_or(wrong);
    Some(InstallRequest {
        order,
        document,
        with_order,
        table: text,
        source: source.clone(),
    })
}

/// Whether a document has an order, correct or not.
#[must_use]
pub fn has_install(document: &[u8]) -> bool {
    match text::of_utf_16(document) {
        Some(text) => !SecretSpans::parse_table(&text, TABLE).is_empty(),
        None => take(&mut secrets::part(document).document).is_some(),
    }
}

/// A document without its order, and what is wrong with the order.
#[must_use]
pub fn split_install(document: &[u8]) -> (Vec<u8>, Vec<String>) {
    let mut document = document.to_vec();
    let table = take(&mut document);
    let mistakes = table.into_iter().flat_map(|table| table.mistakes);
    let mistakes = mistakes.map(|(what, fix)| format!("{what}; {fix}"));
    let mistakes = mistakes.collect();
    (document, mistakes)
}

/// The table as it was read.
#[derive(Debug, Default)]
pub(crate) struct InstallTable {
    /// `None` with a mistake.
    order: Option<InstallOrder>,
    /// What is wrong, and what to do.
    pub(crate) mistakes: Vec<(String, String)>,
    /// As in [`InstallRequest::table`].
    text: Vec<u8>,
}

/// Takes the table out of a document, which keeps its lines. `None` if it has none.
pub(crate) fn take(document: &mut Vec<u8>) -> Option<InstallTable> {
    // The reader of the configuration refuses a document for its length or its bytes.
    let text = std::str::from_utf8(document).ok()?;
    if text.len() > CONFIG_BYTES_MAX {
        return None;
    }
    let spans = SecretSpans::parse_table(text, TABLE);
    if spans.is_empty() {
        return None;
    }
    let taken = spans.secrets(document);
    let mut table = read(&taken);
    table.text = lines_of(&taken);
    *document = spans.document(document);
    Some(table)
}

/// The lines of a text without what an editor changes unseen: white space at their ends, and empty lines.
fn lines_of(text: &[u8]) -> Vec<u8> {
    let lines = text.split(|byte| matches!(byte, b'\n' | b'\r'));
    let mut kept = Vec::new();
    for line in lines.map(<[u8]>::trim_ascii).filter(|it| !it.is_empty()) {
        kept.extend_from_slice(line);
        kept.push(b'\n');
    }
    kept
}

/// Reads the table from a text that has nothing else.
fn read(text: &[u8]) -> InstallTable {
    let text = std::str::from_utf8(text).unwrap_or_default();
    let line = |at: usize| 1 + text[..at.min(text.len())].matches('\n').count();
    let mut mistakes = Vec::new();
    let mut refuse = |at: usize, key: &str, what: &str, fix: &str| {
        let what = format!("line {}, {TABLE}{key}: {what}", line(at));
        mistakes.push((what, fix.to_owned()));
    };
    let (root, broken) = DeTable::parse_recoverable(text);
    for mistake in &broken {
        let at = mistake.span().unwrap_or_default().start;
        refuse(at, "", "this is no TOML", "correct the TOML syntax here");
    }
    let value = root.get_ref().get(TABLE).filter(|_| broken.is_empty());
    let mut order = InstallOrder {
        disk: String::new(),
        erase: false,
        erase_node: false,
        then: AfterInstall::default(),
    };
    match value.map(|value| (value, value.get_ref().as_table())) {
        Some((_, Some(table))) => {
            for (key, value) in table {
                let name: &str = key.get_ref();
                if let Err((what, fix)) = order.set(name, value.get_ref()) {
                    refuse(key.span().start, &format!(".{name}"), what, fix);
                }
            }
            if !table.contains_key("disk") {
                let fix = "add disk = \"SERIAL\", the serial number of the disk to write";
                refuse(
                    value.map_or(0, |it| it.span().start),
                    "",
                    "no disk is named",
                    fix,
                );
            }
            if let Some((key, _)) = table.get_key_value(ERASE_NODE)
                && order.erase_node
                && !order.erase
            {
                let what = "erase = true is missing beside it";
                let fix = "add erase = true, or take erase_node out";
                refuse(key.span().start, &format!(".{ERASE_NODE}"), what, fix);
            }
        }
        Some((value, None)) => {
            let fix = "write [install] on a line of its own, and its keys below";
            refuse(value.span().start, "", "expected a table", fix);
        }
        None => {}
    }
    InstallTable {
        order: mistakes.is_empty().then_some(order),
        mistakes,
        text: Vec::new(),
    }
}

impl InstallOrder {
    /// Sets one key. The error is what is wrong, and what to do.
    fn set(&mut self, key: &str, value: &DeValue<'_>) -> Result<(), (&'static str, &'static str)> {
        match (key, value.as_str(), value.as_bool()) {
            ("disk", Some(serial), _) => {
                let is_serial = (1..=DISK_SERIAL_BYTES_MAX).contains(&serial.len())
                    && !serial.chars().any(char::is_control);
                if !is_serial {
                    let what = "this is no serial number";
                    return Err((what, "write 1 to 256 bytes without control characters"));
                }
                serial.trim().clone_into(&mut self.disk);
            }
            ("disk", None, _) => {
                return Err(("expected a string in quotes", "write disk = \"SERIAL\""));
            }
            ("erase", _, Some(erase)) => self.erase = erase,
            (ERASE_NODE, _, Some(erase)) => self.erase_node = erase,
            ("erase", _, None) => {
                return Err((
                    "expected true or false",
                    "write erase = true, or leave it out",
                ));
            }
            (ERASE_NODE, _, None) => {
                return Err((
                    "expected true or false",
                    "write erase_node = true, or leave it out",
                ));
            }
            ("then", Some("restart"), _) => self.then = AfterInstall::Restart,
            ("then", Some("poweroff"), _) => self.then = AfterInstall::Poweroff,
            ("then", _, _) => {
                let fix = "write \"restart\" or \"poweroff\"";
                return Err(("the machine cannot do this", fix));
            }
            _ => return Err(("unknown key", "known here: disk, erase, erase_node, then")),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(text: &str) -> (String, InstallTable) {
        let mut document = text.as_bytes().to_vec();
        let table = take(&mut document).expect("a table");
        (String::from_utf8(document).expect("still text"), table)
    }

    #[test]
    fn the_order_is_read_and_the_rest_of_the_document_keeps_its_lines() {
        let text = "[node]\nname = \"a\"\n\n[install]\ndisk = \" S4EVNX0N\" # the new one\nerase = true\n\
                    then = \"poweroff\"\n\n[listen]\nport = 4433\n";
        let (document, table) = taken(text);
        assert_eq!(
            String::from_utf8_lossy(&table.text),
            "[install]\ndisk = \" S4EVNX0N\" # the new one\nerase = true\nthen = \"poweroff\"\n"
        );
        let expected = InstallOrder {
            disk: "S4EVNX0N".to_owned(),
            erase: true,
            erase_node: false,
            then: AfterInstall::Poweroff,
        };
        assert_eq!(table.order, Some(expected));
        assert_eq!(document.len(), text.len());
        assert!(NodeConfig::parse(document.as_bytes()).is_ok(), "{document}");
        assert!(!document.contains("S4EVNX0N") && document.contains("port = 4433"));
        // Without these words the machine overwrites nothing, and restarts.
        let (_, table) = taken("install.disk = \"a\"\n");
        let order = table.order.expect("no mistake");
        assert_eq!((order.erase, order.then), (false, AfterInstall::Restart));
        assert!(!order.erase_node);
        let (_, table) = taken("[install]\ndisk = \"a\"\nerase_node = true\nerase = true\n");
        let order = table.order.expect("no mistake");
        assert!(order.erase && order.erase_node);
    }

    #[test]
    fn a_document_without_the_table_has_no_order() {
        for text in [
            "",
            "[node]\nname = \"install\"\n",
            "[node.install]\na = 1\n",
        ] {
            let mut document = text.as_bytes().to_vec();
            assert!(take(&mut document).is_none(), "{text}");
            assert_eq!(document, text.as_bytes());
        }
    }

    #[test]
    fn each_mistake_names_its_line_and_gives_no_order() {
        for (text, expected) in [
            ("[install]\n", "line 1, install: no disk is named"),
            (
                "[install]\ndisk = 7\n",
                "line 2, install.disk: expected a string",
            ),
            (
                "[install]\ndisk = \"\"\n",
                "line 2, install.disk: this is no serial",
            ),
            (
                "[install]\ndisk = \"a\\nb\"\n",
                "line 2, install.disk: this is no serial",
            ),
            (
                "[install]\ndisk = \"a\"\nerase = 1\n",
                "line 3, install.erase: expected true",
            ),
            (
                "[install]\ndisk = \"a\"\nerase_node = 1\n",
                "line 3, install.erase_node: expected true",
            ),
            (
                "[install]\ndisk = \"a\"\nerase_node = true\n",
                "line 3, install.erase_node: erase = true is missing",
            ),
            (
                "[install]\ndisk = \"a\"\nthen = \"halt\"\n",
                "line 3, install.then: the machine",
            ),
            (
                "[install]\ndisk = \"a\"\nforce = true\n",
                "line 3, install.force: unknown key",
            ),
            ("install = \"a\"\n", "line 1, install: expected a table"),
            (
                "[install]\ndisk = \"a\" b\n",
                "line 2, install: this is no TOML",
            ),
        ] {
            let (_, table) = taken(text);
            assert_eq!(table.order, None, "{text}");
            let (what, fix) = table.mistakes.first().expect("a mistake");
            assert!(what.starts_with(expected), "{text}: {what}");
            assert!(!fix.is_empty(), "{text}");
        }
    }
}
