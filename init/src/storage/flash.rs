//! What an eMMC reports about its life (JESD84-B51, section 7.4), as sysfs shows it.

use std::fs;
use std::path::Path;

use super::health::HealthReport;

/// The first value of the two estimates of life that says that the device has exceeded it.
const LIFE_EXCEEDED: u8 = 0x0b;
/// The value of `pre_eol_info` that says that almost all reserved blocks are used.
const PRE_EOL_URGENT: u8 = 0x03;
/// Percents of the life for each step of an estimate.
const STEP_PERCENT: u16 = 10;

/// Reads the two files of the device, which the kernel filled when it found the device.
pub(super) fn read(device: &Path) -> HealthReport {
    let text = |name| fs::read_to_string(device.join(name)).unwrap_or_default();
    parse(&text("life_time"), &text("pre_eol_info"))
}

/// Reads `life_time`, two numbers such as `0x01 0x02`, and `pre_eol_info`, one number.
pub(super) fn parse(life_time: &str, pre_eol_info: &str) -> HealthReport {
    // Zero means that the device does not say it.
    let estimates = life_time.split_whitespace().filter_map(number);
    let estimates: Vec<u8> = estimates.take(2).filter(|value| *value > 0).collect();
    let pre_eol = number(pre_eol_info.trim()).filter(|value| *value > 0);
    let life = estimates.iter().max().copied();
    let mut failing = Vec::new();
    if life.is_some_and(|life| life >= LIFE_EXCEEDED) {
        failing.push("the disk has exceeded the life that it is made for".to_owned());
    }
    if pre_eol.is_some_and(|value| value >= PRE_EOL_URGENT) {
        failing.push("almost all reserved blocks of the disk are used".to_owned());
    }
    HealthReport {
        is_answered: life.is_some() || pre_eol.is_some(),
        failing,
        wear_percent: life.map(|life| u16::from(life) * STEP_PERCENT),
        ..HealthReport::default()
    }
}

fn number(text: &str) -> Option<u8> {
    u8::from_str_radix(text.strip_prefix("0x")?, 16).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_larger_estimate_of_life_counts() {
        let report = parse("0x01 0x03\n", "0x01\n");
        assert_eq!(report.wear_percent, Some(30));
        assert!(report.is_answered && report.failing.is_empty());
    }

    #[test]
    fn a_life_that_is_over_and_used_reserves_are_failures() {
        assert_eq!(parse("0x0a 0x0a\n", "0x02\n").failing, [""; 0]);
        let life = "the disk has exceeded the life that it is made for";
        assert_eq!(parse("0x02 0x0b\n", "0x01\n").failing, [life]);
        let reserve = "almost all reserved blocks of the disk are used";
        assert_eq!(parse("0x01 0x01\n", "0x03\n").failing, [reserve]);
    }

    #[test]
    fn a_device_that_says_nothing_is_not_judged() {
        for (life, pre_eol) in [("", ""), ("0x00 0x00\n", "0x00\n"), ("eleven", "0x")] {
            assert_eq!(
                parse(life, pre_eol),
                HealthReport::default(),
                "{life:?} {pre_eol:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read(life in ".*", pre_eol in ".*") {
            prop_assert!(parse(&life, &pre_eol).failing.len() <= 2);
        }
    }
}
