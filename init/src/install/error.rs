//! Why the image was not installed.

use std::io;

use alknet_image_write::{DiskFacts, FlashError};
use alknet_provisioning::InstallOrder;

use super::DRIVE_BYTES_MIN;
use crate::control::MachineDiagnostic;

/// The problem of a machine that did not begin to write.
const REFUSED: &str = "install-refused";
/// The problem of a machine whose writing failed.
const FAILED: &str = "install-failed";

/// Why the image was not installed. The machine serves nothing then.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InstallError {
    /// Several disks have the serial number.
    #[error("several disks have the serial number '{wanted}': {}", disks.join(", "))]
    Ambiguous {
        /// The serial number of the order.
        wanted: String,
        /// The kernel's names of the disks.
        disks: Vec<String>,
    },
    /// The disk says that the order was carried out, and has other programs than the medium.
    #[error(
        "{disk} says that the same order installed it, and has data, but not the programs of this medium"
    )]
    Changed {
        /// The disk.
        disk: String,
    },
    /// The disk cannot be opened for an installation. Nothing was written.
    #[error(transparent)]
    Disk(FlashError),
    /// The kernel's list of disks cannot be read.
    #[error("the disks of the machine cannot be listed: {0}")]
    Disks(io::Error),
    /// The disk was not written to the end.
    #[error(transparent)]
    Flash(#[from] FlashError),
    /// The order was carried out in an earlier start.
    #[error("{disk} has this image already, installed by the same order")]
    Installed {
        /// The disk.
        disk: String,
    },
    /// The order names the disk from which the machine was started.
    #[error("{disk} is the medium from which the machine was started")]
    IsMedium {
        /// The disk.
        disk: String,
    },
    /// The medium cannot be read.
    #[error("the medium in {medium} cannot be read: {source}")]
    Medium {
        /// The device with the medium.
        medium: String,
        /// The kernel's error, or what is wrong with the files.
        source: io::Error,
    },
    /// No disk has the serial number.
    #[error(
        "no disk has the serial number '{wanted}'; this machine has {}",
        listed(disks)
    )]
    Missing {
        /// The serial number of the order.
        wanted: String,
        /// The disks, each with its serial number.
        disks: Vec<String>,
    },
    /// The disk has the data of a node, and the order does not permit to overwrite them.
    #[error("{disk} has a node's data")]
    NodeData {
        /// The disk.
        disk: String,
    },
    /// The disk has partitions or other content.
    #[error("{disk} has partitions or other content")]
    NotEmpty {
        /// The disk.
        disk: String,
    },
    /// The order, or the document with it, has mistakes.
    #[error("{origin}: {}", mistakes.join("; "))]
    Order {
        /// The source of the document.
        origin: String,
        /// What is wrong, each with its line.
        mistakes: Vec<String>,
    },
    /// The order lies on the disk that it names.
    #[error("the order is on {disk}, the disk that it names: {origin}")]
    OrderOnDisk {
        /// The disk.
        disk: String,
        /// The source of the document.
        origin: String,
    },
    /// The medium has another version than the machine runs.
    #[error("the medium has version {medium}, and the machine runs version {running}")]
    OtherVersion {
        /// The version of the medium.
        medium: String,
        /// The version of the machine.
        running: String,
    },
    /// Several devices have the label of the medium, and the machine may have started from any of them.
    #[error("several devices have an installation medium: {}", media.join(", "))]
    SeveralMedia {
        /// The kernel's names of the devices.
        media: Vec<String>,
    },
    /// The disk is too small.
    #[error("{disk} has {bytes} bytes, and a machine needs {needed}", needed = DRIVE_BYTES_MIN)]
    TooSmall {
        /// The disk.
        disk: String,
        /// Bytes of the disk.
        bytes: u64,
    },
    /// The disk cannot be read.
    #[error("{disk} cannot be read: {source}")]
    Unreadable {
        /// The disk.
        disk: String,
        /// The kernel's error.
        source: io::Error,
    },
}

impl InstallError {
    /// The error of an order whose disk is not among these.
    pub(super) fn missing(order: &InstallOrder, all: &[DiskFacts]) -> Self {
        let named = |it: &DiskFacts| format!("{} with '{}'", it.description(), it.proof());
        Self::Missing {
            wanted: order.disk.clone(),
            disks: all.iter().map(named).collect(),
        }
    }

    /// The problem of a machine that serves nothing for this reason.
    pub(super) fn diagnostic(&self) -> MachineDiagnostic {
        let hint = match self {
            Self::Installed { .. } => {
                "take the medium out and restart the machine; to install once more, change the [install] table"
            }
            Self::Changed { .. } => {
                "if this machine was updated since, take the medium out; otherwise another person may have prepared the disk: \
                 start nothing from it, and change the [install] table, with erase = true and erase_node = true, to install over it"
            }
            Self::NodeData { .. } => {
                "name another disk; to erase the node with its keys and data, write erase = true and erase_node = true into [install]"
            }
            Self::NotEmpty { .. } => {
                "name another disk, or write erase = true into [install] to overwrite this one"
            }
            Self::Disk(_) | Self::Flash(_) | Self::Unreadable { .. } => {
                "check the disk, or name another one; the machine installs again when it restarts"
            }
            Self::OrderOnDisk { .. } => {
                "put the document on the medium, or take [install] out of the one on the disk"
            }
            Self::SeveralMedia { .. } => {
                "take every medium out but the one that you mean, and restart the machine"
            }
            Self::Medium { .. } | Self::OtherVersion { .. } => {
                "start the machine from a medium that was written again"
            }
            _ => "correct [install], or attach the disk, and restart the machine",
        };
        let is_written = matches!(self, Self::Flash(_));
        let of = |code: &str| MachineDiagnostic {
            code: code.to_owned(),
            text: format!("the image was not installed: {self}; the machine serves nothing"),
            hint: hint.to_owned(),
        };
        match is_written {
            true => of(FAILED),
            false => of(REFUSED),
        }
    }
}

fn listed(disks: &[String]) -> String {
    match disks {
        [] => "no disk".to_owned(),
        _ => disks.join(", "),
    }
}
