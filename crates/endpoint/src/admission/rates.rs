//! Rates of handshakes: what each payer has left, and how much of it comes back in a second.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use alknet_core::Carriage;

use crate::limits::EndpointLimits;

use super::{HandshakePayer, SITE_NETWORKS};

/// Rates that the node remembers, of networks, sites and known peers' addresses. Beyond this number it forgets the
/// rate that was not used for longest.
pub(super) const BUCKETS_MAX: usize = 8192;

/// The buckets of all payers, each for handshakes of one carriage.
#[derive(Debug, Default)]
pub(super) struct HandshakeBuckets(HashMap<(Carriage, HandshakePayer), TokenBucket>);

impl HandshakeBuckets {
    /// Takes one handshake from each payer; false, and nothing is taken, when one of them has used up its rate.
    pub(super) fn charge(
        &mut self,
        limits: &EndpointLimits,
        carriage: Carriage,
        payers: impl Iterator<Item = HandshakePayer> + Clone,
        now: Instant,
    ) -> bool {
        // All payers are asked first: a handshake that the site cannot pay for must not cost its network anything.
        let mut asked = payers.clone();
        let allowed = asked.all(|payer| self.bucket(limits, carriage, payer, now).has_one());
        if allowed {
            for payer in payers {
                self.bucket(limits, carriage, payer, now).take();
            }
        }
        allowed
    }

    /// Whether one of the payers cannot pay for another handshake now.
    pub(super) fn is_spent(
        &self,
        limits: &EndpointLimits,
        carriage: Carriage,
        mut payers: impl Iterator<Item = HandshakePayer>,
        now: Instant,
    ) -> bool {
        payers.any(|payer| {
            let rate = RateLimit::of_payer(limits, payer);
            let bucket = self.0.get(&(carriage, payer));
            bucket.is_some_and(|bucket| {
                // A copy is refilled: a packet whose address may be forged must not create or change a bucket.
                let mut bucket = *bucket;
                bucket.refill(rate, now);
                !bucket.has_one()
            })
        })
    }

    /// Returns one handshake to each payer.
    pub(super) fn refund(
        &mut self,
        limits: &EndpointLimits,
        carriage: Carriage,
        payers: impl Iterator<Item = HandshakePayer>,
    ) {
        for payer in payers {
            let rate = RateLimit::of_payer(limits, payer);
            if let Some(bucket) = self.0.get_mut(&(carriage, payer)) {
                bucket.give_back(rate);
            }
        }
    }

    /// The bucket of a payer, refilled up to now.
    fn bucket(
        &mut self,
        limits: &EndpointLimits,
        carriage: Carriage,
        payer: HandshakePayer,
        now: Instant,
    ) -> &mut TokenBucket {
        let key = (carriage, payer);
        if !self.0.contains_key(&key) {
            self.forget_one(limits, now);
        }
        let rate = RateLimit::of_payer(limits, payer);
        // A payer without a bucket starts with its whole burst, which is also what a forgotten bucket has earned
        // back.
        let full = || TokenBucket::full(rate, now);
        let bucket = self.0.entry(key).or_insert_with(full);
        bucket.refill(rate, now);
        bucket
    }

    /// Makes room for one more bucket. Full buckets go first, because a new one would be the same; then the oldest.
    fn forget_one(&mut self, limits: &EndpointLimits, now: Instant) {
        if self.0.len() < BUCKETS_MAX {
            return;
        }
        let refill =
            f64::from(limits.handshake_burst) / f64::from(limits.handshakes_per_second.max(1));
        let refill = Duration::from_secs_f64(refill);
        self.0
            .retain(|_, bucket| now.saturating_duration_since(bucket.at) < refill);
        if self.0.len() >= BUCKETS_MAX
            && let Some(oldest) = self.0.iter().min_by_key(|(_, bucket)| bucket.at)
        {
            let oldest = *oldest.0;
            self.0.remove(&oldest);
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

/// A rate of handshakes: its burst and what it earns back.
#[derive(Clone, Copy, Debug)]
pub(super) struct RateLimit {
    burst: f64,
    /// Handshakes earned back in a second.
    per_second: f64,
}

impl RateLimit {
    /// This many times the rate and burst of one network.
    pub(super) fn times(limits: &EndpointLimits, times: u32) -> Self {
        Self {
            burst: f64::from(limits.handshake_burst.saturating_mul(times)),
            per_second: f64::from(limits.handshakes_per_second.saturating_mul(times)),
        }
    }

    /// The rate and burst of handshakes that a payer may have.
    fn of_payer(limits: &EndpointLimits, payer: HandshakePayer) -> Self {
        match payer {
            HandshakePayer::Address(_) | HandshakePayer::Network(_) => Self::times(limits, 1),
            HandshakePayer::Site(_) => Self::times(limits, SITE_NETWORKS),
        }
    }
}

/// The handshakes that a payer has left.
#[derive(Clone, Copy, Debug)]
pub(super) struct TokenBucket {
    tokens: f64,
    at: Instant,
}

impl TokenBucket {
    pub(super) fn full(rate: RateLimit, now: Instant) -> Self {
        Self {
            tokens: rate.burst,
            at: now,
        }
    }

    pub(super) fn refill(&mut self, rate: RateLimit, now: Instant) {
        let seconds = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + seconds * rate.per_second).min(rate.burst);
        self.at = now;
    }

    fn has_one(&self) -> bool {
        self.tokens >= 1.0
    }

    /// Takes one token; false if the bucket is empty.
    pub(super) fn take(&mut self) -> bool {
        let has = self.has_one();
        if has {
            self.tokens -= 1.0;
        }
        has
    }

    fn give_back(&mut self, rate: RateLimit) {
        self.tokens = (self.tokens + 1.0).min(rate.burst);
    }
}

/// Counts events within one second.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RateWindow {
    start: Option<Instant>,
    count: u32,
}

impl RateWindow {
    pub(super) fn take(&mut self, max: u32, now: Instant) -> bool {
        let fresh = self
            .start
            .is_none_or(|start| now.saturating_duration_since(start) >= Duration::from_secs(1));
        if fresh {
            *self = Self {
                start: Some(now),
                count: 0,
            };
        }
        self.count += 1;
        self.count <= max
    }
}
