//! Rows of figures, in the one shape that every benchmark has.

use std::fmt;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde::Serialize;

use alknet_tasks::context::XtaskContext;
use alknet_tasks::image;

use super::not_met;

/// What the table says of a row that fails the run.
const MISSED: &str = "MISSED";

/// One figure, beside that of a peer where there is one.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct BenchRow {
    pub(super) bench: &'static str,
    pub(super) case: String,
    pub(super) unit: &'static str,
    pub(super) ours: f64,
    pub(super) peer: Option<f64>,
    pub(super) peer_name: Option<String>,
    /// Ours divided by the peer's.
    pub(super) ratio: Option<f64>,
    pub(super) better: BetterDirection,
    pub(super) goal: Option<Goal>,
}

/// Which direction is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum BetterDirection {
    Higher,
    Lower,
}

/// What was promised, at worst: of the figure itself, or of its ratio to the peer's.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Goal {
    Ours(f64),
    Ratio(f64),
}

impl BenchRow {
    /// A figure of which less is better, without a peer.
    pub(super) fn lower(
        bench: &'static str,
        case: impl Into<String>,
        unit: &'static str,
        ours: f64,
    ) -> Self {
        Self {
            bench,
            case: case.into(),
            unit,
            ours,
            peer: None,
            peer_name: None,
            ratio: None,
            better: BetterDirection::Lower,
            goal: None,
        }
    }

    /// A figure of which more is better, without a peer.
    pub(super) fn higher(
        bench: &'static str,
        case: impl Into<String>,
        unit: &'static str,
        ours: f64,
    ) -> Self {
        Self {
            better: BetterDirection::Higher,
            ..Self::lower(bench, case, unit, ours)
        }
    }

    /// Beside a peer's figure.
    pub(super) fn beside(mut self, name: &str, peer: f64) -> Self {
        self.peer = Some(peer);
        self.peer_name = Some(name.to_owned());
        self.ratio = Some(self.ours / peer);
        self
    }

    /// With what was promised.
    pub(super) fn goal(mut self, goal: Goal) -> Self {
        self.goal = Some(goal);
        self
    }

    /// The figure that is held against what was promised.
    pub(super) fn held(&self) -> Option<f64> {
        match self.goal? {
            Goal::Ours(_) => Some(self.ours),
            Goal::Ratio(_) => self.ratio,
        }
    }

    fn verdict(&self) -> &'static str {
        let good = |figure: f64, promised: f64| match self.better {
            BetterDirection::Higher => figure >= promised,
            BetterDirection::Lower => figure <= promised,
        };
        let Some(Goal::Ours(worst) | Goal::Ratio(worst)) = self.goal else {
            return "";
        };
        // A figure that is no number meets nothing: each comparison with one is false.
        let met = self.held().is_some_and(|figure| good(figure, worst));
        match (met, not_met::is_listed(self)) {
            (true, false) => "met",
            // Said, so that it is taken from the list.
            (true, true) => "met, listed as not met",
            (false, false) => MISSED,
            (false, true) => "not met, as listed",
        }
    }

    fn line(&self) -> String {
        let peer = self
            .peer
            .map_or_else(String::new, |peer| format!("{peer:.3}"));
        let ratio = self
            .ratio
            .map_or_else(String::new, |ratio| format!("{ratio:.3}"));
        let sign = match self.better {
            BetterDirection::Higher => ">=",
            BetterDirection::Lower => "<=",
        };
        let goal = match self.goal {
            None => String::new(),
            Some(Goal::Ours(worst)) => format!("{sign} {worst}"),
            Some(Goal::Ratio(worst)) => format!("ratio {sign} {worst}"),
        };
        format!(
            "{:8} {:44} {:>12.3} {:>12} {:>7} {:14} {:>14} {}\n",
            self.bench,
            self.case,
            self.ours,
            peer,
            ratio,
            self.unit,
            goal,
            self.verdict()
        )
    }
}

/// Where and with what the figures were taken.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct BenchHeader {
    machine: String,
    cores: usize,
    kernel: String,
    qemu: String,
    rustc: String,
    alknet: &'static str,
    git: String,
    date: String,
    rounds: usize,
    load_average: String,
}

impl BenchHeader {
    /// Asks this machine.
    pub(super) fn of_this_machine(cx: &XtaskContext, rounds: usize) -> Self {
        Self {
            machine: processor(&read("/proc/cpuinfo")),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            qemu: first_line(Command::new("qemu-system-x86_64").arg("--version")),
            rustc: first_line(Command::new("rustc").arg("--version")),
            alknet: env!("CARGO_PKG_VERSION"),
            git: image::commit(cx.root()),
            date: jiff::Timestamp::now().strftime("%F").to_string(),
            rounds,
            load_average: read("/proc/loadavg")
                .split(' ')
                .take(3)
                .collect::<Vec<_>>()
                .join(" "),
        }
    }
}

