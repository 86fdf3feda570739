//! Whether the version before takes the place of the program that runs, whose file is damaged.

use crate::record::BootRecord;
use crate::slot::BootSlot;

/// What a machine has noted of the programs in its boot slots, in another place than the boot partition: an attacker who
/// has the disk can write any program and any record.
#[derive(Clone, Copy, Debug)]
pub struct ProgramNotes<'a, V> {
    /// SHA-256 of the program that runs, in hex. `None` if the machine has not noted it.
    pub running_sha256: Option<&'a str>,
    /// Version and SHA-256 of the program in the other slot. `None` if the machine has not noted it.
    pub other: Option<(V, &'a str)>,
    /// The oldest version that the machine may run, if there is one.
    pub floor: Option<V>,
}

impl<V: PartialOrd> ProgramNotes<'_, V> {
    /// Whether the file of the program in the slot `running` may go, because the loader then starts the version before:
    ///
    /// - by the record the other slot has that version, and it is not below the floor;
    /// - the file of the program that runs is damaged: it cannot be read, or has another SHA-256 than the noted one;
    /// - the program in the other slot has the noted SHA-256.
    ///
    /// `sha256_of` reads a slot's file and returns its SHA-256 in hex, or `None` if it cannot read the file. It is called
    /// only if the rest permits it, first for the program that runs.
    #[must_use]
    pub fn permit_version_before<H: AsRef<str>>(
        &self,
        record: &BootRecord,
        running: BootSlot,
        mut sha256_of: impl FnMut(BootSlot) -> Option<H>,
    ) -> bool {
        let before = running.other();
        let Some((version, noted)) = &self.other else {
            return false;
        };
        let is_above_floor = self.floor.as_ref().is_none_or(|floor| version >= floor);
        if !is_above_floor || !record.is_version_before(before) {
            return false;
        }
        let is_damaged = match (sha256_of(running), self.running_sha256) {
            (None, _) => true,
            (Some(found), Some(noted)) => found.as_ref() != noted,
            // Which bytes the program has to have is unknown.
            (Some(_), None) => false,
        };
        is_damaged && sha256_of(before).is_some_and(|found| found.as_ref() == *noted)
    }
}
