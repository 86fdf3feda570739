//! Random numbers and pauses that the protocols share.

use std::time::Duration;

/// A small generator for transaction numbers and jitter. The caller seeds it, so that tests can
/// repeat a run.
///
/// Transaction numbers are sent in the clear on the link. They match replies to requests and are
/// not secret.
#[derive(Clone, Debug)]
pub(crate) struct NetRng(u64);

impl NetRng {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// SplitMix64, for which every seed is good, including zero.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn next_u32(&mut self) -> u32 {
        (self.next() >> 32) as u32
    }

    /// `base`, changed by at most `percent` either way.
    pub(crate) fn jitter(&mut self, base: Duration, percent: u32) -> Duration {
        let span = u64::from(percent) * 2 + 1;
        let chosen = 100 - percent + (self.next() % span) as u32;
        base * chosen / 100
    }
}

/// Doubling pauses between retransmissions, RFC 2131 §4.1 and RFC 8415 §15.
#[derive(Clone, Debug)]
pub(crate) struct RetransmitBackoff {
    first: Duration,
    max: Duration,
    next: Duration,
}

impl RetransmitBackoff {
    pub(crate) const fn new(first: Duration, max: Duration) -> Self {
        Self {
            first,
            max,
            next: first,
        }
    }

    /// The next pause. The one after it is twice as long, up to the maximum.
    pub(crate) fn pause(&mut self, rng: &mut NetRng, percent: u32) -> Duration {
        let pause = rng.jitter(self.next, percent);
        self.next = (self.next * 2).min(self.max);
        pause
    }

    pub(crate) const fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_maximum() {
        let mut rng = NetRng::new(1);
        let mut backoff = RetransmitBackoff::new(Duration::from_secs(1), Duration::from_secs(8));
        let pauses: Vec<u64> = (0..6)
            .map(|_| backoff.pause(&mut rng, 0).as_secs())
            .collect();
        assert_eq!(pauses, [1, 2, 4, 8, 8, 8]);
        backoff.reset();
        assert_eq!(backoff.pause(&mut rng, 0).as_secs(), 1);
    }

    #[test]
    fn jitter_stays_within_its_bounds() {
        let mut rng = NetRng::new(0);
        for _ in 0..10_000 {
            let pause = rng.jitter(Duration::from_millis(1000), 20).as_millis();
            assert!((800..=1200).contains(&pause), "{pause}");
        }
    }
}
