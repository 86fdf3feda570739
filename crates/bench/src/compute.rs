//! How fast matrices are multiplied, by shaders and by the processor, beside burn-wgpu on the same driver
//! and NumPy's OpenBLAS; and how fast a shader goes through memory, beside a copy.
//!
//! Every round starts a process for each side and takes its fastest repetition, one side after the
//! other, so that a busy machine disturbs all of them alike.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::rows::{BenchRow, Goal, median};
use alknet_tasks::context::XtaskContext;
use alknet_tasks::driver::DriverSelection;
use alknet_tasks::failure::{Result, TaskError};
use alknet_tasks::{gpu, test, third_party};

/// Name of this benchmark in rows.
const BENCH: &str = "compute";

/// Sides of the matrices.
const SIDES: [u32; 4] = [256, 512, 1024, 2048];

/// The side at which the plain forms are measured too: they take minutes at larger ones.
const PLAIN_SIDE: u32 = 512;

/// Repetitions in each process.
const REPETITIONS: u32 = 5;

/// Promised figures.
mod goals {
    /// The processor's kernel, of OpenBLAS.
    pub(super) const HOST: f64 = 1.0;
    /// The shader, of one that computes one element in each invocation.
    pub(super) const SHADER: f64 = 4.0;
    /// The shader, of other people's on the same driver.
    pub(super) const PEER: f64 = 2.0;
}

/// The peer on the same driver: a workspace of its own (`compute/peer/Cargo.toml` says why).
const PEER_MANIFEST: &str = "compute/peer/Cargo.toml";
/// What it may be made of.
const PEER_LICENCES: &str = "compute/peer/deny.toml";
const PEER_PROGRAM: &str = "alknet-compute-peer";

/// What the peers are called in rows.
const BURN: &str = "burn-wgpu";
const OPENBLAS: &str = "OpenBLAS (NumPy)";
const NAIVE: &str = "naive shader";
const BLOCK: &str = "4×4 block shader";
const COPY: &str = "copy";

/// Marks the figure of a kernel for each second of processor time, which says something on a busy machine too.
const BUSY: &str = ", processor time";

const WORKER_BUSY: &str = "worker, processor time";
const BURN_BUSY: &str = "burn, processor time";

/// Figures by side, threads and kernel.
type Figures = BTreeMap<(u32, usize, String), Vec<f64>>;

/// Runs every measurement.
pub(super) fn run(cx: &mut XtaskContext, rounds: usize) -> Result<Vec<BenchRow>> {
    let program = gpu::ensure(cx, &DriverSelection::usual())?.executable;
    let peer = peer(cx)?;
    let packages = third_party::python_packages(cx)?;
    let all = std::thread::available_parallelism().map_or(1, usize::from);
    let mut threads = vec![1, all];
    // On a machine with one processor both are the same.
    threads.dedup();
    let mut figures = Figures::new();
    for _ in 0..rounds {
        for side in SIDES {
            for threads in threads.iter().copied() {
                let mut measured = ours(&program, side, threads)?;
                measured.extend(burn(&peer, side, threads)?);
                for (kernel, figure) in measured {
                    let key = (side, threads, kernel);
                    figures.entry(key).or_default().push(figure);
                }
                let key = (side, threads, OPENBLAS.to_owned());
                let figure = openblas(&packages, side, threads)?;
                figures.entry(key).or_default().push(figure);
            }
        }
    }
    Ok(rows(&figures, &threads))
}

fn ours(program: &Path, side: u32, threads: usize) -> Result<Vec<(String, f64)>> {
    let kernels = if side == PLAIN_SIDE {
        "naive,worker-block,worker,worker-end,host,memory"
    } else {
        "worker-block,worker,worker-end,host"
    };
    let threads = threads.to_string();
    let mut command = Command::new(program);
    command
        .args(["bench", "--side", &side.to_string()])
        .args(["--rounds", &REPETITIONS.to_string()])
        .args(["--threads", &threads, "--kernels", kernels])
        // A driver reads many variables: none of the caller's may change the figures.
        .env_clear()
        .env("LP_NUM_THREADS", &threads);
    let text = output(&mut command)?;
    figures_of(&text)
}

/// Builds the peer, once its libraries' licences are known to be such as any other's here: the project does
/// not distribute it, but its developers build it.
fn peer(cx: &XtaskContext) -> Result<PathBuf> {
    let mut deny = Command::new(test::deny_program(cx)?);
    deny.current_dir(cx.root())
        .args(["--manifest-path", PEER_MANIFEST, "--config", PEER_LICENCES])
        .args(["check", "licenses", "sources"]);
    cx.run(&mut deny, "licences of the benchmark's peer", "peer-deny")?;
    let target = cx.cache().join("peer");
    let mut cargo = cx.cargo("build");
    cargo
        .args(["--release", "--quiet", "--locked"])
        .args(["--manifest-path", PEER_MANIFEST])
        .env("CARGO_TARGET_DIR", &target);
    cx.run(&mut cargo, "build the benchmark's peer", "peer-build")?;
    Ok(target.join(cx.triple()).join("release").join(PEER_PROGRAM))
}

fn burn(program: &Path, side: u32, threads: usize) -> Result<Vec<(String, f64)>> {
    let mut command = Command::new(program);
    command
        .args([side.to_string(), REPETITIONS.to_string()])
        // As above: the peer is on the same driver.
        .env_clear()
        .env("LP_NUM_THREADS", threads.to_string());
    figures_of(&output(&mut command)?)
}

