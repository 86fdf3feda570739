//! Scripts: what an engine costs to make and a call out of it to answer, beside the engine alone; a
//! session in a worker, from inside the node and over the network; what idle sessions hold, and what a
//! mapped tensor does before a program reads it.
//!
//! Engines are measured in this process and sessions in workers of the built binary, in turns. Time on
//! the clock moves with whatever else the machine does; processor time hardly does.

mod engine;
mod lab;
mod memory;

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;

use self::lab::SessionBench;
use super::call::measure::failed;
use super::call::sides::SideRuntimes;
use super::rows::{BenchRow, Goal, median};
use alknet_tasks::binary;
use alknet_tasks::context::XtaskContext;
use alknet_tasks::failure::{Result, TaskError};

const BENCH: &str = "runtime";
/// What the engine alone is called in rows: rquickjs with a context of its own making.
const ENGINE: &str = "rquickjs alone";
const NODE: &str = "node -e";

/// Engines made in each round.
const CONTEXTS: u32 = 100;
/// Calls of a script's in each round, in this process.
const CALLS: u32 = 20_000;
/// The same from a worker, each of which goes to the node and back.
const CALLS_OUT: u32 = 1_000;
/// Sessions opened and closed in each round.
const SESSIONS: u32 = 50;
/// Processes of the peer in each round.
const PROCESSES: u32 = 3;
/// Sessions that are open at once.
const IDLE: usize = 1_000;

/// Promised figures.
mod goals {
    /// A context, in a thread that made one before.
    pub(super) const CONTEXT_MS: f64 = 1.0;
    /// What a thousand idle sessions may hold.
    pub(super) const IDLE_MIB: f64 = 1024.0;
    /// What opening a tensor may add before it is touched.
    pub(super) const TENSOR_MIB: f64 = 4.0;
}

/// What is measured, as rows name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum RuntimeCase {
    Context,
    ContextAlone,
    Rust,
    RustAlone,
    Call,
    CallAlone,
    CallOut,
    Session,
    Eval,
    EvalNode,
    Idle,
    IdleProcess,
    TensorOpened,
    TensorTouched,
}

/// One figure: by the clock, and of the processors where they were measured.
#[derive(Clone, Copy, Debug)]
struct RuntimeSample {
    value: f64,
    cpu: f64,
}

impl RuntimeSample {
    /// A figure that is no time.
    const fn plain(value: f64) -> Self {
        Self {
            value,
            cpu: f64::NAN,
        }
    }
}

type Samples = BTreeMap<RuntimeCase, Vec<RuntimeSample>>;

/// Measures; what takes memory is measured once, since it does not move.
pub(super) fn run(cx: &mut XtaskContext, rounds: usize) -> Result<Vec<BenchRow>> {
    let program = binary::plain(cx)?;
    let sides = SideRuntimes::new()?;
    let mut samples = Samples::new();
    let tensor = memory::TensorFile::make()?;
    sides.client.block_on(async {
        let mut lab = SessionBench::start(&sides, &program, &tensor.path()).await?;
        for round in 1..=rounds {
            eprintln!("round {round} of {rounds} ...");
            let mut add = |case, sample| samples.entry(case).or_default().push(sample);
            for (case, sample) in engine::round()? {
                add(case, sample);
            }
            add(RuntimeCase::Session, lab.sessions(SESSIONS).await?);
            add(RuntimeCase::CallOut, lab.calls(CALLS_OUT).await?);
            add(RuntimeCase::Eval, lab.evals(SESSIONS).await?);
            add(RuntimeCase::EvalNode, node()?);
        }
        let mut add = |case, mib| {
            samples
                .entry(case)
                .or_default()
                .push(RuntimeSample::plain(mib))
        };
        let (opened, touched) = memory::tensor(&mut lab).await?;
        add(RuntimeCase::TensorOpened, opened);
        add(RuntimeCase::TensorTouched, touched);
        let held = memory::idle(&mut lab, IDLE).await?;
        add(RuntimeCase::Idle, held.all_mib);
        add(RuntimeCase::IdleProcess, held.worker_mib);
        Ok::<(), TaskError>(())
    })?;
    Ok(rows(&samples))
}

