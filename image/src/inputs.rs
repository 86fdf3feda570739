//! The inputs of an image, which are read and checked once before any output is written.

use std::path::{Path, PathBuf};

use crate::assemble::SignEfiProgram;
use crate::elf::StaticElf;
use crate::error::ImageError;
use crate::form::ImageForm;
use crate::grub::{self, GrubLoader, GrubPart};
use crate::kernel;
use crate::manifest::{ManifestInput, hex_sha256};
use crate::provenance::BuildProvenance;
use crate::regular_file::{self, RegularFileError};
use crate::uki;

/// The kernel command line of every form, unless the caller says another: serial console, few messages, reboot 10 s
/// after a panic.
///
/// `noreplace-smp`: with one processor the kernel would rewrite its 8,600 lock prefixes, each with
/// a switch of address spaces. That takes a fifth of the time to `/init` under emulation, and saves
/// a few cycles per atomic operation later.
///
/// `no_timer_check`: the kernel waits for a few ticks of the legacy timer, 160 ms by the
/// processor's clock, and panics if none came. An emulator that shares its processors with other
/// programs may not deliver one by then. Under KVM the kernel does not check in any case.
pub const CMDLINE: &str = "console=ttyS0 quiet panic=10 noreplace-smp no_timer_check";

/// Longest kernel command line in bytes: what x86 copies at boot (COMMAND_LINE_SIZE), without the
/// terminating NUL and the 112 bytes for a form's additions, and for the name of the kernel and the
/// boot slot that GRUB puts first.
pub const CMDLINE_BYTES_MAX: usize = 2048 - 1 - 112;

/// Longest version in bytes. With the rest of its file name it stays a plain FAT long name.
const VERSION_BYTES_MAX: usize = 64;

/// Largest input in bytes: far beyond what an image can hold, below what its formats can describe.
const INPUT_BYTES_MAX: u64 = 1 << 30;

/// Largest root document of updates in bytes: what machines read.
const UPDATE_ROOT_BYTES_MAX: usize = 64 << 10;

/// The inputs of an image. No output depends on the paths.
#[derive(Clone, Debug)]
pub struct ImageInputs {
    /// The kernel as bzImage.
    pub kernel: PathBuf,
    /// The same kernel as ELF with a PVH entry, for machines without firmware. It is copied as it
    /// is.
    pub vmlinux: Option<PathBuf>,
    /// The kernel's `.config`. The manifest has only its SHA-256.
    pub kernel_config: Option<PathBuf>,
    /// The one binary: a static x86-64 executable. The build strips it.
    pub binary: PathBuf,
    /// systemd's `linuxx64.efi.stub`, which the forms with an EFI program need.
    pub stub: Option<PathBuf>,
    /// GRUB, which `iso` and the forms that hold the disk need.
    pub grub: Option<GrubFiles>,
    /// The loader for UEFI, which `iso` and the forms that hold the disk need: an EFI program that chooses a
    /// boot slot. It may be signed.
    pub loader: Option<PathBuf>,
    /// The root document of updates that machines with this image trust. Without it they trust only
    /// keys of their owner.
    pub update_root: Option<PathBuf>,
    /// Kernel command line, printable ASCII, without a root: each form adds its own.
    pub cmdline: String,
    /// Version without build metadata, such as `0.1.0` or `0.2.0-rc.1`.
    pub version: String,
    /// The commit of the build. Together with the version it seeds every identifier.
    pub git: String,
    /// What the inputs are made from, for the SBOM and the manifest.
    pub provenance: BuildProvenance,
}

/// The parts of GRUB for PCs with a BIOS.
///
/// `grub-mkimage` makes the core images, one in each of [`GRUB_FORMATS`](crate::GRUB_FORMATS), of
/// [`GRUB_MODULES`](crate::GRUB_MODULES) with the format's configuration and
/// [`GRUB_PREFIX`](crate::GRUB_PREFIX). The other files come with GRUB.
#[derive(Clone, Debug)]
pub struct GrubFiles {
    /// `boot.img`, the first sector of a disk.
    pub boot_sector: PathBuf,
    /// `boot_hybrid.img`, the first sector of a CD that was written to a disk.
    pub hybrid_sector: PathBuf,
    /// The core image for a disk, in the format `i386-pc`.
    pub core: PathBuf,
    /// The core image for a CD, in the format `i386-pc-eltorito`.
    pub cd_core: PathBuf,
    /// The version of GRUB's source package, for the offer of the source code.
    pub version: String,
}

