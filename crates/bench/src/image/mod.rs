//! What an image takes, beside a minimal Debian with one server: bytes to upload, time to make it and to write it, and
//! from power-on to the first answer. And what each form takes to make, and our disk from power-on by its own loader.
//!
//! Both machines have the same QEMU, machine type, memory and processor, and both are emulated. Debian's disk has no boot
//! loader, so the boots by a loader have no peer. LinuxKit's minimal image is not measured: its packages are container
//! images of a registry, and no Debian package has them.

mod debian;
mod machines;

use alknet_image::{ImageForm, OutputRole};
use alknet_tasks::context::XtaskContext;
use alknet_tasks::failure::Result;

use self::machines::{ImageBench, ImageRound};
use super::rows::{BenchRow, Goal, median};
use crate::work_cost::WorkCost;

/// Name of this benchmark in rows.
const BENCH: &str = "image";

/// The name of the peer in rows.
const DEBIAN: &str = "minimal Debian 12 with nginx";

/// Most rounds, because each makes a Debian from its packages, which takes minutes.
const ROUNDS_MAX: usize = 3;

/// Each figure may be so much of Debian's; docs/SPECIFICATION.md quotes it.
const OF_DEBIAN: f64 = 0.5;

const MEGA: f64 = 1e6;

/// Makes each form once, and measures each round one image of both, one boot of each, and two of ours by a loader.
pub(super) fn run(cx: &mut XtaskContext, rounds: usize) -> Result<Vec<BenchRow>> {
    cx.install_peers()?;
    eprintln!("not measured: LinuxKit, whose packages no Debian package has");
    eprintln!(
        "not measured: Debian by a boot loader, which the system of mmdebstrap does not have"
    );
    let bench = ImageBench::prepare(cx)?;
    eprintln!("each form by itself ...");
    let made = bench.make_forms(cx)?;
    let mut figures = Vec::new();
    let rounds = rounds.min(ROUNDS_MAX);
    for round in 1..=rounds {
        eprintln!("round {round} of {rounds} ...");
        figures.push(bench.measure(cx)?);
    }
    let mut rows = form_rows(&bench);
    rows.extend(made.into_iter().flat_map(made_rows));
    rows.extend(rows_of(&figures));
    rows.extend(loader_rows(&figures));
    Ok(rows)
}

/// Bytes of each form, without the bill of materials that all forms share.
fn form_rows(bench: &ImageBench) -> Vec<BenchRow> {
    let outputs = &bench.image.manifest.outputs;
    let row = |form: ImageForm| {
        let files = outputs.iter();
        let files = files.filter(|file| file.form == form && file.role != OutputRole::Sbom);
        let bytes: u64 = files.map(|file| file.bytes).sum();
        BenchRow::lower(BENCH, format!("bytes of {form}"), "MB", bytes as f64 / MEGA)
    };
    ImageForm::ALL.into_iter().map(row).collect()
}

/// What one form takes to make by itself.
fn made_rows((form, cost): (ImageForm, WorkCost)) -> [BenchRow; 2] {
    let row = |unit, figure| BenchRow::lower(BENCH, format!("make {form} alone"), unit, figure);
    [row("CPU s", cost.cpu_s), row("s wall", cost.wall_s)]
}

/// A figure of one side of a round.
type FigureOf = fn(&ImageRound) -> f64;

