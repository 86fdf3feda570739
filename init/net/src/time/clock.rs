//! The machine's clocks.

use std::{
    fs::File,
    io,
    os::fd::AsRawFd,
    path::PathBuf,
    time::{SystemTime, UNIX_EPOCH},
};

use nix::{
    sys::time::TimeSpec,
    time::{ClockId, clock_settime},
};

use crate::NetError;

/// The hardware clock, which runs while the machine is off.
const RTC: &str = "/dev/rtc0";

/// The operations on a clock that time synchronisation needs. Tests implement their own.
pub trait AdjustableClock: Send + Sync + 'static {
    /// Unix time in nanoseconds.
    fn now_ns(&self) -> i64;
    /// Adds `offset_ns` to the clock at once.
    ///
    /// # Errors
    /// [`NetError::Clock`] if the process may not set the clock.
    fn step(&mut self, offset_ns: i64) -> Result<(), NetError>;
    /// Lets the clock run at most 0.05 % faster or slower until `offset_ns` is made up for.
    ///
    /// # Errors
    /// [`NetError::Clock`] if the process may not set the clock.
    fn slew(&mut self, offset_ns: i64) -> Result<(), NetError>;
    /// Sets the hardware clock to the time, if there is one.
    ///
    /// # Errors
    /// [`NetError::Clock`] if it exists and cannot be set.
    fn store(&mut self) -> Result<(), NetError>;
}

/// The system clock and `/dev/rtc0`.
#[derive(Clone, Debug)]
pub struct KernelClock {
    rtc: PathBuf,
}

impl Default for KernelClock {
    fn default() -> Self {
        Self { rtc: RTC.into() }
    }
}

impl AdjustableClock for KernelClock {
    fn now_ns(&self) -> i64 {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        since.as_nanos().try_into().unwrap_or(i64::MAX)
    }

    fn step(&mut self, offset_ns: i64) -> Result<(), NetError> {
        let time = self.now_ns().saturating_add(offset_ns).max(0);
        let time = TimeSpec::new(time / 1_000_000_000, time % 1_000_000_000);
        clock_settime(ClockId::CLOCK_REALTIME, time).map_err(|e| NetError::Clock(e.into()))?;
        // Setting the clock marks it as unsynchronised; status 0 clears STA_UNSYNC (adjtimex(2)).
        adjust(libc::ADJ_STATUS, 0)
    }

    fn slew(&mut self, offset_ns: i64) -> Result<(), NetError> {
        // The offset is in microseconds. It replaces the rest of an earlier call.
        adjust(libc::ADJ_OFFSET_SINGLESHOT, offset_ns / 1000)?;
        // The kernel reports the clock as synchronised to programs that ask (adjtimex(2)).
        adjust(libc::ADJ_STATUS, 0)
    }

    fn store(&mut self) -> Result<(), NetError> {
        let rtc = match File::open(&self.rtc) {
            Ok(rtc) => rtc,
            // Many virtual machines have no hardware clock.
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(NetError::Clock(e)),
        };
        let time = RtcTime::from_unix(self.now_ns() / 1_000_000_000);
        // SAFETY: the request takes a pointer to a `struct rtc_time`, which `RtcTime` is, and only
        // reads it.
        let done = unsafe { rtc_set_time(rtc.as_raw_fd(), &raw const time) };
        done.map(drop).map_err(|e| NetError::Clock(e.into()))
    }
}

fn adjust(modes: u32, offset_us: i64) -> Result<(), NetError> {
    // SAFETY: `timex` is plain numbers; all zeros is a valid value.
    let mut request: libc::timex = unsafe { std::mem::zeroed() };
    request.modes = modes;
    request.offset = offset_us;
    // SAFETY: the pointer is to a local `timex`, which lives across the call.
    match unsafe { libc::adjtimex(&raw mut request) } {
        -1 => Err(NetError::Clock(io::Error::last_os_error())),
        _ => Ok(()),
    }
}

nix::ioctl_write_ptr!(rtc_set_time, b'p', 0x0a, RtcTime);

/// `struct rtc_time` of linux/rtc.h: UTC, months from 0, years from 1900.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct RtcTime {
    sec: i32,
    min: i32,
    hour: i32,
    day: i32,
    month: i32,
    year: i32,
    weekday: i32,
    yearday: i32,
    daylight: i32,
}

impl RtcTime {
    /// Gregorian date of a Unix time, counting years from March so that the leap day is last.
    fn from_unix(secs: i64) -> Self {
        let (days, secs) = (secs.div_euclid(86_400), secs.rem_euclid(86_400));
        let days = days + 719_468;
        let era = days.div_euclid(146_097);
        let day_of_era = days.rem_euclid(146_097);
        let year_of_era =
            (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let from_march = (5 * day_of_year + 2) / 153;
        let month = (from_march + 2) % 12;
        let year = year_of_era + era * 400 + i64::from(month < 2);
        Self {
            sec: (secs % 60) as i32,
            min: (secs / 60 % 60) as i32,
            hour: (secs / 3600) as i32,
            day: (day_of_year - (153 * from_march + 2) / 5 + 1) as i32,
            month: month as i32,
            year: (year - 1900) as i32,
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_right_around_leap_days() {
        let date = |secs| {
            let t = RtcTime::from_unix(secs);
            (t.year + 1900, t.month + 1, t.day, t.hour, t.min, t.sec)
        };
        assert_eq!(date(0), (1970, 1, 1, 0, 0, 0));
        assert_eq!(date(951_782_399), (2000, 2, 28, 23, 59, 59));
        assert_eq!(date(951_782_400), (2000, 2, 29, 0, 0, 0));
        assert_eq!(date(951_868_800), (2000, 3, 1, 0, 0, 0));
        assert_eq!(date(1_795_132_800 + 3661), (2026, 11, 20, 1, 1, 1));
        assert_eq!(date(4_107_542_400), (2100, 3, 1, 0, 0, 0));
    }

    #[test]
    fn a_machine_without_rtc_is_fine() {
        let mut clock = KernelClock {
            rtc: "/nonexistent/rtc".into(),
        };
        assert!(clock.store().is_ok());
        assert!(clock.now_ns() > 1_700_000_000_000_000_000);
    }
}
