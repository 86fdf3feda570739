//! Cuts of the writes of an update to the data partition, which is a plain ext4 file system here.

use std::collections::BTreeSet;
use std::path::Path;

use alknet_tests::tools::{RAW_DATA_AT, assert_clean, tool, tool_says};
use serde_json::Value;

use super::{LOADERS_END, UpdateRecording};
use crate::power::Evidence;
use crate::update::disk::SlotDiskImage;

/// Of so many cuts the file system is examined, and so many start a machine.
const FILE_SYSTEMS: usize = 200;
const BOOTS: usize = 10;
/// The data partition begins at a multiple of this.
const COPY_BLOCK_BYTES: u64 = 1 << 20;
/// A write is cut before it, within it and after it.
const CUTS_OF_WRITE: usize = 3;
/// Files of `/data/update` that PID 1 replaces as a whole. An update writes the first three.
const FILES: [&str; 5] = [
    "programs.json",
    "staged.json",
    "trust.json",
    "left.json",
    "starts.json",
];
const WRITTEN_FILES: usize = 3;
/// What debugfs says of a file that the file system does not have.
const NO_FILE: &str = "File not found";

impl UpdateRecording {
    /// Cuts each write to the data partition, before it, within it and after it. The writes before it are all there, in
    /// their order. The model of the loader has to choose a whole program after each; of samples the file system is
    /// examined, or a machine started.
    pub(super) fn cut_each_data_write(&self) {
        let path = self.bench.path().join("data.raw");
        let image = Evidence(path.clone());
        let disk = SlotDiskImage::new(&path);
        let writes = self.writes_of_update(LOADERS_END..u64::MAX);
        assert!(!writes.is_empty(), "the update noted nothing");
        let cuts_max = CUTS_OF_WRITE * writes.len();
        let (examined_of, booted_of) = (one_in(cuts_max, FILE_SYSTEMS), one_in(cuts_max, BOOTS));
        let mut found = BTreeSet::new();
        let (mut number, mut examined, mut booted) = (0_usize, 0, 0);
        let cuts = self.recording.cut_each(&writes, &image.0, &mut |at, part| {
            let when = format!("data, moment {at}, {part:?}");
            let slot = self.chosen_program(&disk, &when);
            if number.is_multiple_of(examined_of) {
                found.extend(self.has_whole_files(&image.0, &when));
                examined += 1;
            }
            if number.is_multiple_of(booted_of) {
                let copy = self.copy_of_cut(&image.0);
                self.serves(&SlotDiskImage::new(&copy.0), at, slot, &when);
                booted += 1;
            }
            number += 1;
        });
        let cuts = cuts.unwrap_or_else(|error| panic!("{error}"));
        eprintln!(
            "{} writes to the data partition cut {cuts} times: {examined} file systems examined, {booted} machines \
             started",
            writes.len()
        );
        for name in &FILES[..WRITTEN_FILES] {
            assert!(found.contains(name), "{name} is not in {found:?}");
        }
    }

    /// A copy of the image of a cut, which a machine may change.
    fn copy_of_cut(&self, image: &Path) -> Evidence {
        let copy = Evidence(self.bench.path().join("data-of-cut.raw"));
        alknet_qemu::copy(image, &copy.0).unwrap_or_else(|error| panic!("{error}"));
        copy
    }

    /// A copy of the data partition of a cut. e2fsck opens the file system again once it has replayed the journal, and
    /// then forgets at which byte of a larger file it begins.
    fn partition_of_cut(&self, image: &Path) -> Evidence {
        let copy = Evidence(self.bench.path().join("data-of-cut.ext4"));
        let [from, to] = [("if", image), ("of", &copy.0)]
            .map(|(what, path)| format!("{what}={}", path.display()));
        let skip = format!("skip={}", RAW_DATA_AT / COPY_BLOCK_BYTES);
        let block = format!("bs={COPY_BLOCK_BYTES}");
        tool_says(
            "dd",
            &[
                from.as_str(),
                &to,
                &block,
                &skip,
                "conv=sparse",
                "status=none",
            ],
        );
        copy
    }

    /// The file system is clean once its journal was replayed, and each file of [`FILES`] that it has is whole. Returns
    /// the names of those.
    fn has_whole_files(&self, image: &Path, when: &str) -> Vec<&'static str> {
        let copy = self.partition_of_cut(image);
        let partition = copy.0.display().to_string();
        let replayed = tool("e2fsck", &["-p", &partition]);
        // The code is 1 if the journal was replayed.
        let code = replayed.status.code();
        assert!(matches!(code, Some(0 | 1)), "{when}: {replayed:?}");
        assert_clean(&copy.0, 0);
        let is_whole = |name: &&str| {
            let file = format!("cat /update/{name}");
            let shown = tool("debugfs", &["-R", &file, &partition]);
            let errors = String::from_utf8_lossy(&shown.stderr);
            if shown.stdout.is_empty() && errors.contains(NO_FILE) {
                return false;
            }
            let parsed = serde_json::from_slice::<Value>(&shown.stdout);
            parsed.unwrap_or_else(|error| panic!("{when}: {name}: {error}: {shown:?}"));
            true
        };
        FILES.into_iter().filter(is_whole).collect()
    }
}

/// Of `all` cuts one in so many is in a sample of about `wanted`. The number has no factor in common with the cuts of a
/// write, so that the sample has cuts before, within and after writes.
fn one_in(all: usize, wanted: usize) -> usize {
    let number = all.div_ceil(wanted);
    number + usize::from(number.is_multiple_of(CUTS_OF_WRITE))
}