impl GrubFiles {
    /// The first sectors of a disk, and of a CD that was written to a disk, as GRUB names them.
    pub const SECTORS: [&'static str; 2] = ["boot.img", "boot_hybrid.img"];
    /// The core images, in the order of [`GRUB_FORMATS`](crate::GRUB_FORMATS).
    pub const CORES: [&'static str; 2] = ["core.img", "eltorito.img"];

    /// The files of these names in a folder.
    #[must_use]
    pub fn in_folder(folder: &Path, version: String) -> Self {
        let [boot_sector, hybrid_sector] = Self::SECTORS.map(|name| folder.join(name));
        let [core, cd_core] = Self::CORES.map(|name| folder.join(name));
        Self {
            boot_sector,
            hybrid_sector,
            core,
            cd_core,
            version,
        }
    }
}

/// The contents of the inputs.
#[derive(Debug)]
pub(crate) struct InputContents {
    pub(crate) kernel: Vec<u8>,
    pub(crate) kernel_release: String,
    pub(crate) kernel_config_sha256: Option<String>,
    pub(crate) vmlinux: Option<Vec<u8>>,
    pub(crate) binary: Vec<u8>,
    stub: Option<EfiStub>,
    grub: Option<GrubContents>,
    loader: Option<Vec<u8>>,
    pub(crate) update_root: Option<Vec<u8>>,
    pub(crate) files: Vec<ManifestInput>,
}

/// The EFI stub, with its path for error messages.
#[derive(Debug)]
pub(crate) struct EfiStub {
    pub(crate) path: PathBuf,
    pub(crate) bytes: Vec<u8>,
}

/// GRUB, with its parts checked.
#[derive(Debug)]
pub(crate) struct GrubContents {
    pub(crate) loader: GrubLoader,
    pub(crate) hybrid_sector: Vec<u8>,
    pub(crate) cd_core: Vec<u8>,
    /// The text that accompanies every form with GRUB.
    pub(crate) notice: String,
}

impl GrubContents {
    fn read(grub: &GrubFiles, files: &mut Vec<ManifestInput>) -> Result<Self, ImageError> {
        let boot_sector = read("GRUB boot sector", &grub.boot_sector, files)?;
        let core = read("GRUB core image", &grub.core, files)?;
        let loader = GrubLoader::new(&boot_sector, &core).map_err(|(part, why)| match part {
            GrubPart::BootSector => invalid("GRUB boot sector", &grub.boot_sector, why),
            GrubPart::Core => invalid("GRUB core image", &grub.core, why),
        })?;
        let hybrid_sector = read("GRUB hybrid boot sector", &grub.hybrid_sector, files)?;
        grub::check_boot_sector(&hybrid_sector)
            .map_err(|why| invalid("GRUB hybrid boot sector", &grub.hybrid_sector, why))?;
        let cd_core = read("GRUB core image for CDs", &grub.cd_core, files)?;
        grub::check_cd_core(&cd_core)
            .map_err(|why| invalid("GRUB core image for CDs", &grub.cd_core, why))?;
        Ok(Self {
            loader,
            hybrid_sector,
            cd_core,
            notice: grub::notice(&grub.version),
        })
    }
}

impl InputContents {
    pub(crate) fn read(inputs: &ImageInputs, forms: &[ImageForm]) -> Result<Self, ImageError> {
        // Texts are checked first: a typing error should not cost reading hundreds of megabytes.
        check_text(inputs)?;
        check_words(inputs, forms)?;
        check_parts(inputs, forms)?;
        let mut files = Vec::new();
        let kernel = read("kernel", &inputs.kernel, &mut files)?;
        let kernel_release =
            kernel::release(&kernel).map_err(|why| invalid("kernel", &inputs.kernel, why))?;
        let binary = read("binary", &inputs.binary, &mut files)?;
        let binary = StaticElf::parse(&binary)
            .and_then(|elf| elf.packed())
            .map_err(|why| invalid("static binary", &inputs.binary, why))?;
        let wants = |wanted: &[ImageForm]| forms.iter().any(|form| wanted.contains(form));
        let vmlinux = match &inputs.vmlinux {
            // Only these two forms have the ELF kernel among their outputs.
            Some(path) if wants(&[ImageForm::Direct, ImageForm::Erofs]) => {
                Some(read("vmlinux", path, &mut files)?)
            }
            _ => None,
        };
        let stub = match &inputs.stub {
            Some(path) if forms.iter().any(|form| form.holds_efi_program()) => Some(EfiStub {
                path: path.clone(),
                bytes: read("stub", path, &mut files)?,
            }),
            _ => None,
        };
        let grub = match &inputs.grub {
            Some(grub) if forms.iter().any(|form| form.holds_grub()) => {
                Some(GrubContents::read(grub, &mut files)?)
            }
            _ => None,
        };
        let loader = match &inputs.loader {
            Some(path) if forms.iter().any(|form| form.holds_loader()) => {
                let loader = read("loader", path, &mut files)?;
                uki::check_program(&loader).map_err(|why| invalid("loader", path, why))?;
                Some(loader)
            }
            _ => None,
        };
        let update_root = match &inputs.update_root {
            Some(path) => Some(update_root(path, &mut files)?),
            None => None,
        };
        let kernel_config_sha256 = match &inputs.kernel_config {
            Some(path) => Some(hex_sha256(&read_file("kernel configuration", path)?)),
            None => None,
        };
        Ok(Self {
            kernel,
            kernel_release,
            kernel_config_sha256,
            vmlinux,
            binary,
            stub,
            grub,
            loader,
            update_root,
            files,
        })
    }

    /// Replaces the loader of `path`, if a form needs it, by the one that `sign` returns. The manifest keeps the hash of
    /// the input.
    pub(crate) fn sign_loader(
        &mut self,
        path: Option<&Path>,
        sign: &SignEfiProgram<'_>,
    ) -> Result<(), ImageError> {
        if let (Some(loader), Some(path)) = (&mut self.loader, path) {
            *loader = sign(loader).map_err(|why| invalid("loader", path, why))?;
        }
        Ok(())
    }

    /// The stub, which `form` needs.
    pub(crate) fn stub(&self, form: ImageForm) -> Result<&EfiStub, ImageError> {
        self.stub.as_ref().ok_or_else(|| stub_needed(form))
    }

    /// GRUB, which `form` needs.
    pub(crate) fn grub(&self, form: ImageForm) -> Result<&GrubContents, ImageError> {
        self.grub.as_ref().ok_or_else(|| grub_needed(form))
    }

    /// The loader for UEFI, which `form` needs.
    pub(crate) fn loader(&self, form: ImageForm) -> Result<&[u8], ImageError> {
        self.loader.as_deref().ok_or_else(|| loader_needed(form))
    }
}

/// Reads the root document of updates. Its signatures are for the machine to verify; another file in
/// its place would make machines refuse every update.
fn update_root(path: &Path, files: &mut Vec<ManifestInput>) -> Result<Vec<u8>, ImageError> {
    let what = "root document of updates";
    let document = read(what, path, files)?;
    if document.len() > UPDATE_ROOT_BYTES_MAX {
        let why = format!(
            "it is {} bytes, and machines read {UPDATE_ROOT_BYTES_MAX}",
            document.len()
        );
        return Err(invalid(what, path, why));
    }
    let parsed: Result<serde_json::Value, _> = serde_json::from_slice(&document);
    let parsed = parsed.map_err(|error| invalid(what, path, error.to_string()))?;
    if parsed["signed"]["_type"] != "root" {
        let why = "it is no root document; alknet image root makes one";
        return Err(invalid(what, path, why.to_owned()));
    }
    Ok(document)
}

fn read(
    what: &'static str,
    path: &Path,
    files: &mut Vec<ManifestInput>,
) -> Result<Vec<u8>, ImageError> {
    let bytes = read_file(what, path)?;
    let sha256 = hex_sha256(&bytes);
    files.push(ManifestInput {
        name: what.to_owned(),
        bytes: bytes.len() as u64,
        sha256,
    });
    Ok(bytes)
}

/// The content of an input.
pub(crate) fn read_file(what: &'static str, path: &Path) -> Result<Vec<u8>, ImageError> {
    read_regular(what, path, INPUT_BYTES_MAX)
}

/// The content of a regular file of at most `bytes_max` bytes.
pub(crate) fn read_regular(
    what: &'static str,
    path: &Path,
    bytes_max: u64,
) -> Result<Vec<u8>, ImageError> {
    regular_file::read_regular(path, bytes_max).map_err(|error| match error {
        RegularFileError::Unreadable(source) => ImageError::InputUnreadable {
            what,
            path: path.to_owned(),
            source,
        },
        error => invalid(what, path, error.to_string()),
    })
}

/// The error for an unusable input that was read.
pub(crate) fn invalid(what: &'static str, path: &Path, why: String) -> ImageError {
    ImageError::InputInvalid {
        what,
        path: path.to_owned(),
        why,
    }
}

/// Checks for the stub, GRUB and the loader before anything is built, so that a long build does not end in
/// a missing option.
fn check_parts(inputs: &ImageInputs, forms: &[ImageForm]) -> Result<(), ImageError> {
    for form in forms {
        if form.holds_efi_program() && inputs.stub.is_none() {
            return Err(stub_needed(*form));
        }
        if form.holds_grub() && inputs.grub.is_none() {
            return Err(grub_needed(*form));
        }
        if form.holds_loader() && inputs.loader.is_none() {
            return Err(loader_needed(*form));
        }
    }
    Ok(())
}

/// Refuses a command line that a BIOS machine would start with in another form than a UEFI machine.
/// An EFI program may be put on a disk later, so its command line is checked wherever it is built.
fn check_words(inputs: &ImageInputs, forms: &[ImageForm]) -> Result<(), ImageError> {
    let joins = forms.iter().any(|form| form.holds_efi_program());
    match grub::altered(&inputs.cmdline) {
        Some(_) if joins => Err(ImageError::Argument {
            what: "command line",
            value: inputs.cmdline.clone(),
            why: "leave out \" ' and \\, which GRUB passes to the kernel in another form",
        }),
        _ => Ok(()),
    }
}

const fn stub_needed(form: ImageForm) -> ImageError {
    ImageError::InputNeeded {
        form,
        what: "systemd's EFI stub (linuxx64.efi.stub)",
    }
}

const fn grub_needed(form: ImageForm) -> ImageError {
    ImageError::InputNeeded {
        form,
        what: "GRUB for machines with a BIOS (grub-pc-bin)",
    }
}

const fn loader_needed(form: ImageForm) -> ImageError {
    ImageError::InputNeeded {
        form,
        what: "the loader for UEFI (alknet-loader.efi, or BOOTX64.EFI of another image)",
    }
}

fn check_text(inputs: &ImageInputs) -> Result<(), ImageError> {
    let refuse = |what, value: &str, why| {
        Err(ImageError::Argument {
            what,
            value: value.to_owned(),
            why,
        })
    };
    if !is_name(&inputs.version) {
        // '+' would read as boot counting in the system partition's file names.
        return refuse(
            "version",
            &inputs.version,
            "use 1 to 64 of a-z A-Z 0-9 . - starting with a letter or digit, without + metadata",
        );
    }
    if !is_name(&inputs.git) {
        return refuse("git", &inputs.git, "use a commit's hexadecimal name");
    }
    let cmdline = &inputs.cmdline;
    if cmdline.len() > CMDLINE_BYTES_MAX {
        return refuse("command line", cmdline, "it is longer than 1935 bytes");
    }
    if !cmdline.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        return refuse("command line", cmdline, "use printable ASCII on one line");
    }
    if cmdline.split(' ').any(names_root) {
        return refuse(
            "command line",
            cmdline,
            "leave root, rootfstype and init to the form",
        );
    }
    Ok(())
}

fn is_name(text: &str) -> bool {
    text.len() <= VERSION_BYTES_MAX
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-'))
}

fn names_root(word: &str) -> bool {
    ["root=", "rootfstype=", "init=", "rdinit="]
        .iter()
        .any(|name| word.starts_with(name))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn inputs() -> ImageInputs {
        ImageInputs {
            kernel: "/nonexistent/bzImage".into(),
            vmlinux: None,
            kernel_config: None,
            binary: "/nonexistent/alknet".into(),
            stub: None,
            grub: None,
            loader: None,
            update_root: None,
            cmdline: "console=ttyS0 quiet".into(),
            version: "0.1.0".into(),
            git: "abc".into(),
            provenance: BuildProvenance::default(),
        }
    }

    fn refusal(inputs: &ImageInputs) -> ImageError {
        InputContents::read(inputs, &[]).expect_err("must be refused")
    }

    #[test]
    fn forms_without_their_stub_are_refused_before_anything_is_read() {
        let error = InputContents::read(&inputs(), &[ImageForm::Direct, ImageForm::Raw])
            .expect_err("no stub");
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("form raw needs"), "{error}");
    }

