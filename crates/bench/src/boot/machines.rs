//! The machines that are booted, and what each boot cost.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use alknet_image::ImageForm;
use alknet_qemu::{Accel, MachineKind, Vm, VmBuilder};

use super::{BootCase, BootCost, DEBIAN_CMDLINE, MEGA};
use crate::child::start_node;
use crate::empty;
use alknet_tasks::binary;
use alknet_tasks::context::XtaskContext;
use alknet_tasks::driver::DriverSelection;
use alknet_tasks::failure::{Result, TaskError};
use alknet_tasks::image::{self, ImageFiles};
use alknet_tasks::kernel::{self, KernelFiles};
use alknet_tasks::node::{self, MachineType, NodeCli};
use alknet_tasks::sources;

/// Longest wait for the empty init, on a processor that runs guests itself.
const EMPTY_WITHIN: Duration = Duration::from_secs(9);

/// Times that Debian's kernel is started before it is given up: now and then it never finds out how
/// fast a counted guest's clock runs. Ours has to get there the first time.
const DEBIAN_ATTEMPTS: u32 = 3;

/// Everything the runs need, made once.
pub(super) struct BootBench {
    pub(super) kernel: KernelFiles,
    pub(super) debian: PathBuf,
    pub(super) scratch: tempfile::TempDir,
    pub(super) cli: NodeCli,
    /// As it is shipped.
    pub(super) usual: AlknetBuild,
    /// The same without any driver for GPUs.
    pub(super) bare: AlknetBuild,
    empty: PathBuf,
    admin: String,
}

/// The one binary, and the forms of the image with it.
pub(super) struct AlknetBuild {
    pub(super) binary: PathBuf,
    pub(super) image: ImageFiles,
}

impl AlknetBuild {
    fn prepare(cx: &XtaskContext, kernel: &KernelFiles, drivers: &DriverSelection) -> Result<Self> {
        let binary = binary::whole(cx, drivers)?;
        let forms = [ImageForm::Direct, ImageForm::Erofs, ImageForm::Uki];
        let image = image::ensure(cx, kernel, &binary, &forms)?;
        Ok(Self { binary, image })
    }
}

impl BootBench {
    pub(super) fn prepare(cx: &XtaskContext) -> Result<Self> {
        let scratch =
            tempfile::tempdir().map_err(TaskError::io("make a folder for the benchmark"))?;
        let kernel = kernel::ensure(cx)?;
        // The usual one last: its program for GPUs is what stays linked.
        let bare = AlknetBuild::prepare(cx, &kernel, &DriverSelection::none())?;
        let usual = AlknetBuild::prepare(cx, &kernel, &DriverSelection::usual())?;
        let cli = NodeCli::new(&usual.binary, Some(&scratch.path().join("cli")));
        Ok(Self {
            debian: sources::obtain(cx, "debian-cloud-kernel")?.path,
            empty: empty::initramfs(scratch.path())?,
            admin: cli.identity()?,
            bare,
            usual,
            kernel,
            cli,
            scratch,
        })
    }

    pub(super) fn boot_at_last(&self, case: BootCase, counted: bool) -> Result<BootCost> {
        let mut attempt = 1;
        loop {
            match self.boot(case, counted) {
                Err(error) if case == BootCase::Debian && attempt < DEBIAN_ATTEMPTS => {
                    eprintln!("{case:?} again: {error}");
                }
                result => return result,
            }
            attempt += 1;
        }
    }

    fn boot(&self, case: BootCase, counted: bool) -> Result<BootCost> {
        // Emulated on every host: instructions are counted nowhere else, and hosts are alike.
        let builder = self.builder(case)?.accel(Accel::Tcg);
        let builder = if counted {
            builder.count_instructions()
        } else {
            builder
        };
        let started = Instant::now();
        let mut vm = builder.start()?;
        let cost = match case {
            BootCase::Q35
            | BootCase::Microvm
            | BootCase::MicrovmWithoutFiles
            | BootCase::Q35Bare
            | BootCase::MicrovmBare => self.answered(&vm, started)?,
            BootCase::Debian | BootCase::MicrovmEmpty | BootCase::Q35Empty => reached_empty(&vm)?,
        };
        // It keeps nothing: there is nothing to end in order for.
        vm.cut_power()?;
        Ok(cost)
    }

