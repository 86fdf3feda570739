//! Argon2id: how much it costs to try a passphrase.

use std::time::Duration;

use argon2::{Algorithm, Argon2, Block, Params, Version};
use zeroize::Zeroize;

use crate::bip39::normalized;
use crate::limits::{ARGON2_FLOOR_KIB, ARGON2_FLOOR_PASSES, ARGON2_MAX_KIB, ARGON2_MAX_PASSES};
use crate::secret::SecretStr;
use crate::slots::{Kek, SlotError};

/// The cost of one attempt; always one lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Argon2Params {
    kib: u32,
    passes: u32,
}

impl Argon2Params {
    /// 64 MiB, three passes.
    pub const DEFAULT: Self = Self {
        kib: 64 << 10,
        passes: 3,
    };
    /// 19 MiB, two passes: less is refused.
    pub const FLOOR: Self = Self {
        kib: ARGON2_FLOOR_KIB,
        passes: ARGON2_FLOOR_PASSES,
    };

    /// A cost between the floor and the ceiling.
    pub fn new(kib: u32, passes: u32) -> Result<Self, SlotError> {
        if !(ARGON2_FLOOR_KIB..=ARGON2_MAX_KIB).contains(&kib) {
            return Err(SlotError::BadParams("Argon2id memory out of range"));
        }
        if !(ARGON2_FLOOR_PASSES..=ARGON2_MAX_PASSES).contains(&passes) {
            return Err(SlotError::BadParams("Argon2id passes out of range"));
        }
        Ok(Self { kib, passes })
    }

    /// Memory in KiB.
    #[must_use]
    pub fn kib(self) -> u32 {
        self.kib
    }

    /// Passes over the memory.
    #[must_use]
    pub fn passes(self) -> u32 {
        self.passes
    }
}

