//! The boot state record and its state machine, for every state that a disk can be in.

mod before;
mod cuts;
mod grub;
mod note;
mod record;
mod transitions;

use alknet_boot_state::{BootRecord, BootSlot, BootSlots, loader_choice};

/// Each set of slots with a program.
const PRESENT: [BootSlots; 4] = [
    BootSlots::NONE,
    BootSlots::ALL.without(BootSlot::A),
    BootSlots::ALL.without(BootSlot::B),
    BootSlots::ALL,
];

/// Everything that the running system or a loader can make of a record.
fn successors(record: &BootRecord) -> Vec<BootRecord> {
    let transitions = [
        record.vacate(),
        record.stage(),
        record.arm(),
        record.confirm(BootSlot::A),
        record.confirm(BootSlot::B),
        record.give_up(),
        record.rollback(),
        record.take_over(BootSlot::A),
        record.take_over(BootSlot::B),
    ];
    let choices = PRESENT.map(|present| loader_choice(Some(record), present).write);
    let made = transitions.into_iter().filter_map(Result::ok);
    made.chain(choices.into_iter().flatten()).collect()
}

/// Every record that a new disk can come to, apart from the number of transitions.
fn reachable() -> Vec<BootRecord> {
    let without_number = |record: &BootRecord| {
        let text = String::from_utf8(record.encode().to_vec()).expect("a record is ASCII");
        let lines = text.lines().filter(|line| !line.starts_with("seq="));
        let lines = lines.map(|line| line.trim_end_matches('#'));
        lines.collect::<Vec<_>>().join("\n")
    };
    let mut found = BootSlot::ALL.map(BootRecord::new).to_vec();
    let mut known: Vec<String> = found.iter().map(without_number).collect();
    let mut at = 0;
    while let Some(record) = found.get(at).copied() {
        for next in successors(&record) {
            let text = without_number(&next);
            if !known.contains(&text) {
                known.push(text);
                found.push(next);
            }
        }
        at += 1;
    }
    found
}
