//! What a boot costs: ours to the first answered call, and a Debian kernel to an empty init.
//!
//! Costs are processor seconds of QEMU and instructions of the guest, which do not depend on how
//! loaded the host is; wall time stands beside them. Counting instructions slows the guest and
//! changes its clock, so those are runs of their own.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use alknet_image::{Form, Role};
use alknet_qemu::{Accel, MachineKind, Vm, VmBuilder};

use super::empty;
use super::rows::{Goal, Row, median};
use crate::binary;
use crate::context::Context;
use crate::driver::Selection;
use crate::failure::{Failure, Result};
use crate::image::{self, Image};
use crate::kernel::{self, Kernel};
use crate::node::{self, Cli, Machine, Reached};
use crate::sources;

/// Name of this benchmark in rows.
const BENCH: &str = "boot";

/// What the peer is called in rows.
const DEBIAN: &str = "Debian cloud kernel, empty init";

/// Command line of Debian's kernel: what it needs to be heard, and nothing to hurry it.
const DEBIAN_CMDLINE: &str = "console=ttyS0 quiet panic=10";

/// Longest wait for the empty init, on a processor that runs guests itself.
const EMPTY_WITHIN: Duration = Duration::from_secs(9);

/// Times that Debian's kernel is started before it is given up: now and then it never finds out how
/// fast a counted guest's clock runs. Ours has to get there the first time.
const DEBIAN_ATTEMPTS: u32 = 3;

/// The smallest machine that is promised to serve, in MiB.
const SMALL_MIB: u32 = 128;

/// How long a machine rests before its memory is read: past every start-up task.
const IDLE_AFTER: Duration = Duration::from_secs(5);

const MEGA: f64 = 1e6;

/// Promised figures; docs/SPECIFICATION.md quotes them.
mod goals {
    pub(super) const Q35_OF_DEBIAN: f64 = 0.5;
    pub(super) const MICROVM_CPU_S: f64 = 1.0;
    pub(super) const MICROVM_MINSN: f64 = 250.0;
    pub(super) const INIT_MINSN: f64 = 125.0;
    pub(super) const HOST_MS: f64 = 150.0;
    pub(super) const KERNEL_MB: f64 = 9.0;
    pub(super) const IMAGE_MB: f64 = 40.0;
    pub(super) const IDLE_MB: f64 = 40.0;
}

/// One thing that is booted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Case {
    /// Our image on q35, to the answered call.
    Q35,
    /// Our image on microvm, to the answered call.
    Microvm,
    /// Our kernel on q35, to the empty init.
    Q35Empty,
    /// Our kernel on microvm, to the empty init.
    MicrovmEmpty,
    /// Debian's kernel on q35, to the empty init.
    Debian,
}

const CASES: [Case; 5] = [
    Case::Q35,
    Case::Debian,
    Case::Microvm,
    Case::Q35Empty,
    Case::MicrovmEmpty,
];

/// What one boot cost.
#[derive(Clone, Copy, Debug)]
struct Cost {
    cpu_s: f64,
    wall_s: f64,
    minsn: Option<f64>,
}

/// Measures every case in turn, as often as asked.
pub(super) fn run(cx: &mut Context, rounds: usize) -> Result<Vec<Row>> {
    let bench = Bench::prepare(cx)?;
    let mut costs: BTreeMap<Case, Vec<Cost>> = BTreeMap::new();
    let mut host_ms = Vec::new();
    for round in 1..=rounds {
        eprintln!("round {round} of {rounds} ...");
        for counted in [false, true] {
            for case in CASES {
                costs
                    .entry(case)
                    .or_default()
                    .push(bench.boot_at_last(case, counted)?);
            }
        }
        host_ms.push(bench.host_ms()?);
    }
    let mut rows = cost_rows(&costs);
    rows.push(
        Row::lower(
            BENCH,
            "host: node start to answered call",
            "ms wall",
            median(host_ms),
        )
        .goal(Goal::Ours(goals::HOST_MS)),
    );
    rows.extend(bench.size_rows()?);
    rows.extend(bench.memory_rows()?);
    Ok(rows)
}

