//! What a disk reports about itself, and what of it is a problem.

use crate::control::{DiskHealthFacts, MachineDiagnostic};

/// A disk that was made for more writes than it had has less than this wear, in percent.
const WORN_PERCENT: u16 = 100;

/// What a device reports about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct HealthReport {
    /// Whether the device reports its health at all.
    pub(super) is_answered: bool,
    /// Facts by which the device says that it fails.
    pub(super) failing: Vec<String>,
    /// The part of its life that is used, in percent. It may exceed 100.
    pub(super) wear_percent: Option<u16>,
    /// The spare capacity that is left, in percent.
    pub(super) spare_percent: Option<u8>,
    /// Errors of the medium that the device could not correct.
    pub(super) media_errors: Option<u64>,
    pub(super) power_on_hours: Option<u64>,
    pub(super) temperature_c: Option<i32>,
}

impl HealthReport {
    /// Adds the report to what is known of the disk.
    pub(super) fn add_to(self, disk: &mut DiskHealthFacts) {
        let mut failing = self.failing;
        if let Some(wear) = self.wear_percent.filter(|wear| *wear >= WORN_PERCENT)
            && failing.is_empty()
        {
            failing.push(format!("{wear} % of the disk's life are used"));
        }
        disk.health = match (failing.is_empty(), self.is_answered) {
            (false, _) => "failing",
            (true, true) => "ok",
            (true, false) => "unknown",
        }
        .to_owned();
        disk.failing = failing;
        disk.wear_percent = self.wear_percent;
        disk.spare_percent = self.spare_percent;
        disk.media_errors = self.media_errors;
        disk.power_on_hours = self.power_on_hours;
        disk.temperature_c = self.temperature_c;
    }
}

/// The problem of a disk that says that it fails.
pub(crate) fn disk_problem(disk: &DiskHealthFacts) -> Option<MachineDiagnostic> {
    if disk.failing.is_empty() {
        return None;
    }
    let mut named = format!("the disk {}", disk.name);
    if let Some(model) = &disk.model {
        named.push_str(&format!(" ({model}"));
        if let Some(end) = &disk.serial_end {
            named.push_str(&format!(", serial number …{end}"));
        }
        named.push(')');
    }
    Some(MachineDiagnostic {
        code: "disk-failing".to_owned(),
        text: format!("{named} reports that it fails: {}", disk.failing.join("; ")),
        hint: "make a backup now, and replace the disk".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk() -> DiskHealthFacts {
        DiskHealthFacts {
            name: "nvme0n1".to_owned(),
            model: Some("Example 970".to_owned()),
            serial_end: Some("12AB".to_owned()),
            ..DiskHealthFacts::default()
        }
    }

    #[test]
    fn a_failing_disk_is_named_with_its_facts() {
        let mut disk = disk();
        let report = HealthReport {
            is_answered: true,
            failing: vec!["it takes no more writes".to_owned()],
            wear_percent: Some(101),
            ..HealthReport::default()
        };
        report.add_to(&mut disk);
        assert_eq!(disk.health, "failing");
        let problem = disk_problem(&disk).expect("it fails");
        assert_eq!(problem.code, "disk-failing");
        assert_eq!(
            problem.text,
            "the disk nvme0n1 (Example 970, serial number …12AB) reports that it fails: it takes no more writes"
        );
    }

    #[test]
    fn a_used_life_alone_is_a_failure() {
        for (wear, health) in [(99, "ok"), (100, "failing"), (255, "failing")] {
            let mut disk = disk();
            let report = HealthReport {
                is_answered: true,
                wear_percent: Some(wear),
                ..HealthReport::default()
            };
            report.add_to(&mut disk);
            assert_eq!(disk.health, health, "{wear}");
            assert_eq!(disk_problem(&disk).is_some(), health == "failing");
        }
    }

    #[test]
    fn a_disk_without_a_report_is_not_judged() {
        let mut disk = disk();
        HealthReport::default().add_to(&mut disk);
        assert_eq!(disk.health, "unknown");
        assert_eq!(disk_problem(&disk), None);
    }
}
