//! Power cuts: between a decision and its write, in the write, and between the write and the start.

use alknet_boot_state::{
    BootPhase, BootRecord, BootSlot, BootSlots, SECTOR_BYTES, TRIES, loader_choice,
};
use proptest::prelude::*;

use crate::{PRESENT, reachable};

/// Where the power fails in one start of the machine.
#[derive(Clone, Copy, Debug)]
enum PowerCut {
    /// Before the loader's write reaches the disk.
    BeforeWrite,
    /// After the first of the two sectors, or after the second.
    Torn { first: bool },
    /// After the write, before the slot starts.
    AfterWrite,
    /// Not at all: the slot starts, and the version in it does nothing to the record.
    Started,
}

fn cuts() -> impl Strategy<Value = PowerCut> {
    prop_oneof![
        Just(PowerCut::BeforeWrite),
        any::<bool>().prop_map(|first| PowerCut::Torn { first }),
        Just(PowerCut::AfterWrite),
        Just(PowerCut::Started),
    ]
}

/// A disk with a record and programs in some slots.
#[derive(Clone, Debug)]
struct BootDisk {
    record: [u8; 1024],
    present: BootSlots,
}

impl BootDisk {
    /// One power-on. Returns the slot that started.
    fn power_on(&mut self, cut: PowerCut) -> Option<BootSlot> {
        let record = BootRecord::parse(&self.record).ok();
        let choice = loader_choice(record.as_ref(), self.present);
        let write = choice.write.map(|record| record.encode());
        match (cut, write) {
            (PowerCut::BeforeWrite, _) => None,
            (PowerCut::Torn { first }, Some(new)) => {
                let half = if first { ..SECTOR_BYTES } else { ..0 };
                self.record[half].copy_from_slice(&new[half]);
                None
            }
            (PowerCut::Torn { .. }, None) => None,
            (PowerCut::AfterWrite, new) => {
                self.record = new.unwrap_or(self.record);
                None
            }
            (PowerCut::Started, new) => {
                self.record = new.unwrap_or(self.record);
                choice.start
            }
        }
    }
}

proptest! {
    #[test]
    fn after_any_power_cuts_a_slot_that_exists_starts(
        record in prop::sample::select(reachable()),
        present in prop::sample::select(PRESENT[1..].to_vec()),
        cuts in prop::collection::vec(cuts(), 0..12),
    ) {
        let mut disk = BootDisk { record: record.encode(), present };
        for cut in cuts {
            let started = disk.power_on(cut);
            prop_assert!(started.is_none_or(|slot| present.contains(slot)));
            prop_assert!(BootRecord::parse(&disk.record).is_ok(), "a cut damaged the record");
        }
        let started = disk.power_on(PowerCut::Started);
        prop_assert!(started.is_some_and(|slot| present.contains(slot)));
        // A version that never confirms itself has at most its tries, and then the good one starts for good.
        for _ in 0..TRIES {
            disk.power_on(PowerCut::Started);
        }
        prop_assert_eq!(disk.power_on(PowerCut::Started), present.prefer(record.good()));
    }

    /// Garbage in the record's place costs the trial and not the machine.
    #[test]
    fn whatever_the_record_says_a_slot_that_exists_starts(
        bytes in prop::collection::vec(any::<u8>(), 1024),
        present in prop::sample::select(PRESENT[1..].to_vec()),
    ) {
        let record = bytes.try_into().expect("1,024 of them");
        let mut disk = BootDisk { record, present };
        let started = disk.power_on(PowerCut::Started);
        prop_assert!(started.is_some_and(|slot| present.contains(slot)));
        prop_assert_eq!(disk.record, record, "nothing is written over what is not understood");
    }
}

/// Each write of an update is cut once before it and once within it, and each time a slot that is whole starts: the
/// good one, or the new one once it was verified.
#[test]
fn no_step_of_an_update_starts_a_slot_that_is_being_written() {
    let old = BootRecord::new(BootSlot::A);
    let vacated = old.vacate().expect("slot b does not run");
    // The slot is written between these two records, and has no program that firmware would load until it is whole.
    let staged = vacated.stage().expect("vacated");
    let armed = staged.arm().expect("staged");
    let steps = [
        (old, vacated, BootSlots::ALL.without(BootSlot::B)),
        (vacated, staged, BootSlots::ALL),
        (staged, armed, BootSlots::ALL),
    ];
    for (before, after, present) in steps {
        for record in [before, after] {
            let mut disk = BootDisk {
                record: record.encode(),
                present,
            };
            let expected = match record.phase() {
                BootPhase::Pending => BootSlot::B,
                _ => BootSlot::A,
            };
            assert_eq!(
                disk.power_on(PowerCut::Started),
                Some(expected),
                "{record:?}"
            );
        }
    }
}