fn cost_rows(costs: &BTreeMap<Case, Vec<Cost>>) -> Vec<Row> {
    let plain = |case: Case, what: fn(&Cost) -> f64| {
        let all = costs.get(&case).into_iter().flatten();
        median(all.filter(|cost| cost.minsn.is_none()).map(what).collect())
    };
    let counted = |case: Case| {
        let all = costs.get(&case).into_iter().flatten();
        median(all.filter_map(|cost| cost.minsn).collect())
    };
    let cpu = |case| plain(case, |cost| cost.cpu_s);
    let wall = |case| plain(case, |cost| cost.wall_s);
    let row = |case: &str, unit, ours| Row::lower(BENCH, case, unit, ours);
    vec![
        row("q35: power-on to answered call", "CPU s", cpu(Case::Q35))
            .beside(DEBIAN, cpu(Case::Debian))
            .goal(Goal::Ratio(goals::Q35_OF_DEBIAN)),
        row(
            "q35: power-on to answered call",
            "M instructions",
            counted(Case::Q35),
        )
        .beside(DEBIAN, counted(Case::Debian))
        .goal(Goal::Ratio(goals::Q35_OF_DEBIAN)),
        row("q35: power-on to answered call", "s wall", wall(Case::Q35))
            .beside(DEBIAN, wall(Case::Debian)),
        row("q35: power-on to empty init", "CPU s", cpu(Case::Q35Empty))
            .beside(DEBIAN, cpu(Case::Debian)),
        row(
            "q35: power-on to empty init",
            "M instructions",
            counted(Case::Q35Empty),
        )
        .beside(DEBIAN, counted(Case::Debian)),
        row(
            "microvm: power-on to answered call",
            "CPU s",
            cpu(Case::Microvm),
        )
        .goal(Goal::Ours(goals::MICROVM_CPU_S)),
        row(
            "microvm: power-on to answered call",
            "M instructions",
            counted(Case::Microvm),
        )
        .goal(Goal::Ours(goals::MICROVM_MINSN)),
        row(
            "microvm: power-on to answered call",
            "s wall",
            wall(Case::Microvm),
        ),
        row(
            "microvm: power-on to empty init",
            "CPU s",
            cpu(Case::MicrovmEmpty),
        ),
        row(
            "microvm: power-on to empty init",
            "M instructions",
            counted(Case::MicrovmEmpty),
        )
        .goal(Goal::Ours(goals::INIT_MINSN)),
    ]
}

/// Everything the runs need, made once.
struct Bench {
    kernel: Kernel,
    image: Image,
    debian: PathBuf,
    empty: PathBuf,
    cli: Cli,
    admin: String,
    binary: PathBuf,
    scratch: tempfile::TempDir,
}

impl Bench {
    fn prepare(cx: &Context) -> Result<Self> {
        let scratch =
            tempfile::tempdir().map_err(Failure::io("make a folder for the benchmark"))?;
        let kernel = kernel::ensure(cx)?;
        let binary = binary::whole(cx, &Selection::usual())?;
        let image = image::ensure(
            cx,
            &kernel,
            &binary,
            &[Form::Direct, Form::Erofs, Form::Uki],
        )?;
        let cli = Cli::new(cx, Some(&scratch.path().join("cli")))?;
        Ok(Self {
            debian: sources::obtain(cx, "debian-cloud-kernel")?.path,
            empty: empty::initramfs(scratch.path())?,
            admin: cli.identity()?,
            binary,
            kernel,
            image,
            cli,
            scratch,
        })
    }

    fn boot_at_last(&self, case: Case, counted: bool) -> Result<Cost> {
        let mut attempt = 1;
        loop {
            match self.boot(case, counted) {
                Err(error) if case == Case::Debian && attempt < DEBIAN_ATTEMPTS => {
                    eprintln!("{case:?} again: {error}");
                }
                result => return result,
            }
            attempt += 1;
        }
    }

    fn boot(&self, case: Case, counted: bool) -> Result<Cost> {
        let builder = self.builder(case)?.accel(Accel::Tcg);
        let builder = if counted {
            builder.count_instructions()
        } else {
            builder
        };
        let started = Instant::now();
        let mut vm = builder.start()?;
        let cost = match case {
            Case::Q35 | Case::Microvm => self.answered(&vm, started)?,
            Case::Debian | Case::MicrovmEmpty | Case::Q35Empty => reached_empty(&vm)?,
        };
        vm.cut_power()?;
        Ok(cost)
    }