    #[test]
    fn forms_with_grub_are_refused_without_it() {
        let stubbed = ImageInputs {
            stub: Some("/nonexistent/stub".into()),
            ..inputs()
        };
        for form in ImageForm::ALL {
            let error = InputContents::read(&stubbed, &[form]).expect_err("no file");
            let refused = error.to_string().contains("needs GRUB");
            assert_eq!(refused, form.holds_grub(), "{form}: {error}");
        }
        assert!(ImageForm::Iso.holds_grub() && !ImageForm::Uki.holds_grub());
    }

    #[test]
    fn forms_with_a_disk_are_refused_without_the_loader() {
        let with_grub = ImageInputs {
            stub: Some("/nonexistent/stub".into()),
            grub: Some(GrubFiles::in_folder(Path::new("/nonexistent"), "1".into())),
            ..inputs()
        };
        for form in ImageForm::ALL {
            let error = InputContents::read(&with_grub, &[form]).expect_err("no file");
            let refused = error.to_string().contains("needs the loader");
            assert_eq!(refused, form.holds_loader(), "{form}: {error}");
            assert_eq!(error.exit_code(), if refused { 2 } else { 3 }, "{form}");
        }
        assert!(ImageForm::Iso.holds_loader() && !ImageForm::Uki.holds_loader());
    }

