//! The cases. A row's name says what it tries.

mod brief;
mod language;
mod loops;
mod memory;

use alknet_runtime::RuntimeCode;

use brief::TABLE;
use language::{PROMISES, REFUSED, TRICKS};
use loops::{LOOPS, NATIVE};
use memory::{MEMORY, STACK};

/// How a case ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CaseEnd {
    /// At its fuel, with little of it.
    Fuel,
    /// At the fuel of a call that it made into its own session, which ends with it: as that, or as lost
    /// where the machine is too busy for the session to say so before it is closed.
    FuelOfAnother,
    /// Well: what it tries has no effect.
    Harmless,
    /// At its memory.
    Memory,
    /// With this code at once.
    Refused(RuntimeCode),
    /// At its stack.
    Stack,
    /// At its processor time, by a flag or from outside.
    Time,
    /// At its wall-clock time.
    Wall,
}

#[derive(Clone, Debug)]
pub(super) struct HostileCase {
    pub(super) name: &'static str,
    pub(super) kind: CaseEnd,
    pub(super) source: String,
}

/// Every one of them.
pub(super) fn cases() -> Vec<HostileCase> {
    let groups: [&[(&'static str, CaseEnd, &str)]; 8] = [
        TABLE, LOOPS, NATIVE, MEMORY, STACK, PROMISES, TRICKS, REFUSED,
    ];
    let rows = groups.into_iter().flatten();
    rows.map(|&(name, kind, source)| HostileCase {
        name,
        kind,
        source: source.to_owned(),
    })
    .collect()
}

type Rows = &'static [(&'static str, CaseEnd, &'static str)];

const EXCEPTION: CaseEnd = CaseEnd::Refused(RuntimeCode::Exception);