/// Each line of a program's: its kernel, and GFLOP/s or GB/s; and where it says so, GFLOP for each second of
/// processor time.
fn figures_of(text: &str) -> Result<Vec<(String, f64)>> {
    let mut figures = Vec::new();
    for line in text.lines() {
        // What is no JSON names no kernel, and is refused below.
        let row: Value = serde_json::from_str(line).unwrap_or_default();
        let figure = row["gflops"].as_f64().or_else(|| row["gb_s"].as_f64());
        let (Some(kernel), Some(figure)) = (row["kernel"].as_str(), figure) else {
            return Err(TaskError::Workspace(format!("a benchmark says {line}")));
        };
        figures.push((kernel.to_owned(), figure));
        if let Some(busy) = row["gflop_cpu_s"].as_f64() {
            figures.push((format!("{kernel}{BUSY}"), busy));
        }
    }
    Ok(figures)
}

fn openblas(packages: &Path, side: u32, threads: usize) -> Result<f64> {
    let mut command = Command::new("python3");
    command
        .args(["-c", include_str!("compute.py")])
        .args([side.to_string(), REPETITIONS.to_string()])
        .env("PYTHONPATH", packages)
        // Else it takes every processor.
        .env("OPENBLAS_NUM_THREADS", threads.to_string());
    let text = output(&mut command)?;
    let figure = text.trim().parse();
    figure.map_err(|_| TaskError::Workspace(format!("NumPy's figure is {text}")))
}

fn output(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .map_err(TaskError::io(format!("run {command:?}")))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(TaskError::Workspace(format!(
        "{command:?} ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    )))
}

fn rows(figures: &Figures, threads: &[usize]) -> Vec<BenchRow> {
    let mut rows = Vec::new();
    for threads in threads.iter().copied() {
        for side in SIDES {
            let of = |kernel: &str| {
                let key = (side, threads, kernel.to_owned());
                figures.get(&key).cloned().map(median)
            };
            let mut add = |case: &str, unit, ours: &str, peer: &str, goal: Option<f64>| {
                let theirs = of(match (peer, ours) {
                    (NAIVE, _) => "naive",
                    (BLOCK, _) => "worker-block",
                    (BURN, "worker-end") => "burn-end",
                    (BURN, "worker") => "burn",
                    (BURN, _) => BURN_BUSY,
                    (peer, _) => peer,
                });
                // The plain forms are measured at one side only.
                if let (Some(ours), Some(theirs)) = (of(ours), theirs) {
                    let case = format!("{case}, {}", thread_count(threads));
                    let row = BenchRow::higher(BENCH, case, unit, ours).beside(peer, theirs);
                    rows.push(match goal {
                        Some(goal) => row.goal(Goal::Ratio(goal)),
                        None => row,
                    });
                }
            };
            let shader = format!("matmul {side}: shader");
            let end = format!("matmul {side}: shader, end to end");
            let host = format!("matmul {side}: processor");
            add(&shader, "GFLOP/s", "worker", NAIVE, Some(goals::SHADER));
            add(&shader, "GFLOP/s", "worker", BLOCK, None);
            add(&shader, "GFLOP/s", "worker", BURN, Some(goals::PEER));
            add(&shader, "GFLOP/CPU s", WORKER_BUSY, BURN, Some(goals::PEER));
            add(&end, "GFLOP/s", "worker-end", BURN, Some(goals::PEER));
            add(&shader, "GFLOP/s", "worker", OPENBLAS, None);
            add(&host, "GFLOP/s", "host", OPENBLAS, Some(goals::HOST));
            add("32 MiB through a shader", "GB/s", "map", COPY, None);
        }
    }
    rows
}

fn thread_count(threads: usize) -> String {
    match threads {
        1 => "1 thread".to_owned(),
        threads => format!("{threads} threads"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_programs_are_figures() {
        let line =
            r#"{"kernel":"worker","side":256,"first_ms":1.0,"gflops":67.1,"gflop_cpu_s":40.5}"#;
        let figures = figures_of(line).expect("figures");
        let expected = [("worker", 67.1), (WORKER_BUSY, 40.5)];
        assert_eq!(
            figures,
            expected.map(|(name, figure)| (name.to_owned(), figure))
        );
        let line = r#"{"kernel":"map","bytes":1,"gb_s":2.5}"#;
        let figures = figures_of(line).expect("a figure");
        assert_eq!(figures, [("map".to_owned(), 2.5)]);
        assert!(figures_of("{}").is_err() && figures_of("no driver").is_err());
        assert_eq!(format!("burn{BUSY}"), BURN_BUSY);
    }

    #[test]
    fn every_figure_is_beside_its_peer() {
        let mut figures = Figures::new();
        let kernels = [
            "naive",
            "worker-block",
            "worker",
            "worker-end",
            WORKER_BUSY,
            "burn",
            "burn-end",
            BURN_BUSY,
            "host",
            "map",
            COPY,
            OPENBLAS,
        ];
        for kernel in kernels {
            let key = (PLAIN_SIDE, 1, kernel.to_owned());
            figures.insert(key, vec![2.0, 4.0, 3.0]);
        }
        let rows = rows(&figures, &[1]);
        assert_eq!(rows.len(), 8);
        assert!(
            rows.iter()
                .all(|row| row.ours == 3.0 && row.ratio == Some(1.0))
        );
        let promised = rows.iter().filter(|row| row.goal.is_some());
        assert_eq!(promised.count(), 5);
    }
}
