//! The cases. A row's name says what it tries.

mod brief;
mod language;
mod loops;
mod memory;

use alknet_runtime::Code;

use brief::TABLE;
use language::{PROMISES, REFUSED, TRICKS};
use loops::{LOOPS, NATIVE};
use memory::{MEMORY, STACK};

/// How a case ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
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
    Refused(Code),
    /// At its stack.
    Stack,
    /// At its processor time, by a flag or from outside.
    Time,
    /// At its time by the clock on the wall.
    Wall,
}

#[derive(Clone, Debug)]
pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) source: String,
}

/// Every one of them.
pub(super) fn cases() -> Vec<Case> {
    let groups: [&[(&'static str, Kind, &str)]; 8] = [
        TABLE, LOOPS, NATIVE, MEMORY, STACK, PROMISES, TRICKS, REFUSED,
    ];
    let rows = groups.into_iter().flatten();
    rows.map(|&(name, kind, source)| Case {
        name,
        kind,
        source: source.to_owned(),
    })
    .collect()
}

type Rows = &'static [(&'static str, Kind, &'static str)];

const EXCEPTION: Kind = Kind::Refused(Code::Exception);
