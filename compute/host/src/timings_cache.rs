//! Persistent cache of kernel timings: the faster variant does not change with a restart.
//!
//! Timings are worth nothing on another adapter, with another version of its driver, or with another number of
//! threads; so the file names them, and a node with others ignores the file. A file that cannot be read or written
//! costs only measurements.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use alknet_compute_wire::{GpuAdapter, MachineSpeed};
use serde::{Deserialize, Serialize};

use crate::choose::{TimingEntry, TimingRecords, is_speed};

/// Longest file that is read, in bytes: two kernels, two variants and 22 sizes take a tenth of it.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// Version of the file. A file of another version is ignored.
const VERSION: u32 = 1;

/// Held while the file is written.
static WRITING: Mutex<()> = Mutex::new(());

/// The machine to which the timings belong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TimingsMachine {
    adapter: String,
    driver: String,
    versions: String,
    threads: u32,
}

impl TimingsMachine {
    pub(crate) fn from_adapter(adapter: &GpuAdapter, threads: u32) -> Self {
        Self {
            adapter: adapter.name.clone(),
            driver: adapter.driver.clone(),
            versions: adapter.versions.clone(),
            threads,
        }
    }
}

/// The content of the file.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct TimingsCache {
    version: u32,
    machine: TimingsMachine,
    measured: Option<MachineSpeed>,
    records: Vec<TimingEntry>,
}

impl TimingsCache {
    pub(crate) fn new(
        machine: TimingsMachine,
        measured: Option<MachineSpeed>,
        records: &TimingRecords,
    ) -> Self {
        Self {
            version: VERSION,
            machine,
            measured,
            records: records.entries(),
        }
    }

    /// The timings that a file has for this machine.
    pub(crate) fn load(
        file: &Path,
        machine: &TimingsMachine,
    ) -> Option<(Option<MachineSpeed>, TimingRecords)> {
        let mut text = Vec::new();
        let read =
            File::open(file).and_then(|file| file.take(FILE_BYTES_MAX).read_to_end(&mut text));
        if let Err(error) = read {
            // The first start of a node has no file yet.
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!("what was measured cannot be read: {error}");
            }
            return None;
        }
        let read = serde_json::from_slice::<Self>(&text);
        let cache = read
            .inspect_err(|error| tracing::warn!("what was measured is passed over: {error}"))
            .ok()?;
        if cache.version != VERSION || cache.machine != *machine {
            return None;
        }
        let measured = cache.measured.filter(is_speed);
        Some((measured, TimingRecords::restored(cache.records)))
    }

    /// Replaces the file, whole or not at all.
    pub(crate) fn save(&self, file: &Path) {
        let _writing = WRITING.lock().unwrap_or_else(PoisonError::into_inner);
        let saved = serde_json::to_vec(self)
            .map_err(io::Error::from)
            .and_then(|text| {
                let fresh = file.with_extension("new");
                if let Some(folder) = file.parent() {
                    fs::create_dir_all(folder)?;
                }
                // The file is not synced: timings that a power cut destroys are measured again.
                fs::write(&fresh, text)?;
                fs::rename(&fresh, file)
            });
        if let Err(error) = saved {
            tracing::warn!("what was measured cannot be kept: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use alknet_compute_wire::KernelVariant;

    use super::*;
    use crate::choose::KernelKind;

    fn machine(versions: &str) -> TimingsMachine {
        let adapter = GpuAdapter {
            name: "llvmpipe".to_owned(),
            versions: versions.to_owned(),
            ..GpuAdapter::default()
        };
        TimingsMachine::from_adapter(&adapter, 2)
    }

    fn records() -> TimingRecords {
        let mut records = TimingRecords::default();
        assert!(records.record(KernelKind::Matmul, 1e6, KernelVariant::Host, 2.0));
        assert!(!records.record(KernelKind::Matmul, 1e6, KernelVariant::Host, 2.0));
        assert!(records.record(KernelKind::Sha256, 1e3, KernelVariant::Wgsl, 1.0));
        records
    }

    #[test]
    fn what_was_measured_comes_back_on_the_same_machine_only() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("deep/measured.json");
        assert!(TimingsCache::load(&file, &machine("1")).is_none());
        let measured = MachineSpeed {
            matmul_host: 90.0,
            ..MachineSpeed::default()
        };
        TimingsCache::new(machine("1"), Some(measured), &records()).save(&file);
        let (again, restored) = TimingsCache::load(&file, &machine("1")).expect("kept");
        assert_eq!(again, Some(measured));
        assert_eq!(restored.entries().len(), 2);
        assert!(
            restored
                .entries()
                .iter()
                .all(|entry| records().entries().contains(entry))
        );
        assert!(TimingsCache::load(&file, &machine("2")).is_none());
    }

    #[test]
    fn a_file_that_is_none_costs_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("measured.json");
        for text in ["", "{}", "[1, 2", "{\"version\":1}"] {
            fs::write(&file, text).expect("writable");
            assert!(TimingsCache::load(&file, &machine("1")).is_none(), "{text}");
        }
        let nonsense = r#"{"version":1,"measured":null,"machine":{"adapter":"llvmpipe","driver":"",
            "versions":"1","threads":2},"records":[
            {"kernel":"matmul","class":9,"variant":"host","operations_ms":-1.0},
            {"kernel":"matmul","class":999,"variant":"host","operations_ms":1.0}]}"#;
        fs::write(&file, nonsense).expect("writable");
        let (_, restored) = TimingsCache::load(&file, &machine("1")).expect("it is one");
        assert!(restored.entries().is_empty());
        // A folder in its place: said in the log, and no more.
        fs::remove_file(&file).expect("removable");
        fs::create_dir(&file).expect("writable");
        TimingsCache::new(machine("1"), None, &records()).save(&file);
        assert!(TimingsCache::load(&file, &machine("1")).is_none());
    }
}
