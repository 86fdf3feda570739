//! `alknet image build`: what `cargo xtask image` does, for owners without the source.

use std::io::{IsTerminal, stderr};
use std::path::{Path, PathBuf};

use alknet_image::{
    BUILD_TIME_VARIABLE, BuildProgress, BuildProvenance, CMDLINE, GrubFiles, ImageForm,
    ImageInputs, InputFacts, Manifest, PackOptions, build, build_signed, named_build_time,
    pack_outputs,
};
use alknet_image_write::authenticode::sign as sign_program;
use alknet_licenses::LicenseInventory;
use clap::Args;

use super::of_image;
use super::sign::{efi_signer, sign_built};
use crate::cli::{CommandError, CommandExit, output};

/// This program, also if another file has its name by now.
const THIS_PROGRAM: &str = "/proc/self/exe";

/// Arguments of `alknet image build`.
#[derive(Debug, Args)]
pub(crate) struct ImageBuildArgs {
    /// The kernel as bzImage, such as the one of the form direct.
    #[arg(long, value_name = "FILE")]
    kernel: PathBuf,
    /// The program that the machine runs [default: this program]
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// The same kernel as ELF, for machines without firmware.
    #[arg(long, value_name = "FILE")]
    vmlinux: Option<PathBuf>,
    /// The EFI stub of systemd, linuxx64.efi.stub, which forms with an EFI program need.
    #[arg(long, value_name = "FILE")]
    stub: Option<PathBuf>,
    /// The folder with GRUB for machines with a BIOS, which iso and forms with a disk need: boot.img and boot_hybrid.img
    /// of GRUB, and core.img and eltorito.img, which the commands in GRUB.txt beside an image make.
    #[arg(long, value_name = "DIR", requires = "grub_version")]
    grub: Option<PathBuf>,
    /// The version of GRUB's source package, for the offer of the source code.
    #[arg(long, value_name = "VERSION", requires = "grub")]
    grub_version: Option<String>,
    /// The loader for UEFI, alknet-loader.efi, which forms with a disk need. It is BOOTX64.EFI on the disk of another
    /// image.
    #[arg(long, value_name = "FILE")]
    loader: Option<PathBuf>,
    /// The folder of the image from which kernel, stub, GRUB and loader come. Its manifest and its bill of materials say
    /// what they consist of; no signature is checked, so a person who can write to the folder can write this bill. Without
    /// it the bill of this image has the hash of each of these files, and no licence.
    #[arg(long, value_name = "DIR")]
    shipped: Option<PathBuf>,
    /// The root document of the updates that machines with this image trust, which 'alknet image root' makes. Without
    /// it they trust only keys of their owner.
    #[arg(long, value_name = "FILE")]
    update_root: Option<PathBuf>,
    /// The form to build, for example raw or oci; may be repeated.
    #[arg(long = "form", value_name = "FORM", required = true)]
    forms: Vec<ImageForm>,
    /// The folder for the files.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Words to add to the kernel's command line.
    #[arg(long, value_name = "WORDS", default_value = "")]
    append: String,
    /// The version of the image.
    #[arg(long, value_name = "VERSION", default_value = env!("CARGO_PKG_VERSION"))]
    image_version: String,
    /// The commit that the image names. With the version it makes every identifier of the image.
    #[arg(long, value_name = "COMMIT", default_value = "unknown")]
    commit: String,
    /// Also pack the disk of the form raw: compressed, with its map, and a list for Raspberry Pi Imager.
    #[arg(long)]
    packed: bool,
    /// Sign the loader and the EFI program of each form for Secure Boot, by this key in PEM: RSA of 2,048 bits or more, or
    /// ECDSA on P-256.
    #[arg(long, value_name = "FILE", requires = "efi_cert")]
    efi_key: Option<PathBuf>,
    /// The certificate of that key, in PEM.
    #[arg(long, value_name = "FILE", requires = "efi_key")]
    efi_cert: Option<PathBuf>,
    #[command(flatten)]
    release: ReleaseArgs,
    /// Sign the files by this secret key of minisign, as 'alknet image sign' does.
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// With --key: read the password of the key from the first line of standard input, instead of asking for it.
    #[arg(long, requires = "key")]
    passphrase_stdin: bool,
}

