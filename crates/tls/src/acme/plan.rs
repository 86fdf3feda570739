//! Decides when to order a certificate. No clock, no network and no disk: the caller passes the time and stores the
//! history.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Most orders for one name in a day. Authorities count as well, and block clients with too many.
pub const ORDERS_PER_DAY_MAX: usize = 5;

/// First pause after a failed order; each further failure doubles it.
pub const BACK_OFF_MIN_S: u64 = 60;

/// Longest pause after a failed order.
pub const BACK_OFF_MAX_S: u64 = DAY_S;

const DAY_S: u64 = 86_400;

/// The history of orders. It is stored on disk, so that a restart keeps the pauses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct AcmeHistory {
    /// Times at which orders began in the last day, by name.
    orders: BTreeMap<String, Vec<u64>>,
    /// Failures since the last success.
    failures: u32,
    /// Time of the last failure.
    failed_at: Option<u64>,
    /// Time at which the authority last asked for a pause, and its seconds.
    left_alone: Option<(u64, u64)>,
}

/// A span of time in seconds of Unix time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct UnixTimeSpan {
    pub(crate) from: u64,
    pub(crate) to: u64,
}

/// The next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AcmeStep {
    /// The clock cannot be right, so that the node could check no certificate.
    ClockInsane,
    /// Order now.
    Order,
    /// Do nothing before this time.
    Wait { until: u64 },
}

/// Plans the orders of one certificate.
#[derive(Clone, Debug)]
pub(crate) struct Planner {
    names: Vec<String>,
    clock_floor: u64,
    history: AcmeHistory,
    held: Option<UnixTimeSpan>,
    window: Option<UnixTimeSpan>,
    /// The point of a renewal in its span, 0 to 1,000,000. It is drawn for each certificate, so that the renewals of
    /// many nodes are spread.
    jitter_ppm: u64,
    renewal_requested: bool,
}

const PPM: u64 = 1_000_000;

impl Planner {
    /// A planner for a certificate with `names`. A clock before `clock_floor` counts as wrong.
    pub(crate) fn new(names: Vec<String>, clock_floor: u64, history: AcmeHistory) -> Self {
        Self {
            names,
            clock_floor,
            history,
            held: None,
            window: None,
            jitter_ppm: 0,
            renewal_requested: false,
        }
    }

    /// The node has a certificate for all names, valid for `validity`. `random` is any number.
    pub(crate) fn hold(&mut self, validity: UnixTimeSpan, random: u64) {
        self.held = Some(validity);
        self.window = None;
        self.jitter_ppm = random % (PPM + 1);
    }

    /// Sets the window in which the authority wants a renewal (RFC 9773).
    pub(crate) fn suggest(&mut self, window: Option<UnixTimeSpan>) {
        self.window = window;
    }

    /// The administrator requests a new certificate now. Pauses and limits hold all the same.
    pub(crate) fn ask(&mut self) {
        self.renewal_requested = true;
    }

    /// The next step at `now`.
    pub(crate) fn next(&mut self, now: u64) -> AcmeStep {
        // By a clock that is far behind, an expired certificate would seem to be valid.
        if now < self.clock_floor {
            return AcmeStep::ClockInsane;
        }
        self.history.settle(now);
        let until = self
            .due()
            .max(self.history.pause_end())
            .max(self.history.limit_end(&self.names));
        if now >= until {
            AcmeStep::Order
        } else {
            AcmeStep::Wait { until }
        }
    }

    /// Records an order that begins.
    pub(crate) fn began(&mut self, now: u64) {
        self.history.settle(now);
        for name in &self.names {
            self.history
                .orders
                .entry(name.clone())
                .or_default()
                .push(now);
        }
    }

    /// Records that the order failed.
    pub(crate) fn failed(&mut self, now: u64) {
        self.history.failures = self.history.failures.saturating_add(1);
        self.history.failed_at = Some(now);
    }

    /// Records that the authority asked for a pause of `seconds`.
    pub(crate) fn leave_alone(&mut self, now: u64, seconds: u64) {
        self.history.left_alone = Some((now, seconds));
    }

