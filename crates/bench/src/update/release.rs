//! Two versions of which the second one changes the binary alone, and the bundles of the second one.
//!
//! The second binary is this tree's with the package `alknet`, compiled for the least size. So all code of that package
//! is another one, and everything behind it lies elsewhere, as in a release that changes this package. Kernel, stub and
//! program for GPUs are the same.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use alknet_image::{ImageForm, Manifest, OutputRole};
use alknet_tasks::binary;
use alknet_tasks::context::XtaskContext;
use alknet_tasks::driver::DriverSelection;
use alknet_tasks::failure::{Result, TaskError};
use alknet_tasks::image::{self, ImageFiles};
use alknet_tasks::kernel::{self, KernelFiles};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use crate::call::measure::failed;

/// The version that runs first, and the one that the bundles have.
pub(super) const VERSIONS: [&str; 2] = ["0.1.0", "0.2.0"];

/// How the second binary differs.
const OTHER: &str = "profile.release.package.alknet.opt-level=\"z\"";

/// For how long the documents of the release are valid.
const VALID: SignedDuration = SignedDuration::from_hours(24 * 365);

/// Both binaries, the image of the first one, and the bundles.
#[derive(Debug, Default)]
pub(super) struct ReleasePair {
    pub(super) binaries: [PathBuf; 2],
    pub(super) image: Option<(ImageFiles, KernelFiles)>,
    /// The bundle with the delta.
    pub(super) delta_bundle: PathBuf,
    pub(super) delta_bytes: u64,
    pub(super) delta_bundle_bytes: u64,
    pub(super) whole_bundle_bytes: u64,
}

impl ReleasePair {
    /// Makes everything in `folder`.
    pub(super) fn make(cx: &XtaskContext, folder: &Path) -> Result<Self> {
        let kernel = kernel::ensure(cx)?;
        let binaries = binaries(cx, folder)?;
        let documents = SigningFiles::make(cx, &binaries[0], folder)?;
        let mut folders = Vec::new();
        for (version, binary) in VERSIONS.into_iter().zip(&binaries) {
            let out = folder.join(version);
            // The machine starts from the disk of the first one, whose program is that of the form uki.
            let forms = [ImageForm::Uki, ImageForm::Raw];
            let mut inputs = image::inputs(cx, &kernel, binary, &forms)?;
            inputs.version = version.to_owned();
            inputs.update_root = Some(documents.root.clone());
            image::write(&inputs, &forms, &out, |doing| cx.say(doing))?;
            folders.push(out);
        }
        let [old, new] = [&folders[0], &folders[1]];
        let bundle = folder.join("bundle.tar");
        let made = documents.bundle(&binaries[0], [old, new], &bundle)?;
        let [delta] = made["deltas"].as_array().map_or(&[][..], Vec::as_slice) else {
            return Err(failed("making the bundle")(format!("no delta: {made}")));
        };
        let delta_bundle = delta["file"].as_str().unwrap_or_default();
        let manifest = Manifest::read(old)?;
        Ok(Self {
            delta_bytes: delta["delta_bytes"].as_u64().unwrap_or_default(),
            delta_bundle_bytes: length(Path::new(delta_bundle))?,
            whole_bundle_bytes: length(&bundle)?,
            delta_bundle: delta_bundle.into(),
            image: Some((
                ImageFiles {
                    folder: old.clone(),
                    manifest,
                },
                kernel,
            )),
            binaries,
        })
    }

    /// The disk of the first version.
    pub(super) fn disk(&self) -> Option<PathBuf> {
        let (image, _) = self.image.as_ref()?;
        let manifest = &image.manifest;
        manifest.path(&image.folder, ImageForm::Raw, OutputRole::Disk)
    }
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
    let read = |path: &Path| {
        fs::read(path).map_err(TaskError::io(format!("read {}", path.display())))
    };
    let (usual, plain) = (read(&whole)?, read(&cx.executable(binary::NAME))?);
    drop(lock);
    let Some(carried) = usual.strip_prefix(&plain[..]) else {
        return Err(failed("finding the program for GPUs")("the binary does not begin as linked"));
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
        let documents = Self {
            key: folder.join("release.pem"),
            root: folder.join("1.root.json"),
            expires: expires.strftime("%F").to_string(),
        };
        let mut make_key = Command::new("openssl");
        make_key.args(["genpkey", "-algorithm", "ed25519", "-out"]);
        make_key.arg(&documents.key);
        cx.run(&mut make_key, "a key for releases", "openssl")?;
        let mut root = Command::new(program);
        root.args(["image", "root", "--expires", &documents.expires]);
        root.arg("--key").arg(&documents.key);
        root.arg("--out").arg(&documents.root);
        cx.run(&mut root, "the root document", "image-root")?;
        Ok(documents)
    }

    /// Makes the bundles of the second image. Returns what the command says about them.
    fn bundle(&self, program: &Path, [old, new]: [&PathBuf; 2], out: &Path) -> Result<Value> {
        let mut command = Command::new(program);
        command.args(["image", "bundle", "--json", "--number", "1"]);
        command.args(["--expires", &self.expires, "--timestamp-expires", &self.expires]);
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
