//! Updates of the appliance: the two boot slots of its disk, the record that says which of them starts, and the gate that
//! a new version has to pass.
//!
//! Everything here but the gate and the judgement about a start waits for disks, so it runs on the blocking threads of
//! PID 1. `machine/update.rs` connects it with the loop. `docs/update-inside.md` has the limits and the hazards,
//! `docs/update.md` the states.

mod anchor;
mod apply;
mod boot_partitions;
mod delta;
mod direct;
mod disk;
mod frames;
mod gate;
mod history;
mod judge;
mod known_programs;
mod left_versions;
mod measured;
mod note_schedule;
mod other_channel;
mod partition_repair;
mod program;
mod progress;
mod refusal;
mod running;
mod self_calls;
mod slot_write;
mod stage;
mod staged;
mod stager;
mod starts;
mod system;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod trial_memory;
mod trust_store;

pub(crate) use anchor::UpdateAnchor;
pub(crate) use apply::{RollbackPlan, StartTerms};
pub(crate) use direct::DirectDevice;
pub(crate) use frames::{BundleFrameReader, FramesEnd};
pub(crate) use gate::{GateBaseline, GateStep, GateVault, GateView, UpdateGate};
pub(crate) use judge::{NOT_CONFIRMED, StartKind, StartReport};
pub(crate) use measured::SystemProgram;
pub(crate) use note_schedule::{NoteSchedule, note_location, note_panic};
pub(crate) use progress::StagingProgress;
pub(crate) use refusal::{RefusalCode, UpdateRefusal};
pub(crate) use self_calls::SelfCalls;
pub(crate) use stage::StageOrder;
pub(crate) use system::{
    ScrubResult, ScrubTurn, SlotFinding, SlotScrub, SlotStatus, TrialRequest, UpdateStart,
    UpdateSystem,
};
pub(crate) use trial_memory::TrialMemory;
