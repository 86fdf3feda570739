//! The care of the machine's storage: PID 1 reads the programs of both boot slots again now and then, and asks the disks
//! for their health.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::path::Path;

use alknet_boot_state::BootSlot;

use super::{InitMachine, MachineEvent};
use crate::clock;
use crate::control::{DiskHealthFacts, MachineDiagnostic, NodeMessage, SlotCheckFacts};
use crate::storage;
use crate::update::{ScrubResult, ScrubTurn, SlotFinding, SlotScrub};

/// When the disks are asked for their health for the first time, ms after the kernel's start, and how often from then on.
const FIRST_HEALTH_MS: u64 = 60_000;
const HEALTH_EVERY_MS: u64 = 3_600_000;
/// When the boot slots are checked for the first time, ms after the kernel's start, and how often from then on.
const FIRST_CHECK_MS: u64 = 600_000;
const CHECK_EVERY_MS: u64 = 86_400_000;
/// A check begins later by a random part of this: machines of one host share its disks, and start together.
const CHECK_JITTER_MS: u64 = 7_200_000;
/// Pause between two pieces of a check, ms. With the bytes of a piece it bounds how much a check takes of the disk and of
/// the processor. A check that a person waits for has no pauses.
const PIECE_PAUSE_MS: u64 = 1_000;
/// Requests for a check that wait at once. A further one is answered by what is known.
const WAITING_MAX: usize = 16;

/// How often the disks are asked while one of them is outside of its temperature, ms.
const HEAT_EVERY_MS: u64 = 300_000;
/// What to do about a slot.
const RUNNING_DAMAGED: &str = "it may not start again: before the next restart 'alknet update NODE BUNDLE' starts another \
    version, or 'alknet rollback NODE' the one before; if it happens again, replace the disk";
const OTHER_DAMAGED: &str = "the machine cannot start it: stage it again, or a newer one, by 'alknet update NODE BUNDLE \
    --stage'; if it happens again, replace the disk";
const UNREADABLE: &str = "the program may be whole: look at the disk's cable and at the log of the kernel, and check again by \
    'alknet disk check NODE'; if it happens again, make a backup now, and replace the disk";

/// A request of the node, with its answer still to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StorageTicket {
    life: u64,
    n: u64,
}

/// The end of a piece of work about storage.
#[derive(Debug)]
pub(crate) enum StorageEvent {
    /// The disks were asked. `None` if that failed.
    Read(Option<Vec<DiskHealthFacts>>),
    /// A piece of a slot was read.
    Turned(ScrubTurn),
}

/// A check of the boot slots under way.
#[derive(Debug)]
struct StorageRun {
    tickets: Vec<StorageTicket>,
    /// The slots that are not done, the first one being read.
    slots: VecDeque<BootSlot>,
    begun: Option<SlotScrub>,
}

/// The storage in the machine's life.
#[derive(Debug)]
pub(super) struct MachineStorage {
    run: Option<StorageRun>,
    /// Requests for the next check.
    waiting: Vec<StorageTicket>,
    /// Whether a thread works on it.
    is_working: bool,
    /// When each thing is due next, in ms after the kernel's start.
    health_at: u64,
    check_at: u64,
    piece_at: u64,
}

impl Default for MachineStorage {
    fn default() -> Self {
        Self {
            run: None,
            waiting: Vec::new(),
            is_working: false,
            health_at: FIRST_HEALTH_MS,
            check_at: FIRST_CHECK_MS + jitter(FIRST_CHECK_MS),
            piece_at: 0,
        }
    }
}

impl MachineStorage {
    /// When something is due next. `None` while a thread works: its event follows.
    fn deadline(&self) -> Option<u64> {
        if self.is_working {
            return None;
        }
        let check = match (&self.run, self.waiting.is_empty()) {
            (Some(_), _) => self.piece_at,
            (None, false) => 0,
            (None, true) => self.check_at,
        };
        Some(check.min(self.health_at))
    }

    /// Whether a person waits for a check.
    fn is_hurried(&self) -> bool {
        let run = self.run.as_ref();
        !self.waiting.is_empty() || run.is_some_and(|run| !run.tickets.is_empty())
    }
}

impl InitMachine {
    /// Handles a request of the node for a check now.
    pub(super) fn check_storage(&mut self, n: u64, by: &str) {
        let life = self.life;
        let ticket = StorageTicket { life, n };
        if self.storage.waiting.len() >= WAITING_MAX {
            return self.answer_check(ticket);
        }
        self.log
            .info(format_args!("a check of the storage was asked for by {by}"));
        self.storage.waiting.push(ticket);
    }

