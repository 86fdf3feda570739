//! SNTP messages (RFC 4330, RFC 5905): a request, a reply, an offset.
//!
//! The request has a random number in place of the transmit time, and a reply counts only if it
//! returns that number. An attacker who cannot see the request thus cannot forge a reply, and the
//! request does not reveal the machine's clock.

/// Length of every SNTP message without authentication.
pub const MESSAGE_BYTES: usize = 48;
/// Port of SNTP servers.
pub const PORT: u16 = 123;

/// Seconds from 1900 to 1970.
const NTP_TO_UNIX_SECS: i64 = 2_208_988_800;
/// Seconds after which the 32 bits of an NTP time start again at zero.
const ERA_SECS: i64 = 1 << 32;
/// A time later than the build by more than this is refused: no machine runs that long after its
/// build, but servers with a broken clock exist.
const PLAUSIBLE_SECS: i64 = 50 * 366 * 86_400;
/// Maximum round trip: the offset may be wrong by half of it.
const DELAY_NS_MAX: i64 = 2_000_000_000;
/// Maximum distance of the server from its own source, in 1/65536 s.
const ROOT_DISTANCE_MAX: u32 = 3 << 16;
const STRATUM_MAX: u8 = 15;

/// What a valid reply says about the machine's clock, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockSample {
    /// Offset to add to the machine's clock.
    pub offset_ns: i64,
    /// Round trip without the server's own time.
    pub delay_ns: i64,
}

/// The code of a server that refuses requests (RFC 5905 §7.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KissOfDeath {
    /// `DENY` or `RSTR`: the server refuses all requests.
    Deny,
    /// Any other code: the server refuses this request.
    Other,
    /// `RATE`: the server wants fewer requests.
    Rate,
}

/// A parsed reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SntpReply {
    /// The server refuses.
    Kiss(KissOfDeath),
    /// The time.
    Time(ClockSample),
}

/// One exchange with one server.
#[derive(Clone, Copy, Debug)]
pub struct SntpExchange {
    cookie: u64,
    build_secs: i64,
}

impl SntpExchange {
    /// `cookie` must be unpredictable. `build_secs` is the build time of the binary, in Unix
    /// seconds.
    pub const fn new(cookie: u64, build_secs: i64) -> Self {
        Self { cookie, build_secs }
    }

    /// The request: version 4, mode client.
    pub fn question(&self) -> [u8; MESSAGE_BYTES] {
        let mut message = [0; MESSAGE_BYTES];
        // Leap 0, version 4, mode 3 (RFC 5905 §7.3).
        message[0] = 0x23;
        // The cookie replaces the transmit time, which a server only copies back (RFC 5905 §8).
        message[40..].copy_from_slice(&self.cookie.to_be_bytes());
        message
    }

    /// Reads a reply that was received at `received_ns` by the machine's clock, in Unix
    /// nanoseconds, to the request sent at `sent_ns`. Returns `None` if it is no plausible reply to
    /// this request.
    pub fn answer(&self, bytes: &[u8], sent_ns: i64, received_ns: i64) -> Option<SntpReply> {
        let message: &[u8; MESSAGE_BYTES] = bytes.first_chunk()?;
        let (leap, version, mode) = (message[0] >> 6, message[0] >> 3 & 7, message[0] & 7);
        let ours = message[24..32] == self.cookie.to_be_bytes();
        // The origin must be the cookie, which an attacker off the path cannot know. Version 3
        // servers answer with version 3.
        if mode != 4 || !(3..=4).contains(&version) || !ours {
            return None;
        }
        // RFC 5905 §7.3: stratum 0 is a kiss, its code in the reference identifier.
        if message[1] == 0 {
            return Some(SntpReply::Kiss(kiss(&message[12..16])));
        }
        let distance = word(message, 4) / 2 + word(message, 8).min(u32::MAX / 2);
        // RFC 5905 §7.3: leap 3 and stratum 16 mean that the server itself has no time.
        if leap == 3 || message[1] > STRATUM_MAX || distance > ROOT_DISTANCE_MAX {
            return None;
        }
        self.sample(message, sent_ns, received_ns)
            .map(SntpReply::Time)
    }

    fn sample(
        &self,
        message: &[u8; MESSAGE_BYTES],
        sent: i64,
        received: i64,
    ) -> Option<ClockSample> {
        let arrived = self.unix_ns(message, 32)?;
        let left = self.unix_ns(message, 40)?;
        let delay = (received.checked_sub(sent)?).checked_sub(left.checked_sub(arrived)?)?;
        // The server chooses both times, and the difference of two `i64` may not fit into one.
        let there = i128::from(arrived) - i128::from(sent);
        let back = i128::from(left) - i128::from(received);
        // A server's clock ticks in steps, so a delay may be a little below zero.
        let plausible = (-1_000_000..=DELAY_NS_MAX).contains(&delay) && left >= arrived;
        plausible.then_some(ClockSample {
            offset_ns: i64::try_from((there + back) / 2).ok()?,
            delay_ns: delay.max(0),
        })
    }

    /// Unix time of a timestamp. NTP does not say which era a time is in. The era is the one that
    /// begins with the build, because no server has an earlier time.
    fn unix_ns(&self, message: &[u8; MESSAGE_BYTES], at: usize) -> Option<i64> {
        let (secs, fraction) = (word(message, at), word(message, at + 4));
        if secs == 0 && fraction == 0 {
            return None;
        }
        let since_build =
            (i64::from(secs) - NTP_TO_UNIX_SECS - self.build_secs).rem_euclid(ERA_SECS);
        if since_build > PLAUSIBLE_SECS {
            return None;
        }
        let nanos = (u64::from(fraction) * 1_000_000_000) >> 32;
        (self.build_secs + since_build)
            .checked_mul(1_000_000_000)?
            .checked_add(nanos as i64)
    }
}

