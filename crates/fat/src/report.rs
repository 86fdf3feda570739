//! What a check finds.

use std::fmt;

use crate::geometry::FatKind;
use crate::limits::FINDINGS_MAX;

/// What is wrong with a chain of clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ChainDamage {
    /// It has fewer clusters than its file has bytes.
    TooShort,
    /// It has more clusters than its file has bytes, or than a folder may have.
    TooLong,
    /// It leads to a cluster that is marked as free.
    Free,
    /// It leads to a cluster that is marked as bad.
    Bad,
    /// It leads to a cluster that the volume does not have.
    Outside,
    /// It leads back to a cluster of its own.
    Loop,
}

impl fmt::Display for ChainDamage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooShort => "its chain of clusters is too short",
            Self::TooLong => "its chain of clusters is too long",
            Self::Free => "its chain leads to a free cluster",
            Self::Bad => "its chain leads to a bad cluster",
            Self::Outside => "its chain leads to a cluster that does not exist",
            Self::Loop => "its chain leads back to itself",
        })
    }
}

/// What is wrong with an entry of a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EntryDamage {
    /// The specification forbids a byte of its short name.
    Name,
    /// It is a folder without clusters.
    NoCluster,
    /// It is a folder and has a size, which only files have.
    FolderSize,
    /// It is a folder that lacks `.` or `..`, or in which they lead elsewhere.
    Dots,
}

impl fmt::Display for EntryDamage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Name => "its short name has a byte that is forbidden",
            Self::NoCluster => "it is a folder without clusters",
            Self::FolderSize => "it is a folder with a size",
            Self::Dots => "its entries . and .. lead elsewhere",
        })
    }
}

/// Something that a volume in order does not have.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FatFinding {
    /// A system that writes to the volume did not unmount it.
    Dirty,
    /// A system had errors of the device.
    DeviceErrors,
    /// The sector of FSInfo has other signatures.
    InfoSignature,
    /// FSInfo has another number of free clusters than the table.
    InfoFree {
        /// What FSInfo has.
        recorded: u32,
        /// What the table has.
        counted: u32,
    },
    /// FSInfo names a cluster that the volume does not have.
    InfoNext {
        /// The number.
        cluster: u32,
    },
    /// The copies of the table differ.
    TablesDiffer {
        /// Entries that differ.
        entries: u32,
    },
    /// Clusters that are in use, and by no file and no folder.
    LostClusters {
        /// Chains that they form.
        chains: u32,
        /// How many they are.
        clusters: u32,
    },
    /// Two names lead to one chain.
    SharedChain {
        /// The name that was found first.
        first: String,
        /// The other one.
        second: String,
    },
    /// A chain leads into the middle of another one.
    CrossedChains {
        /// The file or folder whose chain leads into the other.
        path: String,
        /// The other one.
        into: String,
    },
    /// A chain does not fit its file or folder.
    Chain {
        /// The file or folder. The root is `\`.
        path: String,
        /// What is wrong.
        damage: ChainDamage,
    },
    /// An entry contradicts itself.
    Entry {
        /// The file or folder.
        path: String,
        /// What is wrong.
        damage: EntryDamage,
    },
    /// Two entries of one folder have one name. Systems find the first.
    SameName {
        /// The second one.
        path: String,
    },
    /// Entries of long names that belong to no file.
    OrphanedLongNames {
        /// How many entries, of all folders.
        entries: u32,
    },
}

impl fmt::Display for FatFinding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dirty => f.write_str("it was not unmounted"),
            Self::DeviceErrors => f.write_str("a system had errors of its device"),
            Self::InfoSignature => f.write_str("FSInfo has no signature"),
            Self::InfoFree { recorded, counted } => {
                write!(
                    f,
                    "FSInfo has {recorded} free clusters, the table {counted}"
                )
            }
            Self::InfoNext { cluster } => {
                write!(f, "FSInfo names cluster {cluster}, which does not exist")
            }
            Self::TablesDiffer { entries } => {
                write!(f, "the copies of the table differ in {entries} entries")
            }
            Self::LostClusters { chains, clusters } => {
                write!(
                    f,
                    "{clusters} clusters in {chains} chains belong to no file"
                )
            }
            Self::SharedChain { first, second } => {
                write!(f, "{first:?} and {second:?} have one chain of clusters")
            }
            Self::CrossedChains { path, into } => {
                write!(f, "the chain of {path:?} leads into that of {into:?}")
            }
            Self::Chain { path, damage } => write!(f, "{path:?}: {damage}"),
            Self::Entry { path, damage } => write!(f, "{path:?}: {damage}"),
            Self::SameName { path } => write!(f, "its folder has {path:?} twice"),
            Self::OrphanedLongNames { entries } => {
                write!(f, "{entries} entries of long names belong to no file")
            }
        }
    }
}

/// The state of a volume. A volume in order has no findings.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FatReport {
    /// Kind of the volume.
    pub kind: FatKind,
    /// Clusters of the volume.
    pub clusters: u32,
    /// Bytes of a cluster.
    pub cluster_bytes: u32,
    /// Clusters that the table in use marks as free.
    pub free_clusters: u32,
    /// Files, with foreign ones.
    pub files: u32,
    /// Folders, without the root.
    pub folders: u32,
    /// Files that are not in the caller's list.
    pub foreign_files: u32,
    /// Bytes of these files.
    pub foreign_bytes: u64,
    /// What is not in order: [`FINDINGS_MAX`] at most.
    pub findings: Vec<FatFinding>,
    /// Findings beyond these.
    pub more_findings: u32,
}

impl FatReport {
    /// Lists the finding, or counts it if the list is full.
    pub(crate) fn add(&mut self, finding: FatFinding) {
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(finding);
        } else {
            self.more_findings += 1;
        }
    }
}
