//! From the kernel's source to the files in the cache. This file is a part of their name, so that another way to build is
//! another kernel: what does not decide their bytes is elsewhere.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{BZIMAGE_BYTES_MAX, KernelFiles, config};
use crate::context::XtaskContext;
use crate::failure::{Result, TaskError};
use crate::scratch::ScratchFolder;
use crate::steps;

/// Makes two builds of the same inputs byte-identical.
const REPRODUCIBLE: [(&str, &str); 5] = [
    ("KBUILD_BUILD_TIMESTAMP", "1970-01-01"),
    ("KBUILD_BUILD_USER", "alknet"),
    ("KBUILD_BUILD_HOST", "alknet"),
    ("KBUILD_BUILD_VERSION", "1"),
    ("SOURCE_DATE_EPOCH", "0"),
];

/// One build in a scratch folder, gone when dropped.
pub(super) struct KernelBuild<'a> {
    cx: &'a XtaskContext,
    fragments: &'a [(String, String)],
    scratch: ScratchFolder,
}

impl<'a> KernelBuild<'a> {
    pub(super) fn new(cx: &'a XtaskContext, fragments: &'a [(String, String)]) -> Result<Self> {
        let scratch = ScratchFolder::new(cx.cache(), "kernel-build-")?;
        Ok(Self {
            cx,
            fragments,
            scratch,
        })
    }

    pub(super) fn run(&self, source: &Path, kernel: &KernelFiles) -> Result<()> {
        self.unpack(source)?;
        self.configure()?;
        let mut make = self.make();
        let jobs = format!("-j{}", self.cx.jobs());
        make.args([&*jobs, "bzImage", "vmlinux"]);
        self.cx.run(&mut make, "kernel", "kernel-build")?;
        self.publish(kernel)
    }

    fn source(&self) -> PathBuf {
        self.scratch.path().join("source")
    }

    fn output(&self) -> PathBuf {
        self.scratch.path().join("output")
    }

    fn unpack(&self, archive: &Path) -> Result<()> {
        for folder in [self.source(), self.output()] {
            fs::create_dir(&folder).map_err(TaskError::io(format!("make {}", folder.display())))?;
        }
        let mut tar = steps::program("tar");
        tar.args(["--strip-components=1", "-xJf"])
            .arg(archive)
            .arg("-C")
            .arg(self.source());
        self.cx
            .run(&mut tar, "unpack the kernel's source", "kernel-unpack")
    }

    /// Starts from nothing, adds the fragments, and checks that the kernel's own rules kept them.
    fn configure(&self) -> Result<()> {
        let asked = self.output().join("fragments.config");
        let text: String = self
            .fragments
            .iter()
            .map(|(_, text)| text.as_str())
            .collect();
        fs::write(&asked, text).map_err(TaskError::io("write the fragments"))?;
        let mut make = self.make();
        make.arg("allnoconfig").env("KCONFIG_ALLCONFIG", &asked);
        self.cx
            .run(&mut make, "kernel configuration", "kernel-config")?;
        let config = fs::read_to_string(self.output().join(".config"))
            .map_err(TaskError::io("read the kernel's configuration"))?;
        let lost = config::lost(self.fragments, &config);
        if lost.is_empty() {
            Ok(())
        } else {
            Err(TaskError::OptionsLost(lost))
        }
    }

    fn make(&self) -> Command {
        // What runs beside this waits for one another; the kernel waits for nothing.
        let mut make = steps::program("nice");
        make.args(["-n", "10", "make", "-C"])
            .arg(self.source())
            .arg(format!("O={}", self.output().display()))
            .envs(REPRODUCIBLE);
        make
    }

    /// Puts the results together beside their place, then moves the folder there in one step.
    fn publish(&self, kernel: &KernelFiles) -> Result<()> {
        let ready = self.scratch.path().join("ready");
        fs::create_dir(&ready).map_err(TaskError::io("make a folder for the kernel"))?;
        let copy = |from: &str, to: &str| {
            fs::copy(self.output().join(from), ready.join(to))
                .map_err(TaskError::io(format!("copy the kernel's {from}")))
        };
        let bytes = copy("arch/x86/boot/bzImage", "bzImage")?;
        if bytes > BZIMAGE_BYTES_MAX {
            return Err(TaskError::TooLarge {
                what: "the kernel".into(),
                bytes,
                limit: BZIMAGE_BYTES_MAX,
            });
        }
        copy(".config", "config")?;
        let mut strip = steps::program("strip");
        strip
            .args(["--strip-all", "-o"])
            .arg(ready.join("vmlinux"))
            .arg(self.output().join("vmlinux"));
        self.cx
            .run(&mut strip, "strip the kernel", "kernel-strip")?;
        place(&ready, kernel.folder()).map_err(TaskError::io("put the kernel into the cache"))
    }
}

/// Another process may have put the same kernel there meanwhile, which is just as good.
fn place(ready: &Path, folder: &Path) -> io::Result<()> {
    if let Some(parent) = folder.parent() {
        fs::create_dir_all(parent)?;
    }
    match fs::rename(ready, folder) {
        Err(_) if folder.join("bzImage").exists() => Ok(()),
        result => result,
    }
}
