//! The inputs of an image, which are read and checked once before any output is written.

use std::fs;
use std::path::{Path, PathBuf};

use crate::elf::StaticElf;
use crate::error::ImageError;
use crate::form::ImageForm;
use crate::kernel;
use crate::manifest::{ManifestInput, hex_sha256};

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
/// terminating NUL and the 64 bytes for a form's additions.
pub const CMDLINE_BYTES_MAX: usize = 2048 - 1 - 64;

/// Longest version in bytes. With the rest of its file name it stays a plain FAT long name.
const VERSION_BYTES_MAX: usize = 64;

/// Largest input in bytes: far beyond what an image can hold, below what its formats can describe.
const INPUT_BYTES_MAX: u64 = 1 << 30;

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
    /// systemd's `linuxx64.efi.stub`, which `uki` and `raw` need.
    pub stub: Option<PathBuf>,
    /// Kernel command line, printable ASCII, without a root: each form adds its own.
    pub cmdline: String,
    /// Version without build metadata, such as `0.1.0` or `0.2.0-rc.1`.
    pub version: String,
    /// The commit of the build. Together with the version it seeds every identifier.
    pub git: String,
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
    pub(crate) files: Vec<ManifestInput>,
}

/// The EFI stub, with its path for error messages.
#[derive(Debug)]
pub(crate) struct EfiStub {
    pub(crate) path: PathBuf,
    pub(crate) bytes: Vec<u8>,
}

impl InputContents {
    pub(crate) fn read(inputs: &ImageInputs, forms: &[ImageForm]) -> Result<Self, ImageError> {
        // Texts are checked first: a typing error should not cost reading hundreds of megabytes.
        check_text(inputs)?;
        check_stub(inputs, forms)?;
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
            files,
        })
    }

    /// The stub, which `form` needs.
    pub(crate) fn stub(&self, form: ImageForm) -> Result<&EfiStub, ImageError> {
        self.stub.as_ref().ok_or_else(|| stub_needed(form))
    }
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

fn read_file(what: &'static str, path: &Path) -> Result<Vec<u8>, ImageError> {
    let unreadable = |source| ImageError::InputUnreadable {
        what,
        path: path.to_owned(),
        source,
    };
    // The size is checked before the file is read, which would fill the memory.
    let bytes = fs::metadata(path).map_err(unreadable)?.len();
    if bytes > INPUT_BYTES_MAX {
        let why = format!("it is {bytes} bytes, beyond 1 GiB; name another file");
        return Err(invalid(what, path, why));
    }
    fs::read(path).map_err(unreadable)
}

/// The error for an unusable input that was read.
pub(crate) fn invalid(what: &'static str, path: &Path, why: String) -> ImageError {
    ImageError::InputInvalid {
        what,
        path: path.to_owned(),
        why,
    }
}

/// Checks for the stub before anything is built, so that a long build does not end in a missing
/// option.
fn check_stub(inputs: &ImageInputs, forms: &[ImageForm]) -> Result<(), ImageError> {
    let needs = |form: &&ImageForm| form.holds_efi_program();
    match forms.iter().find(needs) {
        Some(form) if inputs.stub.is_none() => Err(stub_needed(*form)),
        _ => Ok(()),
    }
}

const fn stub_needed(form: ImageForm) -> ImageError {
    ImageError::InputNeeded {
        form,
        what: "systemd's EFI stub (linuxx64.efi.stub)",
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
        return refuse("command line", cmdline, "it is longer than 1983 bytes");
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
    use super::*;

    fn inputs() -> ImageInputs {
        ImageInputs {
            kernel: "/nonexistent/bzImage".into(),
            vmlinux: None,
            kernel_config: None,
            binary: "/nonexistent/alknet".into(),
            stub: None,
            cmdline: "console=ttyS0 quiet".into(),
            version: "0.1.0".into(),
            git: "abc".into(),
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
        assert!(error.to_string().contains("beyond 1 GiB"), "{error}");
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
