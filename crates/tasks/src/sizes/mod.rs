//! `sizes`: what each part of an image weighs, and what changed since another commit.

mod ledger;
mod report;
mod symbols;

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use alknet_image::{ImageForm, OutputRole};
use object::read::elf::ElfFile64;
use object::{Endianness, Object, ObjectSection, SectionKind};

use self::ledger::{BZIMAGE, FORMS, GPU, GPU_LIBRARIES, KERNEL, LIBRARIES, PACKED, SECTIONS};
use self::ledger::{SizeLedger, UKI};
use self::symbols::{ProgramSizes, SizeTable};
use crate::context::XtaskContext;
use crate::failure::{Result, TaskError};
use crate::gpu::{self, GpuExecutable};
use crate::image::{self, ImageFiles};
use crate::kernel::KernelFiles;
use crate::parts::ImageParts;
use crate::scratch::ScratchFolder;
use crate::{driver, linked};

/// Largest kernel in bytes, with the drivers of metal machines and clouds.
const KERNEL_BYTES_MAX: u64 = 10_000_000;

/// Largest image in bytes: the unified kernel image, with llvmpipe.
const IMAGE_BYTES_MAX: u64 = 48_000_000;

/// Largest image in bytes without a Vulkan driver.
const IMAGE_WITHOUT_DRIVER_BYTES_MAX: u64 = 36_000_000;

/// A block of a file system. Blocks of zeros take no space on the disk.
const BLOCK_BYTES: usize = 4096;

/// Bytes that are read at once; a multiple of a block.
const READ_BYTES: usize = 256 * BLOCK_BYTES;

/// Arguments of `sizes`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLE)]
pub(crate) struct SizesArgs {
    /// Compare with this commit [default: the last one before the checked-out commit that was measured]
    #[arg(long, value_name = "COMMIT")]
    against: Option<String>,
    /// Print JSON, with every crate
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    drivers: driver::DriverArgs,
}

const EXAMPLE: &str = "\
Example: what a change costs

  git checkout main && cargo xtask sizes
  git checkout my-change && cargo xtask sizes --against main

The sizes of a commit are kept in the cache when its tree has no changes. Exit code 5:
the kernel or the image is beyond its limit; the message names what grew most.";

/// A size that may not grow beyond a limit.
#[derive(Clone, Debug, PartialEq, Eq)]
struct SizeLimit {
    what: &'static str,
    bytes: u64,
    limit: u64,
}

/// Measures the parts and the forms, prints them, and checks the limits.
pub(crate) fn run(cx: &mut XtaskContext, arguments: &SizesArgs) -> Result<()> {
    let is_changed = is_changed(cx.root());
    // A wrong name is reported before a build.
    let earlier = match &arguments.against {
        Some(commit) => Some(ledger_of_commit(cx, commit)?),
        None => SizeLedger::nearest(cx.cache(), cx.root(), is_changed),
    };
    let selection = &arguments.drivers.vulkan;
    let ImageParts { kernel, binary } = ImageParts::ensure(cx, selection)?;
    let gpu = cx.step("gpu", |cx| gpu::ensure(cx, selection))?;
    // All forms together are larger than the rest of a build, so the cache does not keep them.
    let scratch = ScratchFolder::new(cx.cache(), "sizes-")?;
    let image = cx.step("images", |cx| {
        let inputs = image::inputs(cx, &kernel, &binary, &ImageForm::ALL)?;
        let folder = scratch.path().join("out");
        let manifest = image::write(&inputs, &ImageForm::ALL, &folder, |doing| cx.say(doing))?;
        Ok(ImageFiles { folder, manifest })
    })?;
    let ledger = cx.step("sizes", |cx| measure(cx, &kernel, &binary, &gpu, &image))?;
    if !is_changed {
        ledger.store(cx.cache())?;
    }
    let limits = limits(&ledger, !selection.names().is_empty());
    let changes = ledger.changes(earlier.as_ref());
    if arguments.json {
        println!("{:#}", report::json(&ledger, earlier.as_ref(), &limits));
    } else {
        print!("{}", report::text(&ledger, earlier.as_ref(), &changes));
    }
    check(&limits, &report::largest_growth(earlier.as_ref(), &changes))
}

/// Whether the tree differs from the checked-out commit, or has none.
fn is_changed(root: &Path) -> bool {
    let output = crate::git(root).args(["status", "--porcelain"]).output();
    output.map_or(true, |output| {
        !output.status.success() || !output.stdout.is_empty()
    })
}

