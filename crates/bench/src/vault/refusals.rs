//! Records that do not open: moved, cut, of another version and damaged. One error says so, and it takes the
//! same time.

use std::hint::black_box;

use alknet_vault::{BlobLabel, SealedBlob, Vault, VaultError};

use super::BENCH;
use crate::rows::{BenchRow, Goal};

pub(super) const MOVED: &str = "refuse 1 KiB of another record";
pub(super) const CUT: &str = "refuse 1 KiB that was cut";
pub(super) const VERSION: &str = "refuse 1 KiB of another version";
pub(super) const DAMAGED: &str = "refuse 1 KiB that is damaged";

/// The slowest may take so much of the quickest.
const APART: f64 = 1.1;

/// Where the last byte of a record's key version is, and one of its content.
const VERSION_AT: usize = 11;
const CONTENT_AT: usize = 500;

/// One record, changed in each way.
#[derive(Debug)]
pub(super) struct RefusalCases {
    label: BlobLabel,
    other_label: BlobLabel,
    whole: SealedBlob,
    cut: SealedBlob,
    other_version: SealedBlob,
    damaged: SealedBlob,
}

impl RefusalCases {
    pub(super) fn from_record(whole: &SealedBlob, label: &BlobLabel) -> Result<Self, VaultError> {
        let bytes = whole.as_bytes();
        let changed = |at: usize| {
            let mut bytes = bytes.to_vec();
            bytes[at] ^= 1;
            SealedBlob::parse(&bytes)
        };
        Ok(Self {
            label: label.clone(),
            other_label: "cred:other".parse()?,
            whole: whole.clone(),
            cut: SealedBlob::parse(&bytes[..bytes.len() - 1])?,
            other_version: changed(VERSION_AT)?,
            damaged: changed(CONTENT_AT)?,
        })
    }

    pub(super) fn moved(&self, vault: &Vault) -> Result<(), VaultError> {
        refused(vault, &self.other_label, &self.whole)
    }

    pub(super) fn cut(&self, vault: &Vault) -> Result<(), VaultError> {
        refused(vault, &self.label, &self.cut)
    }

    pub(super) fn version(&self, vault: &Vault) -> Result<(), VaultError> {
        refused(vault, &self.label, &self.other_version)
    }

    pub(super) fn damaged(&self, vault: &Vault) -> Result<(), VaultError> {
        refused(vault, &self.label, &self.damaged)
    }
}

fn refused(vault: &Vault, label: &BlobLabel, blob: &SealedBlob) -> Result<(), VaultError> {
    match black_box(vault.open(label, blob)) {
        Err(VaultError::Decrypt) => Ok(()),
        Err(other) => Err(other),
        Ok(_) => unreachable!("whatever was changed is authenticated"),
    }
}

/// Each of them, and the slowest beside the quickest; `us` has the microseconds of a case.
pub(super) fn rows(us: impl Fn(&str) -> f64) -> Vec<BenchRow> {
    let each = [MOVED, CUT, VERSION, DAMAGED].map(|case| (case, us(case)));
    let of = |case: &str, us: f64| BenchRow::lower(BENCH, case, "CPU µs", us);
    let mut rows = each.map(|(case, us)| of(case, us)).to_vec();
    let slowest = each.map(|(_, us)| us).into_iter().fold(0.0, f64::max);
    let quickest = each.map(|(_, us)| us).into_iter().fold(f64::MAX, f64::min);
    rows.push(
        of("refuse 1 KiB, the slowest of these", slowest)
            .beside("the quickest", quickest)
            .goal(Goal::Ratio(APART)),
    );
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_is_beside_the_quickest() {
        let rows = rows(|case| if case == CUT { 8.0 } else { 10.0 });
        assert_eq!(rows.len(), 5);
        assert_eq!(rows[4].ratio, Some(1.25));
    }
}
