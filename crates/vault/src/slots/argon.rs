//! Argon2id: the cost of an attempt at a passphrase.

use std::time::Duration;

use argon2::{Algorithm, Argon2, Block, Params, Version};
use zeroize::Zeroize;

use crate::bip39::normalized;
use crate::limits::{ARGON2_FLOOR_KIB, ARGON2_FLOOR_PASSES, ARGON2_MAX_KIB, ARGON2_MAX_PASSES};
use crate::secret::SecretStr;
use crate::slots::{Kek, SlotError};

/// The cost of one attempt; it always uses one lane.
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
    /// 19 MiB, two passes; a lower cost is refused.
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

/// The key of a passphrase. The memory is zeroized before it is freed.
pub(super) fn kek(
    passphrase: &SecretStr,
    salt: &[u8; 16],
    cost: Argon2Params,
    cap_kib: u32,
) -> Result<Kek, SlotError> {
    // An attacker who edits the file must not make a small machine use all of its memory.
    let cap_kib = cap_kib.max(ARGON2_FLOOR_KIB);
    if cost.kib > cap_kib {
        return Err(SlotError::TooExpensive {
            kib: cost.kib,
            cap_kib,
        });
    }
    let passphrase = normalized(passphrase)?;
    // With one lane, the cost does not depend on the number of processors.
    let params = Params::new(cost.kib, cost.passes, 1, Some(32))
        .map_err(|_| SlotError::BadParams("Argon2id cost"))?;
    let count = params.block_count();
    let mut blocks = Vec::new();
    // The file determines the size, so an allocation that fails must be an error and not end the process.
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

/// Makes one attempt with an empty passphrase, for a caller that measures the time of an attempt.
pub fn attempt(cost: Argon2Params, cap_kib: u32) -> Result<(), SlotError> {
    kek(&SecretStr::empty(), &[0; 16], cost, cap_kib).map(drop)
}

/// Finds a cost that takes half a second to a second on this machine, between the floor and the limit of its memory.
/// `measure` returns the time of one attempt at a cost, usually by making one.
///
/// The floor is measured first and the time of other costs is computed from it, so that few attempts are made at
/// costs that are not chosen: on a slow machine one attempt at the default cost takes many seconds.
pub fn calibrate(
    cap_kib: u32,
    mut measure: impl FnMut(Argon2Params) -> Result<Duration, SlotError>,
) -> Result<Argon2Params, SlotError> {
    const LEAST: Duration = Duration::from_millis(500);
    const MOST: Duration = Duration::from_secs(1);
    // Below `MOST`, because the computed time is not exact. Neighbouring costs differ by a factor of two at most, so
    // the chosen one takes at least 450 ms.
    const WANTED: Duration = Duration::from_millis(900);
    let costs = costs(cap_kib.clamp(ARGON2_FLOOR_KIB, ARGON2_MAX_KIB));
    let work = |cost: &Argon2Params| f64::from(cost.kib) * f64::from(cost.passes);
    // The highest cost that should take no longer than `WANTED`, if the cost at `at` took this time.
    let wanted = |at: usize, took: Duration| {
        let rate = took.as_secs_f64() / work(&costs[at]);
        let affordable = |cost: &&Argon2Params| rate * work(cost) <= WANTED.as_secs_f64();
        costs
            .iter()
            .take_while(affordable)
            .count()
            .saturating_sub(1)
    };
    // The faster of two attempts counts: another program that computes for a moment must not lead to a low cost.
    let mut at = wanted(0, measure(costs[0])?.min(measure(costs[0])?));
    let mut too_slow = costs.len();
    while at > 0 {
        let mut took = measure(costs[at])?;
        if took > MOST {
            // A machine that was suspended meanwhile must not be taken for a slow one either.
            took = took.min(measure(costs[at])?);
        }
        if took > MOST {
            too_slow = at;
            at = wanted(at, took).min(at - 1);
        } else {
            let next = wanted(at, took).max(at + 1).min(too_slow - 1);
            if took >= LEAST || next == at {
                break;
            }
            at = next;
        }
    }
    Ok(costs[at])
}

/// The costs to choose from, lowest first: from the floor to the default, then with more memory up to the limit, then
/// with more passes.
fn costs(cap_kib: u32) -> Vec<Argon2Params> {
    let middle = Argon2Params {
        kib: Argon2Params::DEFAULT.kib.min(cap_kib),
        ..Argon2Params::DEFAULT
    };
    let mut costs: Vec<_> = std::iter::successors(Some(middle), |cost| cheaper(*cost)).collect();
    costs.reverse();
    costs.extend(std::iter::successors(dearer(middle, cap_kib), |cost| {
        dearer(*cost, cap_kib)
    }));
    costs
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

/// Twice the memory up to the limit, then more passes.
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

    /// What is found on a machine that fills so many KiB in a millisecond, in how many attempts, and how long
    /// one at it takes.
    fn found(kib_per_ms: u32, cap_kib: u32) -> (Argon2Params, Vec<u64>, u64) {
        found_by(cap_kib, |cost| {
            u64::from(cost.kib) * u64::from(cost.passes) / u64::from(kib_per_ms)
        })
    }

    fn found_by(cap_kib: u32, time: impl Fn(Argon2Params) -> u64) -> (Argon2Params, Vec<u64>, u64) {
        let mut attempts = Vec::new();
        let cost = calibrate(cap_kib, |cost| {
            attempts.push(time(cost));
            Ok(Duration::from_millis(time(cost)))
        });
        let cost = cost.expect("measured");
        (cost, attempts, time(cost))
    }

    #[test]
    fn machines_of_any_speed_end_within_the_bounds() {
        for speed in [1, 5, 20, 100, 250, 450, 1000, 3000, 10_000, 1_000_000] {
            let (cost, attempts, took) = found(speed, 1 << 20);
            assert!(
                Argon2Params::new(cost.kib, cost.passes).is_ok(),
                "{speed}: {cost:?}"
            );
            let floor = cost == Argon2Params::FLOOR;
            assert!(floor || took <= 1000, "{speed}: {took} ms");
            let dearest = cost.passes > ARGON2_MAX_PASSES / 2;
            assert!(dearest || took >= 450, "{speed}: {took} ms");
            assert!(attempts.len() <= 4, "{speed}: {attempts:?}");
        }
    }

    /// Each attempt at the default would take 38 s here.
    #[test]
    fn a_slow_machine_makes_attempts_at_the_floor_only() {
        let (cost, attempts, took) = found(5, 1 << 20);
        assert_eq!(cost, Argon2Params::FLOOR);
        assert_eq!(attempts, [took, took]);
    }

    #[test]
    fn what_is_measured_counts_more_than_what_was_computed() {
        // Memory beyond a cache takes four times as long.
        let cached = |cost: Argon2Params| cost.kib * cost.passes / 450;
        let beyond = |cost: Argon2Params| {
            let slower = if cost.kib > ARGON2_FLOOR_KIB { 4 } else { 1 };
            u64::from(cached(cost) * slower)
        };
        let (cost, attempts, took) = found_by(1 << 20, beyond);
        assert!((450..=1000).contains(&took), "{cost:?} {attempts:?}");
        // A machine that was busy at the first attempt.
        let first = std::cell::Cell::new(true);
        let busy = |cost: Argon2Params| {
            let slower = if first.replace(false) { 10 } else { 1 };
            u64::from(cached(cost) * slower)
        };
        let (cost, attempts, took) = found_by(1 << 20, busy);
        assert!((450..=1000).contains(&took), "{cost:?} {attempts:?}");
    }

    /// A virtual machine is moved or saved, its neighbours take the processor, or a key stops the command.
    #[test]
    fn a_pause_during_any_attempt_does_not_make_guessing_cheap() {
        for (kib_per_ms, cap_kib) in [(450, 1 << 20), (1000, 128 << 10), (2000, 1 << 20)] {
            let time = |cost: Argon2Params| u64::from(cost.kib * cost.passes / kib_per_ms);
            for paused in 0..6 {
                let attempt = std::cell::Cell::new(0);
                let with_pause = |cost| {
                    let pause = if attempt.replace(attempt.get() + 1) == paused {
                        30_000
                    } else {
                        0
                    };
                    time(cost) + pause
                };
                let cost = found_by(cap_kib, with_pause).0;
                assert!(time(cost) >= 450, "{kib_per_ms}, {paused}: {cost:?}");
            }
        }
    }

    #[test]
    fn costs_rise_from_the_floor_by_two_at_most() {
        for cap_kib in [
            ARGON2_FLOOR_KIB,
            40 << 10,
            100 << 10,
            1 << 20,
            ARGON2_MAX_KIB,
        ] {
            let costs = costs(cap_kib);
            assert_eq!(costs[0], Argon2Params::FLOOR);
            for pair in costs.windows(2) {
                let [one, next] = [pair[0], pair[1]].map(|cost| cost.kib * cost.passes);
                assert!(one < next && next <= 2 * one, "{pair:?}");
                assert!(pair[1].kib <= cap_kib, "{pair:?}");
            }
        }
    }

    #[test]
    fn a_small_machine_gets_passes_instead_of_memory() {
        let (cost, _, took) = found(450, 19 << 10);
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