    fn builder(&self, case: BootCase) -> Result<VmBuilder> {
        match case {
            BootCase::Q35 => self.ours(&self.usual, ImageForm::Direct, MachineType::Q35),
            BootCase::Microvm => self.ours(&self.usual, ImageForm::Erofs, MachineType::Microvm),
            BootCase::MicrovmWithoutFiles => self.configured(
                &self.usual,
                ImageForm::Erofs,
                MachineType::Microvm,
                "[fs]\nenabled = false\n",
            ),
            BootCase::Q35Bare => self.ours(&self.bare, ImageForm::Direct, MachineType::Q35),
            BootCase::MicrovmBare => self.ours(&self.bare, ImageForm::Erofs, MachineType::Microvm),
            BootCase::Q35Empty => {
                let kernel = &self.kernel.bzimage;
                Ok(self.with_empty(MachineKind::Q35, kernel, image::CMDLINE))
            }
            BootCase::MicrovmEmpty => {
                let kernel = &self.kernel.vmlinux;
                Ok(self.with_empty(MachineKind::Microvm, kernel, image::CMDLINE))
            }
            BootCase::Debian => Ok(self.with_empty(MachineKind::Q35, &self.debian, DEBIAN_CMDLINE)),
        }
    }

    /// Our image as it is shipped, without a data disk.
    pub(super) fn ours(
        &self,
        ours: &AlknetBuild,
        form: ImageForm,
        machine: MachineType,
    ) -> Result<VmBuilder> {
        self.configured(ours, form, machine, "")
    }

    /// The same with more sections in its configuration.
    fn configured(
        &self,
        ours: &AlknetBuild,
        form: ImageForm,
        machine: MachineType,
        more: &str,
    ) -> Result<VmBuilder> {
        let builder = node::builder(&ours.image, &self.kernel, form, machine, &self.admin)?;
        let document = format!("{}stateless = true\n{more}", node::config(&self.admin));
        Ok(builder.config(document))
    }

    fn with_empty(&self, kind: MachineKind, kernel: &Path, line: &str) -> VmBuilder {
        Vm::builder(kind)
            .kernel(kernel)
            .initrd(&self.empty)
            .append(line)
    }

    fn answered(&self, vm: &Vm, started: Instant) -> Result<BootCost> {
        let node = node::wait_ready(vm)?;
        self.cli.call(&node, "node/info")?;
        Ok(BootCost {
            cpu_s: vm.cpu_time().unwrap_or_default().as_secs_f64(),
            wall_s: started.elapsed().as_secs_f64(),
            minsn: vm.instructions().map(|count| count as f64 / MEGA),
        })
    }

    /// The same node on the host: from its start to its first answer.
    pub(super) fn host_ms(&self) -> Result<f64> {
        let state = tempfile::tempdir_in(self.scratch.path())
            .map_err(TaskError::io("make a state directory"))?;
        let own = NodeCli::at(&self.usual.binary, state.path());
        // The identity is made once in a node's life, not at each start: the first one is not
        // measured.
        self.serve_and_call(&own)?;
        Ok(self.serve_and_call(&own)?.as_secs_f64() * 1e3)
    }

    fn serve_and_call(&self, own: &NodeCli) -> Result<Duration> {
        let mut serve = own.command("serve");
        serve.args(["--json", "--port", "0", "--listen", "127.0.0.1"]);
        serve.args(["--admin", &self.admin]);
        let started = Instant::now();
        // The guard ends the node when the call has its answer.
        let (_guard, node) = start_node(serve)?;
        self.cli.call(&node, "node/info")?;
        Ok(started.elapsed())
    }
}

fn reached_empty(vm: &Vm) -> Result<BootCost> {
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
    Ok(BootCost {
        cpu_s: cpu.as_secs_f64(),
        wall_s: wall.as_secs_f64(),
        minsn: count.map(|count| count as f64 / MEGA),
    })
}