    fn builder(&self, case: Case) -> Result<VmBuilder> {
        match case {
            Case::Q35 => self.ours(Form::Direct, Machine::Q35),
            Case::Microvm => self.ours(Form::Erofs, Machine::Microvm),
            Case::Q35Empty => {
                let kernel = &self.kernel.bzimage;
                Ok(self.with_empty(MachineKind::Q35, kernel, image::CMDLINE))
            }
            Case::MicrovmEmpty => {
                let kernel = &self.kernel.vmlinux;
                Ok(self.with_empty(MachineKind::Microvm, kernel, image::CMDLINE))
            }
            Case::Debian => Ok(self.with_empty(MachineKind::Q35, &self.debian, DEBIAN_CMDLINE)),
        }
    }

    /// Our image as it is shipped, without a data disk.
    fn ours(&self, form: Form, machine: Machine) -> Result<VmBuilder> {
        node::builder(&self.image, &self.kernel, form, machine, &self.admin)
    }

    fn with_empty(&self, kind: MachineKind, kernel: &Path, line: &str) -> VmBuilder {
        Vm::builder(kind)
            .kernel(kernel)
            .initrd(&self.empty)
            .append(line)
    }

    fn answered(&self, vm: &Vm, started: Instant) -> Result<Cost> {
        let node = node::wait_ready(vm)?;
        self.cli.call(&node, "node/info")?;
        Ok(Cost {
            cpu_s: vm.cpu_time().unwrap_or_default().as_secs_f64(),
            wall_s: started.elapsed().as_secs_f64(),
            minsn: vm.instructions().map(|count| count as f64 / MEGA),
        })
    }

    /// The same node on the host: from its start to its first answer.
    fn host_ms(&self) -> Result<f64> {
        let state = tempfile::tempdir_in(self.scratch.path())
            .map_err(Failure::io("make a state folder"))?;
        let own = Cli::at(&self.binary, state.path());
        // The identity is made once in a node's life, not at each start: the first one is not
        // measured.
        self.serve_and_call(&own)?;
        Ok(self.serve_and_call(&own)?.as_secs_f64() * 1e3)
    }

    fn serve_and_call(&self, own: &Cli) -> Result<Duration> {
        let mut serve = own.command("serve");
        serve.args(["--json", "--port", "0", "--listen", "127.0.0.1"]);
        serve.args(["--admin", &self.admin]);
        let started = Instant::now();
        let child = serve
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let mut child = Ended(child.map_err(Failure::io("start the node"))?);
        let mut line = String::new();
        if let Some(said) = child.0.stdout.take() {
            let read = BufReader::new(said).read_line(&mut line);
            read.map_err(Failure::io("read what the node says"))?;
        }
        let node = Reached::of_serve(&line).ok_or_else(|| Failure::Step {
            what: "starting the node".into(),
            how: format!("it says no target: '{}'", line.trim()),
            log: None,
        })?;
        self.cli.call(&node, "node/info")?;
        Ok(started.elapsed())
    }

    fn size_rows(&self) -> Result<Vec<Row>> {
        let size = |path: &Path| {
            let data =
                std::fs::metadata(path).map_err(Failure::io(format!("read {}", path.display())))?;
            Ok::<f64, Failure>(data.len() as f64 / MEGA)
        };
        let stripped = self.scratch.path().join("stripped");
        strip(&self.binary, &stripped)?;
        let file = |form, role| {
            let path = self.image.manifest.path(&self.image.folder, form, role);
            path.ok_or_else(|| Failure::Arguments(format!("no {role:?} in the {form} image")))
        };
        let row = |case: &str, ours| Row::lower(BENCH, case, "MB", ours);
        Ok(vec![
            row("kernel (bzImage)", size(&self.kernel.bzimage)?)
                .beside(
                    "Debian cloud kernel, without its modules",
                    size(&self.debian)?,
                )
                .goal(Goal::Ours(goals::KERNEL_MB)),
            row("binary, stripped", size(&stripped)?),
            row(
                "image: unified kernel image",
                size(&file(Form::Uki, Role::Uki)?)?,
            )
            .goal(Goal::Ours(goals::IMAGE_MB)),
            row(
                "image: initramfs",
                size(&file(Form::Direct, Role::Initrd)?)?,
            ),
            row("image: erofs root", size(&file(Form::Erofs, Role::Root)?)?),
        ])
    }