    #[test]
    fn another_document_than_a_root_is_refused() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("root.json");
        let refused = |text: &str| {
            fs::write(&path, text).expect("writable");
            let refused = update_root(&path, &mut Vec::new());
            let error = refused.expect_err("must be refused");
            assert_eq!(error.exit_code(), 3, "{error}");
            error.to_string()
        };
        let targets = r#"{"signed":{"_type":"targets"},"signatures":[]}"#;
        assert!(refused(targets).contains("no root document"));
        assert!(refused("MZ").contains("root.json"));
        assert!(refused(&" ".repeat(UPDATE_ROOT_BYTES_MAX + 1)).contains("65537 bytes"));
        let root = r#"{"signed":{"_type":"root"},"signatures":[]}"#;
        fs::write(&path, root).expect("writable");
        let read = update_root(&path, &mut Vec::new()).expect("a root document");
        assert_eq!(read, root.as_bytes());
    }

    #[test]
    fn what_grub_would_change_is_refused_where_an_efi_program_has_it() {
        for letter in ['"', '\'', '\\'] {
            let inputs = ImageInputs {
                cmdline: format!("a={letter}"),
                stub: Some("/nonexistent/stub".into()),
                ..inputs()
            };
            let code = |form| {
                let error = InputContents::read(&inputs, &[form]).expect_err("no file");
                error.exit_code()
            };
            assert_eq!((code(ImageForm::Uki), code(ImageForm::Pxe)), (2, 3));
        }
    }

    #[test]
    fn a_missing_input_is_named_with_its_path() {
        let error = refusal(&inputs());
        assert_eq!(error.exit_code(), 3);
        assert!(
            error.to_string().contains("kernel /nonexistent/bzImage"),
            "{error}"
        );
    }

    #[test]
    fn an_input_beyond_the_limit_is_not_read() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.as_file().set_len(INPUT_BYTES_MAX + 1).expect("sparse");
        let error = refusal(&ImageInputs {
            kernel: file.path().to_owned(),
            ..inputs()
        });
        assert!(error.to_string().contains("beyond 1073741824"), "{error}");
    }

    #[test]
    fn texts_that_would_break_a_file_name_are_refused() {
        for version in [
            "",
            "0.1.0+1",
            "../x",
            "a b",
            ".1",
            &"1".repeat(VERSION_BYTES_MAX + 1),
        ] {
            let error = refusal(&ImageInputs {
                version: version.to_owned(),
                ..inputs()
            });
            assert_eq!(error.exit_code(), 2, "{version}");
        }
        let longest = ImageInputs {
            version: "1".repeat(VERSION_BYTES_MAX),
            ..inputs()
        };
        assert_eq!(refusal(&longest).exit_code(), 3);
        assert_eq!(
            refusal(&ImageInputs {
                git: "a/b".into(),
                ..inputs()
            })
            .exit_code(),
            2
        );
    }

    #[test]
    fn a_command_line_is_one_printable_line_without_a_root() {
        let long = "a".repeat(CMDLINE_BYTES_MAX + 1);
        for cmdline in [
            "a\nb",
            "a\0",
            "é",
            "quiet root=/dev/sda",
            "init=/bin/sh",
            &long,
        ] {
            let error = refusal(&ImageInputs {
                cmdline: cmdline.to_owned(),
                ..inputs()
            });
            assert_eq!(error.exit_code(), 2, "{cmdline:?}");
        }
        let longest = ImageInputs {
            cmdline: "a".repeat(CMDLINE_BYTES_MAX),
            ..inputs()
        };
        assert_eq!(refusal(&longest).exit_code(), 3);
        let near = ImageInputs {
            cmdline: "x.root=1 panic=10".into(),
            ..inputs()
        };
        assert_eq!(refusal(&near).exit_code(), 3);
    }
}