fn kiss(code: &[u8]) -> KissOfDeath {
    match code {
        b"DENY" | b"RSTR" => KissOfDeath::Deny,
        b"RATE" => KissOfDeath::Rate,
        _ => KissOfDeath::Other,
    }
}

fn word(message: &[u8; MESSAGE_BYTES], at: usize) -> u32 {
    u32::from_be_bytes([
        message[at],
        message[at + 1],
        message[at + 2],
        message[at + 3],
    ])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BUILD: i64 = 1_790_000_000;
    const NOW: i64 = (BUILD + 1000) * 1_000_000_000;
    const COOKIE: u64 = 0x1122_3344_5566_7788;
    const EXCHANGE: SntpExchange = SntpExchange::new(COOKIE, BUILD);

    fn stamp(unix_ns: i64) -> [u8; 8] {
        let secs = (unix_ns / 1_000_000_000 + NTP_TO_UNIX_SECS) as u32;
        let fraction = ((unix_ns % 1_000_000_000) as u64 * (1 << 32)).div_ceil(1_000_000_000);
        ((u64::from(secs) << 32) | fraction).to_be_bytes()
    }

    fn reply(arrived: i64, left: i64) -> [u8; MESSAGE_BYTES] {
        let mut message = [0; MESSAGE_BYTES];
        message[0] = 0x24;
        message[1] = 2;
        message[24..32].copy_from_slice(&COOKIE.to_be_bytes());
        message[32..40].copy_from_slice(&stamp(arrived));
        message[40..].copy_from_slice(&stamp(left));
        message
    }

    const MS: i64 = 1_000_000;

    fn read(message: &[u8]) -> Option<SntpReply> {
        EXCHANGE.answer(message, NOW, NOW + 30 * MS)
    }

    #[test]
    fn the_offset_is_the_middle_of_both_ways() {
        let hour = 3_600_000 * MS;
        let message = reply(NOW + hour + 10 * MS, NOW + hour + 20 * MS);
        let Some(SntpReply::Time(sample)) = read(&message) else {
            panic!("a time");
        };
        assert!((sample.offset_ns - hour).abs() < 10, "{sample:?}");
        assert!((sample.delay_ns - 20 * MS).abs() < 10, "{sample:?}");
    }

    #[test]
    fn a_clock_at_1970_is_set_right() {
        let message = reply(NOW, NOW);
        let Some(SntpReply::Time(sample)) = EXCHANGE.answer(&message, 5, 7) else {
            panic!("a time");
        };
        assert!((sample.offset_ns - NOW).abs() < 10);
    }

    #[test]
    fn the_era_after_2036_is_understood() {
        let later = (2_085_978_496 + 500) * 1_000_000_000;
        assert!(later / 1_000_000_000 + NTP_TO_UNIX_SECS > ERA_SECS);
        let message = reply(later, later);
        let Some(SntpReply::Time(sample)) = EXCHANGE.answer(&message, later, later) else {
            panic!("a time");
        };
        assert!(sample.offset_ns.abs() < 10, "{sample:?}");
    }

    #[test]
    fn the_question_tells_nothing_but_the_cookie() {
        let question = EXCHANGE.question();
        assert_eq!(question[0], 0x23);
        assert!(question[1..40].iter().all(|b| *b == 0));
        assert_eq!(question[40..], COOKIE.to_be_bytes());
    }

    #[test]
    fn forged_and_useless_answers_are_refused() {
        let good = reply(NOW, NOW);
        assert!(read(&good).is_some());
        // Mode, version, leap alarm, stratum, root delay, cookie.
        for (at, value) in [(0, 0x23), (0, 0x14), (0, 0xe4), (1, 16), (4, 0xff), (24, 0)] {
            let mut bad = good;
            bad[at] = value;
            assert_eq!(read(&bad), None, "byte {at}");
        }
        assert_eq!(read(&good[..47]), None);
        let before_build = (BUILD - 1) * 1_000_000_000;
        assert_eq!(read(&reply(before_build, before_build)), None);
        let in_a_century = NOW + 100 * 365 * 86_400 * 1000 * MS;
        assert_eq!(read(&reply(in_a_century, in_a_century)), None);
        assert_eq!(
            read(&reply(NOW + MS, NOW)),
            None,
            "leaves before it arrives"
        );
        assert_eq!(
            EXCHANGE.answer(&good, NOW, NOW + 3000 * MS),
            None,
            "too long under way"
        );
        let mut empty = good;
        empty[40..].fill(0);
        assert_eq!(read(&empty), None);
    }

    #[test]
    fn kisses_are_understood_only_from_who_was_asked() {
        let mut message = reply(NOW, NOW);
        message[1] = 0;
        for (code, kiss) in [
            (b"DENY", KissOfDeath::Deny),
            (b"RSTR", KissOfDeath::Deny),
            (b"RATE", KissOfDeath::Rate),
            (b"STEP", KissOfDeath::Other),
        ] {
            message[12..16].copy_from_slice(code);
            assert_eq!(read(&message), Some(SntpReply::Kiss(kiss)));
        }
        message[24] ^= 1;
        assert_eq!(read(&message), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(mut bytes in proptest::collection::vec(any::<u8>(), 48), sent: i64, received: i64) {
            bytes[0] = 0x24;
            bytes[24..32].copy_from_slice(&COOKIE.to_be_bytes());
            let _ = EXCHANGE.answer(&bytes, sent, received);
        }
    }
}
