//! Repair of a boot partition with two programs, one of which runs while the other is written.

use crate::device::BlockDevice;
use crate::error::FatError;
use crate::repair::{NameChoice, NamedChain, RepairReport, RepairRules};
use crate::volume::FatVolume;

/// The files of a machine that runs one program and writes another one, by their paths on the boot partition.
#[derive(Clone, Copy, Debug)]
pub struct BootFiles<'a> {
    /// The loader, which is worth most.
    pub loader: &'a str,
    /// The program that runs.
    pub running: &'a str,
    /// The program that is written next, which is worth least.
    pub written: &'a str,
}

impl BootFiles<'_> {
    /// The paths of the files, in the order of their worth.
    #[must_use]
    pub const fn paths(&self) -> [&str; 3] {
        [self.loader, self.running, self.written]
    }

    /// The same files, where the program that runs is worth least.
    const fn exchanged(&self) -> Self {
        Self {
            running: self.written,
            written: self.running,
            ..*self
        }
    }

    /// Between two own files that both fit or both do not, the one stays that is not written next.
    fn choose(&self, first: &NamedChain<'_>, second: &NamedChain<'_>) -> NameChoice {
        if !(first.is_own && second.is_own) || first.fits != second.fits {
            return RepairRules::keep_own(first, second);
        }
        match first.path.eq_ignore_ascii_case(self.written) {
            true => NameChoice::Second,
            false => NameChoice::First,
        }
    }
}

impl<D: BlockDevice> FatVolume<D> {
    /// Repairs what a power cut left on a boot partition.
    ///
    /// The program that runs stays even if its file is damaged: its loader could read it, and without it the machine
    /// might not start again. It goes only if `files.written` has a chain of its size and `may_run_written` permits it.
    /// If each of the two files has a chain of its size and the chains share clusters, only `may_run_written` tells which
    /// one has its own bytes: the program that runs goes if it permits that, and otherwise `files.written`.
    ///
    /// `may_run_written` says whether the machine may start `files.written` in the place of the program that runs. It
    /// reads both programs, so it is called once at most, and only if the answer decides.
    ///
    /// # Errors
    /// Those of [`repair`](Self::repair).
    pub fn repair_boot_files(
        &mut self,
        files: &BootFiles<'_>,
        may_run_written: impl FnOnce(&Self) -> bool,
    ) -> Result<RepairReport, FatError> {
        // The loader and one of the programs.
        const NEEDED: usize = 2;

        // Before the repair, which drops one of two files that cross.
        if self.share_clusters([files.running, files.written]) {
            return match may_run_written(self) {
                true => self.repair_own(&files.exchanged(), NEEDED),
                false => self.repair_own(files, NEEDED),
            };
        }
        let report = self.repair_own(files, NEEDED)?;
        let is_in_order = report.left.findings.is_empty();
        if is_in_order || self.open_file(files.written).is_err() || !may_run_written(self) {
            return Ok(report);
        }
        // The loader alone.
        let second = self.repair_own(files, 1)?;
        Ok(report.followed_by(second))
    }

    fn repair_own(
        &mut self,
        files: &BootFiles<'_>,
        needed: usize,
    ) -> Result<RepairReport, FatError> {
        let own = files.paths();
        let choose = |first: &NamedChain<'_>, second: &NamedChain<'_>| files.choose(first, second);
        self.repair(&RepairRules {
            own: &own,
            needed,
            choose: &choose,
        })
    }

    /// Whether each of two files has a chain of its size, and these chains share clusters.
    fn share_clusters(&self, paths: [&str; 2]) -> bool {
        let mut extents = Vec::new();
        for path in paths {
            let Ok(file) = self.open_file(path) else {
                return false;
            };
            extents.extend_from_slice(file.extents());
        }
        // A chain with an end has each of its clusters once, so only extents of different files overlap.
        extents.sort_unstable_by_key(|extent| extent.at);
        let mut pairs = extents.iter().zip(extents.iter().skip(1));
        pairs.any(|(one, next)| one.at + one.bytes > next.at)
    }
}
