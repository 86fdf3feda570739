//! The state machine: each transition makes a new record of an old one, or is refused.

use crate::error::BootRefusal;
use crate::record::{BootRecord, OtherSlot};
use crate::slot::BootSlot;

/// How often a loader starts a version on trial before it returns to the good one.
pub const TRIES: u8 = 3;

/// The state of the slot that is not the good one, and so of the update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootPhase {
    /// The other slot holds nothing of use. A new disk begins here, and a slot that is being written.
    Idle,
    /// The other slot holds a new version, whole and verified, and the loader does not start it.
    Staged,
    /// The loader starts that version at the next power-on, for the first time.
    Pending,
    /// The loader has started that version at least once, and no transition has confirmed it or given it up.
    Trial,
    /// The last update was confirmed. The other slot holds the version of before.
    Good,
    /// The version in the other slot failed its trial.
    Failed,
}

impl BootPhase {
    /// All phases, in the order of an update.
    pub const ALL: [Self; 6] = [
        Self::Idle,
        Self::Staged,
        Self::Pending,
        Self::Trial,
        Self::Good,
        Self::Failed,
    ];

    /// The phase's name, the same for every loader.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Staged => "staged",
            Self::Pending => "pending",
            Self::Trial => "trial",
            Self::Good => "good",
            Self::Failed => "failed",
        }
    }
}

/// What the running system does. Each transition but [`give_up`](BootRecord::give_up), which loaders have too, makes
/// [`seq`](BootRecord::seq) one larger.
impl BootRecord {
    /// The phase of the update.
    #[must_use]
    pub const fn phase(&self) -> BootPhase {
        match self.other {
            OtherSlot::Unused => BootPhase::Idle,
            OtherSlot::Staged => BootPhase::Staged,
            OtherSlot::Trial { tries: TRIES } => BootPhase::Pending,
            OtherSlot::Trial { .. } => BootPhase::Trial,
            OtherSlot::Previous => BootPhase::Good,
            OtherSlot::Failed => BootPhase::Failed,
        }
    }

    /// Gives the other slot up to be overwritten. Write this record before the first byte of the slot: from then on no
    /// loader prefers it, and no transition returns to it.
    ///
    /// # Errors
    /// [`OnTrial`](BootRefusal::OnTrial): the machine may be running the other slot.
    pub const fn vacate(&self) -> Result<Self, BootRefusal> {
        if matches!(self.phase(), BootPhase::Trial) {
            return Err(BootRefusal::OnTrial);
        }
        Ok(self.changed(OtherSlot::Unused))
    }

    /// Records that the vacated slot holds a new version. The caller has read the whole slot back from the disk and
    /// compared its hash.
    ///
    /// # Errors
    /// [`NotVacated`](BootRefusal::NotVacated), unless the phase is [`Idle`](BootPhase::Idle).
    pub const fn stage(&self) -> Result<Self, BootRefusal> {
        if !matches!(self.other, OtherSlot::Unused) {
            return Err(BootRefusal::NotVacated);
        }
        Ok(self.changed(OtherSlot::Staged))
    }

    /// Puts the staged version on trial: the loader starts it at the next power-on.
    ///
    /// # Errors
    /// [`NotStaged`](BootRefusal::NotStaged), unless the phase is [`Staged`](BootPhase::Staged).
    pub const fn arm(&self) -> Result<Self, BootRefusal> {
        if !matches!(self.other, OtherSlot::Staged) {
            return Err(BootRefusal::NotStaged);
        }
        Ok(self.changed(OtherSlot::Trial { tries: TRIES }))
    }

    /// Makes the version on trial the good one, and keeps the former good one as the version to return to.
    ///
    /// `running` is the slot that runs, from another source than this record: a loader that could not write the record
    /// has started the good slot, and the record still names the slot on trial.
    ///
    /// # Errors
    /// [`NotOnTrial`](BootRefusal::NotOnTrial), unless the phase is [`Trial`](BootPhase::Trial);
    /// [`NotRunningTrial`](BootRefusal::NotRunningTrial) if another slot runs or was booted.
    pub fn confirm(&self, running: BootSlot) -> Result<Self, BootRefusal> {
        if self.phase() != BootPhase::Trial {
            return Err(BootRefusal::NotOnTrial);
        }
        let trial = self.good.other();
        // A loader that could not write the record has started the good slot, and then the trial proved nothing.
        if running != trial || self.booted != Some(trial) {
            return Err(BootRefusal::NotRunningTrial);
        }
        let mut next = self.changed(OtherSlot::Previous);
        next.good = trial;
        Ok(next)
    }

    /// Ends the trial without success: the loader starts the good slot from now on.
    ///
    /// # Errors
    /// [`NotOnTrial`](BootRefusal::NotOnTrial), unless the phase is [`Pending`](BootPhase::Pending) or
    /// [`Trial`](BootPhase::Trial).
    pub const fn give_up(&self) -> Result<Self, BootRefusal> {
        if !matches!(self.other, OtherSlot::Trial { .. }) {
            return Err(BootRefusal::NotOnTrial);
        }
        let mut next = *self;
        next.other = OtherSlot::Failed;
        Ok(next)
    }

    /// Returns to the earlier version. After a confirmed update it goes on trial, as any other version that was not the
    /// good one. During a trial this is [`give_up`](Self::give_up), and before its first start the new version is only
    /// staged again.
    ///
    /// # Errors
    /// [`NoPrevious`](BootRefusal::NoPrevious) in the phases [`Idle`](BootPhase::Idle), [`Staged`](BootPhase::Staged)
    /// and [`Failed`](BootPhase::Failed).
    pub const fn rollback(&self) -> Result<Self, BootRefusal> {
        match self.phase() {
            BootPhase::Good => Ok(self.changed(OtherSlot::Trial { tries: TRIES })),
            BootPhase::Pending => Ok(self.changed(OtherSlot::Staged)),
            BootPhase::Trial => self.give_up(),
            BootPhase::Idle | BootPhase::Staged | BootPhase::Failed => Err(BootRefusal::NoPrevious),
        }
    }

    /// Makes the slot that runs the good one, because the good one did not start: the other slot holds nothing of use then
    /// and can be written.
    ///
    /// # Errors
    /// [`OnTrial`](BootRefusal::OnTrial) in the phases [`Pending`](BootPhase::Pending) and [`Trial`](BootPhase::Trial);
    /// [`NotRunningTrial`](BootRefusal::NotRunningTrial) if the good slot runs.
    pub fn take_over(&self, running: BootSlot) -> Result<Self, BootRefusal> {
        if matches!(self.other, OtherSlot::Trial { .. }) {
            return Err(BootRefusal::OnTrial);
        }
        if running == self.good {
            return Err(BootRefusal::NotRunningTrial);
        }
        let mut next = self.changed(OtherSlot::Unused);
        next.good = running;
        Ok(next)
    }

    const fn changed(&self, other: OtherSlot) -> Self {
        let mut next = *self;
        next.other = other;
        // At one change per nanosecond the number would last for 584 years.
        next.seq = self.seq.saturating_add(1);
        next
    }
}