    /// When something about storage is due next, in ms after the kernel's start.
    pub(super) fn storage_due(&self) -> Option<u64> {
        let is_up = self.shutdown.is_none();
        is_up.then(|| self.storage.deadline()).flatten()
    }

    /// Does what is due about storage: one piece of work at a time.
    pub(super) fn attend_storage(&mut self, now: u64) {
        if self.shutdown.is_some() || self.storage.is_working {
            return;
        }
        let is_due = now >= self.storage.check_at || !self.storage.waiting.is_empty();
        if self.storage.run.is_none() && is_due {
            self.begin_check(now);
        }
        if now >= self.storage.health_at {
            return self.ask_disks(now);
        }
        if now < self.storage.piece_at {
            return;
        }
        let Some(run) = &mut self.storage.run else {
            return;
        };
        match run.slots.front().copied() {
            // A thread has the boot partition for as long as a bundle arrives.
            Some(slot) if self.update.is_staging() => self.put_off(slot, now),
            Some(slot) => {
                let begun = run.begun.take();
                self.read_slot(slot, begun);
            }
            None => self.end_check(now),
        }
    }

    fn begin_check(&mut self, now: u64) {
        let slots = match self.update.system().has_slots() {
            true => BootSlot::ALL.into_iter().collect(),
            false => VecDeque::new(),
        };
        let storage = &mut self.storage;
        storage.run = Some(StorageRun {
            tickets: std::mem::take(&mut storage.waiting),
            slots,
            begun: None,
        });
        // The disks are a part of each check.
        storage.health_at = now;
        storage.piece_at = now;
        self.facts.storage.checking = true;
    }

    fn ask_disks(&mut self, now: u64) {
        self.storage.health_at = now + HEALTH_EVERY_MS;
        self.storage.is_working = true;
        let own = self.update.system().disk_name().map(str::to_owned);
        let data = self.facts.data.device.as_deref();
        let data = data.and_then(|device| device.strip_prefix("/dev/"));
        let devices: Vec<String> = own.into_iter().chain(data.map(str::to_owned)).collect();
        let event = |disks| MachineEvent::Storage(Box::new(StorageEvent::Read(disks)));
        self.blocking("asking the disks", event(None), move || {
            let sys = Path::new("/sys");
            let disks = storage::disks_of(sys, &devices);
            event(Some(storage::read_disks(sys, Path::new("/dev"), &disks)))
        });
    }

    fn read_slot(&mut self, slot: BootSlot, begun: Option<SlotScrub>) {
        self.storage.is_working = true;
        let system = self.update.system().clone();
        let event = |turn| MachineEvent::Storage(Box::new(StorageEvent::Turned(turn)));
        let failed = SlotFinding {
            slot,
            version: None,
            result: ScrubResult::Skipped("the check failed; the log says why".to_owned()),
        };
        let failed = event(ScrubTurn::Done(failed));
        self.blocking("a check of a boot slot", failed, move || {
            event(system.scrub(slot, begun))
        });
    }

    /// The boot partition is in use. A person does not wait for its end.
    fn put_off(&mut self, slot: BootSlot, now: u64) {
        if !self.storage.is_hurried() {
            self.storage.piece_at = now + PIECE_PAUSE_MS;
            return;
        }
        let why = "an update is being written to the boot partition";
        self.slot_checked(SlotFinding {
            slot,
            version: None,
            result: ScrubResult::Skipped(why.to_owned()),
        });
        self.storage.piece_at = now;
    }

    /// Handles the end of a piece of work.
    pub(super) fn storage_worked(&mut self, event: StorageEvent, now: u64) {
        self.storage.is_working = false;
        match event {
            StorageEvent::Read(None) => {}
            StorageEvent::Read(Some(disks)) => {
                // A warning is a problem only while it lasts.
                if disks.iter().any(|disk| disk.temperature_warning) {
                    self.storage.health_at = self.storage.health_at.min(now + HEAT_EVERY_MS);
                }
                self.facts.storage.disks = disks;
                self.refresh_storage_problems();
            }
            StorageEvent::Turned(ScrubTurn::More(scrub)) => {
                let pause = if self.storage.is_hurried() {
                    0
                } else {
                    PIECE_PAUSE_MS
                };
                self.storage.piece_at = now + pause;
                if let Some(run) = &mut self.storage.run {
                    run.begun = Some(scrub);
                }
            }
            StorageEvent::Turned(ScrubTurn::Done(finding)) => self.slot_checked(finding),
        }
    }

