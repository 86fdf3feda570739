//! The two boot slots, and which of them have a program.

use core::fmt;

/// One of the two places for a version of the appliance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootSlot {
    /// `\EFI\ALKNET\A.EFI`, which the image comes with.
    A,
    /// `\EFI\ALKNET\B.EFI`.
    B,
}

impl BootSlot {
    /// Both slots.
    pub const ALL: [Self; 2] = [Self::A, Self::B];

    /// The slot that this one is not.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    /// The slot's name in the record.
    #[must_use]
    pub const fn letter(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::B => "b",
        }
    }

    /// The slot's program in the folder `\EFI\ALKNET` of the EFI system partition. A short name, so that no loader needs
    /// long names, and constant, so that no file is ever renamed.
    #[must_use]
    pub const fn file_name(self) -> &'static str {
        match self {
            Self::A => "A.EFI",
            Self::B => "B.EFI",
        }
    }
}

impl fmt::Display for BootSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.letter())
    }
}

/// A set of boot slots: those whose program exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootSlots {
    a: bool,
    b: bool,
}

impl BootSlots {
    /// Both slots.
    pub const ALL: Self = Self { a: true, b: true };

    /// Neither slot.
    pub const NONE: Self = Self { a: false, b: false };

    /// The slots for which `exists` returns true.
    pub fn filter(mut exists: impl FnMut(BootSlot) -> bool) -> Self {
        Self {
            a: exists(BootSlot::A),
            b: exists(BootSlot::B),
        }
    }

    /// Whether `slot` is in the set.
    #[must_use]
    pub const fn contains(self, slot: BootSlot) -> bool {
        match slot {
            BootSlot::A => self.a,
            BootSlot::B => self.b,
        }
    }

    /// The set without `slot`.
    #[must_use]
    pub const fn without(self, slot: BootSlot) -> Self {
        match slot {
            BootSlot::A => Self { a: false, ..self },
            BootSlot::B => Self { b: false, ..self },
        }
    }

    /// `first` if it is in the set, else the other slot if that is.
    #[must_use]
    pub fn prefer(self, first: BootSlot) -> Option<BootSlot> {
        let order = [first, first.other()];
        order.into_iter().find(|slot| self.contains(*slot))
    }
}
