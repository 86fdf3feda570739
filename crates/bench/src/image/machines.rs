//! Both images: made, packed, written and booted.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use alknet_image::{ImageForm, OutputRole};
use alknet_qemu::{Accel, MachineKind, Nic, VirtioDisk, Vm, VmBuilder};
use alknet_tasks::binary;
use alknet_tasks::context::XtaskContext;
use alknet_tasks::driver::DriverSelection;
use alknet_tasks::failure::{Result, TaskError};
use alknet_tasks::image::{self, ImageFiles};
use alknet_tasks::kernel::{self, KernelFiles};
use alknet_tasks::node::{self, MachineType, NodeCli};

use super::MEGA;
use super::debian::DebianImage;
use crate::work_cost::WorkCost;

/// How both disks are packed: by the same program, at the same level.
const PACK: [&str; 5] = ["-19", "-T0", "--long=27", "-q", "-f"];

/// Writes a packed disk as people do who have no other tool: `$1` to `$2`.
const WRITE: &str = r#"zstd -dc --long=27 "$1" | dd of="$2" bs=4M conv=fsync status=none"#;

/// What one image took.
#[derive(Clone, Copy, Debug)]
pub(super) struct ImageSide {
    pub(super) packed_mb: f64,
    pub(super) made: WorkCost,
    pub(super) written: WorkCost,
    pub(super) answered: WorkCost,
}

/// What both took in one round.
#[derive(Clone, Copy, Debug)]
pub(super) struct ImageRound {
    pub(super) ours: ImageSide,
    pub(super) debian: ImageSide,
    pub(super) by_loader: LoaderBoots,
}

/// From power-on to the first answered call of our disk, which its own loader starts.
#[derive(Clone, Copy, Debug)]
pub(super) struct LoaderBoots {
    pub(super) uefi: WorkCost,
    pub(super) bios: WorkCost,
}

/// Everything the rounds need, made once.
pub(super) struct ImageBench {
    kernel: KernelFiles,
    binary: PathBuf,
    /// Every form.
    pub(super) image: ImageFiles,
    cli: NodeCli,
    admin: String,
    scratch: tempfile::TempDir,
}

impl ImageBench {
    pub(super) fn prepare(cx: &XtaskContext) -> Result<Self> {
        let scratch =
            tempfile::tempdir().map_err(TaskError::io("make a folder for the benchmark"))?;
        let kernel = kernel::ensure(cx)?;
        let binary = binary::whole(cx, &DriverSelection::usual())?;
        let image = image::ensure(cx, &kernel, &binary, &ImageForm::ALL)?;
        let cli = NodeCli::new(&binary, Some(&scratch.path().join("cli")));
        Ok(Self {
            admin: cli.identity()?,
            kernel,
            binary,
            image,
            cli,
            scratch,
        })
    }

    /// One round: first ours, then Debian's.
    pub(super) fn measure(&self, cx: &XtaskContext) -> Result<ImageRound> {
        let ours = self.in_folder(|folder| self.measure_ours(cx, folder))?;
        let by_loader = LoaderBoots {
            uefi: self.boot_disk(MachineKind::Q35Uefi)?,
            bios: self.boot_disk(MachineKind::Q35)?,
        };
        let debian = self.in_folder(|folder| measure_debian(cx, folder))?;
        Ok(ImageRound {
            ours,
            debian,
            by_loader,
        })
    }

    /// Makes each form by itself, in an empty folder.
    pub(super) fn make_forms(&self, cx: &XtaskContext) -> Result<Vec<(ImageForm, WorkCost)>> {
        let inputs = image::inputs(cx, &self.kernel, &self.binary, &ImageForm::ALL)?;
        let make = |form: ImageForm| {
            let cost = self.in_folder(|folder| {
                let out = folder.join("out");
                let write = || image::write(&inputs, &[form], &out, |doing| cx.say(doing));
                Ok(WorkCost::measure(write)?.1)
            })?;
            Ok((form, cost))
        };
        ImageForm::ALL.into_iter().map(make).collect()
    }

