//! `image`: makes files that boot from the kernel and the binary.

use std::fs;
use std::path::{Path, PathBuf};

use alknet_image::{
    BuildProgress, GrubFiles, ImageForm, ImageInputs, MANIFEST_FILE, Manifest, PackOptions,
};

use crate::context::XtaskContext;
use crate::failure::{Result, TaskError};
use crate::kernel::KernelFiles;
use crate::parts::ImageParts;
use crate::{cached, digest, driver, grub, loader, provenance, sources};

/// The kernel command line of every form.
pub use alknet_image::CMDLINE;

/// Version of the image, unless the caller says another.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Folders of images that stay in the cache. An older one is built again on demand.
const KEPT_IMAGES: usize = 6;

/// The executable of this process, unchanged since the process started. Its path would not do:
/// another clone may have replaced the file there since.
const THIS_PROGRAM: &str = "/proc/self/exe";

/// Digits of a commit's name in the manifest.
const COMMIT_DIGITS: &str = "--short=12";

/// Arguments of `image`.
#[derive(Debug, clap::Args)]
pub struct ImageArgs {
    /// Form to write, such as raw or qcow2; may be repeated [default: all; docs/image.md lists them]
    #[arg(long = "form", value_name = "FORM")]
    forms: Vec<ImageForm>,
    /// Folder the files go to
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Words to add to the kernel's command line, such as `alknet.tpm=…`
    #[arg(long, value_name = "WORDS", default_value = "")]
    append: String,
    /// Also pack the disk of the form raw: compressed, with its map, and a list for Raspberry Pi Imager
    #[arg(long)]
    packed: bool,
    /// With --packed: the URL of the folder from which the files will be downloaded
    #[arg(long, value_name = "URL", requires = "packed")]
    url: Option<String>,
    /// Version of the image, such as 0.2.0-rc.1 [default: that of the package]
    #[arg(long, value_name = "VERSION")]
    image_version: Option<String>,
    /// Root document of the updates that machines with this image trust, which `alknet image root` makes
    #[arg(long, value_name = "FILE")]
    update_root: Option<PathBuf>,
    #[command(flatten)]
    drivers: driver::DriverArgs,
}

/// A folder of image files in the cache.
#[derive(Clone, Debug)]
pub struct ImageFiles {
    /// The folder.
    pub folder: PathBuf,
    /// The manifest of the files.
    pub manifest: Manifest,
}

/// Writes the forms and prints the files.
pub fn run(cx: &mut XtaskContext, arguments: &ImageArgs) -> Result<()> {
    provenance::check_build_time()?;
    let forms = if arguments.forms.is_empty() {
        ImageForm::ALL.to_vec()
    } else {
        arguments.forms.clone()
    };
    let ImageParts { kernel, binary } = ImageParts::ensure(cx, &arguments.drivers.vulkan)?;
    let mut inputs = cx.step("sources", |cx| inputs(cx, &kernel, &binary, &forms))?;
    if !arguments.append.is_empty() {
        inputs.cmdline = format!("{} {}", inputs.cmdline, arguments.append);
    }
    inputs.update_root.clone_from(&arguments.update_root);
    if let Some(version) = &arguments.image_version {
        inputs.version.clone_from(version);
    }
    let mut manifest = cx.step("image", |cx| {
        write(&inputs, &forms, &arguments.out, |doing| cx.say(doing))
    })?;
    if arguments.packed {
        manifest = cx.step("packed", |cx| {
            pack(cx, &arguments.out, arguments.url.clone())
        })?;
    }
    for output in &manifest.outputs {
        println!(
            "{:10} {:>11}  {}  {}",
            output.form, output.bytes, output.sha256, output.file
        );
    }
    Ok(())
}

/// Packs the disk of the form raw in a folder of files. `url` is that of the folder for downloads.
pub(crate) fn pack(cx: &XtaskContext, folder: &Path, url: Option<String>) -> Result<Manifest> {
    let options = PackOptions {
        url,
        release_date: commit_day(cx.root()),
    };
    let packed = alknet_image::pack(folder, &options, &mut |doing| cx.say(doing));
    Ok(packed?)
}