/// Times `work`, which does so many of what is asked about.
async fn timed(count: u32, work: impl Future<Output = Result<()>>) -> Result<RuntimeSample> {
    let (begun, before) = (Instant::now(), cpu()?);
    work.await?;
    let each = |whole: Duration| whole.as_secs_f64() / f64::from(count);
    Ok(RuntimeSample {
        value: each(begun.elapsed()),
        cpu: each(cpu()?.saturating_sub(before)),
    })
}

/// Processor time of this process, the kernel's part included.
fn cpu() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_SELF);
    let usage = usage.map_err(failed("reading the processor time"))?;
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Ok(Duration::from_micros(u64::try_from(micros).unwrap_or(0)))
}

/// The other way to keep scripts apart: a process of an engine for each.
fn node() -> Result<RuntimeSample> {
    let begun = Instant::now();
    for _ in 0..PROCESSES {
        let status = Command::new("node")
            .args(["-e", "console.log(6 * 7)"])
            .stdout(Stdio::null())
            .status()
            .map_err(TaskError::io("run node"))?;
        if !status.success() {
            return Err(failed("node")(status));
        }
    }
    let each = begun.elapsed().as_secs_f64() / f64::from(PROCESSES);
    Ok(RuntimeSample::plain(each))
}

fn rows(samples: &Samples) -> Vec<BenchRow> {
    let of = |case: RuntimeCase, part: fn(&RuntimeSample) -> f64| {
        let all = samples.get(&case).into_iter().flatten();
        median(all.map(part).collect())
    };
    let value = |case| of(case, |sample| sample.value);
    let cpu = |case| of(case, |sample| sample.cpu);
    let lower = |case: &str, unit, ours| BenchRow::lower(BENCH, case, unit, ours);
    let (ms, us, ns) = (1e3, 1e6, 1e9);
    let context = "an engine with its limits and globals";
    let idle = value(RuntimeCase::Idle);
    vec![
        lower(context, "ms", value(RuntimeCase::Context) * ms)
            .beside(ENGINE, value(RuntimeCase::ContextAlone) * ms)
            .goal(Goal::Ours(goals::CONTEXT_MS)),
        lower(context, "CPU ms", cpu(RuntimeCase::Context) * ms)
            .beside(ENGINE, cpu(RuntimeCase::ContextAlone) * ms)
            .goal(Goal::Ours(goals::CONTEXT_MS)),
        lower(
            "a function of Rust's",
            "CPU ns",
            cpu(RuntimeCase::Rust) * ns,
        )
        .beside(ENGINE, cpu(RuntimeCase::RustAlone) * ns),
        lower(
            "an operation, answered at once",
            "CPU us",
            cpu(RuntimeCase::Call) * us,
        )
        .beside(ENGINE, cpu(RuntimeCase::CallAlone) * us),
        lower(
            "an operation, from a worker",
            "us",
            value(RuntimeCase::CallOut) * us,
        ),
        lower(
            "a session in a ready worker, answered",
            "ms",
            value(RuntimeCase::Session) * ms,
        ),
        lower(
            "runtime/eval of a line, QUIC",
            "ms",
            value(RuntimeCase::Eval) * ms,
        )
        .beside(NODE, value(RuntimeCase::EvalNode) * ms),
        lower("1,000 idle sessions", "MiB", idle).goal(Goal::Ours(goals::IDLE_MIB)),
        BenchRow::higher(BENCH, "idle sessions", "a GiB", 1024.0 / idle * IDLE as f64),
        lower(
            "a worker with 16 of them",
            "MiB",
            value(RuntimeCase::IdleProcess),
        ),
        lower(
            "256 MiB of tensor, opened",
            "MiB",
            value(RuntimeCase::TensorOpened),
        )
        .goal(Goal::Ours(goals::TENSOR_MIB)),
        lower(
            "256 MiB of tensor, read",
            "MiB",
            value(RuntimeCase::TensorTouched),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_figure_has_its_row() {
        let mut samples = Samples::new();
        for case in [
            RuntimeCase::Context,
            RuntimeCase::ContextAlone,
            RuntimeCase::Idle,
        ] {
            let sample = |value| RuntimeSample { value, cpu: value };
            samples.insert(case, vec![sample(0.0005), sample(0.0007), sample(0.0006)]);
        }
        let rows = rows(&samples);
        assert_eq!(rows.len(), 12);
        assert!((rows[0].ours - 0.6).abs() < 1e-9 && rows[0].ratio == Some(1.0));
        assert_eq!(rows.iter().filter(|row| row.goal.is_some()).count(), 4);
    }
}