    /// Notes what was found in a slot, and goes on to the next one.
    fn slot_checked(&mut self, finding: SlotFinding) {
        if let Some(run) = &mut self.storage.run {
            run.slots.retain(|slot| *slot != finding.slot);
            run.begun = None;
        }
        let (result, detail) = match finding.result {
            ScrubResult::Whole => ("whole", None),
            ScrubResult::Damaged(why) => ("damaged", Some(why)),
            ScrubResult::Skipped(why) => ("skipped", Some(why)),
            ScrubResult::Unreadable(why) => ("unreadable", Some(why)),
        };
        let letter = finding.slot.letter();
        let slots = &mut self.facts.storage.slots;
        let is_known = slots
            .iter()
            .any(|known| known.slot == letter && known.result == result);
        if let ("damaged" | "unreadable", false, Some(why)) = (result, is_known, &detail) {
            self.log
                .error(format_args!("boot slot {letter} is {result}: {why}"));
        }
        slots.retain(|known| known.slot != letter);
        slots.push(SlotCheckFacts {
            slot: letter.to_owned(),
            version: finding.version,
            result: result.to_owned(),
            detail,
            checked: clock::rfc3339_now(),
        });
        slots.sort_by(|one, other| one.slot.cmp(&other.slot));
        self.refresh_storage_problems();
    }

    /// An update changed the slot that does not run: what was found there is of another program.
    pub(super) fn slot_changed(&mut self, now: u64) {
        let running = self.update.system().running().map(BootSlot::letter);
        let slots = &mut self.facts.storage.slots;
        slots.retain(|known| Some(known.slot.as_str()) == running);
        self.storage.check_at = self.storage.check_at.min(now + FIRST_CHECK_MS);
        self.refresh_storage_problems();
    }

    fn end_check(&mut self, now: u64) {
        let Some(run) = self.storage.run.take() else {
            return;
        };
        self.facts.storage.checking = false;
        self.storage.check_at = now + CHECK_EVERY_MS + jitter(CHECK_JITTER_MS);
        for ticket in run.tickets {
            self.answer_check(ticket);
        }
    }

    fn answer_check(&self, ticket: StorageTicket) {
        // A node of another life would take the number for one of its own.
        if let Some(node) = self.node.as_ref().filter(|node| node.life() == ticket.life)
            && !node.send(NodeMessage::StorageChecked {
                n: ticket.n,
                storage: Box::new(self.facts.storage.clone()),
                problems: self.facts.problems.storage.clone(),
            })
        {
            self.log
                .warn("the node does not read the answer to its request for a check");
        }
    }

    fn refresh_storage_problems(&mut self) {
        let running = self.update.system().running().map(BootSlot::letter);
        let facts = &self.facts.storage;
        let slots = facts.slots.iter();
        let slots = slots.filter_map(|found| slot_problem(found, running));
        let disks = facts.disks.iter().flat_map(storage::disk_problems);
        self.facts.problems.storage = slots.chain(disks).collect();
    }
}

/// The problem of a slot that is damaged or cannot be read.
fn slot_problem(found: &SlotCheckFacts, running: Option<&str>) -> Option<MachineDiagnostic> {
    let slot = &found.slot;
    let version = found.version.as_deref().unwrap_or("of unknown number");
    let why = found.detail.as_deref().unwrap_or("it cannot be read");
    let is_running = running == Some(slot);
    let which = match is_running {
        true => "which runs,",
        false => "which does not run,",
    };
    let problem = |code: &str, what: &str, hint: &str| MachineDiagnostic {
        code: code.to_owned(),
        text: format!(
            "the program of version {version} in boot slot {slot}, {which} {what}: {why}"
        ),
        hint: hint.to_owned(),
    };
    let damaged = "is damaged on the disk";
    Some(match (found.result.as_str(), is_running) {
        ("damaged", true) => problem("slot-damaged", damaged, RUNNING_DAMAGED),
        ("damaged", false) => problem("slot-damaged", damaged, OTHER_DAMAGED),
        ("unreadable", _) => problem("slot-unreadable", "could not be read", UNREADABLE),
        _ => return None,
    })
}

/// A random time up to `most`, ms. Without random bytes it is 0, and machines check together.
fn jitter(most: u64) -> u64 {
    let mut bytes = [0; 8];
    match getrandom::fill(&mut bytes) {
        Ok(()) => u64::from_le_bytes(bytes) % most,
        Err(_) => 0,
    }
}
