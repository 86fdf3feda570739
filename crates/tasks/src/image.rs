//! `image`: kernel and binary in, files that boot out.

use std::path::{Path, PathBuf};
use std::process::Command;

use alknet_image::{Form, Inputs, MANIFEST_FILE, Manifest, Progress};

use crate::context::Context;
use crate::failure::{Failure, Result};
use crate::kernel::Kernel;
use crate::{binary, cached, digest, driver, kernel, sources};

/// The kernel command line of every form: serial console, no chatter, reboot 10 s after a panic.
///
/// `noreplace-smp`: with one processor the kernel would rewrite its 8,600 lock prefixes, each with
/// a switch of address spaces: a fifth of the time to `/init` under emulation, for a few cycles per
/// atomic operation later.
pub(crate) const CMDLINE: &str = "console=ttyS0 quiet panic=10 noreplace-smp";

/// Package version, which is also the image's.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Folders of images kept in the cache; an older one is built again when it is wanted.
const KEPT_IMAGES: usize = 6;

/// Digits of a commit's name in the manifest.
const COMMIT_DIGITS: &str = "--short=12";

/// Arguments of `image`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Form to write: direct, erofs, uki, raw or linuxkit; may be repeated [default: all]
    #[arg(long = "form", value_name = "FORM")]
    forms: Vec<Form>,
    /// Folder the files go to
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    drivers: driver::Arguments,
}

/// A folder of image files in the cache.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    /// The folder.
    pub(crate) folder: PathBuf,
    /// What lies there.
    pub(crate) manifest: Manifest,
}

/// Writes the forms and prints what was written.
pub(crate) fn run(cx: &mut Context, arguments: &Arguments) -> Result<()> {
    let forms = if arguments.forms.is_empty() {
        Form::ALL.to_vec()
    } else {
        arguments.forms.clone()
    };
    let kernel = cx.step("kernel", |cx| kernel::ensure(cx))?;
    let binary = cx.step("gpu", |cx| binary::whole(cx, &arguments.drivers.vulkan))?;
    let inputs = cx.step("sources", |cx| inputs(cx, &kernel, &binary, &forms))?;
    let manifest = cx.step("image", |_| write(&inputs, &forms, &arguments.out))?;
    for output in &manifest.outputs {
        println!(
            "{:10} {:>11}  {}  {}",
            output.form, output.bytes, output.sha256, output.file
        );
    }
    eprint!("{}", cx.table());
    Ok(())
}

/// Finds images of these forms in the cache, or makes them.
pub(crate) fn ensure(
    cx: &Context,
    kernel: &Kernel,
    binary: &Path,
    forms: &[Form],
) -> Result<Image> {
    let inputs = inputs(cx, kernel, binary, forms)?;
    let images = cx.cache().join("image");
    let folder = images.join(key(&inputs, kernel, forms)?);
    if !folder.join(MANIFEST_FILE).exists() {
        // The manifest is written last, so an interrupted build is not taken for a finished one.
        write(&inputs, forms, &folder)?;
        cached::forget_old(&images, &folder, KEPT_IMAGES)
            .map_err(Failure::io(format!("clear {}", images.display())))?;
    }
    let manifest = Manifest::read(&folder)?;
    Ok(Image { folder, manifest })
}

fn write(inputs: &Inputs, forms: &[Form], out: &Path) -> Result<Manifest> {
    let mut say = |progress: Progress| {
        eprintln!(
            "{} ({} of {}) ...",
            progress.doing,
            progress.done + 1,
            progress.total
        );
    };
    Ok(alknet_image::build(inputs, forms, out, &mut say)?)
}

fn inputs(cx: &Context, kernel: &Kernel, binary: &Path, forms: &[Form]) -> Result<Inputs> {
    let needs_stub = forms
        .iter()
        .any(|form| matches!(form, Form::Uki | Form::Raw));
    let stub = if needs_stub {
        Some(sources::obtain(cx, "systemd-stub")?.path)
    } else {
        None
    };
    Ok(Inputs {
        kernel: kernel.bzimage.clone(),
        vmlinux: Some(kernel.vmlinux.clone()),
        kernel_config: Some(kernel.config.clone()),
        binary: binary.to_owned(),
        stub,
        cmdline: CMDLINE.to_owned(),
        version: VERSION.to_owned(),
        git: commit(cx.root()),
    })
}

/// The commit that is checked out; a copy without history has none.
pub(crate) fn commit(root: &Path) -> String {
    let output = Command::new("git")
        .arg("-C")
        .arg(root)
        .args(["rev-parse", COMMIT_DIGITS, "HEAD"])
        .output();
    let text = output.map_or_else(
        |_| String::new(),
        |o| String::from_utf8_lossy(&o.stdout).into_owned(),
    );
    let text = text.trim();
    if text.is_empty() {
        "unknown".to_owned()
    } else {
        text.to_owned()
    }
}

fn key(inputs: &Inputs, kernel: &Kernel, forms: &[Form]) -> Result<String> {
    let hash = |path: &Path| {
        digest::of_file(path).map_err(Failure::io(format!("read {}", path.display())))
    };
    let mut parts = vec![
        kernel.key.clone(),
        hash(&inputs.binary)?,
        inputs.cmdline.clone(),
    ];
    parts.extend([inputs.version.clone(), inputs.git.clone()]);
    // The code that assembles images is in this very program.
    parts.push(hash(Path::new("/proc/self/exe"))?);
    if let Some(stub) = &inputs.stub {
        parts.push(hash(stub)?);
    }
    parts.extend(forms.iter().map(ToString::to_string));
    Ok(digest::key(parts.iter().map(String::as_bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_without_history_has_no_commit() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        assert_eq!(commit(folder.path()), "unknown");
    }
}
