//! The list that Raspberry Pi Imager reads (`rpi-imager --repo FILE`): one entry for the disk.
//!
//! The fields are those of `doc/json-schema/os-list-schema.json` of Imager's repository.

use serde_json::{Value, json};

use super::PackOptions;
use crate::manifest::ManifestOutput;

/// A picture that Imager has itself. The image has no server from which one could be fetched.
const ICON: &str = "icons/use_custom.png";
/// The tag of the machines that the disk is for. Imager shows the entry for the device of the same list.
const DEVICE_TAG: &str = "pc-x86-64";

/// The entry's facts.
pub(super) struct DownloadFacts<'a> {
    pub(super) version: &'a str,
    pub(super) disk: &'a ManifestOutput,
    /// The packed disk. Without it, the disk itself is downloaded.
    pub(super) download: Option<&'a ManifestOutput>,
    pub(super) options: &'a PackOptions,
}

impl DownloadFacts<'_> {
    /// The whole list, with a newline at its end.
    pub(super) fn list(&self) -> String {
        let download = self.download.unwrap_or(self.disk);
        let url = match &self.options.url {
            Some(folder) => format!("{}/{}", folder.trim_end_matches('/'), download.file),
            None => download.file.clone(),
        };
        let mut entry = json!({
            "name": format!("alknet {}", self.version),
            "description": "An appliance for PCs and servers (x86-64) that boot by UEFI",
            "icon": ICON,
            "url": url,
            "extract_size": self.disk.bytes,
            "extract_sha256": self.disk.sha256,
            "image_download_size": download.bytes,
            "image_download_sha256": download.sha256,
            "devices": [DEVICE_TAG],
            // Imager must not change the disk: alknet reads its own document.
            "init_format": "none",
        });
        if let Some(date) = &self.options.release_date {
            entry["release_date"] = Value::from(date.as_str());
        }
        let list = json!({
            "imager": {
                "devices": [{
                    "name": "PC (x86-64)",
                    "description": "A PC or server that boots by UEFI",
                    "icon": ICON,
                    "tags": [DEVICE_TAG],
                    "default": true,
                    "matching_type": "inclusive",
                }],
            },
            "os_list": [entry],
        });
        format!("{list:#}\n")
    }
}