impl fmt::Display for BenchHeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} ({} processors), Linux {}, {}, {}, load {}",
            self.machine, self.cores, self.kernel, self.qemu, self.rustc, self.load_average
        )?;
        writeln!(
            f,
            "alknet {} of {}, {}, {} rounds",
            self.alknet, self.git, self.date, self.rounds
        )
    }
}

fn read(path: impl AsRef<Path>) -> String {
    // The header is for people: what is missing there stops no run.
    fs::read_to_string(path).unwrap_or_else(|_| "unknown".to_owned())
}

/// Its name, family and model: a virtual machine's name alone ("AMD EPYC") tells no two generations apart.
fn processor(cpuinfo: &str) -> String {
    let of = |field: &str| {
        let mut lines = cpuinfo.lines();
        lines.find_map(|line| {
            let (name, value) = line.split_once(':')?;
            (name.trim() == field).then(|| value.trim())
        })
    };
    match (of("model name"), of("cpu family"), of("model")) {
        (Some(name), Some(family), Some(model)) => {
            format!("{name}, family {family}, model {model}")
        }
        (Some(name), ..) => name.to_owned(),
        _ => "unknown".to_owned(),
    }
}

fn first_line(command: &mut Command) -> String {
    let text = command
        .output()
        .map(|output| output.stdout)
        .unwrap_or_else(|_| b"unknown".to_vec());
    String::from_utf8_lossy(&text)
        .lines()
        .next()
        .unwrap_or("unknown")
        .to_owned()
}

/// Everything a run measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct BenchReport {
    pub(super) header: BenchHeader,
    pub(super) rows: Vec<BenchRow>,
}

impl BenchReport {
    /// One JSON document.
    pub(super) fn json(&self) -> String {
        let text = serde_json::to_string_pretty(self);
        text.expect("texts, numbers and lists always have a JSON form") + "\n"
    }

    /// For people.
    pub(super) fn table(&self) -> String {
        let head = format!(
            "{:8} {:44} {:>12} {:>12} {:>7} {:14} {:>14}\n",
            "bench", "case", "ours", "peer", "ratio", "unit", "goal"
        );
        self.rows.iter().fold(head, |text, row| text + &row.line())
    }

    /// The rows whose bound was missed, except those that docs/SPECIFICATION.md says are not met.
    pub(super) fn missed(&self) -> Vec<String> {
        let missed = self.rows.iter().filter(|row| row.verdict() == MISSED);
        missed
            .map(|row| format!("{} {} ({})", row.bench, row.case, row.unit))
            .collect()
    }
}

/// The middle of the values; of an even number of them, the mean of the middle two.
pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(vec![]).is_nan());
    }

    #[test]
    fn a_row_has_the_agreed_fields() {
        let row = BenchRow::lower("boot", "a case", "CPU s", 1.0)
            .beside("debian", 4.0)
            .goal(Goal::Ratio(0.5));
        let json = serde_json::to_value(&row).expect("plain data");
        for field in [
            "bench",
            "case",
            "unit",
            "ours",
            "peer",
            "peer_name",
            "ratio",
            "better",
            "goal",
        ] {
            assert!(json.get(field).is_some(), "{field}");
        }
        assert_eq!(json["ratio"], 0.25);
        assert_eq!(json["better"], "lower");
        assert_eq!(row.verdict(), "met");
    }

    #[test]
    fn a_missed_goal_is_said() {
        let row = BenchRow::lower("boot", "c", "MB", 10.0).goal(Goal::Ours(9.0));
        assert!(row.line().contains("MISSED"));
        assert_eq!(BenchRow::lower("boot", "c", "MB", 10.0).verdict(), "");
        assert_eq!(
            BenchRow::lower("b", "c", "u", 1.0)
                .goal(Goal::Ratio(1.0))
                .verdict(),
            "MISSED"
        );
    }

    #[test]
    fn a_processor_is_named_with_its_generation() {
        let text = "processor\t: 0\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\n";
        assert_eq!(processor(text), "AMD EPYC, family 25, model 17");
        assert_eq!(processor("model name\t: Cortex\n"), "Cortex");
        assert_eq!(processor(""), "unknown");
    }

    #[test]
    fn more_can_be_better() {
        let row = |ours| {
            BenchRow::higher("b", "c", "calls/s", ours)
                .beside("peer", 2.0)
                .goal(Goal::Ratio(1.5))
        };
        assert_eq!(row(3.0).verdict(), "met");
        assert_eq!(row(2.0).verdict(), "MISSED");
        assert!(row(3.0).line().contains("ratio >= 1.5"));
    }
}