    /// Works in a folder of its own, which is removed afterwards: a disk has hundreds of megabytes.
    fn in_folder<T>(&self, work: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
        let folder = tempfile::tempdir_in(self.scratch.path());
        let folder = folder.map_err(TaskError::io("make a folder for an image"))?;
        work(folder.path())
    }

    fn measure_ours(&self, cx: &XtaskContext, folder: &Path) -> Result<ImageSide> {
        let out = folder.join("out");
        let forms = [ImageForm::Raw];
        let inputs = image::inputs(cx, &self.kernel, &self.binary, &forms)?;
        let (manifest, made) =
            WorkCost::measure(|| image::write(&inputs, &forms, &out, |doing| cx.say(doing)))?;
        let disk = manifest.path(&out, ImageForm::Raw, OutputRole::Disk);
        let packed = pack(cx, &disk.ok_or_else(no_disk)?)?;
        let ((), written) = WorkCost::measure(|| {
            let mut write = Command::new(&self.binary);
            write.args(["image", "write"]).arg(&packed);
            write
                .arg(folder.join("written"))
                .args(["--to-file", "--yes"]);
            cx.run(&mut write, "write our disk", "image-write")
        })?;
        Ok(ImageSide {
            packed_mb: megabytes(&packed)?,
            made,
            written,
            answered: self.boot()?,
        })
    }

    /// From power-on to the first answered call, with kernel and initial file system from QEMU, like Debian.
    fn boot(&self) -> Result<WorkCost> {
        let (form, machine) = (ImageForm::Direct, MachineType::Q35);
        let builder = node::builder(&self.image, &self.kernel, form, machine, &self.admin)?;
        self.answered(builder)
    }

    /// The same by the firmware and the loader of the disk: ours for UEFI, GRUB for a BIOS.
    fn boot_disk(&self, machine: MachineKind) -> Result<WorkCost> {
        let disk = self
            .image
            .manifest
            .path(&self.image.folder, ImageForm::Raw, OutputRole::Disk);
        let builder = Vm::builder(machine)
            .probe_kernel(&self.kernel.vmlinux)
            .disk(VirtioDisk::snapshot(disk.ok_or_else(no_disk)?))
            .nic(Nic::user());
        self.answered(builder)
    }

    /// Starts a machine that keeps nothing, and waits for the answer to a call.
    fn answered(&self, builder: VmBuilder) -> Result<WorkCost> {
        let document = format!("{}stateless = true\n", node::config(&self.admin));
        let builder = builder.config(document).accel(Accel::Tcg);
        let started = Instant::now();
        let mut vm = builder.start()?;
        let node = node::wait_ready(&vm)?;
        self.cli.call(&node, "node/info")?;
        let cost = WorkCost {
            cpu_s: vm.cpu_time().unwrap_or_default().as_secs_f64(),
            wall_s: started.elapsed().as_secs_f64(),
        };
        vm.cut_power()?;
        Ok(cost)
    }
}

fn measure_debian(cx: &XtaskContext, folder: &Path) -> Result<ImageSide> {
    let (debian, made) = WorkCost::measure(|| DebianImage::make(cx, folder))?;
    let packed = pack(cx, &debian.disk)?;
    let ((), written) = WorkCost::measure(|| {
        let mut write = Command::new("sh");
        write.args(["-c", WRITE, "sh"]).arg(&packed);
        write.arg(folder.join("written"));
        cx.run(&mut write, "write Debian's disk", "debian-write")
    })?;
    Ok(ImageSide {
        packed_mb: megabytes(&packed)?,
        made,
        written,
        answered: debian.boot()?,
    })
}

/// Packs a disk for a download, beside it.
fn pack(cx: &XtaskContext, disk: &Path) -> Result<PathBuf> {
    let packed = disk.with_extension("raw.zst");
    let mut zstd = Command::new("zstd");
    zstd.args(PACK).arg(disk).arg("-o").arg(&packed);
    cx.run(&mut zstd, "pack the disk", "zstd")?;
    Ok(packed)
}

fn no_disk() -> TaskError {
    TaskError::Arguments("the raw image has no disk".to_owned())
}

fn megabytes(file: &Path) -> Result<f64> {
    let data = fs::metadata(file).map_err(TaskError::io(format!("read {}", file.display())))?;
    Ok(data.len() as f64 / MEGA)
}
