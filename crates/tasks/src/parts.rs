//! The parts of an image: the kernel and the one binary, built side by side, and the binary alone.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError, mpsc};

use crate::context::{Job, XtaskContext};
use crate::driver::{self, DriverSelection, SealedDriver};
use crate::failure::{Result, TaskError};
use crate::kernel::{self, KernelFiles};
use crate::{binary, gpu};

/// Names of steps in the table and on the board.
const KERNEL: &str = "kernel";
const DRIVER: &str = "Vulkan driver";
const WORKSPACE: &str = "workspace";

/// Kernel and binary.
#[derive(Clone, Debug)]
pub struct ImageParts {
    /// The kernel.
    pub kernel: KernelFiles,
    /// The one binary, with what it carries.
    pub binary: PathBuf,
}

impl ImageParts {
    /// Finds or builds all of it. Kernel, driver and workspace are built at the same time: each has
    /// stretches in which it downloads or links and leaves processors to the others. They share the
    /// memory.
    pub fn ensure(cx: &mut XtaskContext, selection: &DriverSelection) -> Result<Self> {
        let kernel = kernel::cached(cx).is_ok_and(|kernel| kernel.is_some());
        cx.compile_beside(binary_builds(cx, selection) + usize::from(!kernel));
        let parts = Self::build(cx, selection);
        cx.compile_beside(1);
        parts
    }

    fn build(cx: &mut XtaskContext, selection: &DriverSelection) -> Result<Self> {
        let (kernel, binary) = (StepResult::default(), StepResult::default());
        let of_kernel: Job<'_> = (KERNEL, Box::new(|cx| kernel.fill(kernel::ensure(cx)?)));
        let mut jobs = vec![of_kernel];
        jobs.extend(binary_jobs(selection, &binary));
        cx.parallel(jobs)?;
        Ok(Self {
            kernel: kernel.take()?,
            binary: binary.take()?,
        })
    }
}

/// Finds or builds the one binary, with what it carries, in the same way as [`ImageParts::ensure`],
/// so that each finds what the other built.
pub(crate) fn ensure_binary(cx: &mut XtaskContext, selection: &DriverSelection) -> Result<PathBuf> {
    cx.compile_beside(binary_builds(cx, selection));
    let binary = StepResult::default();
    let built = cx.parallel(binary_jobs(selection, &binary).into());
    cx.compile_beside(1);
    built?;
    binary.take()
}

/// How many builds of the binary compile: cargo, and the drivers if the cache lacks one. The step
/// reports a failed look into the cache, here and for the kernel.
fn binary_builds(cx: &XtaskContext, selection: &DriverSelection) -> usize {
    let drivers = driver::cached(cx, selection);
    let drivers = drivers.is_ok_and(|found| found.len() == selection.names().len());
    1 + usize::from(!drivers)
}

/// The steps that make the binary.
fn binary_jobs<'a>(
    selection: &'a DriverSelection,
    binary: &'a StepResult<PathBuf>,
) -> [Job<'a>; 2] {
    let (ready, drivers) = mpsc::channel();
    [
        (
            DRIVER,
            Box::new(move |cx| {
                // The receiver is gone if the workspace's step failed meanwhile.
                let _ = ready.send(driver::ensure(cx, selection)?);
                Ok(())
            }),
        ),
        (
            WORKSPACE,
            Box::new(move |cx| binary.fill(workspace(cx, selection, &drivers)?)),
        ),
    ]
}

/// Builds the plain binary first, which needs no driver, and then the program that does.
fn workspace(
    cx: &XtaskContext,
    selection: &DriverSelection,
    drivers: &mpsc::Receiver<Vec<SealedDriver>>,
) -> Result<PathBuf> {
    let lock = cx.claim()?;
    let plain = binary::compile(cx, &lock)?;
    cx.say("waiting for the Vulkan driver");
    // The sender is dropped if the driver's own step failed, and that step reports the error.
    let drivers = drivers.recv().map_err(|_| TaskError::Abandoned)?;
    let gpu = gpu::with_drivers(cx, &drivers, selection, &lock)?;
    binary::carry(cx, &plain, &gpu)
}

/// A step's result, for the step that started it.
#[derive(Debug)]
struct StepResult<T>(Mutex<Option<T>>);

impl<T> Default for StepResult<T> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<T> StepResult<T> {
    fn fill(&self, value: T) -> Result<()> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
        Ok(())
    }

    fn take(self) -> Result<T> {
        let value = self.0.into_inner().unwrap_or_else(PoisonError::into_inner);
        value.ok_or(TaskError::Abandoned)
    }
}