fn rows_of(rounds: &[ImageRound]) -> Vec<BenchRow> {
    let row = |case: &str, unit: &'static str, ours: FigureOf, theirs: FigureOf| {
        let middle = |of: FigureOf| median(rounds.iter().map(of).collect());
        BenchRow::lower(BENCH, case, unit, middle(ours)).beside(DEBIAN, middle(theirs))
    };
    let goal = Goal::Ratio(OF_DEBIAN);
    let (upload, make, write, boot) = (
        "disk to upload, by zstd -19",
        "make the disk from its parts",
        "write the packed disk to a file",
        "q35: power-on to first answer",
    );
    vec![
        row(
            upload,
            "MB",
            |it| it.ours.packed_mb,
            |it| it.debian.packed_mb,
        )
        .goal(goal),
        row(
            make,
            "CPU s",
            |it| it.ours.made.cpu_s,
            |it| it.debian.made.cpu_s,
        )
        .goal(goal),
        row(
            make,
            "s wall",
            |it| it.ours.made.wall_s,
            |it| it.debian.made.wall_s,
        ),
        row(
            write,
            "CPU s",
            |it| it.ours.written.cpu_s,
            |it| it.debian.written.cpu_s,
        ),
        row(
            write,
            "s wall",
            |it| it.ours.written.wall_s,
            |it| it.debian.written.wall_s,
        )
        .goal(goal),
        row(
            boot,
            "CPU s",
            |it| it.ours.answered.cpu_s,
            |it| it.debian.answered.cpu_s,
        )
        .goal(goal),
        row(
            boot,
            "s wall",
            |it| it.ours.answered.wall_s,
            |it| it.debian.answered.wall_s,
        ),
    ]
}

/// Our disk by its own loaders. Debian's disk has none.
fn loader_rows(rounds: &[ImageRound]) -> [BenchRow; 4] {
    let row = |case: &str, unit: &'static str, of: FigureOf| {
        BenchRow::lower(BENCH, case, unit, median(rounds.iter().map(of).collect()))
    };
    let (uefi, bios) = (
        "q35, UEFI: power-on to first answer by the disk's loader",
        "q35, BIOS: power-on to first answer by the disk's GRUB",
    );
    [
        row(uefi, "CPU s", |it| it.by_loader.uefi.cpu_s),
        row(uefi, "s wall", |it| it.by_loader.uefi.wall_s),
        row(bios, "CPU s", |it| it.by_loader.bios.cpu_s),
        row(bios, "s wall", |it| it.by_loader.bios.wall_s),
    ]
}

#[cfg(test)]
mod tests {
    use super::machines::{ImageSide, LoaderBoots};
    use super::*;

    fn cost(cpu_s: f64) -> WorkCost {
        WorkCost {
            wall_s: cpu_s * 10.0,
            cpu_s,
        }
    }

    fn side(each: f64) -> ImageSide {
        ImageSide {
            packed_mb: each,
            made: cost(each + 1.0),
            written: cost(each + 2.0),
            answered: cost(each + 3.0),
        }
    }

    #[test]
    fn each_row_compares_the_same_figure_of_both() {
        let round = ImageRound {
            ours: side(1.0),
            debian: side(5.0),
            by_loader: LoaderBoots {
                uefi: cost(11.0),
                bios: cost(12.0),
            },
        };
        let figures = |row: &BenchRow| (row.ours, row.peer);
        let by_loader = loader_rows(&[round]);
        let by_loader: Vec<_> = by_loader.iter().map(figures).collect();
        assert_eq!(
            by_loader,
            [(11.0, None), (110.0, None), (12.0, None), (120.0, None)]
        );
        let rows = rows_of(&[round]);
        let all: Vec<_> = rows.iter().map(figures).collect();
        assert_eq!(
            all,
            [
                (1.0, Some(5.0)),
                (2.0, Some(6.0)),
                (20.0, Some(60.0)),
                (3.0, Some(7.0)),
                (30.0, Some(70.0)),
                (4.0, Some(8.0)),
                (40.0, Some(80.0)),
            ]
        );
        let bounded = rows.iter().filter(|row| row.goal.is_some());
        let units: Vec<_> = bounded.map(|row| row.unit).collect();
        assert_eq!(units, ["MB", "CPU s", "s wall", "CPU s"]);
    }

    #[test]
    fn each_form_has_a_row_of_each_time() {
        let rows = made_rows((ImageForm::Iso, cost(2.0)));
        let figures = rows.map(|row| (row.case, row.unit, row.ours));
        let case = || "make iso alone".to_owned();
        assert_eq!(figures, [(case(), "CPU s", 2.0), (case(), "s wall", 20.0)]);
    }
}
