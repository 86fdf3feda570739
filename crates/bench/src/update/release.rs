//! Two versions of which the second one changes the binary alone, and the bundles of the second one.
//!
//! The second binary is this tree's with the package `alknet`, compiled for the least size. So all code of that package
//! is another one, and everything behind it lies elsewhere, as in a release that changes this package. Kernel, stub and
//! program for GPUs are the same.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use alknet_image::{ImageForm, OutputRole, ProgramParts};
use alknet_tasks::binary;
use alknet_tasks::context::XtaskContext;
use alknet_tasks::driver::DriverSelection;
use alknet_tasks::failure::{Result, TaskError};
use alknet_tasks::image::{self, ImageFiles};
use alknet_tasks::kernel::{self, KernelFiles};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use crate::call::measure::failed;
use crate::work_cost::WorkCost;

/// The version that runs first, and the one that the bundles have.
pub(super) const VERSIONS: [&str; 2] = ["0.1.0", "0.2.0"];

/// How the second binary differs.
const OTHER: &str = "profile.release.package.alknet.opt-level=\"z\"";

/// For how long the documents of the release are valid.
const VALID: SignedDuration = SignedDuration::from_hours(24 * 365);

/// Both versions, and the bundles of the second one.
#[derive(Debug)]
pub(super) struct ReleasePair {
    pub(super) binaries: [PathBuf; 2],
    /// The EFI programs as bundles have them: stub, kernel, and the compressed initial file system with the binary.
    pub(super) programs: [PathBuf; 2],
    /// The same programs with their initial file systems unpacked.
    pub(super) unpacked: [PathBuf; 2],
    /// Its disk starts the first version.
    pub(super) image: ImageFiles,
    pub(super) kernel: KernelFiles,
    pub(super) bundles: ReleaseBundles,
    pub(super) bytes: ReleaseBytes,
}

/// What a machine of the first version may stage.
#[derive(Debug)]
pub(super) struct ReleaseBundles {
    pub(super) delta: PathBuf,
    /// With the whole program.
    pub(super) whole: PathBuf,
}

/// Bytes of what a release of the second version has.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReleaseBytes {
    pub(super) delta: u64,
    /// The bundle with the delta.
    pub(super) delta_bundle: u64,
    pub(super) whole_bundle: u64,
    /// What it cost to make both bundles.
    pub(super) made: WorkCost,
}

impl ReleasePair {
    /// Makes everything in `folder`.
    pub(super) fn make(cx: &XtaskContext, folder: &Path) -> Result<Self> {
        let kernel = kernel::ensure(cx)?;
        let binaries = binaries(cx, folder)?;
        let files = SigningFiles::make(cx, &binaries[0], folder)?;
        let image = |version: &str, binary: &Path| {
            // A machine starts from the disk, whose program is that of the form uki.
            let forms = [ImageForm::Uki, ImageForm::Raw];
            let mut inputs = image::inputs(cx, &kernel, binary, &forms)?;
            version.clone_into(&mut inputs.version);
            inputs.update_root = Some(files.root.clone());
            let folder = folder.join(version);
            let manifest = image::write(&inputs, &forms, &folder, |doing| cx.say(doing))?;
            Ok::<_, TaskError>(ImageFiles { folder, manifest })
        };
        let old = image(VERSIONS[0], &binaries[0])?;
        let new = image(VERSIONS[1], &binaries[1])?;
        let whole = folder.join("bundle.tar");
        let folders = [&*old.folder, &*new.folder];
        let (made, cost) = WorkCost::measure(|| files.bundle(&binaries[0], folders, &whole))?;
        let delta = &made["deltas"][0];
        let (Some(bundle), Some(bytes)) = (delta["file"].as_str(), delta["delta_bytes"].as_u64())
        else {
            return Err(failed("making the bundle")(format!("no delta: {made}")));
        };
        let bytes = ReleaseBytes {
            delta: bytes,
            delta_bundle: length(Path::new(bundle))?,
            whole_bundle: length(&whole)?,
            made: cost,
        };
        let programs = [program(&old)?, program(&new)?];
        let unpacked = [
            unpack(&programs[0], folder, "unpacked-old")?,
            unpack(&programs[1], folder, "unpacked-new")?,
        ];
        Ok(Self {
            bundles: ReleaseBundles {
                delta: bundle.into(),
                whole,
            },
            image: old,
            binaries,
            programs,
            unpacked,
            kernel,
            bytes,
        })
    }

    /// The disk of the first version.
    pub(super) fn disk(&self) -> Option<PathBuf> {
        let manifest = &self.image.manifest;
        manifest.path(&self.image.folder, ImageForm::Raw, OutputRole::Disk)
    }
}

