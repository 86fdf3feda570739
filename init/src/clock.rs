//! The wall clock: it never shows a time before the build, or before the last time that this
//! machine knew.
//!
//! The kernel reads the real-time clock itself (`RTC_HCTOSYS`). Machines without one start in 1970.
//! Certificates and logs need a better time, so the data partition has a note of the last known
//! time.

use std::{fs, io, path::Path, time::Duration};

use nix::{
    sys::time::TimeSpec,
    time::{ClockId, clock_gettime, clock_settime},
};

/// Build time of this binary, in seconds since 1970.
pub const BUILD_TIME_S: u64 = parse_decimal(env!("ALKNET_BUILD_TIME_S"));
/// How often the time is noted. A machine without a clock loses at most this much at a power cut.
pub(crate) const NOTE_EVERY: Duration = Duration::from_secs(600);
/// A noted time that is this much later than the build, 30 years, comes from a damaged file.
const NOTE_AGE_S_MAX: u64 = 30 * 365 * 86_400;
/// Name of the note, below the state directory.
const NOTE_FILE: &str = "clock";

/// Source of the time, for [`crate::control::MachineFacts::clock`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ClockSource {
    BuildTime,
    Rtc,
    Stored,
}

impl ClockSource {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::BuildTime => "build-time",
            Self::Rtc => "rtc",
            Self::Stored => "stored",
        }
    }
}

/// Decides the time of the clock. `None` leaves the clock as it is.
pub(crate) fn decide(
    now_s: u64,
    build_s: u64,
    stored_s: Option<u64>,
) -> (ClockSource, Option<u64>) {
    // A note from before the build is useless. One from long after it would keep the clock wrong at
    // every boot.
    let stored = stored_s.filter(|at| *at > build_s && *at - build_s < NOTE_AGE_S_MAX);
    let floor = stored.unwrap_or(build_s);
    if now_s >= floor {
        return (ClockSource::Rtc, None);
    }
    let source = if stored.is_some() {
        ClockSource::Stored
    } else {
        ClockSource::BuildTime
    };
    (source, Some(floor))
}

/// Sets the clock to a plausible time, with the note in `state_dir` if there is one.
pub(crate) fn settle(state_dir: Option<&Path>) -> io::Result<ClockSource> {
    let stored = state_dir.and_then(read_note);
    let (source, target) = decide(now_s(), BUILD_TIME_S, stored);
    if let Some(seconds) = target {
        let seconds = i64::try_from(seconds).map_err(io::Error::other)?;
        clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::new(seconds, 0))?;
    }
    Ok(source)
}

/// Notes the time for a later boot without a clock. The note is replaced by rename: after a power
/// cut either the old or the new note is there.
pub(crate) fn note(state_dir: &Path) -> io::Result<()> {
    let fresh = state_dir.join("clock.new");
    fs::write(&fresh, format!("{}\n", now_s()))?;
    fs::rename(fresh, state_dir.join(NOTE_FILE))
}

fn read_note(state_dir: &Path) -> Option<u64> {
    let path = state_dir.join(NOTE_FILE);
    let unread = |error: &dyn std::error::Error| {
        tracing::warn!(path = %path.display(), %error, "the time of the last boot is not known");
    };
    let text = match fs::read_to_string(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        read => read.inspect_err(|error| unread(error)).ok()?,
    };
    let noted = text.trim().parse::<u64>();
    noted.inspect_err(|error| unread(error)).ok()
}

fn now_s() -> u64 {
    clock_gettime(ClockId::CLOCK_REALTIME)
        .ok()
        .and_then(|now| u64::try_from(now.tv_sec()).ok())
        .unwrap_or(0)
}

/// The time for a log record. `None` while the clock shows a time before the build.
pub(crate) fn rfc3339_now() -> Option<String> {
    rfc3339_ago(0)
}

/// The time so many seconds ago. `None` while the clock shows a time before the build.
pub(crate) fn rfc3339_ago(ago_s: u64) -> Option<String> {
    let now = clock_gettime(ClockId::CLOCK_REALTIME).ok()?;
    let seconds = u64::try_from(now.tv_sec()).ok()?;
    // A wrong time in a record misleads more than a missing one.
    (seconds >= BUILD_TIME_S).then_some(())?;
    let millis = u16::try_from(now.tv_nsec() / 1_000_000).ok()?;
    Some(rfc3339(seconds.saturating_sub(ago_s), millis))
}

/// RFC 3339 in UTC with milliseconds. The conversion of days follows Howard Hinnant's civil
/// calendar: its year starts in March, so that the leap day is its last day.
fn rfc3339(seconds: u64, millis: u16) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

const fn parse_decimal(text: &str) -> u64 {
    let bytes = text.as_bytes();
    let mut value = 0;
    let mut at = 0;
    while at < bytes.len() {
        assert!(
            bytes[at].is_ascii_digit(),
            "the build time is a decimal number"
        );
        value = value * 10 + (bytes[at] - b'0') as u64;
        at += 1;
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUILD: u64 = 1_795_132_800;

    #[test]
    fn a_sane_clock_is_left_alone() {
        assert_eq!(decide(BUILD + 5, BUILD, None), (ClockSource::Rtc, None));
        assert_eq!(
            decide(BUILD + 5, BUILD, Some(BUILD + 5)),
            (ClockSource::Rtc, None)
        );
    }

    #[test]
    fn an_early_clock_is_set_to_the_build_or_the_note() {
        assert_eq!(
            decide(0, BUILD, None),
            (ClockSource::BuildTime, Some(BUILD))
        );
        assert_eq!(
            decide(0, BUILD, Some(7)),
            (ClockSource::BuildTime, Some(BUILD))
        );
        assert_eq!(
            decide(0, BUILD, Some(BUILD + 9)),
            (ClockSource::Stored, Some(BUILD + 9))
        );
        assert_eq!(
            decide(BUILD + 1, BUILD, Some(BUILD + 9)),
            (ClockSource::Stored, Some(BUILD + 9))
        );
    }

    #[test]
    fn an_absurd_note_is_not_believed() {
        let absurd = Some(u64::MAX);
        assert_eq!(
            decide(0, BUILD, absurd),
            (ClockSource::BuildTime, Some(BUILD))
        );
    }

    #[test]
    fn the_note_survives_and_garbage_does_not_matter() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        assert_eq!(read_note(dir.path()), None);
        note(dir.path()).expect("the directory is writable");
        assert!(read_note(dir.path()).is_some_and(|at| at > 1_700_000_000));
        fs::write(dir.path().join(NOTE_FILE), b"\xff\xfe\0").expect("the directory is writable");
        assert_eq!(read_note(dir.path()), None);
    }

    #[test]
    fn dates_are_written_as_rfc_3339_has_them() {
        assert_eq!(rfc3339(0, 0), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(951_782_400, 7), "2000-02-29T00:00:00.007Z");
        assert_eq!(rfc3339(1_795_132_800, 999), "2026-11-20T00:00:00.999Z");
        assert_eq!(rfc3339(4_107_542_399, 0), "2100-02-28T23:59:59.000Z");
    }

    #[test]
    fn dates_agree_with_another_implementation() {
        for seconds in (0..8_000_000_000).step_by(86_399 * 37) {
            let theirs = jiff::Timestamp::from_second(seconds).expect("within jiff's range");
            let ours = rfc3339(u64::try_from(seconds).expect("not negative"), 0);
            assert_eq!(ours.replace(".000Z", "Z"), theirs.to_string());
        }
    }
}