/// What packed files say.
#[derive(Debug, Args)]
struct ReleaseArgs {
    /// With --packed: the URL of the folder from which the files will be downloaded.
    #[arg(long, value_name = "URL", requires = "packed")]
    url: Option<String>,
    /// With --packed: the day of the release, for example 2027-01-31.
    #[arg(long, value_name = "DAY", requires = "packed")]
    release_date: Option<String>,
}

/// Runs it.
pub(super) fn run(args: &ImageBuildArgs, json: bool) -> Result<CommandExit, CommandError> {
    let is_shown = !json && stderr().is_terminal();
    let mut manifest = built(args, is_shown)?;
    if args.packed {
        let options = PackOptions {
            url: args.release.url.clone(),
            release_date: args.release.release_date.clone(),
        };
        let mut progress = |doing: &str| {
            if is_shown {
                output::note(doing);
            }
        };
        let packed = pack_outputs(&args.out, manifest, &options, &mut progress);
        manifest = packed.map_err(|error| of_image(&error))?;
    }
    // This comes last: packing makes further files, which are signed as well.
    if let Some(key) = &args.key {
        manifest = sign_built(&args.out, manifest, key, args.passphrase_stdin)?;
    }
    show(&manifest, json)?;
    Ok(CommandExit::Ok)
}

/// Builds the forms, with signed EFI programs if there is a key for them.
fn built(args: &ImageBuildArgs, is_shown: bool) -> Result<Manifest, CommandError> {
    let keys = args.efi_key.as_deref().zip(args.efi_cert.as_deref());
    let signer = keys.map(|(key, certificate)| efi_signer(key, certificate));
    let signer = signer.transpose()?;
    let inputs = inputs(args)?;
    let mut progress = |step: BuildProgress| {
        if is_shown {
            let (at, total) = (step.done + 1, step.total);
            output::note(&format!("{} ({at} of {total})", step.doing));
        }
    };
    let built = match &signer {
        Some(signer) => {
            let sign =
                |program: &[u8]| sign_program(program, signer).map_err(|error| error.to_string());
            build_signed(&inputs, &args.forms, &args.out, &sign, &mut progress)
        }
        None => build(&inputs, &args.forms, &args.out, &mut progress),
    };
    built.map_err(|error| of_image(&error))
}

fn inputs(args: &ImageBuildArgs) -> Result<ImageInputs, CommandError> {
    let grub = args.grub.as_deref().zip(args.grub_version.clone());
    Ok(ImageInputs {
        kernel: args.kernel.clone(),
        vmlinux: args.vmlinux.clone(),
        kernel_config: None,
        binary: args.binary.clone().unwrap_or_else(|| THIS_PROGRAM.into()),
        stub: args.stub.clone(),
        grub: grub.map(|(folder, version)| GrubFiles::in_folder(folder, version)),
        loader: args.loader.clone(),
        update_root: args.update_root.clone(),
        cmdline: format!("{CMDLINE} {}", args.append).trim().to_owned(),
        version: args.image_version.clone(),
        git: args.commit.clone(),
        provenance: provenance(args.shipped.as_deref())?,
    })
}

/// What is known about the inputs: what the shipped image says, and what this program says about itself.
fn provenance(shipped: Option<&Path>) -> Result<BuildProvenance, CommandError> {
    let shipped = shipped.map(InputFacts::of_image).transpose();
    let shipped = shipped.map_err(|error| of_image(&error))?;
    let inventory = LicenseInventory::own().map_err(CommandError::local)?;
    let own = InputFacts::of_binary(THIS_PROGRAM.as_ref(), inventory);
    let own = own.map_err(|error| of_image(&error))?;
    let named = named_build_time(std::env::var_os(BUILD_TIME_VARIABLE).as_deref());
    let named = named.map_err(|error| of_image(&error))?;
    // The clock would make each build another one.
    let seconds = named
        .or_else(|| shipped.as_ref()?.seconds())
        .unwrap_or_default();
    let facts = shipped.into_iter().chain([own]).collect();
    Ok(BuildProvenance::of_facts(facts, seconds))
}

/// The files, as `cargo xtask image` prints them.
fn show(manifest: &Manifest, json: bool) -> Result<(), CommandError> {
    if json {
        return output::json_line(manifest);
    }
    for file in &manifest.outputs {
        output::line(&format!(
            "{:10} {:>11}  {}  {}",
            file.form.name(),
            file.bytes,
            file.sha256,
            file.file
        ))?;
    }
    Ok(())
}