/// The ledger of a commit that the user named.
fn ledger_of_commit(cx: &XtaskContext, commit: &str) -> Result<SizeLedger> {
    let output = crate::git(cx.root())
        .args(["rev-parse", "--verify", "--quiet", "--end-of-options"])
        .arg(format!("{commit}^{{commit}}"))
        .output()
        .map_err(TaskError::io("run git"))?;
    let hash = String::from_utf8_lossy(&output.stdout);
    let short = ledger::shortened(hash.trim()).ok_or_else(|| {
        TaskError::Arguments(format!("--against {commit}: git knows no such commit"))
    })?;
    SizeLedger::load(cx.cache(), &short).ok_or_else(|| {
        TaskError::Arguments(format!(
            "--against {commit}: the sizes of {short} are not in the cache; check it out, run `cargo xtask \
             sizes`, and come back"
        ))
    })
}

fn measure(
    cx: &XtaskContext,
    kernel: &KernelFiles,
    binary: &Path,
    gpu: &GpuExecutable,
    image: &ImageFiles,
) -> Result<SizeLedger> {
    let commit = image::commit(cx.root());
    let mut ledger = SizeLedger {
        commit: ledger::shortened(&commit).unwrap_or(commit),
        ..SizeLedger::default()
    };
    let mut add = |group: &str, table| ledger.groups.insert(group.to_owned(), table);
    let alknet = program(binary)?;
    add(LIBRARIES, alknet.libraries);
    add(SECTIONS, alknet.sections);
    add(KERNEL, kernel_sizes(kernel)?);
    let sizes = [
        ("executable", size(&gpu.executable)?),
        (PACKED, size(&gpu.packed)?),
    ];
    add(GPU, table(sizes));
    // What cargo linked has symbols, and belongs to the clone that holds the lock.
    let lock = cx.claim()?;
    let with_symbols = program(&cx.executable(gpu::NAME))?;
    drop(lock);
    add(GPU_LIBRARIES, with_symbols.libraries);
    add(FORMS, forms(image)?);
    ledger.duplicates = linked::duplicates(&linked::linked_crates(cx.root())?);
    Ok(ledger)
}

fn table<const N: usize>(sizes: [(&str, u64); N]) -> SizeTable {
    let sizes = sizes.into_iter();
    sizes
        .map(|(name, bytes)| (name.to_owned(), bytes))
        .collect()
}

fn program(path: &Path) -> Result<ProgramSizes> {
    let bytes = fs::read(path).map_err(reading(path))?;
    symbols::by_library(&bytes).map_err(not_elf(path))
}

/// The compressed kernel, and what it unpacks to.
fn kernel_sizes(kernel: &KernelFiles) -> Result<SizeTable> {
    let bytes = fs::read(&kernel.vmlinux).map_err(reading(&kernel.vmlinux))?;
    let elf = ElfFile64::<Endianness>::parse(bytes.as_slice()).map_err(not_elf(&kernel.vmlinux))?;
    let mut sizes = table([(BZIMAGE, size(&kernel.bzimage)?)]);
    for section in elf.sections().filter(|section| section.address() != 0) {
        let name = match section.kind() {
            SectionKind::Text => "text",
            SectionKind::ReadOnlyData | SectionKind::ReadOnlyString => "read-only data",
            SectionKind::UninitializedData => "zeroed data",
            _ => "data",
        };
        *sizes.entry(name.to_owned()).or_default() += section.size();
    }
    Ok(sizes)
}

/// The files of each form, without the bill of materials, which all share. Of a disk its blocks count
/// that have data.
fn forms(image: &ImageFiles) -> Result<SizeTable> {
    let mut sizes = SizeTable::new();
    let outputs = image.manifest.outputs.iter();
    for output in outputs.filter(|output| output.role != OutputRole::Sbom) {
        let path = image.folder.join(&output.file);
        let bytes = match output.role {
            OutputRole::Disk => File::open(&path)
                .and_then(data_bytes)
                .map_err(reading(&path))?,
            _ => output.bytes,
        };
        *sizes.entry(output.form.to_string()).or_default() += bytes;
    }
    Ok(sizes)
}

/// Bytes of the blocks that are not all zeros.
fn data_bytes(file: impl Read) -> io::Result<u64> {
    let mut file = file;
    let mut buffer = vec![0; READ_BYTES];
    let mut bytes = 0;
    loop {
        let mut filled = 0;
        while filled < buffer.len() {
            let read = file.read(&mut buffer[filled..])?;
            if read == 0 {
                break;
            }
            filled += read;
        }
        let blocks = buffer[..filled].chunks(BLOCK_BYTES);
        let with_data = blocks.filter(|block| block.iter().any(|byte| *byte != 0));
        bytes += with_data.map(|block| block.len() as u64).sum::<u64>();
        if filled < buffer.len() {
            return Ok(bytes);
        }
    }
}