    /// Memory of an idle machine with as little as is promised to be enough.
    fn memory_rows(&self) -> Result<Vec<Row>> {
        let mut vm = self
            .ours(Form::Erofs, Machine::Microvm)?
            .memory_mib(SMALL_MIB)
            .start()?;
        let node = node::wait_ready(&vm)?;
        std::thread::sleep(IDLE_AFTER);
        let answer = self.cli.call(&node, "node/info")?;
        vm.cut_power()?;
        let memory = Memory::of_info(&answer)?;
        let row = |case: &str, bytes: f64| Row::lower(BENCH, case, "MB", bytes / MEGA);
        Ok(vec![
            row(
                "idle in 128 MiB: memory in use (total less available)",
                memory.in_use(),
            ),
            row("idle in 128 MiB: node resident", memory.node_resident_bytes)
                .goal(Goal::Ours(goals::IDLE_MB)),
        ])
    }
}

fn reached_empty(vm: &Vm) -> Result<Cost> {
    vm.wait_for(empty::SAYS, EMPTY_WITHIN)?;
    // The stamp of the line, not of now: the machine went on meanwhile.
    vm.wait_for("\n", EMPTY_WITHIN)?;
    let line = vm.console().find(empty::SAYS);
    let (cpu, wall, count) = line.map_or_else(
        || {
            (
                vm.cpu_time().unwrap_or_default(),
                Duration::ZERO,
                vm.instructions(),
            )
        },
        |line| (line.cpu, line.at, line.instructions),
    );
    Ok(Cost {
        cpu_s: cpu.as_secs_f64(),
        wall_s: wall.as_secs_f64(),
        minsn: count.map(|count| count as f64 / MEGA),
    })
}

/// A process that is ended and waited for when this is dropped.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // It may have ended by itself, which is just as well.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn strip(from: &Path, to: &Path) -> Result<()> {
    let status = Command::new("strip").arg("-o").args([to, from]).status();
    let status = status.map_err(Failure::io("run strip"))?;
    if status.success() {
        return Ok(());
    }
    Err(Failure::Step {
        what: "strip".into(),
        how: status.to_string(),
        log: None,
    })
}

/// The part of `node/info` that tells memory.
#[derive(Debug, PartialEq, serde::Deserialize)]
struct Memory {
    total_bytes: f64,
    available_bytes: f64,
    node_resident_bytes: f64,
}

impl Memory {
    fn of_info(answer: &str) -> Result<Self> {
        let parse = || {
            let value: serde_json::Value = serde_json::from_str(answer)?;
            serde_json::from_value(value["memory"].clone())
        };
        parse().map_err(|error: serde_json::Error| Failure::Step {
            what: "reading node/info".into(),
            how: error.to_string(),
            log: None,
        })
    }

    fn in_use(&self) -> f64 {
        self.total_bytes - self.available_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counted_and_plain_runs_are_kept_apart() {
        let cost = |cpu_s, minsn| Cost {
            cpu_s,
            wall_s: 1.0,
            minsn,
        };
        let all: Vec<Cost> = vec![cost(1.0, None), cost(9.0, Some(100.0))];
        let rows = cost_rows(&CASES.map(|case| (case, all.clone())).into());
        let of = |unit: &str| rows.iter().find(|row| row.unit == unit).expect("measured");
        assert_eq!(of("CPU s").ours, 1.0);
        assert_eq!(of("M instructions").ours, 100.0);
        assert_eq!(of("CPU s").ratio, Some(1.0));
    }

    #[test]
    fn memory_is_read_from_the_answer() {
        let answer =
            r#"{"memory":{"total_bytes":100,"available_bytes":60,"node_resident_bytes":20}}"#;
        let memory = Memory::of_info(answer).expect("as node/info answers");
        assert_eq!(memory.in_use(), 40.0);
        assert!(Memory::of_info("{}").is_err() && Memory::of_info("x").is_err());
    }
}