/// Finds images of these forms in the cache, or makes them.
pub fn ensure(
    cx: &XtaskContext,
    kernel: &KernelFiles,
    binary: &Path,
    forms: &[ImageForm],
) -> Result<ImageFiles> {
    let inputs = inputs(cx, kernel, binary, forms)?;
    let images = cx.cache().join("image");
    let folder = images.join(key(&inputs, forms)?);
    if !folder.join(MANIFEST_FILE).exists() {
        // The manifest is written last, so an interrupted build is not taken for a finished one.
        write(&inputs, forms, &folder, |doing| cx.say(doing))?;
        cached::forget_old(&images, &folder, KEPT_IMAGES)
            .map_err(TaskError::io(format!("clear {}", images.display())))?;
    }
    let manifest = Manifest::read(&folder)?;
    Ok(ImageFiles { folder, manifest })
}

/// The images in the cache that hold `binary` and were made from the checked-out commit.
pub(crate) fn cached(cx: &XtaskContext, binary: &Path) -> Result<Vec<PathBuf>> {
    let hash =
        digest::of_file(binary).map_err(TaskError::io(format!("read {}", binary.display())))?;
    let commit = commit(cx.root());
    let holds = |folder: &PathBuf| {
        Manifest::read(folder).is_ok_and(|manifest| {
            manifest.git == commit && manifest.inputs.iter().any(|input| input.sha256 == hash)
        })
    };
    // Without a folder there is no image.
    let folders = fs::read_dir(cx.cache().join("image"));
    let paths = folders.into_iter().flatten().flatten();
    Ok(paths.map(|entry| entry.path()).filter(holds).collect())
}

/// Writes the forms into a folder.
pub fn write(
    inputs: &ImageInputs,
    forms: &[ImageForm],
    out: &Path,
    say: impl Fn(&str),
) -> Result<Manifest> {
    let mut progress = |progress: BuildProgress| {
        say(&format!(
            "{} ({} of {})",
            progress.doing,
            progress.done + 1,
            progress.total
        ));
    };
    Ok(alknet_image::build(inputs, forms, out, &mut progress)?)
}

/// The inputs of an image with this kernel and this binary.
pub fn inputs(
    cx: &XtaskContext,
    kernel: &KernelFiles,
    binary: &Path,
    forms: &[ImageForm],
) -> Result<ImageInputs> {
    // The other forms need no stub, which saves the download.
    let needs_stub = forms.iter().any(|form| form.holds_efi_program());
    let stub = if needs_stub {
        Some(sources::obtain(cx, "systemd-stub")?.path)
    } else {
        None
    };
    let needs_grub = forms.iter().any(|form| form.holds_grub());
    let grub = needs_grub.then(|| grub::ensure(cx)).transpose()?;
    let needs_loader = forms.iter().any(|form| form.holds_loader());
    let loader = needs_loader.then(|| loader::ensure(cx)).transpose()?;
    Ok(ImageInputs {
        kernel: kernel.bzimage.clone(),
        vmlinux: Some(kernel.vmlinux.clone()),
        kernel_config: Some(kernel.config.clone()),
        binary: binary.to_owned(),
        stub,
        grub,
        loader: loader.map(|programs| programs.loader),
        update_root: None,
        cmdline: CMDLINE.to_owned(),
        version: VERSION.to_owned(),
        git: commit(cx.root()),
        provenance: provenance::provenance(cx, kernel)?,
    })
}