/// The EFI program of an image.
fn program(image: &ImageFiles) -> Result<PathBuf> {
    let manifest = &image.manifest;
    let path = manifest.path(&image.folder, ImageForm::Uki, OutputRole::Uki);
    path.ok_or_else(|| TaskError::Arguments("the image has no EFI program".to_owned()))
}

/// Writes a program with its initial file system unpacked to a file in `folder`.
fn unpack(program: &Path, folder: &Path, name: &str) -> Result<PathBuf> {
    let read = fs::read(program).map_err(TaskError::io("read a program"))?;
    let path = folder.join(name);
    fs::write(&path, unpacked(&read)?).map_err(TaskError::io("write a program"))?;
    Ok(path)
}

/// A program with its initial file system as it was before it was compressed.
fn unpacked(program: &[u8]) -> Result<Vec<u8>> {
    let parts = ProgramParts::unpack(program).map_err(failed("unpacking a program"))?;
    let parts = parts.as_new();
    let (before, after) = (&program[..parts.frame.start], &program[parts.frame.end..]);
    Ok([before, parts.archive, after].concat())
}

/// This tree's binary, and the other one with the same program for GPUs.
fn binaries(cx: &XtaskContext, folder: &Path) -> Result<[PathBuf; 2]> {
    // Until the other one is copied, no other command may build.
    let lock = cx.claim()?;
    let mut build = cx.cargo("build");
    build
        // As part of the whole workspace, like the usual one, so that libraries keep the same features.
        .args(["--release", "--workspace", "--locked"])
        .args(["--bin", binary::NAME, "--config", OTHER]);
    cx.run(&mut build, "another binary", "bench-update")?;
    let other = fs::read(cx.executable(binary::NAME));
    let mut other = other.map_err(TaskError::io("read the other binary"))?;
    // The usual one last: it is what stays linked.
    let whole = binary::whole(cx, &DriverSelection::usual())?;
    let read =
        |path: &Path| fs::read(path).map_err(TaskError::io(format!("read {}", path.display())));
    let (usual, plain) = (read(&whole)?, read(&cx.executable(binary::NAME))?);
    drop(lock);
    let Some(carried) = usual.strip_prefix(&plain[..]) else {
        return Err(failed("finding the program for GPUs")(
            "the binary does not begin as linked",
        ));
    };
    if other == plain {
        return Err(failed("making another binary")("both have the same bytes"));
    }
    other.extend_from_slice(carried);
    let path = folder.join("other-binary");
    fs::write(&path, other).map_err(TaskError::io("write the other binary"))?;
    Ok([whole, path])
}

/// A key that signs releases, and the document that makes machines trust it.
struct SigningFiles {
    key: PathBuf,
    root: PathBuf,
    /// The day on which the documents expire.
    expires: String,
}

impl SigningFiles {
    fn make(cx: &XtaskContext, program: &Path, folder: &Path) -> Result<Self> {
        let expires = Timestamp::now().checked_add(VALID);
        let expires = expires.map_err(failed("choosing a day"))?;
        let files = Self {
            key: folder.join("release.pem"),
            root: folder.join("1.root.json"),
            expires: expires.strftime("%F").to_string(),
        };
        let mut make_key = Command::new("openssl");
        make_key.args(["genpkey", "-algorithm", "ed25519", "-out"]);
        make_key.arg(&files.key);
        cx.run(&mut make_key, "a key for releases", "openssl")?;
        let mut root = Command::new(program);
        root.args(["image", "root", "--expires", &files.expires]);
        root.arg("--key").arg(&files.key);
        root.arg("--out").arg(&files.root);
        cx.run(&mut root, "the root document", "image-root")?;
        Ok(files)
    }

    /// Makes the bundles of the second image. Returns what the command says about them.
    fn bundle(&self, program: &Path, [old, new]: [&Path; 2], out: &Path) -> Result<Value> {
        let mut command = Command::new(program);
        command.args(["image", "bundle", "--json", "--number", "1"]);
        command.args([
            "--expires",
            &self.expires,
            "--timestamp-expires",
            &self.expires,
        ]);
        command.arg(new).arg("--from").arg(old);
        command.arg("--key").arg(&self.key);
        command.arg("--root").arg(&self.root);
        command.arg("--out").arg(out);
        let output = command
            .output()
            .map_err(TaskError::io("run alknet image bundle"))?;
        if !output.status.success() {
            let why = String::from_utf8_lossy(&output.stderr);
            return Err(failed("alknet image bundle")(why.trim()));
        }
        serde_json::from_slice(&output.stdout).map_err(failed("reading what was bundled"))
    }
}

/// Bytes of a file.
pub(super) fn length(file: &Path) -> Result<u64> {
    let data = fs::metadata(file).map_err(TaskError::io(format!("read {}", file.display())))?;
    Ok(data.len())
}