    /// Whether no request may go to the authority now, because it asked for a pause or failed a moment ago.
    pub(crate) fn is_paused(&self, now: u64) -> bool {
        self.history.pause_end() > now
    }

    /// Records that the order gave a certificate valid for `validity`.
    pub(crate) fn succeeded(&mut self, validity: UnixTimeSpan, random: u64) {
        self.history.failures = 0;
        self.history.failed_at = None;
        // An order that succeeded shows that the authority accepts orders again.
        self.history.left_alone = None;
        self.renewal_requested = false;
        self.hold(validity, random);
    }

    /// Failures since the last success.
    pub(crate) fn failures(&self) -> u32 {
        self.history.failures
    }

    /// Whether the authority gave a renewal window.
    pub(crate) fn has_window(&self) -> bool {
        self.window.is_some()
    }

    /// The history to store.
    pub(crate) fn history(&self) -> &AcmeHistory {
        &self.history
    }

    /// Time of the next renewal, if no pause or limit is in the way.
    fn due(&self) -> u64 {
        let Some(held) = self.held else { return 0 };
        // The operator's request brings the renewal forward. The limits of the authority still hold.
        if self.renewal_requested {
            return 0;
        }
        // Without a window of the authority the usual span applies.
        let span = self.window.unwrap_or_else(|| usual(held));
        let length = u128::from(span.to.saturating_sub(span.from));
        let offset = length * u128::from(self.jitter_ppm) / u128::from(PPM);
        span.from
            .saturating_add(u64::try_from(offset).unwrap_or(u64::MAX))
    }
}

/// Two thirds of the lifetime, plus or minus a tenth of it.
fn usual(held: UnixTimeSpan) -> UnixTimeSpan {
    let life = held.to.saturating_sub(held.from);
    let (middle, spread) = (life / 3 * 2, life / 10);
    UnixTimeSpan {
        from: held.from.saturating_add(middle - spread),
        to: held.from.saturating_add(middle + spread),
    }
}

impl AcmeHistory {
    /// Removes entries over a day old. Entries in the future come from a wrong clock, and count as now.
    fn settle(&mut self, now: u64) {
        for times in self.orders.values_mut() {
            times.retain(|time| *time > now || now - *time < DAY_S);
            for time in times.iter_mut() {
                *time = (*time).min(now);
            }
        }
        self.orders.retain(|_, times| !times.is_empty());
        self.failed_at = self.failed_at.map(|at| at.min(now));
        self.left_alone = self.left_alone.map(|(at, seconds)| (at.min(now), seconds));
    }

    fn pause_end(&self) -> u64 {
        let alone = self.left_alone;
        let alone = alone.map_or(0, |(at, seconds)| at.saturating_add(seconds));
        match self.failed_at {
            // The authority's own pause may be longer than the node's.
            Some(at) if self.failures > 0 => alone.max(at.saturating_add(back_off(self.failures))),
            _ => alone,
        }
    }

    /// Time at which the name with the most orders may be ordered again.
    fn limit_end(&self, names: &[String]) -> u64 {
        let end = |times: &Vec<u64>| {
            // The limit ends when the oldest of the last `ORDERS_PER_DAY_MAX` orders is a day old.
            let first = times.len().checked_sub(ORDERS_PER_DAY_MAX)?;
            Some(times[first].saturating_add(DAY_S))
        };
        names
            .iter()
            .filter_map(|name| end(self.orders.get(name)?))
            .max()
            .unwrap_or(0)
    }
}

