//! SNTP messages (RFC 4330, RFC 5905): one question, one answer, an offset.
//!
//! The question carries a random number where the transmit time would be; an answer counts only
//! if it returns it. Who cannot see the question can thus not forge an answer, and the question
//! does not tell our clock.

/// Every SNTP message without authentication is this long.
pub const MESSAGE_BYTES: usize = 48;
/// Port of SNTP servers.
pub const PORT: u16 = 123;

/// Between 1900 and 1970, in seconds.
const NTP_TO_UNIX_SECS: i64 = 2_208_988_800;
/// Seconds after which the 32 bits of an NTP time begin again at zero.
const ERA_SECS: i64 = 1 << 32;
/// Times later than the build by more than this are refused: no such machine runs, but servers
/// with a broken clock do.
const PLAUSIBLE_SECS: i64 = 50 * 366 * 86_400;
/// Longest round trip taken: the offset may be wrong by half of it.
const DELAY_NS_MAX: i64 = 2_000_000_000;
/// Longest distance of the server from its own source taken, in 1/65536 s.
const ROOT_DISTANCE_MAX: u32 = 3 << 16;
const STRATUM_MAX: u8 = 15;

/// What a valid answer says about our clock; all in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockSample {
    /// To be added to our clock.
    pub offset_ns: i64,
    /// Round trip without the server's own time.
    pub delay_ns: i64,
}

/// A server that does not want to be asked (RFC 5905 §7.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KissOfDeath {
    /// `DENY` or `RSTR`: never again.
    Deny,
    /// Anything else: not now.
    Other,
    /// `RATE`: less often.
    Rate,
}

/// Reading of an answer.
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
    /// `cookie` must be unpredictable; `build_secs` is when the binary was built, in Unix seconds.
    pub const fn new(cookie: u64, build_secs: i64) -> Self {
        Self { cookie, build_secs }
    }

    /// The message to send: version 4, client.
    pub fn question(&self) -> [u8; MESSAGE_BYTES] {
        let mut message = [0; MESSAGE_BYTES];
        // Leap 0, version 4, mode 3 (RFC 5905 §7.3).
        message[0] = 0x23;
        // In place of our time, which a server does not need: it only copies it back (RFC 5905 §8).
        message[40..].copy_from_slice(&self.cookie.to_be_bytes());
        message
    }

    /// Reads an answer received at `received_ns` by our clock, in Unix nanoseconds, to the
    /// question sent at `sent_ns`. `None` for anything else than a plausible answer to it.
    pub fn answer(&self, bytes: &[u8], sent_ns: i64, received_ns: i64) -> Option<SntpReply> {
        let message: &[u8; MESSAGE_BYTES] = bytes.first_chunk()?;
        let (leap, version, mode) = (message[0] >> 6, message[0] >> 3 & 7, message[0] & 7);
        let ours = message[24..32] == self.cookie.to_be_bytes();
        // The origin must be our cookie: an attacker off the path cannot know it. Version 3 servers answer as version
        // 3.
        if mode != 4 || !(3..=4).contains(&version) || !ours {
            return None;
        }
        // RFC 5905 §7.3: stratum 0 is a kiss, its code in the reference identifier.
        if message[1] == 0 {
            return Some(SntpReply::Kiss(kiss(&message[12..16])));
        }
        let distance = word(message, 4) / 2 + word(message, 8).min(u32::MAX / 2);
        // RFC 5905 §7.3: leap 3 and stratum 16 say that the server has no time itself.
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
        // A server chooses both times; the difference of two `i64` may not fit one.
        let there = i128::from(arrived) - i128::from(sent);
        let back = i128::from(left) - i128::from(received);
        // A server's clock ticks in steps: a delay a little below zero is its coarseness.
        let plausible = (-1_000_000..=DELAY_NS_MAX).contains(&delay) && left >= arrived;
        plausible.then_some(ClockSample {
            offset_ns: i64::try_from((there + back) / 2).ok()?,
            delay_ns: delay.max(0),
        })
    }

    /// Unix time of a timestamp. The era that NTP leaves open is the one that starts with the
    /// build: nothing answers us from before.
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
