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
    /// Whether the device is hotter or colder than it may be now.
    pub(super) temperature_warning: bool,
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
        disk.temperature_warning = self.temperature_warning;
        disk.wear_percent = self.wear_percent;
        disk.spare_percent = self.spare_percent;
        disk.media_errors = self.media_errors;
        disk.power_on_hours = self.power_on_hours;
        disk.temperature_c = self.temperature_c;
    }
}

/// The problems of a disk: it says that it fails, or that it is too hot or too cold.
pub(crate) fn disk_problems(disk: &DiskHealthFacts) -> Vec<MachineDiagnostic> {
    let named = disk_name(disk);
    let failing = (!disk.failing.is_empty()).then(|| MachineDiagnostic {
        code: "disk-failing".to_owned(),
        text: format!("{named} reports that it fails: {}", disk.failing.join("; ")),
        hint: "make a backup now, and replace the disk".to_owned(),
    });
    let heat = disk.temperature_warning.then(|| {
        let now = disk.temperature_c.map(|now| format!(" of {now} °C"));
        let now = now.unwrap_or_default();
        MachineDiagnostic {
            code: "disk-temperature".to_owned(),
            text: format!(
                "{named} reports that its temperature{now} is outside of what it is made for, so it works slowly or stops"
            ),
            hint: "cool the machine, or warm it: look at its fans and at the air around it; the problem ends when the disk \
                   takes the warning back"
                .to_owned(),
        }
    });
    failing.into_iter().chain(heat).collect()
}

/// The disk, so that a person finds it in the machine.
fn disk_name(disk: &DiskHealthFacts) -> String {
    let mut named = format!("the disk {}", disk.name);
    if let Some(model) = &disk.model {
        named.push_str(&format!(" ({model}"));
        if let Some(end) = &disk.serial_end {
            named.push_str(&format!(", serial number …{end}"));
        }
        named.push(')');
    }
    named
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
        let problems = disk_problems(&disk);
        let [problem] = problems.as_slice() else {
            panic!("one problem: {problems:?}");
        };
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
            assert_eq!(disk_problems(&disk).is_empty(), health == "ok");
        }
    }

    #[test]
    fn heat_is_a_problem_of_its_own() {
        let mut disk = disk();
        let report = HealthReport {
            is_answered: true,
            temperature_warning: true,
            temperature_c: Some(85),
            ..HealthReport::default()
        };
        report.add_to(&mut disk);
        assert_eq!(disk.health, "ok");
        let problems = disk_problems(&disk);
        let [problem] = problems.as_slice() else {
            panic!("one problem: {problems:?}");
        };
        assert_eq!(problem.code, "disk-temperature");
        assert!(problem.text.contains("85 °C"), "{}", problem.text);
        assert!(problem.hint.contains("fans"), "{}", problem.hint);
        assert!(!problem.hint.contains("replace"), "{}", problem.hint);
        HealthReport::default().add_to(&mut disk);
        assert_eq!(disk_problems(&disk), [], "it is cool again");
    }

    #[test]
    fn a_disk_without_a_report_is_not_judged() {
        let mut disk = disk();
        HealthReport::default().add_to(&mut disk);
        assert_eq!(disk.health, "unknown");
        assert_eq!(disk_problems(&disk), []);
    }
}
