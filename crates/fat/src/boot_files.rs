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
    /// might not start again. It goes only if `is_before`, that is if `files.written` is the version before it, and that
    /// file is whole: the loader then starts the version before.
    ///
    /// # Errors
    /// Those of [`repair`](Self::repair).
    pub fn repair_boot_files(
        &mut self,
        files: &BootFiles<'_>,
        is_before: bool,
    ) -> Result<RepairReport, FatError> {
        let own = files.paths();
        let choose = |first: &NamedChain<'_>, second: &NamedChain<'_>| files.choose(first, second);
        let mut rules = RepairRules {
            own: &own,
            // The loader and the program that runs.
            needed: own.len() - 1,
            choose: &choose,
        };
        let report = self.repair(&rules)?;
        if report.left.findings.is_empty() || !is_before || self.open_file(files.written).is_err() {
            return Ok(report);
        }
        // The loader alone.
        rules.needed = 1;
        let second = self.repair(&rules)?;
        Ok(report.followed_by(second))
    }
}