/// The pause after this number of failures.
fn back_off(failures: u32) -> u64 {
    // The bound keeps the shift within its type. The longest pause is reached long before.
    let doublings = failures.saturating_sub(1).min(u64::BITS - 1);
    BACK_OFF_MIN_S
        .saturating_mul(1 << doublings)
        .min(BACK_OFF_MAX_S)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const START: u64 = 1_000_000_000;
    const NINETY_DAYS: u64 = 90 * DAY_S;

    fn planner() -> Planner {
        Planner::new(vec!["a.example".into()], START, AcmeHistory::default())
    }

    /// Mostly so short that a day has more than its orders.
    fn pause() -> impl Strategy<Value = u64> {
        prop_oneof![19 => 0u64..3_000, 1 => 0u64..200_000]
    }

    fn life(from: u64) -> UnixTimeSpan {
        UnixTimeSpan {
            from,
            to: from + NINETY_DAYS,
        }
    }

    #[test]
    fn the_first_is_ordered_at_once_and_renewed_at_two_thirds() {
        let mut plan = planner();
        assert_eq!(plan.next(START), AcmeStep::Order);
        plan.began(START);
        plan.succeeded(life(START), 500_000);
        let due = START + NINETY_DAYS / 3 * 2;
        assert_eq!(plan.next(START + 1), AcmeStep::Wait { until: due });
        assert_eq!(plan.next(due - 1), AcmeStep::Wait { until: due });
        assert_eq!(plan.next(due), AcmeStep::Order);
        for (random, tenths) in [(0, -1), (PPM, 1)] {
            plan.hold(life(START), random);
            let until =
                due.saturating_add_signed(tenths * i64::try_from(NINETY_DAYS / 10).expect("small"));
            assert_eq!(plan.next(START), AcmeStep::Wait { until });
        }
    }

    #[test]
    fn the_window_of_the_authority_wins() {
        let mut plan = planner();
        plan.hold(life(START), 250_000);
        plan.suggest(Some(UnixTimeSpan {
            from: START + 1_000,
            to: START + 2_000,
        }));
        assert_eq!(
            plan.next(START),
            AcmeStep::Wait {
                until: START + 1_250
            }
        );
        // Revoked: the window lies in the past.
        plan.suggest(Some(UnixTimeSpan { from: 1, to: 2 }));
        assert_eq!(plan.next(START), AcmeStep::Order);
        plan.suggest(None);
        assert!(matches!(plan.next(START), AcmeStep::Wait { .. }));
        // A window the wrong way round does no harm.
        plan.suggest(Some(UnixTimeSpan {
            from: START + 9,
            to: START,
        }));
        assert_eq!(plan.next(START), AcmeStep::Wait { until: START + 9 });
    }

    #[test]
    fn failures_double_the_pause_up_to_a_day() {
        let mut plan = planner();
        let mut now = START;
        let mut pauses = Vec::new();
        for _ in 0..14 {
            plan.failed(now);
            let AcmeStep::Wait { until } = plan.next(now) else {
                panic!("no pause")
            };
            assert_eq!(plan.next(until - 1), AcmeStep::Wait { until });
            assert_eq!(plan.next(until), AcmeStep::Order);
            pauses.push(until - now);
            now = until;
        }
        assert_eq!(&pauses[..4], [60, 120, 240, 480]);
        assert_eq!(&pauses[11..], [BACK_OFF_MAX_S; 3]);
    }

    #[test]
    fn five_orders_a_day_and_no_more() {
        let mut plan = planner();
        for n in 0..5 {
            assert_eq!(plan.next(START + n), AcmeStep::Order);
            plan.began(START + n);
        }
        let until = START + DAY_S;
        assert_eq!(plan.next(START + 5), AcmeStep::Wait { until });
        assert_eq!(plan.next(until - 1), AcmeStep::Wait { until });
        assert_eq!(plan.next(until), AcmeStep::Order);
        plan.began(until);
        assert_eq!(
            plan.next(until),
            AcmeStep::Wait {
                until: START + 1 + DAY_S
            }
        );
        // Another certificate with one of these names has to wait as well.
        let names = vec!["b.example".into(), "a.example".into()];
        let mut other = Planner::new(names, START, plan.history().clone());
        assert!(matches!(other.next(until), AcmeStep::Wait { .. }));
    }

    #[test]
    fn asking_does_not_lift_the_limits() {
        let mut plan = planner();
        plan.hold(life(START), 0);
        assert!(matches!(plan.next(START), AcmeStep::Wait { .. }));
        plan.ask();
        assert_eq!(plan.next(START), AcmeStep::Order);
        plan.failed(START);
        assert_eq!(plan.next(START), AcmeStep::Wait { until: START + 60 });
        plan.succeeded(life(START), 0);
        assert!(matches!(plan.next(START + 60), AcmeStep::Wait { .. }));
    }

    #[test]
    fn an_authority_is_left_alone_for_as_long_as_it_says() {
        let mut plan = planner();
        plan.failed(START);
        plan.leave_alone(START, 7_200);
        let until = START + 7_200;
        // Neither the shorter pause after a failure nor the operator ends it.
        plan.ask();
        assert_eq!(plan.next(START + 60), AcmeStep::Wait { until });
        assert!(plan.is_paused(until - 1) && !plan.is_paused(until));
        assert_eq!(plan.next(until), AcmeStep::Order);
        // A pause that is shorter than the one after so many failures changes nothing.
        plan.failed(until);
        plan.leave_alone(until, 1);
        assert_eq!(plan.next(until), AcmeStep::Wait { until: until + 120 });
        plan.succeeded(life(until), 0);
        assert!(!plan.is_paused(until));
        // By a clock that was ahead it is no longer than was said.
        plan.leave_alone(START * 3, 100);
        plan.ask();
        assert_eq!(plan.next(START), AcmeStep::Wait { until: START + 100 });
    }

    #[test]
    fn nothing_is_ordered_by_a_wrong_clock() {
        let mut plan = planner();
        assert_eq!(plan.next(START - 1), AcmeStep::ClockInsane);
        assert_eq!(plan.next(0), AcmeStep::ClockInsane);
        // A clock that was ahead once does not keep us waiting until then.
        plan.began(START * 3);
        plan.failed(START * 3);
        assert_eq!(plan.next(START), AcmeStep::Wait { until: START + 60 });
        assert_eq!(plan.next(START + 60), AcmeStep::Order);
    }

    #[test]
    fn what_is_kept_comes_back() {
        let mut plan = planner();
        plan.began(START);
        plan.failed(START);
        plan.leave_alone(START, 7_200);
        let text = serde_json::to_string(plan.history()).expect("JSON");
        let back: AcmeHistory = serde_json::from_str(&text).expect("JSON");
        assert_eq!(&back, plan.history());
        let mut again = Planner::new(vec!["a.example".into()], START, back);
        let until = START + 7_200;
        assert_eq!(again.next(START + 60), AcmeStep::Wait { until });
        let empty: AcmeHistory = serde_json::from_str("{}").expect("JSON");
        assert_eq!(empty, AcmeHistory::default());
    }

    proptest! {
        /// Whatever happens, five orders fit into a day and none comes before the clock is sane.
        #[test]
        fn the_limit_holds_for_every_history(
            steps in proptest::collection::vec((pause(), any::<bool>(), any::<u64>()), 1..60),
        ) {
            let mut plan = planner();
            let mut now = START;
            let mut begun: Vec<u64> = Vec::new();
            for (pause, good, random) in steps {
                now += pause;
                if plan.next(now) != AcmeStep::Order {
                    plan.ask();
                    continue;
                }
                begun.push(now);
                plan.began(now);
                if good {
                    plan.succeeded(UnixTimeSpan { from: now, to: now + random % 1_000_000 }, random);
                } else {
                    plan.failed(now);
                }
            }
            for first in &begun {
                let day = begun.iter().filter(|t| (*first..first + DAY_S).contains(t)).count();
                prop_assert!(day <= ORDERS_PER_DAY_MAX);
            }
        }

        #[test]
        fn no_numbers_panic(from in any::<u64>(), to in any::<u64>(), now in any::<u64>(), random in any::<u64>()) {
            let mut plan = planner();
            plan.began(now);
            plan.failed(now);
            plan.hold(UnixTimeSpan { from, to }, random);
            let _ = plan.next(now);
            plan.suggest(Some(UnixTimeSpan { from: to, to: from }));
            let _ = plan.next(from);
        }
    }
}