fn size(path: &Path) -> Result<u64> {
    Ok(fs::metadata(path).map_err(reading(path))?.len())
}

fn reading(path: &Path) -> impl FnOnce(io::Error) -> TaskError + use<> {
    TaskError::io(format!("read {}", path.display()))
}

fn not_elf(path: &Path) -> impl FnOnce(object::Error) -> TaskError + use<> {
    let path = path.to_owned();
    move |error| TaskError::Workspace(format!("{} cannot be read: {error}", path.display()))
}

/// The sizes with limits. Of an image with a driver, the part without the program for GPUs counts as
/// well: an image without a driver is larger than it by a program of a megabyte.
fn limits(ledger: &SizeLedger, has_driver: bool) -> Vec<SizeLimit> {
    let image = ledger.bytes(FORMS, UKI);
    let (without, what) = match has_driver {
        true => (
            image.saturating_sub(ledger.bytes(GPU, PACKED)),
            "the image (uki) without the program for GPUs",
        ),
        false => (image, "the image (uki) without a driver"),
    };
    vec![
        SizeLimit {
            what: "the kernel",
            bytes: ledger.bytes(KERNEL, BZIMAGE),
            limit: KERNEL_BYTES_MAX,
        },
        SizeLimit {
            what: "the image (uki)",
            bytes: image,
            limit: IMAGE_BYTES_MAX,
        },
        SizeLimit {
            what,
            bytes: without,
            limit: IMAGE_WITHOUT_DRIVER_BYTES_MAX,
        },
    ]
}

/// The first limit that is exceeded, with what grew most.
fn check(limits: &[SizeLimit], growth: &str) -> Result<()> {
    match limits.iter().find(|it| it.bytes > it.limit) {
        Some(SizeLimit { what, bytes, limit }) => Err(TaskError::TooLarge {
            what: format!("{what} ({growth})"),
            bytes: *bytes,
            limit: *limit,
        }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger(kernel: u64, image: u64, packed: u64) -> SizeLedger {
        let mut ledger = SizeLedger::default();
        for (group, name, bytes) in [
            (KERNEL, BZIMAGE, kernel),
            (FORMS, UKI, image),
            (GPU, PACKED, packed),
        ] {
            let sizes = table([(name, bytes)]);
            ledger.groups.insert(group.to_owned(), sizes);
        }
        ledger
    }

    fn verdict(ledger: &SizeLedger, has_driver: bool) -> Result<()> {
        check(&limits(ledger, has_driver), "aes +7 bytes")
    }

    #[test]
    fn each_limit_may_be_reached_and_not_passed() {
        let packed = IMAGE_BYTES_MAX - IMAGE_WITHOUT_DRIVER_BYTES_MAX;
        let largest = ledger(KERNEL_BYTES_MAX, IMAGE_BYTES_MAX, packed);
        verdict(&largest, true).expect("all three are reached");
        for (ledger, has_driver, what) in [
            (ledger(KERNEL_BYTES_MAX + 1, 0, 0), true, "the kernel"),
            (
                ledger(0, IMAGE_BYTES_MAX + 1, packed + 1),
                true,
                "the image (uki) (",
            ),
            (
                ledger(0, IMAGE_BYTES_MAX, packed - 1),
                true,
                "without the program",
            ),
            (
                ledger(0, IMAGE_WITHOUT_DRIVER_BYTES_MAX + 1, 2),
                false,
                "without a driver",
            ),
        ] {
            let error = verdict(&ledger, has_driver).expect_err(what);
            assert_eq!(error.exit_code(), 5, "{what}");
            let error = error.to_string();
            assert!(
                error.contains(what) && error.contains("aes +7 bytes"),
                "{error}"
            );
        }
    }

    #[test]
    fn blocks_of_zeros_do_not_count() {
        let mut content = vec![0; READ_BYTES + 3 * BLOCK_BYTES];
        assert_eq!(data_bytes(content.as_slice()).expect("readable"), 0);
        content[1] = 1;
        content[READ_BYTES + BLOCK_BYTES] = 1;
        content.extend([1, 2, 3]);
        let expected = 2 * BLOCK_BYTES as u64 + 3;
        assert_eq!(data_bytes(content.as_slice()).expect("readable"), expected);
    }

    #[test]
    fn a_commit_that_was_not_measured_is_named_with_what_to_do() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let cx = XtaskContext::in_folder(folder.path());
        let error = ledger_of_commit(&cx, "no-such-branch").expect_err("git knows none");
        assert_eq!(error.exit_code(), 2);
        let error = error.to_string();
        assert!(error.contains("no-such-branch"), "{error}");
    }
}
