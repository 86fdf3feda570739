//! What is not in order on a volume.

use crate::device::BlockDevice;
use crate::error::FatError;
use crate::geometry::{ChainLink, FatGeometry};
use crate::report::{FatFinding, FatReport};
use crate::scan::{FatInfo, INFO_UNKNOWN, ROOT, VolumeScan};
use crate::table::state_bits;
use crate::volume::FatVolume;

/// Bit of the boot sector's state: Linux has mounted the volume for writing, and not unmounted it.
pub(crate) const STATE_DIRTY: u8 = 1;

impl<D: BlockDevice> FatVolume<D> {
    /// Looks at everything on the volume, and changes nothing. Files other than those in `own` are foreign; they are
    /// counted, and no finding by themselves.
    ///
    /// # Errors
    /// The device cannot be read, or the volume passes one of the [`limits`](crate::limits).
    pub fn check(&self, own: &[&str]) -> Result<FatReport, FatError> {
        let scan = VolumeScan::read(&self.device, &self.geometry)?;
        self.report(&scan, own)
    }

    /// What is not in order in what was read.
    pub(crate) fn report(&self, scan: &VolumeScan, own: &[&str]) -> Result<FatReport, FatError> {
        let mut report = self.count_files(scan, own);
        self.check_state(scan, &mut report)?;
        self.check_entries(scan, &mut report);
        Ok(report)
    }

    fn count_files(&self, scan: &VolumeScan, own: &[&str]) -> FatReport {
        let own: Vec<usize> = own.iter().flat_map(|path| scan.resolve(path)).collect();
        let mut report = FatReport {
            kind: self.geometry.kind,
            clusters: self.geometry.clusters,
            cluster_bytes: self.geometry.cluster_bytes(),
            free_clusters: scan.table.free_clusters(&self.geometry),
            files: 0,
            folders: 0,
            foreign_files: 0,
            foreign_bytes: 0,
            findings: Vec::new(),
            more_findings: 0,
        };
        for (index, entry) in scan.entries.iter().enumerate().skip(ROOT + 1) {
            if entry.is_folder {
                report.folders += 1;
            } else {
                report.files += 1;
                // What firmware or another system put there takes room that no update may free.
                if !own.contains(&index) {
                    report.foreign_files += 1;
                    report.foreign_bytes += u64::from(entry.size);
                }
            }
        }
        report
    }

    /// The state of the volume as a whole.
    fn check_state(&self, scan: &VolumeScan, report: &mut FatReport) -> Result<(), FatError> {
        let (clean, no_errors) = state_bits(self.geometry.kind).unwrap_or_default();
        let state = scan.table.raw(1);
        // The specification marks the volume in the table, and Linux in the boot sector.
        if scan.state & STATE_DIRTY != 0 || state & clean != clean {
            report.add(FatFinding::Dirty);
        }
        if state & no_errors != no_errors {
            report.add(FatFinding::DeviceErrors);
        }
        for finding in info_findings(&self.geometry, scan, self.read_info()?) {
            report.add(finding);
        }
        if scan.differences > 0 {
            report.add(FatFinding::TablesDiffer {
                entries: scan.differences,
            });
        }
        let lost = scan.lost_clusters(&self.geometry);
        if !lost.is_empty() {
            report.add(FatFinding::LostClusters {
                chains: count_chains(&self.geometry, scan, &lost),
                clusters: lost.len() as u32,
            });
        }
        if scan.orphans > 0 {
            report.add(FatFinding::OrphanedLongNames {
                entries: scan.orphans,
            });
        }
        Ok(())
    }

    /// The state of each file and folder.
    fn check_entries(&self, scan: &VolumeScan, report: &mut FatReport) {
        for (index, entry) in scan.entries.iter().enumerate() {
            let path = || scan.path(index);
            if let Some(meeting) = entry.meets {
                let other = scan.path(meeting.with);
                report.add(match meeting.is_whole {
                    true => FatFinding::SharedChain {
                        first: other,
                        second: path(),
                    },
                    false => FatFinding::CrossedChains {
                        path: path(),
                        into: other,
                    },
                });
            }
            if let Some(damage) = entry.chain {
                report.add(FatFinding::Chain {
                    path: path(),
                    damage,
                });
            }
            if let Some(damage) = entry.entry {
                report.add(FatFinding::Entry {
                    path: path(),
                    damage,
                });
            }
            if entry.is_doubled {
                report.add(FatFinding::SameName { path: path() });
            }
        }
    }

    /// FSInfo, if the volume has it. The inner `None` stands for another sector in its place.
    pub(crate) fn read_info(&self) -> Result<Option<Option<FatInfo>>, FatError> {
        let Some(sector) = self.geometry.info_sector else {
            return Ok(None);
        };
        let mut bytes = vec![0; self.geometry.sector_bytes as usize];
        let read = self
            .device
            .read_at(&mut bytes, self.geometry.sector_at(sector));
        read.map_err(FatError::io("read FSInfo"))?;
        Ok(Some(FatInfo::parse(&bytes)))
    }
}

/// How FSInfo differs from the table.
pub(crate) fn info_findings(
    geometry: &FatGeometry,
    scan: &VolumeScan,
    info: Option<Option<FatInfo>>,
) -> Vec<FatFinding> {
    let mut findings = Vec::new();
    match info {
        None => {}
        Some(None) => findings.push(FatFinding::InfoSignature),
        Some(Some(FatInfo { free, next })) => {
            let counted = scan.table.free_clusters(geometry);
            // The specification allows both numbers to be unknown.
            if free != INFO_UNKNOWN && free != counted {
                findings.push(FatFinding::InfoFree {
                    recorded: free,
                    counted,
                });
            }
            if next != INFO_UNKNOWN && !geometry.has_cluster(next) {
                findings.push(FatFinding::InfoNext { cluster: next });
            }
        }
    }
    findings
}

/// Chains that lost clusters form: those clusters to which no other lost one leads. A ring alone counts as one.
fn count_chains(geometry: &FatGeometry, scan: &VolumeScan, lost: &[u32]) -> u32 {
    let next_of = |cluster: &u32| match geometry.link(scan.table.raw(*cluster)) {
        ChainLink::Next(next) => Some(next),
        _ => None,
    };
    let mut continued: Vec<u32> = lost.iter().filter_map(next_of).collect();
    continued.sort_unstable();
    let begins = |cluster: &&u32| continued.binary_search(cluster).is_err();
    let chains = lost.iter().filter(begins).count() as u32;
    chains.max(1)
}