impl Default for Argon2Params {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// The key of a passphrase. The memory is wiped before it is given back.
pub(super) fn kek(
    passphrase: &SecretStr,
    salt: &[u8; 16],
    cost: Argon2Params,
    cap_kib: u32,
) -> Result<Kek, SlotError> {
    // Whoever edits the file must not make a small machine take all of its memory.
    let cap_kib = cap_kib.max(ARGON2_FLOOR_KIB);
    if cost.kib > cap_kib {
        return Err(SlotError::TooExpensive {
            kib: cost.kib,
            cap_kib,
        });
    }
    let passphrase = normalized(passphrase)?;
    let params = Params::new(cost.kib, cost.passes, 1, Some(32))
        .map_err(|_| SlotError::BadParams("Argon2id cost"))?;
    let count = params.block_count();
    let mut blocks = Vec::new();
    let reserved = blocks.try_reserve_exact(count);
    reserved.map_err(|_| SlotError::NoMemory { kib: cost.kib })?;
    blocks.resize_with(count, Block::default);
    let mut kek = Kek::zeroed();
    let done = Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into_with_memory(
            passphrase.expose().as_bytes(),
            salt,
            kek.expose_mut(),
            &mut blocks,
        );
    blocks.iter_mut().for_each(Zeroize::zeroize);
    done.map_err(|_| SlotError::BadParams("Argon2id input"))?;
    Ok(kek)
}

/// Makes one attempt at a passphrase that nobody has, for whoever wants to know how long it takes.
pub fn attempt(cost: Argon2Params, cap_kib: u32) -> Result<(), SlotError> {
    kek(&SecretStr::empty(), &[0; 16], cost, cap_kib).map(drop)
}

/// Finds a cost that takes half a second to a second on this machine, between the floor and what its
/// memory allows. `measure` says how long one attempt at a cost takes, usually by making one.
pub fn calibrate(
    cap_kib: u32,
    mut measure: impl FnMut(Argon2Params) -> Result<Duration, SlotError>,
) -> Result<Argon2Params, SlotError> {
    const LEAST: Duration = Duration::from_millis(500);
    const MOST: Duration = Duration::from_secs(1);
    // From the floor to the ceiling memory doubles eight times, and passes thirty-two times fewer.
    const STEPS: usize = 32;
    let cap_kib = cap_kib.clamp(ARGON2_FLOOR_KIB, ARGON2_MAX_KIB);
    let mut cost = Argon2Params {
        kib: Argon2Params::DEFAULT.kib.min(cap_kib),
        ..Argon2Params::DEFAULT
    };
    let mut too_slow: Option<Argon2Params> = None;
    for _ in 0..STEPS {
        let took = measure(cost)?;
        let next = if took > MOST {
            too_slow = Some(cost);
            cheaper(cost)
        } else if took < LEAST {
            dearer(cost, cap_kib).filter(|next| Some(*next) != too_slow)
        } else {
            None
        };
        let Some(next) = next else { break };
        cost = next;
    }
    Ok(cost)
}

/// Fewer passes first, then half the memory.
fn cheaper(cost: Argon2Params) -> Option<Argon2Params> {
    if cost.passes > ARGON2_FLOOR_PASSES {
        return Some(Argon2Params {
            passes: cost.passes - 1,
            ..cost
        });
    }
    let kib = (cost.kib / 2).max(ARGON2_FLOOR_KIB);
    (kib < cost.kib).then_some(Argon2Params { kib, ..cost })
}

/// Twice the memory while there is any, then more passes.
fn dearer(cost: Argon2Params, cap_kib: u32) -> Option<Argon2Params> {
    let kib = cost.kib.saturating_mul(2).min(cap_kib);
    if kib > cost.kib {
        return Some(Argon2Params { kib, ..cost });
    }
    let passes = cost.passes + cost.passes.div_ceil(2);
    (passes <= ARGON2_MAX_PASSES).then_some(Argon2Params { passes, ..cost })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine that fills so many KiB in a millisecond.
    fn found(kib_per_ms: u32, cap_kib: u32) -> (Argon2Params, u64) {
        let time = |cost: Argon2Params| u64::from(cost.kib * cost.passes / kib_per_ms);
        let cost = calibrate(cap_kib, |cost| Ok(Duration::from_millis(time(cost))));
        let cost = cost.expect("measured");
        (cost, time(cost))
    }

    #[test]
    fn machines_of_any_speed_end_within_the_bounds() {
        for speed in [1, 5, 20, 100, 250, 450, 1000, 3000, 10_000] {
            let (cost, took) = found(speed, 1 << 20);
            assert!(
                Argon2Params::new(cost.kib, cost.passes).is_ok(),
                "{speed}: {cost:?}"
            );
            let floor = cost == Argon2Params::FLOOR;
            assert!(floor || took <= 1000, "{speed}: {took} ms");
            assert!(took >= 250, "{speed}: {took} ms");
        }
    }

    #[test]
    fn a_small_machine_gets_passes_instead_of_memory() {
        let (cost, took) = found(450, 19 << 10);
        assert_eq!(cost.kib, 19 << 10);
        assert!(
            cost.passes > 3 && (500..=1000).contains(&took),
            "{cost:?} {took} ms"
        );
    }

    #[test]
    fn limits_hold_to_the_kibibyte_and_to_the_pass() {
        let (least, most) = (ARGON2_FLOOR_KIB, ARGON2_MAX_KIB);
        for kib in [least, most] {
            assert!(Argon2Params::new(kib, ARGON2_FLOOR_PASSES).is_ok());
        }
        for kib in [0, least - 1, most + 1, u32::MAX] {
            assert!(Argon2Params::new(kib, 3).is_err());
        }
        for passes in [0, ARGON2_FLOOR_PASSES - 1, ARGON2_MAX_PASSES + 1] {
            assert!(Argon2Params::new(least, passes).is_err());
        }
        assert!(Argon2Params::new(least, ARGON2_MAX_PASSES).is_ok());
        let cost = Argon2Params::new(least + 1, 2).expect("in range");
        let error = kek(&"x".into(), &[0; 16], cost, least).expect_err("too much");
        assert!(matches!(error, SlotError::TooExpensive { cap_kib, .. } if cap_kib == least));
    }
}