/// The checked-out commit. A copy without history has none.
pub fn commit(root: &Path) -> String {
    let output = crate::git(root)
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

/// The day of the checked-out commit, such as `2027-01-31`: every build of the commit has the same. A copy without
/// history has none.
fn commit_day(root: &Path) -> Option<String> {
    let output = crate::git(root)
        .args(["show", "--no-patch", "--format=%cs", "HEAD"])
        .output();
    let text = String::from_utf8_lossy(&output.ok()?.stdout)
        .trim()
        .to_owned();
    (!text.is_empty()).then_some(text)
}

/// A name by the bytes of the inputs. The name of the kernel's folder would not do: another program
/// may have written there since it was built.
fn key(inputs: &ImageInputs, forms: &[ImageForm]) -> Result<String> {
    let hash = |path: &Path| {
        digest::of_file(path).map_err(TaskError::io(format!("read {}", path.display())))
    };
    let optional = |path: &Option<PathBuf>| path.as_deref().map_or(Ok(String::new()), hash);
    let mut parts = vec![
        hash(&inputs.kernel)?,
        optional(&inputs.vmlinux)?,
        optional(&inputs.kernel_config)?,
        hash(&inputs.binary)?,
        optional(&inputs.stub)?,
        optional(&inputs.loader)?,
        optional(&inputs.update_root)?,
        inputs.cmdline.clone(),
        inputs.version.clone(),
        inputs.git.clone(),
        // The code that assembles images is in this program, whichever version runs now.
        hash(Path::new(THIS_PROGRAM))?,
    ];
    for part in inputs.grub.iter().flat_map(grub_parts) {
        parts.push(hash(part)?);
    }
    parts.extend(forms.iter().map(ToString::to_string));
    let made_of = &inputs.provenance;
    let made_of = (&made_of.components, &made_of.sources, made_of.seconds);
    let made_of = serde_json::to_string(&made_of);
    parts.push(made_of.map_err(|error| TaskError::Workspace(error.to_string()))?);
    Ok(digest::key(parts.iter().map(String::as_bytes)))
}

fn grub_parts(grub: &GrubFiles) -> [&Path; 4] {
    [
        &grub.boot_sector,
        &grub.hybrid_sector,
        &grub.core,
        &grub.cd_core,
    ]
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use alknet_image::BuildProvenance;

    use super::*;

    #[test]
    fn a_folder_without_history_has_no_commit() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        assert_eq!(commit(folder.path()), "unknown");
    }

    /// The variable with the folder in which a copy of this test program replaces its own file.
    const COPY: &str = "ALKNET_TEST_COPY";

    fn key_of(binary: &Path) -> String {
        key(&inputs_of(binary), &[]).expect("readable")
    }

    fn inputs_of(binary: &Path) -> ImageInputs {
        ImageInputs {
            kernel: binary.to_owned(),
            vmlinux: None,
            kernel_config: None,
            binary: binary.to_owned(),
            stub: None,
            grub: None,
            loader: None,
            update_root: None,
            cmdline: String::new(),
            version: String::new(),
            git: String::new(),
            provenance: BuildProvenance::default(),
        }
    }

    /// A kernel in the cache is found by the name of its inputs, whatever another program wrote
    /// there since.
    #[test]
    fn another_kernel_under_the_same_name_is_another_image() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let names = [
            "bzImage", "vmlinux", "config", "stub", "alknet", "boot", "hybrid", "core", "cd",
            "loader", "root",
        ];
        let files = names.map(|name| folder.path().join(name));
        for file in &files {
            fs::write(file, "as built").expect("writable");
        }
        let [
            kernel,
            vmlinux,
            config,
            stub,
            binary,
            boot_sector,
            hybrid_sector,
            core,
            cd_core,
            loader,
            update_root,
        ] = files.clone();
        let inputs = ImageInputs {
            kernel,
            vmlinux: Some(vmlinux),
            kernel_config: Some(config),
            stub: Some(stub),
            grub: Some(GrubFiles {
                boot_sector,
                hybrid_sector,
                core,
                cd_core,
                version: "1".into(),
            }),
            loader: Some(loader),
            update_root: Some(update_root),
            ..inputs_of(&binary)
        };
        let name = || key(&inputs, &[ImageForm::Direct]).expect("readable");
        let mut known = vec![name()];
        for file in &files {
            fs::write(file, "replaced").expect("writable");
            assert!(!known.contains(&name()), "{}", file.display());
            known.push(name());
        }
        assert_ne!(key(&inputs, &[]).expect("readable"), name());
    }

    #[test]
    fn the_key_names_the_program_that_runs_whatever_lies_at_its_path_now() {
        match std::env::var_os(COPY) {
            Some(folder) => replaced_while_it_runs(Path::new(&folder)),
            None => start_a_copy(),
        }
    }

    /// The copy's part: another clone puts its program here, and then the key is made.
    fn replaced_while_it_runs(folder: &Path) {
        let [copy, other] = ["copy", "other"].map(|name| folder.join(name));
        fs::rename(&other, &copy).expect("the folder is this test's");
        fs::write(folder.join("key"), key_of(&folder.join("binary"))).expect("writable");
    }

    fn start_a_copy() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let at = |name: &str| folder.path().join(name);
        fs::copy(THIS_PROGRAM, at("copy")).expect("copied");
        fs::write(at("other"), "another clone's program").expect("writable");
        fs::write(at("binary"), "alknet").expect("writable");
        let test = "the_key_names_the_program_that_runs_whatever_lies_at_its_path_now";
        let child = Command::new(at("copy"))
            .args(["--exact", &format!("image::tests::{test}")])
            .env(COPY, folder.path())
            .output()
            .expect("the copy runs");
        assert!(child.status.success(), "{child:?}");
        let key = fs::read_to_string(at("key")).expect("the copy wrote its key");
        // Both processes run the same program.
        assert_eq!(key, key_of(&at("binary")));
    }
}
